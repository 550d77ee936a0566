"""PARD's networks: the published numbers, what blocks may see, symmetries, gradients, options."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sci.graphs.pairs import pair_index
from sci.graphs.pard_layers import Trunk
from sci.graphs.pard_layout import BlockLayout
from sci.graphs.pard_network import BlockNetwork, DenoisingNetwork, NetworkSize

TINY = NetworkSize(depth=2, node_width=16, pair_width=8, heads=4)
CLASSES = 5


class Graphs:
    """Random graphs with random blocks, noised and clean; `padding` empty nodes follow each."""

    def __init__(self, sizes: list[list[int]], dtype=torch.float64, padding: int = 0, seed=0):
        generator = torch.Generator().manual_seed(seed)
        count = max(sum(size) for size in sizes)
        total = count + padding
        self.blocks = torch.full((len(sizes), total), -1)
        for row, size in enumerate(sizes):
            numbers = torch.repeat_interleave(torch.arange(len(size)), torch.tensor(size))
            self.blocks[row, : len(numbers)] = numbers
        deepest = max(len(size) for size in sizes)
        self.sizes = torch.tensor([size + [0] * (deepest - len(size)) for size in sizes])
        self.degrees = torch.randint(0, 4, self.sizes.shape, generator=generator)
        self.t = torch.rand(len(sizes), generator=generator, dtype=dtype)

        def graph() -> tuple[Tensor, Tensor]:
            nodes = torch.randint(0, CLASSES, (len(sizes), count), generator=generator)
            edges = torch.randint(0, CLASSES, (len(sizes), count, count), generator=generator)
            edges = edges.triu(1) + edges.triu(1).mT
            pad = torch.nn.functional.pad
            return pad(nodes, (0, padding)), pad(edges, (0, padding, 0, padding))

        self.clean, self.noised = graph(), graph()

    def arguments(self) -> tuple[Tensor, ...]:
        return *self.noised, self.blocks, self.degrees, self.t


SIZES = [[3, 2, 2, 1, 1], [1, 4, 1, 2], [2, 2]]


def denoiser(dtype=torch.float64, size: NetworkSize = TINY, **options) -> DenoisingNetwork:
    torch.manual_seed(1)
    network = DenoisingNetwork(CLASSES, CLASSES, 6, 4, 20, size, **options).to(dtype)
    with torch.no_grad():  # biases away from zero, so that none of them can be forgotten
        for parameter in network.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return network


def dense(pairs: Tensor, count: int) -> Tensor:
    """(B, P, C) -> (B, n, n, C), written without the package's tables."""
    result = pairs.new_zeros(len(pairs), count, count, pairs.shape[-1])
    for number, (smaller, larger) in enumerate(zip(*pair_index(count), strict=True)):
        result[:, smaller, larger] = result[:, larger, smaller] = pairs[:, number]
    return result


# The published models -----------------------------------------------------------------------


def published(arrays, prefix: str) -> dict[str, Tensor]:
    start = prefix + "_sd."
    return {
        name[len(start) :]: torch.from_numpy(arrays[name])
        for name in arrays.files
        if name.startswith(start)
    }


