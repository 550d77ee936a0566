"""Fine trajectories, and how far samplers end from them: what a search is judged by.

A `Bench` holds batches of items with their noise, runs a fine sampler over them once, and then
measures any sampler from the same noise against it, at the end or at any step.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.noise import Noise
from sci.paths import Path
from sci.samplers import Multistep, MultistepPlan, grids
from sci.samplers.loop import Carry, Plan

if TYPE_CHECKING:
    from sci.model import Problem

__all__ = ["FIRST_ITEM", "Batch", "Bench", "batches"]

# Items are numbered from here on, where no generation comes: a fit must not be judged by its own.
FIRST_ITEM = 1 << 62

# Tried in turn for the fine trajectory, until one suits all leaves.
_FINE: tuple[dict[str, Any], ...] = (
    {"kind": "angular", "variable": "S", "order": 3, "corrector": 3, "corrected_start": True},
    {"kind": "data", "order": 2, "rule": "half"},
    {"kind": "velocity", "variable": "t", "order": 2},
)
_TABLE = 4001


@dataclasses.dataclass(frozen=True)
class Batch:
    """Some items of a problem, at their start.

    Arguments:
        denoiser: what is sampled.
        condition: encoded once.
        noise: the items' streams.
        start: the state at the first time.
        paths: the tree of paths of the state.
        mask: (B, N) bool, or None.
        sampler: what the problem says.
    """

    denoiser: Any
    condition: Any
    noise: Noise
    start: Any
    paths: Any
    mask: Tensor | None
    sampler: Any

    @property
    def items(self) -> int:
        """How many there are."""
        return len(self.noise)

    def take(self, rows: Tensor) -> Batch:
        """Some of the items."""
        held = self.condition
        return dataclasses.replace(
            self,
            condition=None if held is None else tree.index(held, rows),
            noise=self.noise.take(rows),
            start=tree.index(self.start, rows),
            mask=None if self.mask is None else self.mask[rows],
        )


def batches(problem: Problem | Sequence[Problem], seed: int) -> tuple[list[Batch], list[Batch]]:
    """The batches of a problem, and those that are held out.

    Arguments:
        problem: one, which is split in the middle, or several, of which the later half is held out.
        seed: of the noise; items are numbered from `FIRST_ITEM` on.

    Raises:
        TypeError: when a leaf is discrete: then there is no trajectory to come close to.
        ValueError: when there are fewer than two items to fit or to judge.
    """
    problems = list(problem) if isinstance(problem, Sequence) else [problem]
    found, first = [], FIRST_ITEM
    for each in problems:
        leaves, structure = tree.flatten(each.like)
        size, denoiser = tree.batch_size(each.like), each.denoiser
        noise = Noise(seed, range(first, first + size), leaves[0].device)
        first += size
        encode = getattr(denoiser, "encode", None)
        condition = each.condition if encode is None else encode(each.condition)
        mask_of = getattr(denoiser, "mask_of", None)
        mask = None if mask_of is None else mask_of(condition)
        paths = tree.spread(denoiser.paths, structure, Path, "the denoiser's tree of paths")
        start = []
        for path, name, leaf in zip(paths, structure.names, leaves, strict=True):
            if not leaf.is_floating_point():
                raise TypeError(
                    f"leaf '{name or 'state'}' is discrete: its samples are drawn anew at every "
                    "step, so that no sampler can be fitted to a trajectory"
                )
            start.append(path.source(noise, name or "state", leaf, mask))
        unflatten = structure.unflatten
        found.append(
            Batch(
                denoiser, condition, noise, unflatten(start), unflatten(paths), mask, each.sampler
            )
        )
    if len(found) == 1:
        rows = torch.arange(found[0].items)
        half = len(rows) // 2
        fitted, held = [found[0].take(rows[:half])], [found[0].take(rows[half:])]
    else:
        half = len(found) // 2
        fitted, held = found[:half], found[half:]
    if min(sum(batch.items for batch in part) for part in (fitted, held)) < 2:
        items = sum(batch.items for batch in found)
        raise ValueError(
            f"the problem has {items} items; expected at least 4, half of them held out"
        )
    return fitted, held


class Bench:
    """Batches, and the fine trajectories from the same noise.

    Arguments:
        batches: at least one.
        standing: the sampler whose span, last state and settings by leaf are kept.
        times: of its grid, (n,).
        teacher: evaluations of the fine trajectory.
        like: another bench, whose fine sampler and scales of errors are taken; it keeps no
            trajectories, so that there is no `walk`.

    Raises:
        ValueError: when no fine sampler suits all leaves.
    """

    def __init__(
        self,
        batches: list[Batch],
        standing: Multistep,
        times: np.ndarray,
        teacher: int,
        like: Bench | None = None,
    ):
        self.batches, self.paths = batches, batches[0].paths
        self._leaf_paths: list[Path] = tree.flatten(self.paths, Path)[0]
        self.items = sum(batch.items for batch in batches)
        self.span = float(times[0]), float(times[-1])
        self._clock = np.linspace(*self.span, _TABLE)
        self._places = _coordinate(self._leaf_paths, self._clock)
        if like is None:
            self.fine = tuple(self._fine(standing, times, n) for n in (teacher, teacher // 2))
        else:
            self.fine = like.fine
        self._ends, self._states = _run(batches, self.fine[0], keep=like is None)
        coarse = _run(batches, self.fine[1])[0]
        self._times = self.fine[0].grid
        self.scales: list[float] = self._spreads() if like is None else like.scales
        missed = self._differences(coarse, self._ends)
        if not np.isfinite(missed).all():
            raise FloatingPointError(
                "the fine trajectory is not finite: look at the network, or sample with "
                "sci.samplers.default to learn at which item and time"
            )
        self.teacher_error = float(np.sqrt((missed**2).sum(1).mean()))

    def place(self, times: np.ndarray) -> np.ndarray:
        """The coordinate of times, from 0 to 1 over the span: the leaves' mean angle
        atan(alpha / sigma) and a little of the time itself, each scaled to 1."""
        return np.interp(times, self._clock, self._places)

    def time(self, places: np.ndarray) -> np.ndarray:
        """The inverse of `place`; exact at both ends."""
        return np.interp(places, self._places, self._clock)

    def residuals(self, sampler: Multistep) -> np.ndarray | None:
        """(items, m) differences from the fine trajectory's end, whose squares sum to the items'
        errors; None where the sampler does not exist or runs into values that are not finite."""
        try:
            plan = sampler.plan(self.paths)
        except ValueError:
            return None
        found = self._differences(_run(self.batches, plan)[0], self._ends)
        return found if np.isfinite(found).all() else None

    def walk(self, times: np.ndarray) -> BenchWalk:
        """Along the fine trajectory at some times."""
        return BenchWalk(self, times)

    def at(self, time: float) -> list[list[Tensor]]:
        """The leaves of the fine trajectory at a time, by batch."""
        place = int(np.clip(np.searchsorted(self._times, time), 1, len(self._times) - 1))
        low, high = self._times[place - 1], self._times[place]
        share = float((time - low) / (high - low))
        return [
            [
                path.project(torch.lerp(before, after, share), batch.mask)
                for path, before, after in zip(
                    self._leaf_paths, states[place - 1], states[place], strict=True
                )
            ]
            for batch, states in zip(self.batches, self._states, strict=True)
        ]

    def _fine(self, standing: Multistep, times: np.ndarray, steps: int) -> MultistepPlan:
        """The plan of a fine sampler; half of its times follow the coordinate, half the standing grid."""
        shares = np.linspace(0.0, 1.0, len(times))
        law = 0.5 * self._places + 0.5 * np.interp(self._clock, times, shares)
        count = steps - (standing.final is not None) + 1
        grid = np.interp(np.linspace(0.0, 1.0, count), law, self._clock)
        for settings in _FINE:
            sampler = Multistep(
                steps=steps,
                grid=grids.from_times(grid.tolist()),
                final=standing.final,
                leaves=standing.leaves,
                **settings,
            )
            try:
                return sampler.plan(self.paths)
            except ValueError as error:
                last = error
        raise ValueError(f"no fine trajectory suits all leaves: {last}") from last

    def _spreads(self) -> list[float]:
        """E |y_i - y_j|^2 / (2 n) of each leaf, over neighbouring items of a batch."""
        out = []
        for place, path in enumerate(self._leaf_paths):
            total, count = 0.0, 0.0
            for batch, ends in zip(self.batches, self._ends, strict=True):
                leaf, mask = ends[place], batch.mask
                both = None if mask is None else mask & mask.roll(1, 0)
                apart = path.space.log(leaf, leaf.roll(1, 0))
                total += float(path.space.inner(apart, apart, both).sum())
                count += 2.0 * float(path.space.dimension(leaf, both).sum())
            out.append(total / count if total > 0 and count > 0 else 1.0)
        return out

    def _differences(self, found: list[list[Tensor]], wanted: list[list[Tensor]]) -> np.ndarray:
        """(items, m) vectors whose squares sum to the items' errors."""
        parts = []
        for batch, leaves, others in zip(self.batches, found, wanted, strict=True):
            columns = []
            for path, scale, x, y in zip(
                self._leaf_paths, self.scales, leaves, others, strict=True
            ):
                apart = path.space.tangent(y, path.space.log(y, x), batch.mask)
                size = path.space.dimension(y, batch.mask).clamp(min=1)
                error = path.space.inner(apart, apart, batch.mask) / (size * scale)
                flat = apart.flatten(1).cpu().double().numpy()
                total = np.maximum((flat**2).sum(1), 1e-300)
                columns.append(flat * np.sqrt(error.cpu().double().numpy() / total)[:, None])
            parts.append(np.concatenate(columns, 1) / np.sqrt(len(columns)))
        width = max(part.shape[1] for part in parts)
        return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]))) for p in parts])


