"""Graphs as dense tensors: a padded batch for networks, and a data object for generic graphs.

A graph of n nodes in a batch padded to N nodes occupies the first n rows and columns; ``mask`` says which rows
are nodes. All that is not a node or a pair of nodes is zero, so that sums need no mask.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    import networkx
    from matplotlib.figure import Figure
    from torch_geometric.data import Data

    from sci.report import Report


@dataclass(frozen=True)
class DenseGraphs:
    """A batch of undirected graphs, padded to the same number of nodes.

    Arguments:
        nodes: (B, N, F) float, node features, zero at padding.
        edges: (B, N, N) or (B, N, N, C) float, symmetric in the two node axes, zero at padding.
        mask: (B, N) bool, where there is a node.

    Raises:
        ValueError: Shapes that do not fit, edges that are not symmetric, or features at padding.
    """

    nodes: Tensor
    edges: Tensor
    mask: Tensor

    def __post_init__(self) -> None:
        batch, size = self.mask.shape
        if self.mask.dtype != torch.bool:
            raise ValueError(f"mask has dtype {self.mask.dtype}; expected bool.")
        if self.nodes.ndim != 3 or self.nodes.shape[:2] != (batch, size):
            raise ValueError(
                f"nodes has shape {tuple(self.nodes.shape)}, mask {(batch, size)}; expected (B, N, F), (B, N)."
            )
        if self.edges.ndim not in (3, 4) or self.edges.shape[:3] != (batch, size, size):
            raise ValueError(
                f"edges has shape {tuple(self.edges.shape)}, mask {(batch, size)}; expected (B, N, N) or "
                "(B, N, N, C)."
            )
        if not torch.equal(self.edges, self.edges.transpose(1, 2)):
            raise ValueError("edges is not symmetric; give both (i, j) and (j, i).")
        pairs = self.mask[:, :, None] & self.mask[:, None]
        if self.nodes[~self.mask].any() or self.edges[~pairs].any():
            raise ValueError("nodes or edges is not zero at padding; multiply by the mask first.")

    def __len__(self) -> int:
        return len(self.mask)

    def __getitem__(self, index: Any) -> DenseGraphs:
        if isinstance(index, int):
            index = slice(index, index + 1 or None)
        return DenseGraphs(self.nodes[index], self.edges[index], self.mask[index])

    @property
    def sizes(self) -> Tensor:
        """(B,) int64: nodes per graph."""
        return self.mask.sum(1)

    def to(self, device: torch.device | str) -> DenseGraphs:
        """The same batch on another device."""
        return DenseGraphs(self.nodes.to(device), self.edges.to(device), self.mask.to(device))

    def pad(self, size: int) -> DenseGraphs:
        """The same graphs, padded to ``size`` nodes; never cuts a node off."""
        used = int(self.mask.any(0).nonzero().max()) + 1 if self.mask.any() else 0
        if size < used:
            raise ValueError(f"Graphs that use {used} rows do not fit in {size} nodes.")
        nodes, edges, mask = self.nodes[:, :size], self.edges[:, :size, :size], self.mask[:, :size]
        more = size - mask.shape[1]
        pairs = (0, more, 0, more) if edges.ndim == 3 else (0, 0, 0, more, 0, more)
        return DenseGraphs(
            torch.nn.functional.pad(nodes, (0, 0, 0, more)),
            torch.nn.functional.pad(edges, pairs),
            torch.nn.functional.pad(mask, (0, more)),
        )

    @classmethod
    def concat(cls, parts: Sequence[DenseGraphs]) -> DenseGraphs:
        """One batch from several, padded to the largest."""
        if not parts:
            raise ValueError("There is nothing to concatenate; give at least one batch.")
        size = max(part.mask.shape[1] for part in parts)
        padded = [part.pad(size) for part in parts]
        return cls(
            torch.cat([part.nodes for part in padded]),
            torch.cat([part.edges for part in padded]),
            torch.cat([part.mask for part in padded]),
        )

    @classmethod
    def from_networkx(
        cls,
        graphs: Sequence[networkx.Graph],
        features: str | None = None,
        weight: str | None = None,
        size: int | None = None,
    ) -> DenseGraphs:
        """A batch from networkx graphs, nodes in each graph's own order.

        Arguments:
            graphs: Undirected graphs.
            features: Node attribute (a number or a sequence of F numbers); a single 1 when None.
            weight: Edge attribute (a number); 1 when None.
            size: Padded size; the largest graph's when None.
        """
        import networkx

        one = []
        for graph in graphs:
            count = graph.number_of_nodes()
            values = [
                1.0 if features is None else data[features] for _, data in graph.nodes(data=True)
            ]
            nodes = torch.tensor(
                np.asarray(values, dtype=np.float32).reshape(count, -1 if count else 1)
            )
            dense = (
                networkx.to_numpy_array(graph, weight=weight, dtype=np.float32)
                if count
                else np.zeros((0, 0))
            )
            edges = torch.tensor(dense, dtype=torch.float32)
            one.append(cls(nodes[None], edges[None], torch.ones(1, count, dtype=torch.bool)))
        batch = cls.concat(one)
        return batch if size is None else batch.pad(size)

    def to_networkx(self, features: str = "x", weight: str = "weight") -> list[networkx.Graph]:
        """networkx graphs; node attribute: the F features, edge attribute: the value or the C channels."""
        import networkx

        out = []
        for nodes, edges in self._trimmed():
            graph = networkx.Graph()
            graph.add_nodes_from((k, {features: row}) for k, row in enumerate(nodes.tolist()))
            i, j = _linked(edges)
            upper = i < j
            pairs = zip(
                i[upper].tolist(),
                j[upper].tolist(),
                edges[i[upper], j[upper]].tolist(),
                strict=True,
            )
            graph.add_weighted_edges_from(pairs, weight=weight)
            out.append(graph)
        return out

    @classmethod
    def from_pyg(cls, data: Sequence[Data], size: int | None = None) -> DenseGraphs:
        """A batch from PyTorch Geometric data: ``x`` (ones if absent), ``edge_index``, ``edge_attr``.

        An ``edge_attr`` of shape (E,) or none gives edges (B, N, N), one of shape (E, C) gives (B, N, N, C).
        """
        one = []
        for item in data:
            count = int(item.num_nodes)
            x = torch.ones(count, 1) if item.x is None else item.x.float().reshape(count, -1)
            i, j = item.edge_index
            values = torch.ones(len(i)) if item.edge_attr is None else item.edge_attr.float()
            edges = torch.zeros(count, count, *values.shape[1:])
            edges[i, j] = values
            one.append(cls(x[None], edges[None], torch.ones(1, count, dtype=torch.bool)))
        batch = cls.concat(one)
        return batch if size is None else batch.pad(size)

    def to_pyg(self) -> list[Data]:
        """PyTorch Geometric data with ``x`` (n, F), ``edge_index`` (2, 2E), ``edge_attr`` (2E,) or (2E, C)."""
        from torch_geometric.data import Data

        out = []
        for nodes, edges in self._trimmed():
            i, j = _linked(edges)
            out.append(Data(x=nodes, edge_index=torch.stack([i, j]), edge_attr=edges[i, j]))
        return out

    def _trimmed(self) -> Iterator[tuple[Tensor, Tensor]]:
        for nodes, edges, here in zip(self.nodes, self.edges, self.mask, strict=True):
            yield nodes[here], edges[here][:, here]


def _linked(edges: Tensor) -> tuple[Tensor, Tensor]:
    present = edges != 0 if edges.ndim == 2 else (edges != 0).any(-1)
    i, j = present.nonzero(as_tuple=True)
    return i, j


class Graphs:
    """Generic undirected graphs without labels: the data object that samplers of graphs return.

    Arguments:
        adjacency: (G, N, N) array of 0 and 1: symmetric, zero diagonal, zero at padding.
        sizes: (G,) nodes per graph, which are the first rows of each matrix; N for all when None.
        attrs: Where the graphs are from: model, version, seed, sampler, nfe, date.

    Raises:
        ValueError: Shapes that do not fit, entries other than 0 and 1, loops, or edges to padding.

    Indexing by an integer, a slice, a list of integers or a boolean array returns ``Graphs`` again.

    Example:
        >>> import networkx
        >>> graphs = Graphs.from_networkx([networkx.cycle_graph(4), networkx.path_graph(3)])
        >>> len(graphs), graphs.sizes.tolist(), graphs.edge_counts.tolist()
        (2, [4, 3], [4, 2])
    """

    suffixes = (".h5", ".hdf5")

    def __init__(
        self,
        adjacency: np.ndarray,
        sizes: np.ndarray | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> None:
        adjacency = np.asarray(adjacency)
        if adjacency.ndim != 3 or adjacency.shape[1] != adjacency.shape[2]:
            raise ValueError(f"adjacency has shape {adjacency.shape}; expected (G, N, N).")
        count, size = adjacency.shape[:2]
        sizes = np.full(count, size) if sizes is None else np.asarray(sizes)
        if sizes.shape != (count,) or (count and (sizes.min() < 0 or sizes.max() > size)):
            raise ValueError(f"sizes must be {count} integers from 0 to {size}; they are {sizes}.")
        if not np.isin(adjacency, (0, 1)).all():
            raise ValueError(
                "adjacency holds values other than 0 and 1; see Graphs.from_scores for thresholds."
            )
        if not np.array_equal(adjacency, adjacency.transpose(0, 2, 1)):
            raise ValueError("adjacency is not symmetric; give both (i, j) and (j, i).")
        mask = np.arange(size) < sizes[:, None]
        allowed = mask[:, :, None] & mask[:, None] & ~np.eye(size, dtype=bool)
        if (adjacency.astype(bool) & ~allowed).any():
            raise ValueError("adjacency has loops or edges to padding; set them to 0.")
        self.adjacency = adjacency.astype(np.uint8)
        self.sizes = sizes.astype(np.int64)
        self.attrs: dict[str, Any] = dict(attrs or {})

    @classmethod
    def from_scores(
        cls,
        scores: np.ndarray,
        sizes: np.ndarray | None = None,
        threshold: float = 0.5,
        drop_isolated: bool = True,
        attrs: dict[str, Any] | None = None,
    ) -> Graphs:
        """Graphs from real-valued matrices: an edge where the entry reaches the threshold.

        Arguments:
            scores: (G, N, N) real, symmetric; the diagonal is ignored.
            sizes: (G,) nodes per graph; N for all when None.
            threshold: Smallest value that is an edge.
            drop_isolated: Remove nodes without an edge, as GDSS does; one node is left if all are.
        """
        scores = np.asarray(scores)
        size = scores.shape[1]
        sizes = np.full(len(scores), size) if sizes is None else np.asarray(sizes)
        mask = np.arange(size) < sizes[:, None]
        linked = (
            (scores >= threshold) & mask[:, :, None] & mask[:, None] & ~np.eye(size, dtype=bool)
        )
        if drop_isolated:
            # Moving the nodes with edges to the front is a stable sort by "has none".
            order = np.argsort(~linked.any(2), axis=1, kind="stable")
            linked = np.take_along_axis(linked, order[:, :, None], 1)
            linked = np.take_along_axis(linked, order[:, None], 2)
            sizes = np.maximum(linked.any(2).sum(1), np.minimum(sizes, 1))
        return cls(linked.astype(np.uint8), sizes, attrs)

    @classmethod
    def from_networkx(
        cls, graphs: Sequence[networkx.Graph], attrs: dict[str, Any] | None = None
    ) -> Graphs:
        """Graphs from networkx, nodes in each graph's own order; loops are dropped."""
        import networkx

        sizes = np.array([graph.number_of_nodes() for graph in graphs], dtype=np.int64)
        size = int(sizes.max(initial=0))
        adjacency = np.zeros((len(graphs), size, size), dtype=np.uint8)
        for k, graph in enumerate(graphs):
            if graph.is_directed():
                raise ValueError(f"Graph {k} is directed; convert it with graph.to_undirected().")
            if sizes[k]:
                dense = networkx.to_numpy_array(graph, weight=None) > 0
                adjacency[k, : sizes[k], : sizes[k]] = dense & ~np.eye(sizes[k], dtype=bool)
        return cls(adjacency, sizes, attrs)

    @classmethod
    def from_edges(
        cls,
        sizes: np.ndarray,
        edges: np.ndarray,
        pointer: np.ndarray,
        attrs: dict[str, Any] | None = None,
    ) -> Graphs:
        """Graphs from lists of edges.

        Arguments:
            sizes: (G,) nodes per graph.
            edges: (E, 2) node numbers within each graph, every edge once.
            pointer: (G + 1,); the edges of graph g are ``edges[pointer[g]:pointer[g + 1]]``.
        """
        size = int(np.max(sizes, initial=0))
        adjacency = np.zeros((len(sizes), size, size), dtype=np.uint8)
        graph = np.repeat(np.arange(len(sizes)), np.diff(pointer))
        adjacency[graph, edges[:, 0], edges[:, 1]] = 1
        adjacency[graph, edges[:, 1], edges[:, 0]] = 1
        return cls(adjacency, sizes, attrs)

    @classmethod
    def concat(cls, parts: Sequence[Graphs]) -> Graphs:
        """One object from several, padded to the largest; keeps the ``attrs`` on which all agree."""
        parts = list(parts)
        if not parts:
            raise ValueError("There is nothing to concatenate; give at least one Graphs object.")
        size = max(part.adjacency.shape[1] for part in parts)
        more = [size - part.adjacency.shape[1] for part in parts]
        adjacency = [
            np.pad(p.adjacency, ((0, 0), (0, m), (0, m))) for p, m in zip(parts, more, strict=True)
        ]
        attrs = {
            key: value
            for key, value in parts[0].attrs.items()
            if all(key in part.attrs and part.attrs[key] == value for part in parts)
        }
        return cls(np.concatenate(adjacency), np.concatenate([part.sizes for part in parts]), attrs)

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> Graphs:
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Graph {index} of {len(self)} was asked for.")
            index = [int(index)]
        chosen = np.arange(len(self))[index]
        return Graphs(self.adjacency[chosen], self.sizes[chosen], self.attrs)

    def __iter__(self) -> Iterator[np.ndarray]:
        """Adjacency matrices (n, n) without padding."""
        return (matrix[:n, :n] for matrix, n in zip(self.adjacency, self.sizes, strict=True))

    def __repr__(self) -> str:
        return f"Graphs({len(self)} of at most {self.adjacency.shape[1]} nodes)"

    def _repr_png_(self) -> bytes | None:
        from sci.graphs.plots import png_bytes

        return png_bytes(self.plot()) if len(self) else None

    @property
    def mask(self) -> np.ndarray:
        """(G, N) bool: where there is a node."""
        return np.arange(self.adjacency.shape[1]) < self.sizes[:, None]

    @property
    def edge_counts(self) -> np.ndarray:
        """(G,) int64: edges per graph."""
        return self.adjacency.sum((1, 2), dtype=np.int64) // 2

    def resample(self, n: int, seed: int = 0) -> Graphs:
        """n graphs drawn uniformly, without replacement as long as there are enough."""
        return self[np.random.default_rng(seed).choice(len(self), size=n, replace=n > len(self))]

    def to_dense(self) -> DenseGraphs:
        """A batch for networks: a constant node feature 1, edges 0 and 1, and the mask."""
        mask = torch.from_numpy(self.mask)
        return DenseGraphs(mask[..., None].float(), torch.from_numpy(self.adjacency).float(), mask)

    def to_networkx(self) -> list[networkx.Graph]:
        """One networkx graph each."""
        import networkx

        return [networkx.from_numpy_array(matrix.astype(bool), edge_attr=None) for matrix in self]

    def to_pyg(self) -> list[Data]:
        """One PyTorch Geometric ``Data`` each, with ``edge_index`` (2, 2E) and ``num_nodes``."""
        from torch_geometric.data import Data

        return [
            Data(edge_index=torch.from_numpy(np.stack(np.nonzero(matrix))), num_nodes=len(matrix))
            for matrix in self
        ]

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write an HDF5 file (.h5) of edge lists, atomically and with a checksum."""
        from sci.graphs.graph_files import write

        write(self, path)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Graphs:
        """Read a file of :meth:`write`; a damaged or foreign one raises ValueError."""
        from sci.graphs.graph_files import read

        return read(path)

    def evaluate(self, reference: Any = "community-small", **options: Any) -> Report:
        """Judge the graphs against a data set; see :func:`sci.graphs.metrics.evaluate`."""
        from sci.graphs.metrics import evaluate

        return evaluate(self, reference, **options)

    def plot(self, count: int = 12, columns: int = 4, **options: Any) -> Figure:
        """A grid picture of the first graphs; see :func:`sci.graphs.plots.graph_grid`."""
        from sci.graphs.plots import graph_grid

        return graph_grid(self, count=count, columns=columns, **options)
