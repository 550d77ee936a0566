"""Samplers fitted to a denoiser: times and settings for a given number of evaluations.

    tuned = tune(Problem(denoiser, like=noise), nfe=8)
    samples = tuned.sampler()(denoiser, like=data)

A fine trajectory from the same noise is the teacher. The error of a sampler on an item is the
squared distance of its last state from the teacher's, a degree of freedom, in units of the spread
of the teacher's last states, averaged over the leaves:

    e_i = 1 / L sum_l |x_l - y_l|_i^2 / (n_l,i v_l),   v_l = E |y_l,i - y_l,j|^2 / (2 n_l).

`sci.tuning.search` looks for the sampler of least error on one part of the items. The other part, which
the search never sees, gives the errors that are reported; where the fitted sampler is not better on it,
the one that stood before is kept.
"""

from __future__ import annotations

import contextlib
import dataclasses
import signal
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from sci import tree
from sci.fields import plain, unknown
from sci.noise import Noise
from sci.paths import Path
from sci.samplers import Multistep, default
from sci.samplers.linear import LinearStepper
from sci.samplers.stepper import stepper_for
from sci.samplers.tuned import SETTINGS, Tuned
from sci.tuning.search import MEASURES, Search, spelled, times_of
from sci.tuning.trajectories import FIRST_ITEM, Bench, batches

if TYPE_CHECKING:
    from sci.model import Model, Problem

__all__ = ["tune", "tune_model"]

# The budget unless told: so many samplers are tried.
_TRIALS = 500


@torch.no_grad()
def tune(
    problem: Problem | Sequence[Problem],
    nfe: int,
    budget: int | None = None,
    teacher: int = 200,
    measure: str = "distance",
    seed: int = 0,
    progress: bool = False,
) -> Tuned:
    """Fit a sampler of `nfe` evaluations to a denoiser.

    Arguments:
        problem: denoiser, shape, condition, and the sampler to improve on (`sci.model.Problem`),
            whose noise is left out; half of the items are held out. Or several such, batches of
            consecutive items, of which the later half is held out.
        nfe: calls of the denoiser an item, >= 2.
        budget: such calls an item for the search; 500 times `nfe` when None.
        teacher: calls of the fine trajectory, >= 2 nfe; a run of half as many says how good it is.
        measure: what is made small: the mean "distance" from the teacher, the mean "square" of it,
            its "geometric" mean or its "median". The mean square is ruled by the few items that end
            in another mode; the geometric mean and the median do not mind them.
        seed: of the items' noise and of the search; the result is a function of it. The items are
            none that `Model.sample` makes under the same seed.
        progress: whether to show a bar with the error so far.

    Returns:
        The fitted sampler. Ctrl-C ends the search early, with the best so far.

    Raises:
        TypeError: when the sampler of the problem is no `Multistep`, or a leaf is discrete.
        ValueError: for numbers out of range.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.model import Problem
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import Cosine
        >>> denoiser = Denoiser(lambda x, t, condition: x.tanh(), GaussianPath(Cosine()))
        >>> tuned = tune(Problem(denoiser, torch.zeros(32, 1)), nfe=4, budget=100, teacher=40)
        >>> tuned.error < tuned.default_error
        True
        >>> samples = tuned.sampler()(denoiser, like=torch.zeros(8, 1))
        >>> samples.nfe
        4

    References:
        | AutoDiffusion: training-free optimization of time steps and architectures for automated
        | diffusion model acceleration (Li et al., 2023)
        | A unified sampling framework for solver searching of diffusion probabilistic models
        | (Liu et al., 2023)
        | DC-Solver: improving predictor-corrector diffusion sampler via dynamic compensation
        | (Zhao et al., 2024)
    """
    from sci import __version__

    _check(nfe, budget, teacher, measure)
    fitted, held = batches(problem, seed)
    standing = _standing(fitted[0].sampler, nfe)
    times = times_of(standing, fitted[0].paths)
    if times.ndim != 1:
        raise ValueError("the sampler of the problem has times by item; expected the same for all")
    start = spelled(_parted(standing, fitted[0].paths), times)
    # Settings that the leaves cannot follow are to be said, not counted as a bad trial.
    start.plan(fitted[0].paths)
    bench = Bench(fitted, start, times, teacher)
    judge = Bench(held, start, times, teacher, bench)
    budget = _TRIALS * nfe if budget is None else budget
    interrupted = False
    with _Bar(budget, progress) as bar, _stopping() as pressed:

        def watch(evaluations: int, value: float) -> None:
            bar.update(evaluations, value)
            if pressed:
                raise KeyboardInterrupt

        search = Search(bench, start, measure, budget, np.random.default_rng(seed), watch)
        try:
            search.run()
        except KeyboardInterrupt:
            interrupted = True
    before, default_seconds = _timed(judge, standing)
    after, seconds = _timed(judge, search.best)
    improved = MEASURES[measure](after)[0] < MEASURES[measure](before)[0]
    if not improved:
        after, seconds = before, default_seconds
    kept = search.best if improved else start
    found = Tuned(
        nfe=nfe,
        times=kept.grid.times,
        **{name: getattr(kept, name) for name in SETTINGS},
        error=_root(after.mean()),
        mean_error=float(np.sqrt(after).mean()),
        median_error=_root(np.median(after)),
        default_error=_root(before.mean()),
        default_mean_error=float(np.sqrt(before).mean()),
        default_median_error=_root(np.median(before)),
        teacher=teacher,
        teacher_error=judge.teacher_error,
        measure=measure,
        items=bench.items,
        held_out=judge.items,
        evaluations=search.spent,
        seed=seed,
        improved=improved,
        interrupted=interrupted,
        version=__version__,
        seconds=seconds,
        default_seconds=default_seconds,
    )
    if found.teacher_error > 0.5 * found.error:
        warnings.warn(
            f"the teacher of {teacher} evaluations is only known to {found.teacher_error:.2g}, the "
            f"fitted sampler differs from it by {found.error:.2g}: take a finer teacher",
            stacklevel=3,
        )
    return found


