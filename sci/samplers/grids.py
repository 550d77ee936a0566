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

from sci import tree
from sci.paths import Path

__all__ = [
    "Grid",
    "find",
    "from_times",
    "karras",
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
        with np.errstate(over="ignore", divide="ignore"):
            ends = np.arctan(np.exp(path.schedule.log_snr(np.array([start, stop]))))
            log_snr = np.log(np.tan(ends[0] + (ends[1] - ends[0]) * share))
        return _between(start, stop, path.schedule.time(log_snr))


class uniform_log_snr(Grid):
    """Equal steps in lambda = log(alpha / sigma); infinite ends are replaced by -5 and 5."""

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        start, stop, ends = _finite_ends(path, start, stop)
        return _between(start, stop, path.schedule.time(ends[0] + (ends[1] - ends[0]) * share))


@dataclasses.dataclass(frozen=True)
class karras(Grid):
    """Equal steps in (sigma / alpha)^(1 / rho); infinite ends as in `uniform_log_snr`.

    Arguments:
        start: the first time.
        stop: the last time.
        rho: the exponent, > 0; 7 in the paper.

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    """

    rho: float = 7.0

    def _times(self, path: Path, start: float, stop: float, share: np.ndarray) -> np.ndarray:
        start, stop, ends = _finite_ends(path, start, stop)
        roots = np.exp(-ends / self.rho)
        log_snr = -self.rho * np.log(roots[0] + (roots[1] - roots[0]) * share)
        return _between(start, stop, path.schedule.time(log_snr))


@dataclasses.dataclass(frozen=True)
class from_times(Grid):
    """Given times, whatever the path.

    Arguments:
        times: increasing, in [0, 1].

    Raises:
        ValueError: when called with another number of steps than there are.
    """

    times: Sequence[float] = ()

    def __init__(self, times: Sequence[float]):
        object.__setattr__(self, "start", None)
        object.__setattr__(self, "stop", None)
        object.__setattr__(self, "times", tuple(float(t) for t in times))

    def __call__(self, paths: Any, steps: int) -> np.ndarray:
        """The times, when there are steps + 1 of them."""
        if steps + 1 != len(self.times):
            raise ValueError(
                f"the grid has {len(self.times)} times, that is {len(self.times) - 1} steps; "
                f"the sampler asks for {steps}"
            )
        return np.array(self.times, dtype=np.float64)


_TABLE: dict[str, type[Grid]] = {
    grid.__name__: grid for grid in (uniform_time, uniform_angle, uniform_log_snr, karras)
}


def find(grid: Any) -> Callable[[Any, int], Any]:
    """A grid from its name, its class, a list of times, or any callable (paths, steps).

    Raises:
        ValueError: for an unknown name; lists close ones.
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
    if isinstance(grid, (list, tuple, np.ndarray)):
        return from_times([float(t) for t in grid])
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
