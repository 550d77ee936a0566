"""The three score networks of GDSS on the layers of :mod:`sci.graphs.gdss_layers`.

Neither network is told the time: they see noisy node features X (B, N, F), a noisy symmetric adjacency A (B, N, N) and
which nodes are present. The node networks return something like X, the edge network something like A.

References:
    | Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations
    | (Jaehyeong Jo, Seul Lee, Sung Ju Hwang, 2022)
"""

from __future__ import annotations

from abc import abstractmethod
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor, nn

from sci.graphs.gdss_layers import AttentionLayer, Convolutions, Perceptron, attention_layers
from sci.graphs.gdss_layouts import SMALL, Columns, Layout, Rows, normalised, pair_indices

# Items of a batch are worked through in blocks of about this many numbers in the widest activation: more fall out of
# the cache, fewer leave the time to the dispatch of operations.
BLOCK_NUMBERS = 600_000
SMALLEST_BLOCK = 4


@lru_cache(maxsize=1)
def keep_freed_memory() -> None:
    """Have the C library keep freed memory for the next activation.

    glibc returns freed blocks to the system and takes them back page by page, which costs a sixth of the networks' time
    on the CPU. Freeing one block of just under 32 MiB, untouched, raises its threshold to 64 MiB for this process.
    """
    torch.empty(31 * 2**20, dtype=torch.uint8)


def powers(edges: Tensor, count: int) -> Tensor:
    """The matrix powers A, A^2, ..., A^count: (B, N, N) to (count, B, N, N)."""
    channels = [edges]
    for _ in range(count - 1):
        channels.append(torch.bmm(channels[-1], edges))
    return torch.stack(channels)


def layout_of(mask: Tensor) -> Layout:
    """The faster layout for a block of items, given their mask (B, N)."""
    small = mask.shape[1] <= SMALL and mask.device.type == "cpu"
    return Columns(mask) if small else Rows(mask)


def attention_of(layers: nn.ModuleList) -> list[AttentionLayer]:
    """The layers with their type, which a ModuleList forgets."""
    return [cast(AttentionLayer, layer) for layer in layers]


