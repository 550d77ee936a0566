"""torchdiffeq and flow_matching on the straight line, azula on its schedules, k-diffusion on its grids.

torchdiffeq and flow_matching are given the velocity of x_t = t data + (1 - t) noise, from t = 0 to 1, on equal steps;
a method with several stages takes the most steps that fit. azula runs from t = 1 to 0 of its own schedules. k-diffusion
has no default noise levels: sigma runs from 80 to 0.002 as in the paper that it implements, and to 0.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .mixtures import Problems, velocity

__all__ = ["ROWS", "adaptive", "k_diffusion_sampling"]

Run = Callable[[Problems, int], tuple[Tensor, tuple[float, float]]]
CONDOT = 0.0, 1.0


def _slope(problems: Problems, x: Tensor, t: Tensor) -> Tensor:
    time = float(t)
    return velocity(problems.data(x, time, 1.0 - time), x, time)


def _torchdiffeq(method: str, stages: int, nfe_of: Callable[[int], int] | None = None) -> Run:
    def run(problems: Problems, nfe: int) -> tuple[Tensor, tuple[float, float]]:
        from torchdiffeq import odeint

        steps = _most(nfe, stages, nfe_of)
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)
        path = odeint(
            lambda t, x: _slope(problems, x, t), problems.noise.clone(), times, method=method
        )
        return path[-1], CONDOT

    return run


def _flow_matching(method: str, stages: int) -> Run:
    def run(problems: Problems, nfe: int) -> tuple[Tensor, tuple[float, float]]:
        from flow_matching.solver import ODESolver

        solver = ODESolver(lambda x, t: _slope(problems, x, t))
        times = torch.linspace(0, 1, _most(nfe, stages, None) + 1, dtype=torch.float64)
        start = problems.noise.clone()
        return solver.sample(start, step_size=None, method=method, time_grid=times), CONDOT

    return run


def _most(nfe: int, stages: int, nfe_of: Callable[[int], int] | None) -> int:
    count = nfe // stages
    while nfe_of is not None and count and nfe_of(count) > nfe:
        count -= 1
    if not count:
        raise ValueError(f"no step fits into {nfe} evaluations")
    return count


def adaptive(problems: Problems, tolerance: float, method: str) -> tuple[Tensor, float]:
    """The samples of an adaptive solver of torchdiffeq with rtol = atol = tolerance, and the evaluations."""
    from torchdiffeq import odeint

    before, ends = problems.nfe, torch.tensor([0.0, 1.0], dtype=torch.float64)

    def slope(t: Tensor, x: Tensor) -> Tensor:
        return _slope(problems, x, t)

    samples = odeint(
        slope, problems.noise.clone(), ends, method=method, rtol=tolerance, atol=tolerance
    )
    return samples[-1], float(problems.nfe - before)


def _azula(name: str, schedule: str, stages: int = 1, **settings: Any) -> Run:
    def run(problems: Problems, nfe: int) -> tuple[Tensor, tuple[float, float]]:
        import azula.noise
        import azula.sample
        from azula.denoise import Denoiser, DiracPosterior

        chosen = getattr(azula.noise, f"{schedule}Schedule")()

        class Exact(Denoiser):
            def __init__(self) -> None:
                super().__init__()
                self.schedule = chosen

            def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
                alpha, sigma = chosen(t)
                return DiracPosterior(problems.data(x_t, float(alpha), float(sigma)))

        sampler = getattr(azula.sample, f"{name}Sampler")(
            Exact(), steps=nfe // stages, silent=True, dtype=torch.float64, **settings
        )
        alpha, sigma = map(float, chosen(torch.ones((), dtype=torch.float64)))
        return sampler(problems.noise * sigma), (alpha, sigma)

    return run


def k_diffusion_sampling() -> Any:
    """The module of k-diffusion's samplers alone: the package wants image libraries that sampling does not need."""
    if "k_diffusion" not in sys.modules:
        spec = importlib.util.find_spec("k_diffusion")
        if spec is None:
            raise ImportError("k_diffusion is not installed")
        sys.modules["k_diffusion"] = importlib.util.module_from_spec(spec)
    try:
        return importlib.import_module("k_diffusion.sampling")
    except (ImportError, RuntimeError):
        # torchvision is missing or broken: it is stood in for while its users load.
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        stand_ins = {name: types.ModuleType(name) for name in names}
        vars(stand_ins[names[1]])["functional"] = stand_ins[names[2]]
        for name in ("k_diffusion.sampling", "k_diffusion.utils"):
            sys.modules.pop(name, None)
        sys.modules.update(stand_ins)
        try:
            return importlib.import_module("k_diffusion.sampling")
        finally:
            for name in names:
                del sys.modules[name]


