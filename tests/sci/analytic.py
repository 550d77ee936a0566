"""Denoisers in closed form, and their exact flows, for the tests of the samplers."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sci.denoiser import Denoiser
from sci.paths import GaussianPath
from sci.schedules import VE, VP, CondOT, Cosine, Schedule

MEAN, STD = 1.3, 0.7
SPANS: list[tuple[Schedule, tuple[float, float]]] = [
    (VP(), (0.05, 0.95)),
    (Cosine(), (0.05, 0.95)),
    (VE(0.1, 10.0), (0.0, 1.0)),
    (CondOT(), (0.05, 0.95)),
]
IDS = ["VP", "Cosine", "VE", "CondOT"]


def column(values: Tensor, x: Tensor) -> Tensor:
    return values.to(x.dtype).view((-1,) + (1,) * (x.dim() - 1))


def gaussian(schedule: Schedule, mean: float = MEAN, std: float = STD) -> Denoiser:
    """The exact denoiser of N(mean, std^2) data."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        gain = alpha * std**2 / (alpha**2 * std**2 + sigma**2)
        return mean + gain * (x - alpha * mean)

    return Denoiser(network, GaussianPath(schedule))


def exact_flow(schedule: Schedule, x: Tensor, start: float, stop: float) -> Tensor:
    def spread(t: float) -> float:
        return math.sqrt((schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2)

    centred = (x - schedule.alpha(start) * MEAN) / spread(start)
    return schedule.alpha(stop) * MEAN + centred * spread(stop)


def points(count: int = 8) -> Tensor:
    return torch.linspace(-2, 2, count, dtype=torch.float64)[:, None]


def run(sampler, denoiser, start, **options):
    with torch.no_grad():
        return sampler(denoiser, start=start, **options).state
