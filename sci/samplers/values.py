"""Coefficients at sampling time: a float that all items share, or a value an item."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths import like_time

__all__ = ["multiplier", "of_items", "ready"]


def ready(values: np.ndarray) -> Any:
    """A float from (1,), a (B,) tensor from (B,)."""
    return float(values[0]) if len(values) == 1 else torch.from_numpy(np.ascontiguousarray(values))


def of_items(
    value: Any, device: torch.device, dtype: torch.dtype, rows: Tensor | None = None
) -> Any:
    """The values of the items at hand, (M,); a float as it is.

    Arguments:
        value: a float or (B,).
        device: where they are wanted.
        dtype: in which.
        rows: (M,) the items, on the device; None for all.
    """
    if not isinstance(value, Tensor):
        return value
    # Cast before it is moved: some devices have no float64. The host need not wait for CUDA, which
    # has read the values when the call returns.
    found = value.to(dtype).to(device, non_blocking=device.type == "cuda")
    return found if rows is None else found[rows]


def multiplier(value: Any, x: Tensor, rows: Tensor | None = None) -> Any:
    """The values of the items as (M, 1, ...), ready to multiply x; a float as it is."""
    found = of_items(value, x.device, x.dtype, rows)
    return like_time(found, x) if isinstance(found, Tensor) else found
