"""The problems: Gaussian mixtures with exact scores, many of them in one batch, and their exact flows.

A mixture has five modes of equal weight; the standard deviation of a mode is uniform in [0.15, 0.4] and its mean is
standard normal. With x = alpha data + sigma noise the expectation of the data given x is, with S_k = alpha^2 s_k^2 +
sigma^2,

    sum_k w_k(x) (m_k + alpha s_k^2 / S_k (x - alpha m_k)),
    w_k proportional to S_k^(-d/2) e^(-|x - alpha m_k|^2 / 2 S_k).

In the angle theta = atan2(alpha, sigma) and on the circle (y = x / sqrt(alpha^2 + sigma^2)) the probability flow is
dy / dtheta = cos(theta) data - sin(theta) noise, which is smooth up to sigma = 0; DOP853 solves it to 1e-12.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

__all__ = ["BATCH", "Problems", "errors", "velocity"]

MODES, BATCH = 5, 128


@dataclasses.dataclass
class Problems:
    """Several mixtures, each with its own starting noise, as one batch.

    Arguments:
        means: (P, K, d).
        stds: (P, K).
        noise: (P * B, d) standard normal.
        nfe: how often the data prediction was called.
    """

    means: Tensor
    stds: Tensor
    noise: Tensor
    nfe: int = 0
    solved: dict[tuple[float, float], Tensor] = dataclasses.field(default_factory=dict)

    @classmethod
    def draw(
        cls, dimension: int, mixtures: int = 5, seeds: int = 3, first: int = 0, batch: int = BATCH
    ) -> Problems:
        """Mixtures `first`, `first` + 1, ..., each with `seeds` draws of the noise."""
        means, stds, noise = [], [], []
        for mixture in range(first, first + mixtures):
            random = np.random.default_rng([dimension, mixture])
            mean = random.standard_normal((MODES, dimension))
            std = random.uniform(0.15, 0.4, MODES)
            for seed in range(seeds):
                fresh = np.random.default_rng([dimension, mixture, seed + 1])
                means.append(mean)
                stds.append(std)
                noise.append(fresh.standard_normal((batch, dimension)))
        return cls(
            torch.from_numpy(np.stack(means)),
            torch.from_numpy(np.stack(stds)),
            torch.from_numpy(np.concatenate(noise)),
        )

    def split(self) -> list[Problems]:
        """Each problem by itself."""
        parts = zip(
            self.means.split(1),
            self.stds.split(1),
            self.noise.chunk(len(self.means)),
            strict=True,
        )
        return [Problems(*part) for part in parts]

    def data(self, x: Tensor, alpha: float | Tensor, sigma: float | Tensor) -> Tensor:
        """E[data | x], of the shape and dtype of x; alpha and sigma are numbers, or one an item."""
        self.nfe += 1
        count, _, dimension = self.means.shape
        wide = x.double().view(count, -1, dimension)
        if isinstance(alpha, Tensor) and isinstance(sigma, Tensor):
            alpha, sigma = (values.view(count, -1, 1) for values in (alpha, sigma))
        variances = self.stds[:, None] ** 2
        spread = alpha**2 * variances + sigma**2
        centres = alpha * self.means.flatten(1)[:, None]
        gaps = wide[:, :, None] - centres.unflatten(-1, self.means.shape[1:])
        logits = -0.5 * (gaps**2).sum(-1) / spread
        weights = torch.softmax(logits - 0.5 * dimension * spread.log(), -1)
        gain = (alpha * variances / spread)[..., None]
        each = self.means[:, None] + gain * gaps
        return (weights[..., None] * each).sum(2).view(x.shape).to(x.dtype)

    def exact(self, alpha: float, sigma: float) -> Tensor:
        """The samples that the probability flow reaches from x = sigma noise at level (alpha, sigma)."""
        address = float(alpha), float(sigma)
        if address not in self.solved:
            calls, start = self.nfe, float(np.arctan2(alpha, sigma))
            shape, scale = self.noise.shape, sigma / np.hypot(alpha, sigma)

            def slope(theta: float, flat: np.ndarray) -> np.ndarray:
                y = torch.from_numpy(flat).view(shape)
                sine, cosine = float(np.sin(theta)), float(np.cos(theta))
                data = self.data(y, sine, cosine)
                # cosine data - sine noise with noise = (y - sine data) / cosine.
                return ((data - sine * y) / cosine).flatten().numpy()

            # The quotient is 0 / 0 at the very end: the last 1e-5 are one step along the slope.
            stop = 0.5 * np.pi - 1e-5
            run = solve_ivp(
                slope,
                (start, stop),
                (self.noise * scale).flatten().numpy(),
                "DOP853",
                rtol=1e-12,
                atol=1e-12,
            )
            end = run.y[:, -1] + 1e-5 * slope(stop, run.y[:, -1])
            self.solved[address] = torch.from_numpy(end).view(shape)
            self.nfe = calls
        return self.solved[address]


def errors(problems: Problems, samples: Tensor, exact: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Median and root mean square over the samples of the distance, one for each problem."""
    distance = torch.linalg.vector_norm(samples.double() - exact, dim=-1)
    distance = distance.view(len(problems.means), -1)
    return distance.median(1).values.numpy(), distance.square().mean(1).sqrt().numpy()


def velocity(data: Tensor, x: Tensor, t: float) -> Tensor:
    """dx/dt of x = t data + (1 - t) noise from the data prediction; at t = 1 its limit, where noise averages to 0."""
    return data if t >= 1.0 else (data - x) / (1.0 - t)
