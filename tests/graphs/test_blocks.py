"""Blocks of nodes: renumbering, masks and targets, against the published model's inputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sci.graphs import blocks as blockwise
from sci.graphs.partial_order import partial_order


@pytest.fixture(scope="module")
def published(shared):
    with np.load(shared / "reference" / "pard_model.npz") as stored:
        wanted = [k for k in stored if k.startswith(("in_", "blk_")) and "sd." not in k]
        return {k: torch.from_numpy(stored[k]) for k in [*wanted, "causal_mask"]}


@pytest.fixture
def batch():
    """Random graphs of 3 to 8 nodes, their order, and both as tensors."""
    rng = np.random.default_rng(3)
    upper = np.triu(rng.random((20, 8, 8)) < 0.4, 1)
    mask = np.arange(8) < rng.integers(3, 9, 20)[:, None]
    adjacency = (upper | upper.transpose(0, 2, 1)) & mask[:, :, None] & mask[:, None]
    order = partial_order(adjacency, mask, 2)
    return torch.from_numpy(adjacency), torch.from_numpy(mask), order


def test_the_causal_mask_is_the_published_one(published):
    found = blockwise.causal_mask(published["in_nodes_blockid"], published["in_virtual_node_mask"])
    assert torch.equal(found, published["causal_mask"])


def test_the_targets_are_the_published_ones(published):
    target = blockwise.next_block(published["blk_in_block_size"], published["blk_in_block_degree"])
    assert torch.equal(target.sizes, published["blk_size_target"])
    assert torch.equal(target.degrees, published["blk_degree_target"])
    assert torch.equal(target.mask, published["blk_mask"])


def test_the_published_graphs_have_the_published_blocks(published):
    linked = published["blk_in_edges"][..., 1:].any(-1)
    found = partial_order(linked, hops=3)
    # Theirs are sorted by block already.
    assert torch.equal(torch.from_numpy(found.blocks).long(), published["blk_in_nodes_blockid"])
    assert found.sizes.tolist() == published["blk_in_block_size"].tolist()
    assert found.degrees.tolist() == published["blk_in_block_degree"].tolist()


def test_nodes_are_sorted_by_block_and_padding_comes_last(batch):
    adjacency, mask, order = batch
    blocks = torch.from_numpy(order.blocks)
    places = blockwise.node_order(blocks)
    features = torch.randn(*mask.shape, 3)
    moved, edges = blockwise.reorder(places, features, adjacency)
    sorted_blocks = blockwise.reorder(places, blocks)
    for g, size in enumerate(mask.sum(1).tolist()):
        assert sorted_blocks[g, :size].diff().ge(0).all() and (sorted_blocks[g, size:] == -1).all()
        index = places[g]
        assert torch.equal(index.sort().values, torch.arange(8))
        assert torch.equal(moved[g], features[g, index])
        assert torch.equal(edges[g], adjacency[g][index][:, index])
        for block in range(order.counts[g]):
            inside = index[:size][sorted_blocks[g, :size] == block]
            assert inside.diff().gt(0).all() and len(inside) == order.sizes[g, block]
    again = partial_order(edges, sorted_blocks >= 0, 2)
    assert np.array_equal(again.blocks, sorted_blocks.numpy())


def test_edges_may_have_channels(batch):
    adjacency, _, order = batch
    places = blockwise.node_order(torch.from_numpy(order.blocks))
    edges = torch.stack([adjacency, ~adjacency], -1)
    _, moved = blockwise.reorder(places, places, edges)
    assert torch.equal(moved[..., 0], ~moved[..., 1])


def test_sums_over_blocks_and_back(batch):
    _, mask, order = batch
    blocks, sizes = torch.from_numpy(order.blocks), torch.from_numpy(order.sizes)
    inside = blockwise.membership(blocks, sizes.shape[1])
    assert torch.equal(inside.sum(2), sizes.long())
    assert torch.equal(inside.any(1), mask)
    carried = blockwise.at_nodes(torch.from_numpy(order.degrees), blocks)
    expected = (inside * torch.from_numpy(order.degrees)[..., None]).sum(1)
    assert torch.equal(carried.long(), expected) and not carried[~mask].any()


def test_later_blocks_are_never_seen(batch):
    _, mask, order = batch
    blocks = torch.from_numpy(order.blocks)
    sees = blockwise.causal_mask(blocks)
    for g, i, j in np.ndindex(*sees.shape):
        both = mask[g, i] and mask[g, j]
        assert sees[g, i, j] == bool(both and blocks[g, j] <= blocks[g, i])
    noised = torch.arange(16) >= 8
    twice = blockwise.causal_mask(torch.cat([blocks, blocks], 1), noised.expand(len(blocks), -1))
    assert torch.equal(twice[:, :8, :8], sees)
    same = blocks[:, :, None] == blocks[:, None, :]
    assert not twice[:, :8, 8:].any()
    assert torch.equal(twice[:, 8:, :8], sees & ~same)
    assert torch.equal(twice[:, 8:, 8:], sees & same)
