"""The partial order of PARD: against the published blocks, a plain reference, and under renumbering."""

from __future__ import annotations

import time
import tracemalloc

import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sci.graphs import Graphs, Molecules, load, partial_order, peeling
from sci.graphs.partial_order import PartialOrder, data_order, hop_degrees
from sci.graphs.partial_order import partial_order as order


def plain_order(neighbours, hops, degree="least"):
    """Blocks of one graph, size and degree of each block: the rule in plain Python, with lists of neighbours."""
    count = len(neighbours)
    left = set(range(count))
    removed = []
    while left:
        near = {v: [u for u in neighbours[v] if u in left] for v in left}
        walks = dict.fromkeys(left, 1)
        weight = dict.fromkeys(left, 0)
        for k in range(1, hops + 1):
            walks = {v: walks[v] + sum(walks[u] for u in near[v]) for v in left}
            for v in left:
                weight[v] += count ** (hops - k) * walks[v]
        least = min(weight.values())
        block = sorted(v for v in left if weight[v] == least)
        degrees = [len(near[v]) for v in block]
        removed.append((block, min(degrees) if degree == "least" else degrees[0]))
        left.difference_update(block)
    removed.reverse()
    blocks = [0] * count
    for number, (block, _) in enumerate(removed):
        for v in block:
            blocks[v] = number
    return blocks, [len(block) for block, _ in removed], [degree for _, degree in removed]


def lists(adjacency, mask):
    """Lists of neighbours of one graph; its nodes need not come first."""
    kept = adjacency[mask][:, mask]
    return [np.flatnonzero(row).tolist() for row in kept]


def assert_plain(found: PartialOrder, adjacency, mask, degree="least"):
    for g, (matrix, here) in enumerate(zip(adjacency, mask, strict=True)):
        blocks, sizes, degrees = plain_order(lists(matrix, here), found.hops, degree)
        assert found.blocks[g, here].tolist() == blocks
        assert (found.blocks[g, ~here] == -1).all()
        rest = [0] * (found.sizes.shape[1] - len(sizes))
        assert found.sizes[g].tolist() == sizes + rest
        assert found.degrees[g].tolist() == degrees + rest


def stack(graphs):
    graphs = Graphs.from_networkx(graphs)
    return graphs.adjacency, graphs.mask


