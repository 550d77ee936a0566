r"""How the tensors of an attention layer lie in memory, and what depends on it.

Both layouts hold pair features as (channels, M), a column for each pair of each item, so that the pair MLPs are plain
matrix products; they differ in the order of the columns and in how nodes meet nodes:

- :class:`Rows`: items outside. Propagation and scores are batched products of N x N matrices: best for large graphs.
- :class:`Columns`: items inside. Up to a dozen nodes a matrix product is mostly overhead; here it is a sum over nodes
  or features of elementwise products, each of them over all items at once.

Nodes are (B N, F) in rows and (F, N B) in columns, propagated nodes (C, B N, F) and (C, F, N B).
"""

from __future__ import annotations

from functools import lru_cache
from typing import Protocol

import torch
import torch.nn.functional as functional
from torch import Tensor

from sci.graphs.pairs import dense_index, pair_index

SMALL = 12  # largest graph for which columns are the faster layout on the CPU


@lru_cache(maxsize=32)
def pair_indices(nodes: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Index vectors between the N(N-1)/2 pairs and the N x N matrix; pair (i < j) has index j(j-1)/2 + i.

    Returns:
        The larger node of every pair, the smaller node of every pair, their positions in the flattened matrix below
        and above the diagonal, and for every matrix entry its pair (diagonal entries point to N(N-1)/2).
    """
    with torch.inference_mode(False):  # what is remembered must serve training as well
        smaller, larger = (end.to(device) for end in pair_index(nodes))
        below, above = larger * nodes + smaller, smaller * nodes + larger
        return larger, smaller, below, above, dense_index(nodes).to(device)


def normalised(pairs: Tensor, nodes: int) -> Tensor:
    r"""Matrices :math:`D^{-1/2} \tilde A D^{-1/2}` of adjacencies given by their pairs.

    Arguments:
        pairs: Entries of the unordered pairs, with shape (M, N(N-1)/2); any real number.
        nodes: N.

    Returns:
        Symmetric matrices with shape (M, N, N).
    """
    larger, smaller, _, _, entries = pair_indices(nodes, pairs.device)
    matrices = functional.pad(pairs, (0, 1), value=1.0).index_select(1, entries)
    degree = torch.mv(matrices.view(-1, nodes), matrices.new_ones(nodes))
    scale = degree.clamp(min=1).rsqrt().view(-1, nodes)
    outer = scale.unsqueeze(-1) * scale.unsqueeze(-2)
    return matrices.view_as(outer) * outer


class Layout(Protocol):
    """What an attention layer asks of a layout. It is made for the mask (B, N) of a block of items."""

    node_mask: Tensor
    twice_mask: Tensor

    def enter(self, nodes: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
        """Nodes (B, N, F) and matrices (C, B, N, N) in the layout: nodes, and pairs (C, M)."""

    def leave(self, nodes: Tensor) -> Tensor:
        """Nodes (B, N, F) from nodes in the layout."""

    def leave_pairs(self, pairs: Tensor) -> Tensor:
        """Symmetric matrices (B, N, N) with zero diagonal from one value a pair, (M,)."""

    def propagate(self, pairs: Tensor, nodes: Tensor) -> Tensor:
        """Normalised adjacencies of all channels times the nodes."""

    def attend(self, propagated: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
        """Sum over heads and both orders of tanh(q k^T), with shape (C, M).

        `weight` (C, F, 2 W) and `bias` (C, 1, 2 W) give queries and keys of W features each.
        """

    def mix(self, propagated: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Sum over channels of the propagated nodes times `weight` (C, F, H), plus `bias` (H,)."""

    def linear(self, nodes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """A linear layer on nodes, `weight` (H, F) and `bias` (H,)."""


class Rows:
    """Items outside; see the module."""

    def __init__(self, mask: Tensor) -> None:
        self.batch, self.count = mask.shape
        larger, smaller, self.below, self.above, self.entries = pair_indices(
            self.count, mask.device
        )
        self.node_mask = mask.reshape(-1, 1)
        pairs = mask.index_select(1, larger) * mask.index_select(1, smaller)
        self.twice_mask = 2 * pairs.flatten()

    def enter(self, nodes: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Layout`."""
        return nodes.flatten(0, 1), powers.flatten(2).index_select(2, self.below).flatten(1)

    def leave(self, nodes: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return nodes.view(self.batch, self.count, nodes.shape[1])

    def leave_pairs(self, pairs: Tensor) -> Tensor:
        """See :class:`Layout`."""
        padded = functional.pad(pairs.view(self.batch, len(self.below)), (0, 1))
        return padded.index_select(1, self.entries).view(self.batch, self.count, self.count)

    def propagate(self, pairs: Tensor, nodes: Tensor) -> Tensor:
        """See :class:`Layout`."""
        channels, features = len(pairs), nodes.shape[1]
        matrices = normalised(pairs.view(channels * self.batch, len(self.below)), self.count)
        spread = self.leave(nodes).expand(channels, self.batch, self.count, features)
        product = torch.bmm(matrices, spread.reshape(channels * self.batch, self.count, features))
        return product.view(channels, self.batch * self.count, features)

    def attend(self, propagated: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
        """See :class:`Layout`."""
        channels = len(propagated)
        both = torch.baddbmm(bias, propagated, weight)
        both = both.view(channels * self.batch, self.count, 2, heads, -1)
        queries, keys = both.unbind(2)
        total = torch.bmm(queries[:, :, 0], keys[:, :, 0].mT).tanh_()
        for head in range(1, heads):
            total = total + torch.bmm(queries[:, :, head], keys[:, :, head].mT).tanh_()
        flat = total.flatten(1)
        scores = flat.index_select(1, self.below).add_(flat.index_select(1, self.above))
        return scores.view(channels, self.batch * len(self.below))

    def mix(self, propagated: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return torch.bmm(propagated, weight).sum(dim=0).add_(bias)

    def linear(self, nodes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return functional.linear(nodes, weight, bias)


class Columns:
    """Items inside; see the module."""

    def __init__(self, mask: Tensor) -> None:
        self.batch, self.count = mask.shape
        larger, smaller, self.below, self.above, self.entries = pair_indices(
            self.count, mask.device
        )
        columns = mask.t().contiguous()
        self.node_mask = columns.flatten()
        pairs = columns.index_select(0, larger) * columns.index_select(0, smaller)
        self.twice_mask = 2 * pairs.flatten()

    def enter(self, nodes: Tensor, powers: Tensor) -> tuple[Tensor, Tensor]:
        """See :class:`Layout`."""
        pairs = powers.flatten(2).index_select(2, self.below)
        return nodes.permute(2, 1, 0).flatten(1), pairs.transpose(1, 2).flatten(1)

    def leave(self, nodes: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return nodes.view(len(nodes), self.count, self.batch).permute(2, 1, 0)

    def leave_pairs(self, pairs: Tensor) -> Tensor:
        """See :class:`Layout`."""
        padded = functional.pad(pairs.view(len(self.below), self.batch), (0, 0, 0, 1))
        matrices = padded.index_select(0, self.entries).view(self.count, self.count, self.batch)
        return matrices.permute(2, 0, 1).contiguous()

    def propagate(self, pairs: Tensor, nodes: Tensor) -> Tensor:
        """See :class:`Layout`."""
        channels, shape = len(pairs), (self.count, self.batch)
        padded = functional.pad(pairs.view(channels, -1, self.batch), (0, 0, 0, 1), value=1.0)
        matrices = padded.index_select(1, self.entries).view(channels, self.count, *shape)
        scale = matrices.sum(dim=2).clamp(min=1).rsqrt()
        matrices = matrices * scale.unsqueeze(2) * scale.unsqueeze(1)
        spread, sources = matrices.unsqueeze(1), nodes.view(1, len(nodes), *shape).unsqueeze(3)
        product = spread[:, :, 0] * sources[:, :, 0]
        for node in range(1, self.count):
            product.addcmul_(spread[:, :, node], sources[:, :, node])
        return product.flatten(2)

    def attend(self, propagated: Tensor, weight: Tensor, bias: Tensor, heads: int) -> Tensor:
        """See :class:`Layout`."""
        channels = len(propagated)
        both = torch.baddbmm(bias.mT, weight.mT, propagated)
        both = both.view(channels, 2, heads, -1, self.count, self.batch)
        queries, keys = both[:, 0].unsqueeze(4), both[:, 1].unsqueeze(3)
        scores = queries[:, :, 0] * keys[:, :, 0]
        for feature in range(1, queries.shape[2]):
            scores.addcmul_(queries[:, :, feature], keys[:, :, feature])
        flat = scores.tanh_().sum(dim=1).view(channels, self.count**2, self.batch)
        pairs = flat.index_select(1, self.below).add_(flat.index_select(1, self.above))
        return pairs.flatten(1)

    def mix(self, propagated: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return torch.addmm(bias.unsqueeze(1), weight.flatten(0, 1).mT, propagated.flatten(0, 1))

    def linear(self, nodes: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """See :class:`Layout`."""
        return torch.addmm(bias.unsqueeze(1), weight, nodes)
