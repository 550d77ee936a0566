"""Orbits, discrepancies, isomorphism and the table of generic graphs."""

from __future__ import annotations

import itertools

import networkx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sci.graphs import load, metrics
from sci.graphs.dense import Graphs
from sci.graphs.isomorphism import Catalogue, is_grid, is_planar, is_tree, signature
from sci.graphs.orbits import orbit_counts


def dense(graph: networkx.Graph) -> np.ndarray:
    return networkx.to_numpy_array(graph, weight=None).astype(np.uint8)


def counted_by_hand(graph: networkx.Graph) -> np.ndarray:
    """Orbits by looking at every set of two to four nodes; kinds are told apart by their degrees."""
    orbit = {
        ((1, 1), 1): 0,
        ((1, 1, 2), 1): 1,
        ((1, 1, 2), 2): 2,
        ((2, 2, 2), 2): 3,
        ((1, 1, 2, 2), 1): 4,
        ((1, 1, 2, 2), 2): 5,
        ((1, 1, 1, 3), 1): 6,
        ((1, 1, 1, 3), 3): 7,
        ((2, 2, 2, 2), 2): 8,
        ((1, 2, 2, 3), 1): 9,
        ((1, 2, 2, 3), 2): 10,
        ((1, 2, 2, 3), 3): 11,
        ((2, 2, 3, 3), 2): 12,
        ((2, 2, 3, 3), 3): 13,
        ((3, 3, 3, 3), 3): 14,
    }
    counts = np.zeros((len(graph), 15), dtype=int)
    for size in (2, 3, 4):
        for nodes in itertools.combinations(graph, size):
            part = graph.subgraph(nodes)
            if networkx.is_connected(part):
                degrees = tuple(sorted(degree for _, degree in part.degree))
                for node, degree in part.degree:
                    counts[node, orbit[degrees, degree]] += 1
    return counts


@given(st.integers(1, 9), st.floats(0.1, 0.95), st.integers(0, 10**6))
def test_orbits_are_those_counted_by_hand(size, chance, seed):
    graph = networkx.gnp_random_graph(size, chance, seed=seed)
    assert np.array_equal(orbit_counts(dense(graph)), counted_by_hand(graph))


def test_orbits_agree_with_orca():
    orca = pytest.importorskip("orbit_count")
    for seed in range(5):
        graph = networkx.gnp_random_graph(60, 0.15, seed=seed)
        assert np.array_equal(
            orbit_counts(dense(graph)), orca.node_orbit_counts(graph, graphlet_size=4)
        )


@given(st.integers(1, 12), st.integers(0, 10**6))
def test_descriptors_agree_with_networkx(size, seed):
    graph = networkx.gnp_random_graph(size, 0.4, seed=seed)
    a = dense(graph)
    assert metrics.degree_histogram(a).tolist() == networkx.degree_histogram(graph)
    coefficients = list(networkx.clustering(graph).values())
    expected, edges = np.histogram(coefficients, bins=100, range=(0, 1))
    found = metrics.clustering_histogram(a)
    # A coefficient on the edge of a bin may fall on either side.
    assert abs(np.cumsum(found - expected)).sum() <= sum(
        abs(edges - c).min() < 1e-9 for c in coefficients
    )
    assert found.sum() == size
    values = networkx.normalized_laplacian_spectrum(graph)
    spectrum = np.histogram(values, bins=200, range=(-1e-5, 2))[0]
    assert abs(np.cumsum(metrics.spectral_histogram(a) - spectrum)).sum() <= size
    assert metrics.spectral_histogram(a).sum() == pytest.approx(size, abs=size)


