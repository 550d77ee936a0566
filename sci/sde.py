"""Stochastic differential equations on physical time, by Euler-Maruyama.

    dx = f(x, time) dtime + g(x, time) dW      (Ito, g diagonal),
    x_(k+1) = x_k + f h + g (W(time_k + h) - W(time_k)).

States are trees, the grid is shared or one for each series, and gradients flow through. What
drives the equation is an object with `increment`: `Steps` draws one increment a step from the
items' streams; `Brownian` holds a whole path addressed by time, so that a finer grid sees the same
path and the error of a step size can be seen; any other driver (fractional noise) needs that one
method.

Strong order 1/2 in general, 1 when g does not depend on x.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.noise import Noise
from sci.paths import Path, like_time
from sci.spaces import Euclidean, Space

__all__ = ["Brownian", "Driver", "Steps", "forward", "simulate"]

# Draws of Brownian paths, apart from those of samplers.
_BRIDGE = 1 << 16


class Driver(Protocol):
    """What drives an equation."""

    def increment(self, leaf: str, step: int, start: Tensor, stop: Tensor, like: Tensor) -> Tensor:
        """The driver's increment from `start` to `stop`, each (B,), shaped like `like`."""


class Steps:
    """Independent increments, one a step: sqrt(stop - start) z.

    Arguments:
        noise: the items' streams.
        spaces: where the leaves live, by name; Euclidean when None.
        mask: (B, N) bool or None.
    """

    def __init__(
        self, noise: Any, spaces: dict[str, Space] | None = None, mask: Tensor | None = None
    ):
        self.noise, self.spaces, self.mask = noise, spaces or {}, mask

    def increment(self, leaf: str, step: int, start: Tensor, stop: Tensor, like: Tensor) -> Tensor:
        """sqrt(stop - start) times standard noise of the leaf's space."""
        space = self.spaces.get(leaf, _EUCLIDEAN)
        draw = self.noise.draw(space, leaf, step, like, self.mask)
        return like_time((stop - start).sqrt(), like) * draw


class Brownian:
    """Brownian paths addressed by time: the same whatever the grid that visits them.

    On [start, stop], with u the share of the interval and hats of height 1,

        W(u) = sqrt(stop - start) (u Z_0 + sum_l 2^(-l/2 - 1) hat(2^l u - n_l) Z_(l, n_l)),

    the Levy-Ciesielski construction, exact at multiples of 2^-depth; times are rounded to those.

    Arguments:
        noise: the items' streams.
        start: where W = 0.
        stop: > start.
        depth: levels, 1 to 30; visited times must differ by more than (stop - start) 2^-depth.

    Raises:
        ValueError: for an empty interval or a depth out of range.

    References:
        | Processus stochastiques et mouvement brownien (Levy, 1948)
    """

    def __init__(self, noise: Noise, start: float, stop: float, depth: int = 20):
        if not start < stop:
            raise ValueError(f"expected start < stop, got {start} and {stop}")
        if not 1 <= depth <= 30:
            raise ValueError(f"depth must be from 1 to 30, got {depth}")
        self.noise, self.start, self.stop, self.depth = noise, float(start), float(stop), depth
        self._last: dict[str, tuple[int, Tensor]] = {}

    def increment(self, leaf: str, step: int, start: Tensor, stop: Tensor, like: Tensor) -> Tensor:
        """W(stop) - W(start) of every item.

        Raises:
            ValueError: when times differ by item, lie outside, or fall on the same tick.
        """
        ticks = []
        for time in (start, stop):
            if bool((time != time[0]).any()):
                raise ValueError("Brownian paths need one grid for all series; use Steps")
            ticks.append(self._tick(float(time[0])))
        if ticks[0] == ticks[1]:
            raise ValueError(
                f"the times {start[0]} and {stop[0]} need a Brownian path of more depth"
            )
        kept = self._last.get(leaf)
        first = (
            kept[1] if kept is not None and kept[0] == ticks[0] else self._at(leaf, ticks[0], like)
        )
        last = self._at(leaf, ticks[1], like)
        self._last[leaf] = ticks[1], last
        return (last - first).to(like).view(like.shape)

    def _tick(self, time: float) -> int:
        share = (time - self.start) / (self.stop - self.start)
        if not -1e-9 <= share <= 1 + 1e-9:
            raise ValueError(f"time {time} is outside [{self.start}, {self.stop}]")
        return round(share * (1 << self.depth))

    def _at(self, leaf: str, tick: int, like: Tensor) -> Tensor:
        """W at a tick, (B, elements) float64."""
        share = tick / (1 << self.depth)
        nodes, heights = [0], [share]
        for level in range(self.depth):
            place = share * (1 << level)
            node = min(int(place), (1 << level) - 1)
            height = 1.0 - abs(2.0 * (place - node) - 1.0)
            if height:
                nodes.append((1 << level) + node)
                heights.append(2.0 ** (-0.5 * level - 1.0) * height)
        count = like[0].numel()
        normals = self.noise.normals(count, leaf, torch.tensor(nodes), _BRIDGE).double()
        weights = torch.tensor(heights, dtype=torch.float64, device=normals.device)
        return (weights[:, None, None] * normals).sum(0) * (self.stop - self.start) ** 0.5