@st.composite
def batches(draw):
    """Random graphs, connected or not, with nodes and padding mixed."""
    count, size = draw(st.integers(1, 6)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    upper = np.triu(rng.random((count, size, size)) < draw(st.sampled_from([0.1, 0.3, 0.7])), 1)
    mask = rng.random((count, size)) < draw(st.sampled_from([0.6, 1.0]))
    adjacency = (upper | upper.transpose(0, 2, 1)) & mask[:, :, None] & mask[:, None]
    return adjacency, mask, rng.permuted(np.tile(np.arange(size), (count, 1)), axis=1)


@pytest.fixture(scope="module")
def published(shared):
    with np.load(shared / "reference" / "pard_partial_order.npz") as stored:
        data = dict(stored)
    sizes, pointer, edges = data["num_nodes"], data["edge_ptr"], data["edges"]
    adjacency = np.zeros((len(sizes), sizes.max(), sizes.max()), dtype=np.uint8)
    graph = np.repeat(np.arange(len(sizes)), np.diff(pointer))
    adjacency[graph, edges[:, 0], edges[:, 1]] = adjacency[graph, edges[:, 1], edges[:, 0]] = 1
    return data, adjacency, np.arange(sizes.max()) < sizes[:, None]


@pytest.fixture(scope="module")
def assorted():
    """Sixty random graphs of 1 to 30 nodes, some of them twice."""
    rng = np.random.default_rng(1)
    mask = np.arange(30) < rng.integers(1, 31, 60)[:, None]
    upper = np.triu(rng.random((60, 30, 30)) < rng.choice([0.05, 0.15, 0.5], 60)[:, None, None], 1)
    adjacency = (upper | upper.transpose(0, 2, 1)) & mask[:, :, None] & mask[:, None]
    again = rng.permutation(np.r_[:60, :20])
    return adjacency[again].astype(np.uint8), mask[again]


@pytest.mark.parametrize("hops", range(5))
def test_blocks_sizes_and_degrees_are_the_published_ones(published, hops):
    data, adjacency, mask = published
    found = order(adjacency, mask, hops, degree="first")
    present = found.sizes > 0
    assert np.array_equal(found.blocks[mask], data[f"block_id_K{hops}"])
    assert np.array_equal(found.counts, np.diff(data[f"block_ptr_K{hops}"]))
    assert np.array_equal(found.sizes[present], data[f"block_size_K{hops}"])
    assert np.array_equal(found.degrees[present], data[f"block_degree_K{hops}"])
    assert not found.degrees[~present].any()
    assert np.array_equal(hop_degrees(adjacency, mask, hops)[mask], data[f"hash_K{hops}"])
    # But for K = 0, the rule that does not depend on the numbering gives the same.
    least = order(adjacency, mask, hops)
    assert np.array_equal(least.blocks, found.blocks)
    assert np.array_equal(least.degrees, found.degrees) == (hops > 0)


@given(batches(), st.integers(0, 4), st.sampled_from(["least", "first"]))
def test_equal_to_the_plain_reference(batch, hops, degree):
    adjacency, mask, _ = batch
    assert_plain(order(adjacency, mask, hops, degree), adjacency, mask, degree)


@given(batches(), st.integers(0, 4))
def test_blocks_follow_the_nodes_when_these_are_renumbered(batch, hops):
    adjacency, mask, places = batch
    rows = np.arange(len(places))[:, None]
    moved = adjacency[rows[..., None], places[:, :, None], places[:, None]]
    first, second = order(adjacency, mask, hops), order(moved, mask[rows, places], hops)
    assert np.array_equal(first.blocks[rows, places], second.blocks)
    assert np.array_equal(first.sizes, second.sizes)
    assert np.array_equal(first.degrees, second.degrees)


@given(batches(), st.integers(1, 3))
def test_the_degree_of_a_block_is_that_in_the_graph_so_far(batch, hops):
    adjacency, mask, _ = batch
    found = order(adjacency, mask, hops)
    for g, matrix in enumerate(adjacency):
        for block in range(found.counts[g]):
            so_far = (found.blocks[g] <= block) & mask[g]
            own = matrix[found.blocks[g] == block][:, so_far].sum(1)
            assert len(own) == found.sizes[g, block] and own.min() == found.degrees[g, block]


def test_known_molecules_with_hydrogens():
    methane = networkx.star_graph(4)
    benzene = networkx.Graph([(k, (k + 1) % 6) for k in range(6)] + [(k, k + 6) for k in range(6)])
    adjacency, mask = stack([methane, benzene])
    for hops in (1, 2, 3):
        found = order(adjacency, mask, hops)
        assert found.sizes.tolist() == [[1, 4], [6, 6]]
        assert found.degrees.tolist() == [[0, 1], [2, 1]]
    assert order(adjacency, mask, 0).sizes.tolist() == [[5], [12]]


def test_neither_batch_mates_nor_chunks_matter(assorted, monkeypatch):
    adjacency, mask = assorted
    whole = order(adjacency, mask)
    assert len(whole[10:20]) == 10 and whole[3].blocks.shape == (1, adjacency.shape[1])
    chosen = [20, 3, 3, 59]
    some = order(adjacency[chosen], mask[chosen])
    assert np.array_equal(some.blocks, whole[chosen].blocks)
    width = some.sizes.shape[1]
    assert np.array_equal(some.sizes, whole[chosen].sizes[:, :width])
    monkeypatch.setattr(partial_order, "_CHUNK", 7 * adjacency.shape[1] ** 2)
    monkeypatch.setattr(peeling, "_SLICE", 3 * adjacency.shape[1] ** 2)
    monkeypatch.setattr(peeling, "_FEWEST", 2)
    pieces = order(adjacency, mask)
    for name in ("blocks", "sizes", "degrees"):
        assert np.array_equal(getattr(pieces, name), getattr(whole, name))
    weights = hop_degrees(adjacency, mask)
    monkeypatch.undo()
    assert np.array_equal(weights, hop_degrees(adjacency, mask))


@pytest.mark.parametrize("dense_bytes", [0, 2**40])
def test_sparse_and_dense_matrices_give_the_same(assorted, monkeypatch, dense_bytes):
    adjacency, mask = assorted
    whole, weights = order(adjacency, mask), hop_degrees(adjacency, mask)
    monkeypatch.setattr(peeling, "_DENSE_BYTES", dense_bytes)
    with_nodes = (adjacency > 0) | (mask[:, None] & np.eye(mask.shape[1], dtype=bool))
    kinds = {type(part[2]) is np.ndarray for part in peeling.slices(with_nodes, 3, 0)}
    assert kinds == {dense_bytes > 0}
    forced = order(adjacency, mask)
    for name in ("blocks", "sizes", "degrees"):
        assert np.array_equal(getattr(forced, name), getattr(whole, name))
    assert np.array_equal(hop_degrees(adjacency, mask), weights)


def test_matrices_that_share_a_key_are_told_apart(assorted, monkeypatch):
    adjacency, mask = assorted
    whole = order(adjacency, mask)
    monkeypatch.setattr(partial_order, "_MULTIPLIER", 0)
    assert np.array_equal(order(adjacency, mask).blocks, whole.blocks)


def test_tensors_numbers_and_bonds_are_understood(assorted):
    adjacency, mask = assorted
    whole = order(adjacency, mask)
    tensors = order(torch.from_numpy(adjacency).float(), torch.from_numpy(mask))
    assert np.array_equal(tensors.blocks, whole.blocks)
    assert np.array_equal(order(adjacency * -0.5, mask).blocks, whole.blocks)
    molecules = Molecules.from_smiles(["CC(=O)N", "C#N"])
    same = data_order(molecules, hops=2)
    assert_plain(same, molecules.bonds, molecules.atoms >= 0)


def test_counts_of_walks_never_overflow():
    dense = networkx.complete_graph(40)
    dense.remove_edge(0, 1)
    adjacency, mask = stack([dense, networkx.path_graph(7)])
    for hops in range(1, 9):
        assert_plain(order(adjacency, mask, hops), adjacency, mask)
    with pytest.raises(ValueError, match=r"hops=12 is too large for a graph of 40 nodes .* 39"):
        order(adjacency, mask, 12)
    assert_plain(order(adjacency[1:], mask[1:], 12), adjacency[1:], mask[1:])


def test_graphs_of_more_than_255_nodes():
    adjacency, mask = stack([networkx.star_graph(299), networkx.path_graph(520)])
    found = order(adjacency, mask, 1)
    assert_plain(found, adjacency, mask)
    assert found.sizes[0, :2].tolist() == [1, 299] and found.counts[1] == 260


def test_graphs_in_pieces_without_edges_and_without_nodes():
    pieces = networkx.disjoint_union(networkx.cycle_graph(3), networkx.path_graph(2))
    adjacency, mask = stack([pieces, networkx.empty_graph(3), networkx.empty_graph(0)])
    found = order(adjacency, mask, 3)
    assert found.blocks.tolist() == [[0, 0, 0, 1, 1], [0, 0, 0, -1, -1], [-1] * 5]
    assert found.sizes.tolist() == [[3, 2], [3, 0], [0, 0]]
    assert found.degrees.tolist() == [[2, 1], [0, 0], [0, 0]]
    assert found.counts.tolist() == [2, 1, 0]
    for shape in ((0, 4, 4), (2, 0, 0), (0, 0, 0)):
        empty = order(np.zeros(shape))
        assert empty.blocks.shape == shape[:2] and empty.sizes.shape == (shape[0], 0)
        assert hop_degrees(np.zeros(shape)).shape == shape[:2]
    with pytest.raises(ValueError, match="no graphs in Graphs"):
        data_order(Graphs(np.zeros((0, 3, 3))))


def test_bad_graphs_are_refused_by_number(monkeypatch):
    good = np.zeros((4, 5, 5))
    good[:, 0, 1] = good[:, 1, 0] = 1
    mask = np.tile(np.arange(5) < 3, (4, 1))

    def broken(*places, value=1.0):
        out = good.copy()
        for i, j in places:
            out[2, i, j] = value
        return out

    for chunk in (2**25, 25):
        monkeypatch.setattr(partial_order, "_CHUNK", chunk)
        for call in (order, hop_degrees):
            with pytest.raises(ValueError, match="Graph 2 has a loop at node 1; set the diagonal"):
                call(broken((1, 1)), mask)
            with pytest.raises(ValueError, match="Graph 2 is directed: .* from 0 to 2 .*transpose"):
                call(broken((0, 2)), mask)
            with pytest.raises(ValueError, match="Graph 2 holds NaN"):
                call(broken((0, 1), value=np.nan), mask)
            for places in ([(0, 3), (3, 0)], [(0, 4)], [(4, 0)], [(3, 4), (4, 3)]):
                with pytest.raises(ValueError, match="Graph 2 has an edge to node [34], which"):
                    call(broken(*places), mask)
    inner = mask.copy()
    inner[2, 1] = False
    with pytest.raises(ValueError, match="Graph 2 has an edge to node 1, which the mask"):
        order(good, inner)


def test_bad_arguments_are_refused():
    good = np.zeros((2, 3, 3))
    for adjacency in (good[0], good[:, :2]):
        with pytest.raises(ValueError, match=r"expected \(G, N, N\)"):
            order(adjacency)
    for mask in (np.ones((2, 3)), np.ones((2, 2), dtype=bool)):
        with pytest.raises(ValueError, match="expected bool of shape"):
            order(good, mask)
    for hops in (-1, 1.0, True):
        with pytest.raises(ValueError, match="expected an integer from 0 upwards"):
            order(good, hops=hops)
    assert order(good, hops=np.int64(2)).hops == 2
    with pytest.raises(ValueError, match="expected 'least' or 'first'"):
        order(good, degree="last")
    with pytest.raises(ValueError, match="at most 32767"):
        order(np.broadcast_to(np.zeros(1, dtype=bool), (1, 40_000, 40_000)))


def test_the_cache_gives_the_same_order_and_survives_damage(assorted, tmp_path, monkeypatch):
    adjacency, mask = assorted
    first = order(adjacency, mask, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(partial_order, "cut", lambda *_: pytest.fail("cut again"))
    for same in (adjacency, adjacency * 2):
        again = order(same, mask, cache=tmp_path)
        for name in ("blocks", "sizes", "degrees"):
            assert np.array_equal(getattr(again, name), getattr(first, name))
            assert getattr(again, name).dtype == np.int16
    monkeypatch.undo()
    content = file.read_bytes()
    for damaged in (content[:100], content[:-40] + bytes(40), b""):
        file.write_bytes(damaged)
        assert np.array_equal(order(adjacency, mask, cache=tmp_path).blocks, first.blocks)
        assert [f.name for f in tmp_path.iterdir()] == [file.name]
    order(adjacency, mask, hops=2, cache=tmp_path)
    order(adjacency, mask, degree="first", cache=tmp_path)
    order(adjacency[:5], mask[:5], cache=tmp_path)
    wider = mask.copy()
    wider[0, -1] = True
    order(adjacency, wider, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 5


def test_the_cache_serves_data_sets_and_its_absence_is_no_failure(tmp_path, monkeypatch):
    monkeypatch.setenv("SCI_CACHE", str(tmp_path))
    graphs = Graphs.from_networkx([networkx.wheel_graph(5), networkx.path_graph(3)])
    found = data_order(graphs, hops=1, cache=True)
    assert [f.name.startswith("partial-order-") for f in tmp_path.iterdir()] == [True]
    assert_plain(found, graphs.adjacency, graphs.mask)
    blocked = tmp_path / "file"
    blocked.write_text("not a folder")
    with pytest.warns(UserWarning, match="was not written"):
        again = data_order(graphs, hops=1, cache=blocked)
    assert np.array_equal(again.blocks, found.blocks)


def test_working_memory_does_not_grow_with_the_number_of_graphs(monkeypatch):
    monkeypatch.setattr(partial_order, "_CHUNK", 2**18)
    monkeypatch.setattr(peeling, "_SLICE", 2**16)
    rng = np.random.default_rng(0)

    def working(count):
        upper = np.triu(rng.random((count, 16, 16)) < 0.2, 1)
        adjacency = upper | upper.transpose(0, 2, 1)
        tracemalloc.start()
        found = order(adjacency)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        # The result is held twice while its parts are joined.
        return peak - 2 * sum(x.nbytes for x in (found.blocks, found.sizes, found.degrees))

    working(1000)
    assert working(16_000) < 1.3 * working(4000) + 2**17


@pytest.mark.parametrize("hops", [1, 3])
def test_at_least_fifty_times_faster_than_plain_python_on_qm9(qm9_train, hops):
    adjacency, mask = qm9_train.bonds, qm9_train.atoms >= 0
    neighbours = [lists(matrix, here) for matrix, here in zip(adjacency, mask, strict=True)][:400]

    def least(run, repeats=5):
        times = []
        for _ in range(repeats):
            began = time.process_time()
            run()
            times.append(time.process_time() - began)
        return min(times)

    plain = least(lambda: [plain_order(one, hops) for one in neighbours]) / len(neighbours)
    ours = least(lambda: order(adjacency, mask, hops)) / len(adjacency)
    assert plain > 50 * ours


@pytest.fixture(scope="module")
def qm9_train():
    data = load.molecules("qm9")
    rows = np.random.default_rng(0).permutation(data.rows["train"])[:20_000]
    return Molecules.from_smiles([data.smiles[row] for row in rows], data.vocabulary, 9)
