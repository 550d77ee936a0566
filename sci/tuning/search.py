"""The search for a sampler: what is varied, and in which order.

A sampler of the multistep engine is fitted to a bench (a denoiser, some items, and where a fine
trajectory takes them; see `sci.tuning.trajectories`) within a budget of network evaluations:

1. screening: named settings on several grids, each with the state or the data prediction at last;
2. times: an evolution strategy for each of the best few, least squares for the best one;
3. settings by step: order, kind and corrector of every step, one change at a time, in random order;
4. compensation: before a step the newest prediction is replaced by its polynomial at the time
   rho t_i + (1 - rho) t_(i - 1); the next state is a quadratic form of rho, so that three steps
   without any evaluation give the best rho for the fine trajectory's state there;
5. least squares on times and ratios together, then 3 and 5 in turn as long as it pays.

Times are varied through the logarithms of their increments in a coordinate of the paths: all
vectors give increasing times inside the span, and a unit has the same meaning everywhere.

References:
    | AutoDiffusion: training-free optimization of time steps and architectures for automated
    | diffusion model acceleration (Li et al., 2023)
    | A unified sampling framework for solver searching of diffusion probabilistic models
    | (Liu et al., 2023)
    | DC-Solver: improving predictor-corrector diffusion sampler via dynamic compensation
    | (Zhao et al., 2024)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from sci.samplers import Multistep, grids
from sci.tuning.minimise import descend, evolve

if TYPE_CHECKING:
    from sci.tuning.trajectories import Bench

__all__ = ["MEASURES", "Search", "spelled", "times_of"]

_SETTINGS: tuple[dict[str, Any], ...] = (
    {"kind": "angular", "variable": "S", "order": 4, "corrector": 4},
    {"kind": "angular", "variable": "S", "order": 3, "corrector": 3},
    {"kind": "angular", "variable": "S", "order": 2, "corrector": 2},
    {"kind": "difference", "variable": "S", "order": 2, "corrector": 2},
    {"kind": "difference", "variable": "log_snr", "order": 3, "corrector": 3},
    {"kind": "difference", "variable": "S", "order": 2},
    {"kind": "velocity", "variable": "t", "order": 2},
    {"kind": "data", "variable": "log_snr", "order": 2, "rule": "half"},
    {"kind": "data", "variable": "log_snr", "order": 2, "corrector": 2, "rule": "half"},
    {"kind": "data", "variable": "log_snr", "order": 3, "corrector": 3, "rule": "half"},
    {"kind": "noise", "variable": "t", "order": 3},
)
_PLAIN = {
    "corrector": 0,
    "rule": "exact",
    "corrected_start": True,
    "compensation": None,
    "max_ratio": None,
}
_GRIDS = (
    grids.graded_angle,
    grids.uniform_angle,
    grids.uniform_log_snr,
    grids.uniform_time,
    grids.karras,
)
_KINDS = ("data", "noise", "difference", "angular", "velocity")
# Shares of the budget: the rival settings together, the winner's times, the settings by step. The
# screening before takes what it needs, the rest is for ratios and least squares.
_RIVALS, _TIMES, _STEPS = 0.35, 0.1, 0.2
_FINALISTS = 3
# A further round must have brought one part in a hundred.
_WORTH = 0.99
_SCALE = 0.3
_RATIOS = np.linspace(0.0, 2.0, 201)


def _square(errors: np.ndarray) -> tuple[float, np.ndarray]:
    return float(errors.mean()), np.full(len(errors), 1 / len(errors))


def _distance(errors: np.ndarray) -> tuple[float, np.ndarray]:
    distances = np.sqrt(errors + 1e-4 * float(np.median(errors)) + 1e-30)
    return float(distances.mean()) ** 2, 1 / distances / len(errors)


def _geometric(errors: np.ndarray) -> tuple[float, np.ndarray]:
    floored = errors + 1e-2 * float(np.median(errors)) + 1e-30
    return float(np.exp(np.log(floored).mean())), 1 / floored / len(errors)


def _median(errors: np.ndarray) -> tuple[float, np.ndarray]:
    return float(np.median(errors)), _geometric(errors)[1]


# Of the items' squared errors: the objective, a square too, and the items' weights for least squares.
MEASURES: dict[str, Callable[[np.ndarray], tuple[float, np.ndarray]]] = {
    "distance": _distance,
    "square": _square,
    "geometric": _geometric,
    "median": _median,
}


class Spent(Exception):
    """The evaluations of a stage are used up."""


def times_of(sampler: Multistep, paths: Any) -> np.ndarray:
    """The times of a sampler's grid, (n,)."""
    return np.asarray(sampler.grid(paths, sampler.steps - (sampler.final is not None)))


