"""Paths: a schedule and a space, and what a network may predict on them.

    x_t = alpha(t) data + sigma(t) noise

Kinds of predictions, each a linear form a data + b noise of the two expectations given x_t:

    data         (1, 0)
    noise        (0, 1)
    score        (0, -1 / sigma)                    the gradient of log p_t
    velocity     (alpha', sigma')                   dx/dt along the path
    angular      (-sigma, alpha) / sqrt(alpha^2 + sigma^2)   the v of v-prediction
    difference   (1, -1)                            data - noise; the velocity of `CondOT`

Since x_t itself is alpha data + sigma noise, any kind gives any other one by a linear map whose
coefficients depend on t alone; `convert` applies it. A state of several parts has a tree of paths
with the state's names, under one clock t.
"""

from __future__ import annotations

import copy
import difflib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.noise import Noise
from sci.schedules import Schedule
from sci.spaces import Euclidean, Space

__all__ = ["KINDS", "GaussianPath", "Path"]

KINDS = ("data", "noise", "score", "velocity", "angular", "difference")
# Conversions at float times are remembered: a sampler visits the same times in every batch.
_REMEMBERED = 4096


def check_kind(kind: str, allowed: Sequence[str] | frozenset[str], what: str) -> None:
    """Raise a ValueError that lists close names when `kind` is not allowed."""
    if kind not in allowed:
        close = difflib.get_close_matches(str(kind), list(allowed), n=2)
        hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
        raise ValueError(f"{what} '{kind}'{hint}: expected one of {', '.join(sorted(allowed))}")


def like_time(values: Tensor, x: Tensor) -> Tensor:
    """(B,) coefficients as (B, 1, ...) in the dtype and on the device of x."""
    return values.to(dtype=x.dtype, device=x.device).view((-1,) + (1,) * (x.dim() - 1))


