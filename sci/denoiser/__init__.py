"""Denoisers: a network on a tree of paths, and what wraps one to change its clock or its schedule.

`Denoiser` is where a network becomes predictions of any kind; `Joined` holds the two networks of a
noisy interpolant. `Rescheduled`, `Annealed` and `TimeShift` change the clock at sampling time,
`mean_reverting` moves the state's origin. Guidance (`sci.guidance`) wraps in the same way.
"""

from sci.denoiser.joined import Joined
from sci.denoiser.mean_reverting import MeanReverting, mean_reverting
from sci.denoiser.network import Denoiser, Encoded
from sci.denoiser.retiming import Annealed, Rescheduled
from sci.denoiser.time_shift import TimeShift
from sci.denoiser.wrapped import Wrapped

__all__ = [
    "Annealed",
    "Denoiser",
    "Encoded",
    "Joined",
    "MeanReverting",
    "Rescheduled",
    "TimeShift",
    "Wrapped",
    "mean_reverting",
]