def trunk_map(theirs: dict[str, Tensor], depth: int) -> dict[str, Tensor]:
    """Weights of a trunk under our names; 1x1 convolutions become linear layers."""
    ours: dict[str, Tensor] = {}

    def layer(name: str, *sources: str, bias: bool = True) -> None:
        ours[name + ".weight"] = torch.cat([theirs[s + ".weight"].flatten(1) for s in sources])
        if bias:
            ours[name + ".bias"] = torch.cat([theirs[s + ".bias"] for s in sources])

    def norm(name: str, source: str) -> None:
        for key, value in theirs.items():
            if key.startswith((source + ".ln.", source + ".bn.")):
                ours[f"{name}.norm.{key.rsplit('.', 1)[1]}"] = value

    def perceptron(name: str, source: str) -> None:
        layer(name + ".first", source + ".linear1")
        layer(name + ".second", source + ".linear2")
        norm(name + ".norm", source + ".norm")

    for number in range(depth):
        source = f"net.blocks.{number}.transformer."
        name = f"trunk.attentions.{number}."
        norm(name + "node_norm", source + "node_norm1")
        norm(name + "pair_norm", source + "edge_norm")
        norm(name + "last_norm", source + "node_norm2")
        layer(name + "from_nodes", source + "qk_node", source + "v_node")
        # Attention sums to 1, so the bias of the edge values is one of the node values.
        width = len(theirs[source + "v_edge.bias"])
        ours[name + "from_nodes.bias"][-width:] += theirs[source + "v_edge.bias"]
        layer(name + "from_pairs", source + "qk_edge")
        layer(name + "to_pairs", source + "o_edge", source + "att_linear")
        layer(name + "pair_values", source + "v_edge", bias=False)
        layer(name + "to_nodes", source + "o_node")
        perceptron(name + "perceptron", source + "mlp")
        source = f"net.blocks.{number}.ppgn."
        name = f"trunk.products.{number}."
        norm(name + "norm", source + "norm1")
        norm(name + "last_norm", source + "norm2")
        weight = theirs[source + "mlp1.linear1.weight"].flatten(1)
        bias = theirs[source + "mlp1.linear1.bias"]
        straight, turned = weight.chunk(2, dim=1)
        other = theirs[source + "mlp2.linear1.weight"].flatten(1)
        ours[name + "inward.weight"] = torch.cat((straight, turned, other))
        ours[name + "inward.bias"] = torch.cat(
            (bias, 0 * bias, theirs[source + "mlp2.linear1.bias"])
        )
        layer(name + "left", source + "mlp1.linear2")
        layer(name + "right", source + "mlp2.linear2")
        layer(name + "outward", source + "linear")
        perceptron(name + "perceptron", source + "mlp3")
    norm("trunk.node_norm", "net.node_norm")
    norm("trunk.pair_norm", "net.edge_norm")
    perceptron("trunk.node_out", "net.node_mlp")
    perceptron("trunk.pair_out", "net.edge_mlp")

    node, edge = "input_encoder.node_encoder", "input_encoder.edge_encoder"
    ours["encoder.node_table"] = theirs[node + ".weight"].t() + theirs[node + ".bias"]
    table = theirs[edge + ".weight"].t() + theirs[edge + ".bias"]
    ours["encoder.pair_table"] = torch.cat((table, theirs[edge + ".bias"].unsqueeze(0)))
    # Their row 0 is for padding.
    ours["encoder.number.weight"] = theirs["input_conditioner.0.block_id_embedding.weight"][1:]
    layer("encoder.distance.first", "edge_conditioner.0.layer1")
    layer("encoder.distance.second", "edge_conditioner.0.layer2")
    if "out_decoder.node_transform.0.weight" not in theirs:
        layer("block_head.gather.linear", "out_decoder.transform.0")
        perceptron("block_head.size_out", "out_decoder.block_size_out")
        perceptron("block_head.degree_out", "out_decoder.block_degree_out")
        perceptron("block_head.first_out", "out_decoder.init_block_degree_out")
        ours["block_head.embedding.weight"] = theirs["out_decoder.block_size_encoder.weight"]
        return ours
    ours["degree.weight"] = theirs["input_conditioner.1.block_degree_embedding.weight"]
    layer("time.first", "input_conditioner.2.layer1")
    layer("time.second", "input_conditioner.2.layer2")
    layer("head.gather.linear", "out_decoder.node_transform.0")
    layer("head.ends", "out_decoder.edge_transforom.node_layer1")
    layer("head.pairs", "out_decoder.edge_transforom.edge_layer1")
    layer("head.ends_gate", "out_decoder.edge_transforom.fuse_layer1")
    layer("head.pairs_gate", "out_decoder.edge_transforom.fuse_layer2")
    perceptron("head.node_out", "out_decoder.node_out")
    perceptron("head.edge_out", "out_decoder.edge_out")
    for kind in ("node", "edge"):
        for number, place in enumerate(("first", "second")):
            source = f"out_decoder.phi_{kind}.layers.{number}."
            ours[f"{kind}_rise.{place}.weight"] = theirs[source + "weight"].t()
            ours[f"{kind}_rise.{place}.bias"] = theirs[source + "bias"]
    return ours