class Path:
    """Base of the linear paths: x_t = alpha(t) data + sigma(t) noise on a space.

    Arguments:
        schedule: alpha and sigma.
        space: where the leaf lives; Euclidean unless told.
        source_std: the standard deviation that sampling starts from; the schedule's when None.
        span: the times between which sampling runs unless told; the schedule's when None.

    Raises:
        TypeError: when the schedule or the space is of another type.
        ValueError: when source_std is not positive, or the span is no interval in [0, 1].
    """

    heads: frozenset[str] = frozenset(KINDS)

    def __init__(
        self,
        schedule: Schedule,
        space: Space | None = None,
        source_std: float | None = None,
        span: tuple[float, float] | None = None,
    ):
        if not isinstance(schedule, Schedule):
            raise TypeError(
                f"schedule is a {type(schedule).__name__}: expected one of sci.schedules, such as "
                "sci.schedules.Cosine(); wrap your own functions in sci.schedules.Custom"
            )
        if space is not None and not isinstance(space, Space):
            raise TypeError(f"space is a {type(space).__name__}: expected one of sci.spaces")
        if source_std is not None and not source_std > 0:
            raise ValueError(f"source_std must be positive, got {source_std}")
        if span is not None and not 0 <= span[0] < span[1] <= 1:
            raise ValueError(f"span must be an interval in [0, 1], got {span}")
        self.schedule = schedule
        self.space = Euclidean() if space is None else space
        self.source_std = float(schedule.source_std if source_std is None else source_std)
        self._span = span
        self._remembered: dict[tuple[str, str, float], tuple[float, float]] = {}

    @property
    def span(self) -> tuple[float, float]:
        """The times between which training and sampling run unless told."""
        return self.schedule.span if self._span is None else self._span

    def rescheduled(
        self,
        schedule: Schedule,
        span: tuple[float, float] | None = None,
        source_std: float | None = None,
    ) -> Any:
        """This path on another schedule, with the same space and everything else.

        Arguments:
            schedule: alpha and sigma.
            span: as for the path; the schedule's when None.
            source_std: as for the path; the schedule's when None.
        """
        other = copy.copy(self)
        other.schedule, other._span, other._remembered = schedule, span, {}
        other.source_std = float(schedule.source_std if source_std is None else source_std)
        return other

    def deviation(self, t: Any) -> Any:
        """The standard deviation of the noise in the state at t: sigma(t), shaped like t."""
        return self.schedule.sigma(t)

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """The state at time t: alpha data + sigma noise.

        Arguments:
            data: (B, ...).
            noise: (B, ...) of unit variance, in the space.
            t: (B,) or a float, in [0, 1].

        Returns:
            (B, ...) in the dtype of data.
        """
        return self._combine("corrupt", data, noise, t)

    def target(self, kind: str, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """What a network of some kind should predict; arguments as for `corrupt`."""
        check_kind(kind, self.heads, "prediction kind")
        if kind in ("data", "noise"):
            return data if kind == "data" else noise
        return self._combine(kind, data, noise, t)

    def _combine(self, kind: str, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        first, second = self._form(kind, t)
        if isinstance(t, Tensor):
            return like_time(first, data) * data + like_time(second, noise) * noise
        return first * data + second * noise

    def convert(
        self, prediction: Tensor, kind: str, to: str, x: Tensor, t: Tensor | float
    ) -> Tensor:
        """Turn a prediction of one kind into another.

        Arguments:
            prediction: (B, ...) of kind `kind`.
            kind: what it is.
            to: what is wanted.
            x: (B, ...) the state that it was predicted from.
            t: (B,) or a float, in [0, 1]. Where alpha or sigma vanishes some conversions are
                infinite.

        Returns:
            (B, ...), like the prediction.

        Raises:
            ValueError: for a kind that this path does not have.
        """
        if kind == to:
            return prediction
        if isinstance(t, Tensor):
            factor, shift = self.coefficients(kind, to, t)
            return like_time(factor, prediction) * prediction + like_time(shift, x) * x
        factor, shift = self.coefficients(kind, to, t)
        if factor == 1.0:
            return torch.add(prediction, x, alpha=shift)
        wide = prediction.dtype is torch.float64
        return torch.add(prediction * _scalar(factor, wide), x, alpha=shift)

    def coefficients(self, kind: str, to: str, t: Any) -> tuple[Any, Any]:
        """The pair (A, B) with `to` = A prediction + B x, of the type of t: float or float64.

        Raises:
            ValueError: for a kind that this path does not have.
        """
        if isinstance(t, Tensor):
            return self._solve(kind, to, t)
        address = (kind, to, t)
        found = self._remembered.get(address)
        if found is None:
            if len(self._remembered) >= _REMEMBERED:
                self._remembered.clear()
            pair = self._solve(kind, to, np.asarray(t, dtype=np.float64))
            found = self._remembered[address] = float(pair[0]), float(pair[1])
        return found

    def _solve(self, kind: str, to: str, t: Any) -> tuple[Any, Any]:
        for name in (kind, to):
            check_kind(name, self.heads, f"{type(self).__name__} has no prediction kind")
        with np.errstate(divide="ignore", invalid="ignore"):
            # One is the other times a number, even where the state is nothing but noise.
            if (kind, to) == ("noise", "score"):
                return -1.0 / self.schedule.sigma(t), 0.0 * t
            if (kind, to) == ("score", "noise"):
                return -self.schedule.sigma(t), 0.0 * t
            alpha, sigma = self.schedule.alpha(t), self.schedule.sigma(t)
            given, wanted = self._form(kind, t), self._form(to, t)
            determinant = given[0] * sigma - given[1] * alpha
            factor = (wanted[0] * sigma - wanted[1] * alpha) / determinant
            shift = (given[0] * wanted[1] - given[1] * wanted[0]) / determinant
        return factor, shift

    def _form(self, kind: str, t: Any) -> tuple[Any, Any]:
        """(a, b) of the linear form a data + b noise."""
        schedule = self.schedule
        zero = 0.0 * t
        if kind == "data":
            return zero + 1.0, zero
        if kind == "noise":
            return zero, zero + 1.0
        if kind == "difference":
            return zero + 1.0, zero - 1.0
        if kind == "velocity":
            return schedule.alpha_dot(t), schedule.sigma_dot(t)
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if kind == "corrupt":
            return alpha, sigma
        if kind == "score":
            return zero, -1.0 / sigma
        radius = (alpha**2 + sigma**2) ** 0.5
        return -sigma / radius, alpha / radius

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """A state or a prediction, moved to the nearest one of the space and zero where masked."""
        return self.space.project(x, mask)

    def random(
        self, like: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """The noise end in training: standard noise of the space.

        Arguments:
            like: (B, ...) gives the shape, dtype and device.
            mask: (B, N) bool or None.
            generator: torch's own when None.
        """
        return self.space.random(like, mask, generator)

    def latent(
        self, like: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Noise between the ends, which `corrupt` and `target` then take as `latent`; None where
        the path has none. Arguments as for `random`."""
        return None

    def source(
        self, noise: Noise, leaf: int | str, like: Tensor, mask: Tensor | None = None
    ) -> Tensor:
        """What sampling starts from: source_std times standard noise, at step -1 of the stream.

        Arguments:
            noise: the items' streams.
            leaf: the leaf's name.
            like: (B, ...) gives the shape and dtype.
            mask: (B, N) bool or None.
        """
        start = noise.draw(self.space, leaf, -1, like, mask)
        return start if self.source_std == 1.0 else start * self.source_std

    def error(
        self, prediction: Tensor, target: Tensor, kind: str, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of each item, (B,): |prediction - target|^2 over the degrees of freedom.

        Arguments:
            prediction: (B, ...) of kind `kind`.
            target: from `target`.
            kind: what both are.
            mask: (B, N) bool or None.
        """
        gap = prediction - target
        size = self.space.dimension(gap, mask).clamp(min=1).to(gap.dtype)
        return self.space.inner(gap, gap, mask) / size

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.schedule!r}, {self.space!r})"


@functools.lru_cache(maxsize=_REMEMBERED)
def _scalar(value: float, wide: bool) -> Tensor:
    """A number as a tensor without axes: torch multiplies by one at half the cost of a float."""
    with torch.inference_mode(False):
        return torch.tensor(value, dtype=torch.float64 if wide else torch.float32)


class GaussianPath(Path):
    """Data blurred by Gaussian noise: diffusion models, and flow matching from noise.

    Arguments:
        schedule: alpha and sigma, see `sci.schedules`.
        space: where the leaf lives; Euclidean unless told.
        source_std: the standard deviation that sampling starts from; the schedule's when None.
        span: the times between which sampling runs unless told; the schedule's when None.

    Raises:
        TypeError: when the schedule or the space is of another type.
        ValueError: when source_std is not positive, or the span is no interval in [0, 1].

    Example:
        >>> import torch
        >>> from sci.schedules import Cosine
        >>> path = GaussianPath(Cosine())
        >>> data, noise = torch.ones(2, 3), torch.zeros(2, 3)
        >>> x = path.corrupt(data, noise, t=0.5)
        >>> torch.allclose(path.convert(noise, "noise", "data", x, 0.5), data)
        True

    References:
        | Score-based generative modeling through stochastic differential equations
        | (Song et al., 2021)
        | Understanding diffusion objectives as the ELBO with simple data augmentation
        | (Kingma, Gao, 2023)
    """
