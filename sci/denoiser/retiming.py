"""Another clock for a trained denoiser: wrappers that change when, and on which schedule, it is
asked.

`Rescheduled` samples on any other schedule. Two states are the same up to their scale when their
log-SNR is the same, so with lambda'(t') = lambda(t) and r = sqrt(alpha^2 + sigma^2)

    x = x' r(t) / r'(t'),    data, noise and difference unchanged,

and the network never notices. `Annealed` keeps the network's time and changes the schedule that
one leaf follows under it; `TimeShift`, beside them, keeps the schedule and corrects the network's
time.
"""

from __future__ import annotations

import difflib
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.denoiser.wrapped import Retimed
from sci.paths import CategoricalPath, Path, like_time
from sci.schedules import Exponential, Schedule

__all__ = ["Annealed", "Rescheduled"]

# Predictions that mean the same on every schedule.
_FREE = ("data", "noise", "difference")
# How far the clocks of several leaves may be apart, in path time.
_TOGETHER = 1e-6
# Clocks at float times are remembered: a sampler visits the same times in every batch.
_REMEMBERED = 4096


class Rescheduled(Retimed):
    """A trained denoiser sampled on another schedule, exactly.

    Sampling runs between the times at which the new schedule has the log-SNR of the trained span's
    ends (or its own span's, where that is narrower), and starts from the trained source, rescaled:
    with many steps and the same seed the samples are those of the trained schedule times r' / r at
    the end. What changes is where the steps lie and what a solver takes for a straight line.

    With several leaves the new schedules must ask for one common trained time. On rotations and
    classes the share of the data, alpha, stands for the log-SNR, and there is no scale.

    Arguments:
        denoiser: a `Denoiser`, or a wrapper of one.
        schedules: one schedule, or a tree of them with the state's names. Paths serve as well:
            their schedules are taken.

    Raises:
        ValueError: when the leaves' clocks differ, or the schedules share no range of log-SNR.
        TypeError: when a path has no data predictions, such as an interpolant with noise.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import VP, CondOT
        >>> trained = Denoiser(lambda x, t, condition: 0 * x, GaussianPath(VP()))
        >>> straight = Rescheduled(trained, CondOT())
        >>> [round(time, 4) for time in straight.paths.span]
        [0.0065, 0.9896]

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
        | On kinetic optimal probability paths for generative models (Shaul et al., 2023)
    """

    def __init__(self, denoiser: Any, schedules: Any):
        super().__init__(denoiser)
        trained, structure = tree.flatten(denoiser.paths, Path)
        given = tree.spread(schedules, structure, (Path, Schedule), "schedules")
        self._names = [name or "state" for name in structure.names]
        self._trained = trained
        self._new = [
            _moved(name, path, value.schedule if isinstance(value, Path) else value)
            for name, path, value in zip(self._names, trained, given, strict=True)
        ]
        self._outer = structure.unflatten(self._new)
        self._clock: dict[float, tuple[float, list[float | None]]] = {}
        self._compare()

    @property
    def paths(self) -> Any:
        """The trained paths on the new schedules."""
        return self._outer

    def trained_time(self, t: Any) -> Any:
        """The time at which the network is asked when the sampler is at t: a float or (B,)."""
        return self._time_of(0, t)

    def _time_of(self, place: int, t: Any) -> Any:
        """The time at which a trained leaf has as much data in it as the new one at t."""
        old, new = self._trained[place], self._new[place]
        low, high = (_level(old, end) for end in old.span)
        level = _level(new, t)
        if isinstance(t, Tensor):
            return _when(old, old.schedule, level.clamp(low, high)).clamp(0.0, 1.0)
        found = np.clip(_when(old, old.schedule, np.clip(level, low, high)), 0.0, 1.0)
        return found if isinstance(t, np.ndarray) else float(found)

    def _compare(self) -> None:
        """Raise a ValueError when two leaves ask for different trained times."""
        low = max(path.span[0] for path in self._new)
        high = min(path.span[1] for path in self._new)
        if not low < high:
            raise ValueError(
                f"Rescheduled: the leaves {self._names} share no times: their spans are "
                f"{[path.span for path in self._new]}"
            )
        probe = np.linspace(low, high, 33)
        clocks = [self._time_of(place, probe) for place in range(len(self._new))]
        for name, clock in zip(self._names, clocks, strict=True):
            apart = np.abs(clock - clocks[0])
            worst = int(apart.argmax())
            if apart[worst] > _TOGETHER:
                raise ValueError(
                    f"Rescheduled: at t = {probe[worst]:.4g} leaf '{self._names[0]}' asks for the "
                    f"trained time {clocks[0][worst]:.4g} and leaf '{name}' for "
                    f"{clock[worst]:.4g}, but the network has one time. Give schedules that move "
                    "every leaf's log-SNR alike, or sci.denoiser.Annealed for a leaf that is to "
                    "run ahead"
                )

    def _kinds(self, structure: tree.Structure, wanted: list[str]) -> list[str]:
        return [
            "data" if not _linear(old) else kind if kind in _FREE else "difference"
            for old, kind in zip(self.denoiser.layout(structure)[0], wanted, strict=True)
        ]

    def _ask(
        self,
        leaves: list[Tensor],
        structure: tree.Structure,
        t: Tensor | float,
        condition: Any,
        kinds: list[str],
    ) -> list[Tensor]:
        # The layout follows the state's names, whatever their order in the tree of paths.
        trained = self.denoiser.layout(structure)[0]
        new = self.layout(structure)[0]
        if isinstance(t, Tensor):
            time: Any = self._time_of(0, t)
            scaled = [
                x * like_time(_radius(old, time) / _radius(path, t), x) if _linear(old) else x
                for x, old, path in zip(leaves, trained, new, strict=True)
            ]
        else:
            found = self._clock.get(t)
            if found is None:
                if len(self._clock) >= _REMEMBERED:
                    self._clock.clear()
                time = self._time_of(0, t)
                ratios = [
                    float(_radius(old, time) / _radius(path, t)) if _linear(old) else None
                    for old, path in zip(trained, new, strict=True)
                ]
                found = self._clock[t] = time, ratios
            time = found[0]
            scaled = [
                x if ratio is None else x * ratio for x, ratio in zip(leaves, found[1], strict=True)
            ]
        state = structure.unflatten(scaled)
        return tree.leaves(self.denoiser(state, time, condition, to=structure.unflatten(kinds)))