@pytest.fixture(scope="module")
def arrays(shared: Path):
    return np.load(shared / "reference" / "pard_model.npz")


@pytest.mark.parametrize("prefix", ["ln", "bn", "bn_trainmode"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 1e-4)])
def test_published_denoiser(arrays, prefix: str, dtype: torch.dtype, tolerance: float) -> None:
    width, pair_width, depth, heads = (int(v) for v in arrays["config_H_E_L_heads"])
    norm = "layer" if prefix == "ln" else "batch"
    size = NetworkSize(depth, width, pair_width, heads, norm=norm)
    network = DenoisingNetwork(5, 5, 10, 4, 20, size, timed="published")
    weights = trunk_map(published(arrays, prefix[:2]), depth)
    assert {k for k in network.state_dict()} == set(weights)
    network.double().load_state_dict(weights)
    network.to(dtype).train(prefix == "bn_trainmode")
    nodes = torch.from_numpy(arrays["in_nodes"]).argmax(-1)
    edges = torch.from_numpy(arrays["in_edges"]).argmax(-1)
    count = nodes.shape[1] // 2
    blocks = torch.from_numpy(arrays["in_nodes_blockid"])[:, :count]
    clean = nodes[:, :count], edges[:, :count, :count]
    # A pair lies where the end in the later block is noised and an earlier end is clean.
    first, second = blocks.unsqueeze(2), blocks.unsqueeze(1)

    def packed(full: Tensor) -> Tensor:
        mixed = torch.where((first > second)[..., None], full[:, count:, :count], 0)
        mixed += torch.where((first < second)[..., None], full[:, :count, count:], 0)
        return mixed + torch.where((first == second)[..., None], full[:, count:, count:], 0)

    noised = packed(edges.unsqueeze(-1)).squeeze(-1)
    t = 1 - torch.from_numpy(arrays["in_timestep"]).double() / 20
    node_logits, edge_logits = network(
        nodes[:, count:], noised, blocks, torch.from_numpy(arrays["in_block_degree"]), t, clean
    )
    expected_nodes = torch.from_numpy(arrays[prefix + "_node_logits"])[:, count:]
    expected_edges = packed(torch.from_numpy(arrays[prefix + "_edge_logits"]))
    smaller, larger = pair_index(count)
    assert (node_logits - expected_nodes).abs().max() < tolerance
    assert (edge_logits - expected_edges[:, smaller, larger]).abs().max() < tolerance


def test_published_block_model(arrays) -> None:
    width, pair_width, depth, heads = (int(v) for v in arrays["config_H_E_L_heads"])
    network = BlockNetwork(5, 5, 10, 19, 4, NetworkSize(depth, width, pair_width, heads))
    weights = trunk_map(published(arrays, "blk"), depth)
    assert {k for k in network.state_dict()} == set(weights)
    network.double().load_state_dict(weights)
    nodes = torch.from_numpy(arrays["blk_in_nodes"]).argmax(-1)
    edges = torch.from_numpy(arrays["blk_in_edges"]).argmax(-1)
    blocks = torch.from_numpy(arrays["blk_in_nodes_blockid"])
    sizes = torch.from_numpy(arrays["blk_in_block_size"])
    logits = network(nodes, edges, blocks, sizes)
    valid = torch.from_numpy(arrays["blk_mask"])
    for ours, name in zip(logits, ("size", "degree", "first_degree"), strict=True):
        expected = torch.from_numpy(arrays[f"blk_{name}_logits"])
        difference = (ours - expected).abs()
        assert difference[valid if difference.ndim == 3 else ...].max() < 1e-8
    known = network.known(nodes, edges, blocks, sizes.shape[1])
    assert torch.equal(network.block_head.sizes(known), logits[0])


# What blocks may see -------------------------------------------------------------------------


