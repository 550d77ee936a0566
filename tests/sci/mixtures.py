"""A mixture of three Gaussians in the plane with labels: densities and exact denoisers."""

from __future__ import annotations

import torch
from torch import Tensor

from sci.denoiser import Denoiser
from sci.paths import GaussianPath
from sci.schedules import VE, VP, CondOT, Cosine, Schedule

CENTRES = torch.tensor([[-2.0, 0.5], [1.0, 1.0], [0.5, -2.0]], dtype=torch.float64)
SHARES = torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)
STD = 0.4
SCHEDULES: list[Schedule] = [CondOT(), Cosine(), VP(), VE(0.05, 20.0)]


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


def log_density(schedule: Schedule, x: Tensor, t: float, label: int | None = None) -> Tensor:
    """log p_t(x) of the mixture, or of one component."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = (alpha * STD) ** 2 + sigma**2
    parts = -((x[:, None] - alpha * CENTRES) ** 2).sum(2) / (2 * variance)
    return parts[:, label] if label is not None else (parts + SHARES.log()).logsumexp(1)


def exact_data(schedule: Schedule, x: Tensor, t: float, score: Tensor) -> Tensor:
    return (x + schedule.sigma(t) ** 2 * score) / schedule.alpha(t)


def labelled(schedule: Schedule) -> Denoiser:
    """The exact denoiser of the mixture, or of the component in condition["label"] (-1: none)."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = (a.to(x)[:, None] for a in (schedule.alpha(t), schedule.sigma(t)))
        variance = (alpha * STD) ** 2 + sigma**2
        gaps = x[:, None] - alpha[..., None] * CENTRES.to(x)
        logs = SHARES.log().to(x) - (gaps**2).sum(2) / (2 * variance)
        label = condition["label"]
        chosen = label[:, None] == torch.arange(3)
        weight = torch.where(label[:, None] < 0, logs, torch.where(chosen, 0.0, -torch.inf))
        means = CENTRES.to(x) + alpha[..., None] * STD**2 / variance[..., None] * gaps
        return (weight.softmax(1)[..., None] * means).sum(1)

    return Denoiser(network, GaussianPath(schedule))
