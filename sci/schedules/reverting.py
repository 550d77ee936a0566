"""The Ornstein-Uhlenbeck schedule of mean-reverting diffusion."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.schedules.base import Schedule

__all__ = ["OrnsteinUhlenbeck"]

_POINTS, _MASSES = np.polynomial.legendre.leggauss(40)


class OrnsteinUhlenbeck(Schedule):
    """The marginals of dx = -theta x ds + sqrt(2 theta) std dw, run for s = 1 - t:

        alpha = exp(-int_t^1 theta),    sigma = std sqrt(1 - alpha^2)

    With x the distance from a mean, this is the mean-reverting SDE: see
    `sci.denoiser.mean_reverting`.

    Arguments:
        theta: the rate of reversion, > 0, per unit of path time: a number, or a torch function of
            t, elementwise and smooth (it is integrated by quadrature).
        std: the stationary standard deviation, > 0; also `source_std`.
        log_alpha: in place of theta, a torch function of t that increases to 0 at t = 1; theta is
            then its derivative, by autograd.
        span: times between which sampling runs.

    Raises:
        ValueError: unless exactly one of theta and log_alpha is given, when a number is not
            positive, or when log_alpha does not increase to 0.

    Example:
        >>> schedule = OrnsteinUhlenbeck(theta=6.0, std=0.2)
        >>> round(schedule.sigma(0.0), 5), schedule.source_std
        (0.2, 0.2)

    References:
        | Image restoration with mean-reverting stochastic differential equations
        | (Luo et al., 2023)
        | MRS: a fast sampler for mean reverting diffusion based on ODE and SDE solvers
        | (Li et al., 2025)
    """

    def __init__(
        self,
        theta: float | Callable[[Tensor], Tensor] | None = None,
        std: float = 1.0,
        log_alpha: Callable[[Tensor], Tensor] | None = None,
        span: tuple[float, float] = (0.0, 1.0 - 1e-3),
    ):
        if (theta is None) == (log_alpha is None):
            raise ValueError("OrnsteinUhlenbeck: give either theta or log_alpha")
        if not (0 < std < math.inf) or (isinstance(theta, (int, float)) and not theta > 0):
            raise ValueError(
                f"OrnsteinUhlenbeck: theta and std must be positive, got {theta} and {std}"
            )
        self.std, self.span = float(std), span
        self._theta, self._given = theta, log_alpha
        probe = self.log_snr(np.linspace(0.0, 1.0 - 1e-3, 65))
        end = 0.0 if log_alpha is None else float(self._log_alpha(np.float64(1.0), np))
        if not (np.diff(probe) > 0).all() or abs(end) > 1e-9:
            raise ValueError(
                "OrnsteinUhlenbeck: theta must be positive, log_alpha must increase to 0 at t = 1"
            )

    @property
    def source_std(self) -> float:  # type: ignore[override]
        """The stationary standard deviation."""
        return self.std

    def _rate(self, t: Any, xp: Any) -> Any:
        if not callable(self._theta) and self._theta is not None:
            return 0.0 * t + float(self._theta)
        if self._theta is not None:
            return _applied(self._theta, t, xp)
        with torch.enable_grad():
            time = (torch.as_tensor(t) if xp is np else t).detach().clone().requires_grad_()
            (slope,) = torch.autograd.grad(self._given(time).sum(), time)  # type: ignore[misc]
        return slope.numpy() if xp is np else slope

    def _log_alpha(self, t: Any, xp: Any) -> Any:
        if self._given is not None:
            return _applied(self._given, t, xp)
        if not callable(self._theta):
            return -(1.0 - t) * float(self._theta)  # type: ignore[arg-type]
        points: Any = _POINTS
        masses: Any = _MASSES
        if xp is torch:
            points = torch.as_tensor(points, dtype=t.dtype, device=t.device)
            masses = torch.as_tensor(masses, dtype=t.dtype, device=t.device)
        half = 0.5 * (1.0 - t)[..., None]
        return -(half * masses * self._rate(t[..., None] + half * (points + 1.0), xp)).sum(-1)

    def _sigma(self, t: Any, xp: Any) -> Any:
        return self.std * xp.sqrt(-xp.expm1(2.0 * self._log_alpha(t, xp)))

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return math.log(self.std) + 0.5 * xp.log(-xp.expm1(2.0 * self._log_alpha(t, xp)))

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return self._rate(t, xp) * self._alpha(t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        squared = self.std * self.std * self._alpha(t, xp) ** 2
        return -squared * self._rate(t, xp) / self._sigma(t, xp)


def _applied(function: Callable[[Tensor], Tensor], t: Any, xp: Any) -> Any:
    return function(torch.as_tensor(t)).detach().numpy() if xp is np else function(t)
