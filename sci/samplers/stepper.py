"""One leaf of a multistep sampler: what a stepper is, its noise, and which path has which.

A plan holds one stepper a leaf. All leaves share the clock, the loop and the evaluations; how a leaf
moves from one time to the next is its own: a linear combination in a linear space, an exponential
on the rotations, a draw from a posterior for classes.
"""

from __future__ import annotations

import importlib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths import Path

__all__ = ["Draws", "Stepper", "stepper_for"]

_LINEAR = "sci.samplers.linear:LinearStepper"


class Draws:
    """The noise of one leaf at one step, made when it is asked for.

    Arguments:
        noise: the items' streams.
        denoiser: who knows the mask.
        condition: where the mask is read from.
        path: of the leaf.
        name: of the leaf.
        step: of the sampler.
    """

    __slots__ = ("_condition", "_denoiser", "_name", "_noise", "_path", "_step")

    def __init__(self, noise: Any, denoiser: Any, condition: Any, path: Path, name: str, step: int):
        self._noise = noise
        self._denoiser = denoiser
        self._condition = condition
        self._path = path
        self._name = name
        self._step = step

    @property
    def mask(self) -> Tensor | None:
        """(B, N) bool, or None when everything is present."""
        mask_of = getattr(self._denoiser, "mask_of", None)
        return None if mask_of is None else mask_of(self._condition)

    def normal(self, like: Tensor, draw: int = 0) -> Tensor:
        """Standard noise of the leaf's space; a tensor like `like`, zero where masked."""
        space = self._path.space
        return self._noise.draw(space, self._name, self._step, like, self.mask, draw)

    def uniform(self, like: Tensor, draw: int = 0) -> Tensor:
        """One value in (0, 1) for each independent element, laid out like `like`.

        The values are floating even where the leaf holds classes; zero where masked.
        """
        space = self._path.space
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        shaped = torch.empty((), dtype=dtype, device=like.device).expand(like.shape)
        values = self._noise.uniform(space.elements(shaped), self._name, self._step, draw)
        return space.place(values, shaped, self.mask)


class Stepper:
    """How one leaf moves; base of all steppers.

    Arguments:
        settings: the `Multistep` of this leaf, with the leaf's overrides.
        name: of the leaf.
        path: of the leaf.
        grid: (n,) or (n, B) float64, increasing: n - 1 transitions.

    A subclass lists in `options` the settings of its own that `Multistep.leaves` may hold; those
    that are given come as further arguments. `integer` says whether its leaf holds integers.

    Raises:
        ValueError: when the leaf cannot follow the settings; names the leaf.
    """

    integer = False
    wants_last = "data"
    options: frozenset[str] = frozenset()

    def __init__(self, settings: Any, name: str, path: Path, grid: np.ndarray):
        self.settings = settings
        self.name = name
        self.path = path
        self.grid = grid

    def wants(self, step: int) -> str:
        """The kind of prediction that this step takes."""
        raise TypeError(f"{type(self).__name__} defines no prediction kind")

    def advance(
        self,
        step: int,
        x: Tensor,
        past: tuple[Tensor, ...],
        draws: Draws,
        rows: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One transition.

        Arguments:
            step: from `grid[step]` to `grid[step + 1]`.
            x: (B, ...) the leaf at `grid[step]`.
            past: the prediction at x, then what the step before returned to be kept.
            draws: the leaf's noise at this step.
            rows: (B,) which columns of a grid with times per item belong to the items; or None.

        Returns:
            The leaf at the next time, and what is kept for the next step: tensors with a batch
            axis, the newest first.
        """
        raise TypeError(f"{type(self).__name__} defines no transition")

    def finish(
        self, step: int, x: Tensor, prediction: Tensor, draws: Draws, rows: Tensor | None
    ) -> Tensor:
        """What the leaf is in the end, from the prediction `wants_last` at the last time."""
        return prediction.to(x.dtype)


def stepper_for(path: Path) -> type[Stepper]:
    """The stepper that a path names in its attribute `stepper`; the linear one when it names none.

    Arguments:
        path: its `stepper` is a class or "module:Class".
    """
    named = getattr(path, "stepper", None) or _LINEAR
    if not isinstance(named, str):
        return named
    module, _, name = named.partition(":")
    return getattr(importlib.import_module(module), name)