def simulate(
    drift: Callable[[Any, Tensor], Any],
    diffusion: Callable[[Any, Tensor], Any] | float | None,
    start: Any,
    times: Any,
    noise: Any = None,
    substeps: int = 1,
) -> Any:
    """Integrate an equation and keep the state at every time of the grid.

    Arguments:
        drift: f(state, time) with time (B,); a tree like the state.
        diffusion: g(state, time), a tree like the state, or broadcasting with it; a number; or None
            for an ordinary equation.
        start: the state at the first time, each leaf (B, ...).
        times: (T,) or (B, T), increasing; physical units.
        noise: a `Noise` or a `Driver`; needed with a diffusion.
        substeps: Euler steps between two times of the grid.

    Returns:
        The tree of trajectories, each leaf (B, T, ...).

    Raises:
        ValueError: for a grid that does not increase, a missing driver, or no substeps.
        FloatingPointError: when a trajectory leaves the finite numbers; names item, time and leaf.

    Example:
        >>> import torch
        >>> path = simulate(lambda x, time: -x, None, torch.ones(1, 1), [0.0, 0.5, 1.0])
        >>> path[0, :, 0]
        tensor([1.0000, 0.5000, 0.2500])

    References:
        | Numerical solution of stochastic differential equations (Kloeden, Platen, 1992)
    """
    leaves, structure = tree.flatten(start)
    names = [name or "state" for name in structure.names]
    batch = tree.batch_size(start)
    grid = _grid(times, batch, leaves[0].device)
    if substeps < 1:
        raise ValueError(f"substeps must be at least 1, got {substeps}")
    if diffusion is not None and noise is None:
        raise ValueError("an equation with a diffusion needs `noise`: a Noise or a Driver")
    driver: Any = noise if noise is None or hasattr(noise, "increment") else Steps(noise)
    kept = [[leaf] for leaf in leaves]
    for frame in range(grid.shape[1] - 1):
        length = (grid[:, frame + 1] - grid[:, frame]) / substeps
        for sub in range(substeps):
            now = grid[:, frame] + sub * length
            after = now + length if sub + 1 < substeps else grid[:, frame + 1]
            state, clock = structure.unflatten(leaves), now.to(leaves[0].dtype)
            slopes = tree.leaves(drift(state, clock))
            spreads = _spreads(diffusion, state, clock, len(leaves))
            moved = []
            for name, x, slope, spread in zip(names, leaves, slopes, spreads, strict=True):
                out = x + like_time(length, x) * slope
                if spread is not None:
                    step = frame * substeps + sub
                    out = out + spread * driver.increment(name, step, now, after, x)
                moved.append(out)
            leaves = moved
        for series, leaf in zip(kept, leaves, strict=True):
            series.append(leaf)
    found = [torch.stack(series, dim=1) for series in kept]
    for name, leaf in zip(names, found, strict=True):
        _check_finite(name, leaf, grid, noise)
    return structure.unflatten(found)


def forward(path: Path) -> tuple[Callable[[Tensor, Tensor], Tensor], Callable[..., Tensor]]:
    """The noising equation of a path, on the clock s = 1 - t that runs from data to noise:

        f = x d(log alpha)/ds,    g^2 = 2 sigma^2 d(lambda)/dt.

    Arguments:
        path: a linear path with a score.

    Returns:
        Drift and diffusion for `simulate`, of one leaf.

    Raises:
        ValueError: when the path has no score.
    """
    if "score" not in path.heads or "data" not in path.heads:
        raise ValueError(f"{path!r} has no noising equation: it is not a Gaussian path")
    schedule = path.schedule

    def drift(x: Tensor, time: Tensor) -> Tensor:
        t = 1.0 - time.double()
        return -like_time(schedule.alpha_dot(t) / schedule.alpha(t), x) * x

    def diffusion(x: Tensor, time: Tensor) -> Tensor:
        t = 1.0 - time.double()
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        square = 2.0 * sigma * (schedule.alpha_dot(t) / alpha * sigma - schedule.sigma_dot(t))
        return like_time(square.sqrt(), x)

    return drift, diffusion


_EUCLIDEAN = Euclidean()


def _grid(times: Any, batch: int, device: torch.device) -> Tensor:
    """(B, T) float64, checked."""
    grid = torch.as_tensor(
        np.asarray(times, dtype=np.float64) if not isinstance(times, Tensor) else times
    )
    grid = grid.double().to(device)
    if grid.dim() == 1:
        grid = grid.expand(batch, -1)
    if grid.dim() != 2 or grid.shape[0] != batch or grid.shape[1] < 2:
        raise ValueError(
            f"times have shape {tuple(grid.shape)}: expected (T,) or ({batch}, T) with T >= 2"
        )
    if not bool(torch.isfinite(grid).all()) or bool((grid.diff(dim=1) <= 0).any()):
        raise ValueError("times must be finite and increase strictly along each series")
    return grid


def _spreads(diffusion: Any, state: Any, clock: Tensor, count: int) -> list[Any]:
    if diffusion is None or not callable(diffusion):
        return [diffusion] * count
    return tree.leaves(diffusion(state, clock))


def _check_finite(name: str, series: Tensor, grid: Tensor, noise: Any) -> None:
    good = torch.isfinite(series.detach()).reshape(*series.shape[:2], -1).all(2)
    if bool(good.all()):
        return
    frame = int((~good).any(0).nonzero()[0])
    row = int((~good)[:, frame].nonzero()[0])
    items = getattr(noise, "items", None)
    item = row if items is None else int(items[row])
    raise FloatingPointError(
        f"leaf '{name}' of item {item} (row {row}) is not finite at time "
        f"{float(grid[row, frame]):.6g} (frame {frame}): use smaller steps (substeps=) or look at "
        "the drift there"
    )
