"""Schedules of discrete paths: alpha is the probability that a class is kept, sigma = 1 - alpha."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sci.schedules.base import Schedule
from sci.schedules.tables import Table

__all__ = ["KeepTable", "OffsetCosine"]


class _Keep(Schedule):
    """Keep probabilities: sigma = 1 - alpha."""

    def _sigma(self, t: Any, xp: Any) -> Any:
        return 1.0 - self._alpha(t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return -self._alpha_dot(t, xp)


class OffsetCosine(_Keep):
    """Keep probabilities along a cosine, alpha = h(1 - t) / h(0) with
    h(u) = cos((pi / 2) (u + offset) / (1 + offset)); sigma = 1 - alpha.

    Arguments:
        offset: > 0; makes the last steps before the data smaller.
        least: alpha is kept within [least, 1 - least].

    Raises:
        ValueError: when an argument is out of range.

    References:
        | Improved denoising diffusion probabilistic models (Nichol, Dhariwal, 2021)
        | Pard: permutation-invariant autoregressive diffusion for graph generation
        | (Zhao, Ding, Akoglu, 2024)
    """

    def __init__(self, offset: float = 0.008, least: float = 1e-10):
        if not (offset > 0 and 0 <= least < 0.5):
            raise ValueError(
                f"OffsetCosine: expected offset > 0 and 0 <= least < 0.5, got {offset} and {least}"
            )
        self.offset, self.least = float(offset), float(least)
        self._turn = 0.5 * math.pi / (1.0 + self.offset)
        self._first = math.cos(self._turn * self.offset)

    def _angle(self, t: Any) -> Any:
        return self._turn * (1.0 - t + self.offset)

    def _alpha(self, t: Any, xp: Any) -> Any:
        return xp.clip(xp.cos(self._angle(t)) / self._first, self.least, 1.0 - self.least)

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return self._turn * xp.sin(self._angle(t)) / self._first


class KeepTable(_Keep):
    """Keep probabilities from a table, linear between its levels; sigma = 1 - alpha.

    Level k of n is at t = k / (n - 1).

    Arguments:
        keep: (n,) increasing in [0, 1], from the source to the data.

    Raises:
        ValueError: when the values do not increase within [0, 1].
    """

    def __init__(self, keep: Sequence[float] | np.ndarray):
        table = np.array(keep, dtype=np.float64)
        if table.ndim != 1 or len(table) < 2:
            raise ValueError(f"KeepTable: expected two or more levels, got shape {table.shape}")
        if not ((np.diff(table) > 0).all() and table[0] >= 0 and table[-1] <= 1):
            raise ValueError(
                "KeepTable: keep probabilities must increase within [0, 1], from the source to the "
                "data; reverse a table that starts at the data"
            )
        self._table = Table.lines(table)

    def _alpha(self, t: Any, xp: Any) -> Any:
        return self._table(t, xp)

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return self._table(t, xp, 1)

    def __repr__(self) -> str:
        return f"KeepTable(<{self._table.pieces + 1} levels>)"
