"""Langevin samplers of score-based models: predictor-corrector and the symmetric splitting S4.

The published samplers of score-based graph generation, leaf by leaf. With s = 1 - t the clock of
the papers, n steps and z standard noise of the leaf's space:

    corrector   e = 2 a (snr |z| / |score|)^2,   x <- x + e score + scale sqrt(2 e) z
    reverse     mean = (2 - r) x + G^2 score,    x <- mean + G z
    euler       mean = x - (f(x) - g^2 score) / n,  x <- mean + g sqrt(1 / n) z
    S4          corrector, half a linear step with its noise, x <- x + g^2 score / n, half a step

Here f = x d(log alpha)/ds and g^2 = 2 sigma^2 d(lambda)/dt. For VP, r = sqrt(1 - beta_i), G^2 =
beta_i and a = 1 - beta_i with beta_i = beta / n; for VE, r = 1, a = 1, G^2 = sigma_i^2 -
sigma_(i-1)^2; both read from tables of n levels at i = floor(s (n - 1)), as published. Other
schedules have the moments of their exact transitions. All leaves move together: one evaluation
serves the correctors of all leaves and another one their predictors. The last step returns its
mean, without noise.

With `norm="item"` the ratio |z| / |score| is each item's own; an item of few elements then takes
large steps where its score is small, which widens its law. `norm="batch"` averages both norms
over the batch, which replays published numbers and makes every sample depend on its batch mates.

References:
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021)
    | Score-based generative modeling of graphs via the system of stochastic differential
    | equations (Jo, Lee, Hwang, 2022)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.paths import Path
from sci.samplers.checks import gaussian, whole
from sci.samplers.grids import check_times
from sci.samplers.loop import Carry, Plan, Sampler, mask_for
from sci.schedules import VE, VP, Schedule, SubVP

__all__ = ["S4", "LangevinPlan", "PredictorCorrector"]

# The papers' clock stops at s = 1e-4.
_LAST = 1e-4


@dataclasses.dataclass(frozen=True)
class PredictorCorrector(Sampler):
    """Predictor-corrector sampling; two evaluations a step with a corrector, one without.

    Arguments:
        predictor: "reverse" (reverse diffusion) or "euler".
        corrector: "langevin" or None.
        snr: the signal-to-noise ratio of the corrector, > 0.
        scale: a factor on the corrector's noise, >= 0; below 1 it is a chain of lower temperature.
        norm: "item", or "batch" to replay published numbers.
        steps: how many, >= 2.

    Raises:
        ValueError: for settings out of range.

    References:
        | Score-based generative modeling through stochastic differential equations
        | (Song et al., 2021)
    """

    predictor: str = "reverse"
    corrector: str | None = "langevin"
    snr: float = 0.2
    scale: float = 0.7
    norm: str = "item"
    steps: int = 1000

    def __post_init__(self) -> None:
        if self.predictor not in ("reverse", "euler"):
            raise ValueError(f"predictor must be 'reverse' or 'euler', got {self.predictor!r}")
        if self.corrector not in ("langevin", None):
            raise ValueError(f"corrector must be 'langevin' or None, got {self.corrector!r}")
        _check(self.snr, self.scale, self.norm, self.steps)

    def plan(self, paths: Any, times: Any = None) -> LangevinPlan:
        """The coefficients for some paths; see `Sampler.plan`."""
        return LangevinPlan(self, paths, times, self._advance)

    def _advance(self, plan: LangevinPlan, denoiser: Any, carry: Carry) -> tuple[list[Tensor], int]:
        leaves, nfe, step = list(carry.leaves), 0, carry.step
        mask = mask_for(denoiser, carry.condition)
        if self.corrector is not None:
            scores = plan.scores(denoiser, carry, leaves)
            leaves = [
                plan.kick(carry, place, x, score, mask)
                for place, (x, score) in enumerate(zip(leaves, scores, strict=True))
            ]
            nfe += 1
        scores = plan.scores(denoiser, carry, leaves)
        for place, (x, score) in enumerate(zip(leaves, scores, strict=True)):
            level = plan.levels[place][step]
            if self.predictor == "reverse":
                mean = torch.add(x * (2.0 - level.shrink), score, alpha=level.gain)
                spread = math.sqrt(level.gain)
            else:
                drift = level.drift / self.steps
                mean = torch.add(x * (1.0 - drift), score, alpha=level.square / self.steps)
                spread = math.sqrt(level.square / self.steps)
            leaves[place] = mean
            if step + 1 < plan.steps:
                leaves[place] = mean + spread * plan.draw(carry, place, x, mask, 1)
        return leaves, nfe + 1


@dataclasses.dataclass(frozen=True)
class S4(Sampler):
    """Symmetric splitting: a Langevin kick, then half a linear step, the score, half a linear step.

    One evaluation a step serves both the kick and the score.

    Arguments:
        snr: the signal-to-noise ratio of the kick, > 0.
        scale: a factor on the kick's noise, >= 0.
        norm: "item", or "batch" to replay published numbers.
        steps: how many, >= 2.

    Raises:
        ValueError: for settings out of range.

    References:
        | Score-based generative modeling of graphs via the system of stochastic differential
        | equations (Jo, Lee, Hwang, 2022)
    """

    snr: float = 0.2
    scale: float = 0.7
    norm: str = "item"
    steps: int = 1000

    def __post_init__(self) -> None:
        _check(self.snr, self.scale, self.norm, self.steps)

    def plan(self, paths: Any, times: Any = None) -> LangevinPlan:
        """The coefficients for some paths; see `Sampler.plan`."""
        return LangevinPlan(self, paths, times, self._advance)

    def _advance(self, plan: LangevinPlan, denoiser: Any, carry: Carry) -> tuple[list[Tensor], int]:
        mask = mask_for(denoiser, carry.condition)
        leaves = []
        scores = plan.scores(denoiser, carry, list(carry.leaves))
        for place, (x, score) in enumerate(zip(carry.leaves, scores, strict=True)):
            level = plan.levels[place][carry.step]
            x = plan.kick(carry, place, x, score, mask)
            x = x * level.halves[0][0]
            x = x + level.halves[0][1] * plan.draw(carry, place, x, mask, 1)
            x = torch.add(x, score, alpha=level.square / self.steps) * level.halves[1][0]
            if carry.step + 1 < plan.steps:
                x = x + level.halves[1][1] * plan.draw(carry, place, x, mask, 2)
            leaves.append(x)
        return leaves, 1


@dataclasses.dataclass(frozen=True)
class _Level:
    """Coefficients of one step of one leaf, named as in the module's formulae."""

    shrink: float
    gain: float
    factor: float
    drift: float
    square: float
    halves: tuple[tuple[float, float], tuple[float, float]]


