"""Samplers: from a denoiser and noise to data.

    samples = sci.samplers.default(steps=20)(denoiser, like=data, seed=0)

`Multistep` is the engine of all fast solvers, with names in `presets`; `PredictorCorrector` and
`S4` are the Langevin samplers of score-based models. All share `plan`, `init`, `step` and the
loop.
"""

from sci.samplers import grids
from sci.samplers.engine import Multistep, MultistepPlan
from sci.samplers.langevin import S4, PredictorCorrector
from sci.samplers.loop import Carry, Plan, Sampler, Samples
from sci.samplers.presets import (
    TABLE,
    Preset,
    ab,
    abm,
    ancestral,
    ddim,
    default,
    deis,
    dpm_2m,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    ipndm,
    lms,
    preset,
    sde_dpmpp_2m,
    unipc,
)

__all__ = [
    "S4",
    "TABLE",
    "Carry",
    "Multistep",
    "MultistepPlan",
    "Plan",
    "PredictorCorrector",
    "Preset",
    "Sampler",
    "Samples",
    "ab",
    "abm",
    "ancestral",
    "ddim",
    "default",
    "deis",
    "dpm_2m",
    "dpmpp_2m",
    "dpmpp_3m",
    "euler",
    "grids",
    "ipndm",
    "lms",
    "preset",
    "sde_dpmpp_2m",
    "unipc",
]
