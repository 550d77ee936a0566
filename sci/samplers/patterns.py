"""The rows of items whose times differ.

Which nodes a step can use depends on the times: log-SNR may be infinite at one, or two neighbouring
steps too unequal. Items whose steps can use the same nodes are worked out together, all others
apart, so no item's order depends on its batch mates.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from sci.paths import Path
from sci.samplers.rows import HIGHEST, Builder, Form, Row, alike
from sci.samplers.weights import usable

__all__ = ["rows_of"]

# The start-up needs steps that grow or shrink by this factor at most, measured in the variable:
# polynomials through very unequal steps do more harm than a low order.
_EVEN = 2.0


def rows_of(settings: Any, path: Path, times: np.ndarray) -> list[Row]:
    """The rows of all steps of a leaf.

    Arguments:
        settings: the `Multistep` of the leaf.
        path: of the leaf.
        times: (n, B) float64; columns never influence each other.
    """
    # What is not finite is refused by name, without a warning of numpy's before.
    with np.errstate(all="ignore"):
        return _rows_of(settings, path, times)


def _rows_of(settings: Any, path: Path, times: np.ndarray) -> list[Row]:
    limits = _limits(settings, path, times)
    patterns, group = np.unique(limits.reshape(-1, times.shape[1]), axis=1, return_inverse=True)
    group = group.reshape(-1)
    if patterns.shape[1] == 1:
        return Builder(settings, path, times, limits[..., 0]).rows()
    members = [np.flatnonzero(group == one) for one in range(patterns.shape[1])]
    parts = [
        Builder(settings, path, times[:, rows], limits[..., rows[0]]).rows() for rows in members
    ]
    return [_merged(rows, members) for rows in zip(*parts, strict=True)]


def _limits(settings: Any, path: Path, times: np.ndarray) -> np.ndarray:
    """How many nodes each step may use in predictor, corrector and start-up, (steps, 3, B)."""
    steps, ratio = len(times) - 1, settings.max_ratio
    limits = np.zeros((steps, 3, times.shape[1]), dtype=int)
    # Nodes before the first time stand in for none: the counts stop short of them.
    before = np.concatenate([np.repeat(times[:1], HIGHEST, axis=0), times])
    kinds = [settings.at("kind", step) for step in range(steps)]
    corrected = any(settings.at("corrector", step) for step in range(steps))
    for group in alike(kinds, times.shape[1]):
        places = np.array(group)
        nodes = [before[HIGHEST + places - back].ravel() for back in range(HIGHEST + 1)]
        start, stop = times[places].ravel(), times[places + 1].ravel()
        options = path, kinds[group[0]], settings.variable
        counts = [(0, usable(*options, nodes, start, stop, ratio), 1)]
        if corrected:
            counts.append((1, usable(*options, [stop, *nodes], start, stop, ratio), 2))
        if settings.corrected_start:
            even = min(ratio or _EVEN, _EVEN)
            counts.append((2, usable(*options, nodes, start, stop, even), 1))
        for which, count, least in counts:
            there = np.minimum(count.reshape(len(group), -1), places[:, None] + least)
            limits[places, which] = there
    return limits


def _merged(rows: tuple[Row, ...], members: list[np.ndarray]) -> Row:
    """One row from those of groups of items."""
    size = sum(map(len, members))

    def spread(parts: list[np.ndarray | None]) -> np.ndarray:
        out = np.zeros(size)
        for part, places in zip(parts, members, strict=True):
            if part is not None:
                out[places] = part
        return out

    def columns(parts: list[list[np.ndarray]]) -> list[np.ndarray]:
        longest = max(map(len, parts))
        return [
            spread([part[k] if k < len(part) else None for part in parts]) for k in range(longest)
        ]

    def joined(forms: list[Form]) -> Form:
        return Form(
            spread([form.scale for form in forms]),
            columns([form.weights for form in forms]),
            columns([form.states for form in forms]),
        )

    edit = None
    if any(row.edit is not None for row in rows):
        plain = [Form(np.zeros(len(m)), [np.ones(len(m))], []) for m in members]
        edit = joined([row.edit or same for row, same in zip(rows, plain, strict=True)])
    bias = None if all(row.bias is None for row in rows) else spread([row.bias for row in rows])
    noise = spread([row.noise for row in rows])
    return Row(joined([row.next for row in rows]), edit, noise, bias)