class LangevinPlan(Plan):
    """The coefficients of a Langevin sampler; see `Plan`.

    Arguments:
        sampler: `PredictorCorrector` or `S4`.
        paths: one path, or a tree of paths.
        times: (n,) increasing, n the sampler's steps; from 0 to 1 - 1e-4 when None.
        advance: how the sampler moves the leaves.

    Raises:
        ValueError: when a path has no score, or the times are another number or differ by item.
    """

    def __init__(
        self,
        sampler: PredictorCorrector | S4,
        paths: Any,
        times: Any,
        advance: Callable[[LangevinPlan, Any, Carry], tuple[list[Tensor], int]],
    ):
        found, structure = tree.flatten(paths, Path)
        steps = sampler.steps
        grid = check_times(np.linspace(0.0, 1.0 - _LAST, steps) if times is None else times)
        if grid.shape != (steps,):
            raise ValueError(
                f"{type(sampler).__name__} with steps={steps} needs {steps} times shared by all "
                f"items, got shape {grid.shape}"
            )
        super().__init__(sampler, structure, found, grid)
        for name, path in zip(self.names, found, strict=True):
            if not gaussian(path):
                raise ValueError(
                    f"leaf '{name}' cannot follow {type(sampler).__name__}: its path "
                    f"{type(path).__name__} has no score of Gaussian noise"
                )
        self._advance = advance
        self.levels = [_levels(path.schedule, grid) for path in found]

    def step(self, denoiser: Any, carry: Carry) -> Carry:
        """One step of all leaves; see the module's formulae."""
        leaves, nfe = self._advance(self, denoiser, carry)
        return dataclasses.replace(
            carry, leaves=tuple(leaves), step=carry.step + 1, nfe=carry.nfe + nfe
        )

    def scores(self, denoiser: Any, carry: Carry, leaves: list[Tensor]) -> list[Tensor]:
        """One joint evaluation: the scores of all leaves at the step's time."""
        here = dataclasses.replace(carry, leaves=tuple(leaves))
        scores = self._predictions(denoiser, here, "score")
        return [score.to(x.dtype) for score, x in zip(scores, leaves, strict=True)]

    def draw(self, carry: Carry, place: int, x: Tensor, mask: Tensor | None, draw: int) -> Tensor:
        """The noise of a leaf at this step."""
        space, name = self.paths[place].space, self.names[place]
        return carry.noise.draw(space, name, carry.step, x, mask, draw)

    def kick(
        self, carry: Carry, place: int, x: Tensor, score: Tensor, mask: Tensor | None
    ) -> Tensor:
        """The Langevin corrector of a leaf."""
        z = self.draw(carry, place, x, mask, 0)
        own, length = z.flatten(1).norm(dim=1), score.flatten(1).norm(dim=1)
        if self.sampler.norm == "batch":
            own, length = own.mean(), length.mean()
        # A leaf without elements (one node has no pairs) has no score to follow.
        ratio = torch.where(length > 0, own / length, torch.zeros_like(length))
        size = 2.0 * self.levels[place][carry.step].factor * (self.sampler.snr * ratio) ** 2
        size = size.view((-1,) + (1,) * (x.dim() - 1))
        return x + size * score + self.sampler.scale * torch.sqrt(2.0 * size) * z


