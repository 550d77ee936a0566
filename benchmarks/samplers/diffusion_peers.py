"""The schedulers of diffusers, each at its defaults and with the variants that its users choose.

A scheduler is told the noise prediction at exactly the level (alpha, sigma) that it believes it is at: the rounding
of times to integers, which costs it accuracy with a network, is not charged. The betas are the linear ones of DDPM,
1e-4 to 0.02 in 1000 levels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import diffusers
import torch
from torch import Tensor

from .mixtures import Problems

__all__ = ["ROWS"]

Run = Callable[[Problems, int], tuple[Tensor, tuple[float, float]]]
BETAS = {"beta_start": 1e-4, "beta_end": 0.02, "beta_schedule": "linear"}


def _stepped(name: str, level: str, **settings: Any) -> Run:
    """A scheduler driven through `step`; `level` says how it writes the noise level."""
    build = getattr(diffusers, name)
    betas = {} if level in ("edm", "flow", "ipndm") else BETAS

    def run(problems: Problems, nfe: int) -> tuple[Tensor, tuple[float, float]]:
        count = nfe
        while count > 0:
            scheduler = build(**{**betas, **settings})
            scheduler.set_timesteps(count)
            if len(scheduler.timesteps) <= nfe:
                break
            # Two evaluations a step, or a warm-up with several: the most steps that fit.
            count -= 1
        else:
            raise ValueError(f"{name} needs more than {nfe} evaluations")
        first = _start(scheduler, level)
        x = problems.noise * first[1]
        for index, t in enumerate(scheduler.timesteps):
            alpha, sigma = _level(scheduler, level, index, t)
            seen = scheduler.scale_model_input(x, t) if level == "ve" else x
            data = problems.data(seen, alpha, sigma)
            noise = (seen - alpha * data) / sigma
            output = noise
            if level == "flow":
                output = noise - data
            elif level == "ipndm":
                output = alpha * noise - sigma * data
            elif level == "edm":
                # The network's own output, before preconditioning.
                square, size = scheduler.config.sigma_data**2, float(scheduler.sigmas[index])
                kept = square / (size**2 + square)
                output = (data - kept * x) * (size**2 + square) ** 0.5 / (size * square**0.5)
            x = scheduler.step(output, t, x).prev_sample
        return x, first

    return run


def _start(scheduler: Any, level: str) -> tuple[float, float]:
    """(alpha, sigma) of the state that sampling starts from, x = sigma noise."""
    if level == "ve" or level == "edm":
        return 1.0, float(scheduler.sigmas[0])
    if level == "flow":
        return 1.0 - float(scheduler.sigmas[0]), float(scheduler.sigmas[0])
    if level == "ipndm":
        return float(scheduler.alphas[0]), float(scheduler.betas[0])
    bar = float(scheduler.alphas_cumprod[-1])
    return bar**0.5, (1 - bar) ** 0.5


def _level(scheduler: Any, level: str, index: int, t: Tensor) -> tuple[float, float]:
    """(alpha, sigma) of an evaluation."""
    if level == "bar":
        bar = float(scheduler.alphas_cumprod[int(t)].double())
        return bar**0.5, (1 - bar) ** 0.5
    if level == "ipndm":
        return float(scheduler.alphas[index]), float(scheduler.betas[index])
    if level == "ve":
        # What the state is multiplied by says the level, also between the grid's points.
        alpha = float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), t))
        return alpha, (1 - alpha**2) ** 0.5
    size = float(scheduler.sigmas[index])
    if level == "flow":
        return 1.0 - size, size
    if level == "edm":
        return 1.0, size
    alpha = (1 + size**2) ** -0.5
    return alpha, size * alpha


_FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
_DPM, _UNIPC = "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"
_EDM = "EDMDPMSolverMultistepScheduler"

ROWS: dict[str, Run] = {
    "DDIM": _stepped("DDIMScheduler", "bar", clip_sample=False),
    "DDIM trailing": _stepped(
        "DDIMScheduler", "bar", clip_sample=False, timestep_spacing="trailing"
    ),
    "Euler": _stepped("EulerDiscreteScheduler", "ve"),
    "Euler Karras": _stepped("EulerDiscreteScheduler", "ve", use_karras_sigmas=True),
    "Heun": _stepped("HeunDiscreteScheduler", "ve"),
    "Heun Karras": _stepped("HeunDiscreteScheduler", "ve", use_karras_sigmas=True),
    "KDPM2": _stepped("KDPM2DiscreteScheduler", "ve"),
    "LMS": _stepped("LMSDiscreteScheduler", "ve"),
    "LMS Karras": _stepped("LMSDiscreteScheduler", "ve", use_karras_sigmas=True),
    "PNDM": _stepped("PNDMScheduler", "bar"),
    "PNDM skip_prk": _stepped("PNDMScheduler", "bar", skip_prk_steps=True),
    "iPNDM": _stepped("IPNDMScheduler", "ipndm"),
    "DEIS 2": _stepped("DEISMultistepScheduler", "vp"),
    "DEIS 3": _stepped("DEISMultistepScheduler", "vp", solver_order=3),
    "DPM++ 2M": _stepped(_DPM, "vp"),
    "DPM++ 2M Karras": _stepped(_DPM, "vp", use_karras_sigmas=True),
    "DPM++ 2M lu": _stepped(_DPM, "vp", use_lu_lambdas=True),
    "DPM++ 2M heun": _stepped(_DPM, "vp", solver_type="heun"),
    "DPM++ 2M flow": _stepped(_DPM, "flow", **_FLOW),
    "DPM++ 3M": _stepped(_DPM, "vp", solver_order=3),
    "DPM++ 3M Karras": _stepped(_DPM, "vp", solver_order=3, use_karras_sigmas=True),
    "DPM++ 3M lu": _stepped(_DPM, "vp", solver_order=3, use_lu_lambdas=True),
    "DPM++ 2S": _stepped("DPMSolverSinglestepScheduler", "vp", lower_order_final=True),
    "DPM++ 3S": _stepped(
        "DPMSolverSinglestepScheduler", "vp", solver_order=3, lower_order_final=True
    ),
    "EDM DPM++ 2M": _stepped(_EDM, "edm"),
    "EDM DPM++ 3M": _stepped(_EDM, "edm", solver_order=3),
    "SA-Solver tau 0": _stepped("SASolverScheduler", "vp", tau_func=lambda t: 0.0),
    "UniPC 2": _stepped(_UNIPC, "vp"),
    "UniPC 3": _stepped(_UNIPC, "vp", solver_order=3),
    "UniPC 2 Karras": _stepped(_UNIPC, "vp", use_karras_sigmas=True),
    "UniPC 3 Karras": _stepped(_UNIPC, "vp", solver_order=3, use_karras_sigmas=True),
    "UniPC 2 flow": _stepped(_UNIPC, "flow", **_FLOW),
    "UniPC 3 flow": _stepped(_UNIPC, "flow", solver_order=3, **_FLOW),
    "FlowMatchEuler": _stepped("FlowMatchEulerDiscreteScheduler", "flow"),
    "FlowMatchHeun": _stepped("FlowMatchHeunDiscreteScheduler", "flow"),
}
