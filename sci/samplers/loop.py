"""The loop that every sampler shares: plan, init, step, carry.

    plan = sampler.plan(paths)                     coefficients, once, in float64
    carry = plan.init(state, noise, condition)     what is carried from step to step
    carry = plan.step(denoiser, carry)             pure: the old carry stays as it was
    samples = sampler(denoiser, like=data)         only the loop over these

Whoever steers (resampling particles, editing the state, stopping early) works on the carry.
Nothing is synchronised per step: a value that is not finite spreads through every later state, so
one look at the end finds it, and the run is then replayed to say where it arose.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.noise import Noise
from sci.paths import Path
from sci.samplers.values import of_items
from sci.samplers.watch import blame, finite, progress_bar, recomputing
from sci.spaces import widest

__all__ = ["Carry", "Plan", "Sampler", "Samples"]


@dataclasses.dataclass(frozen=True)
class Samples:
    """What a sampler returns.

    Arguments:
        state: the tree of samples.
        nfe: network evaluations an item.
        times: where the network was evaluated, (steps,) float64, or (steps, B). Unless the sampler
            ends with a data prediction, the state is at the end of the grid, one step further.
        sampler: what made them.
    """

    state: Any
    nfe: int
    times: np.ndarray
    sampler: Any


@dataclasses.dataclass(frozen=True, slots=True)
class Carry:
    """Everything a sampler takes from one step to the next.

    Arguments:
        leaves: the state's leaves, each (B, ...).
        structure: puts the leaves back into the state.
        noise: the items' streams.
        condition: the tree that the network sees, or None.
        step: how many steps were taken.
        nfe: network evaluations so far.
        history: for each leaf its past predictions, the newest first; then the states that they
            were made at, where kinds are mixed.
        base: for each leaf the state at the start of the running transition, in methods of several
            stages; else empty.
        rows: (B,) which rows of a plan with times per item belong to the items; None for all.
    """

    leaves: tuple[Tensor, ...]
    structure: tree.Structure
    noise: Any
    condition: Any = None
    step: int = 0
    nfe: int = 0
    history: tuple[tuple[Tensor, ...], ...] = ()
    base: tuple[Tensor, ...] = ()
    rows: Tensor | None = None

    @property
    def state(self) -> Any:
        """The state as the user's tree."""
        return self.structure.unflatten(self.leaves)

    def with_state(self, state: Any) -> Carry:
        """The same carry at another state, for guidance and steering by edits."""
        return dataclasses.replace(self, leaves=tuple(tree.leaves(state)))

    def take(self, index: Tensor | Sequence[int], noise: bool = True) -> Carry:
        """The carry of some of the items.

        Arguments:
            index: rows, (M,) int64 or bool.
            noise: whether the streams go with the items (a subset, another order). With False the
                streams stay with the slots, as resampling needs lest copies remain copies; M must
                then be the batch size.

        Returns:
            The carry with state, history, condition and rows re-indexed.

        Raises:
            ValueError: when the streams stay and M differs from the batch size.
        """
        rows = torch.as_tensor(index)
        if rows.dtype == torch.bool:
            rows = rows.nonzero().squeeze(1)
        rows = rows.to(self.leaves[0].device)
        batch = self.leaves[0].shape[0]
        if not noise and len(rows) != batch:
            raise ValueError(f"noise=False keeps {batch} streams in place, got {len(rows)} rows")
        whole = torch.arange(batch, device=rows.device) if self.rows is None else self.rows
        return dataclasses.replace(
            self,
            leaves=tuple(leaf[rows] for leaf in self.leaves),
            noise=self.noise.take(rows) if noise else self.noise,
            condition=None if self.condition is None else tree.index(self.condition, rows),
            history=tuple(tuple(past[rows] for past in leaf) for leaf in self.history),
            base=tuple(leaf[rows] for leaf in self.base),
            rows=whole[rows],
        )


