r"""Network of the mended GDSS: nodes and unordered pairs, updated together.

A graph of :math:`N` padded nodes has :math:`P = N (N - 1) / 2` unordered pairs. All hidden tensors
keep the item axis in the middle, ``nodes (N, B, C)`` and ``pairs (P, B, C)``, so that the exchange
between nodes and pairs is a single matrix product with the :math:`P \times N` incidence matrix and
no pair is ever computed twice. One block does

.. math::
    x_{ij} &= \operatorname{silu}(W_e \operatorname{LN}(e_{ij}) + W_h (h_i + h_j) + W_t \tau) \\
    e_{ij} &\leftarrow e_{ij} + W_x x_{ij} + W_a \sum_k a_{ik} \odot a_{jk},
        \qquad a_{ij} = W_c x_{ij} \\
    h_i &\leftarrow h_i + \operatorname{MLP}\bigl(\operatorname{LN}(h_i), \textstyle\sum_j x_{ij},
        \overline{h}, \tau\bigr)

where :math:`\tau` embeds the path time and the size of the graph. The middle line sees triangles,
hence rings after a few blocks. The map is equivariant under permutations of the nodes, and padding
never reaches a real node.

References:
    | Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations
      (Jo, Lee and Hwang, 2022)
    | Highly accurate protein structure prediction with AlphaFold (Jumper et al., 2021), for the
      triangle product
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from sci.graphs.pairs import dense_index, pair_index


class TriangleProduct(torch.autograd.Function):
    r"""Sum over third nodes of a product of two pairs, :math:`y_{ij} = \sum_k a_{ik} \odot a_{jk}`.

    The channels become a batch of symmetric matrices, so that the sum is a matrix product and its
    gradient, :math:`\bar a = \bar y a + a \bar y`, is one more. Rows are gathered in both passes;
    the automatic gradient of the gather would scatter, which is far slower on a CPU.
    """

    @staticmethod
    def forward(context, pairs: Tensor, dense: Tensor, upper: Tensor) -> Tensor:
        context.save_for_backward(pairs, dense, upper)
        matrices = _matrices(pairs, dense)
        return _entries(torch.bmm(matrices, matrices), upper, pairs.shape[-1])

    @staticmethod
    def backward(context, gradient: Tensor):
        pairs, dense, upper = context.saved_tensors
        product = torch.bmm(_matrices(gradient.to(pairs.dtype), dense), _matrices(pairs, dense))
        return _entries(product + product.mT, upper, pairs.shape[-1]), None, None


def _matrices(pairs: Tensor, dense: Tensor) -> Tensor:
    """(P, B, C) -> (B C, N, N)."""
    rows = functional.pad(pairs.flatten(1).t(), (0, 1))
    nodes = math.isqrt(len(dense))
    return rows.index_select(1, dense).unflatten(1, (nodes, nodes))


def _entries(matrices: Tensor, upper: Tensor, channels: int) -> Tensor:
    """(B C, N, N) -> (P, B, C)."""
    return matrices.flatten(1).index_select(1, upper).t().unflatten(1, (-1, channels))


def _zero(layer: nn.Linear) -> nn.Linear:
    """The layer with zero weight and bias: what it feeds starts unchanged."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class Block(nn.Module):
    """One joint update of nodes and pairs, see the module."""

    def __init__(self, node_width: int, pair_width: int, triangle_width: int, time_width: int):
        super().__init__()
        self.pair_norm = nn.LayerNorm(pair_width)
        self.pair_in = nn.Linear(pair_width, pair_width)
        self.pair_from_nodes = nn.Linear(node_width, pair_width, bias=False)
        self.pair_from_time = nn.Linear(time_width, pair_width)
        self.triangle_in = nn.Linear(pair_width, triangle_width)
        self.pair_out = _zero(nn.Linear(pair_width + triangle_width, pair_width))
        self.node_norm = nn.LayerNorm(node_width)
        self.node_from_pairs = nn.Linear(pair_width, node_width)
        self.node_from_mean = nn.Linear(node_width, node_width, bias=False)
        self.node_in = nn.Linear(node_width, node_width)
        self.node_from_time = nn.Linear(time_width, node_width)
        self.node_out = _zero(nn.Linear(node_width, node_width))

    def forward(
        self, nodes: Tensor, pairs: Tensor, time: Tensor, graph: Layout
    ) -> tuple[Tensor, Tensor]:
        hidden = self.node_norm(nodes)
        # Both ends bring half of the time's part: an addition on nodes in place of one on pairs.
        ends = self.pair_from_nodes(hidden) + 0.5 * self.pair_from_time(time)
        message = functional.silu(self.pair_in(self.pair_norm(pairs)) + graph.node_sum(ends))
        message = message * graph.pair_mask
        channel = self.triangle_in(message) * graph.pair_mask
        triangle = TriangleProduct.apply(channel, graph.dense, graph.upper)
        pairs = pairs + self.pair_out(torch.cat((message, triangle), dim=-1))
        mean = (hidden * graph.node_mask).sum(0) / graph.count
        update = functional.silu(
            self.node_in(hidden)
            + self.node_from_pairs(graph.pair_sum(message))
            + (self.node_from_mean(mean) + self.node_from_time(time))
        )
        return nodes + self.node_out(update), pairs


