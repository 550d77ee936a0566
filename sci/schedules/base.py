"""What every schedule offers, and how types are handled."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

__all__ = ["Schedule"]

T = TypeVar("T", float, np.ndarray, Tensor)


class Schedule:
    """Base of the schedules.

    A subclass gives `_log_alpha`, `_log_sigma`, `_alpha_dot`, `_sigma_dot` and, where there is a
    closed form, `_time`; each takes float64 values and the namespace (numpy or torch) to compute
    with.
    """

    span: tuple[float, float] = (0.0, 1.0)
    source_std: float = 1.0

    def alpha(self, t: T) -> T:
        """The factor of the data, shaped like t."""
        return self._call(self._alpha, t)

    def sigma(self, t: T) -> T:
        """The standard deviation of the noise, shaped like t."""
        return self._call(self._sigma, t)

    def alpha_dot(self, t: T) -> T:
        """d alpha / dt, shaped like t."""
        return self._call(self._alpha_dot, t)

    def sigma_dot(self, t: T) -> T:
        """d sigma / dt, shaped like t; -inf where sigma reaches 0 as a square root."""
        return self._call(self._sigma_dot, t)

    def log_snr(self, t: T) -> T:
        """lambda(t) = log(alpha / sigma), shaped like t; infinite where alpha or sigma is 0."""
        return self._call(self._log_snr, t)

    def time(self, log_snr: T) -> T:
        """The time at which lambda has the given value: the inverse of `log_snr`."""
        return self._call(self._time, log_snr)

    def _call(self, function: Callable[[Any, Any], Any], t: T) -> T:
        if isinstance(t, Tensor):
            # Apple's GPUs have no float64.
            wide = t if t.device.type == "mps" else t.double()
            return function(wide, torch)
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            out = function(np.asarray(t, dtype=np.float64), np)
        return out if isinstance(t, np.ndarray) else float(out)

    def _alpha(self, t: Any, xp: Any) -> Any:
        return xp.exp(self._log_alpha(t, xp))

    def _sigma(self, t: Any, xp: Any) -> Any:
        return xp.exp(self._log_sigma(t, xp))

    def _log_alpha(self, t: Any, xp: Any) -> Any:
        return xp.log(self._alpha(t, xp))

    def _log_sigma(self, t: Any, xp: Any) -> Any:
        return xp.log(self._sigma(t, xp))

    def _log_snr(self, t: Any, xp: Any) -> Any:
        return self._log_alpha(t, xp) - self._log_sigma(t, xp)

    def _alpha_dot(self, t: Any, xp: Any) -> Any:
        raise TypeError(f"{type(self).__name__} gives no derivative of alpha")

    def _sigma_dot(self, t: Any, xp: Any) -> Any:
        raise TypeError(f"{type(self).__name__} gives no derivative of sigma")

    def _time(self, log_snr: Any, xp: Any) -> Any:
        """Bisection on [0, 1]: 60 halvings reach the spacing of float64."""
        low, high = xp.zeros_like(log_snr), xp.ones_like(log_snr)
        for _ in range(60):
            middle = 0.5 * (low + high)
            below = self._log_snr(middle, xp) < log_snr
            low, high = xp.where(below, middle, low), xp.where(below, high, middle)
        return 0.5 * (low + high)

    def __repr__(self) -> str:
        settings = ", ".join(
            f"{name}={value}" for name, value in vars(self).items() if not name.startswith("_")
        )
        return f"{type(self).__name__}({settings})"