class ScoreNetwork(nn.Module):
    """What the three networks share: on the CPU, items are worked through in blocks that fit the cache."""

    widest: int  # features of the widest activation
    pairwise: bool  # whether that activation is one per pair, or one per node

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        """Network output for noisy graphs.

        Arguments:
            nodes: Node features, with shape (B, N, F), zero at absent nodes.
            edges: Symmetric adjacency with zero diagonal, with shape (B, N, N), zero at absent nodes.
            mask: True or 1 where a node is present, with shape (B, N).

        Returns:
            A tensor like `nodes` (node networks) or like `edges` (edge network), zero at absent nodes.
        """
        count = nodes.shape[1]
        mask = mask.to(nodes.dtype)
        packed = self.packed()
        if nodes.device.type != "cpu":
            return self.block(nodes, edges, mask, packed=packed)
        keep_freed_memory()
        places = count * (count - 1) // 2 if self.pairwise else count
        work = len(nodes) * self.widest * max(1, places)
        pieces = min(max(1, round(work / BLOCK_NUMBERS)), max(1, len(nodes) // SMALLEST_BLOCK))
        parts = (tensor.tensor_split(pieces) for tensor in (nodes, edges, mask))
        blocks = zip(*parts, strict=True)
        outputs = [self.block(*block, packed=packed) for block in blocks]
        return outputs[0] if len(outputs) == 1 else torch.cat(outputs)

    @abstractmethod
    def packed(self) -> list[dict[str, Tensor]]:
        """Stacked weights of every layer."""

    @abstractmethod
    def block(
        self, nodes: Tensor, edges: Tensor, mask: Tensor, *, packed: list[dict[str, Tensor]]
    ) -> Tensor:
        """The network on one block of items, with a floating-point mask."""


class ScoreNetworkX(ScoreNetwork):
    """The node network of GDSS: graph convolutions with tanh, all their outputs into an MLP of three layers.

    Arguments:
        features: Node features F.
        depth: Number of graph convolutions.
        hidden: Their width.
    """

    pairwise = False

    def __init__(self, features: int, depth: int, hidden: int) -> None:
        super().__init__()
        inputs = [features] + [hidden] * (depth - 1)
        self.layers = nn.ModuleList(Convolutions(1, width, hidden) for width in inputs)
        total = features + depth * hidden
        self.final = Perceptron(3, total, 2 * total, features)
        self.widest = 2 * total

    def packed(self) -> list[dict[str, Tensor]]:
        """No weights need stacking: there is one channel."""
        return []

    def block(
        self, nodes: Tensor, edges: Tensor, mask: Tensor, *, packed: list[dict[str, Tensor]]
    ) -> Tensor:
        """The network on one block of items, with a floating-point mask."""
        _, _, below, _, _ = pair_indices(nodes.shape[1], nodes.device)
        matrices = normalised(edges.flatten(1).index_select(1, below), nodes.shape[1])
        seen = [nodes]
        for layer in self.layers:
            assert isinstance(layer, Convolutions)
            weighted = seen[-1] @ layer.weight[0]
            seen.append(torch.baddbmm(layer.bias, matrices, weighted).tanh_())
        return self.final(torch.cat(seen, dim=-1)) * mask.unsqueeze(-1)


class AttentionNetwork(ScoreNetwork):
    """What the two networks on attention layers share.

    Arguments:
        features: Node features F.
        depth: Number of attention layers.
        hidden: Node width between the layers.
        attention: Width of queries and keys after the first layer (in the first it is `hidden`).
        linears: Linear layers of the pair MLPs.
        channels: Edge channels (initial, hidden, final); the initial ones are powers of the adjacency.
        heads: Attention heads.
    """

    pairwise = True
    last: str  # what of the last layer is used: "nodes" or "edges"

    def __init__(
        self,
        features: int,
        depth: int,
        hidden: int,
        attention: int,
        linears: int,
        channels: tuple[int, int, int] = (2, 8, 4),
        heads: int = 4,
    ) -> None:
        super().__init__()
        self.channels = channels
        self.layers = attention_layers(
            features, depth, hidden, attention, linears, channels, heads, last=self.last
        )

    def packed(self) -> list[dict[str, Tensor]]:
        """Stacked weights of every layer."""
        return [layer.packed() for layer in attention_of(self.layers)]


class ScoreNetworkXGMH(AttentionNetwork):
    """The node network of GDSS on attention layers (`ScoreNetworkX_GMH` of the published checkpoints).

    Its outputs of all layers go into an MLP of three layers. Arguments as for :class:`AttentionNetwork`.
    """

    last = "nodes"

    def __init__(self, features: int, depth: int, hidden: int, *sizes: Any) -> None:
        super().__init__(features, depth, hidden, *sizes)
        total = features + depth * hidden
        self.final = Perceptron(3, total, 2 * total, features)
        self.widest = max(
            layer.pairs.layers()[0].out_features for layer in attention_of(self.layers)
        )

    def block(
        self, nodes: Tensor, edges: Tensor, mask: Tensor, *, packed: list[dict[str, Tensor]]
    ) -> Tensor:
        """The network on one block of items, with a floating-point mask."""
        layout = layout_of(mask)
        seen = [nodes]
        inside, pairs = layout.enter(nodes, powers(edges, self.channels[0]))
        for layer, weights in zip(self.layers, packed, strict=True):
            inside, pairs = layer(layout, inside, pairs, weights)
            inside = inside.tanh()
            seen.append(layout.leave(inside))
        return self.final(torch.cat(seen, dim=-1)) * mask.unsqueeze(-1)


class ScoreNetworkA(AttentionNetwork):
    """The adjacency network of GDSS: attention layers, all their edge channels into an MLP of three layers.

    Arguments as for :class:`AttentionNetwork`.
    """

    last = "edges"

    def __init__(self, features: int, depth: int, hidden: int, *sizes: Any) -> None:
        super().__init__(features, depth, hidden, *sizes)
        first, middle, final = self.channels
        total = first + middle * (depth - 1) + final
        self.final = Perceptron(3, total, 2 * total, 1)
        self.widest = 2 * total

    def block(
        self, nodes: Tensor, edges: Tensor, mask: Tensor, *, packed: list[dict[str, Tensor]]
    ) -> Tensor:
        """The network on one block of items, with a floating-point mask."""
        layout = layout_of(mask)
        nodes, pairs = layout.enter(nodes, powers(edges, self.channels[0]))
        seen = [pairs]
        for layer, weights in zip(self.layers, packed, strict=True):
            nodes, pairs = layer(layout, nodes, pairs, weights)
            seen.append(pairs)
        output = self.final.columns(torch.cat(seen)) * (0.5 * layout.twice_mask)
        return layout.leave_pairs(output.flatten())