class Plan:
    """A sampler's coefficients for some paths and times.

    Arguments:
        sampler: whose plan it is.
        names: of the leaves.
        paths: one a leaf.
        structure: of the tree of paths.
        times: (steps,) or (steps, B) float64, where the network is evaluated.

    A subclass sets `integer`, one bool a leaf, where leaves may hold integers.
    """

    def __init__(
        self,
        sampler: Any,
        structure: tree.Structure,
        paths: list[Path],
        times: np.ndarray,
    ):
        self.sampler = sampler
        self.structure = structure
        self.names = [name or "state" for name in structure.names]
        self.paths = paths
        self.times = times
        self.integer: tuple[bool, ...] = (False,) * len(paths)
        flat = structure.build is dict and all(child.build is None for child in structure.children)
        self._keys = structure.keys if flat else None
        self._clock: list[Any] = (
            times.tolist() if times.ndim == 1 else list(torch.from_numpy(times).unbind())
        )

    @property
    def steps(self) -> int:
        """How many times `step` is called."""
        return len(self._clock)

    def init(self, state: Any, noise: Any, condition: Any = None) -> Carry:
        """The carry before the first step.

        Arguments:
            state: the tree at `times[0]`, each leaf (B, ...); floating, but for discrete leaves.
            noise: the items' streams; only `draw`, `uniform` and `take` are used.
            condition: a tree with a batch axis, an `Encoded`, or None.

        Raises:
            ValueError: when the state has other names than the paths, or another batch size than
                the times or the condition.
            TypeError: when a leaf of a linear space is not floating.
        """
        leaves, structure = tree.flatten(state)
        if self.structure.build is not None and structure.names != self.structure.names:
            raise ValueError(
                f"the state has the leaves {structure.names}, the paths {self.structure.names}"
            )
        if self.structure.build is None and len(leaves) != 1:
            raise ValueError(
                f"a plan for one path got a state with the leaves {structure.names}: "
                "plan with a tree of paths of the same names"
            )
        for name, leaf, integer in zip(self.names, leaves, self.integer, strict=True):
            if not (integer or leaf.is_floating_point()):
                raise TypeError(f"leaf '{name}' is {leaf.dtype}: expected a floating tensor")
        batch = tree.batch_size(state)
        if self.times.ndim == 2 and self.times.shape[1] != batch:
            raise ValueError(f"times are for {self.times.shape[1]} items, the state has {batch}")
        if condition is not None and tree.leaves(condition) and tree.batch_size(condition) != batch:
            raise ValueError(
                f"the condition has {tree.batch_size(condition)} items, the state has {batch}"
            )
        return self._start(Carry(tuple(leaves), structure, noise, condition))

    def step(self, denoiser: Callable[..., Any], carry: Carry) -> Carry:
        """One step; the given carry is left as it was.

        Arguments:
            denoiser: called as `denoiser(state, t, condition, to=kind)`.
            carry: from `init` or from the step before.
        """
        raise TypeError(f"{type(self).__name__} defines no step")

    def _start(self, carry: Carry) -> Carry:
        return carry

    def _time(self, carry: Carry) -> Any:
        """The clock of this step: a float, or (B,) when it differs by item, as wide as may be."""
        t = self._clock[carry.step]
        if isinstance(t, float):
            return t
        device = carry.leaves[0].device
        return of_items(t, device, widest(device), carry.rows)

    def _predictions(self, denoiser: Callable[..., Any], carry: Carry, kinds: Any) -> Sequence[Any]:
        """One evaluation: the predictions of the leaves, of the wanted kinds."""
        keys, structure, leaves = self._keys, carry.structure, carry.leaves
        t = self._clock[carry.step]
        if type(t) is not float:
            t = self._time(carry)
        # Both containers that almost every state is are taken apart here, without `sci.tree`.
        if structure.build is None:
            state: Any = leaves[0]
        elif keys is not None and structure.keys == keys:
            state = dict(zip(keys, leaves, strict=True))
        else:
            state = structure.unflatten(leaves)
        outputs = denoiser(state, t, carry.condition, to=kinds)
        if isinstance(outputs, Tensor):
            return (outputs,)
        if keys is not None and type(outputs) is dict and outputs.keys() == state.keys():
            return [outputs[key] for key in keys]
        found, given = tree.flatten(outputs)
        if given.names != structure.names:
            raise ValueError(
                f"expected the leaves {structure.names} (the state's), got {given.names}"
            )
        return found


