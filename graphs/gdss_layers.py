r"""The layers of the GDSS score networks, computed on stacked channels and unordered pairs.

A graph is a node matrix X (N, F) and a symmetric adjacency A (N, N). A graph convolution on one channel is

.. math:: \mathrm{GCN}(X, A) = D^{-1/2} \tilde A D^{-1/2} X W + b,

where :math:`\tilde A` is A with ones on the diagonal and :math:`D = \max(1, \tilde A \mathbf 1)`. An attention layer
holds C such channels; channel c has its own queries, keys and values, all three GCNs on A_c, and

.. math::
    S_c = \mathrm{sym} \frac1H \sum_h \tanh\!\big(q_{ch} k_{ch}^\top / \sqrt{d_v}\big), \qquad
    A' = B + B^\top,\ B = \mathrm{MLP}([S; A]), \qquad X' = \tanh(\mathrm{MLP}(v_1, \ldots, v_C)).

Four identities make this cheap without changing it:

- q, k and v share the propagated nodes :math:`D^{-1/2} \tilde A D^{-1/2} X`, which are computed once for all channels;
- values enter the node MLP linearly, so their weights are multiplied into its first layer;
- pair tensors are symmetric and the diagonal reaches no output, so pair MLPs run on N(N-1)/2 pairs and B + B^T = 2B;
- the mean over heads, the symmetrisation and the factor 2 are scalars that fall on weights or masks.

Pair features are (channels, M), a column for each pair of each item, in the order of :mod:`sci.graphs.gdss_layouts`.

References:
    | Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations
    | (Jaehyeong Jo, Seul Lee, Sung Ju Hwang, 2022)
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as functional
from torch import Tensor, nn

from sci.graphs.gdss_layouts import Layout


def elu(x: Tensor) -> Tensor:
    """ELU; without gradients from clamp, exp and maximum, three times faster on the CPU than the fused function."""
    if x.requires_grad or x.device.type != "cpu":
        return functional.elu(x)
    negative = x.clamp(min=-40.0, max=0.0).exp_().sub_(1)  # exp(-40) is below the rounding of 1
    return torch.maximum(negative, x, out=negative)


def flushed(weight: Tensor) -> Tensor:
    """The weight with entries below the root of the smallest normal number set to zero; gradients pass unchanged.

    Weight decay drives the weights of dead heads to nothing (a tenth of the published QM9 checkpoint, two thirds of
    the grid one). They and their products are subnormal numbers, on which matrix products and tanh run up to forty
    times slower.
    """
    smallest = math.sqrt(torch.finfo(weight.dtype).tiny)
    if not weight.requires_grad:
        return functional.hardshrink(weight, smallest)
    return weight + (functional.hardshrink(weight.detach(), smallest) - weight.detach())


class Perceptron(nn.Module):
    """Linear layers with ELU between them, on features in the last dimension or (`columns`) in the first."""

    def __init__(self, layers: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.linears = nn.ModuleList(
            nn.Linear(before, after) for before, after in zip(widths, widths[1:], strict=False)
        )

    def layers(self) -> list[nn.Linear]:
        """The linear layers, in order."""
        return [module for module in self.linears if isinstance(module, nn.Linear)]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        for index, linear in enumerate(self.layers()):
            x = linear(elu(x) if index else x)
        return x

    def columns(self, x: Tensor, scale: Tensor | None = None) -> Tensor:
        """Map (inputs, M) to (outputs, M); `scale` (inputs,) multiplies the input features."""
        for index, linear in enumerate(self.layers()):
            weight = flushed(linear.weight)
            if index == 0 and scale is not None:
                weight = weight * scale
            x = torch.addmm(linear.bias.unsqueeze(-1), weight, elu(x) if index else x)
        return x


class Convolutions(nn.Module):
    """One graph convolution per channel: `weight` (channels, inputs, outputs), `bias` (channels, outputs)."""

    def __init__(self, channels: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(channels, inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(channels, outputs))
        bound = math.sqrt(6.0 / (inputs + outputs))
        nn.init.uniform_(self.weight, -bound, bound)


class AttentionLayer(nn.Module):
    """Graph multi-head attention over all channels of an adjacency.

    Arguments:
        linears: Linear layers of the pair MLP.
        inputs: Node features before the layer.
        attention: Width of queries and keys, all heads together.
        outputs: Node features after the layer; also the divisor: scores are q k^T / sqrt(outputs).
        before: Channels before the layer.
        after: Channels after the layer.
        heads: Number of heads; divides `attention`.
        makes: What the layer computes: "both", "nodes" or "edges" (the parameters of all three are the same).
    """

    def __init__(
        self,
        linears: int,
        inputs: int,
        attention: int,
        outputs: int,
        before: int,
        after: int,
        heads: int,
        makes: str = "both",
    ) -> None:
        super().__init__()
        if attention % heads:
            raise ValueError(f"attention width {attention} is not a multiple of the {heads} heads")
        self.outputs, self.heads, self.makes = outputs, heads, makes
        self.queries = Convolutions(before, inputs, attention)
        self.keys = Convolutions(before, inputs, attention)
        self.values = Convolutions(before, inputs, outputs)
        hidden = 2 * max(before, after)
        self.pairs = Perceptron(linears, 2 * before, hidden, after)
        self.nodes = Perceptron(2, before * outputs, hidden, outputs)

    def packed(self) -> dict[str, Tensor]:
        """Stacked weights; made once per call of the network, so that training sees every update."""
        channels = len(self.queries.weight)
        packed: dict[str, Tensor] = {}
        if self.makes != "nodes":
            scale = 1.0 / math.sqrt(self.outputs)
            kinds = "weight", "bias"
            for kind, name in zip(kinds, ("attention", "attention_bias"), strict=True):
                queries, keys = getattr(self.queries, kind), getattr(self.keys, kind)
                packed[name] = flushed(torch.cat([queries * scale, keys], dim=-1))
            packed["attention_bias"] = packed["attention_bias"].unsqueeze(1)
            factor = self.queries.weight.new_full((2 * channels,), 0.5 / self.heads)
            factor[channels:] = 1.0
            packed["pair_scale"] = factor
        if self.makes != "edges":
            first = self.nodes.layers()[0]
            per_channel = first.weight.unflatten(-1, (channels, self.outputs)).permute(1, 2, 0)
            packed["values"] = flushed(torch.bmm(self.values.weight, per_channel))
            from_values = torch.bmm(self.values.bias.unsqueeze(1), per_channel)
            packed["values_bias"] = first.bias + from_values.sum(dim=(0, 1))
        return packed

    def forward(
        self, layout: Layout, nodes: Tensor, pairs: Tensor, packed: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Nodes and pairs after the layer, in the layout, from those before it."""
        propagated = layout.propagate(pairs, nodes)
        if self.makes != "nodes":
            weights = packed["attention"], packed["attention_bias"]
            scores = layout.attend(propagated, *weights, self.heads)
            after = self.pairs.columns(torch.cat([scores, pairs]), packed["pair_scale"])
            pairs = after * layout.twice_mask
        if self.makes != "edges":
            hidden = elu(layout.mix(propagated, packed["values"], packed["values_bias"]))
            last = self.nodes.layers()[1]
            nodes = layout.linear(hidden, last.weight, last.bias) * layout.node_mask
            nodes = nodes.tanh_()
        return nodes, pairs


def attention_layers(
    features: int,
    layers: int,
    hidden: int,
    attention: int,
    linears: int,
    channels: tuple[int, int, int],
    heads: int,
    last: str,
) -> nn.ModuleList:
    """Layers with channels c_init -> c_hidden -> ... -> c_final; the last one makes only what is used of it."""
    first, middle, final = channels
    widths = [first] + [middle] * (layers - 1) + [final]
    return nn.ModuleList(
        AttentionLayer(
            linears,
            features if index == 0 else hidden,
            hidden if index == 0 else attention,
            hidden,
            widths[index],
            widths[index + 1],
            heads,
            makes=last if index == layers - 1 else "both",
        )
        for index in range(layers)
    )