class BenchWalk:
    """A run whose next step can be tried with several samplers at no evaluation.

    Arguments:
        bench: whose batches run.
        times: of all samplers on this walk, (n,).
    """

    def __init__(self, bench: Bench, times: np.ndarray):
        self._bench, self._times, self._step = bench, times, 0
        self._carries: list[Carry] = []
        self._calls = [_Remembering(batch.denoiser) for batch in bench.batches]

    def trial(self, sampler: Multistep) -> np.ndarray:
        """The differences from the fine trajectory after the next step."""
        found = [list(carry.leaves) for carry in self._moved(sampler)]
        return self._bench._differences(found, self._bench.at(self._times[self._step + 1]))

    def go(self, sampler: Multistep) -> None:
        """Takes the next step."""
        self._carries = self._moved(sampler)
        self._step += 1
        for call in self._calls:
            call.outputs = None

    def _moved(self, sampler: Multistep) -> list[Carry]:
        plan = sampler.plan(self._bench.paths)
        if not self._carries:
            self._carries = [
                plan.init(batch.start, batch.noise, batch.condition)
                for batch in self._bench.batches
            ]
        return [
            plan.step(call, carry) for call, carry in zip(self._calls, self._carries, strict=True)
        ]


class _Remembering:
    """A denoiser that is called once and then repeats itself."""

    def __init__(self, denoiser: Any):
        self._denoiser, self.outputs = denoiser, None

    def __call__(self, state: Any, t: Any, condition: Any = None, to: Any = "data") -> Any:
        if self.outputs is None:
            self.outputs = self._denoiser(state, t, condition, to=to)
        return self.outputs

    def __getattr__(self, name: str) -> Any:
        return getattr(self._denoiser, name)


def _run(
    batches: list[Batch], plan: Plan, keep: bool = False
) -> tuple[list[list[Tensor]], list[list[tuple[Tensor, ...]]]]:
    """The last leaves by batch, and where they are kept those at all times of the grid."""
    ends, kept = [], []
    for batch in batches:
        carry = plan.init(batch.start, batch.noise, batch.condition)
        states = [carry.leaves]
        while carry.step < plan.steps:
            carry = plan.step(batch.denoiser, carry)
            if keep:
                states.append(carry.leaves)
        ends.append(list(carry.leaves))
        kept.append(states)
    return ends, kept


def _coordinate(paths: list[Path], clock: np.ndarray) -> np.ndarray:
    """From 0 to 1, strictly increasing along the clock."""
    share = (clock - clock[0]) / (clock[-1] - clock[0])
    total = np.zeros_like(clock)
    for path in paths:
        with np.errstate(over="ignore", divide="ignore"):
            angle = np.arctan(np.exp(path.schedule.log_snr(clock)))
        total += (angle - angle[0]) / max(angle[-1] - angle[0], 1e-12)
    return 0.9 * total / len(paths) + 0.1 * share
