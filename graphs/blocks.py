"""Blocks of nodes in a batch: renumbering, masks and targets for a model that generates block by block.

``blocks`` (G, N) holds the block of each node and -1 at padding, ``sizes`` and ``degrees`` (G, B) what belongs to each
block, 0 after the last, as in a :class:`sci.graphs.partial_order.PartialOrder`.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

__all__ = [
    "NextBlock",
    "at_nodes",
    "causal_mask",
    "membership",
    "next_block",
    "node_order",
    "reorder",
]


def node_order(blocks: Tensor) -> Tensor:
    """(G, N) int64: nodes sorted by block, those of a block in their given order, padding last.

    Example:
        >>> node_order(torch.tensor([[1, 0, 1, -1, 0]])).tolist()
        [[1, 4, 0, 2, 3]]
    """
    last = blocks.masked_fill(blocks < 0, torch.iinfo(blocks.dtype).max)
    return last.argsort(dim=1, stable=True)


def reorder(order: Tensor, nodes: Tensor, edges: Tensor | None = None) -> Any:
    """Renumbers the nodes of graphs.

    Arguments:
        order: (G, N) int64, for each new place the old one, as from :func:`node_order`.
        nodes: (G, N, *F) something for each node.
        edges: (G, N, N, *C) something for each pair of nodes.

    Returns:
        ``nodes``, or ``nodes`` and ``edges``, renumbered.
    """
    graph = torch.arange(len(order), device=order.device)[:, None]
    moved = nodes[graph, order]
    if edges is None:
        return moved
    return moved, edges[graph[..., None], order[:, :, None], order[:, None, :]]


def membership(blocks: Tensor, count: int) -> Tensor:
    """(G, ``count``, N) bool: which nodes belong to each of the first blocks; times features, it sums over blocks."""
    return blocks[:, None, :] == torch.arange(count, device=blocks.device)[:, None]


def at_nodes(values: Tensor, blocks: Tensor) -> Tensor:
    """Carries what belongs to blocks, (G, B), to their nodes, (G, N); 0 at padding."""
    return values.gather(1, blocks.clamp(min=0).long()) * (blocks >= 0)


def causal_mask(blocks: Tensor, noised: Tensor | None = None) -> Tensor:
    """Which nodes a node may see, when all blocks are trained in one pass.

    Without ``noised``, node i sees node j if the block of j is not later than that of i. With it, the graph is
    followed by noised copies of its nodes, which carry their blocks: a node sees the nodes of its own block and kind,
    and the clean nodes of earlier blocks. No noised node is then seen from outside its block.

    Arguments:
        blocks: (G, M) block of each node, clean or noised; -1 at padding.
        noised: (G, M) bool, which nodes are noised copies.

    Returns:
        (G, M, M) bool; entry (i, j) says that i sees j. Padding sees nothing and is not seen.

    Example:
        >>> causal_mask(torch.tensor([[0, 1, 1, -1]])).int().tolist()
        [[[1, 0, 0, 0], [1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0]]]
    """
    here = blocks >= 0
    mine, other = blocks[:, :, None], blocks[:, None, :]
    pairs = here[:, :, None] & here[:, None, :]
    if noised is None:
        return (mine >= other) & pairs
    same = (mine == other) & (noised[:, :, None] == noised[:, None, :])
    return (same | ((mine > other) & ~noised[:, None, :])) & pairs


class NextBlock(NamedTuple):
    """What follows each block: its size (0: nothing, the graph is complete), its degree, and where there is a block."""

    sizes: Tensor
    degrees: Tensor
    mask: Tensor


def next_block(sizes: Tensor, degrees: Tensor) -> NextBlock:
    """Targets of the model that foretells the next block: (G, B) sizes and degrees, shifted by one block.

    Example:
        >>> target = next_block(torch.tensor([[2, 3, 0]]), torch.tensor([[1, 2, 0]]))
        >>> target.sizes.tolist(), target.degrees.tolist(), target.mask.tolist()
        ([[3, 0, 0]], [[2, 0, 0]], [[True, True, False]])
    """
    following = [torch.cat([x[:, 1:], torch.zeros_like(x[:, :1])], 1) for x in (sizes, degrees)]
    return NextBlock(following[0], following[1], sizes > 0)
