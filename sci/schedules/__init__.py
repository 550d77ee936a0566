"""Schedules: how much data and how much noise there is at time t.

    x_t = alpha(t) data + sigma(t) noise,   t = 0 source, t = 1 data,   lambda = log(alpha / sigma).

Here lambda grows with t. Literature that runs the other way (score SDE, DPM-Solver) has t' = 1 - t.
Every method takes a float, a numpy array or a tensor, computes in float64 with forms that keep
their relative precision at both ends (expm1, log1p, complementary angles), and returns the same
type. At an end where alpha or sigma vanishes, `log_snr` is infinite: that is its value, not an
accident.

`span` holds the times between which sampling is numerically safe for every solver; `source_std`
is the standard deviation of the noise that sampling starts from. Any other pair of functions:
`Custom`. `OffsetCosine` and `KeepTable` are made for classes (`sci.CategoricalPath`).
"""

from sci.schedules.base import Schedule
from sci.schedules.closed import EDM, VE, VP, CondOT, Cosine, Exponential, Rectified, SubVP
from sci.schedules.keep import KeepTable, OffsetCosine
from sci.schedules.reverting import OrnsteinUhlenbeck
from sci.schedules.tables import Custom, Levels, Tabulated

__all__ = [
    "EDM",
    "VE",
    "VP",
    "CondOT",
    "Cosine",
    "Custom",
    "Exponential",
    "KeepTable",
    "Levels",
    "OffsetCosine",
    "OrnsteinUhlenbeck",
    "Rectified",
    "Schedule",
    "SubVP",
    "Tabulated",
]
