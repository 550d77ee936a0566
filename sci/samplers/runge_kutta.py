r"""Runge-Kutta transitions: stage times and the linear combinations that lead to each point.

`sci.samplers.onestep` has the formulae. A transition from s to t is a list of stage times and, for
each point after the first stage (the other stages, and t), a scale of the state at s and a weight
for each prediction so far.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sci.samplers.checks import infinite
from sci.samplers.coordinates import Coordinate
from sci.samplers.weights import coefficients

__all__ = ["CLASSICAL", "EXPONENTIAL", "Point", "methods_of", "stages_of", "transition"]

# Fractions c of the stages, and the rows of a with the final weights b as the last one.
CLASSICAL: dict[str, tuple[tuple[float, ...], tuple[tuple[float, ...], ...]]] = {
    "euler": ((0,), ((1,),)),
    "midpoint": ((0, 1 / 2), ((1 / 2,), (0, 1))),
    "heun": ((0, 1), ((1,), (1 / 2, 1 / 2))),
    "ralston": ((0, 2 / 3), ((2 / 3,), (1 / 4, 3 / 4))),
    "heun3": ((0, 1 / 3, 2 / 3), ((1 / 3,), (0, 2 / 3), (1 / 4, 0, 3 / 4))),
    "rk4": (
        (0, 1 / 2, 1 / 2, 1),
        ((1 / 2,), (0, 1 / 2), (0, 0, 1), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
    ),
}
# Fractions of log-SNR, and which stages the polynomial of each point goes through.
EXPONENTIAL: dict[str, tuple[tuple[float, ...], tuple[tuple[int, ...], ...]]] = {
    "exponential_1": ((0,), ((0,),)),
    "exponential_2": ((0, 1 / 2), ((0,), (0, 1))),
    "exponential_3": ((0, 1 / 3, 2 / 3), ((0,), (0, 1), (0, 2))),
}
# What takes the evaluations that remain; none of them evaluates at the end of its transition.
_SHORTER = {1: "euler", 2: "midpoint", 3: "heun3"}


@dataclasses.dataclass(frozen=True)
class Point:
    """x_i = scale x_s + sum_j weights_j P_j.

    Arguments:
        scale: (B,), of the state at the start of the transition.
        weights: each (B,), of the predictions at the stages so far, the oldest first.
    """

    scale: np.ndarray
    weights: list[np.ndarray]


def _table(method: str) -> tuple[tuple[float, ...], tuple[tuple[Any, ...], ...]]:
    """Fractions of the stages, and a row a point."""
    return EXPONENTIAL[method] if method in EXPONENTIAL else CLASSICAL[method]


def stages_of(method: str) -> int:
    """How many evaluations a transition takes."""
    return len(_table(method)[0])


def methods_of(method: str, evaluations: int) -> list[str]:
    """The method of each transition when there are so many evaluations: as many as go of the given
    one, then what takes the evaluations that remain."""
    full, rest = divmod(evaluations, stages_of(method))
    last = f"exponential_{rest}" if method in EXPONENTIAL else _SHORTER.get(rest, method)
    return [method] * full + [last] * bool(rest)


def transition(
    method: str,
    rule: str,
    names: list[str],
    leaves: list[Coordinate],
    follows: list[bool],
    start: np.ndarray,
    stop: np.ndarray,
) -> tuple[list[np.ndarray], list[list[Point]]]:
    """Stage times and points of one transition.

    Arguments:
        method: one of `CLASSICAL` and `EXPONENTIAL`.
        rule: "exact" or "half", for the last point of exponential_2.
        names: of the leaves.
        leaves: their coordinates; the first one leads.
        follows: which leaves have the same coordinate as the first one.
        start: (B,) where the transition starts.
        stop: (B,) where it ends.

    Returns:
        The stage times, each (B,), and for each leaf a point a stage: where that stage leads.

    Raises:
        ValueError: when a leaf has no finite coefficients there; names the leaf.
    """
    lead = leaves[0]
    fractions = _table(method)[0]
    clock: Any = lead.path.schedule if method in EXPONENTIAL else lead
    place = clock.log_snr if method in EXPONENTIAL else clock.place
    begin, end = place(start), place(stop)
    if len(fractions) > 1:
        _check(names[0], lead, method, start, stop, [begin, end])
    times = [
        start if share == 0 else stop if share == 1 else clock.time(begin + share * (end - begin))
        for share in fractions
    ]
    points = []
    for name, leaf, same in zip(names, leaves, follows, strict=True):
        if method in EXPONENTIAL:
            found = _exponential(method, rule, leaf, times, stop)
        else:
            found = _classical(method, leaf, None if same else lead, times, stop, end - begin)
        for point in found:
            _check(name, leaf, method, start, stop, [point.scale, *point.weights])
        clean = np.isposinf(leaf.path.schedule.log_snr(np.stack(times))).any(0)
        if leaf.kind == "noise" and clean.any():
            raise ValueError(
                f"leaf '{name}' cannot follow method='{method}' with kind='noise' to t = "
                f"{stop[clean][0]:.6g}: a stage lies where sigma = 0 and there is no noise to predict. "
                "Choose `steps` so that one evaluation remains for the last transition, or an end "
                "inside (0, 1) with final='data'"
            )
        points.append(found)
    return times, points


def _classical(
    method: str,
    leaf: Coordinate,
    lead: Coordinate | None,
    times: list[np.ndarray],
    stop: np.ndarray,
    length: np.ndarray,
) -> list[Point]:
    """By a tableau in the leading coordinate (None: the leaf's own), in which the transition is
    `length` long."""
    start, count = times[0], len(times)
    rates: list[Any] = [1.0] * count
    if lead is not None:
        rates = [leaf.slope(t) / lead.slope(t) for t in times]
    points = []
    for place, (row, t) in enumerate(zip(_table(method)[1], [*times[1:], stop], strict=True)):
        size = leaf.scale(t)
        weights = [length * share * rate for share, rate in zip(row, rates, strict=False)]
        if lead is not None and (place == count - 1 or count <= 2):
            # A constant prediction is then integrated exactly. In the last row this changes the
            # weights by O(h^order); in the others by O(h), which only orders up to 2 can bear.
            exact = (leaf.place(t) - leaf.place(start)) / sum(weights)
            weights = [weight * exact for weight in weights]
        points.append(Point(size / leaf.scale(start), [size * weight for weight in weights]))
    return points


def _exponential(
    method: str, rule: str, leaf: Coordinate, times: list[np.ndarray], stop: np.ndarray
) -> list[Point]:
    """By exact integrals of the polynomials through some of the stages."""
    points = []
    rows = _table(method)[1]
    start, log_snr = times[0], leaf.path.schedule.log_snr
    finite = np.isfinite(log_snr(start)).all() and np.isfinite(log_snr(stop)).all()
    for place, (through, t) in enumerate(zip(rows, [*times[1:], stop], strict=True)):
        nodes = [times[stage] for stage in through]
        chosen = rule if method == "exponential_2" and place == 1 else "exact"
        found = coefficients(leaf.path, leaf.kind, "log_snr", chosen, 0.0, nodes, t)
        weights = [np.zeros_like(stop) for _ in range(place + 1)]
        for stage, weight in zip(through, found.weights, strict=True):
            # Where log-SNR is infinite there is no polynomial in it.
            weights[stage] = weight if finite or len(nodes) == 1 else np.full_like(stop, np.nan)
        points.append(Point(found.scale, weights))
    return points


def _check(
    name: str,
    leaf: Coordinate,
    method: str,
    start: np.ndarray,
    stop: np.ndarray,
    values: list[np.ndarray],
) -> None:
    item = infinite(values)
    if item is not None:
        raise ValueError(
            f"leaf '{name}' cannot follow method='{method}' with kind='{leaf.kind}' from t = "
            f"{start[item]:.6g} to {stop[item]:.6g}: its coefficients are not finite there. Use "
            "ends inside (0, 1), or a classical method with kind='difference', 'angular' or "
            "'velocity'"
        )
