"""Schedules in closed form."""

from __future__ import annotations

import math
from typing import Any

from sci.schedules.base import Schedule

__all__ = ["EDM", "VE", "VP", "CondOT", "Cosine", "Exponential", "Rectified", "SubVP"]


def _positive_pair(kind: str, low_name: str, low: float, high_name: str, high: float) -> None:
    if not 0 < low < high < math.inf:
        raise ValueError(f"{kind}: expected 0 < {low_name} < {high_name}, got {low} and {high}")


class VP(Schedule):
    """Variance preserving with a linear rate: alpha^2 + sigma^2 = 1.

    With t' = 1 - t: log alpha = -t'^2 (beta_max - beta_min) / 4 - t' beta_min / 2.

    Arguments:
        beta_min: the rate at data, > 0.
        beta_max: the rate at the source, > 0.

    Raises:
        ValueError: when a rate is not positive.

    References:
        | Score-based generative modeling through stochastic differential equations
        | (Song et al., 2021)
    """

    span = (0.0, 1.0 - 1e-3)

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0):
        if not (beta_min > 0 and beta_max > 0):
            raise ValueError(f"VP: rates must be positive, got {beta_min} and {beta_max}")
        self.beta_min, self.beta_max = float(beta_min), float(beta_max)

    def _log_alpha(self, t: Any, xp: Any) -> Any:
        back = 1.0 - t
        return -back * (0.25 * back * (self.beta_max - self.beta_min) + 0.5 * self.beta_min)

    def _rate(self, t: Any) -> Any:
        return self.beta_min + (1.0 - t) * (self.beta_max - self.beta_min)

    def _sigma(self, t: Any, xp: Any) -> Any:
        return xp.sqrt(-xp.expm1(2.0 * self._log_alpha(t, xp)))

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return 0.5 * xp.log(-xp.expm1(2.0 * self._log_alpha(t, xp)))

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return 0.5 * self._rate(t) * self._alpha(t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return -0.5 * self._rate(t) * self._alpha(t, xp) ** 2 / self._sigma(t, xp)

    def _time(self, log_snr: Any, xp: Any) -> Any:
        # -log alpha = log(1 + exp(-2 lambda)) / 2, then the stable root of a quadratic in t'.
        return self._from_decay(0.5 * xp.logaddexp(xp.zeros_like(log_snr), -2.0 * log_snr), xp)

    def _from_decay(self, decay: Any, xp: Any) -> Any:
        half, quarter = 0.5 * self.beta_min, 0.25 * (self.beta_max - self.beta_min)
        return 1.0 - 2.0 * decay / (half + xp.sqrt(half * half + 4.0 * quarter * decay))


class SubVP(VP):
    """Sub-variance preserving: alpha as in `VP`, sigma = 1 - alpha^2.

    Arguments:
        beta_min: the rate at data, > 0.
        beta_max: the rate at the source, > 0.

    References:
        | Score-based generative modeling through stochastic differential equations
        | (Song et al., 2021)
    """

    def _sigma(self, t: Any, xp: Any) -> Any:
        return -xp.expm1(2.0 * self._log_alpha(t, xp))

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return xp.log(self._sigma(t, xp))

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return -self._rate(t) * self._alpha(t, xp) ** 2

    def _time(self, log_snr: Any, xp: Any) -> Any:
        # alpha / (1 - alpha^2) = e^lambda has the root -log alpha = asinh(e^-lambda / 2).
        return self._from_decay(xp.arcsinh(0.5 * xp.exp(-log_snr)), xp)


class Cosine(Schedule):
    """The quarter circle: alpha = sin(pi t / 2), sigma = cos(pi t / 2).

    References:
        | Improved denoising diffusion probabilistic models (Nichol, Dhariwal, 2021)
        | Building normalizing flows with stochastic interpolants (Albergo, Vanden-Eijnden, 2023)
    """

    span = (0.005, 0.995)

    def _alpha(self, t: Any, xp: Any) -> Any:
        return xp.sin(0.5 * math.pi * t)

    def _sigma(self, t: Any, xp: Any) -> Any:
        return xp.sin(0.5 * math.pi * (1.0 - t))

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return 0.5 * math.pi * self._sigma(t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return -0.5 * math.pi * self._alpha(t, xp)

    def _time(self, log_snr: Any, xp: Any) -> Any:
        angle = (2.0 / math.pi) * xp.arctan(xp.exp(-abs(log_snr)))
        return xp.where(log_snr < 0, angle, 1.0 - angle)


class VE(Schedule):
    """Variance exploding: alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^(1 - t).

    Arguments:
        sigma_min: at data, > 0, in units of the data.
        sigma_max: at the source, > sigma_min; also `source_std`.

    Raises:
        ValueError: when the bounds are not 0 < sigma_min < sigma_max.

    References:
        | Score-based generative modeling through stochastic differential equations
        | (Song et al., 2021)
    """

    def __init__(self, sigma_min: float = 0.01, sigma_max: float = 50.0):
        _positive_pair("VE", "sigma_min", sigma_min, "sigma_max", sigma_max)
        self.sigma_min, self.sigma_max = float(sigma_min), float(sigma_max)
        self._log_ratio = math.log(sigma_max / sigma_min)

    @property
    def source_std(self) -> float:  # type: ignore[override]
        """sigma_max."""
        return self.sigma_max

    def _log_alpha(self, t: Any, xp: Any) -> Any:
        return 0.0 * t

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return math.log(self.sigma_min) + (1.0 - t) * self._log_ratio

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return 0.0 * t

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return -self._log_ratio * self._sigma(t, xp)

    def _time(self, log_snr: Any, xp: Any) -> Any:
        return 1.0 + (log_snr + math.log(self.sigma_min)) / self._log_ratio


class EDM(Schedule):
    """Variance exploding on the rho grid: alpha = 1 and
    sigma^(1/rho) is linear in t from sigma_max to sigma_min.

    Arguments:
        sigma_min: at data, > 0.
        sigma_max: at the source, > sigma_min; also `source_std`.
        rho: the exponent, > 0; equal steps in t are then the grid of the paper.

    Raises:
        ValueError: when the bounds are not 0 < sigma_min < sigma_max or rho <= 0.

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    """

    def __init__(self, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0):
        _positive_pair("EDM", "sigma_min", sigma_min, "sigma_max", sigma_max)
        if not rho > 0:
            raise ValueError(f"EDM: rho must be positive, got {rho}")
        self.sigma_min, self.sigma_max, self.rho = float(sigma_min), float(sigma_max), float(rho)

    @property
    def source_std(self) -> float:  # type: ignore[override]
        """sigma_max."""
        return self.sigma_max

    @property
    def _ends(self) -> tuple[float, float]:
        return self.sigma_max ** (1.0 / self.rho), self.sigma_min ** (1.0 / self.rho)

    def _root(self, t: Any) -> Any:
        first, last = self._ends
        return first * (1.0 - t) + last * t

    def _log_alpha(self, t: Any, xp: Any) -> Any:
        return 0.0 * t

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return self.rho * xp.log(self._root(t))

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return 0.0 * t

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        first, last = self._ends
        return self.rho * self._root(t) ** (self.rho - 1.0) * (last - first)

    def _time(self, log_snr: Any, xp: Any) -> Any:
        first, last = self._ends
        return (first - xp.exp(-log_snr / self.rho)) / (first - last)


class CondOT(Schedule):
    """The straight line of flow matching and rectified flow: alpha = t, sigma = 1 - t.

    References:
        | Flow matching for generative modeling (Lipman et al., 2023)
        | Flow straight and fast: learning to generate and transfer data with rectified flow
        | (Liu et al., 2023)
    """

    def _alpha(self, t: Any, xp: Any) -> Any:
        return 1.0 * t

    def _sigma(self, t: Any, xp: Any) -> Any:
        return 1.0 - t

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return xp.log1p(-t)

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return 0.0 * t + 1.0

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return 0.0 * t - 1.0

    def _time(self, log_snr: Any, xp: Any) -> Any:
        tail = xp.exp(-abs(log_snr))
        return xp.where(log_snr < 0, tail, 0.0 * tail + 1.0) / (1.0 + tail)


Rectified = CondOT


class Exponential(Schedule):
    """The straight line at an exponential rate: alpha = 1 - e^(-c t), sigma = e^(-c t).

    The velocity is c (data - x), so most of the way is done early; the share e^(-c) of the source
    is left at t = 1.

    Arguments:
        rate: c, > 0; 10 in the protein flows.

    Raises:
        ValueError: when the rate is not positive.

    References:
        | Fast protein backbone generation with SE(3) flow matching (Yim et al., 2023)
    """

    def __init__(self, rate: float = 10.0):
        if not rate > 0:
            raise ValueError(f"Exponential: the rate must be positive, got {rate}")
        self.rate = float(rate)

    def _alpha(self, t: Any, xp: Any) -> Any:
        return -xp.expm1(-self.rate * t)

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return -self.rate * t

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        return self.rate * self._sigma(t, xp)

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        return -self.rate * self._sigma(t, xp)

    def _time(self, log_snr: Any, xp: Any) -> Any:
        return xp.logaddexp(xp.zeros_like(log_snr), log_snr) / self.rate
