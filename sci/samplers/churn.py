r"""Churn: a little noise before each transition, as EDM adds it, on any schedule.

With rho = sigma / alpha, the state over alpha is data + rho noise. Churn raises rho to rho^ at
constant data, and the transition starts from the earlier time t^ that belongs to rho^:

    rho^ = rho (1 + gamma),   gamma = min(churn / n, sqrt(2) - 1),   n transitions,
    x^ / alpha(t^) = x / alpha(t) + S sqrt(rho^^2 - rho^2) z

t^ is found on the first leaf; the rho of every other leaf rises to its own value at t^.

References:
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sci.samplers.checks import infinite
from sci.samplers.coordinates import Coordinate

__all__ = ["churn", "churned"]

_MOST = math.sqrt(2.0) - 1.0


def churned(settings: Any, lead: Coordinate, start: np.ndarray, first: np.ndarray) -> np.ndarray:
    """The time t^ of a transition that starts at `start`.

    Arguments:
        settings: the `OneStep` sampler.
        lead: the first leaf.
        start: (B,).
        first: (B,), where sampling starts; t^ is not before both it and the path's span.

    Returns:
        (B,); `start` where there is no churn.
    """
    schedule = lead.path.schedule
    log_snr = schedule.log_snr(start)
    ratio = np.exp(-log_snr)
    low, high = settings.churn_range
    growth = min(settings.churn / len(settings.transitions), _MOST)
    inside = (ratio >= low) & (ratio <= high) & np.isfinite(log_snr) & (growth > 0.0)
    earlier = schedule.time(np.where(inside, log_snr - math.log1p(growth), 0.0))
    bound = np.minimum(first, lead.path.span[0])
    return np.where(inside, np.clip(earlier, bound, start), start)


def churn(
    settings: Any, name: str, leaf: Coordinate, start: np.ndarray, earlier: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What multiplies the state and the noise, so that a leaf goes from `start` to `earlier`.

    Arguments:
        settings: the `OneStep` sampler.
        name: of the leaf.
        leaf: its coordinate.
        start: (B,).
        earlier: (B,), from `churned`.

    Raises:
        ValueError: when sigma / alpha of this leaf is infinite there.
    """
    schedule = leaf.path.schedule
    alpha, ratio = schedule.alpha(earlier), np.exp(-schedule.log_snr(start))
    fall = schedule.log_snr(start) - schedule.log_snr(earlier)
    moves = earlier < start
    scale = np.where(moves, alpha / schedule.alpha(start), 1.0)
    spread = settings.churn_noise * alpha * ratio * np.sqrt(np.expm1(2.0 * fall))
    spread = np.where(moves, spread, 0.0)
    item = infinite([scale, spread])
    if item is not None:
        raise ValueError(
            f"leaf '{name}' cannot be churned at t = {start[item]:.6g}: its sigma / alpha is infinite "
            "there; start later, or limit churn_range"
        )
    return scale, spread
