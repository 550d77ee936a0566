"""Schedules from tables of levels and from functions."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.schedules.base import Schedule

__all__ = ["Custom", "Levels", "Table", "Tabulated"]


class Table:
    """A curve of polynomial pieces, on every device that asks; its end pieces go on outside.

    Arguments:
        ends: (n + 1,) increasing, where the pieces end.
        coefficients: (k, n) of the powers k - 1, ..., 0 of the distance to the start of the piece.
    """

    def __init__(self, ends: np.ndarray, coefficients: np.ndarray):
        self._ends, self._powers = ends, [coefficients]
        for order in range(len(coefficients) - 1, 0, -1):
            # The derivatives, one after the other.
            before = self._powers[-1]
            self._powers.append(before[:-1] * np.arange(order, 0, -1)[:, None])
        self.pieces = len(ends) - 1
        self._moved: dict[tuple[torch.device, torch.dtype], Any] = {}

    @classmethod
    def lines(cls, values: np.ndarray) -> Table:
        """Straight between values at equal distances from 0 to 1."""
        ends = np.linspace(0.0, 1.0, len(values))
        return cls(ends, np.stack([np.diff(values) * (len(values) - 1), values[:-1]]))

    def __call__(self, t: Any, xp: Any, derivative: int = 0) -> Any:
        """The value at t, or a derivative there; xp is numpy or torch."""
        ends, powers = (self._ends, self._powers) if xp is np else self._on(t)
        found = xp.searchsorted(ends, t, side="right") - 1
        piece = xp.clip(found, 0, self.pieces - 1)
        step, out = t - ends[piece], 0.0 * t
        for coefficient in powers[derivative]:
            out = out * step + coefficient[piece]
        return out

    def _on(self, t: Tensor) -> tuple[Any, list[Any]]:
        key = t.device, t.dtype
        if key not in self._moved:
            with torch.inference_mode(False):
                wide: dict[str, Any] = {"dtype": t.dtype, "device": t.device}
                powers = [torch.as_tensor(power, **wide) for power in self._powers]
                self._moved[key] = torch.as_tensor(self._ends, **wide), powers
        return self._moved[key]


class Levels(Schedule):
    """Explicit noise levels, as a trained discrete model has them, with log-linear interpolation.

    Level k of n is at t = k / (n - 1); between levels log alpha and log sigma are linear in t.

    Arguments:
        sigmas: (n,) positive, n >= 2, from the source to the data.
        alphas: (n,) positive; ones when None.
        source_std: what sampling starts from; sigmas[0] when None.

    Raises:
        ValueError: when values are not positive or log(alpha / sigma) does not increase.
    """

    def __init__(
        self,
        sigmas: Sequence[float] | np.ndarray,
        alphas: Sequence[float] | np.ndarray | None = None,
        source_std: float | None = None,
    ):
        sigma = np.asarray(sigmas, dtype=np.float64)
        alpha = np.ones_like(sigma) if alphas is None else np.asarray(alphas, dtype=np.float64)
        if sigma.ndim != 1 or sigma.shape != alpha.shape or len(sigma) < 2:
            raise ValueError(
                f"Levels: expected two or more levels, got shapes {sigma.shape}, {alpha.shape}"
            )
        if not ((sigma > 0) & (alpha > 0) & np.isfinite(sigma) & np.isfinite(alpha)).all():
            raise ValueError("Levels: alphas and sigmas must be positive and finite")
        logs = np.log(alpha), np.log(sigma)
        if not (np.diff(logs[0] - logs[1]) > 0).all():
            raise ValueError("Levels: log(alpha / sigma) must increase from the source to the data")
        self.levels = len(sigma)
        self._curves = Table.lines(logs[0]), Table.lines(logs[1])
        self.source_std = float(sigma[0] if source_std is None else source_std)

    def _log_alpha(self, t: Any, xp: Any) -> Any:
        return self._curves[0](t, xp)

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return self._curves[1](t, xp)

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return self._curves[0](t, xp, 1) * self._alpha(t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return self._curves[1](t, xp, 1) * self._sigma(t, xp)


class Custom(Schedule):
    """Any pair of functions, with derivatives by autograd and the inverse by bisection.

    Arguments:
        alpha: torch function of a float64 tensor, non-negative, elementwise.
        sigma: the same for the noise; alpha / sigma must increase with t.
        span: times between which sampling runs.
        source_std: what sampling starts from.

    Raises:
        ValueError: when log(alpha / sigma) does not increase along the span.

    Example:
        >>> import torch
        >>> schedule = Custom(lambda t: t**2, lambda t: 1 - t**2, span=(0.01, 0.99))
        >>> round(schedule.alpha_dot(0.5), 6)
        1.0
    """

    def __init__(
        self,
        alpha: Callable[[Tensor], Tensor],
        sigma: Callable[[Tensor], Tensor],
        span: tuple[float, float] = (1e-3, 1.0 - 1e-3),
        source_std: float = 1.0,
    ):
        self._functions = alpha, sigma
        self.span, self.source_std = span, float(source_std)
        probe = self.log_snr(np.linspace(*span, 65))
        if not (np.diff(probe) > 0).all():
            raise ValueError("Custom: log(alpha / sigma) must increase with t along the span")

    def _evaluate(self, which: int, t: Any, xp: Any) -> Any:
        if xp is np:
            return self._functions[which](torch.as_tensor(t)).detach().numpy()
        return self._functions[which](t)

    def _alpha(self, t: Any, xp: Any) -> Any:
        return self._evaluate(0, t, xp)

    def _sigma(self, t: Any, xp: Any) -> Any:
        return self._evaluate(1, t, xp)

    def _slope(self, which: int, t: Any, xp: Any) -> Any:
        with torch.enable_grad():
            time = (torch.as_tensor(t) if xp is np else t).detach().clone().requires_grad_()
            value = self._functions[which](time)
            if not value.requires_grad:
                return 0.0 * t
            (slope,) = torch.autograd.grad(value.sum(), time)
        return slope.numpy() if xp is np else slope

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return self._slope(0, t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return self._slope(1, t, xp)


class Tabulated(Schedule):
    """A schedule from a table, smooth (monotone cubic) in the angle theta = atan(alpha / sigma).

        alpha = r(t) sin theta(t),    sigma = r(t) cos theta(t)

    Arguments:
        times: (n,) increasing from 0 to 1.
        log_snr: (n,) increasing; infinite values are allowed at the ends.
        radius: (n,) positive, r = sqrt(alpha^2 + sigma^2); ones when None.
        span: times between which sampling runs; those of the finite values when None.
        source_std: what sampling starts from; r(0) when None.

    Raises:
        ValueError: when the table is not increasing or its shapes differ.
    """

    def __init__(
        self,
        times: Sequence[float] | np.ndarray,
        log_snr: Sequence[float] | np.ndarray,
        radius: Sequence[float] | np.ndarray | None = None,
        span: tuple[float, float] | None = None,
        source_std: float | None = None,
    ):
        from scipy.interpolate import PchipInterpolator

        t, table = np.asarray(times, np.float64), np.asarray(log_snr, np.float64)
        size = np.ones_like(t) if radius is None else np.asarray(radius, np.float64)
        if t.ndim != 1 or not t.shape == table.shape == size.shape or len(t) < 2:
            raise ValueError(
                f"Tabulated: shapes differ or are too short: {t.shape}, {table.shape}, {size.shape}"
            )
        if t[0] != 0 or t[-1] != 1 or not ((np.diff(t) > 0).all() and (np.diff(table) > 0).all()):
            raise ValueError("Tabulated: times must run from 0 to 1, times and log_snr increasing")
        if not (size > 0).all():
            raise ValueError("Tabulated: the radius must be positive")
        with np.errstate(over="ignore"):
            angle = PchipInterpolator(t, np.arctan(np.exp(table)))
        length = PchipInterpolator(t, size)
        self._angle, self._length = (Table(curve.x, curve.c) for curve in (angle, length))
        finite = t[np.isfinite(table)]
        self.span = (float(finite[0]), float(finite[-1])) if span is None else span
        self.source_std = float(size[0] if source_std is None else source_std)

    @classmethod
    def kinetic_optimal(
        cls,
        angles: Sequence[float] | np.ndarray,
        energy: Sequence[float] | np.ndarray,
        scale: float = 1.0,
    ) -> Tabulated:
        """The path of least kinetic energy E |dx/dt|^2 of the flow.

        In polar form, scale alpha = r sin theta and sigma = r cos theta, the energy per dimension
        is the integral of r'^2 + r^2 phi'^2 with

            d phi = sqrt(1 - (1 - energy) / cos^2 theta) d theta,

        so the best path is the straight chord in the warped plane (r, phi), from r = 1 at phi = 0
        to r = scale at the whole angle Phi. Its energy is 1 + scale^2 - 2 scale cos Phi. With
        energy = 1 it is `CondOT`. `sci.kinetic` measures the table.

        Arguments:
            angles: (n,) theta = atan(scale alpha / sigma), increasing from 0 to pi / 2.
            energy: (n,) E |data prediction|^2 over E |data|^2 at that angle, in [0, 1].
            scale: the root of the mean square of an element of the data, > 0.

        Returns:
            The schedule, on a table of n times.

        Raises:
            ValueError: when the angles do not increase from 0 to pi / 2, or the scale is not
                positive.

        References:
            | On kinetic optimal probability paths for generative models (Shaul et al., 2023)
        """
        theta, share = np.asarray(angles, np.float64), np.asarray(energy, np.float64)
        if (
            theta.ndim != 1
            or theta.shape != share.shape
            or len(theta) < 3
            or theta[0] != 0
            or not np.isclose(theta[-1], np.pi / 2)
            or not (np.diff(theta) > 0).all()
        ):
            raise ValueError(
                "kinetic_optimal: expected three or more angles that increase from 0 to pi / 2, "
                f"one energy each; got shapes {theta.shape} and {share.shape}"
            )
        if not scale > 0:
            raise ValueError(f"kinetic_optimal: scale must be positive, got {scale}")
        with np.errstate(divide="ignore", invalid="ignore"):
            speed = 1.0 - np.where(share >= 1.0, 0.0, (1.0 - share) / np.cos(theta) ** 2)
        speed = np.sqrt(np.clip(speed, 1e-12, 1.0))
        # At the last angle the quotient is 0 / 0; its neighbour is as good as the limit.
        speed[-1] = speed[-2]
        steps = 0.5 * (speed[1:] + speed[:-1]) * np.diff(theta)
        warped = np.concatenate([[0.0], np.cumsum(steps)])
        across = np.sin(warped) + scale * np.sin(warped[-1] - warped)
        times = np.sin(warped) / across
        times[0], times[-1] = 0.0, 1.0
        radius = scale * np.sin(warped[-1]) / across
        # Back from units in which the data have mean square 1.
        alpha, sigma = radius * np.sin(theta) / scale, radius * np.cos(theta)
        with np.errstate(divide="ignore"):
            log_snr = np.log(alpha) - np.log(sigma)
        log_snr[-1] = np.inf
        return cls(times, log_snr, np.hypot(alpha, sigma), span=(0.0, 1.0))

    def _alpha(self, t: Any, xp: Any) -> Any:
        return self._length(t, xp) * xp.sin(self._angle(t, xp))

    def _sigma(self, t: Any, xp: Any) -> Any:
        return self._length(t, xp) * xp.sin(0.5 * math.pi - self._angle(t, xp))

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        angle, turn = self._angle(t, xp), self._length(t, xp) * self._angle(t, xp, 1)
        return self._length(t, xp, 1) * xp.sin(angle) + turn * xp.cos(angle)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        angle, turn = self._angle(t, xp), self._length(t, xp) * self._angle(t, xp, 1)
        return self._length(t, xp, 1) * xp.cos(angle) - turn * xp.sin(angle)
