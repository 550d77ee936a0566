"""The partial order in which PARD generates a graph: blocks of nodes, the most central ones first.

In a graph with adjacency A the walks of length k from a node, with waiting allowed, are counted by
x_k = (A + I) x_(k-1) from x_0 = 1, so that x_1 is the degree plus one. The weighted degree within K hops of node v is

    w(v) = sum over k = 1..K of N^(K - k) x_k(v),    N = number of nodes,

and w = 1 for K = 0. All nodes of the least w form a block; the block and its edges are removed, and the rest is weighed
again with the same N, until nothing is left. The block removed last has the number 0 and is generated first. A block's
degree counts the edges of a node inside the block and to earlier blocks.

Only the structure counts, not the labels of nodes and edges, so that blocks follow the nodes when these are renumbered.
Graphs need not be connected: their pieces are weighed side by side. Loops and one-way edges are refused.

Graphs of the same matrix are ordered once, the distinct ones many at a time (:mod:`sci.graphs.peeling`).
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from sci.datasets import cache_folder
from sci.files import FileDamaged, read_hdf5, write_hdf5
from sci.graphs.molecules import Molecules
from sci.graphs.peeling import Degree, cut, slices, weights

if TYPE_CHECKING:
    from sci.graphs.dense import Graphs

__all__ = ["PartialOrder", "data_order", "hop_degrees", "partial_order"]

ORDER_VERSION = 1
# Entries of adjacency matrices that are looked at in one go.
_CHUNK = 2**25
_MULTIPLIER = 0x9E3779B97F4A7C15


@dataclass(frozen=True)
class PartialOrder:
    """Blocks of G graphs.

    Arguments:
        blocks: (G, N) int16, block of each node in its original place; 0 is generated first, -1 is padding.
        sizes: (G, B) int16, nodes of each block in the order of generation; 0 after the last.
        degrees: (G, B) int16, degree of each block when it is generated; 0 after the last.
        hops: K.

    Indexing by a slice, integers or a boolean array keeps some of the graphs.
    """

    blocks: np.ndarray
    sizes: np.ndarray
    degrees: np.ndarray
    hops: int

    def __len__(self) -> int:
        return len(self.blocks)

    def __getitem__(self, index: Any) -> PartialOrder:
        chosen = np.atleast_1d(np.arange(len(self))[index])
        return PartialOrder(
            self.blocks[chosen], self.sizes[chosen], self.degrees[chosen], self.hops
        )

    @property
    def counts(self) -> np.ndarray:
        """(G,) int64: blocks per graph."""
        return (self.sizes > 0).sum(1)


def partial_order(
    adjacency: np.ndarray | Tensor,
    mask: np.ndarray | Tensor | None = None,
    hops: int = 3,
    degree: Degree = "least",
    cache: str | os.PathLike[str] | bool = False,
) -> PartialOrder:
    """Cuts graphs into blocks; see this module for the rule.

    Arguments:
        adjacency: (G, N, N) numbers; what is not zero is an edge. Working memory does not grow with G.
        mask: (G, N) bool, where there are nodes; everywhere when None. A graph without nodes has no blocks.
        hops: K, from 0 (one block) upwards. Published: 3 for molecules, 1 for large graphs.
        degree: Which node speaks for a block whose nodes differ in degree: that of "least" degree, or the "first" in
            the numbering, as published; the latter depends on the numbering. It matters for K = 0, and else only where
            unlike walk counts happen to give the same w.
        cache: True for the library's cache folder, or a folder. The order is kept there under a hash of structures,
            settings and version; the file may be deleted at any time. It pays for graphs of more than about ten nodes:
            smaller ones are ordered faster than the file is read.

    Returns:
        Block of each node; size and degree of each block.

    Raises:
        ValueError: Loops, directed edges, NaN or edges to padding (the message names the graph), shapes that do not
            fit, or K so large that w passes 2^63.

    References:
        | Pard: Permutation-Invariant Autoregressive Diffusion for Graph Generation (Zhao, Ding, Akoglu, 2024)
        | https://arxiv.org/abs/2402.03687

    Example:
        >>> path = np.eye(5, k=1) + np.eye(5, k=-1)
        >>> order = partial_order(path[None], hops=1)
        >>> order.blocks.tolist(), order.sizes.tolist(), order.degrees.tolist()
        ([[2, 1, 0, 1, 2]], [[1, 2, 2]], [[0, 1, 1]])
    """
    linked, nodes, hops = _checked(adjacency, mask, hops)
    if degree not in ("least", "first"):
        raise ValueError(f"degree is {degree!r}; expected 'least' or 'first'.")
    if cache is False:
        return _ordered(linked, nodes, hops, degree)
    folder = cache_folder() if isinstance(cache, bool) else Path(cache)
    file = folder / f"partial-order-{_digest(linked, nodes, hops, degree)}.h5"
    order = _read_cache(file, nodes.shape, hops)
    if order is None:
        order = _ordered(linked, nodes, hops, degree)
        _write_cache(file, order)
    return order


def data_order(
    data: Molecules | Graphs,
    hops: int = 3,
    degree: Degree = "least",
    cache: str | os.PathLike[str] | bool = False,
) -> PartialOrder:
    """:func:`partial_order` of a data set: of molecules, whose bonds of any order are edges, or of graphs.

    Arguments and errors as there.

    Raises:
        ValueError: There are no graphs in ``data``.
    """
    if not len(data):
        raise ValueError(f"There are no graphs in {data!r}; give at least one.")
    if isinstance(data, Molecules):
        return partial_order(data.bonds, data.atoms >= 0, hops, degree, cache)
    return partial_order(data.adjacency, data.mask, hops, degree, cache)


def hop_degrees(
    adjacency: np.ndarray | Tensor, mask: np.ndarray | Tensor | None = None, hops: int = 3
) -> np.ndarray:
    """Weighted degrees w of the nodes of whole graphs, before anything is removed.

    Arguments and errors as in :func:`partial_order`.

    Returns:
        (G, N) int64; 0 at padding.

    Example:
        >>> path = np.eye(3, k=1) + np.eye(3, k=-1)
        >>> hop_degrees(path[None], hops=2).tolist()
        [[11, 16, 11]]
    """
    linked, nodes, hops = _checked(adjacency, mask, hops)
    out = np.zeros(nodes.shape, dtype=np.int64)
    for chunk, matrices in _chunks(linked, nodes):
        for rows, used, links, alive, counts in slices(matrices, hops, chunk.start):
            out[chunk.start + rows, :used] = weights(links, alive, counts, hops)[0].T
    return out


def _ordered(linked: np.ndarray, nodes: np.ndarray, hops: int, degree: Degree) -> PartialOrder:
    blocks = np.full(nodes.shape, -1, dtype=np.int16)
    sizes = [np.zeros((0, 0), dtype=np.int16)]
    degrees = [np.zeros((0, 0), dtype=np.int16)]
    for rows, matrices in _chunks(linked, nodes):
        own, inverse = _distinct(_packed(matrices))
        parts = cut(matrices, own, hops, degree, rows.start)
        blocks[rows] = parts[0][inverse]
        sizes.append(parts[1][inverse])
        degrees.append(parts[2][inverse])
    return PartialOrder(blocks, _stacked(sizes), _stacked(degrees), hops)


def _checked(
    adjacency: np.ndarray | Tensor, mask: np.ndarray | Tensor | None, hops: int
) -> tuple[np.ndarray, np.ndarray, int]:
    linked = _array(adjacency)
    if linked.ndim != 3 or linked.shape[1] != linked.shape[2]:
        raise ValueError(f"adjacency has shape {linked.shape}; expected (G, N, N).")
    nodes = np.ones(linked.shape[:2], dtype=bool) if mask is None else _array(mask)
    if nodes.shape != linked.shape[:2] or nodes.dtype != bool:
        raise ValueError(
            f"mask is {nodes.dtype} of shape {nodes.shape}; expected bool of shape {linked.shape[:2]}."
        )
    if linked.shape[1] > np.iinfo(np.int16).max:
        raise ValueError(f"Graphs of {linked.shape[1]} nodes are too large; at most 32767.")
    if isinstance(hops, bool) or not isinstance(hops, int | np.integer) or hops < 0:
        raise ValueError(f"hops is {hops!r}; expected an integer from 0 upwards.")
    return linked, nodes, int(hops)


def _array(values: np.ndarray | Tensor) -> np.ndarray:
    return values.detach().cpu().numpy() if isinstance(values, Tensor) else np.asarray(values)


def _chunks(linked: np.ndarray, nodes: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Rows, and A + I of these graphs as bool; the diagonal says where there are nodes."""
    step = max(1, _CHUNK // max(1, nodes.shape[1] ** 2))
    for start in range(0, len(linked), step):
        rows = slice(start, min(start + step, len(linked)))
        if linked.dtype.kind == "f" and np.isnan(linked[rows]).any():
            graph = start + int(np.isnan(linked[rows]).any((1, 2)).argmax())
            raise ValueError(f"Graph {graph} holds NaN; give a number for an edge, 0 for none.")
        matrices = linked[rows] != 0
        diagonal = np.einsum("gii->gi", matrices)
        if diagonal.any():
            graph, node = (int(x[0]) for x in diagonal.nonzero())
            raise ValueError(
                f"Graph {start + graph} has a loop at node {node}; set the diagonal to 0."
            )
        diagonal[:] = nodes[rows]
        yield rows, matrices


def _packed(matrices: np.ndarray) -> np.ndarray:
    """(G, W) uint64: the bits of each matrix."""
    bits = np.packbits(matrices.reshape(len(matrices), matrices.shape[1] ** 2), axis=1)
    words = np.zeros((len(bits), -(-bits.shape[1] // 8) * 8), dtype=np.uint8)
    words[:, : bits.shape[1]] = bits
    return words.view(np.uint64)


def _distinct(words: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A graph of each distinct matrix, and for every graph the number of its matrix."""
    keys = np.zeros(len(words), dtype=np.uint64)
    for column in np.ascontiguousarray(words.T):
        keys = keys * np.uint64(_MULTIPLIER) + column
        keys ^= keys >> np.uint64(31)
    unique, inverse = np.unique(keys, return_inverse=True)
    own = np.zeros(len(unique), dtype=np.int64)
    own[inverse] = np.arange(len(words))
    if not np.array_equal(words, words[own[inverse]]):
        # Two matrices share a key, which good luck may bring once in 2^64 pairs: compare whole matrices.
        _, own, inverse = np.unique(words, axis=0, return_index=True, return_inverse=True)
    return own, inverse.reshape(-1)


def _stacked(parts: list[np.ndarray]) -> np.ndarray:
    width = max(part.shape[1] for part in parts)
    return np.concatenate([np.pad(p, ((0, 0), (0, width - p.shape[1]))) for p in parts])


def _digest(linked: np.ndarray, nodes: np.ndarray, *settings: object) -> str:
    digest = hashlib.sha256(repr((ORDER_VERSION, nodes.shape, settings)).encode())
    for _, matrices in _chunks(linked, nodes):
        digest.update(_packed(matrices).tobytes())
    return digest.hexdigest()[:32]


def _read_cache(file: Path, shape: tuple[int, ...], hops: int) -> PartialOrder | None:
    # A damaged cache is as good as none: it is written again.
    try:
        arrays, _ = read_hdf5(file)
        order = PartialOrder(arrays["blocks"], arrays["sizes"], arrays["degrees"], hops)
    except (FileNotFoundError, FileDamaged, KeyError):
        return None
    return order if order.blocks.shape == shape else None


def _write_cache(file: Path, order: PartialOrder) -> None:
    arrays = {"blocks": order.blocks, "sizes": order.sizes, "degrees": order.degrees}
    try:
        write_hdf5(file, arrays)
    except OSError as error:
        warnings.warn(f"The cache file {file} was not written ({error}).", stacklevel=3)