class Sampler:
    """Base of the samplers: settings, `plan`, and the loop."""

    def plan(self, paths: Any, times: Any = None) -> Plan:
        """The coefficients for some paths.

        Arguments:
            paths: one path, or the tree of paths of a state.
            times: (n,) or (n, B) increasing in [0, 1], in place of the sampler's grid.

        Raises:
            ValueError: when the times are no grid, or a leaf cannot follow the settings.
        """
        raise TypeError(f"{type(self).__name__} defines no plan")

    def __call__(
        self,
        denoiser: Any,
        start: Any = None,
        like: Any = None,
        condition: Any = None,
        noise: Any = None,
        seed: int = 0,
        times: Any = None,
        progress: bool = False,
        callback: Callable[[Carry], Carry | None] | None = None,
        checkpoint: bool = False,
    ) -> Samples:
        """Sample.

        Arguments:
            denoiser: a `Denoiser`, or a wrapper of one that keeps its call and its `paths`.
            start: the state at the first time, each leaf (B, ...); or
            like: a tree of the shape of what is wanted; sampling then starts from the paths'
                source.
            condition: a tree with a batch axis, or None for the one bound to the denoiser.
            noise: the items' streams; those of items 0, ..., B - 1 under `seed` when None.
            seed: the sampling seed, when no noise is given.
            times: in place of the sampler's grid, see `plan`.
            progress: whether to show a bar.
            callback: called with the carry after each step; what it returns, unless None, goes on.
            checkpoint: recompute the network in the backward pass instead of storing it.

        Returns:
            The samples. Gradients flow unless the caller forbids it (`torch.no_grad`).

        Raises:
            ValueError: unless exactly one of `start` and `like` is given, or for bad times.
            FloatingPointError: when a value is not finite; names the item, the step and the leaf.
        """
        paths, structure, leaves, noise, condition = self._prepare(
            denoiser, start, like, condition, noise, seed
        )
        plan = self.plan(structure.unflatten(paths), times)
        carry = first = plan.init(structure.unflatten(leaves), noise, condition)
        call = recomputing(denoiser) if checkpoint else denoiser
        bar = progress_bar(plan.steps) if progress else None
        before = carry
        while carry.step < plan.steps:
            before = carry
            carry = plan.step(call, carry)
            if callback is not None:
                carry = callback(carry) or carry
            if bar is not None:
                bar.update()
        if bar is not None:
            bar.close()
        if not finite((*before.leaves, *carry.leaves)):
            blame(plan, denoiser, first)
        nfe = carry.nfe * getattr(denoiser, "evaluations", 1)
        return Samples(carry.state, nfe, plan.times, self)

    def _prepare(
        self, denoiser: Any, start: Any, like: Any, condition: Any, noise: Any, seed: int
    ) -> tuple[list[Path], tree.Structure, list[Tensor], Any, Any]:
        """Check a call, and make what a run starts from.

        Returns:
            The paths, one a leaf; the state's structure; the leaves at the first time; the items'
            streams; the condition, encoded.
        """
        if (start is None) == (like is None):
            raise ValueError("give either `start` (a state at the first time) or `like` (a shape)")
        given = like if start is None else start
        leaves, structure = tree.flatten(given)
        batch = tree.batch_size(given)
        if noise is None:
            noise = Noise(seed, range(batch), leaves[0].device)
        elif len(noise.items) != batch:
            raise ValueError(f"the noise has {len(noise.items)} streams for {batch} items")
        encode = getattr(denoiser, "encode", None)
        condition = condition if encode is None else encode(condition)
        mask = mask_for(denoiser, condition)
        paths = tree.spread(denoiser.paths, structure, Path, "the denoiser's tree of paths")
        if start is None:
            names = [name or "state" for name in structure.names]
            leaves = [
                path.source(noise, name, leaf, mask)
                for path, name, leaf in zip(paths, names, leaves, strict=True)
            ]
        else:
            leaves = [path.project(x, mask) for path, x in zip(paths, leaves, strict=True)]
        return paths, structure, leaves, noise, condition


def mask_for(denoiser: Any, condition: Any) -> Tensor | None:
    """The mask that a denoiser reads from a condition; None for denoisers without masks."""
    mask_of = getattr(denoiser, "mask_of", None)
    return None if mask_of is None else mask_of(condition)