def spelled(sampler: Multistep, times: np.ndarray) -> Multistep:
    """The same sampler, deterministic, with its times and its settings by step written out."""
    moves = len(times) - 1

    def by_step(value: Any) -> tuple[Any, ...]:
        return tuple(value) if isinstance(value, (list, tuple)) else (value,) * sampler.steps

    orders = by_step(sampler.order)
    if sampler.lower_final:
        orders = tuple(min(o, max(moves - step, 1)) for step, o in enumerate(orders))
    return dataclasses.replace(
        sampler,
        grid=grids.from_times(times.tolist()),
        kind=by_step(sampler.kind),
        order=orders,
        corrector=by_step(sampler.corrector),
        stochasticity=0.0,
        lower_final=False,
    )


class Search:
    """One search; the best sampler and its error are kept all the time.

    Arguments:
        bench: the problem.
        start: a sampler to improve on, see `spelled`.
        measure: a name of `MEASURES`.
        budget: network evaluations an item.
        generator: the randomness.
        watch: called with the evaluations of a trial and the best error so far.
    """

    def __init__(
        self,
        bench: Bench,
        start: Multistep,
        measure: str,
        budget: int,
        generator: np.random.Generator,
        watch: Callable[[int, float], None],
    ):
        self.bench, self.start, self.generator, self.watch = bench, start, generator, watch
        self.measure = MEASURES[measure]
        self.budget = self.limit = budget
        self.spent = 0
        self.best, self.value = start, np.inf

    def run(self) -> None:
        """All stages; stops when the budget is spent."""
        self.error(self.start)
        rivals: list[Multistep] = []
        with self.stage():
            rivals = self.screen()
        for rival in rivals:
            with self.stage(_RIVALS / len(rivals)):
                self.evolve(rival)
        with self.stage(_TIMES):
            self.descend(ratios=False)
        with self.stage(_STEPS):
            self.change()
        with self.stage():
            ratios = self.compensate()
            self.descend(ratios)
            before = np.inf
            while self.value < _WORTH * before:
                before = self.value
                self.change()
                self.descend(ratios)

    @contextlib.contextmanager
    def stage(self, share: float = 1.0) -> Iterator[None]:
        """Ends what is inside when a share of the budget, or all of it, is spent."""
        self.limit = min(self.budget, self.spent + int(share * self.budget))
        with contextlib.suppress(Spent):
            yield

    def residuals(self, sampler: Multistep | None) -> np.ndarray | None:
        """Those of a sampler; keeps it when it is the best."""
        if sampler is None:
            return None
        if self.spent + sampler.steps > self.limit:
            raise Spent
        self.spent += sampler.steps
        found = self.bench.residuals(sampler)
        if found is not None:
            value = self.weigh(found)[0]
            if value < self.value:
                self.best, self.value = sampler, value
        self.watch(sampler.steps, self.value)
        return found

    def weigh(self, residuals: np.ndarray) -> tuple[float, np.ndarray]:
        """The objective, and the weights of the items."""
        return self.measure((residuals**2).sum(1))

    def error(self, sampler: Multistep | None) -> float:
        """The objective at a sampler."""
        found = self.residuals(sampler)
        return np.inf if found is None else self.weigh(found)[0]

    def screen(self) -> list[Multistep]:
        """Named settings on named grids; the best of the settings."""
        found: list[tuple[float, int, Multistep]] = []

        def offer(number: int, settings: dict[str, Any], grid: Any, final: str | None) -> None:
            sampler = self.make(settings, grid, final)
            if sampler is not None:
                found.append((self.error(sampler), number, sampler))

        finals = dict.fromkeys((self.start.final, None, "data"))
        for number, settings in enumerate(_SETTINGS):
            for final in finals:
                offer(number, settings, _GRIDS[0], final)
        found.sort(key=lambda trial: trial[:2])
        for _, number, sampler in found[: 2 * _FINALISTS]:
            for grid in _GRIDS[1:]:
                offer(number, _SETTINGS[number], grid, sampler.final)
        found.sort(key=lambda trial: trial[:2])
        rivals: dict[int, Multistep] = {}
        for value, number, sampler in found:
            if np.isfinite(value):
                rivals.setdefault(number, sampler)
        chosen = list(rivals.values())[:_FINALISTS]
        return chosen if self.best in chosen else [self.best, *chosen[: _FINALISTS - 1]]

    def make(self, settings: dict[str, Any], grid: Any, final: str | None) -> Multistep | None:
        """A sampler of named settings on the bench's span; None where there is none."""
        nfe = self.start.steps
        limited = {**_PLAIN, **settings, "order": min(settings["order"], nfe), "final": final}
        try:
            whole = dataclasses.replace(self.start, **limited, grid=grid(*self.bench.span))
            return spelled(whole, times_of(whole, self.bench.paths))
        except ValueError:
            return None

    def evolve(self, start: Multistep) -> None:
        """An evolution strategy on the times."""
        chart = _Chart(self.bench, start, ratios=False)
        evolve(lambda v: self.error(chart(v)), np.zeros(chart.size), _SCALE, self.generator)

    def descend(self, ratios: bool) -> None:
        """Least squares on the times, and on the ratios of compensation."""
        chart = _Chart(self.bench, self.best, ratios)
        descend(lambda v: self.residuals(chart(v)), self.weigh, np.zeros(chart.size))

    def change(self) -> None:
        """One setting of one step after the other, as long as something helps."""
        moves = self.best.steps - (self.best.final is not None)
        changes: list[_Change] = [("variable", None, name) for name in ("log_snr", "S", "t")]
        changes += [("rule", None, name) for name in ("exact", "half")]
        for step in range(moves):
            changes += [("kind", step, kind) for kind in _KINDS]
            changes += [(name, step, by) for name in ("order", "corrector") for by in (-1, 1)]
        tried: set[str] = set()
        while True:
            before = self.best
            for place in self.generator.permutation(len(changes)):
                sampler = _changed(self.best, changes[place])
                if sampler is not None and repr(sampler) not in tried:
                    tried.add(repr(sampler))
                    self.error(sampler)
            if self.best is before:
                return

    def compensate(self) -> bool:
        """Ratios step by step against the fine trajectory; whether the leaves can follow them."""
        sampler, moves = self.best, self.best.steps - (self.best.final is not None)
        if moves < 3 or self.spent + sampler.steps > self.limit:
            return False
        self.spent += sampler.steps
        self.watch(sampler.steps, self.value)
        powers = np.stack([np.ones_like(_RATIOS), _RATIOS, _RATIOS**2], 1)
        # The values at three ratios as coefficients of 1, rho, rho^2.
        trials = np.array([0.0, 1.0, 2.0])
        solve = np.linalg.inv(np.stack([np.ones(3), trials, trials**2], 1))
        # Steps ahead have some ratio other than 1, so that what they need is carried along.
        ratios = [0.5] * sampler.steps

        def at(step: int, ratio: float) -> Multistep:
            ratios[step] = ratio
            return dataclasses.replace(sampler, compensation=tuple(ratios))

        try:
            walk = self.bench.walk(np.asarray(sampler.grid.times))
            for step in range(moves):
                ratio = 1.0
                if step >= 2:
                    form = np.tensordot(
                        solve, np.stack([walk.trial(at(step, trial)) for trial in trials]), 1
                    )
                    errors = [self.weigh(np.tensordot(power, form, 1))[0] for power in powers]
                    ratio = float(_RATIOS[int(np.argmin(errors))])
                walk.go(at(step, ratio))
        except (ValueError, FloatingPointError):
            return False
        ratios[moves:] = [1.0] * (sampler.steps - moves)
        if min(ratios) == max(ratios) == 1.0:
            return True
        self.error(dataclasses.replace(sampler, compensation=tuple(ratios)))
        return True


