r"""Empirical statistics of a model, and the multistep kind that they define (DPM-Solver-v3).

Instead of the noise itself one extrapolates what is left of it after its linear and exponential
parts are taken away. With lambda = log(alpha / sigma) and three functions l, s, b of lambda

    f = noise - l x / sigma,         df / dlambda is about s f + b along the flow,

and with L, S the integrals of l and s and B the integral of e^-S b, the flow is

    d(e^L x / alpha) = -e^(L - lambda + S) (g + B) dlambda,      g = e^-S f - B.

l makes f depend as little as possible on x: it is the mean of the trace of sigma d(noise) / dx, an
element. Then s and b make g as constant as possible along the flow, by least squares. A polynomial
in lambda (or t) through the g of the last nodes gives the predictor and the corrector, exactly
integrated; their orders are those of the other kinds, whatever the tables are.

(l, s, b) = (0, 0, 0) is the kind "noise" and (1, 1, 0) the kind "data". The paper's f is ours times
e^-lambda, so its s is ours minus 1 and its b is ours times e^-lambda.

References:
    | DPM-Solver-v3: improved diffusion ODE solver with empirical model statistics
    | (Zheng et al., 2023)
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor

from sci import tree
from sci.paths import Path
from sci.samplers import grids
from sci.samplers.loop import mask_for
from sci.spaces import widest

__all__ = ["EmpiricalStatistics", "measure"]

_POINTS, _MASSES = np.polynomial.legendre.leggauss(40)
# Half the distance in lambda over which derivatives along the flow are taken.
_STEP = 0.02
# A rest whose square is below this share of the noise's is rounding.
_NOTHING = 1e-10


@dataclasses.dataclass(frozen=True)
class EmpiricalStatistics:
    """Tables of l, s and b over log-SNR, for one leaf; the `kind` of a `Multistep`.

    Between the points the tables are cubic splines that end flat; beyond them they are constant.
    The fields are plain numbers, so `dataclasses.asdict` and the constructor save and load them.

    Arguments:
        log_snr: (K,) increasing, K >= 1.
        linear: (K,) l, the part of the noise that is linear in x.
        slope: (K,) s, the rate at which the rest grows along the flow, per unit of log-SNR.
        offset: (K,) b, added to that growth; zeros when left out.

    Raises:
        ValueError: when the lengths differ, a value is not finite, or log_snr does not increase.

    Example:
        >>> noise = EmpiricalStatistics([0.0], [0.0], [0.0])      # equals kind="noise"
        >>> data = EmpiricalStatistics([0.0], [1.0], [1.0])       # equals kind="data"

    References:
        | DPM-Solver-v3: improved diffusion ODE solver with empirical model statistics
        | (Zheng et al., 2023)
    """

    log_snr: Sequence[float]
    linear: Sequence[float]
    slope: Sequence[float]
    offset: Sequence[float] = ()

    def __post_init__(self) -> None:
        if not len(self.offset):
            object.__setattr__(self, "offset", (0.0,) * len(self.log_snr))
        for field in dataclasses.fields(self):
            values = tuple(float(value) for value in getattr(self, field.name))
            if len(values) != len(self.log_snr) or not values:
                raise ValueError(
                    f"EmpiricalStatistics: {field.name} has {len(values)} values, expected one for "
                    f"each of the {len(self.log_snr)} points of log_snr, at least one"
                )
            if not np.isfinite(values).all():
                raise ValueError(f"EmpiricalStatistics: {field.name} must be finite, got {values}")
            object.__setattr__(self, field.name, values)
        if not (np.diff(self.log_snr) > 0).all():
            raise ValueError("EmpiricalStatistics: log_snr must increase strictly")

    @functools.cached_property
    def _tables(self) -> tuple[_Table, _Table, _Table]:
        return (
            _Table(self.log_snr, self.linear),
            _Table(self.log_snr, self.slope),
            _Table(self.log_snr, self.offset),
        )

    def shift(self, path: Path, t: np.ndarray) -> np.ndarray:
        """l / sigma at times t: f = noise - shift x."""
        schedule = path.schedule
        return self._tables[0].value(schedule.log_snr(t)) / schedule.sigma(t)

    def scale(self, path: Path, start: np.ndarray, stop: np.ndarray) -> np.ndarray:
        """The factor of the state from one time to another, alpha_t e^-L_t / (alpha_s e^-L_s)."""
        ends = path.schedule.log_snr(start), path.schedule.log_snr(stop)
        linear = self._tables[0]
        decay = np.exp(linear.integral(ends[0]) - linear.integral(ends[1]))
        return path.schedule.alpha(stop) / path.schedule.alpha(start) * decay

    def weights(
        self,
        path: Path,
        variable: str,
        nodes: list[np.ndarray],
        start: np.ndarray,
        stop: np.ndarray,
    ) -> tuple[list[np.ndarray], np.ndarray | None]:
        """What a step multiplies the f of the nodes by, and the constant that it adds.

        Arguments:
            path: of the leaf.
            variable: of the polynomial, "log_snr" or "t".
            nodes: times, each (B,).
            start: (B,) the time that the step begins at.
            stop: (B,) the time that it goes to.

        Returns:
            The weights, each (B,), and (B,) or None when the offset is zero.
        """
        schedule = path.schedule
        first, last = schedule.log_snr(start), schedule.log_snr(stop)
        at, mass = _quadrature(first, last)
        linear, slope, _ = self._tables
        growth = linear.integral(at) - linear.integral(last) - (at - last)
        growth = growth + slope.integral(at) - slope.integral(first)
        density = -schedule.sigma(stop) * mass * np.exp(growth)
        where = schedule.time(at) if variable == "t" else at
        snrs = [schedule.log_snr(node) for node in nodes]
        places = nodes if variable == "t" else snrs
        shares = []
        for this, place in enumerate(places):
            basis = np.ones_like(where)
            for other, apart in enumerate(places):
                if other != this:
                    basis = basis * (where - apart) / (place - apart)
            shares.append((density * basis).sum(0))
        weights = [
            share * np.exp(slope.integral(first) - slope.integral(snr))
            for share, snr in zip(shares, snrs, strict=True)
        ]
        if not any(self.offset):
            return weights, None
        bias = (density * self._drift(first, at)).sum(0)
        for share, snr in zip(shares, snrs, strict=True):
            bias = bias - share * self._drift(first, snr)
        return weights, bias

    def _drift(self, first: np.ndarray, at: np.ndarray) -> np.ndarray:
        """B relative to the start: the integral of e^(S_s - S) b, shaped like `at`."""
        inside, mass = _quadrature(first + 0.0 * at, at)
        _, slope, offset = self._tables
        decay = np.exp(slope.integral(first) - slope.integral(inside))
        return (mass * decay * offset.value(inside)).sum(0)


class _Table:
    """A function of log-SNR from values at points, with its integral."""

    def __init__(self, points: Sequence[float], values: Sequence[float]):
        if len(points) == 1:
            points, values = (points[0], points[0] + 1.0), (values[0], values[0])
        self._low, self._high = points[0], points[-1]
        self._spline = CubicSpline(points, values, bc_type="clamped")
        self._whole = self._spline.antiderivative()

    def value(self, log_snr: np.ndarray) -> np.ndarray:
        return self._spline(np.clip(log_snr, self._low, self._high))

    def integral(self, log_snr: np.ndarray) -> np.ndarray:
        inside = np.clip(log_snr, self._low, self._high)
        return self._whole(inside) + self._spline(inside) * (log_snr - inside)


def _quadrature(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and masses of Gauss-Legendre quadrature on [low, high], in a new first axis."""
    half = 0.5 * (high - low)
    column = (-1,) + (1,) * np.ndim(half)
    return low + half * (_POINTS.reshape(column) + 1.0), half * _MASSES.reshape(column)


