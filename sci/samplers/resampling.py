"""Going back and forth: a sampler that noises what it has made and tries again.

A part that is given (`guidance.Replacement`) and a part that is generated agree only as far as the
network was led by a noised copy of the given one at the time. Resampling lets them settle: after a
stretch from s to t the state goes back by the forward noising

    x_s = r x_t + sqrt(sigma_s^2 - r^2 sigma_t^2) z,    r = alpha_s / alpha_t,

with fresh z, the known part is drawn afresh, and the stretch is taken again. For the exact posterior
this changes no law, so it costs only evaluations; under an approximate one every repeat is a step of
a chain whose known part is right at that noise level. A discrete leaf keeps each class with the
probability a_s / a_t and draws it from the law of its source otherwise.

The noise of the way back and of the known part has draw numbers of its own, and every evaluation has
its own step number, so no stream is used twice.

References:
    | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022)
    | Restart sampling for improving generative processes (Xu et al., 2023)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.paths import Path
from sci.paths.categorical import CategoricalPath
from sci.samplers.checks import curved, gaussian, whole
from sci.samplers.engine import Multistep
from sci.samplers.loop import Carry, Plan, Sampler, mask_for
from sci.samplers.onestep import OneStep
from sci.samplers.runge_kutta import stages_of
from sci.samplers.values import multiplier, of_items, ready
from sci.spaces import widest

__all__ = ["Resampled", "ResampledPlan"]

# Samplers use small draw numbers.
_BACK, _KNOWN = 101, 102


@dataclasses.dataclass(frozen=True)
class Resampled(Sampler):
    """A sampler whose stretches are repeated, with the way back between the repeats.

    The known part of a `guidance.Replacement` is drawn afresh at the start of every stretch. With
    a sampler that ends without a data prediction, the known part is put into the result.

    Arguments:
        sampler: a `Multistep` or `OneStep` sampler. A stretch starts without a past, so with
            `jump=1` a multistep sampler has order 1, with `jump=k` up to k. A little noise in the
            sampler itself (`samplers.ancestral`) is not needed: the way back brings it.
        repeats: how often every stretch is taken, >= 1; the first one counts.
        jump: transitions of a stretch, >= 1.
        within: the part of the transitions that is repeated, as fractions (first, last) of their
            number; the first ones decide the coarse shape, the last ones only polish.

    Raises:
        TypeError: for another sampler.
        ValueError: for settings out of range.

    Example:
        >>> import torch
        >>> from sci import samplers
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import Cosine
        >>> denoiser = Denoiser(lambda x, t, condition: 0 * x, GaussianPath(Cosine()))
        >>> sampler = Resampled(samplers.ddim(10), repeats=3)
        >>> sampler(denoiser, like=torch.zeros(2, 1)).nfe, sampler.steps
        (30, 30)

    References:
        | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022)
    """

    sampler: Any
    repeats: int = 4
    jump: int = 1
    within: tuple[float, float] = (0.0, 1.0)

    def __post_init__(self) -> None:
        if not isinstance(self.sampler, (Multistep, OneStep)):
            raise TypeError(
                f"Resampled takes a Multistep or OneStep sampler, got {type(self.sampler).__name__}: "
                "Langevin samplers and adaptive ones have no stretches that could be repeated"
            )
        for name in ("repeats", "jump"):
            whole(name, getattr(self, name), 1)
        first, last = self.within
        if not 0 <= first < last <= 1:
            raise ValueError(f"expected 0 <= first < last <= 1 for within, got {self.within}")

    @property
    def steps(self) -> int:
        """Network evaluations an item, those of the repeats included."""
        final = self.sampler.final is not None
        return final + sum(
            passes * (_settings(self.sampler, first, last, False).steps)
            for first, last, passes in self.stretches(_transitions(self.sampler))
        )

    def stretches(self, transitions: int) -> list[tuple[int, int, int]]:
        """(first, last, passes): stretches of transitions, `last` not included."""
        low, high = (edge * transitions for edge in self.within)
        kinds = self.sampler.transitions if isinstance(self.sampler, OneStep) else None
        found = []
        first = 0
        while first < transitions:
            last = min(first + self.jump, transitions)
            # A stretch of a one-step sampler is of one method.
            while kinds is not None and kinds[last - 1] != kinds[first]:
                last -= 1
            repeated = first >= low - 1e-9 and last <= high + 1e-9
            found.append((first, last, self.repeats if repeated else 1))
            first = last
        return found

    def plan(self, paths: Any, times: Any = None) -> ResampledPlan:
        """The coefficients for some paths; see `Sampler.plan`."""
        found, structure = tree.flatten(paths, Path)
        whole = self.sampler.plan(paths, times)
        return ResampledPlan(self, structure, found, paths, whole.grid)


class ResampledPlan(Plan):
    """The stretches of a `Resampled` sampler; see `Plan`.

    Arguments:
        sampler: the settings.
        structure: of the tree of paths.
        paths: one a leaf.
        nested: the tree of paths.
        grid: (n + 1,) or (n + 1, B) times.

    Raises:
        ValueError: when a leaf cannot go back; names the leaf.
    """

    def __init__(
        self,
        sampler: Resampled,
        structure: tree.Structure,
        paths: list[Path],
        nested: Any,
        grid: np.ndarray,
    ):
        transitions = len(grid) - 1
        inner = sampler.sampler
        self._actions: list[_Action] = []
        times: list[Any] = []
        for first, last, passes in sampler.stretches(transitions):
            back = None
            if passes > 1:
                back = [
                    _back(name or "state", path, grid[first], grid[last])
                    for name, path in zip(structure.names, paths, strict=True)
                ]
            span = grid[first : last + 1]
            start = ready(np.atleast_1d(grid[first]))
            for count in range(passes):
                # As if a data prediction followed, which is not taken: so no stretch but the last
                # one ends a run, which for classes would mean to stop at data.
                ends = last == transitions and count + 1 == passes
                final = inner.final is not None or not ends
                plan = _settings(inner, first, last, final).plan(nested, span)
                for step in range(plan.steps - (final and not ends)):
                    self._actions.append(_Action(plan, step, start, back if count else None))
                    times.append(plan.times[step])
        super().__init__(sampler, structure, paths, np.stack(times))
        self.integer = plan.integer
        self.grid = grid

    def step(self, denoiser: Any, carry: Carry) -> Carry:
        """One evaluation; before the first of a repeated stretch, the way back to its start."""
        action = self._actions[carry.step]
        noise = _Renumbered(carry.noise, carry.step - action.step)
        if action.step == 0:
            leaves = carry.leaves
            if action.back is not None:
                leaves = self._return(denoiser, carry, action.back)
            redraw = getattr(denoiser, "redraw", None)
            if redraw is not None:
                state = carry.structure.unflatten(leaves)
                device = leaves[0].device
                start = of_items(action.start, device, widest(device), carry.rows)
                state = redraw(state, start, carry.noise, carry.step, carry.condition, _KNOWN)
                leaves = tuple(tree.leaves(state))
            fresh = dataclasses.replace(carry, leaves=leaves, noise=noise, step=0)
            inner = action.plan._start(dataclasses.replace(fresh, history=(), base=()))
        else:
            inner = dataclasses.replace(carry, noise=noise, step=action.step)
        inner = action.plan.step(denoiser, inner)
        done = dataclasses.replace(inner, noise=carry.noise, step=carry.step + 1)
        finish = getattr(denoiser, "finish", None)
        if done.step == self.steps and finish is not None and self.sampler.sampler.final is None:
            done = done.with_state(finish(done.state, done.condition))
        return done

    def _return(self, denoiser: Any, carry: Carry, back: list[Any]) -> tuple[Tensor, ...]:
        """The leaves, noised back to the start of the stretch."""
        mask = mask_for(denoiser, carry.condition)
        out = []
        for (ratio, spread), path, name, x in zip(
            back, self.paths, self.names, carry.leaves, strict=True
        ):
            if isinstance(path, CategoricalPath):
                out.append(_redrawn(path, x, ratio, carry, name, mask))
                continue
            z = carry.noise.draw(path.space, name, carry.step, x, mask, _BACK)
            kick = z * multiplier(spread, x, carry.rows)
            out.append(x * multiplier(ratio, x, carry.rows) + kick)
        return tuple(out)


@dataclasses.dataclass(frozen=True)
class _Action:
    """One evaluation.

    Arguments:
        plan: of the stretch.
        step: within the stretch.
        start: the time at which the stretch starts.
        back: how each leaf goes back to the start first; None for a first pass.
    """

    plan: Any
    step: int
    start: Any
    back: Any


class _Renumbered:
    """Streams whose steps are counted from another number."""

    def __init__(self, noise: Any, offset: int):
        self._noise, self._offset = noise, offset

    @property
    def items(self) -> Any:
        return self._noise.items

    def draw(
        self, space: Any, leaf: Any, step: int, like: Tensor, mask: Any = None, draw: int = 0
    ) -> Tensor:
        return self._noise.draw(space, leaf, step + self._offset, like, mask, draw)

    def uniform(self, elements: Any, leaf: Any, step: int, draw: int = 0) -> Tensor:
        return self._noise.uniform(elements, leaf, step + self._offset, draw)

    def normal(self, elements: Any, leaf: Any, step: int, draw: int = 0) -> Tensor:
        return self._noise.normal(elements, leaf, step + self._offset, draw)

    def take(self, index: Any) -> _Renumbered:
        return _Renumbered(self._noise.take(index), self._offset)


def _transitions(sampler: Multistep | OneStep) -> int:
    if isinstance(sampler, OneStep):
        return len(sampler.transitions)
    return sampler.steps - (sampler.final is not None)


def _settings(sampler: Any, first: int, last: int, final: bool) -> Any:
    """The sampler of a stretch of transitions."""
    count = last - first
    end = "data" if final else None
    if isinstance(sampler, OneStep):
        method = sampler.transitions[first]
        stages = stages_of(method)
        churn = sampler.churn * count / len(sampler.transitions)
        return dataclasses.replace(
            sampler, steps=count * stages + final, method=method, final=end, churn=churn
        )
    steps = count + final
    changes = _sliced(sampler, {}, first, steps, sampler.steps)
    if sampler.leaves:
        changes["leaves"] = {
            name: _sliced(None, dict(own), first, steps, sampler.steps)
            for name, own in sampler.leaves.items()
        }
    # The grid is given by the plan; a list of times would be of another length.
    return dataclasses.replace(sampler, steps=steps, final=end, grid="uniform_time", **changes)


def _sliced(
    sampler: Any, own: dict[str, Any], first: int, steps: int, whole: int
) -> dict[str, Any]:
    """Settings by step cut to a stretch, and orders that it is long enough for."""
    names = ("kind", "order", "corrector", "stochasticity", "compensation")
    out = dict(own)
    for name in names:
        if sampler is None and name not in own:
            continue
        value = own[name] if sampler is None else getattr(sampler, name)
        if isinstance(value, (list, tuple)) and len(value) == whole:
            value = tuple(value[first : first + steps])
            value += value[-1:] * (steps - len(value))
            if name == "order":
                value = tuple(min(order, steps) for order in value)
        elif name == "order":
            value = min(value, steps)
        out[name] = value
    return out


def _back(name: str, path: Path, start: Any, stop: Any) -> tuple[Any, Any]:
    """(r, standard deviation) from `stop` back to `start`; (keep probability, None) for classes."""
    early, late = np.atleast_1d(start), np.atleast_1d(stop)
    schedule = path.schedule
    if isinstance(path, CategoricalPath):
        return ready(path.keep(early) / path.keep(late)), None
    if curved(path) or not gaussian(path):
        raise ValueError(
            f"leaf '{name}' cannot go back: its path {type(path).__name__} has no forward noising "
            "from one time to another. Use guidance.Replacement with a plain sampler"
        )
    gap = schedule.log_snr(early) - schedule.log_snr(late)
    spread = schedule.sigma(early) * np.sqrt(-np.expm1(2.0 * gap))
    return ready(schedule.alpha(early) / schedule.alpha(late)), ready(spread)


def _redrawn(
    path: CategoricalPath, x: Tensor, keep: Any, carry: Carry, name: str, mask: Tensor | None
) -> Tensor:
    """Classes that are kept, or drawn from the law of the source."""
    values = carry.noise.uniform(path.space.elements(x), name, carry.step, _BACK)
    uniforms = path.space.place(values, torch.empty(x.shape, device=x.device), mask)
    keep = multiplier(keep, uniforms, carry.rows)
    kept = uniforms < keep
    rest = torch.where(kept, 0.0, (uniforms - keep) / (1.0 - keep))
    drawn = path.draw(path.law.to(uniforms), rest)
    return path.project(torch.where(kept, x, drawn), mask)
