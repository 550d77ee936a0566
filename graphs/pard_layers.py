r"""Layers of the higher-order graph transformer: attention, then a product of pairs, both block-causal.

Nodes ``(B, K, n, H)`` and pairs ``(B, K, n, n, E)`` lie as :mod:`sci.graphs.pard_layout` says; row i
sees column j when its block is not later, :math:`b_j \le b_i`.

A layer is

.. math::
    e'_{ij} &= \operatorname{silu}(\kappa_{ij} + \operatorname{silu}(z_{ij}) \eta_{ij} + z_{ij}),
        \qquad z_{ij} = q_i + k_j, \qquad (\eta, \kappa)_{ij} = W \operatorname{LN}(e_{ij}) \\
    h_i &\leftarrow h_i + W_o \textstyle\sum_j a_{ij} (V h_j + W_v e'_{ij}),
        \qquad a_{ij} = \operatorname{softmax}_{j : b_j \le b_i} W_a e'_{ij},
        \qquad e_{ij} \leftarrow e_{ij} + W_e e'_{ij} \\
    e_{ij} &\leftarrow e_{ij} + W_p \textstyle\sum_{k : b_k \le \max(b_i, b_j)} P_{ik} \odot Q_{kj}

with perceptrons P of (e, e transposed) and Q of e, each residual followed by a perceptron. The sum over
edge values is taken before :math:`W_v`, which costs a sum in place of a linear layer on pairs.

References:
    | Pard: permutation-invariant autoregressive diffusion for graph generation
      (Zhao, Ding, Akoglu, 2024)
    | Provably powerful graph networks (Maron, Ben-Hamu, Serviansky, Lipman, 2019)
    | Graph inductive biases in transformers without message passing (Ma et al., 2023)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from sci.graphs.pard_layout import BlockLayout, Gate

__all__ = ["Norm", "Perceptron", "Trunk"]


class Norm(nn.Module):
    """Normalisation before a residual branch.

    "layer" is a layer norm and leaves the residual alone. "batch" is the published one, kept for
    comparison: statistics over all valid entries of the batch, and the normalised value also
    replaces the residual, which makes it a post-norm and lets items and blocks see each other.

    Arguments:
        width: Number of channels, the last dimension.
        kind: "layer" or "batch".
    """

    def __init__(self, width: int, kind: str):
        super().__init__()
        self.norm = nn.LayerNorm(width) if kind == "layer" else nn.BatchNorm1d(width)

    def forward(self, values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """The normalised values and what the residual connection carries on."""
        if isinstance(self.norm, nn.LayerNorm):
            return self.norm(values), values
        normalised = values.clone()
        normalised[valid] = self.norm(values[valid]).to(values.dtype)
        return normalised, normalised


class Perceptron(nn.Module):
    """Two linear layers with SiLU between them and, where `kind` is given, a norm before it."""

    def __init__(self, inputs: int, hidden: int, outputs: int, kind: str | None = None):
        super().__init__()
        self.first = nn.Linear(inputs, hidden)
        self.norm = None if kind is None else Norm(hidden, kind)
        self.second = nn.Linear(hidden, outputs)

    def forward(self, values: Tensor, valid: Tensor | None = None) -> Tensor:
        """Map (..., inputs) to (..., outputs); `valid` (...) says which entries a norm counts."""
        values = self.first(values)
        if self.norm is not None and valid is not None:
            values = self.norm(values, valid)[0]
        return self.second(functional.silu(values))


class Attention(nn.Module):
    """Attention over nodes with keys made of pairs, which it updates too; see the module."""

    def __init__(self, node_width: int, pair_width: int, heads: int, kind: str, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.node_norm = Norm(node_width, kind)
        self.pair_norm = Norm(pair_width, kind)
        self.from_nodes = nn.Linear(node_width, 2 * pair_width + node_width)
        self.from_pairs = nn.Linear(pair_width, 2 * pair_width)
        self.to_pairs = nn.Linear(pair_width, pair_width + heads)
        self.pair_values = nn.Linear(pair_width, node_width, bias=False)
        self.to_nodes = nn.Linear(node_width, node_width)
        self.last_norm = Norm(node_width, kind)
        self.perceptron = Perceptron(node_width, 2 * node_width, node_width)

    def forward(self, nodes: Tensor, pairs: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
        """Updated nodes and pairs."""
        width = pairs.shape[-1]
        hidden, nodes = self.node_norm(nodes, layout.nodes_valid)
        first, second, values = self.from_nodes(hidden).split(
            (width, width, hidden.shape[-1]), dim=-1
        )
        hidden, pairs = self.pair_norm(pairs, layout.pairs_valid)
        message = Gate.apply(first, second, self.from_pairs(hidden), layout)
        update, scores = self.to_pairs(message).split((width, self.heads), dim=-1)
        pairs = pairs + functional.dropout(update, self.dropout, self.training)
        unseen = ~layout.seen[:, None, :, :, None]
        scores = scores.masked_fill(unseen, torch.finfo(scores.dtype).min)
        attention = scores.softmax(dim=3)
        gathered = torch.matmul(attention.mT, message)
        weight = self.pair_values.weight.unflatten(0, (self.heads, -1))
        collected = layout.collect(attention, values.unflatten(-1, (self.heads, -1)))
        collected = collected + torch.einsum("bknhe,hde->bknhd", gathered, weight)
        update = self.to_nodes(collected.flatten(-2))
        nodes = nodes + functional.dropout(update, self.dropout, self.training)
        hidden, nodes = self.last_norm(nodes, layout.nodes_valid)
        update = functional.dropout(self.perceptron(hidden), self.dropout, self.training)
        return nodes + update, pairs


class Product(nn.Module):
    """The causal matrix product over middle nodes on every channel of the pairs; see the module."""

    def __init__(self, width: int, inner: int, kind: str, dropout: float):
        super().__init__()
        self.dropout = dropout
        self.norm = Norm(width, kind)
        self.inward = nn.Linear(width, 3 * inner)
        self.left = nn.Linear(inner, inner)
        self.right = nn.Linear(inner, inner)
        self.outward = nn.Linear(inner, width)
        self.last_norm = Norm(width, kind)
        self.perceptron = Perceptron(width, 2 * width, width)

    def forward(self, pairs: Tensor, layout: BlockLayout) -> Tensor:
        """Updated pairs."""
        shape, width = pairs.shape, self.left.out_features
        hidden, pairs = self.norm(pairs, layout.pairs_valid)
        straight, turned, other = self.inward(hidden).split(width, dim=-1)
        left = _columns(self.left, functional.silu(straight + turned.transpose(2, 3)))
        right = _columns(self.right, functional.silu(other))
        matrices = (width, *shape[:-1])
        product = layout.product(left.view(matrices), right.view(matrices))
        update = self.outward(product.view(width, -1).t()).view(shape)
        pairs = pairs + functional.dropout(update, self.dropout, self.training)
        hidden, pairs = self.last_norm(pairs, layout.pairs_valid)
        return pairs + functional.dropout(self.perceptron(hidden), self.dropout, self.training)


def _columns(layer: nn.Linear, values: Tensor) -> Tensor:
    """SiLU of the layer with channels first, (..., C) -> (C', M): the product wants them so."""
    values = values.reshape(-1, values.shape[-1])
    return functional.silu(torch.addmm(layer.bias.unsqueeze(-1), layer.weight, values.t()))


class Trunk(nn.Module):
    """A stack of layers, each attention and then product, and a perceptron at the end.

    Arguments:
        depth: Number of layers.
        node_width, pair_width: Channels H of nodes and E of pairs.
        heads: Attention heads; divides `node_width`.
        product_width: Channels of the matrix product.
        norm: "layer", or "batch" for comparison with the published models.
        dropout: Share of dropped entries in the update of every residual connection.
        recompute: Keep only the input of each layer for the backward pass and compute the rest
            again, for about a third more time.

    Raises:
        ValueError: for an unknown norm, or a width that the heads do not divide.
    """

    def __init__(
        self,
        depth: int,
        node_width: int,
        pair_width: int,
        heads: int,
        product_width: int,
        norm: str = "layer",
        dropout: float = 0.0,
        recompute: bool = False,
    ):
        super().__init__()
        if norm not in ("layer", "batch"):
            raise ValueError(f'norm is {norm!r}: choose "layer", or "batch" for comparison')
        if node_width % heads:
            raise ValueError(f"node_width {node_width} is not a multiple of the {heads} heads")
        self.recompute = recompute
        self.attentions = nn.ModuleList(
            Attention(node_width, pair_width, heads, norm, dropout) for _ in range(depth)
        )
        self.products = nn.ModuleList(
            Product(pair_width, product_width, norm, dropout) for _ in range(depth)
        )
        self.node_norm, self.pair_norm = Norm(node_width, norm), Norm(pair_width, norm)
        self.node_out = Perceptron(node_width, node_width, node_width)
        self.pair_out = Perceptron(pair_width, pair_width, pair_width)

    def layer(
        self, number: int, nodes: Tensor, pairs: Tensor, layout: BlockLayout
    ) -> tuple[Tensor, Tensor]:
        """Nodes and pairs after one layer."""
        nodes, pairs = self.attentions[number](nodes, pairs, layout)
        return nodes, self.products[number](pairs, layout)

    def forward(self, nodes: Tensor, pairs: Tensor, layout: BlockLayout) -> tuple[Tensor, Tensor]:
        """Nodes (B, K, n, H) and pairs (B, K, n, n, E) after all layers; padding means nothing."""
        for number in range(len(self.attentions)):
            if self.recompute and torch.is_grad_enabled():
                nodes, pairs = checkpoint(
                    self.layer, number, nodes, pairs, layout, use_reentrant=False
                )
            else:
                nodes, pairs = self.layer(number, nodes, pairs, layout)
        nodes = self.node_out(self.node_norm(nodes, layout.nodes_valid)[0])
        return nodes, self.pair_out(self.pair_norm(pairs, layout.pairs_valid)[0])