class Layout:
    """Masks and index tables of a batch of padded graphs, shared by all blocks.

    Arguments:
        mask: Which nodes exist, shape (B, N), boolean.
        dtype: Floating type of the masks.
    """

    def __init__(self, mask: Tensor, dtype: torch.dtype):
        nodes = mask.shape[1]
        smaller, larger = (end.to(mask.device) for end in pair_index(nodes))
        rows = mask.t().to(dtype)
        self.mask = mask
        self.dense = dense_index(nodes).to(mask.device)
        self.upper = smaller * nodes + larger
        self.node_mask = rows.unsqueeze(-1)
        self.pair_mask = (rows[smaller] * rows[larger]).unsqueeze(-1)
        self.count = self.node_mask.sum(0).clamp(min=1)
        number = torch.arange(len(smaller), device=mask.device)
        self.incidence = torch.zeros(len(smaller), nodes, dtype=dtype, device=mask.device)
        self.incidence[number, smaller] = 1
        self.incidence[number, larger] = 1

    def node_sum(self, values: Tensor) -> Tensor:
        """Sum over the two ends of each pair, (N, B, C) -> (P, B, C)."""
        return (self.incidence @ values.flatten(1)).unflatten(1, values.shape[1:])

    def pair_sum(self, values: Tensor) -> Tensor:
        """Sum over the pairs of each node, (P, B, C) -> (N, B, C)."""
        return (self.incidence.t() @ values.flatten(1)).unflatten(1, values.shape[1:])


class JointNetwork(nn.Module):
    r"""Logits of clean node and edge classes from a noised graph.

    The noised leaves are :math:`x = \alpha (e_k - m) + \sigma \epsilon` with one-hot
    :math:`e_k` and class frequencies :math:`m`. Seen alone, an entry has the exact class posterior

    .. math:: \log p(k | x) = \log m_k + (\alpha x_k + \alpha^2 m_k) / \sigma^2 + \text{const},

    which is both an input and the offset of the output: near :math:`t = 1` the network starts from
    the right answer, at :math:`t = 0` from the class frequencies.

    Arguments:
        node_classes: Number of node classes K (1 for graphs without node labels).
        edge_classes: Number of edge classes C; class 0 is "no edge".
        depth: Number of blocks.
        node_width, pair_width, triangle_width, time_width: Hidden widths.
        max_nodes: Largest number of nodes, the unit of the size feature.
    """

    FLOOR = -9.0  # of the log posterior: keeps its range fit for bfloat16
    frequencies: Tensor

    def __init__(
        self,
        node_classes: int,
        edge_classes: int,
        max_nodes: int,
        depth: int = 4,
        node_width: int = 96,
        pair_width: int = 64,
        triangle_width: int = 16,
        time_width: int = 64,
    ):
        super().__init__()
        self.max_nodes = max_nodes
        self.node_embed = nn.Linear(2 * node_classes, node_width)
        self.pair_embed = nn.Linear(2 * edge_classes, pair_width)
        frequencies = torch.logspace(-1.0, 1.0, 16) * math.pi
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.time_embed = nn.Sequential(
            nn.Linear(2 * 16 + 1, time_width),
            nn.SiLU(),
            nn.Linear(time_width, time_width),
            nn.SiLU(),
        )
        self.blocks = nn.ModuleList(
            Block(node_width, pair_width, triangle_width, time_width) for _ in range(depth)
        )
        self.node_head = nn.Sequential(
            nn.LayerNorm(node_width), _zero(nn.Linear(node_width, node_classes))
        )
        self.pair_head = nn.Sequential(
            nn.LayerNorm(pair_width),
            nn.Linear(pair_width, pair_width),
            nn.SiLU(),
            _zero(nn.Linear(pair_width, edge_classes)),
        )

    def forward(
        self,
        nodes: Tensor,
        pairs: Tensor,
        node_prior: Tensor,
        pair_prior: Tensor,
        t: Tensor,
        graph: Layout,
    ) -> tuple[Tensor, Tensor]:
        """Logits of the clean classes.

        Arguments:
            nodes, node_prior: Noised nodes and their entrywise log posterior, shape (N, B, K).
            pairs, pair_prior: Noised pairs and their entrywise log posterior, shape (P, B, C).
            t: Path time, shape (B,), in [0, 1].
            graph: Masks and index tables.

        Returns:
            Logits of nodes (N, B, K) and pairs (P, B, C); entries of padding mean nothing.
        """
        phase = t.to(nodes.dtype).unsqueeze(-1) * self.frequencies
        size = graph.count / self.max_nodes
        time = self.time_embed(torch.cat((phase.cos(), phase.sin(), size), dim=-1))
        hidden = self.node_embed(torch.cat((nodes, node_prior), dim=-1))
        edges = self.pair_embed(torch.cat((pairs, pair_prior), dim=-1))
        for block in self.blocks:
            hidden, edges = block(hidden, edges, time, graph)
        return self.node_head(hidden) + node_prior, self.pair_head(edges) + pair_prior


def log_posterior(noised: Tensor, marginal: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """Entrywise class posterior of a noised one-hot, see :class:`JointNetwork`.

    Arguments:
        noised: Noised classes, shape (R, B, K).
        marginal: Class frequencies, shape (K,), positive.
        alpha, sigma: Scale and noise at the time of each graph, shape (B,).

    Returns:
        Log probabilities, floored at -9, shape (R, B, K).
    """
    alpha, sigma = alpha.unsqueeze(-1), sigma.unsqueeze(-1)
    evidence = (alpha * noised + alpha.square() * marginal) / sigma.square()
    return functional.log_softmax(marginal.log() + evidence, dim=-1).clamp(min=JointNetwork.FLOOR)