def prefix(graphs: Graphs, row: int, block: int):
    """Graph `row` up to a block: that block noised, the earlier ones clean."""
    count = int((graphs.blocks[row] <= block).sum() - (graphs.blocks[row] < 0).sum())
    blocks = graphs.blocks[row : row + 1, :count]
    active = blocks == block
    nodes = torch.where(active, graphs.noised[0][row, :count], graphs.clean[0][row, :count])
    either = active.unsqueeze(2) | active.unsqueeze(1)
    edges = torch.where(
        either, graphs.noised[1][row, :count, :count], graphs.clean[1][row, :count, :count]
    )
    return nodes, edges, blocks, graphs.degrees[row : row + 1], graphs.t[row : row + 1]


@pytest.mark.parametrize("timed", ["noised", "all", "published"])
def test_one_pass_gives_what_single_blocks_give(timed: str) -> None:
    graphs = Graphs(SIZES)
    network = denoiser(timed=timed)
    node_logits, pairs = network(*graphs.arguments(), clean=graphs.clean)
    edge_logits = dense(pairs, graphs.blocks.shape[1])
    for row, sizes in enumerate(SIZES):
        for block in range(len(sizes)):
            arguments = prefix(graphs, row, block)
            single_nodes, single_pairs = network(*arguments)
            active = arguments[2][0] == block
            count = len(active)
            single_edges = dense(single_pairs, count)
            assert (single_nodes[0] - node_logits[row, :count])[active].abs().max() < 1e-12
            difference = single_edges[0] - edge_logits[row, :count, :count]
            assert difference[active].abs().max() < 1e-12


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_later_blocks_never_change_earlier_logits(training: bool, dtype: torch.dtype) -> None:
    graphs = Graphs([[3, 2, 2, 1, 1]] * 4, dtype)
    network = denoiser(dtype, max_size=4).train(training)
    before, blocks_before = network.both(*graphs.arguments(), graphs.clean, graphs.sizes)
    for block in range(4):
        other = Graphs([[3, 2, 2, 1, 1]] * 4, dtype, seed=7)
        late = graphs.blocks > block
        late_pair = late.unsqueeze(2) | late.unsqueeze(1)
        # The noised rest, the clean block itself and all later ones, and their degrees.
        unseen = graphs.blocks >= block
        unseen_pair = unseen.unsqueeze(2) | unseen.unsqueeze(1)
        noised = (
            torch.where(late, other.noised[0], graphs.noised[0]),
            torch.where(late_pair, other.noised[1], graphs.noised[1]),
        )
        clean = (
            torch.where(unseen, other.clean[0], graphs.clean[0]),
            torch.where(unseen_pair, other.clean[1], graphs.clean[1]),
        )
        degrees = graphs.degrees.clone()
        degrees[:, block + 1 :] = 3 - degrees[:, block + 1 :]
        after = network(*noised, graphs.blocks, degrees, graphs.t, clean=clean)
        assert torch.equal(after[0][~late], before[0][~late])
        count = late.shape[1]
        changed, kept = dense(after[1], count), dense(before[1], count)
        assert torch.equal(changed[~late_pair], kept[~late_pair])
        assert not torch.equal(after[0][late], before[0][late])
        # The block head after a block knows that block, clean, and nothing of the next.
        clean = (
            torch.where(late, other.clean[0], graphs.clean[0]),
            torch.where(late_pair, other.clean[1], graphs.clean[1]),
        )
        known = network.both(*other.noised, graphs.blocks, degrees, other.t, clean, graphs.sizes)
        for changed, kept in zip(known[1][:2], blocks_before[:2], strict=True):
            assert torch.equal(changed[:, : block + 1], kept[:, : block + 1])
            assert not torch.equal(changed[:, block + 1], kept[:, block + 1])


