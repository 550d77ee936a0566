"""Numbers of nodes: drawn from the training law, or asked for."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sci.noise import Noise

__all__ = ["draw_sizes"]


def draw_sizes(counts: Sequence[int], noise: Noise, size: int | None, largest: int) -> Tensor:
    """Number of nodes of each item, from its own stream.

    Arguments:
        counts: How many training graphs have 0, 1, 2, ... nodes; size 0 is never drawn.
        noise: The items' streams.
        size: What the user asks for, instead of the law.
        largest: The most nodes that the model has seen.

    Returns:
        Sizes (B,) int64 on the CPU, at least 1.

    Raises:
        ValueError: If `size` exceeds `largest`, or there is neither a size nor a law.
    """
    if size is not None:
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
    law[0] = 0
    levels = torch.from_numpy(np.cumsum(law) / law.sum())
    uniform = noise.uniform(torch.zeros(1, dtype=torch.long), "sizes", -1)[:, 0]
    return torch.searchsorted(levels, uniform.cpu().double())
