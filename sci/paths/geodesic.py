"""The path of rotations: from a uniform rotation to data along the geodesic.

    x_t = source exp(kappa(t) log(source^-1 data)),    kappa(0) = 0

The rate kappa is a schedule with alpha = kappa and sigma = 1 - kappa: "linear" is kappa = t,
`Exponential(c)` is kappa = 1 - e^(-c t). The velocity is the angular velocity in the body frame of
x_t, constant along the geodesic up to the rate:

    velocity = kappa'(t) log(source^-1 data) = speed(t) log(x_t^-1 data),    speed = kappa' / (1 - kappa)

so that data = x_t exp(velocity / speed). The speed is 1 / (1 - t) for the linear rate and c for the
exponential one, which turns most of the way early. A network that was trained on one rate may be
sampled with another: `sampler` settings of the leaf, or `with_rate`.

References:
    | Flow matching on general geometries (Chen, Lipman, 2024)
    | Fast protein backbone generation with SE(3) flow matching (Yim et al., 2023)
    | ReQFlow: rectified quaternion flow for efficient and high-quality protein backbone generation
    | (Yue et al., 2025)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor

from sci.paths.linear import Path, check_kind, like_time
from sci.schedules import CondOT, Exponential, Schedule
from sci.spaces import Rotations

__all__ = ["GeodesicPath", "find_rate"]

_RATES = ("exponential", "linear")


class GeodesicPath(Path):
    """Rotations on the geodesic from a uniform rotation to data.

    Kinds: "data", unit quaternions (B, N, 4), and "velocity", body-frame angular velocities
    (B, N, 3) in rad per unit of path time.

    Arguments:
        rate: "linear", "exponential" (c = 10), or a schedule with alpha + sigma = 1 that starts at
            alpha = 0.
        space: where the leaf lives.
        span: the times between which training and sampling run. It stops short of 1, where the
            speed of the linear rate is infinite.

    Raises:
        TypeError: when the rate is no schedule or the space is not `Rotations`.
        ValueError: for an unknown rate, one with alpha + sigma != 1, or a span that is no interval.

    Example:
        >>> import torch
        >>> from sci.spaces import quaternions
        >>> path = GeodesicPath()
        >>> turn = torch.tensor([[[0.0, 0.0, 1.0]]])
        >>> source, data = quaternions.exp(0 * turn), quaternions.exp(turn)
        >>> half = path.corrupt(data, source, 0.5)
        >>> quaternions.log(half).tolist()
        [[[0.0, 0.0, 0.5]]]
    """

    heads = frozenset({"data", "velocity"})
    stepper = "sci.samplers.lie:RotationStepper"

    def __init__(
        self,
        rate: str | Schedule = "linear",
        space: Rotations | None = None,
        span: tuple[float, float] = (0.0, 1.0 - 1e-3),
    ):
        space = Rotations() if space is None else space
        if not isinstance(space, Rotations):
            raise TypeError(f"space is a {type(space).__name__}: expected sci.spaces.Rotations()")
        super().__init__(find_rate(rate), space, 1.0, span)

    def with_rate(self, rate: str | Schedule) -> GeodesicPath:
        """This path with another rate; arguments as for the path."""
        return self.rescheduled(find_rate(rate), self.span)

    def speed(self, t: Any) -> Any:
        """kappa' / (1 - kappa), what turns log(x_t^-1 data) into the velocity; shaped like t."""
        rate, left = self.schedule.alpha_dot(t), self.schedule.sigma(t)
        if isinstance(t, (Tensor, np.ndarray)):
            return rate / left
        return rate / left if left else math.inf

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Quaternions (B, ..., 4) of unit length, angular velocities (B, ..., 3) as they are; the
        identity, or zero, where masked.

        Raises:
            ValueError: when the last axis is neither 4 nor 3.
        """
        if x.shape[-1] == 4:
            return self.space.project(x, mask)
        if x.shape[-1] == 3:
            return self.space.tangent(x, x, mask)
        raise ValueError(
            f"a leaf of rotations has shape {tuple(x.shape)}: expected (..., 4), quaternions, or "
            "(..., 3), angular velocities"
        )

    def corrupt(self, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """The point at time t of the geodesic from the source to data.

        Arguments:
            data: (B, ..., 4) unit.
            noise: (B, ..., 4) unit, the source.
            t: (B,) or a float, in [0, 1].

        Returns:
            (B, ..., 4).
        """
        turn = self.space.log(noise, data)
        return self.space.exp(noise, turn * self._shaped(self.schedule.alpha, t, turn))

    def target(self, kind: str, data: Tensor, noise: Tensor, t: Tensor | float) -> Tensor:
        """What a network of some kind should predict; arguments as for `corrupt`."""
        check_kind(kind, self.heads, "prediction kind")
        if kind == "data":
            return data
        turn = self.space.log(noise, data)
        return turn * self._shaped(self.schedule.alpha_dot, t, turn)

    def convert(
        self, prediction: Tensor, kind: str, to: str, x: Tensor, t: Tensor | float
    ) -> Tensor:
        """Turn a prediction of one kind into another: v = speed log(x^-1 data).

        Arguments:
            prediction: (B, ..., 4) for data, (B, ..., 3) for velocity.
            kind: what it is.
            to: what is wanted.
            x: (B, ..., 4) the state that it was predicted from.
            t: (B,) or a float, in [0, 1]; the velocity of the linear rate is infinite at 1.

        Raises:
            ValueError: for a kind that this path does not have.
        """
        for name in (kind, to):
            check_kind(name, self.heads, f"{type(self).__name__} has no prediction kind")
        if kind == to:
            return prediction
        if kind == "data":
            turn = self.space.log(x, prediction)
            return turn * self._shaped(self.speed, t, turn)
        return self.space.exp(x, prediction / self._shaped(self.speed, t, prediction))

    def coefficients(self, kind: str, to: str, t: Any) -> tuple[Any, Any]:
        """Raises a ValueError: conversions between kinds are not linear here; see `convert`."""
        raise ValueError(
            f"a {type(self).__name__} has no linear coefficients from '{kind}' to '{to}': its "
            "conversions run along geodesics; call `convert`"
        )

    def error(
        self, prediction: Tensor, target: Tensor, kind: str, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of each item, (B,), per degree of freedom: the squared geodesic angle between
        rotations, or the squared difference of velocities. Arguments as for `Path.error`."""
        gap = self.space.log(target, prediction) if kind == "data" else prediction - target
        size = self.space.dimension(gap, mask).clamp(min=1).to(gap.dtype)
        return self.space.inner(gap, gap, mask) / size

    @staticmethod
    def _shaped(function: Callable[[Any], Any], t: Any, x: Tensor) -> Any:
        return like_time(function(t), x) if isinstance(t, Tensor) else function(t)


def find_rate(rate: Any) -> Schedule:
    """The schedule of a rate, checked; see `GeodesicPath`."""
    if isinstance(rate, str):
        check_kind(rate, _RATES, "unknown rate")
        return CondOT() if rate == "linear" else Exponential()
    if not isinstance(rate, Schedule):
        raise TypeError(
            f"rate is a {type(rate).__name__}: expected 'linear', 'exponential' or a schedule such "
            "as sci.schedules.Exponential(10)"
        )
    t = np.linspace(0.0, 1.0, 17)
    alpha, sigma = rate.alpha(t), rate.sigma(t)
    if not (np.allclose(alpha + sigma, 1.0, atol=1e-9) and abs(alpha[0]) < 1e-9):
        raise ValueError(
            f"{rate!r} is no rate: expected alpha + sigma = 1 at all times and alpha(0) = 0, as "
            "sci.schedules.CondOT and sci.schedules.Exponential have"
        )
    if not (np.diff(alpha) > 0).all():
        raise ValueError(f"{rate!r} is no rate: its alpha does not increase")
    return rate