def measure(
    denoiser: Any,
    data: Any,
    points: int = 60,
    condition: Any = None,
    grid: Any = "uniform_log_snr",
    probes: int = 1,
    offset: bool = True,
    generator: torch.Generator | None = None,
) -> Any:
    """Estimate the statistics of a denoiser on data, four evaluations an item and point.

    At each point of the grid the data are blurred; l is estimated by random probes z of the leaf's
    space, the sum of sigma z . (d(noise) / dx) z divided by that of z . z; then s and b by least
    squares of df / dlambda, a central difference along the flow, on f and 1. Sums are over all
    items and all independent elements that are present.

    Arguments:
        denoiser: a `Denoiser` or a wrapper, differentiable in the state.
        data: the tree of data, each leaf (B, ...); some hundred items serve.
        points: of the tables, >= 2.
        condition: a tree with a batch axis, or None for the one bound to the denoiser.
        grid: where the points lie, a name or a grid, see `sci.samplers.grids`.
        probes: for each item and point, >= 1.
        offset: whether b is estimated; zero otherwise.
        generator: for noise and probes; torch's own when None.

    Returns:
        The statistics; for a state of several leaves a dict of them by the leaves' names, ready
        for `leaves={name: {"kind": statistics}}`.

    Raises:
        ValueError: for too few points or probes, or when a path predicts no noise; names the leaf.
    """
    if not (points >= 2 and probes >= 1):
        raise ValueError(f"expected points >= 2 and probes >= 1, got {points} and {probes}")
    encode = getattr(denoiser, "encode", None)
    condition = condition if encode is None else encode(condition)
    mask = mask_for(denoiser, condition)
    clean, structure = tree.flatten(data)
    paths = tree.spread(denoiser.paths, structure, Path, "the denoiser's tree of paths")
    for name, path in zip(structure.names, paths, strict=True):
        if "noise" not in path.heads:
            raise ValueError(f"leaf '{name or 'state'}': its path predicts no noise")
    times = grids.find(grid)(structure.unflatten(paths), points - 1)

    def noise_of(leaves: list[Tensor], t: float) -> list[Tensor]:
        return tree.leaves(denoiser(structure.unflatten(leaves), t, condition, to="noise"))

    blurred = [
        _Leaf(path, leaf, mask, probes, generator) for path, leaf in zip(paths, clean, strict=True)
    ]
    linear = np.array([_linear_parts(blurred, t, noise_of) for t in times.tolist()])
    found = []
    for place, leaf in enumerate(blurred):
        log_snr = leaf.path.schedule.log_snr(times)
        zeros = [0.0] * points
        found.append(EmpiricalStatistics(log_snr.tolist(), linear[:, place].tolist(), zeros))
    with torch.no_grad():
        growth = np.array([_growth(blurred, found, t, noise_of, offset) for t in times.tolist()])
    found = [
        dataclasses.replace(
            one, slope=growth[:, place, 0].tolist(), offset=growth[:, place, 1].tolist()
        )
        for place, one in enumerate(found)
    ]
    names = [name or "state" for name in structure.names]
    return found[0] if structure.build is None else dict(zip(names, found, strict=True))


