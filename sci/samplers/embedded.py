r"""Steps of embedded Runge-Kutta pairs, one step size an item; the theory is in
`sci.samplers.adaptive`.

All items under way take one step together, accepted or not, so that they have had the same number
of evaluations; an item's own number is that at which it arrived.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.paths import like_time
from sci.samplers.coordinates import Coordinate
from sci.samplers.loop import Carry
from sci.spaces import widest

__all__ = ["PAIRS", "Flow", "Run"]

# Fractions of the stages, the rows of the tableau (the last one leads to the result, at which the
# next step begins), and the weights of the error, of the predictions including the last.
PAIRS: dict[int, tuple[list[float], list[list[float]], list[float]]] = {
    3: (
        [0, 1 / 2, 3 / 4, 1],
        [[1 / 2], [0, 3 / 4], [2 / 9, 1 / 3, 4 / 9]],
        [-5 / 72, 1 / 12, 1 / 9, -1 / 8],
    ),
    5: (
        [0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1, 1],
        [
            [1 / 5],
            [3 / 40, 9 / 40],
            [44 / 45, -56 / 15, 32 / 9],
            [19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729],
            [9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656],
            [35 / 384, 0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84],
        ],
        [71 / 57600, 0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40],
    ),
}
_SAFETY, _SHRINK, _GROW = 0.9, 0.2, 5.0
# A step of this share of the interval is as good as none: the item is stuck.
_SHORTEST = 1e-12


class Flow:
    """The flow of a denoiser as dy / dq on the unit interval, each item with its own ends.

    Arguments:
        denoiser: called as `denoiser(state, t, condition, to=kinds)`.
        structure: of the state.
        leaves: their coordinates; the first one leads.
        ends: (2, B) float64, the times of q = 0 and q = 1.
    """

    def __init__(
        self, denoiser: Any, structure: tree.Structure, leaves: list[Coordinate], ends: Tensor
    ):
        self.denoiser = denoiser
        self.structure = structure
        self.leaves = leaves
        self.ends = ends.to(widest(ends.device))
        self._lead = lead = leaves[0]
        low, high = (float(ends.min()), float(ends.max())) if ends.numel() else (0.0, 1.0)
        self._begin = lead.place(self.ends[0])
        self._length = lead.place(self.ends[1]) - self._begin
        self._follows = [leaf is lead or leaf.follows(lead, low, high) for leaf in leaves]
        kinds = [leaf.kind for leaf in leaves]
        self._wanted: Any = kinds[0] if len(set(kinds)) == 1 else structure.unflatten(kinds)

    def time(self, q: Tensor, rows: Tensor) -> Tensor:
        """The times (B,) at q of the items in these rows."""
        first, last = self.ends[0, rows], self.ends[1, rows]
        t = self._lead.time(self._begin[rows] + q * self._length[rows])
        t = torch.maximum(torch.minimum(t, last), first)
        return torch.where(q <= 0.0, first, torch.where(q >= 1.0, last, t))

    def scaled(self, leaves: Sequence[Tensor], t: Tensor, inverse: bool = False) -> list[Tensor]:
        """x = c y, or y = x / c."""
        scales = [like_time(leaf.scale(t), x) for leaf, x in zip(self.leaves, leaves, strict=True)]
        if inverse:
            return [x / scale for x, scale in zip(leaves, scales, strict=True)]
        return [y * scale for y, scale in zip(leaves, scales, strict=True)]

    def slopes(
        self, leaves: Sequence[Tensor], t: Tensor, rows: Tensor, condition: Any
    ) -> list[Tensor]:
        """dy / dq of every leaf at y."""
        state = self.structure.unflatten(self.scaled(leaves, t))
        outputs = tree.leaves(self.denoiser(state, t, condition, to=self._wanted))
        out = []
        for leaf, follows, prediction, y in zip(
            self.leaves, self._follows, outputs, leaves, strict=True
        ):
            rate = self._length[rows]
            if not follows:
                rate = rate * leaf.slope(t) / self._lead.slope(t)
            out.append(prediction.to(y.dtype) * like_time(rate, y))
        return out


class Run:
    """The items under way, and those that have arrived.

    Arguments:
        sampler: the `Adaptive` settings.
        flow: what is integrated.
        names: of the leaves.
        leaves: of the state at the start.
        condition: a tree with a batch axis, or None.
        noise: the items' streams; only their numbers are used, in errors and carries.
        mask: (B, N) bool or None.
    """

    def __init__(
        self,
        sampler: Any,
        flow: Flow,
        names: list[str],
        leaves: list[Tensor],
        condition: Any,
        noise: Any,
        mask: Tensor | None,
    ):
        self.sampler, self.flow, self.names = sampler, flow, names
        self.whole, self.noise = (condition, mask), noise
        batch, device = len(leaves[0]), leaves[0].device
        self.rows = torch.arange(batch, device=device)
        self.q = torch.zeros(batch, dtype=widest(device), device=device)
        self.y = flow.scaled(leaves, flow.ends[0], inverse=True)
        self.condition, self.mask = self.whole
        self.length: Tensor | None = None
        self.slopes: list[Tensor] | None = None
        self.retried = torch.zeros(batch, dtype=torch.bool, device=device)
        self.count, self.rounds = 0, 0
        self.evaluations = np.zeros(batch, dtype=np.int64)
        self.rejections = np.zeros(batch, dtype=np.int64)
        self._clock: list[Tensor] = []
        # Begins with nothing, lest a batch without items end with no tensor at all.
        self._arrived = [(self.rows[:0], [y[:0] for y in self.y])]

    def advance(self) -> int:
        """One step of every item under way; returns how many arrived."""
        fractions, table, weights = PAIRS[self.sampler.order]
        self._afford(len(table) + (self.slopes is None) + (self.length is None))
        if self.slopes is None:
            self.slopes = self._evaluate(self.y, self.q)
            self._check_slopes(self.slopes)
        if self.length is None:
            self.length = self._first_length(self.slopes)
        rest = 1.0 - self.q
        last = self.length > 0.999 * rest
        step = torch.where(last, rest, self.length)
        stages, points = [self.slopes], self.y
        for share, row in zip(fractions[1:], table, strict=True):
            points = self._moved(self.y, stages, row, step)
            q = self.q + share * step
            if share == 1:
                q = torch.where(last, torch.ones_like(q), q)
            stages.append(self._evaluate(points, q))
        zero = [torch.zeros_like(y) for y in self.y]
        errors = self._moved(zero, stages, weights, step)
        parts = self._sizes(errors, self.y, points)
        size = _root(parts)
        accepted = size <= 1.0
        change = (_SAFETY * size ** (-1.0 / self.sampler.order)).nan_to_num(_SHRINK)
        change = change.clamp(_SHRINK, _GROW)
        change = torch.where(self.retried | ~accepted, change.clamp(max=1.0), change)
        self.q = torch.where(accepted, q, self.q)
        self.y = _chosen(accepted, points, self.y)
        self.slopes = _chosen(accepted, stages[-1], self.slopes)
        self.length, self.retried = step * change, ~accepted
        self.rounds += 1
        stuck = ~accepted & (self.length < _SHORTEST)
        arrived = accepted & (q >= 1.0)
        seen = torch.stack([accepted, stuck, arrived]).cpu().numpy()
        if seen[1].any():
            self._refuse(int(seen[1].argmax()), parts)
        self.rejections[self.rows.cpu().numpy()[~seen[0]]] += 1
        if seen[2].any():
            self._leave(arrived)
        return int(seen[2].sum())

    def heed(self, callback: Callable[[Carry], Carry | None]) -> None:
        """Show the carry to a callback, and go on from the state that it returns."""
        t = self.flow.time(self.q, self.rows)
        noise = self.noise.take(self.rows)
        carry = Carry(
            tuple(self.flow.scaled(self.y, t)),
            self.flow.structure,
            noise,
            self.condition,
            self.rounds,
            self.count,
            rows=self.rows,
        )
        changed = callback(carry)
        if changed is not None and changed.leaves is not carry.leaves:
            self.y = self.flow.scaled(changed.leaves, t, inverse=True)
            self.slopes = None

    def result(self) -> tuple[Any, np.ndarray]:
        """The state of all items in their order, and the times of the evaluations."""
        order = torch.cat([rows for rows, _ in self._arrived]).argsort()
        parts = zip(*(leaves for _, leaves in self._arrived), strict=True)
        leaves = [torch.cat(part)[order] for part in parts]
        stop = self.flow.ends[1]
        state = self.flow.structure.unflatten(self.flow.scaled(leaves, stop))
        if self.sampler.final is not None:
            outputs = tree.leaves(self.flow.denoiser(state, stop, self.whole[0], to="data"))
            state = self.flow.structure.unflatten(
                [out.to(x.dtype) for out, x in zip(outputs, leaves, strict=True)]
            )
            self._clock.append(stop)
            self.evaluations += 1
        clock = torch.stack(self._clock) if self._clock else self.flow.ends[:0]
        return state, clock.cpu().numpy()

    def _evaluate(self, leaves: list[Tensor], q: Tensor) -> list[Tensor]:
        t = self.flow.time(q, self.rows)
        clock = self.flow.ends[0].new_full((len(self.evaluations),), float("nan"))
        self._clock.append(clock.index_copy(0, self.rows, t))
        self.count += 1
        return self.flow.slopes(leaves, t, self.rows, self.condition)

    def _moved(
        self, leaves: list[Tensor], stages: list[list[Tensor]], row: list[float], step: Tensor
    ) -> list[Tensor]:
        """y + h sum_j a_j k_j."""
        out = []
        for place, y in enumerate(leaves):
            total = sum(
                weight * stage[place] for weight, stage in zip(row, stages, strict=True) if weight
            )
            out.append(y + like_time(step, y) * total)
        return out

    def _sizes(
        self, errors: list[Tensor], before: list[Tensor], after: list[Tensor]
    ) -> list[Tensor]:
        """Each leaf's part, (B,) float64, of the mean square of errors in units of tolerance."""
        parts, count = [], torch.zeros_like(self.q)
        for leaf, error, y, new in zip(self.flow.leaves, errors, before, after, strict=True):
            bound = self.sampler.atol + self.sampler.rtol * torch.maximum(y.abs(), new.abs())
            ratio = (error / bound).detach()
            space = leaf.path.space
            parts.append(space.inner(ratio, ratio, self.mask).to(self.q))
            count = count + space.dimension(ratio, self.mask)
        return [part / count.clamp(min=1.0) for part in parts]

    def _first_length(self, slopes: list[Tensor]) -> Tensor:
        """A first step from the sizes of y, y' and an estimate of y'', after Hairer et al."""
        zero = [torch.zeros_like(y) for y in self.y]
        value = _root(self._sizes(self.y, self.y, zero))
        rate = _root(self._sizes(slopes, self.y, zero))
        tiny = (value < 1e-5) | (rate < 1e-5)
        probe = torch.where(tiny, 1e-6, 0.01 * value / rate).clamp(max=1.0)
        later = self._evaluate(self._moved(self.y, [slopes], [1.0], probe), self.q + probe)
        bends = [new - old for new, old in zip(later, slopes, strict=True)]
        bend = _root(self._sizes(bends, self.y, zero)) / probe
        most = torch.maximum(rate, bend)
        length = (0.01 / most.clamp(min=1e-15)) ** (1.0 / self.sampler.order)
        return torch.minimum(100.0 * probe, length).nan_to_num(1e-6).clamp(max=1.0)

    def _leave(self, arrived: Tensor) -> None:
        """Put items aside that have arrived."""
        done = arrived.nonzero().squeeze(1)
        self._arrived.append((self.rows[done], [y[done] for y in self.y]))
        self.evaluations[self.rows[done].cpu().numpy()] = self.count
        keep = (~arrived).nonzero().squeeze(1)
        self.rows, self.q, self.retried = self.rows[keep], self.q[keep], self.retried[keep]
        self.y = [y[keep] for y in self.y]
        self.slopes = None if self.slopes is None else [k[keep] for k in self.slopes]
        self.length = None if self.length is None else self.length[keep]
        condition, mask = self.whole
        self.condition = None if condition is None else tree.index(condition, self.rows)
        self.mask = None if mask is None else mask[self.rows]

    def _afford(self, more: int) -> None:
        """Refuse a round for which there are not enough evaluations left."""
        if self.count + more + (self.sampler.final is not None) > self.sampler.steps:
            row = int(self.q.argmin())
            raise RuntimeError(
                f"{self._where(row)} after {self.count} evaluations, and {len(self.rows)} of "
                f"{len(self.evaluations)} items have not arrived: raise steps="
                f"{self.sampler.steps}, or loosen rtol={self.sampler.rtol:g} and "
                f"atol={self.sampler.atol:g}"
            )

    def _check_slopes(self, slopes: list[Tensor]) -> None:
        for name, y, slope in zip(self.names, self.y, slopes, strict=True):
            bad = ~(torch.isfinite(slope) & torch.isfinite(y)).flatten(1).all(1)
            if bool(bad.any()):
                row = int(bad.nonzero()[0, 0])
                raise FloatingPointError(
                    f"{self._where(row)}, where leaf '{name}' or its prediction is not finite: "
                    "look at the start and at the network there"
                )

    def _refuse(self, row: int, parts: list[Tensor]) -> None:
        """Raise for an item whose steps have become too short."""
        sizes = [float(part[row]) for part in parts]
        worst = max(range(len(sizes)), key=lambda place: np.nan_to_num(sizes[place], nan=np.inf))
        finite = bool(np.isfinite(sizes[worst]))
        raise FloatingPointError(
            f"{self._where(row)}: leaf '{self.names[worst]}' "
            + (
                "is not smooth enough there for any step"
                if finite
                else "has predictions that are not finite just after it"
            )
            + "; look at the network there, stop earlier, or use a sampler of fixed steps"
        )

    def _where(self, row: int) -> str:
        number = int(self.rows[row])
        item = int(self.noise.items[number]) if hasattr(self.noise, "items") else number
        t = float(self.flow.time(self.q, self.rows)[row])
        return f"item {item} (row {number}) is at t = {t:.6g}"


def _root(parts: list[Tensor]) -> Tensor:
    """The root of a sum over leaves, (B,)."""
    return torch.stack(parts).sum(0).sqrt()


def _chosen(accepted: Tensor, new: list[Tensor], old: list[Tensor]) -> list[Tensor]:
    return [
        torch.where(accepted.view((-1,) + (1,) * (y.dim() - 1)), y, kept)
        for y, kept in zip(new, old, strict=True)
    ]