def test_every_visible_entry_matters() -> None:
    """The mask hides no more than it must: node logits feel every node and edge of their past."""
    graphs = Graphs([[2, 1, 2]])
    network = denoiser()
    onehot = torch.nn.functional.one_hot
    noised = [onehot(x, CLASSES).double().requires_grad_() for x in graphs.noised]
    clean = [onehot(x, CLASSES).double().requires_grad_() for x in graphs.clean]
    logits, _ = network(*noised, *graphs.arguments()[2:], clean=tuple(clean))
    blocks = graphs.blocks[0]
    off = ~torch.eye(len(blocks), dtype=torch.bool)
    for node, block in enumerate(blocks.tolist()):
        gradients = torch.autograd.grad(
            logits[0, node].sum(), [*noised, *clean], retain_graph=True, allow_unused=True
        )
        feels = [gradient[0].abs().sum(-1) > 0 for gradient in gradients]
        active, past = blocks == block, blocks < block
        pair_level = torch.maximum(blocks.unsqueeze(0), blocks.unsqueeze(1))
        assert torch.equal(feels[0], active)
        assert torch.equal(feels[1], (pair_level == block) & off)
        assert torch.equal(feels[2], past)
        assert torch.equal(feels[3], (pair_level < block) & off)


# Symmetries ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-10)])
def test_equivariance(dtype: torch.dtype, tolerance: float) -> None:
    """Nodes in any order, blocks split up or not, give the same logits in that order."""
    graphs = Graphs(SIZES, dtype)
    network = denoiser(dtype, max_size=4)
    count = graphs.blocks.shape[1]
    order = torch.randperm(count)
    logits, sizes = network.both(*graphs.arguments(), graphs.clean, graphs.sizes)
    turned = [
        (nodes[:, order], edges[:, order][:, :, order])
        for nodes, edges in (graphs.noised, graphs.clean)
    ]
    again, sizes_again = network.both(
        *turned[0],
        graphs.blocks[:, order],
        graphs.degrees,
        graphs.t,
        turned[1],
        graphs.sizes,
    )
    valid = graphs.blocks[:, order] >= 0
    assert (again[0] - logits[0][:, order])[valid].abs().max() < tolerance
    edges = dense(logits[1], count)[:, order][:, :, order]
    both = valid.unsqueeze(1) & valid.unsqueeze(2)
    assert (dense(again[1], count) - edges)[both].abs().max() < tolerance
    for ours, theirs in zip(sizes, sizes_again, strict=True):
        rows = graphs.sizes > 0 if ours.ndim == 3 else ...
        assert (ours - theirs)[rows].abs().max() < tolerance


def test_items_and_padding_do_not_matter() -> None:
    network = denoiser(max_size=4)
    together, padded = Graphs(SIZES), Graphs(SIZES, padding=3)
    padded.noised[0][:, -3:] = 4  # what stands in the padding is not looked at
    padded.noised[1][:, :, -3:] = 3
    first = network.both(*together.arguments(), together.clean, together.sizes)
    second = network.both(*padded.arguments(), padded.clean, padded.sizes)
    count, longer = together.blocks.shape[1], padded.blocks.shape[1]
    valid = together.blocks >= 0
    both = valid.unsqueeze(1) & valid.unsqueeze(2)
    assert (first[0][0] - second[0][0][:, :count])[valid].abs().max() < 1e-12
    wide = dense(second[0][1], longer)[:, :count, :count]
    assert (dense(first[0][1], count) - wide)[both].abs().max() < 1e-12
    for ours, theirs in zip(first[1], second[1], strict=True):
        rows = together.sizes > 0 if ours.ndim == 3 else ...
        assert (ours - theirs)[rows].abs().max() < 1e-12
    for row in range(len(SIZES)):
        real = int(valid[row].sum())
        part = slice(row, row + 1)
        nodes, edges = (
            (graph[0][part, :real], graph[1][part, :real, :real])
            for graph in (together.noised, together.clean)
        )
        alone = network(
            *nodes,
            together.blocks[part, :real],
            together.degrees[part],
            together.t[part],
            clean=edges,
        )
        assert (alone[0][0] - first[0][0][row, :real]).abs().max() < 1e-12
        expected = dense(first[0][1], count)[row, :real, :real]
        assert (dense(alone[1], real)[0] - expected).abs().max() < 1e-12