def _levels(schedule: Schedule, grid: np.ndarray) -> list[_Level]:
    steps = len(grid)
    published = type(schedule) in (VP, VE)
    levels = []
    for place, t in enumerate(grid.tolist()):
        index = int((1.0 - t) * (steps - 1))
        if published and isinstance(schedule, VP):
            rates = np.linspace(schedule.beta_min / steps, schedule.beta_max / steps, steps)
            factor = 1.0 - rates[index]
            if factor < 0:
                raise ValueError(
                    f"{schedule} in {steps} steps has beta / steps > 1: take at least "
                    f"{math.ceil(schedule.beta_max)} steps"
                )
            shrink, gain = math.sqrt(factor), rates[index]
        elif isinstance(schedule, VE):
            table = np.geomspace(schedule.sigma_min, schedule.sigma_max, steps)
            below = table[index - 1] if index else 0.0
            factor, shrink, gain = 1.0, 1.0, table[index] ** 2 - below**2
        else:
            later = grid[place + 1] if place + 1 < steps else min(1.0, 2 * grid[-1] - grid[-2])
            grow, gain = _transition(schedule, t, float(later))
            shrink = 1.0 / grow
            factor = 1.0 - gain if isinstance(schedule, SubVP) else 1.0
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        slope = schedule.alpha_dot(t) / alpha if alpha else math.inf
        square = 2.0 * sigma * (slope * sigma - schedule.sigma_dot(t))
        middle, end = t + 0.5 / steps, t + 1.0 / steps
        first, second = _transition(schedule, t, middle), _transition(schedule, middle, end)
        halves = (first[0], math.sqrt(first[1])), (second[0], math.sqrt(second[1]))
        level = _Level(shrink, float(gain), float(factor), -slope, square, halves)
        if not all(map(math.isfinite, (level.shrink, level.gain, level.drift, level.square))):
            raise ValueError(
                f"{schedule} has no finite drift at t = {t:.6g}: give times that start later"
            )
        levels.append(level)
    return levels


def _transition(schedule: Schedule, t: float, later: float) -> tuple[float, float]:
    """Growth alpha(later) / alpha(t) and variance of the forward step from `later` back to t."""
    if type(schedule) is VP:
        growth = schedule.alpha(later) / schedule.alpha(t)
        return growth, max(0.0, 1.0 - growth**-2)
    if type(schedule) is not VE:
        t, later = min(t, 1.0), min(later, 1.0)
    start = schedule.alpha(t)
    growth = schedule.alpha(later) / start if start else math.inf
    return growth, max(0.0, schedule.sigma(t) ** 2 - (schedule.sigma(later) / growth) ** 2)


def _check(snr: float, scale: float, norm: str, steps: int) -> None:
    if not (snr > 0 and scale >= 0):
        raise ValueError(f"expected snr > 0 and scale >= 0, got snr={snr}, scale={scale}")
    if norm not in ("item", "batch"):
        raise ValueError(f"norm must be 'item' or 'batch', got {norm!r}")
    whole("steps", steps, 2)