def tune_model(
    model: Model,
    nfe: int,
    n: int = 128,
    budget: int | None = None,
    teacher: int = 200,
    measure: str = "distance",
    seed: int = 0,
    progress: bool = True,
    batch_size: int | None = None,
    **request: Any,
) -> Tuned:
    """Fit a sampler to a trained model, for one kind of request.

    The model stays as it is: `model.tuned[tuned.nfe] = tuned` uses what is found, `model.save` keeps
    it, and `sci tune` does both.

    Arguments:
        model: one that defines `problem`.
        nfe: network evaluations an item; the request's `steps`, where it has such a field.
        n: items, >= 4; half of them fit and half of them judge.
        budget, teacher, measure, seed, progress: as for `tune`.
        batch_size: items at once; the model's own when None.
        **request: the model's request fields.

    Raises:
        TypeError: when the model defines no `problem`, or for an unknown request field.
        ValueError: for numbers out of range.
    """
    from sci.model import evaluating, positive

    if positive("n", n) < 4:
        raise ValueError(f"n is {n}; expected at least 4 items, of which half are held out")
    size = positive("batch_size", model.batch_size if batch_size is None else batch_size)
    fields = getattr(model.Request, "__dataclass_fields__", {})
    if "steps" in fields:
        if request.get("steps", nfe) != nfe:
            raise ValueError(f"nfe is {nfe} and the request's steps are {request['steps']}")
        request = {**request, "steps": nfe}
    asked = model.request(**request)
    held, model.tuned = model.tuned, {}
    try:
        with evaluating(model), torch.no_grad():
            first, middle, last = FIRST_ITEM, FIRST_ITEM + n // 2, FIRST_ITEM + n
            edges = [*range(first, middle, size), *range(middle, last, size), last]
            problems = [
                model.problem(asked, items, Noise(seed, items, device=model.device))
                for items in map(range, edges[:-1], edges[1:])
            ]
            found = tune(problems, nfe, budget, teacher, measure, seed, progress)
            return dataclasses.replace(found, request=plain(asked))
    finally:
        model.tuned = held


