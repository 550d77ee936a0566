"""Numbers of nodes: drawn from the training law, or asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sci.noise import Noise

__all__ = ["draw_sizes"]


def draw_sizes(
    counts: Sequence[int], noise: Noise, size: int | None, largest: int, least: int = 1
) -> Tensor:
    """Number of nodes of each item, from its own stream.

    Arguments:
        counts: How many training graphs have 0, 1, 2, ... nodes; size 0 is never drawn.
        noise: The items' streams.
        size: What the user asks for, instead of the law.
        largest: The most nodes that the model has seen.
        least: The fewest nodes that are wanted; smaller sizes are taken out of the law.

    Returns:
        Sizes (B,) int64 on the CPU, at least 1.

    Raises:
        ValueError: If `size` exceeds `largest` or falls below `least`, or there is neither a size nor a law.
    """
    if least > largest:
        raise ValueError(
            f"at least {least} nodes are wanted, but this model was trained on graphs of at most {largest}"
        )
    if size is not None:
        if size < least:
            raise ValueError(f"size is {size}, but at least {least} nodes are wanted")
        if size > largest:
            raise ValueError(
                f"size is {size}, but this model was trained on graphs of at most {largest} nodes"
            )
        return torch.full((len(noise.items),), size)
    if not any(counts[1:]):
        raise ValueError(
            "this model does not know the sizes of its training graphs: ask for a size"
        )
    law = np.asarray(counts, dtype=np.float64)
    law[: max(least, 1)] = 0
    if not law.any():
        raise ValueError(f"no training graph has {least} nodes or more: ask for a size")
    levels = torch.from_numpy(np.cumsum(law) / law.sum())
    uniform = noise.uniform(torch.zeros(1, dtype=torch.long), "sizes", -1)[:, 0]
    return torch.searchsorted(levels, uniform.cpu().double())
