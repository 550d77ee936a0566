"""Paths between two populations, with or without noise on the way.

    x_t = alpha(t) data + sigma(t) source + gamma(t) z,    gamma = noise sqrt(2 t (1 - t))

    velocity b = E[alpha' data + sigma' source + gamma' z | x_t],    score s = -E[z | x_t] / gamma

A flow follows b alone. With both, dx = (b + e s) dt + sqrt(2 e) dW has the same marginals for any
e(t) >= 0: `sci.samplers.TunableDiffusion`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths.linear import Path, check_kind, like_time
from sci.schedules import CondOT, Schedule
from sci.spaces import Space, widest

__all__ = ["Interpolant"]

# How far from the ends a noisy interpolant stays: its velocity grows there as an inverse root.
_APART = 1e-3


class Interpolant(Path):
    """Between two populations: x_t = alpha(t) data + sigma(t) source + gamma(t) z.

    With `noise=0` the source takes the place of the noise in every formula; there is no score. With
    `noise` > 0, gamma = noise sqrt(2 t (1 - t)), the marginals are smooth; the velocity and the
    score are then two different predictions and neither gives the other (`sci.Joined` holds both).
    The score is - E[z | x_t] / gamma; "latent" is the prediction of z, which stays of order 1 at
    the ends, where the velocity and the score do not: the span then stops short of them.

    Arguments:
        schedule: alpha for data and sigma for the source; `CondOT` unless told.
        space: where the leaf lives; Euclidean unless told.
        noise: the strength of the latent noise, >= 0.
        span: the times between which training and sampling run; the schedule's when None, and
            with noise at least 0.001 from 0 and 1.

    Raises:
        ValueError: when noise is negative.

    References:
        | Building normalizing flows with stochastic interpolants (Albergo, Vanden-Eijnden, 2023)
        | Stochastic interpolants: a unifying framework for flows and diffusions
        | (Albergo et al., 2023)
    """

    def __init__(
        self,
        schedule: Schedule | None = None,
        space: Space | None = None,
        noise: float = 0.0,
        span: tuple[float, float] | None = None,
    ):
        if not noise >= 0:
            raise ValueError(f"Interpolant: noise must not be negative, got {noise}")
        super().__init__(CondOT() if schedule is None else schedule, space, 1.0, span)
        self.noise = float(noise)
        self.heads = frozenset(
            {"velocity", "score", "latent"}
            if noise
            else {"data", "noise", "velocity", "difference"}
        )

    @property
    def span(self) -> tuple[float, float]:
        """The times between which training and sampling run unless told."""
        first, last = super().span
        if self.noise and self._span is None:
            return max(first, _APART), min(last, 1.0 - _APART)
        return first, last

    def corrupt(
        self, data: Tensor, noise: Tensor, t: Tensor | float, latent: Tensor | None = None
    ) -> Tensor:
        """The state at time t.

        Arguments:
            data: (B, ...), the end at t = 1.
            noise: (B, ...), the source, the end at t = 0.
            t: (B,) or a float, in [0, 1].
            latent: (B, ...) standard noise z; needed when the interpolant has noise.

        Raises:
            ValueError: when the latent noise is missing, or given where there is none.
        """
        x = super().corrupt(data, noise, t)
        self._check_latent(latent)
        return x if latent is None else x + self._gamma(t, latent) * latent

    def target(
        self,
        kind: str,
        data: Tensor,
        noise: Tensor,
        t: Tensor | float,
        latent: Tensor | None = None,
    ) -> Tensor:
        """What a network should predict; arguments as for `corrupt`."""
        self._check_latent(latent)
        if latent is None:
            return super().target(kind, data, noise, t)
        check_kind(kind, self.heads, "prediction kind")
        if kind == "latent":
            return latent
        gamma = self._gamma(t, latent)
        if kind == "score":
            return -latent / gamma
        time = like_time(t, latent) if isinstance(t, Tensor) else t
        growth = self.noise**2 * (1.0 - 2.0 * time) * latent / gamma
        return super().target("velocity", data, noise, t) + growth

    def latent(
        self, like: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Standard noise z of the space when the interpolant has noise, else None."""
        return self.space.random(like, mask, generator) if self.noise else None

    def deviation(self, t: Any) -> Any:
        """The standard deviation of the latent noise: gamma(t), shaped like t."""
        return self.noise * (2.0 * t * (1.0 - t)) ** 0.5

    def _solve(self, kind: str, to: str, t: Any) -> tuple[Any, Any]:
        if not self.noise:
            return super()._solve(kind, to, t)
        for name in (kind, to):
            check_kind(name, self.heads, f"{type(self).__name__} with noise has no prediction kind")
        if {kind, to} != {"latent", "score"}:
            raise ValueError(
                f"on an Interpolant with noise '{kind}' does not determine '{to}': only 'latent' "
                "and 'score' give each other; sci.Joined holds a velocity and a score"
            )
        with np.errstate(divide="ignore"):
            gamma = self.deviation(t)
            return (-gamma if kind == "score" else -1.0 / gamma), 0.0 * t

    def _check_latent(self, latent: Tensor | None) -> None:
        if (latent is None) == bool(self.noise):
            raise ValueError(
                f"the interpolant has noise={self.noise}: "
                + ("give `latent`" if self.noise else "expected no `latent`")
            )

    def _gamma(self, t: Tensor | float, x: Tensor) -> Any:
        """gamma(t), ready to multiply x."""
        if not isinstance(t, Tensor):
            return self.deviation(t)
        return like_time(self.deviation(t.to(widest(t.device))), x)
