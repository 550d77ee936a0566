"""The coefficients of flows with tunable diffusion: e(t) of a path, and what one evaluation needs."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from sci.paths import Path
from sci.samplers.checks import gaussian, infinite
from sci.samplers.values import ready

__all__ = ["STAGES", "Function", "Stage", "functions", "stages"]

# The share of the transition at which each stage of a method is evaluated.
STAGES = {"euler": (0.0,), "heun": (0.0, 1.0), "midpoint": (0.0, 0.5)}
Function = Callable[[np.ndarray], np.ndarray]
_POINTS, _MASSES = np.polynomial.legendre.leggauss(8)


@dataclasses.dataclass(frozen=True)
class Stage:
    """One evaluation of one leaf; numbers are floats, or (B,) tensors for times per item.

    The drift is b + e s. Where the score follows from the velocity it is a multiple of b plus a
    multiple of x.

    Arguments:
        velocity: the multiple of b.
        state: the multiple of x.
        diffusion: e, for scores that are predicted.
        noises: standard deviations of what is added, one a draw, None for none; empty unless this
            is the first stage of a transition.
    """

    velocity: Any
    state: Any
    diffusion: Any
    noises: tuple[Any, ...]


def functions(diffusion: Any, names: list[str], paths: list[Path]) -> list[Function]:
    """e(t) of each leaf, as functions of arrays of times.

    Arguments:
        diffusion: as for `TunableDiffusion`.
        names: of the leaves.
        paths: one a leaf.

    Raises:
        ValueError: for a leaf that there is not, or a diffusion that its path does not have.
    """
    if isinstance(diffusion, dict):
        for name in diffusion:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1) or names
                raise ValueError(f"diffusion of an unknown leaf '{name}': expected {close}")
        each = [diffusion.get(name, 0.0) for name in names]
    else:
        each = [diffusion] * len(names)
    return [
        _function(value, name, path) for value, name, path in zip(each, names, paths, strict=True)
    ]


def _function(value: Any, name: str, path: Path) -> Function:
    """e(t) of an array of times."""
    if value == "noise":
        return path.deviation
    if value == "reverse":
        if not gaussian(path):
            raise ValueError(f"leaf '{name}': diffusion='reverse' exists on Gaussian paths only")
        return lambda t: _reverse(path, t)
    if not callable(value):
        return lambda t: np.full(t.shape, float(value))

    def checked(t: np.ndarray) -> np.ndarray:
        found = np.array([float(value(float(each))) for each in t.flat]).reshape(t.shape)
        if not (found >= 0).all():
            raise ValueError(f"leaf '{name}': the diffusion is {found.min()}: expected >= 0")
        return found

    return checked


def _reverse(path: Path, t: np.ndarray) -> np.ndarray:
    """sigma^2 (alpha' / alpha - sigma' / sigma), with no 0 / 0 where sigma vanishes."""
    schedule = path.schedule
    sigma = schedule.sigma(t)
    with np.errstate(divide="ignore", invalid="ignore"):
        return sigma * (sigma * schedule.alpha_dot(t) / schedule.alpha(t) - schedule.sigma_dot(t))


def stages(
    name: str,
    path: Path,
    function: Function,
    method: str,
    start: np.ndarray,
    stop: np.ndarray,
    apart: bool,
) -> list[Stage]:
    """The evaluations of one transition of one leaf.

    Arguments:
        name: of the leaf.
        path: of the leaf.
        function: e(t).
        method: one of `STAGES`.
        start: (1,) or (B,) where the transition starts.
        stop: where it ends.
        apart: whether the score is predicted beside the velocity.

    Raises:
        ValueError: when a coefficient is not finite; names the leaf.
    """
    found = []
    for stage, share in enumerate(STAGES[method]):
        t = start + share * (stop - start)
        diffusion = function(t)
        velocity, state = np.ones_like(t), np.zeros_like(t)
        if not apart and diffusion.any():
            to_score = path.coefficients("velocity", "score", torch.from_numpy(t))
            with np.errstate(invalid="ignore"):
                # Where there is no noise the score may be infinite, and is not asked for.
                velocity, state = (
                    np.where(diffusion > 0, diffusion * factor.numpy(), 0.0) for factor in to_score
                )
            velocity = velocity + 1.0
        noises: tuple[np.ndarray | None, ...] = ()
        if stage == 0:
            middle = 0.5 * (start + stop)
            parts = [(start, middle), (middle, stop)] if method == "midpoint" else [(start, stop)]
            noises = tuple(_deviation(function, *part) for part in parts)
        numbers = (velocity, state, diffusion, *(noise for noise in noises if noise is not None))
        item = infinite(numbers)
        if item is not None:
            raise ValueError(
                f"leaf '{name}': the drift or the noise is not finite at t = {t[item]:.6g}. Use ends "
                "inside (0, 1), or a diffusion that vanishes there, such as 'noise'"
            )
        found.append(
            Stage(
                ready(velocity),
                ready(state),
                ready(diffusion),
                tuple(None if noise is None else ready(noise) for noise in noises),
            )
        )
    return found


def _deviation(function: Function, start: np.ndarray, stop: np.ndarray) -> np.ndarray | None:
    """sqrt(2 int e dt), or None where there is no noise."""
    half = 0.5 * (stop - start)
    points = start + half * (_POINTS[:, None] + 1.0)
    integral = (function(points) * _MASSES[:, None]).sum(0) * half
    return np.sqrt(2.0 * integral) if integral.any() else None
