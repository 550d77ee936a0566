"""How much cheaper the stacked GDSS networks are than the same architecture written out channel by channel.

The ``Plain`` classes below follow the published description literally: one module per channel and per query, key and
value, full N x N pair tensors, the pair MLPs at all N^2 entries. They carry the parameter names of the published
checkpoints, so they also serve the tests as an independent implementation. `sci.graphs.gdss_networks` computes the same
functions on stacked channels and unordered pairs.

Both are run in this process in float32, on the same noisy graphs of the data set's sizes, in turns. The figures are CPU
time of the process per item and joint evaluation of the two networks: median and half the interquartile range over the
repeats, and the ratio of the medians. Weights are random, and the published ones where their files are given: a part of
those has decayed to subnormal numbers, on which arithmetic is slow; ours sets them to zero.

Usage::

    OMP_NUM_THREADS=1 python benchmarks/gdss_networks.py [--batch 256] [--checkpoints FOLDER] [-o report.json]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as functional
from torch import Tensor, nn


class PlainMLP(nn.Module):
    """Linear layers with ELU between them."""

    def __init__(self, layers: int, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.linears = nn.ModuleList(
            nn.Linear(*pair) for pair in zip(widths, widths[1:], strict=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        for linear in self.linears[:-1]:
            x = functional.elu(linear(x))
        return self.linears[-1](x)


class PlainConvolution(nn.Module):
    """D^-1/2 A D^-1/2 X W + b with the diagonal of A set to one and D the row sums, at least one."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.zeros(outputs))
        nn.init.xavier_uniform_(self.weight)

    def forward(self, nodes: Tensor, edges: Tensor) -> Tensor:
        edges = edges.clone()
        index = torch.arange(edges.shape[-1])
        edges[:, index, index] = 1.0
        scale = edges.sum(dim=-1).clamp(min=1).pow(-0.5)
        edges = scale.unsqueeze(-1) * edges * scale.unsqueeze(-2)
        return torch.matmul(edges, torch.matmul(nodes, self.weight)) + self.bias