# A setting, of one step or of all, and its new value; of orders and correctors by how much more.
_Change = tuple[str, int | None, Any]


def _changed(sampler: Multistep, change: _Change) -> Multistep | None:
    """The sampler with a change; None where there is none."""
    name, step, value = change
    if step is not None:
        held = list(getattr(sampler, name))
        held[step] = value if name == "kind" else held[step] + value
        value = tuple(held)
    try:
        return dataclasses.replace(sampler, **{name: value})
    except ValueError:
        return None


class _Chart:
    """Samplers around one: by the logarithms of the increments of the times, by how far the ends
    have moved inside, and by the ratios of compensation."""

    def __init__(self, bench: Bench, centre: Multistep, ratios: bool):
        self.bench, self.centre = bench, centre
        places = bench.place(np.asarray(centre.grid.times))
        self.steps = np.diff(places)
        self.ends = np.array([places[0], 1.0 - places[-1]])
        # The end of a run that returns the state stays, or noise would be left in it.
        self.free = 1 if centre.final is None else 2
        self.ratios = centre.steps - (centre.final is not None) - 2 if ratios else 0
        self.ratios = max(self.ratios, 0)
        self.size = len(self.steps) + self.free + self.ratios

    def __call__(self, vector: np.ndarray) -> Multistep | None:
        """The sampler at a vector, `centre` at zero; None where its times do not increase."""
        count = len(self.steps)
        steps = self.steps * np.exp(np.clip(vector[:count], -8.0, 8.0))
        ends = self.ends.copy()
        ends[: self.free] += self.steps.mean() * vector[count : count + self.free]
        ends = np.maximum(ends, 0.0)
        places = ends[0] + np.concatenate([[0.0], np.cumsum(steps)])
        times = self.bench.time(places / (places[-1] + ends[1]))
        if not (np.diff(times) > 1e-9).all():
            return None
        compensation = self.centre.compensation
        if self.ratios:
            held = [1.0 if r is None else r for r in compensation or (1.0,) * self.centre.steps]
            for place, shift in enumerate(vector[count + self.free :]):
                held[place + 2] += float(shift)
            compensation = tuple(held)
        grid = grids.from_times(times.tolist())
        return dataclasses.replace(self.centre, grid=grid, compensation=compensation)