# The layers ------------------------------------------------------------------------------------


def test_doubled_product_is_the_masked_product_of_doubled_graphs() -> None:
    """Against the product over 2n nodes with the mask written out entry by entry."""
    blocks = torch.tensor([[0, 0, 1, 2, 2, -1], [0, 1, 1, 1, 1, 2]])
    batch, size = blocks.shape
    layout = BlockLayout(blocks, 2, torch.float64)
    left, right = torch.randn(2, 3, batch, 2, size, size, dtype=torch.float64).unbind(0)
    result = layout.product(left, right)
    for item, channel in ((0, 0), (1, 2)):
        row = blocks[item].tolist()
        ends = [(kind, node) for kind in (0, 1) for node in range(size) if row[node] >= 0]

        def sees(a, b, row=row) -> bool:
            if row[a[1]] == row[b[1]]:
                return a[0] == b[0]
            return row[a[1]] > row[b[1]] and b[0] == 0

        def entry(values, a, b, row=row, item=item, channel=channel):
            later = a if row[a[1]] >= row[b[1]] else b
            return values[channel, item, later[0], a[1], b[1]]

        for a in ends:
            for b in ends:
                if not (sees(a, b) or sees(b, a)):
                    continue
                total = sum(
                    entry(left, a, k) * entry(right, k, b) for k in ends if sees(a, k) or sees(b, k)
                )
                assert abs(float(entry(result, a, b) - total)) < 1e-12


@pytest.mark.parametrize("kinds", [1, 2])
def test_gradients_of_the_layers(kinds: int) -> None:
    """Every hand-written backward pass against finite differences."""
    layout = BlockLayout(torch.tensor([[0, 0, 1, 2], [0, 1, 1, -1]]), kinds, torch.float64)
    trunk = Trunk(1, 4, 2, 2, 2).double()
    nodes = torch.randn(2, kinds, 4, 4, dtype=torch.float64, requires_grad=True)
    pairs = torch.randn(2, kinds, 4, 4, 2, dtype=torch.float64, requires_grad=True)
    left = torch.randn(2, 2, kinds, 4, 4, dtype=torch.float64, requires_grad=True)
    right = torch.randn_like(left).requires_grad_()
    assert torch.autograd.gradcheck(layout.product, (left, right))
    assert torch.autograd.gradcheck(layout.ends, (nodes, torch.randn_like(nodes).requires_grad_()))
    assert torch.autograd.gradcheck(lambda a, b: trunk(a, b, layout), (nodes, pairs))


def test_gradients_of_parameters() -> None:
    graphs = Graphs(SIZES)
    network = denoiser(max_size=4)
    sizes = graphs.sizes

    def loss() -> Tensor:
        (nodes, edges), blocks = network.both(*graphs.arguments(), graphs.clean, sizes)
        return (
            nodes.square().mean() + edges.square().mean() + sum(b.square().mean() for b in blocks)
        )

    loss().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        direction = torch.randn_like(parameter)
        with torch.no_grad():
            parameter += 1e-6 * direction
            above = loss()
            parameter -= 2e-6 * direction
            below = loss()
            parameter += 1e-6 * direction
        slope = float((parameter.grad * direction).sum())
        assert float(above - below) / 2e-6 == pytest.approx(slope, rel=1e-5, abs=1e-8), name


# Options ---------------------------------------------------------------------------------------