class PlainAttention(nn.Module):
    """Queries, keys and values of one channel, and the mean over heads of tanh(q k^T / sqrt(width of v))."""

    def __init__(self, inputs: int, attention: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.heads, self.outputs = heads, outputs
        self.gnn_q = PlainConvolution(inputs, attention)
        self.gnn_k = PlainConvolution(inputs, attention)
        self.gnn_v = PlainConvolution(inputs, outputs)

    def forward(self, nodes: Tensor, edges: Tensor) -> tuple[Tensor, Tensor]:
        queries, keys = self.gnn_q(nodes, edges), self.gnn_k(nodes, edges)
        values = self.gnn_v(nodes, edges)
        width = queries.shape[-1] // self.heads
        queries = torch.cat(queries.split(width, dim=-1), dim=0)
        keys = torch.cat(keys.split(width, dim=-1), dim=0)
        scores = torch.tanh(queries @ keys.transpose(1, 2) / self.outputs**0.5)
        scores = scores.view(self.heads, *edges.shape).mean(dim=0)
        return values, (scores + scores.transpose(1, 2)) / 2


class PlainLayer(nn.Module):
    """One attention layer over all channels."""

    def __init__(
        self,
        linears: int,
        inputs: int,
        attention: int,
        outputs: int,
        before: int,
        after: int,
        heads: int,
    ) -> None:
        super().__init__()
        hidden = 2 * max(before, after)
        self.attn = nn.ModuleList(
            PlainAttention(inputs, attention, outputs, heads) for _ in range(before)
        )
        self.mlp = PlainMLP(linears, 2 * before, hidden, after)
        self.multi_channel = PlainMLP(2, before * outputs, hidden, outputs)

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        values, scores = zip(
            *(attention(nodes, edges[:, c]) for c, attention in enumerate(self.attn)), strict=True
        )
        nodes = torch.tanh(self.multi_channel(torch.cat(values, dim=-1)) * mask[..., None])
        pairs = self.mlp(torch.cat([torch.stack(scores, dim=1), edges], dim=1).permute(0, 2, 3, 1))
        pairs = pairs.permute(0, 3, 1, 2)
        pairs = pairs + pairs.transpose(-1, -2)
        return nodes, pairs * mask[:, None, :, None] * mask[:, None, None, :]


def powers(edges: Tensor, count: int) -> Tensor:
    """The matrix powers A, A^2, ..., A^count as channels."""
    channels = [edges]
    for _ in range(count - 1):
        channels.append(channels[-1] @ edges)
    return torch.stack(channels, dim=1)


class PlainX(nn.Module):
    """The node network: graph convolutions with tanh, all of them into an MLP."""

    def __init__(self, max_feat_num: int, depth: int, nhid: int, **_: object) -> None:
        super().__init__()
        inputs = [max_feat_num] + [nhid] * (depth - 1)
        self.layers = nn.ModuleList(PlainConvolution(width, nhid) for width in inputs)
        total = max_feat_num + depth * nhid
        self.final = PlainMLP(3, total, 2 * total, max_feat_num)

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        seen = [nodes]
        for layer in self.layers:
            seen.append(torch.tanh(layer(seen[-1], edges)))
        return self.final(torch.cat(seen, dim=-1)) * mask[..., None]


def plain_layers(
    count: int, max_feat_num: int, nhid: int, adim: int, num_linears: int, c_init: int, c_hid: int,
    c_final: int, num_heads: int,
) -> nn.ModuleList:  # fmt: skip
    """The attention layers, channels c_init -> c_hid -> ... -> c_final."""
    channels = [c_init] + [c_hid] * (count - 1) + [c_final]
    return nn.ModuleList(
        PlainLayer(
            num_linears,
            max_feat_num if i == 0 else nhid,
            nhid if i == 0 else adim,
            nhid,
            channels[i],
            channels[i + 1],
            num_heads,
        )
        for i in range(count)
    )


class PlainXMultiHead(nn.Module):
    """The node network on attention layers (`ScoreNetworkX_GMH`)."""

    def __init__(
        self, max_feat_num: int, depth: int, nhid: int, num_linears: int, c_init: int, c_hid: int,
        c_final: int, adim: int, num_heads: int = 4, **_: object,
    ) -> None:  # fmt: skip
        super().__init__()
        self.c_init = c_init
        self.layers = plain_layers(
            depth, max_feat_num, nhid, adim, num_linears, c_init, c_hid, c_final, num_heads
        )
        total = max_feat_num + depth * nhid
        self.final = PlainMLP(3, total, 2 * total, max_feat_num)

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        channels = powers(edges, self.c_init)
        seen = [nodes]
        for layer in self.layers:
            nodes, channels = layer(nodes, channels, mask)
            nodes = torch.tanh(nodes)
            seen.append(nodes)
        return self.final(torch.cat(seen, dim=-1)) * mask[..., None]


class PlainA(nn.Module):
    """The adjacency network."""

    def __init__(
        self, max_feat_num: int, nhid: int, num_layers: int, num_linears: int, c_init: int, c_hid: int,
        c_final: int, adim: int, num_heads: int = 4, **_: object,
    ) -> None:  # fmt: skip
        super().__init__()
        self.c_init = c_init
        self.layers = plain_layers(
            num_layers, max_feat_num, nhid, adim, num_linears, c_init, c_hid, c_final, num_heads
        )
        total = c_init + c_hid * (num_layers - 1) + c_final
        self.final = PlainMLP(3, total, 2 * total, 1)

    def forward(self, nodes: Tensor, edges: Tensor, mask: Tensor) -> Tensor:
        channels = powers(edges, self.c_init)
        seen = [channels]
        for layer in self.layers:
            nodes, channels = layer(nodes, channels, mask)
            seen.append(channels)
        out = self.final(torch.cat(seen, dim=1).permute(0, 2, 3, 1)).squeeze(-1)
        out = out * (1 - torch.eye(out.shape[-1], dtype=out.dtype))
        return out * mask[:, :, None] * mask[:, None, :]


def inputs(sizes: list[int], features: int, batch: int) -> tuple[Tensor, Tensor, Tensor]:
    """Standard normal node features and adjacencies, and masks, for sizes drawn from a law."""
    generator = torch.Generator().manual_seed(0)
    law = torch.tensor(sizes, dtype=torch.float64)
    counts = torch.multinomial(law, batch, replacement=True, generator=generator)
    width = int(counts.max())
    mask = (torch.arange(width) < counts[:, None]).float()
    nodes = torch.randn(batch, width, features, generator=generator) * mask[..., None]
    edges = torch.randn(batch, width, width, generator=generator).tril(-1)
    edges = (edges + edges.mT) * mask[:, :, None] * mask[:, None, :]
    return nodes, edges, mask


def pair(config: dict, states: tuple[dict, dict] | None) -> tuple[nn.ModuleList, nn.ModuleList]:
    """(node network, edge network) written out, and ours with the same weights."""
    from sci.graphs.gdss import GDSS, GDSSConfig
    from sci.graphs.published import renamed

    first, middle, last = config["channels"]
    widths = {
        "max_feat_num": config["features"], "nhid": config["hidden"], "adim": config["attention"],
        "num_linears": config["linears"], "num_heads": config["heads"],
        "c_init": first, "c_hid": middle, "c_final": last,
    }  # fmt: skip
    torch.manual_seed(0)
    plain = nn.ModuleList(
        [PlainX(depth=config["depth"], **widths), PlainA(num_layers=config["layers"], **widths)]
    )
    if states is not None:
        for network, state in zip(plain, states, strict=True):
            network.load_state_dict(state)
    model = GDSS(GDSSConfig(**config))
    ours = nn.ModuleList([model.node_network, model.edge_network])
    for network, like in zip(ours, plain, strict=True):
        network.load_state_dict(renamed(like.state_dict()))
    return plain.eval(), ours.eval()


def seconds(call: Callable[[], object]) -> float:
    """CPU seconds of this process for one call."""
    start = time.process_time()
    call()
    return time.process_time() - start


@torch.no_grad()
def measure(config: dict, states: tuple[dict, dict] | None, batch: int, repeats: int) -> dict:
    """CPU milliseconds per item of both implementations, and their ratio."""
    plain, ours = pair(config, states)
    arguments = inputs(config["sizes"], config["features"], batch)

    def run(networks: nn.ModuleList) -> list[Tensor]:
        return [network(*arguments) for network in networks]

    difference = max(float((a - b).abs().max()) for a, b in zip(run(plain), run(ours), strict=True))
    times = np.array(
        [[seconds(lambda: run(plain)), seconds(lambda: run(ours))] for _ in range(repeats)]
    )
    times *= 1e3 / batch
    low, median, high = np.percentile(times, (25, 50, 75), axis=0)
    spread = (high - low) / 2
    return {
        "written out, CPU-ms": (float(median[0]), float(spread[0])),
        "sciflows, CPU-ms": (float(median[1]), float(spread[1])),
        "ratio": float(median[0] / median[1]),
        "largest difference": difference,
    }


def main() -> None:
    """Print the table."""
    from sci.graphs import published
    from sci.report import Report

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--checkpoints", type=Path, help="folder with the published .pth files")
    parser.add_argument("-o", "--out", type=Path, help="write the table (.json, .md or .html)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    architectures: dict[str, dict] = {
        "qm9": {"features": 4, "max_nodes": 9},
        "community-small": {
            "features": 10, "max_nodes": 20, "depth": 3, "layers": 5, "hidden": 32, "attention": 32, "linears": 2,
        },
    }  # fmt: skip
    defaults = {"depth": 2, "layers": 3, "hidden": 16, "attention": 16, "linears": 3}
    rows = {}
    for name, changes in architectures.items():
        key, known = next((k, f) for k, f in published.KNOWN.items() if f.data == name)
        sizes = [known.sizes.get(n, 0) for n in range(changes["max_nodes"] + 1)]
        config = {**defaults, **changes, "channels": (2, 8, 4), "heads": 4, "sizes": sizes}
        rows[f"{name}, random weights"] = measure(config, None, options.batch, options.repeats)
        if options.checkpoints is not None:
            file = next(options.checkpoints.rglob(known.file))
            content = published.contents(file)
            states = content["x_state_dict"], content["adj_state_dict"]
            rows[f"{name}, published weights"] = measure(
                config, states, options.batch, options.repeats
            )
    report = Report(
        f"GDSS networks, one joint evaluation, batch {options.batch}, one core",
        rows,
        {"torch": torch.__version__, "repeats": str(options.repeats)},
    )
    print(report)
    if options.out is not None:
        report.write(options.out)


if __name__ == "__main__":
    main()
