"""What samplers check alike: whole numbers, coefficients, and what a leaf's path allows."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sci.paths import Path
from sci.spaces import Space

__all__ = ["curved", "gaussian", "infinite", "whole"]


def whole(name: str, value: Any, least: int, most: float = math.inf) -> None:
    """Raise a ValueError unless the value is an integer from `least` to `most`."""
    integer = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not (integer and least <= value <= most):
        span = f">= {least}" if math.isinf(most) else f"from {least} to {most}"
        raise ValueError(f"{name} must be an integer {span}, got {value!r}")


def infinite(values: Sequence[np.ndarray]) -> int | None:
    """The first item of which some value is not finite; None when there is none.

    Arguments:
        values: arrays (B,).
    """
    bad = ~np.logical_and.reduce([np.isfinite(value) for value in values])
    return int(np.flatnonzero(bad)[0]) if bad.any() else None


def gaussian(path: Path) -> bool:
    """Whether x_t is alpha data + sigma noise with normal noise, so that noise may be added."""
    return {"noise", "score"} <= path.heads


def curved(path: Path) -> bool:
    """Whether the leaf lives on no linear space."""
    return type(path.space).exp is not Space.exp