def _linear(path: Path) -> bool:
    """Whether x_t is alpha data + sigma noise; curved and discrete leaves only have alpha."""
    return "difference" in path.heads


def _radius(path: Path, t: Any) -> Any:
    return (path.schedule.alpha(t) ** 2 + path.schedule.sigma(t) ** 2) ** 0.5


def _level(path: Path, t: Any, schedule: Schedule | None = None) -> Any:
    """What two states that are the same up to their scale have in common: the log-SNR, or the
    share of the data on curved and discrete leaves."""
    schedule = path.schedule if schedule is None else schedule
    return schedule.log_snr(t) if _linear(path) else schedule.alpha(t)


def _when(path: Path, schedule: Schedule, level: Any) -> Any:
    """The time at which a schedule of the path has a level; shaped like it."""
    if _linear(path):
        return schedule.time(level)
    low, high = 0.0 * level, 0.0 * level + 1.0
    where = torch.where if isinstance(level, Tensor) else np.where
    for _ in range(54):
        middle = 0.5 * (low + high)
        below = schedule.alpha(middle) < level
        low, high = where(below, middle, low), where(below, high, middle)
    return 0.5 * (low + high)


def _moved(name: str, path: Path, schedule: Schedule) -> Path:
    """The path on another schedule, where both have the same levels."""
    if "data" not in path.heads:
        raise TypeError(
            f"leaf '{name}' has {path!r} with the kinds {', '.join(sorted(path.heads))}: expected "
            "a path that has data predictions"
        )
    if hasattr(path, "with_rate"):
        # Not every schedule is a rate; this refuses those.
        path = path.with_rate(schedule).rescheduled(path.schedule, path.span, path.source_std)
    old = path.schedule
    span = schedule.span if _linear(path) else (0.0, 1.0)
    ends = np.array([_level(path, end) for end in path.span])
    reach = np.array([_level(path, end, schedule) for end in span])
    if not (ends[0] < reach[1] and reach[0] < ends[1]):
        what = "log-SNR" if _linear(path) else "a share of the data of"
        raise ValueError(
            f"leaf '{name}': {schedule!r} has {what} {reach[0]:.3g} to {reach[1]:.3g} on its "
            f"span, {old!r} was trained on {ends[0]:.3g} to {ends[1]:.3g}: expected some overlap"
        )
    shared = np.clip(ends, *reach)
    start, stop = (float(np.clip(_when(path, schedule, end), 0.0, 1.0)) for end in shared)
    std = None if _linear(path) else path.source_std
    if _linear(path) and shared[0] == ends[0]:
        std = path.source_std * float(
            np.hypot(schedule.alpha(start), schedule.sigma(start))
            / np.hypot(old.alpha(path.span[0]), old.sigma(path.span[0]))
        )
    return path.rescheduled(schedule, (start, stop), std)


