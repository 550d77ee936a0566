r"""Flows with tunable diffusion: one velocity, one score, and any amount of noise.

For every e(t) >= 0 the process

    dx = (b + e s) dt + sqrt(2 e) dW,    b the velocity, s the score,

has the same marginals: e = 0 is the flow. With exact b and s the choice changes nothing but the
discretisation error; with learnt ones, noise forgets the errors made before, and the velocity's and
the score's errors weigh differently.

One transition from t to t + h, with N^2 = 2 int e dt (by quadrature) and z standard normal:

    euler       x' = x + h f(x, t) + N z                                     f = b + e s
    heun        y = x + h f(x, t) + N z,    x' = x + h (f(x, t) + f(y, t + h)) / 2 + N z
    midpoint    y = x + h f(x, t) / 2 + N_1 z_1,
                x' = x + h f(y, t + h / 2) + N_1 z_1 + N_2 z_2

The noise does not depend on the state, so heun and midpoint have order 2 for the flow and order 2
in distribution with noise; euler has order 1.

References:
    | Stochastic interpolants: a unifying framework for flows and diffusions
    | (Albergo et al., 2023)
    | SiT: exploring flow and diffusion-based generative models with scalable interpolant
    | transformers (Ma et al., 2024)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from torch import Tensor

from sci import tree
from sci.paths import Path, check_kind
from sci.samplers import grids
from sci.samplers.checks import curved, whole
from sci.samplers.diffusion import STAGES, Stage, functions, stages
from sci.samplers.loop import Carry, Plan, Sampler, mask_for
from sci.samplers.values import multiplier, ready

__all__ = ["TunableDiffusion", "TunableDiffusionPlan"]

_NAMES = ("noise", "reverse")


@dataclasses.dataclass(frozen=True)
class TunableDiffusion(Sampler):
    """The flow, and every SDE with its marginals.

        dx = (b + e s) dt + sqrt(2 e) dW

    On a `GaussianPath` the score follows from the velocity, whatever the network predicts. On an
    `Interpolant` with noise it does not: give a `sci.Joined`, unless e = 0.

    Arguments:
        steps: network evaluations an item, >= 1. The methods of two stages spend two on a
            transition, and a last odd one on an Euler step.
        diffusion: e: a number >= 0; a function of t (a float) that returns one; "noise", the
            standard deviation of the path's noise (sigma, or gamma of an interpolant), with which
            e s stays bounded; "reverse", sigma^2 d log(alpha / sigma) / dt, the reverse SDE of a
            Gaussian path; or {leaf: one of these}, where leaves that are not named have 0.
        method: "euler", "heun" or "midpoint". heun evaluates at the end of the grid.
        grid: a name, a grid, a list of times, or a callable (paths, transitions) -> times.

    Raises:
        ValueError: for settings out of range; unknown names list close ones.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> exact = Denoiser(lambda x, t, condition: 0 * x + 3, GaussianPath(CondOT()))
        >>> sampler = TunableDiffusion(steps=40, diffusion="noise")
        >>> samples = sampler(exact, like=torch.zeros(4, 1), seed=1)
        >>> bool(((samples.state - 3).abs() < 0.5).all()), samples.nfe
        (True, 40)

    References:
        | Stochastic interpolants: a unifying framework for flows and diffusions
        | (Albergo et al., 2023)
    """

    steps: int = 50
    diffusion: Any = 1.0
    method: str = "euler"
    grid: Any = "uniform_time"

    def __post_init__(self) -> None:
        whole("steps", self.steps, 1)
        check_kind(self.method, tuple(STAGES), "unknown method")
        each = self.diffusion.values() if isinstance(self.diffusion, dict) else [self.diffusion]
        for value in each:
            if isinstance(value, str):
                check_kind(value, _NAMES, "unknown diffusion")
            elif not callable(value) and not (
                isinstance(value, (int, float, np.number)) and 0.0 <= value < math.inf
            ):
                raise ValueError(f"diffusion must be finite and not negative, got {value!r}")
        object.__setattr__(self, "grid", grids.find(self.grid))

    @property
    def transitions(self) -> list[str]:
        """The method of each transition."""
        count, rest = divmod(self.steps, len(STAGES[self.method]))
        return [self.method] * count + ["euler"] * rest

    def plan(self, paths: Any, times: Any = None) -> TunableDiffusionPlan:
        """The coefficients for some paths; see `Sampler.plan`.

        Arguments:
            paths: one path, or the tree of paths of a state.
            times: (n + 1,) or (n + 1, B) for n transitions, in place of the sampler's grid.

        Raises:
            ValueError: when the times are no grid or another number, or a leaf has no score.
        """
        found, structure = tree.flatten(paths, Path)
        count = len(self.transitions)
        grid = grids.check_times(self.grid(paths, count) if times is None else times)
        if len(grid) != count + 1:
            raise ValueError(
                f"{self.steps} evaluations of '{self.method}' make {count} transitions: expected "
                f"{count + 1} times, got {len(grid)}"
            )
        return TunableDiffusionPlan(self, structure, found, grid)


class TunableDiffusionPlan(Plan):
    """The coefficients of a `TunableDiffusion` sampler; see `Plan`.

    Arguments:
        sampler: the settings.
        structure: of the tree of paths.
        paths: one a leaf.
        grid: (n + 1,) or (n + 1, B), the ends of the transitions.

    Raises:
        ValueError: when a leaf has no velocity, or noise and no score; names the leaf.
    """

    def __init__(
        self,
        sampler: TunableDiffusion,
        structure: tree.Structure,
        paths: list[Path],
        grid: np.ndarray,
    ):
        methods = sampler.transitions
        times = [
            grid[place] + share * (grid[place + 1] - grid[place])
            for place, method in enumerate(methods)
            for share in STAGES[method]
        ]
        super().__init__(sampler, structure, paths, np.array(times))
        self.grid = grid
        ends = grid[:, None] if grid.ndim == 1 else grid
        # For each evaluation: its method, its stage, and the length of its transition.
        self._moves = [
            (method, stage, ready(ends[place + 1] - ends[place]))
            for place, method in enumerate(methods)
            for stage in range(len(STAGES[method]))
        ]
        self._apart = False
        self._table: list[list[Stage]] = []
        self._functions = functions(sampler.diffusion, self.names, paths)
        for name, path, function in zip(self.names, paths, self._functions, strict=True):
            # In the middle too: between the ends of one transition there may be noise.
            noisy = bool(function(np.concatenate([ends, 0.5 * (ends[1:] + ends[:-1])])).any())
            if curved(path):
                raise ValueError(
                    f"leaf '{name}' cannot follow TunableDiffusion: its space {path.space!r} is "
                    "curved; use sci.samplers.Multistep or OneStep"
                )
            if "velocity" not in path.heads or (noisy and "score" not in path.heads):
                raise ValueError(
                    f"leaf '{name}' has {path!r} with the kinds {', '.join(sorted(path.heads))}: "
                    "expected a velocity" + (", and a score, or diffusion=0" if noisy else "")
                )
            apart = noisy and "latent" in path.heads
            self._apart = self._apart or apart
            self._table.append(
                [
                    stage
                    for place, method in enumerate(methods)
                    for stage in stages(
                        name, path, function, method, ends[place], ends[place + 1], apart
                    )
                ]
            )

    def step(self, denoiser: Any, carry: Carry) -> Carry:
        """One evaluation, and what it makes possible."""
        step, rows = carry.step, carry.rows
        method, stage, length = self._moves[step]
        first = stage == 0
        drifts = self._drifts(denoiser, carry)
        mask = mask_for(denoiser, carry.condition) if first else None
        last = len(STAGES[method]) - 1
        leaves, base = [], []
        for place, (x, drift) in enumerate(zip(carry.leaves, drifts, strict=True)):
            reach = drift * multiplier(length, x, rows)
            if not first:
                leaves.append(carry.base[place] + (0.5 * reach if method == "heun" else reach))
                continue
            kicks = [
                None
                if noise is None
                else multiplier(noise, x, rows)
                * carry.noise.draw(self.paths[place].space, self.names[place], step, x, mask, draw)
                for draw, noise in enumerate(self._table[place][step].noises)
            ]
            if method == "midpoint":
                leaves.append(_plus(x + 0.5 * reach, kicks[0]))
                base.append(_plus(_plus(x, kicks[0]), kicks[1]))
            else:
                moved = _plus(x, kicks[0])
                leaves.append(moved + reach)
                if last:
                    base.append(moved + 0.5 * reach)
        return dataclasses.replace(
            carry, leaves=tuple(leaves), base=tuple(base), step=step + 1, nfe=carry.nfe + 1
        )

    def _drifts(self, denoiser: Any, carry: Carry) -> list[Tensor]:
        """f = b + e s for each leaf."""
        rows = carry.rows
        if self._apart:
            if not hasattr(denoiser, "both"):
                raise ValueError(
                    "an Interpolant with noise gives no score by its velocity: sample from a "
                    "sci.Joined, which holds both, or with diffusion=0"
                )
            velocities, scores = denoiser.both(carry.state, self._time(carry), carry.condition)
            second: Any = tree.leaves(scores)
            first: Any = tree.leaves(velocities)
        else:
            first, second = self._predictions(denoiser, carry, "velocity"), carry.leaves
        out = []
        for table, velocity, other, x in zip(self._table, first, second, carry.leaves, strict=True):
            stage = table[carry.step]
            if self._apart:
                factor, share = 1.0, stage.diffusion
            else:
                factor, share = stage.velocity, stage.state
            drift = velocity.to(x.dtype)
            if not _is(factor, 1.0):
                drift = drift * multiplier(factor, x, rows)
            if not _is(share, 0.0):
                drift = drift + other.to(x.dtype) * multiplier(share, x, rows)
            out.append(drift)
        return out


def _is(value: Any, number: float) -> bool:
    return isinstance(value, float) and value == number


def _plus(x: Tensor, kick: Tensor | None) -> Tensor:
    return x if kick is None else x + kick
