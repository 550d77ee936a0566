r"""What stands before and after the layers of PARD's networks: embeddings, and heads of logits.

The encoder turns classes and block numbers into hidden nodes and pairs; pairs know how many blocks
lie between their ends, :math:`1 / (1 + |b_i - b_j|)` in sines and cosines. One head gives logits of
nodes and of unordered pairs, computed once a pair from :math:`f_{ij} + f_{ji}`; the other gives the
size and the degree of the block that follows each block.

References:
    | Pard: permutation-invariant autoregressive diffusion for graph generation
      (Zhao, Ding, Akoglu, 2024)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from sci.graphs.pairs import pair_index
from sci.graphs.pard_layers import Perceptron, Trunk
from sci.graphs.pard_layout import BlockLayout

__all__ = ["BlockHead", "DenoisingHead", "Encoder", "NetworkSize", "Rise", "initialise", "waves"]


@dataclass(frozen=True)
class NetworkSize:
    """Size and options of the transformer, the same for both networks.

    Arguments:
        depth: Layers, each attention and product.
        node_width, pair_width: Channels H of nodes and E of pairs, even.
        heads: Attention heads; divides `node_width`.
        product_width: Channels of the matrix product; None: `pair_width`, as published. Half of
            it saves a sixth of the time.
        norm: "layer", or "batch" for comparison with the published models.
        dropout: Share of dropped entries of residual updates, in [0, 1).
        recompute: Trade time for memory in the backward pass (activation checkpointing).
        absolute: Whether nodes know the number of their block.
        relative: Whether pairs know how many blocks lie between their ends.
        context: Width of what the whole graph is conditioned on (properties, labels); 0: nothing.
    """

    depth: int = 4
    node_width: int = 64
    pair_width: int = 32
    heads: int = 8
    product_width: int | None = None
    norm: str = "layer"
    dropout: float = 0.0
    recompute: bool = False
    absolute: bool = True
    relative: bool = True
    context: int = 0

    def trunk(self) -> Trunk:
        """The layers, newly made."""
        return Trunk(
            self.depth,
            self.node_width,
            self.pair_width,
            self.heads,
            self.product_width or self.pair_width,
            self.norm,
            self.dropout,
            self.recompute,
        )


def waves(values: Tensor, width: int, longest: float, whole: bool = False) -> Tensor:
    """Cosines, then sines, of values at width/2 frequencies from 1 down to nearly 1/longest.

    With `whole`, frequencies are rounded down, that is to 1, 0, ..., 0.
    """
    powers = torch.arange(width // 2, dtype=values.dtype, device=values.device) / (width // 2)
    frequencies = longest**-powers
    phase = values.unsqueeze(-1) * (frequencies.floor() if whole else frequencies)
    return torch.cat((phase.cos(), phase.sin()), dim=-1)


def initialise(module: nn.Module, norm: str) -> None:
    """Xavier weights, at half their size with batch norm, and zero biases in all linear layers."""
    gain = 1.0 if norm == "layer" else 0.5
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_uniform_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def _looked_up(classes: Tensor, table: Tensor) -> Tensor:
    """Rows of the table: classes are integers (...), or probabilities (..., C) to average with."""
    if classes.is_floating_point():
        return classes @ table
    return functional.embedding(classes, table)


class Encoder(nn.Module):
    """First hidden nodes and pairs of graphs: classes, block numbers and what is conditioned on.

    Arguments:
        node_states, edge_states: Number of classes that can come in.
        max_blocks: Block numbers from here on share the embedding of the last.
        size: Widths and options.
    """

    def __init__(self, node_states: int, edge_states: int, max_blocks: int, size: NetworkSize):
        super().__init__()
        self.max_blocks = max_blocks
        self.node_table = nn.Parameter(torch.empty(node_states, size.node_width))
        self.pair_table = nn.Parameter(torch.empty(edge_states + 1, size.pair_width))
        nn.init.xavier_uniform_(self.node_table)
        nn.init.xavier_uniform_(self.pair_table)
        self.number = nn.Embedding(max_blocks, size.node_width) if size.absolute else None
        width = size.pair_width
        self.distance = Perceptron(width, 2 * width, width) if size.relative else None
        self.context = nn.Linear(size.context, size.node_width) if size.context else None

    def forward(
        self, nodes: Tensor, edges: Tensor, blocks: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Nodes (B, K, n, H) and pairs (B, K, n, n, E).

        Arguments:
            nodes: Classes (B, K, n), or probabilities (B, K, n, states).
            edges: Classes (B, K, n, n), or probabilities (B, K, n, n, states); any diagonal.
            blocks: Block numbers (B, n).
            context: (B, width), or None: nothing is known.
        """
        hidden = _looked_up(nodes, self.node_table)
        place = blocks.clamp(0, self.max_blocks - 1)
        if self.number is not None:
            hidden = hidden + self.number(place).unsqueeze(1)
        if self.context is not None and context is not None:
            hidden = hidden + self.context(context.to(hidden.dtype))[:, None, None]
        return hidden, self._pairs(edges, place)

    def _pairs(self, edges: Tensor, place: Tensor) -> Tensor:
        """Embedded edges; the diagonal has the last row of the table."""
        states = len(self.pair_table) - 1
        diagonal = torch.eye(place.shape[1], dtype=torch.bool, device=edges.device)
        if edges.is_floating_point():
            pairs = edges @ self.pair_table[:-1]
            pairs = torch.where(diagonal[..., None], self.pair_table[-1], pairs)
            if self.distance is None:
                return pairs
            apart = (place.unsqueeze(2) - place.unsqueeze(1)).abs()
            return pairs + functional.embedding(apart, self._distances()).unsqueeze(1)
        edges = edges.masked_fill(diagonal, states)
        if self.distance is None:
            return functional.embedding(edges, self.pair_table)
        apart = (place.unsqueeze(2) - place.unsqueeze(1)).abs().unsqueeze(1)
        table = self.pair_table.unsqueeze(1) + self._distances()
        return functional.embedding(edges * self.max_blocks + apart, table.flatten(0, 1))

    def _distances(self) -> Tensor:
        """Embedding of every distance between block numbers, (max_blocks, E)."""
        assert self.distance is not None
        closeness = 1.0 / torch.arange(
            1, self.max_blocks + 1, dtype=self.pair_table.dtype, device=self.pair_table.device
        )
        return self.distance(waves(closeness, self.pair_table.shape[1], 10.0))


