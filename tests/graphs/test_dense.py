"""Dense batches and the data object of generic graphs."""

from __future__ import annotations

import h5py
import networkx
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sci.files import FileDamaged
from sci.graphs.dense import DenseGraphs, Graphs


@pytest.fixture
def some() -> list[networkx.Graph]:
    return [
        networkx.cycle_graph(5),
        networkx.path_graph(3),
        networkx.empty_graph(1),
        networkx.complete_graph(4),
    ]


def edges_of(graph: networkx.Graph) -> set[frozenset[int]]:
    return {frozenset(edge) for edge in graph.edges}


@given(st.lists(st.tuples(st.integers(1, 8), st.integers(0, 10**6)), min_size=1, max_size=4))
def test_graphs_come_back_from_networkx_and_pyg(kinds):
    graphs = [networkx.gnp_random_graph(n, 0.5, seed=seed) for n, seed in kinds]
    data = Graphs.from_networkx(graphs)
    assert data.sizes.tolist() == [len(graph) for graph in graphs]
    assert data.edge_counts.tolist() == [graph.number_of_edges() for graph in graphs]
    for before, after, item in zip(graphs, data.to_networkx(), data.to_pyg(), strict=True):
        assert edges_of(before) == edges_of(after) and set(after) == set(range(len(before)))
        assert item.num_nodes == len(before)
        assert edges_of(before) == {frozenset(pair) for pair in item.edge_index.T.tolist()}


def test_weights_and_features_come_back_through_a_dense_batch():
    graph = networkx.Graph()
    graph.add_node(0, x=[1.0, 2.0])
    graph.add_node(1, x=[3.0, 4.0])
    graph.add_node(2, x=[5.0, 6.0])
    graph.add_edge(0, 2, weight=0.5)
    batch = DenseGraphs.from_networkx([graph], features="x", weight="weight", size=5)
    assert (
        batch.nodes.shape == (1, 5, 2)
        and batch.edges[0, 2, 0] == 0.5
        and batch.sizes.tolist() == [3]
    )
    back = batch.to_networkx()[0]
    assert back.nodes[1]["x"] == [3.0, 4.0] and back.edges[0, 2]["weight"] == 0.5
    again = DenseGraphs.from_pyg(batch.to_pyg(), size=5)
    assert torch.equal(again.nodes, batch.nodes) and torch.equal(again.edges, batch.edges)


def test_edge_channels_come_back_from_pyg():
    edges = torch.zeros(1, 3, 3, 2)
    edges[0, 0, 1] = edges[0, 1, 0] = torch.tensor([0.0, 1.0])
    batch = DenseGraphs(torch.ones(1, 3, 4), edges, torch.ones(1, 3, dtype=torch.bool))
    assert torch.equal(DenseGraphs.from_pyg(batch.to_pyg()).edges, edges)


def test_concat_pads_and_index_takes(some):
    parts = [DenseGraphs.from_networkx(some[:1]), DenseGraphs.from_networkx(some[1:])]
    batch = DenseGraphs.concat(parts)
    assert batch.mask.shape == (4, 5) and batch.sizes.tolist() == [5, 3, 1, 4]
    assert torch.equal(batch[-1].edges[0, :4, :4], 1 - torch.eye(4))
    assert torch.equal(batch[torch.tensor([3, 0])].sizes, torch.tensor([4, 5]))
    assert batch[1:3].pad(3).mask.shape == (2, 3)
    with pytest.raises(ValueError, match="do not fit"):
        batch.pad(4)


