"""The stepper of linear leaves: a few fused multiply-adds a step.

The rows of `sci.samplers.rows` are held as Python floats, or as (B,) tensors when the times differ
by item. A step without noise whose kinds do not mix takes the short way: one tuple, and one
operation a weight.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths import Path
from sci.samplers.checks import gaussian, infinite
from sci.samplers.patterns import rows_of
from sci.samplers.rows import Form, Row, asked
from sci.samplers.stepper import Draws, Stepper
from sci.samplers.values import multiplier, ready

__all__ = ["LinearStepper"]


class LinearStepper(Stepper):
    """Moves a leaf by x_next = A x + sum_j U_j P_j + N z + b; see `sci.samplers.rows`.

    Arguments:
        settings: the `Multistep` of this leaf, with the leaf's overrides.
        name: of the leaf.
        path: of the leaf.
        grid: (n,) or (n, B) float64, increasing.

    Raises:
        ValueError: when the path has no prediction of the kinds, or no finite coefficients; names
            the leaf.
    """

    def __init__(self, settings: Any, name: str, path: Path, grid: np.ndarray):
        super().__init__(settings, name, path, grid)
        transitions = len(grid) - 1
        kinds = [settings.at("kind", step) for step in range(transitions)]
        self._kinds = [asked(kind) for kind in kinds]
        for kind in {*self._kinds, *(["data"] if settings.final else [])}:
            if kind not in path.heads:
                what = f"final='{settings.final}'" if kind not in self._kinds else f"kind='{kind}'"
                raise ValueError(
                    f"leaf '{name}' cannot follow {what}: its path {type(path).__name__} has "
                    f"{', '.join(sorted(path.heads))}"
                )
        noisy = any(settings.at("stochasticity", step) for step in range(transitions))
        if noisy and not gaussian(path):
            raise ValueError(
                f"leaf '{name}' cannot follow stochasticity > 0: its path {type(path).__name__} "
                "has no score, so Gaussian noise would change its law. Give this leaf "
                f"leaves={{'{name}': {{'stochasticity': 0.0}}}}"
            )
        times = grid[:, None] if grid.ndim == 1 else grid
        try:
            rows = rows_of(settings, path, times)
        except ValueError as error:
            raise ValueError(f"leaf '{name}' cannot follow the sampler: {error}") from error
        for step, row in enumerate(rows):
            _check(row, name, self._kinds[step], times[step], times[step + 1])
        self._mixed = any(kind != kinds[0] for kind in kinds)
        self._rows = [_Step(row) for row in rows]
        self._keep = _kept(rows)
        self._short = [
            None if self._mixed else row.short(keep)
            for row, keep in zip(self._rows, self._keep, strict=True)
        ]

    def coefficients(self, step: int) -> tuple[Any, tuple[Any, ...], Any]:
        """(A, (U_0, U_1, ...), N) of a step, the newest prediction first."""
        row = self._rows[step]
        return row.next.scale, row.next.weights, row.noise

    def wants(self, step: int) -> str:
        """The kind of prediction that this step takes."""
        return self._kinds[step]

    def advance(
        self,
        step: int,
        x: Tensor,
        past: tuple[Tensor, ...],
        draws: Draws,
        rows: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One transition; see `Stepper.advance`."""
        short = self._short[step]
        # A prediction of another dtype takes the long way, on which the leaf keeps its own.
        if short is not None and past[0].dtype is x.dtype:
            scale, first, others, keep = short
            # In place on a fresh tensor: nothing that autograd keeps is touched.
            out = torch.add(x if scale is None else x * scale, past[0], alpha=first)
            for place, weight in others:
                out.add_(past[place], alpha=weight)
            return out, past[:keep]
        row, keep = self._rows[step], self._keep[step]
        count = len(past) // 2 if self._mixed else len(past)
        predictions, states = past[: count + self._mixed], past[count + self._mixed :]
        out = row.next.apply(x, predictions, states, rows)
        if row.noisy:
            out = out + draws.normal(x) * multiplier(row.noise, x, rows)
        if row.bias is not None:
            constant = self.path.project(torch.ones_like(x), draws.mask)
            out = out + constant * multiplier(row.bias, x, rows)
        if keep and row.edit is not None:
            newest = row.edit.apply(x, predictions, states, rows)
            predictions = (newest, *predictions[1:])
        if self._mixed:
            return out, (*predictions[:keep], *(x, *states)[:keep])
        return out, predictions[:keep]


class _Combination:
    """A linear form: Python floats, or (B,) tensors when the times differ by item."""

    __slots__ = ("scale", "states", "weights")

    def __init__(self, form: Form):
        self.scale = ready(form.scale)
        self.weights = tuple(map(ready, form.weights))
        self.states = tuple(map(ready, form.states))

    def apply(
        self,
        x: Tensor,
        predictions: tuple[Tensor, ...],
        states: tuple[Tensor, ...],
        rows: Tensor | None,
    ) -> Tensor:
        """A x + sum_j U_j P_j + sum_j X_j x_j."""
        terms = (*zip(self.weights, predictions, strict=False),)
        terms += (*zip(self.states, states, strict=False),)
        out = x * multiplier(self.scale, x, rows)
        for weight, term in terms:
            if isinstance(weight, float):
                out.add_(term, alpha=weight)
            else:
                out = out + term.to(x.dtype) * multiplier(weight, x, rows)
        return out


class _Step:
    """A row, ready to be applied."""

    __slots__ = ("bias", "edit", "next", "noise", "noisy")

    def __init__(self, row: Row):
        self.next = _Combination(row.next)
        self.edit = None if row.edit is None else _Combination(row.edit)
        self.noise = ready(row.noise)
        self.noisy = bool((row.noise != 0).any())
        biased = row.bias is not None and bool((row.bias != 0).any())
        self.bias = ready(row.bias) if row.bias is not None and biased else None

    def short(self, keep: int) -> tuple[Any, ...] | None:
        """What a step without noise, bias and edits needs, or None when it has some."""
        edited = self.edit is not None and keep
        if not isinstance(self.next.scale, float) or self.noisy or self.bias is not None or edited:
            return None
        first, *others = self.next.weights
        # One to rounding: then the product is left out.
        scale = None if math.isclose(self.next.scale, 1.0, rel_tol=1e-15) else self.next.scale
        return scale, first, tuple((k, w) for k, w in enumerate(others, 1) if w != 0.0), keep


def _kept(rows: list[Row]) -> list[int]:
    """How many past predictions each step leaves for the later ones."""
    reach = []
    for row in rows:
        forms = [row.next] if row.edit is None else [row.next, row.edit]
        reach.append(max(max(len(form.weights), len(form.states) + 1) for form in forms))
    keep = [0] * len(rows)
    for step in range(len(rows) - 2, -1, -1):
        keep[step] = max(reach[step + 1] - 1, keep[step + 1] - 1, 0)
    return keep


def _check(row: Row, name: str, kind: str, start: np.ndarray, stop: np.ndarray) -> None:
    forms = [row.next] if row.edit is None else [row.next, row.edit]
    values = [row.noise, *([] if row.bias is None else [row.bias])]
    for form in forms:
        values += [form.scale, *form.weights, *form.states]
    item = infinite(values)
    if item is not None:
        raise ValueError(
            f"leaf '{name}' cannot follow kind='{kind}' from t = {start[item]:.6g} to "
            f"{stop[item]:.6g}: alpha or sigma vanishes there, and its coefficients are not finite."
            " Use ends inside (0, 1), or kind='difference', 'angular' or 'velocity'"
        )