class Gather(nn.Module):
    """Nodes that know their pairs: own diagonal entry, mean over what they see, and the node."""

    def __init__(self, node_width: int, pair_width: int):
        super().__init__()
        self.linear = nn.Linear(2 * pair_width + node_width, node_width)

    def forward(self, nodes: Tensor, pairs: Tensor, layout: BlockLayout) -> Tensor:
        """(B, K, n, H) from nodes and pairs."""
        own = pairs.diagonal(dim1=2, dim2=3).transpose(-1, -2)
        weight = layout.mean_weight.to(pairs.dtype).unsqueeze(3)
        mean = 0.5 * (weight @ pairs + weight @ pairs.transpose(2, 3)).squeeze(3)
        return functional.silu(self.linear(torch.cat((own, mean, nodes), dim=-1)))


class Rise(nn.Module):
    """A rising function from [0, 1] into (0, 1): a perceptron whose weights count by magnitude."""

    def __init__(self, width: int = 128):
        super().__init__()
        self.first = nn.Linear(1, width)
        self.second = nn.Linear(width, 1)

    def forward(self, t: Tensor) -> Tensor:
        """(B,) -> (B,)."""
        hidden = functional.linear(t.unsqueeze(-1), self.first.weight.abs(), self.first.bias)
        rise = functional.linear(
            functional.silu(hidden), self.second.weight.abs(), self.second.bias
        )
        return torch.sigmoid(rise).squeeze(-1)