def test_recomputing_changes_nothing_but_memory() -> None:
    graphs = Graphs(SIZES)
    results = []
    for recompute in (False, True):
        size = NetworkSize(2, 16, 8, 4, recompute=recompute)
        network = denoiser(size=size)
        saved: list[int] = []

        def pack(x: Tensor, saved=saved) -> Tensor:
            saved.append(x.numel())
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            logits = network(*graphs.arguments(), clean=graphs.clean)
        sum(part.square().sum() for part in logits).backward()
        results.append((sum(saved), [p.grad for p in network.parameters()]))
    assert results[1][0] < results[0][0] / 2
    for ours, theirs in zip(results[0][1], results[1][1], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_bfloat16_is_close_and_trains() -> None:
    graphs = Graphs(SIZES, torch.float32)
    network = denoiser(torch.float32)
    exact = network(*graphs.arguments(), clean=graphs.clean)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = network(*graphs.arguments(), clean=graphs.clean)
    valid = graphs.blocks >= 0
    assert 0 < (logits[0].float() - exact[0])[valid].abs().max() < 0.1
    sum(part.float().square().mean() for part in logits).backward()
    rough = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    sum(part.square().mean() for part in exact).backward()
    rough_all = torch.cat([g.flatten() for g in rough])
    exact_all = torch.cat([p.grad.flatten() for p in network.parameters()])
    assert torch.nn.functional.cosine_similarity(rough_all, exact_all, dim=0) > 0.99


def test_options_do_what_they_say() -> None:
    graphs = Graphs(SIZES)
    base = denoiser()
    probabilities = [torch.nn.functional.one_hot(x, CLASSES).double() for x in graphs.noised]
    clean = tuple(torch.nn.functional.one_hot(x, CLASSES).double() for x in graphs.clean)
    one = base(*graphs.arguments(), clean=graphs.clean)
    two = base(*probabilities, *graphs.arguments()[2:], clean=clean)
    assert all((a - b).abs().max() < 1e-12 for a, b in zip(one, two, strict=True))

    conditional = denoiser(size=NetworkSize(2, 16, 8, 4, context=3))
    values = torch.randn(len(SIZES), 3)
    known = conditional(*graphs.arguments(), clean=graphs.clean, context=values)
    unknown = conditional(*graphs.arguments(), clean=graphs.clean)
    assert (known[0] - unknown[0]).abs().max() > 1e-3

    absorbing = DenoisingNetwork(6, 6, 4, 4, 20, TINY, node_classes=5, edge_classes=5).double()
    masked = torch.full_like(graphs.noised[0], 5), torch.full_like(graphs.noised[1], 5)
    logits = absorbing(*masked, *graphs.arguments()[2:], clean=graphs.clean)
    assert [part.shape[-1] for part in logits] == [5, 5]

    dropping = denoiser(size=NetworkSize(2, 16, 8, 4, dropout=0.5))
    assert not torch.equal(*(dropping(*graphs.arguments())[0] for _ in range(2)))
    dropping.eval()
    assert torch.equal(*(dropping(*graphs.arguments())[0] for _ in range(2)))

    narrow = NetworkSize(2, 16, 8, 4, product_width=4)
    count = [sum(p.numel() for p in denoiser(size=s).parameters()) for s in (narrow, TINY)]
    assert count[0] < count[1]


def test_more_blocks_and_degrees_than_trained_count_as_the_last() -> None:
    graphs = Graphs([[1] * 9])
    graphs.degrees += 50
    logits = denoiser()(*graphs.arguments(), clean=graphs.clean)
    assert all(part.isfinite().all() for part in logits)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: denoiser(size=NetworkSize(norm="group")), "norm is 'group'"),
        (lambda: denoiser(size=NetworkSize(node_width=20)), "not a multiple of the 8 heads"),
        (lambda: denoiser(timed="never"), "timed is 'never'"),
        (lambda: denoiser(timed="all", max_size=3), "a block head sees clean graphs"),
        (lambda: denoiser().known(None, None, None, None, 1), "make it with max_size"),
    ],
)
def test_refusals(make, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_layer_norm_leaves_the_residual_alone() -> None:
    trunk = Trunk(3, 16, 8, 4, 8).double()
    for module in trunk.modules():
        if isinstance(module, nn.Linear):
            nn.init.zeros_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    layout = BlockLayout(torch.tensor([[0, 1, 1]]), 2, torch.float64)
    nodes = torch.randn(1, 2, 3, 16, dtype=torch.float64)
    pairs = torch.randn(1, 2, 3, 3, 8, dtype=torch.float64)
    for number in range(3):
        after = trunk.layer(number, nodes, pairs, layout)
        assert torch.equal(after[0], nodes)
        assert torch.equal(after[1], pairs)