def test_dense_batches_refuse_what_is_not_a_graph():
    mask = torch.tensor([[True, True, False]])
    nodes, edges = torch.zeros(1, 3, 1), torch.zeros(1, 3, 3)
    with pytest.raises(ValueError, match="symmetric"):
        DenseGraphs(
            nodes,
            edges.index_put((torch.tensor(0), torch.tensor(0), torch.tensor(1)), torch.ones(())),
            mask,
        )
    with pytest.raises(ValueError, match="padding"):
        DenseGraphs(torch.ones(1, 3, 1), edges, mask)
    with pytest.raises(ValueError, match=r"\(B, N, F\)"):
        DenseGraphs(torch.zeros(1, 4, 1), edges, mask)
    with pytest.raises(ValueError, match="bool"):
        DenseGraphs(nodes, edges, mask.float())


def test_a_batch_of_graphs_keeps_adjacency_and_mask(some):
    data = Graphs.from_networkx(some)
    batch = data.to_dense()
    assert torch.equal(batch.mask, torch.from_numpy(data.mask))
    assert np.array_equal(batch.edges.numpy(), data.adjacency)


def test_scores_become_edges_and_isolated_nodes_go():
    scores = np.zeros((2, 4, 4))
    scores[0, 1, 3] = scores[0, 3, 1] = 0.5
    scores[0, 0, 2] = scores[0, 2, 0] = 0.49
    scores[:, range(4), range(4)] = 9.0
    graphs = Graphs.from_scores(scores)
    assert graphs.sizes.tolist() == [2, 1] and graphs.edge_counts.tolist() == [1, 0]
    kept = Graphs.from_scores(scores, sizes=np.array([4, 2]), drop_isolated=False)
    assert kept.sizes.tolist() == [4, 2] and kept.adjacency[0, 1, 3] == 1


def test_graphs_survive_a_file(some, tmp_path):
    data = Graphs.from_networkx(some, attrs={"model": "none", "seed": 3})
    data.write(tmp_path / "graphs.h5")
    back = Graphs.read(tmp_path / "graphs.h5")
    assert np.array_equal(back.adjacency, data.adjacency) and np.array_equal(back.sizes, data.sizes)
    assert back.attrs == {"model": "none", "seed": 3}
    with h5py.File(tmp_path / "graphs.h5") as file:
        assert file.attrs["data_class"] == "sci.graphs.dense:Graphs"


def test_a_damaged_or_foreign_file_is_named(some, tmp_path):
    path = tmp_path / "graphs.h5"
    Graphs.from_networkx(some).write(path)
    with h5py.File(path, "r+") as file:
        file["num_nodes"][0] = 4
    with pytest.raises(FileDamaged, match="graphs.h5"):
        Graphs.read(path)
    with pytest.raises(FileNotFoundError):
        Graphs.read(tmp_path / "none.h5")
    with pytest.raises(ValueError, match="suffix"):
        Graphs.read(tmp_path / "graphs.json")


def test_concat_and_index_of_graphs(some):
    data = Graphs.from_networkx(some)
    both = Graphs.concat([data[:1], data[[1, 2]], data[data.sizes == 4]])
    assert np.array_equal(both.adjacency, data.adjacency)
    assert data[-1].sizes.tolist() == [4] and len(data.resample(9, seed=1)) == 9
    with pytest.raises(IndexError):
        data[4]
    with pytest.raises(ValueError, match="nothing"):
        Graphs.concat([])


@pytest.mark.parametrize(
    ("adjacency", "message"),
    [
        (np.zeros((2, 3)), "expected"),
        (np.full((1, 2, 2), 0.5), "other than 0 and 1"),
        (np.eye(2)[None], "loops"),
        (np.array([[[0, 1], [0, 0]]]), "symmetric"),
    ],
)
def test_graphs_refuse_what_is_not_a_graph(adjacency, message):
    with pytest.raises(ValueError, match=message):
        Graphs(adjacency)


def test_edges_to_padding_and_directed_graphs_are_refused():
    with pytest.raises(ValueError, match="padding"):
        Graphs(np.array([[[0, 1], [1, 0]]]), sizes=np.array([1]))
    with pytest.raises(ValueError, match="directed"):
        Graphs.from_networkx([networkx.DiGraph([(0, 1)])])
