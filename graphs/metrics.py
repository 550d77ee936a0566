"""How far a set of graphs is from another: maximum mean discrepancies of four descriptors, and V.U.N.

Each graph is described by

* **degree**: the histogram of its degrees, bins of width 1;
* **clustering**: the histogram of the clustering coefficients of its nodes, 100 bins on [0, 1];
* **orbit**: the mean number of each of the 15 four-node orbits per node;
* **spectral**: the histogram of the eigenvalues of its normalised Laplacian, 200 bins on [-1e-5, 2].

Histograms are normalised to 1 and compared by k(p, q) = exp(-W(p, q)^2 / (2 s^2)), where W is the Wasserstein-1
distance between the histograms (the L1 distance of the two cumulative sums, in units of bins, for clustering of
the whole range), and s = 1, 0.1 and 1 for degree, clustering and spectral. Orbits are compared by
exp(-|p - q|^2 / (2 * 30^2)), without normalisation. The discrepancy is the biased V-statistic, squared:

    MMD^2 = mean k(x, x') + mean k(y, y') - 2 mean k(x, y),

pairs of a graph with itself included. These are kernels and constants of GraphRNN (You et al., 2018) as used by
GDSS (Jo et al., 2022) and DiGress; W is a metric on the line, but exp(-W^2) is not a positive definite kernel.

Two protocols are in use. **All**: every generated graph against the test graphs. **Chunks**: as many generated
graphs as there are test graphs (20 for community-small, 40 for ego-small). With so few graphs the figure varies
by a factor of three between chunks of one run, so mean and standard deviation over all chunks are reported.

References:
    | GraphRNN: Generating Realistic Graphs with Deep Auto-regressive Models (You et al., 2018)
    | https://arxiv.org/abs/1802.08773
    | Score-based Generative Modeling of Graphs via the System of SDEs (Jo, Lee & Hwang, 2022)
    | https://arxiv.org/abs/2202.02514
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from scipy.sparse.csgraph import connected_components

from sci import metrics
from sci.graphs.dense import Graphs
from sci.graphs.isomorphism import RULES, Catalogue
from sci.graphs.orbits import orbit_counts

if TYPE_CHECKING:
    from sci.graphs.load import GraphData
    from sci.report import Report

_CLUSTERING_BINS = 100
_SPECTRAL_BINS = 200
Row = dict[str, float | tuple[float, float] | None]


def degree_histogram(adjacency: np.ndarray) -> np.ndarray:
    """Number of nodes of each degree 0, 1, ..., as (largest degree + 1,) counts."""
    return np.bincount(adjacency.sum(1, dtype=np.int64))


def clustering_histogram(adjacency: np.ndarray) -> np.ndarray:
    """Number of nodes in 100 bins of the clustering coefficient 2 t / (d (d - 1)), 0 where d < 2."""
    a = adjacency.astype(np.float64)
    degree = a.sum(1)
    # Twice the triangles of each node.
    closed = ((a @ a) * a).sum(1)
    coefficient = closed / np.maximum(degree * (degree - 1), 1)
    return np.histogram(coefficient, bins=_CLUSTERING_BINS, range=(0.0, 1.0))[0]


def orbit_means(adjacency: np.ndarray) -> np.ndarray:
    """Mean orbit counts per node, (15,); see :mod:`sci.graphs.orbits`."""
    return orbit_counts(adjacency).sum(0) / max(len(adjacency), 1)


def spectral_histogram(adjacency: np.ndarray) -> np.ndarray:
    """Number of eigenvalues of I - D^(-1/2) A D^(-1/2) in 200 bins on [-1e-5, 2]; 0 for nodes without edges."""
    a = adjacency.astype(np.float64)
    degree = a.sum(1)
    scale = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1)), 0.0)
    laplacian = np.diag((degree > 0).astype(np.float64)) - scale[:, None] * a * scale
    return np.histogram(np.linalg.eigvalsh(laplacian), bins=_SPECTRAL_BINS, range=(-1e-5, 2.0))[0]


def is_connected(adjacency: np.ndarray) -> bool:
    """Whether the graph is in one piece."""
    return len(adjacency) > 0 and connected_components(adjacency, directed=False)[0] == 1


@dataclass(frozen=True)
class Descriptor:
    """A description of a graph and the kernel that compares it.

    Arguments:
        describe: (n, n) adjacency to a vector.
        kernel: Kernel of two sets of descriptions.
        histogram: Whether descriptions are histograms, which are normalised to a sum of 1.
    """

    describe: Callable[[np.ndarray], np.ndarray]
    kernel: Callable[[np.ndarray, np.ndarray], np.ndarray]
    histogram: bool = True

    def matrix(self, graphs: Graphs) -> np.ndarray:
        """Descriptions of all graphs, (G, D), shorter ones padded by zeros."""
        rows = [self.describe(adjacency) for adjacency in graphs]
        matrix = np.zeros((len(rows), max(map(len, rows), default=0)))
        for row, values in zip(matrix, rows, strict=True):
            row[: len(values)] = values
        return matrix / np.maximum(matrix.sum(1, keepdims=True), 1) if self.histogram else matrix

    def mmd(self, first: np.ndarray, second: np.ndarray) -> float:
        """Squared maximum mean discrepancy (biased) of two sets of descriptions."""
        width = max(first.shape[1], second.shape[1])
        first, second = (np.pad(m, ((0, 0), (0, width - m.shape[1]))) for m in (first, second))
        return metrics.mmd(first, second, self.kernel)


def _transport(width: float, bins: int = 1) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    return metrics.gaussian(width * bins, metrics.histogram_transport)


DESCRIPTORS = {
    "degree": Descriptor(degree_histogram, _transport(1.0)),
    "clustering": Descriptor(clustering_histogram, _transport(0.1, _CLUSTERING_BINS)),
    "orbit": Descriptor(orbit_means, metrics.gaussian(30.0), histogram=False),
    "spectral": Descriptor(spectral_histogram, _transport(1.0)),
}


def mmd(first: Graphs, second: Graphs) -> dict[str, float]:
    """Squared maximum mean discrepancies (biased) of degree, clustering, orbit and spectral descriptors.

    Arguments:
        first, second: Two sets of graphs.

    Returns:
        One value for each name of :data:`DESCRIPTORS`.

    Raises:
        ValueError: A set is empty.

    Example:
        >>> import networkx
        >>> paths = Graphs.from_networkx([networkx.path_graph(n) for n in (5, 6)])
        >>> max(mmd(paths, paths).values())
        0.0
    """
    return _discrepancies(_described(first), _described(second))


def evaluate(
    graphs: Graphs,
    reference: str | GraphData | Graphs | Sequence[object] = "community-small",
    train: Graphs | Sequence[object] | None = None,
    protocol: Literal["all", "chunks", "both"] = "both",
    floor: bool = True,
    draws: int = 10,
    baseline: bool = True,
    seed: int = 0,
) -> Report:
    """Judge generated graphs beside what real graphs score.

    Rows: the model's graphs, all of them and in chunks of the test set's size; the training set; uniform draws of
    training graphs at the model's n and at the test set's size (the floor: what a perfect sampler scores);
    and random graphs in which every pair of nodes is linked independently with the training set's frequency.

    Columns: the four discrepancies (lower is better); *connected*, the fraction in one piece; *uniqueness*,
    distinct graphs per graph; *novelty*, fraction of the distinct graphs that are in no way isomorphic to a
    training graph; for planar, tree and grid data also *validity* and *V.U.N.*, the distinct, novel, valid
    graphs per graph drawn.

    Arguments:
        graphs: Generated graphs.
        reference: A data set by name or as loaded, or reference graphs (Graphs or networkx).
        train: With reference graphs of your own: the training graphs (Graphs or networkx).
        protocol: "all", "chunks" or "both", see the module.
        floor: Add the rows of real graphs.
        draws: Draws of real graphs; mean and standard deviation are reported.
        baseline: Add the row of random graphs.
        seed: Seed of the draws.

    Raises:
        ValueError: There are no graphs, or the protocol is unknown.
    """
    from sci.report import Report

    if not len(graphs):
        raise ValueError("There are no graphs to judge; generate some first.")
    if protocol not in ("all", "chunks", "both"):
        raise ValueError(f"protocol={protocol!r} is none of 'all', 'chunks' and 'both'.")
    name, test, train = _reference(reference, train)
    rule = RULES.get(name)
    against, described = _described(test), _described(graphs)
    known = Catalogue()
    for adjacency in train if train is not None else ():
        known.add(adjacency)
    size, n = len(test), len(graphs)
    rows: dict[str, Row] = {}
    notes = {
        "reference": f"{name}: {len(test)} test graphs"
        + (f", {len(train)} to train" if train else "")
    }
    if protocol != "chunks":
        distances = _discrepancies(described, against)
        rows["model"] = {
            "n": float(n),
            **distances,
            **_shares(graphs, known if train else None, rule),
        }
    if protocol != "all":
        starts = range(0, n - size + 1, size)
        parts = [np.arange(start, start + size) for start in starts] or [np.arange(n)]
        rows[f"model, {len(parts)} chunk{'s' * (len(parts) > 1)}"] = _spread(
            described, against, parts
        )
    if floor and train is not None:
        real = _described(train)
        everything = np.arange(len(train))
        rows["training set"] = {
            "n": float(len(train)),
            **_discrepancies(real, against),
            **_shares(train, known, rule),
        }
        rng = np.random.default_rng(seed)
        for count in dict.fromkeys([n, size]):
            picks = [
                rng.choice(everything, count, replace=count >= len(train)) for _ in range(draws)
            ]
            rows[f"floor, n = {count}"] = _spread(real, against, picks)
        notes["floor"] = (
            f"{draws} uniform draws of n training graphs (with replacement where n is their number or more) "
            "against the test graphs: mean and standard deviation"
        )
    if baseline and train is not None:
        linked = random_graphs(train, n, seed)
        rows["random graphs"] = {
            "n": float(n),
            **mmd(linked, test),
            **_shares(linked, known, rule),
        }
    notes["discrepancies"] = "squared MMD, biased; kernels of GraphRNN and GDSS"
    return Report(f"{n} graphs against {name}", rows, notes)


def random_graphs(graphs: Graphs, n: int, seed: int = 0) -> Graphs:
    """The trivial baseline: sizes of real graphs, all pairs of nodes linked independently with their frequency.

    Arguments:
        graphs: Real graphs that sizes and frequency are from.
        n: How many to draw.
        seed: Seed of the draw.
    """
    rng = np.random.default_rng(seed)
    chance = graphs.edge_counts.sum() / max((graphs.sizes * (graphs.sizes - 1) // 2).sum(), 1)
    sizes = rng.choice(graphs.sizes, n)
    width = graphs.adjacency.shape[1]
    mask = np.arange(width) < sizes[:, None]
    linked = (rng.random((n, width, width)) < chance) & mask[:, :, None] & mask[:, None]
    lower = np.tril(linked, -1)
    return Graphs(lower | lower.transpose(0, 2, 1), sizes)


def _described(graphs: Graphs) -> dict[str, np.ndarray]:
    if not len(graphs):
        raise ValueError("A discrepancy needs at least one graph on each side.")
    return {name: descriptor.matrix(graphs) for name, descriptor in DESCRIPTORS.items()}


def _discrepancies(first: dict[str, np.ndarray], second: dict[str, np.ndarray]) -> dict[str, float]:
    return {
        name: descriptor.mmd(first[name], second[name]) for name, descriptor in DESCRIPTORS.items()
    }


def _spread(
    described: dict[str, np.ndarray], against: dict[str, np.ndarray], picks: Sequence[np.ndarray]
) -> Row:
    values = [
        _discrepancies({name: matrix[pick] for name, matrix in described.items()}, against)
        for pick in picks
    ]
    row: Row = {"n": float(len(picks[0]))}
    for name in DESCRIPTORS:
        column = [one[name] for one in values]
        many = len(column) > 1
        row[name] = (float(np.mean(column)), float(np.std(column, ddof=1))) if many else column[0]
    return row


def _shares(
    graphs: Graphs, known: Catalogue | None, rule: Callable[[np.ndarray], bool] | None
) -> Row:
    catalogue = Catalogue()
    first: dict[int, np.ndarray] = {}
    for adjacency in graphs:
        first.setdefault(catalogue.add(adjacency), adjacency)
    novel = None if known is None else {k for k, one in first.items() if known.find(one) is None}
    row: Row = {} if rule is None else {"validity": sum(map(rule, graphs)) / len(graphs)}
    row["connected"] = sum(map(is_connected, graphs)) / len(graphs)
    row["uniqueness"] = len(first) / len(graphs)
    row["novelty"] = None if novel is None else len(novel) / len(first)
    if rule is not None and novel is not None:
        row["V.U.N."] = sum(rule(first[k]) for k in novel) / len(graphs)
    return row


def _reference(reference: object, train: object) -> tuple[str, Graphs, Graphs | None]:
    from sci.graphs import load

    if isinstance(reference, str):
        reference = load.graphs(reference)
    if isinstance(reference, load.GraphData):
        return reference.name, reference.test, reference.train
    return "your reference", _graphs(reference), None if train is None else _graphs(train)


def _graphs(given: object) -> Graphs:
    return given if isinstance(given, Graphs) else Graphs.from_networkx(list(given))  # type: ignore[call-overload]