class DenoisingHead(nn.Module):
    """Logits of nodes and of unordered pairs from the last hidden layer."""

    def __init__(self, node_classes: int, edge_classes: int, size: NetworkSize):
        super().__init__()
        width, kind = size.pair_width, size.norm
        self.node_classes, self.edge_classes, self.kind = node_classes, edge_classes, kind
        self.gather = Gather(size.node_width, width)
        self.ends = nn.Linear(size.node_width, 4 * width)
        self.pairs = nn.Linear(width, 2 * width)
        self.ends_gate = nn.Linear(2 * width, 2 * width)
        self.pairs_gate = nn.Linear(2 * width, 2 * width)
        self.node_out = Perceptron(size.node_width, size.node_width, node_classes, kind)
        self.edge_out = Perceptron(2 * width, width, edge_classes, kind)

    def forward(self, nodes: Tensor, pairs: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
        """Logits (B, n, node_classes) and (B, P, edge_classes) of the noised, or only, graph."""
        hidden = self.gather(nodes, pairs, layout)
        second, first = self.ends(hidden).chunk(2, dim=-1)
        ends = layout.ends(first, second)
        nodes_valid, pairs_valid = layout.nodes_valid, layout.pairs_valid
        if self.kind == "layer":
            # Only statistics over the batch would need the logits of the clean half.
            hidden, ends, pairs = hidden[:, -1:], ends[:, -1:], pairs[:, -1:]
            nodes_valid, pairs_valid = nodes_valid[:, -1:], pairs_valid[:, -1:]
        pairs = self.pairs(pairs)
        gate = functional.silu(self.ends_gate(ends)) * functional.silu(self.pairs_gate(pairs))
        pairs = functional.silu(ends + pairs + gate)
        count = pairs.shape[2]
        smaller, larger = (end.to(pairs.device) for end in pair_index(count))
        upper, lower = smaller * count + larger, larger * count + smaller
        if self.kind == "layer":
            pairs = pairs.flatten(0, 3).unflatten(0, (-1, count * count))
            edges = self.edge_out(pairs[:, upper] + pairs[:, lower], torch.ones_like(upper))
        else:
            edges = self.edge_out(pairs + pairs.transpose(2, 3), pairs_valid)
            edges = edges[:, -1].flatten(1, 2)[:, upper]
        return self.node_out(hidden, nodes_valid)[:, -1], edges


class BlockHead(nn.Module):
    """Size and degree of the block after each block of a graph.

    Arguments:
        max_size: Largest size of a block; logits are of sizes 0, ..., max_size.
        max_degree: Largest degree; logits are of degrees 0, ..., max_degree.
        size: Widths.
    """

    def __init__(self, max_size: int, max_degree: int, size: NetworkSize):
        super().__init__()
        width = size.node_width
        self.gather = Gather(width, size.pair_width)
        self.embedding = nn.Embedding(max_size + 1, width)
        self.size_out = Perceptron(width, width, max_size + 1, size.norm)
        self.degree_out = Perceptron(width, width, max_degree + 1, size.norm)
        self.first_out = Perceptron(width, width, max_degree + 1, size.norm)

    def forward(
        self, nodes: Tensor, pairs: Tensor, layout: BlockLayout, blocks: Tensor, sizes: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Logits after every block of complete graphs.

        Arguments:
            nodes, pairs, layout: Last hidden layer; only the clean half is read.
            blocks: Block number of each node, (B, n), -1 where there is none.
            sizes: Size of each block, (B, G), 0 behind the last.

        Returns:
            Logits of the next size (B, G, max_size + 1), of the next degree (B, G, max_degree + 1)
            given the true next size, and of the first degree (B, max_degree + 1) given the first
            size. Rows behind the last block mean nothing.
        """
        known, valid = self.represent(nodes, pairs, layout, blocks, sizes.shape[1]), sizes > 0
        following = functional.pad(sizes[:, 1:], (0, 1))
        return (
            self.sizes(known, valid),
            self.degrees(known, following, valid),
            self.first_degrees(sizes[:, 0]),
        )

    def represent(
        self, nodes: Tensor, pairs: Tensor, layout: BlockLayout, blocks: Tensor, count: int
    ) -> Tensor:
        """What is known after each of the first `count` blocks, (B, count, H).

        The sum over all nodes of these blocks, each node knowing the pairs that it sees.
        """
        hidden = self.gather(nodes, pairs, layout)[:, 0]
        number = torch.arange(count, device=blocks.device).unsqueeze(-1)
        until = (blocks.unsqueeze(1) <= number) & layout.valid.unsqueeze(1)
        return until.to(hidden.dtype) @ hidden

    def sizes(self, known: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits of the size of the next block, (B, G, max_size + 1); 0 ends the graph."""
        return self.size_out(known, _all(known) if valid is None else valid)

    def degrees(self, known: Tensor, sizes: Tensor, valid: Tensor | None = None) -> Tensor:
        """Logits of the degree of the next block given its size (B, G), (B, G, max_degree + 1)."""
        known = known + self.embedding(sizes)
        return self.degree_out(known, _all(known) if valid is None else valid)

    def first_degrees(self, sizes: Tensor) -> Tensor:
        """Logits of the degree of the first block given its size (B,), (B, max_degree + 1)."""
        known = self.embedding(sizes)
        return self.first_out(known, _all(known))


def _all(values: Tensor) -> Tensor:
    """Every row counts."""
    return torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)
