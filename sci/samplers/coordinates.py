r"""The coordinate in which a prediction is the slope of the rescaled state.

For each kind of prediction P there are a scale c and a function S of log-SNR with

    y = x / c,   dy / dS = P                                  (the table is in `sci.samplers.weights`)

Runge-Kutta methods step in the S of one leaf, the leading one. Other leaves then move along the
same coordinate with

    dy / dS_lead = P (dS / dt) / (dS_lead / dt),

so that all of them remain one system of differential equations, and a method keeps its order
whatever the schedules. With W = alpha' sigma - alpha sigma', dS / dt is

    data W / sigma^2,  noise -W / alpha^2,  difference W / (alpha + sigma)^2,
    angular -W / (alpha^2 + sigma^2),  velocity 1.

Times are numpy arrays or tensors; results are of the same type, in float64.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths import Path

__all__ = ["Coordinate"]


class Coordinate:
    """Scale, coordinate and slope of a leaf.

    Arguments:
        path: of the leaf; `kind="velocity"` needs no schedule.
        kind: "data", "noise", "difference", "angular" or "velocity".
    """

    def __init__(self, path: Path, kind: str):
        self.path, self.kind = path, kind

    def scale(self, t: Any) -> Any:
        """c(t)."""
        if self.kind == "velocity":
            return 0.0 * t + 1.0
        alpha, sigma = self.path.schedule.alpha(t), self.path.schedule.sigma(t)
        if self.kind in ("data", "noise"):
            return sigma if self.kind == "data" else alpha
        if self.kind == "difference":
            return alpha + sigma
        return (alpha * alpha + sigma * sigma) ** 0.5

    def place(self, t: Any) -> Any:
        """S(t)."""
        if self.kind == "velocity":
            return t
        xp: Any = torch if isinstance(t, Tensor) else np
        alpha, sigma = self.path.schedule.alpha(t), self.path.schedule.sigma(t)
        if self.kind == "data":
            return alpha / sigma
        if self.kind == "noise":
            return sigma / alpha
        return alpha / (alpha + sigma) if self.kind == "difference" else xp.arctan2(sigma, alpha)

    def time(self, place: Any) -> Any:
        """The inverse of `place`."""
        if self.kind == "velocity":
            return place
        xp: Any = torch if isinstance(place, Tensor) else np
        if self.kind in ("data", "noise"):
            log_snr = xp.log(place) if self.kind == "data" else -xp.log(place)
        elif self.kind == "difference":
            log_snr = xp.log(place) - xp.log1p(-place)
        else:
            log_snr = -xp.log(xp.tan(place))
        return self.path.schedule.time(log_snr)

    def slope(self, t: Any) -> Any:
        """dS / dt."""
        if self.kind == "velocity":
            return 0.0 * t + 1.0
        schedule = self.path.schedule
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        turn = schedule.alpha_dot(t) * sigma - alpha * schedule.sigma_dot(t)
        if self.kind == "data":
            return turn / sigma**2
        if self.kind == "noise":
            return -turn / alpha**2
        if self.kind == "difference":
            return turn / (alpha + sigma) ** 2
        return -turn / (alpha**2 + sigma**2)

    def follows(self, lead: Coordinate, start: float, stop: float) -> bool:
        """Whether dS / dS_lead is 1: the same kind, and the same log-SNR at all times between."""
        if self.kind != lead.kind:
            return False
        if self.kind == "velocity" or self.path.schedule is lead.path.schedule:
            return True
        probe = np.linspace(start, stop, 33)
        own, other = self.path.schedule.log_snr(probe), lead.path.schedule.log_snr(probe)
        return bool(np.array_equal(own, other))