def _k_diffusion(name: str, levels: str, stages: int = 1) -> Run:
    def run(problems: Problems, nfe: int) -> tuple[Tensor, tuple[float, float]]:
        sampling = k_diffusion_sampling()
        # A method of two stages makes its last step, to sigma = 0, with one.
        count = (nfe + stages - 1) // stages
        if levels == "vp":
            sigmas = sampling.get_sigmas_vp(count)
        else:
            sigmas = getattr(sampling, f"get_sigmas_{levels}")(count, 0.002, 80.0)
        sigmas = sigmas.double()

        def model(x: Tensor, sigma: Tensor) -> Tensor:
            return problems.data(x, 1.0, float(sigma[0]))

        start = problems.noise * sigmas[0]
        samples = getattr(sampling, f"sample_{name}")(model, start, sigmas, disable=True)
        return samples, (1.0, float(sigmas[0]))

    return run


ROWS: dict[str, dict[str, Run]] = {
    "torchdiffeq": {
        "euler": _torchdiffeq("euler", 1),
        "midpoint": _torchdiffeq("midpoint", 2),
        "heun2": _torchdiffeq("heun2", 2),
        "heun3": _torchdiffeq("heun3", 3),
        "rk4": _torchdiffeq("rk4", 4),
        # Its first two steps are of Runge-Kutta type with four stages.
        "explicit_adams": _torchdiffeq(
            "explicit_adams", 1, lambda steps: steps + 3 * min(2, steps)
        ),
    },
    "flow_matching": {
        "euler": _flow_matching("euler", 1),
        "midpoint": _flow_matching("midpoint", 2),
        "heun2": _flow_matching("heun2", 2),
        "rk4": _flow_matching("rk4", 4),
    },
    "azula": {
        "VP Euler": _azula("Euler", "VP"),
        "VP Heun": _azula("Heun", "VP", 2),
        "VP zAB 2": _azula("zAB", "VP"),
        "VP vAB 2": _azula("vAB", "VP"),
        "VP vAB 3": _azula("vAB", "VP", order=3),
        "VP zEAB 2": _azula("zEAB", "VP"),
        "VP xEAB 2": _azula("xEAB", "VP"),
        "VP REAB 2": _azula("REAB", "VP"),
        "Cosine zAB 3": _azula("zAB", "Cosine", order=3),
        "Cosine vAB 2": _azula("vAB", "Cosine"),
        "Cosine vAB 3": _azula("vAB", "Cosine", order=3),
        "Rectified Euler": _azula("Euler", "Rectified"),
        "Rectified Heun": _azula("Heun", "Rectified", 2),
        "Rectified zAB 2": _azula("zAB", "Rectified"),
        "Rectified zAB 3": _azula("zAB", "Rectified", order=3),
        "Rectified vAB 2": _azula("vAB", "Rectified"),
        "Rectified vAB 3": _azula("vAB", "Rectified", order=3),
        "Rectified zEAB 2": _azula("zEAB", "Rectified"),
        "Rectified xEAB 2": _azula("xEAB", "Rectified"),
        "Rectified REAB 2": _azula("REAB", "Rectified"),
        "Decay vAB 3": _azula("vAB", "Decay", order=3),
    },
    "k-diffusion": {
        "euler Karras": _k_diffusion("euler", "karras"),
        "heun Karras": _k_diffusion("heun", "karras", 2),
        "dpm_2 Karras": _k_diffusion("dpm_2", "karras", 2),
        "lms Karras": _k_diffusion("lms", "karras"),
        "dpmpp_2m Karras": _k_diffusion("dpmpp_2m", "karras"),
        "dpmpp_2m exponential": _k_diffusion("dpmpp_2m", "exponential"),
        "lms vp": _k_diffusion("lms", "vp"),
        "dpmpp_2m vp": _k_diffusion("dpmpp_2m", "vp"),
    },
}
