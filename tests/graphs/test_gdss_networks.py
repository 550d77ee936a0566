"""The stacked score networks against the architecture written out, and against published outputs."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from sci.graphs import gdss_layers, gdss_layouts, gdss_networks
from sci.graphs.gdss import GDSS
from sci.graphs.gdss_networks import ScoreNetworkA, ScoreNetworkX, ScoreNetworkXGMH
from sci.graphs.published import renamed

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = {
    "qm9": "QM9/gdss_qm9.pth",
    "community_small": "community_small/gdss_community_small.pth",
    "zinc250k": "ZINC250k/gdss_zinc250k.pth",
}


@pytest.fixture(scope="module")
def plain():
    """The benchmark's module, which writes the published architecture out channel by channel."""
    place = ROOT / "benchmarks" / "gdss_networks.py"
    spec = importlib.util.spec_from_file_location("plain_gdss_networks", place)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def noisy(batch, nodes, features, dtype=torch.float64, seed=0):
    """Random inputs; absent nodes lie anywhere, and one graph has none present."""
    generator = torch.Generator().manual_seed(seed)
    mask = (torch.rand(batch, nodes, generator=generator) > 0.3).to(dtype)
    mask[0] = 1.0
    mask[-1] = 0.0
    x = torch.randn(batch, nodes, features, generator=generator, dtype=dtype) * mask[..., None]
    a = torch.randn(batch, nodes, nodes, generator=generator, dtype=dtype).tril(-1)
    a = 1.5 * (a + a.mT) * mask[:, :, None] * mask[:, None, :]
    return x, a, mask


def twins(
    plain, which, features=4, hidden=16, attention=16, linears=3, channels=(2, 8, 4), heads=4
):
    """The same random network written out and ours."""
    torch.manual_seed(1)
    names = dict(
        max_feat_num=features, nhid=hidden, adim=attention, num_linears=linears,
        c_init=channels[0], c_hid=channels[1], c_final=channels[2], num_heads=heads,
    )  # fmt: skip
    sizes = hidden, attention, linears, channels, heads
    if which == "X":
        pair = plain.PlainX(depth=2, **names), ScoreNetworkX(features, 2, hidden)
    elif which == "XGMH":
        pair = plain.PlainXMultiHead(depth=3, **names), ScoreNetworkXGMH(features, 3, *sizes)
    else:
        pair = plain.PlainA(num_layers=3, **names), ScoreNetworkA(features, 3, *sizes)
    for parameter in pair[0].parameters():
        nn.init.normal_(parameter, std=0.4)
    pair[1].load_state_dict(renamed(pair[0].state_dict()))
    return pair[0].double(), pair[1].double()


