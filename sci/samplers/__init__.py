"""Samplers: from a denoiser and noise to data.

    samples = sci.samplers.default(steps=20)(denoiser, like=data, seed=0)

`Multistep` is the engine of the fast solvers, `OneStep` has the Runge-Kutta methods, `Adaptive`
chooses its steps by an error; `TABLE` and the functions of `presets` are their names.
`PredictorCorrector` and `S4` are the Langevin samplers of score-based models, `TunableDiffusion`
that of stochastic interpolants, and `Resampled` goes back and forth in time for inpainting. All
share the loop, and all but `Adaptive` have `plan`, `init` and `step`.
"""

from sci.samplers import grids
from sci.samplers.adaptive import Adaptive, AdaptiveSamples
from sci.samplers.empirical import EmpiricalStatistics
from sci.samplers.engine import Multistep, MultistepPlan
from sci.samplers.interpolant import TunableDiffusion
from sci.samplers.langevin import S4, PredictorCorrector
from sci.samplers.loop import Carry, Plan, Sampler, Samples
from sci.samplers.onestep import OneStep, OneStepPlan
from sci.samplers.presets import (
    TABLE,
    Preset,
    ab,
    abm,
    adaptive,
    ancestral,
    ddim,
    ddpm,
    default,
    deis,
    dpm_2m,
    dpm_solver,
    dpmpp_2m,
    dpmpp_2s,
    dpmpp_3m,
    dpmpp_3s,
    edm_heun,
    euler,
    heun,
    ipndm,
    lms,
    midpoint,
    plms,
    preset,
    rk4,
    sde_dpmpp_2m,
    sde_dpmpp_3m,
    unipc,
)
from sci.samplers.resampling import Resampled

__all__ = [
    "S4",
    "TABLE",
    "Adaptive",
    "AdaptiveSamples",
    "Carry",
    "EmpiricalStatistics",
    "Multistep",
    "MultistepPlan",
    "OneStep",
    "OneStepPlan",
    "Plan",
    "PredictorCorrector",
    "Preset",
    "Resampled",
    "Sampler",
    "Samples",
    "TunableDiffusion",
    "ab",
    "abm",
    "adaptive",
    "ancestral",
    "ddim",
    "ddpm",
    "default",
    "deis",
    "dpm_2m",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3s",
    "edm_heun",
    "euler",
    "grids",
    "heun",
    "ipndm",
    "lms",
    "midpoint",
    "plms",
    "preset",
    "rk4",
    "sde_dpmpp_2m",
    "sde_dpmpp_3m",
    "unipc",
]