def test_discrepancies_of_known_histograms():
    # One star (degrees 3, 1, 1, 1) against one path (1, 2, 2, 1): W = |.5 - .75| + |1 - .75| in bins 1 and 2.
    star, path = (
        Graphs.from_networkx([g]) for g in (networkx.star_graph(3), networkx.path_graph(4))
    )
    found = metrics.mmd(star, path)
    assert found["degree"] == pytest.approx(2 - 2 * np.exp(-0.5 * 0.5**2))
    assert found["clustering"] == pytest.approx(0.0, abs=1e-12)
    gap = orbit_counts(star.adjacency[0]).mean(0) - orbit_counts(path.adjacency[0]).mean(0)
    assert found["orbit"] == pytest.approx(2 - 2 * np.exp(-gap @ gap / 1800))


def test_a_clustering_distance_is_in_units_of_the_range():
    triangle, path = (
        Graphs.from_networkx([g]) for g in (networkx.complete_graph(3), networkx.path_graph(3))
    )
    # All mass moves from the first to the last of 100 bins: 99 / 100 of the range.
    assert metrics.mmd(triangle, path)["clustering"] == pytest.approx(
        2 - 2 * np.exp(-(0.99**2) / 0.02)
    )


@pytest.mark.parametrize(
    ("name", "first", "expected"),
    [
        ("community-small", None, (0.0034, 0.0092, 0.0010)),
        ("community-small", 20, (0.0055, 0.0170, 0.0010)),
        ("ego-small", None, (0.0142, 0.0273, 0.0044)),
    ],
)
def test_real_graphs_score_what_the_published_code_gives(shared, name, first, expected):
    """Training against test graphs, as measured with the evaluation of the GDSS repository."""
    data = load.graphs(name, folder=shared / "data" / "graphs")
    found = metrics.mmd(data.train[:first], data.test)
    for key, value in zip(("degree", "clustering", "orbit"), expected, strict=True):
        assert found[key] == pytest.approx(value, abs=6e-5)


def relabelled(graph: networkx.Graph, seed: int) -> networkx.Graph:
    order = np.random.default_rng(seed).permutation(len(graph))
    return networkx.from_numpy_array(dense(graph)[np.ix_(order, order)])


@given(st.integers(1, 10), st.integers(0, 10**6))
def test_isomorphic_graphs_are_one(size, seed):
    graph = networkx.gnp_random_graph(size, 0.4, seed=seed)
    other = relabelled(graph, seed)
    assert signature(dense(graph)) == signature(dense(other))
    catalogue = Catalogue()
    assert catalogue.add(dense(graph)) == catalogue.add(dense(other)) == 0


def test_graphs_that_look_alike_to_the_hash_are_told_apart():
    two, one = (
        networkx.disjoint_union(networkx.cycle_graph(3), networkx.cycle_graph(3)),
        networkx.cycle_graph(6),
    )
    assert signature(dense(two)) == signature(dense(one))
    catalogue = Catalogue()
    assert [catalogue.add(dense(g)) for g in (two, one, two)] == [0, 1, 0]
    assert catalogue.find(dense(networkx.path_graph(6))) is None


def test_structures_are_recognised():
    assert is_planar(dense(networkx.cycle_graph(5)))
    assert not is_planar(dense(networkx.complete_graph(5)))
    assert not is_planar(dense(networkx.empty_graph(2)))
    assert is_tree(dense(networkx.random_labeled_tree(9, seed=1)))
    assert not is_tree(dense(networkx.cycle_graph(4)))


@pytest.mark.parametrize(("height", "width"), [(2, 2), (2, 7), (3, 3), (4, 6), (5, 3)])
def test_grids_are_recognised_in_any_order(height, width):
    graph = networkx.convert_node_labels_to_integers(networkx.grid_2d_graph(height, width))
    for seed in range(4):
        assert is_grid(dense(relabelled(graph, seed)))
    broken = graph.copy()
    broken.remove_edge(0, 1)
    assert not is_grid(dense(broken))
    extra = graph.copy()
    extra.add_edge(0, height * width - 1)
    assert not is_grid(dense(extra))
    assert not is_grid(dense(networkx.path_graph(4)))


@pytest.fixture(scope="module")
def trees() -> load.GraphData:
    return load.graphs(
        [networkx.random_labeled_tree(8, seed=seed) for seed in range(60)], test_fraction=0.2
    )