@pytest.mark.parametrize("which", ["X", "XGMH", "A"])
@pytest.mark.parametrize("nodes", [1, 2, 9, 20])
def test_networks_equal_the_architecture_written_out(plain, which, nodes):
    written, ours = twins(plain, which)
    arguments = noisy(5, nodes, 4)
    expected = written(*arguments)
    torch.testing.assert_close(ours(*arguments), expected, rtol=1e-10, atol=1e-11)
    with torch.no_grad():  # another ELU, weights without subnormal entries
        torch.testing.assert_close(ours(*arguments), expected, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("which", ["XGMH", "A"])
def test_both_layouts_compute_the_same(plain, which, monkeypatch):
    written, ours = twins(plain, which)
    arguments = noisy(6, 9, 4)
    expected = written(*arguments)
    for small in (0, 9):  # the largest graph that is laid out in columns
        monkeypatch.setattr(gdss_networks, "SMALL", small)
        torch.testing.assert_close(ours(*arguments), expected, rtol=1e-10, atol=1e-11)
    rows, columns = gdss_layouts.Rows(arguments[2]), gdss_layouts.Columns(arguments[2])
    powers = gdss_networks.powers(arguments[1], 2)
    for layout in (rows, columns):
        nodes, pairs = layout.enter(arguments[0], powers)
        assert torch.equal(layout.leave(nodes), arguments[0])
        assert torch.equal(layout.leave_pairs(pairs[0]), arguments[1])


@pytest.mark.parametrize(
    "sizes",
    [
        dict(hidden=8, attention=12, heads=2),
        dict(hidden=12, attention=8, heads=1, channels=(3, 5, 2)),
        dict(linears=1, channels=(1, 4, 4), features=7),
    ],
)
def test_widths_heads_and_channels_are_where_the_architecture_has_them(plain, sizes):
    for which in ("A", "XGMH"):
        written, ours = twins(plain, which, **sizes)
        arguments = noisy(4, 7, sizes.get("features", 4))
        torch.testing.assert_close(ours(*arguments), written(*arguments), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("nodes", [6, 14])
@pytest.mark.parametrize("which", ["X", "XGMH", "A"])
def test_gradients_equal_those_of_the_architecture_written_out(plain, which, nodes):
    written, ours = twins(plain, which)
    arguments = noisy(4, nodes, 4)
    for network in (written, ours):
        network(*arguments).square().sum().backward()
    own = dict(ours.named_parameters())
    unused = {name for name, p in written.named_parameters() if p.grad is None}
    for p in written.parameters():
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    expected = renamed({name: p.grad for name, p in written.named_parameters()})
    assert expected.keys() == own.keys()
    for name, gradient in expected.items():
        found = torch.zeros_like(gradient) if own[name].grad is None else own[name].grad
        torch.testing.assert_close(found, gradient, rtol=1e-8, atol=1e-8, msg=name)
    # The published optimisers leave what has no gradient alone: no weight decay on it.
    without = {name for name, p in own.items() if p.grad is None}
    assert {n for n in without if ".nodes." in n} == {
        n.replace("multi_channel", "nodes") for n in unused if "multi_channel" in n
    }


def test_float32_differs_little_from_float64(plain):
    for which in ("X", "XGMH", "A"):
        _, ours = twins(plain, which)
        arguments = noisy(6, 9, 4)
        with torch.no_grad():
            exact = ours(*arguments)
            single = ours.float()(*(v.float() for v in arguments))
        assert single.dtype == torch.float32
        assert (single - exact).abs().max() < 1e-4 * max(1.0, float(exact.abs().max()))


@pytest.mark.parametrize("which", ["X", "A"])
def test_nodes_may_be_permuted_and_padded(plain, which):
    _, ours = twins(plain, which)
    x, a, mask = noisy(3, 6, 4)
    order = torch.randperm(6)
    out = ours(x, a, mask)
    permuted = ours(x[:, order], a[:, order][:, :, order], mask[:, order])
    expected = out[:, order] if which == "X" else out[:, order][:, :, order]
    torch.testing.assert_close(permuted, expected, rtol=1e-9, atol=1e-10)
    pad = nn.functional.pad
    padded = ours(pad(x, (0, 0, 0, 3)), pad(a, (0, 3, 0, 3)), pad(mask, (0, 3)))
    torch.testing.assert_close(padded[:, :6] if which == "X" else padded[:, :6, :6], out)
    assert not padded[:, 6:].any()


def test_edge_output_is_symmetric_hollow_and_masked(plain):
    _, ours = twins(plain, "A")
    x, a, mask = noisy(5, 7, 4)
    out = ours(x, a, mask > 0)
    assert torch.equal(out, out.mT) and not out.diagonal(dim1=1, dim2=2).any()
    present = mask[:, :, None] * mask[:, None, :] * (1 - torch.eye(7))
    assert torch.equal(out != 0, present > 0)


def test_the_diagonal_of_a_single_power_is_not_seen(plain):
    _, ours = twins(plain, "A", channels=(1, 8, 4))
    x, a, mask = noisy(3, 6, 4)
    out = ours(x, a, mask)
    torch.testing.assert_close(ours(x, a + 3 * torch.eye(6), mask), out, rtol=1e-12, atol=1e-12)


def test_blocks_change_nothing(plain, monkeypatch):
    for which in ("X", "A"):
        _, ours = twins(plain, which)
        arguments = noisy(23, 6, 4)
        whole = ours(*arguments)
        monkeypatch.setattr(gdss_networks, "BLOCK_NUMBERS", 1)
        torch.testing.assert_close(ours(*arguments), whole, rtol=1e-12, atol=1e-12)
        monkeypatch.undo()


def test_dead_weights_are_as_good_as_zero_and_still_learn():
    weight = torch.tensor([1e-30, 0.5, -1e-25, 1e-10], requires_grad=True)
    flushed = gdss_layers.flushed(weight)
    assert flushed.tolist() == pytest.approx([0.0, 0.5, 0.0, 1e-10], rel=1e-6, abs=0.0)
    flushed.sum().backward()
    assert weight.grad.tolist() == [1.0] * 4
    assert torch.equal(gdss_layers.flushed(weight.detach()), flushed)


def test_heads_must_divide_the_attention_width():
    with pytest.raises(ValueError, match="attention width 10 is not a multiple of the 4 heads"):
        ScoreNetworkA(4, 2, 8, 10, 2)


def test_a_state_dict_goes_round(plain):
    _, ours = twins(plain, "A")
    other = ScoreNetworkA(4, 3, 16, 16, 3).double()
    arguments = noisy(3, 6, 4)
    assert not torch.equal(other(*arguments), ours(*arguments))
    other.load_state_dict(ours.state_dict())
    assert torch.equal(other(*arguments), ours(*arguments))


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_outputs(shared, name):
    place = shared / "data/graphs/gdss_checkpoints" / PUBLISHED[name]
    if not place.exists():
        pytest.skip(f"no published checkpoint {place}")
    model = GDSS.from_published(place)
    with np.load(shared / "reference" / f"gdss_scores_{name}.npz") as stored:
        arrays = {key: torch.from_numpy(stored[key]) for key in ("X_t", "A_t", "flags")}
        expected = {key: torch.from_numpy(stored[key]) for key in ("net_x", "net_adj")}
    networks = {"net_x": model.node_network, "net_adj": model.edge_network}
    with torch.no_grad():
        for key, network in networks.items():
            single = network(*(value.float() for value in arrays.values()))
            assert (single - expected[key]).abs().max() < 1e-4
            double = network.double()(*arrays.values())
            torch.testing.assert_close(double, expected[key], rtol=1e-9, atol=1e-9)