class _Leaf:
    """A leaf's data and noise, their mixture at any time, and its probes.

    All are the same at every time, so that the tables are smooth however few items there are.
    """

    def __init__(
        self,
        path: Path,
        data: Tensor,
        mask: Tensor | None,
        probes: int,
        generator: torch.Generator | None,
    ):
        self.path, self.mask = path, mask
        self.data = path.project(data, mask)
        self.noise = path.random(self.data, mask, generator)
        self.probes = [path.space.random(self.data, mask, generator) for _ in range(probes)]

    def at(self, t: float) -> Tensor:
        return self.path.corrupt(self.data, self.noise, t)

    def inner(self, first: Tensor, second: Tensor) -> float:
        """Over all items, each independent element once."""
        wide = widest(first.device)
        return float(self.path.space.inner(first.to(wide), second.to(wide), self.mask).sum())


def _linear_parts(leaves: list[_Leaf], t: float, noise_of: Any) -> list[float]:
    """l of every leaf at one time."""
    with torch.enable_grad():
        states = [leaf.at(t).detach().requires_grad_() for leaf in leaves]
        outputs = noise_of(states, t)
        parts = []
        for leaf, state, output in zip(leaves, states, outputs, strict=True):
            total = size = 0.0
            for probe in leaf.probes:
                size += leaf.inner(probe, probe)
                if output.requires_grad:
                    (pulled,) = torch.autograd.grad(
                        output, state, probe, retain_graph=True, materialize_grads=True
                    )
                    total += leaf.inner(pulled, probe)
            # The probes' own size rather than the dimension: then a multiple of 1 has no variance.
            parts.append(leaf.path.schedule.sigma(t) * total / size if size else 0.0)
    return parts


def _growth(
    leaves: list[_Leaf],
    statistics: list[EmpiricalStatistics],
    t: float,
    noise_of: Any,
    offset: bool,
) -> list[tuple[float, float]]:
    """s and b of every leaf at one time."""
    schedule = leaves[0].path.schedule
    low, high = (float(schedule.time(schedule.log_snr(t) + shift)) for shift in (-_STEP, _STEP))
    low, high = max(low, 1e-6), min(high, 1.0 - 1e-6)
    middle = [leaf.at(t) for leaf in leaves]
    noises = noise_of(middle, t)
    rests = [_rest(*group, t) for group in zip(leaves, statistics, middle, noises, strict=True)]
    sides = []
    for other in (low, high):
        moved = [
            leaf.path.corrupt(leaf.path.convert(noise, "noise", "data", x, t), noise, other)
            for leaf, x, noise in zip(leaves, middle, noises, strict=True)
        ]
        found = noise_of(moved, other)
        sides.append(
            [_rest(*group, other) for group in zip(leaves, statistics, moved, found, strict=True)]
        )
    out = []
    for leaf, noise, rest, before, after in zip(leaves, noises, rests, *sides, strict=True):
        clock = leaf.path.schedule
        rate = (after - before) / (clock.log_snr(high) - clock.log_snr(low))
        one = leaf.path.project(torch.ones_like(rest), leaf.mask)
        squares, sums, count = leaf.inner(rest, rest), leaf.inner(rest, one), leaf.inner(one, one)
        crossed, drift = leaf.inner(rest, rate), leaf.inner(one, rate)
        determinant = squares * count - sums**2
        if squares <= _NOTHING * leaf.inner(noise, noise):
            out.append((0.0, 0.0))
        # Where the rest does not vary, or the space has no constants, the offset says nothing.
        elif offset and determinant > 1e-6 * squares * count:
            slope = (crossed * count - drift * sums) / determinant
            out.append((slope, (drift - slope * sums) / count))
        else:
            out.append((crossed / squares, 0.0))
    return out


def _rest(
    leaf: _Leaf, statistics: EmpiricalStatistics, x: Tensor, noise: Tensor, t: float
) -> Tensor:
    """f = noise - l x / sigma."""
    return noise - float(statistics.shift(leaf.path, np.asarray(t))) * x