def _check(nfe: int, budget: int | None, teacher: int, measure: str) -> None:
    for name, value, least in (
        ("nfe", nfe, 2),
        ("budget", nfe if budget is None else budget, nfe),
        ("teacher", teacher, 2 * nfe),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(f"{name} is {value!r}; expected an integer of at least {least}")
    if measure not in MEASURES:
        raise ValueError(unknown("measure", measure, MEASURES))


def _standing(sampler: Any, nfe: int) -> Multistep:
    """The sampler to improve on: the given one, or the default one, without its noise."""
    sampler = default(nfe) if sampler is None else sampler
    if not isinstance(sampler, Multistep):
        raise TypeError(
            f"the sampler of the problem is a {type(sampler).__name__}; only a Multistep can be "
            "fitted (leave it out to begin with sci.samplers.default)"
        )
    if sampler.steps != nfe:
        raise ValueError(f"the sampler of the problem takes {sampler.steps} steps, nfe is {nfe}")
    kinds = sampler.kind if isinstance(sampler.kind, (list, tuple)) else [sampler.kind]
    if not all(isinstance(kind, str) for kind in kinds):
        raise TypeError(
            "a sampler with tables of its own kind cannot be fitted: begin with another"
        )
    if any(sampler.at("stochasticity", step) for step in range(nfe)):
        warnings.warn(
            "the sampler to improve on adds noise; what is fitted and compared follows the flow "
            "without noise, so judge the samples, too",
            stacklevel=4,
        )
    return dataclasses.replace(sampler, stochasticity=0.0)


def _parted(sampler: Multistep, paths: Any) -> Multistep:
    """The same sampler, with settings of their own for leaves that are not linear: these take few,
    and must not hold back the others."""
    found, structure = tree.flatten(paths, Path)
    leaves = {name: dict(changes) for name, changes in (sampler.leaves or {}).items()}
    for name, path in zip(structure.names, found, strict=True):
        if stepper_for(path) is LinearStepper:
            continue
        kind = sampler.at("kind", 0)
        leaves[name or "state"] = {
            "kind": kind if kind in path.heads else "data",
            "order": min(2, sampler.at("order", sampler.steps - 1)),
            "corrector": 0,
            "compensation": None,
            "variable": sampler.variable,
            "rule": sampler.rule,
            "lower_final": sampler.lower_final,
            **leaves.get(name or "state", {}),
        }
    return dataclasses.replace(sampler, leaves=leaves or None)


def _timed(judge: Bench, sampler: Multistep) -> tuple[np.ndarray, float]:
    """The errors of the held-out items, and the seconds of their run, the second one."""
    judge.residuals(sampler)
    began = time.perf_counter()
    found = judge.residuals(sampler)
    seconds = time.perf_counter() - began
    return (np.full(judge.items, np.inf) if found is None else (found**2).sum(1)), seconds


def _root(value: Any) -> float:
    return float(np.sqrt(value))


@contextlib.contextmanager
def _stopping() -> Iterator[list[int]]:
    """A list that Ctrl-C fills, so that a trial is finished first: an interrupt in the midst of it
    may come out of a library as another error. The second Ctrl-C interrupts at once."""
    pressed: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield pressed
        return
    before = signal.getsignal(signal.SIGINT) or signal.default_int_handler

    def note(number: int, frame: Any) -> None:
        pressed.append(number)
        signal.signal(signal.SIGINT, before)

    signal.signal(signal.SIGINT, note)
    try:
        yield pressed
    finally:
        signal.signal(signal.SIGINT, before)


class _Bar:
    """The progress bar of a search, with the error so far."""

    def __init__(self, total: int, shown: bool):
        from tqdm.auto import tqdm

        self._bar = tqdm(
            total=total, desc="fitting", unit="evaluation", disable=not shown, leave=False
        )

    def update(self, evaluations: int, value: float) -> None:
        """Further evaluations, and the least error."""
        self._bar.set_postfix(error=f"{_root(value):.4g}", refresh=False)
        self._bar.update(evaluations)

    def __enter__(self) -> _Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()
