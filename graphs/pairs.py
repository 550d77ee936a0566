"""Unordered pairs of nodes: their numbers, and the way between a row per pair and N x N matrices.

Pair (i < j) has the number j (j - 1) / 2 + i, which does not depend on how far a graph is padded: padding adds
pairs at the end.
"""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["dense_index", "pair_index", "to_dense", "to_pairs"]


@lru_cache(maxsize=64)
def pair_index(nodes: int) -> tuple[Tensor, Tensor]:
    """Ends of the unordered pairs, ordered so that pair (i < j) has number j (j - 1) / 2 + i.

    The number of a pair does not depend on how far a graph is padded.

    Returns:
        Two index tensors of shape (P,): the smaller and the larger end.
    """
    with torch.inference_mode(False):  # what is remembered must serve training as well
        larger, smaller = torch.tril_indices(nodes, nodes, offset=-1)
    return smaller, larger


@lru_cache(maxsize=64)
def dense_index(nodes: int) -> Tensor:
    """Pair number of every entry of an (N, N) matrix, flattened; the diagonal points to P."""
    smaller, larger = pair_index(nodes)
    with torch.inference_mode(False):
        table = torch.full((nodes, nodes), len(smaller), dtype=torch.long)
        table[smaller, larger] = table[larger, smaller] = torch.arange(len(smaller))
        return table.flatten()


def to_pairs(dense: Tensor) -> Tensor:
    """(B, N, N, *C) symmetric -> (P, B, *C)."""
    smaller, larger = pair_index(dense.shape[1])
    return dense[:, smaller, larger].transpose(0, 1)


def to_dense(pairs: Tensor, nodes: int) -> Tensor:
    """(P, B, C) -> (B, N, N, C) symmetric with a zero diagonal."""
    padded = functional.pad(pairs, (0, 0, 0, 0, 0, 1))
    dense = padded.index_select(0, dense_index(nodes).to(pairs.device))
    return dense.unflatten(0, (nodes, nodes)).permute(2, 0, 1, 3)
