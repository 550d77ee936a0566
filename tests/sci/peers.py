"""An exact mixture, levels and noise that peers and sciflows share, for the tests against other packages."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from analytic import run
from torch import Tensor

from sci.denoiser import Denoiser
from sci.paths import GaussianPath
from sci.schedules import VE, Schedule

# Of rounding to float32 within a step, relative to the largest value.
ROUNDED = 3e-7
TIMES = np.array([0.1, 0.19, 0.3, 0.4, 0.52, 0.62, 0.71, 0.8, 0.87])
EXPLODING = VE(0.05, 10.0)


class Mixture:
    """Three Gaussian modes; the exact expectation of the data."""

    def __init__(self, dimension: int):
        generator = torch.Generator().manual_seed(dimension)
        self.means = torch.randn(3, dimension, generator=generator, dtype=torch.float64)
        self.stds = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64)
        self.start = torch.randn(16, dimension, generator=generator, dtype=torch.float64)

    def data(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        spread = alpha**2 * self.stds**2 + sigma**2
        gaps = x[:, None] - alpha * self.means
        logits = -0.5 * (gaps**2).sum(-1) / spread - 0.5 * x.shape[1] * spread.log()
        gain = (alpha * self.stds**2 / spread)[:, None]
        return (torch.softmax(logits, 1)[..., None] * (self.means + gain * gaps)).sum(1)

    def noise(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        return (x - alpha * self.data(x, alpha, sigma)) / sigma

    def denoiser(self, schedule: Schedule) -> Denoiser:
        def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
            time = float(t[0])
            return self.data(x, schedule.alpha(time), schedule.sigma(time))

        return Denoiser(network, GaussianPath(schedule))


class Given:
    """Streams of noise that return the given draws, one a step."""

    def __init__(self, draws: Tensor):
        self.draws = draws
        self.items = torch.arange(draws.shape[1])

    def take(self, rows: Any) -> Given:
        return self

    def draw(self, space: Any, leaf: Any, step: int, like: Tensor, mask=None, draw=0) -> Tensor:
        return self.draws[step]


def levels(schedule: Schedule, times: np.ndarray = TIMES) -> tuple[np.ndarray, ...]:
    return schedule.alpha(times), schedule.sigma(times), np.exp(-schedule.log_snr(times))


def close(ours: Tensor, theirs: Tensor, tolerance: float = 1e-10) -> bool:
    return bool((ours - theirs).abs().max() <= tolerance * max(1.0, float(theirs.abs().max())))


def ours(mixture: Mixture, schedule: Schedule, sampler: Any, start: Tensor, **options) -> Tensor:
    return run(sampler, mixture.denoiser(schedule), start, **options)


def drive(
    mixture: Mixture,
    name: str,
    ratios: np.ndarray,
    start: Tensor,
    kind: str = "noise",
    scaled: bool = True,
    draws: Tensor | None = None,
    **settings: Any,
) -> Tensor:
    """A scheduler of diffusers on given levels sigma / alpha; `scaled` when its state is on the VP path, else VE."""
    import diffusers

    scheduler = getattr(diffusers, name)(**settings)
    scheduler.set_timesteps(len(ratios) - 1)
    count = len(scheduler.timesteps)
    scheduler.sigmas = torch.from_numpy(ratios)
    if "Heun" in name:
        # Two stages a step: the interior levels come twice, and the last step has its second stage too.
        count += 1
        scheduler.sigmas = torch.from_numpy(np.repeat(ratios, 2)[1:])
    # Some refuse integers, which they take for positions.
    scheduler.timesteps = torch.arange(count, 0, -1, dtype=torch.float64)
    x = start
    for index, t in enumerate(scheduler.timesteps):
        size = float(scheduler.sigmas[index])
        alpha = (1 + size**2) ** -0.5
        seen = x if scaled else x * alpha
        output = mixture.noise(seen, alpha, size * alpha)
        if kind == "velocity":
            output = mixture.noise(x, 1 - size, size) - mixture.data(x, 1 - size, size)
        if hasattr(scheduler, "is_scale_input_called"):
            scheduler.is_scale_input_called = True
        extra = {} if draws is None else {"variance_noise": draws[index]}
        x = scheduler.step(output, t, x, **extra).prev_sample
    return x
