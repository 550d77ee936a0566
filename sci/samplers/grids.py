"""Grids: which times a sampler visits.

A grid is called as `grid(paths, steps)` and returns `steps + 1` increasing times in float64. Ends
that are not given are those that the spans of all leaves share; with several leaves, log-SNR and
angle are those of the first one. The grid often matters more than the solver: equal steps in the
angle are the safe choice for smooth targets, equal steps in log-SNR for wide schedules.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sci import tree
from sci.paths import Path

__all__ = [
    "Grid",
    "check_times",
    "find",
    "from_quantiles",
    "from_times",
    "graded_angle",
    "karras",
    "power",
    "uniform_angle",
    "uniform_log_snr",
    "uniform_time",
]

# Where a path's own span reaches infinite log-SNR, grids in log-SNR stop here.
_LARGEST = 5.0


@dataclasses.dataclass(frozen=True)
class Grid:
    """Base of the grids.

    Arguments:
        start: the first time; the latest start of the leaves' spans when None.
        stop: the last time; the earliest stop of the leaves' spans when None.

    Raises:
        ValueError: unless 0 <= start < stop <= 1.
    """

    start: float | None = None
    stop: float | None = None

    def __call__(self, paths: Any, steps: int) -> np.ndarray:
        """The times.

        Arguments:
            paths: one path, or a tree of paths.
            steps: >= 1.

        Returns:
            (steps + 1,) float64, increasing.

        Raises:
            ValueError: when there are no steps, or the ends are no interval in [0, 1].
        """
        if steps < 1:
            raise ValueError(f"a grid needs at least one step, got {steps}")
        found = tree.flatten(paths, Path)[0]
        start = max(path.span[0] for path in found) if self.start is None else self.start
        stop = min(path.span[1] for path in found) if self.stop is None else self.stop
        if not 0 <= start < stop <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1, got start={start}, stop={stop}")
        return self._times(found[0], start, stop, np.linspace(0.0, 1.0, steps + 1))

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        raise TypeError(f"{type(self).__name__} defines no times")


class uniform_time(Grid):
    """Equal steps in t."""

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        return _between(start, stop, start + (stop - start) * share)


class uniform_angle(Grid):
    """Equal steps in the angle atan(alpha / sigma)."""

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        return _angle_times(path, start, stop, share)


@dataclasses.dataclass(frozen=True)
class graded_angle(Grid):
    """Angles atan(alpha / sigma) with shorter steps towards both ends.

        angle_k = angle_0 + (angle_n - angle_0) (1 - (1 - u^early)^late),   u = k / n

    The angle that is left falls like (1 - u)^late, so that with late = 2 the error of high orders
    is spread evenly over targets with structure at small scales. The exponents were chosen on
    mixtures of Gaussians with exact scores.

    Arguments:
        start: the first time.
        stop: the last time.
        early: > 0; above 1 the steps are shorter at the source.
        late: > 0; above 1 the steps are shorter at the data. Both 1 give `uniform_angle`.

    Raises:
        ValueError: for an exponent that is not positive.
    """

    early: float = 1.25
    late: float = 2.0

    def __post_init__(self) -> None:
        _positive("early", self.early)
        _positive("late", self.late)

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        return _angle_times(path, start, stop, 1.0 - (1.0 - share**self.early) ** self.late)


class uniform_log_snr(Grid):
    """Equal steps in lambda = log(alpha / sigma); infinite ends are replaced by -5 and 5."""

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        start, stop, ends = _finite_ends(path, start, stop)
        return _between(start, stop, path.schedule.time(ends[0] + (ends[1] - ends[0]) * share))


@dataclasses.dataclass(frozen=True)
class power(Grid):
    """Equal steps in v^(1 / exponent), with v what remains of the time, 1 - t, or sigma / alpha.

        v_k = (v_0^(1 / exponent) + (k / n) (v_n^(1 / exponent) - v_0^(1 / exponent)))^exponent

    With exponents above 1 the steps shrink towards the data. Exponent 2 in time is the quadratic
    grid of DEIS and of DDIM on small images; exponent 7 in the ratio is `karras`.

    Arguments:
        start: the first time.
        stop: the last time.
        exponent: > 0; 1 gives equal steps in v.
        variable: v, "time" for 1 - t or "ratio" for sigma / alpha, where infinite ends are treated
            as in `uniform_log_snr`.

    Raises:
        ValueError: for an exponent that is not positive, or another variable.

    Example:
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> [round(float(t), 2) for t in power(0.0, 1.0)(GaussianPath(CondOT()), 4)]
        [0.0, 0.44, 0.75, 0.94, 1.0]

    References:
        | Fast sampling of diffusion models with exponential integrator (Zhang, Chen, 2023)
    """

    exponent: float = 2.0
    variable: str = "time"

    def __post_init__(self) -> None:
        _positive("exponent", self.exponent)
        if self.variable not in ("time", "ratio"):
            raise ValueError(f"variable must be 'time' or 'ratio', got {self.variable!r}")

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        if self.variable == "ratio":
            return _ratio_times(path, start, stop, share, self.exponent)
        roots = (1.0 - np.array([start, stop])) ** (1.0 / self.exponent)
        times = 1.0 - (roots[0] + (roots[1] - roots[0]) * share) ** self.exponent
        return _between(start, stop, times)


@dataclasses.dataclass(frozen=True)
class karras(Grid):
    """Equal steps in (sigma / alpha)^(1 / rho); infinite ends as in `uniform_log_snr`.

    Arguments:
        start: the first time.
        stop: the last time.
        rho: the exponent, > 0; 7 in the paper.

    Raises:
        ValueError: for a rho that is not positive.

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    """

    rho: float = 7.0

    def __post_init__(self) -> None:
        _positive("rho", self.rho)

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        return _ratio_times(path, start, stop, share, self.rho)


@dataclasses.dataclass(frozen=True, init=False)
class from_quantiles(Grid):
    """Times spread as a law spreads them, for any number of steps.

        t_k = law(k / n),  k = 0, ..., n

    Arguments:
        law: an increasing function from [0, 1] to times in [0, 1] that takes an array; or its table
            at equally spaced shares, (m,) with m >= 2, interpolated linearly.

    Raises:
        ValueError: when a table is no increasing list of times in [0, 1]; when called, also for a
            function whose values are not.

    Example:
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> grid = from_quantiles([0.0, 0.8, 1.0])
        >>> [round(float(t), 2) for t in grid(GaussianPath(CondOT()), 4)]
        [0.0, 0.4, 0.8, 0.9, 1.0]
    """

    law: Callable[[np.ndarray], Any] | tuple[float, ...] = (0.0, 1.0)

    def __init__(self, law: Callable[[np.ndarray], Any] | Sequence[float]):
        super().__init__()
        if not callable(law):
            table = check_times(law, "the table of quantiles")
            if table.ndim != 1:
                raise ValueError(f"the table of quantiles must be (m,), got shape {table.shape}")
            law = tuple(table.tolist())
        object.__setattr__(self, "law", law)

    def __call__(self, paths: Any, steps: int) -> np.ndarray:
        """The quantiles of steps + 1 equal shares."""
        if steps < 1:
            raise ValueError(f"a grid needs at least one step, got {steps}")
        share = np.linspace(0.0, 1.0, steps + 1)
        if callable(self.law):
            return check_times(self.law(share), "the law's quantiles")
        return np.interp(share, np.linspace(0.0, 1.0, len(self.law)), self.law)


@dataclasses.dataclass(frozen=True, init=False)
class from_times(Grid):
    """Given times, whatever the path.

    Arguments:
        times: (n,) increasing, in [0, 1]; or (n, B) when they differ by item.

    Raises:
        ValueError: when the times do not increase or leave [0, 1]; when called with another number
            of steps than there are.
    """

    times: tuple[Any, ...] = ()

    def __init__(self, times: Any):
        super().__init__()
        rows = check_times(times).tolist()
        per_item = isinstance(rows[0], list)
        object.__setattr__(self, "times", tuple(map(tuple, rows) if per_item else rows))

    def __call__(self, paths: Any, steps: int) -> np.ndarray:
        """The times, when there are steps + 1 of them."""
        if steps + 1 != len(self.times):
            raise ValueError(
                f"the grid has {len(self.times)} times, that is {len(self.times) - 1} steps; "
                f"the sampler asks for {steps}"
            )
        return np.array(self.times, dtype=np.float64)


_TABLE: dict[str, type[Grid]] = {
    grid.__name__: grid
    for grid in (uniform_time, uniform_angle, graded_angle, uniform_log_snr, power, karras)
}


def find(grid: Any) -> Callable[[Any, int], Any]:
    """A grid from its name, its class, times (n,) or (n, B), or any callable (paths, steps).

    Raises:
        ValueError: for an unknown name, with close ones listed, and for times that do not increase.
        TypeError: for anything else.
    """
    if isinstance(grid, str):
        if grid not in _TABLE:
            close = difflib.get_close_matches(grid, _TABLE, n=2) or sorted(_TABLE)
            raise ValueError(f"unknown grid '{grid}': expected {' or '.join(close)}")
        return _TABLE[grid]()
    if isinstance(grid, type) and issubclass(grid, Grid):
        return grid()
    if callable(grid):
        return grid
    if isinstance(grid, (list, tuple, np.ndarray, Tensor)):
        return from_times(grid)
    raise TypeError(f"grid is a {type(grid).__name__}: expected a name, a grid or times")


def _finite_ends(path: Path, start: float, stop: float) -> tuple[float, float, np.ndarray]:
    ends = path.schedule.log_snr(np.array([start, stop]))
    if np.isneginf(ends[0]):
        ends[0] = -_LARGEST
        start = path.schedule.time(-_LARGEST)
    if np.isposinf(ends[1]):
        ends[1] = _LARGEST
        stop = path.schedule.time(_LARGEST)
    return start, stop, ends


def _between(start: float, stop: float, times: np.ndarray) -> np.ndarray:
    """The times with their ends exact."""
    times[0], times[-1] = start, stop
    return times


def _angle_times(path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
    """Times at shares of the angle between the ends."""
    with np.errstate(over="ignore", divide="ignore"):
        ends = np.arctan(np.exp(path.schedule.log_snr(np.array([start, stop]))))
        log_snr = np.log(np.tan(ends[0] + (ends[1] - ends[0]) * share))
    return _between(start, stop, path.schedule.time(log_snr))


def _ratio_times(
    path: Path, start: float, stop: float, share: np.ndarray, exponent: float
) -> np.ndarray:
    """Equal steps in (sigma / alpha)^(1 / exponent)."""
    start, stop, ends = _finite_ends(path, start, stop)
    roots = np.exp(-ends / exponent)
    log_snr = -exponent * np.log(roots[0] + (roots[1] - roots[0]) * share)
    return _between(start, stop, path.schedule.time(log_snr))


def check_times(times: Any, what: str = "the times") -> np.ndarray:
    """Times as float64, (n,) or (n, B) with n >= 2, increasing in [0, 1].

    Raises:
        ValueError: when they are fewer, do not increase or leave [0, 1]; names the entry.
    """
    if isinstance(times, Tensor):
        times = times.detach().cpu().numpy()
    found = np.array(times, dtype=np.float64)
    if found.ndim not in (1, 2) or len(found) < 2 or found.size == 0:
        raise ValueError(
            f"{what}: expected two or more times, (n,) or (n, batch), got shape {found.shape}"
        )
    rows = found.reshape(len(found), -1)
    bad = ~((rows >= 0.0) & (rows <= 1.0))
    if bad.any():
        place, item = np.argwhere(bad)[0]
        raise ValueError(
            f"{what}: entry {place} is {rows[place, item]}, expected times in [0, 1] "
            "(0 is the source, 1 is data)"
        )
    falls = np.diff(rows, axis=0) <= 0.0
    if falls.any():
        place, item = np.argwhere(falls)[0]
        raise ValueError(
            f"{what} must increase strictly: entry {place} is {rows[place, item]:.6g} and entry "
            f"{place + 1} is {rows[place + 1, item]:.6g}; time runs from the source, 0, to the "
            "data, 1, so literature that counts down needs t = 1 - t'"
        )
    return found


def _positive(name: str, value: float) -> None:
    if not 0.0 < value < np.inf:
        raise ValueError(f"{name} must be positive and finite, got {value}")