def test_a_table_has_floor_baseline_and_both_protocols(trees):
    report = trees.train.evaluate(trees, draws=4)
    assert list(report.rows) == [
        "model",
        "model, 4 chunks",
        "training set",
        "floor, n = 48",
        "floor, n = 12",
        "random graphs",
    ]
    model, training = report.rows["model"], report.rows["training set"]
    assert model["degree"] == training["degree"] < report.rows["random graphs"]["degree"]
    assert model["novelty"] == 0 and report.rows["random graphs"]["novelty"] > 0.5
    value, spread = report.rows["model, 4 chunks"]["degree"]
    assert value > 0 and spread > 0
    assert report == trees.train.evaluate(trees, draws=4)
    assert list(trees.train.evaluate(trees, protocol="all", floor=False, baseline=False).rows) == [
        "model"
    ]


def test_validity_and_vun_count_distinct_novel_trees(trees):
    data = load.GraphData("tree", trees.graphs, trees.rows)
    cycle = networkx.cycle_graph(8)
    known = data.train[0].to_networkx()[0]
    star = networkx.star_graph(20)
    graphs = Graphs.from_networkx([cycle, relabelled(known, 1), star, relabelled(star, 2)])
    apart = networkx.disjoint_union(cycle, star)
    mixed = Graphs.from_networkx([star, apart]).evaluate(data, protocol="all", floor=False)
    assert mixed.rows["model"]["connected"] == 0.5
    row = graphs.evaluate(data, protocol="all", floor=False).rows["model"]
    assert row["validity"] == 0.75 and row["uniqueness"] == 0.75
    assert row["novelty"] == pytest.approx(2 / 3) and row["V.U.N."] == 0.25


def test_own_reference_graphs_need_no_training_set():
    graphs = Graphs.from_networkx([networkx.path_graph(n) for n in range(2, 8)])
    report = graphs.evaluate([networkx.path_graph(n) for n in range(2, 6)], protocol="all")
    assert list(report.rows) == ["model"] and report.rows["model"]["novelty"] is None


def test_random_graphs_have_the_sizes_and_density_of_the_data():
    graphs = Graphs.from_networkx([networkx.gnp_random_graph(n, 0.3, seed=n) for n in (10, 15, 20)])
    drawn = metrics.random_graphs(graphs, 300, seed=1)
    assert set(drawn.sizes) == {10, 15, 20}
    pairs = drawn.sizes * (drawn.sizes - 1) / 2
    chance = graphs.edge_counts.sum() / (graphs.sizes * (graphs.sizes - 1) / 2).sum()
    assert drawn.edge_counts.sum() / pairs.sum() == pytest.approx(chance, abs=0.01)


def test_bad_questions_are_refused(trees):
    with pytest.raises(ValueError, match="no graphs"):
        trees.train[:0].evaluate(trees)
    with pytest.raises(ValueError, match="protocol"):
        trees.train.evaluate(trees, protocol="some")
    with pytest.raises(ValueError, match="at least one graph"):
        metrics.mmd(trees.train, trees.train[:0])


@pytest.mark.parametrize("nodes", [0, 1, 2])
def test_graphs_without_edges_are_known_again(nodes):
    catalogue, empty = Catalogue(), np.zeros((nodes, nodes), dtype=np.uint8)
    assert [catalogue.add(empty), catalogue.add(empty), catalogue.find(empty)] == [0, 0, 0]


def test_training_graphs_may_be_of_networkx():
    graphs = [networkx.path_graph(n) for n in (3, 4, 5)]
    table = Graphs.from_networkx(graphs).evaluate(graphs, train=graphs, draws=2)
    assert table.rows["model"]["novelty"] == 0
    assert (
        table.rows
        == Graphs.from_networkx(graphs)
        .evaluate(graphs, train=Graphs.from_networkx(graphs), draws=2)
        .rows
    )
