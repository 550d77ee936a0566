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


def coupled(schedules: dict[str, Schedule]) -> Denoiser:
    """Two leaves with jointly Gaussian data, correlation 0.8, each on its own schedule."""
    covariance = torch.tensor([[0.5, 0.4], [0.4, 0.5]], dtype=torch.float64)
    mean = torch.tensor([1.0, -0.5], dtype=torch.float64)

    def network(state, t: Tensor, condition):
        names = list(state)
        x = torch.cat([state[name] for name in names], 1)
        alpha = torch.stack([schedules[name].alpha(t) for name in names], 1)
        sigma = torch.stack([schedules[name].sigma(t) for name in names], 1)
        blurred = alpha[:, :, None] * covariance * alpha[:, None, :] + torch.diag_embed(sigma**2)
        gain = (covariance * alpha[:, None, :]) @ torch.linalg.inv(blurred)
        data = mean + ((x - alpha * mean)[:, None] @ gain.transpose(1, 2)).squeeze(1)
        noise = (x - alpha * data) / sigma
        return {names[0]: data[:, :1], names[1]: noise[:, 1:]}

    paths = {name: GaussianPath(schedule) for name, schedule in schedules.items()}
    return Denoiser(network, paths, dict(zip(paths, ("data", "noise"), strict=True)))


def mixture(schedule: Schedule) -> Denoiser:
    """Three Gaussians in the plane, with the exact denoiser."""
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        spread = alpha**2 * 0.09 + sigma**2
        gaps = x[:, None] - alpha[:, None] * means
        shares = torch.softmax(-(gaps**2).sum(-1) / (2 * spread), 1)
        each = means + (alpha * 0.09 / spread)[:, None] * gaps
        return (shares[:, :, None] * each).sum(1)

    return Denoiser(network, GaussianPath(schedule))