class Annealed(Retimed):
    """Some leaves follow another schedule, while the network is given the unchanged time.

    A leaf that runs ahead of the others, such as the rotations of a protein whose positions take
    shape later, can sample better than on the schedule that both were trained on. The state of
    such a leaf at t has the new schedule's noise; the network's data prediction is taken as it is
    and the new schedule makes velocity, noise and score of it. A network that predicts the noise
    or the difference is taken at that word instead.

    Arguments:
        denoiser: a `Denoiser`, or a wrapper of one.
        rates: {leaf: rate}: a schedule; a number c for `sci.schedules.Exponential(c)`; or a path
            that replaces the leaf's, the way for rotations and classes (`sci.GeodesicPath`). The leaf
            of a bare tensor is "state".

    Raises:
        KeyError: for a leaf that the denoiser does not have; lists close names.
        TypeError: for a rate that is none of these.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> trained = Denoiser(lambda x, t, condition: 0 * x + 1, GaussianPath(CondOT()))
        >>> Annealed(trained, {"state": 10.0})(torch.zeros(1, 2), 0.5, to="velocity")
        tensor([[10., 10.]])

    References:
        | Fast protein backbone generation with SE(3) flow matching (Yim et al., 2023)
        | ReQFlow: rectified quaternion flow for efficient and high-quality protein backbone
        | generation (Yue et al., 2025)
    """

    def __init__(self, denoiser: Any, rates: dict[str, Any]):
        super().__init__(denoiser)
        found, structure = tree.flatten(denoiser.paths, Path)
        names = [name or "state" for name in structure.names]
        for name in rates:
            if name not in names:
                close = difflib.get_close_matches(str(name), names, n=1) or names
                raise KeyError(f"no leaf '{name}': expected {' or '.join(close)}")
        self._outer = structure.unflatten(
            [
                _annealed(name, path, rates[name]) if name in rates else path
                for name, path in zip(names, found, strict=True)
            ]
        )

    @property
    def paths(self) -> Any:
        """The inner denoiser's paths, with the new schedules."""
        return self._outer

    def _kinds(self, structure: tree.Structure, wanted: list[str]) -> list[str]:
        trained, kinds = self.denoiser.layout(structure)
        return [
            target if old is new else kind if kind in _FREE else "data"
            for old, new, kind, target in zip(
                trained, self.layout(structure)[0], kinds, wanted, strict=True
            )
        ]

    def _ask(
        self,
        leaves: list[Tensor],
        structure: tree.Structure,
        t: Tensor | float,
        condition: Any,
        kinds: list[str],
    ) -> list[Tensor]:
        state = structure.unflatten(leaves)
        return tree.leaves(self.denoiser(state, t, condition, to=structure.unflatten(kinds)))


def _annealed(name: str, path: Path, rate: Any) -> Path:
    if isinstance(rate, Path):
        unlike = type(rate) is not type(path) or rate.space != path.space
        if isinstance(path, CategoricalPath) and isinstance(rate, CategoricalPath):
            unlike = unlike or not torch.equal(path.law, rate.law)
        if unlike:
            raise TypeError(f"leaf '{name}' has {path!r}, which {rate!r} cannot replace")
        return rate
    if isinstance(rate, (int, float)) and not isinstance(rate, bool):
        rate = Exponential(float(rate))
    if not isinstance(rate, Schedule):
        raise TypeError(
            f"leaf '{name}': the rate is a {type(rate).__name__}: expected a schedule, a number "
            "or a path"
        )
    if "difference" not in path.heads:
        raise TypeError(
            f"leaf '{name}' has a {type(path).__name__}: give it a path with its own rate"
        )
    return path.rescheduled(rate)
