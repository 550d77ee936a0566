"""Peeling many graphs at once: the inner loop of :mod:`sci.graphs.partial_order`.

Graphs of like size are laid out with the graph as the last, contiguous axis, as integers no wider than their counts of
walks demand, and as many at a time as the processor's cache holds. Then x_k = (A + I) x_(k-1) is a bitwise "and" with
the matrices and a sum, which run over whole registers of graphs. Large graphs with few edges have one sparse matrix for
all of a slice instead.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal, TypeAlias

import numpy as np
from scipy import sparse

__all__ = ["Degree", "cut", "slices", "weights"]

Degree = Literal["least", "first"]
# Entries of the matrices of a slice. One of large graphs still takes some graphs, up to the last number of entries.
_SLICE, _FEWEST, _LARGEST = 2**19, 32, 2**23
# Bytes of a dense matrix that are multiplied in the time of one entry of a sparse one.
_DENSE_BYTES = 12
Links: TypeAlias = np.ndarray | sparse.csr_array


def cut(
    matrices: np.ndarray, own: np.ndarray, hops: int, degree: Degree, start: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks of some graphs of a chunk, each by itself.

    Arguments:
        matrices: (G, N, N) bool, A + I; the diagonal says where there are nodes.
        own: (U,) int64, which graphs.
        hops, degree: As in :func:`sci.graphs.partial_order.partial_order`.
        start: Number of the first graph, for messages.

    Returns:
        Blocks (U, N), sizes (U, B) and degrees (U, B), int16.

    Raises:
        ValueError: One-way edges, edges to padding, or too many hops.
    """
    blocks = np.full((len(own), matrices.shape[1]), -1, dtype=np.int16)
    found = []
    for rows, used, links, alive, counts in slices(matrices, hops, start, own):
        numbers, *steps = _peel(links, alive, counts, hops, degree)
        blocks[rows, :used] = numbers.T
        found.append((rows, *steps))
    width = max((len(sizes) for _, sizes, _ in found), default=0)
    out = np.zeros((2, len(own), width), dtype=np.int16)
    for rows, *steps in found:
        for each, values in zip(out, steps, strict=True):
            each[rows, : len(values)] = values.T
    return blocks, out[0], out[1]


def slices(
    matrices: np.ndarray, hops: int, start: int, own: np.ndarray | None = None
) -> Iterator[tuple[np.ndarray, int, Links, np.ndarray, np.ndarray]]:
    """Graphs of like size, a cacheful at a time; arguments and errors as in :func:`cut`.

    Returns:
        An iterator of: places in ``own`` (g,); n, the used rows; A + I and the live nodes (n, g), all ones in binary
        where they are, of a type that holds every count of walks; nodes (g,), of a type that holds every w. A + I is
        (n, n, g), or sparse (n g, n g) with ones.
    """
    own = np.arange(len(matrices)) if own is None else own
    nodes = np.einsum("gii->gi", matrices)[own]
    ends = (nodes * np.arange(1, nodes.shape[1] + 1, dtype=np.int16)).max(1, initial=0)
    # Graphs of a size in the order of memory.
    order = np.lexsort((own, ends))
    while len(order):
        # From the largest downwards, since the largest decides how many fit.
        used = int(ends[order[-1]])
        area = max(1, used**2)
        fit = max(1, _SLICE // area, min(_FEWEST, _LARGEST // area))
        order, rows = order[:-fit], order[-fit:]
        whole = matrices[own[rows]]
        chosen = whole[:, :used, :used].reshape(len(rows), used**2)
        links = np.ascontiguousarray(chosen.T).reshape(used, used, len(rows))
        alive = links[np.arange(used), np.arange(used)]
        _refuse(whole, links, alive, start + own[rows])
        counts = _total(alive, 0)
        narrow, wide = _types(int(_total(links, 1).max(initial=1)), int(counts.max()), hops)
        yield (
            rows,
            used,
            _links(links, narrow),
            np.negative(alive, dtype=narrow, casting="unsafe"),
            counts.astype(wide),
        )


def _links(links: np.ndarray, narrow: type) -> Links:
    nodes, _, count = links.shape
    if np.count_nonzero(links) * _DENSE_BYTES > links.size * np.dtype(narrow).itemsize:
        return np.negative(links, dtype=narrow, casting="unsafe")
    i, j, graph = links.nonzero()
    ones: np.ndarray = np.ones(len(i), dtype=narrow)
    ends = i * count + graph, j * count + graph
    return sparse.csr_array((ones, ends), shape=(nodes * count, nodes * count))


def _refuse(whole: np.ndarray, links: np.ndarray, alive: np.ndarray, graphs: np.ndarray) -> None:
    cut_off = np.count_nonzero(whole) != np.count_nonzero(links)
    if cut_off or (links.any(1) & ~alive).any():
        outside = (whole.any(1) | whole.any(2)) & ~np.einsum("gii->gi", whole)
        graph, node = (int(x[0]) for x in outside.nonzero())
        raise ValueError(
            f"Graph {graphs[graph]} has an edge to node {node}, which the mask says is padding."
        )
    oneway = links & ~links.transpose(1, 0, 2)
    if oneway.any():
        i, j, graph = (int(x[0]) for x in oneway.nonzero())
        raise ValueError(
            f"Graph {graphs[graph]} is directed: there is an edge from {i} to {j} but none back. "
            "If direction has no meaning, give adjacency + its transpose."
        )


def _total(flags: np.ndarray, axis: int) -> np.ndarray:
    # A sum without change of type is several times faster.
    kind = np.uint8 if flags.shape[axis] <= np.iinfo(np.uint8).max else np.int16
    return np.add.reduce(flags.view(np.uint8), axis=axis, dtype=kind)


def _types(widest: int, nodes: int, hops: int) -> tuple[type, type]:
    """Narrowest types of the walk counts, at most widest^K, and of w."""
    walks = widest ** max(hops, 1)
    weight = sum(nodes ** (hops - k) * widest**k for k in range(1, hops + 1)) + 1
    wide = [kind for kind in (np.int16, np.int32, np.int64) if weight < np.iinfo(kind).max]
    if not wide:
        raise ValueError(
            f"hops={hops} is too large for a graph of {nodes} nodes with degrees up to {widest - 1}: the "
            "weighted degrees pass 2^63. Give fewer hops."
        )
    narrow = [k for k in (np.uint8, np.uint16, np.uint32, np.uint64) if walks <= np.iinfo(k).max]
    return narrow[0], wide[0]


def weights(
    links: Links, alive: np.ndarray, counts: np.ndarray, hops: int
) -> tuple[np.ndarray, np.ndarray]:
    """w and x_1 of the live nodes, (n, g); 0 elsewhere."""
    walks = alive & alive.dtype.type(1)
    weight = walks.astype(counts.dtype)
    first = walks
    for k in range(max(hops, 1)):
        if isinstance(links, np.ndarray):
            walks = np.add.reduce(links & walks, axis=1, dtype=links.dtype) & alive
        else:
            walks = (links @ walks.reshape(-1)).reshape(walks.shape) & alive
        if k == 0:
            first = walks
            if hops:
                weight = walks.astype(counts.dtype)
        else:
            weight = weight * counts + walks.astype(counts.dtype)
    return weight, first


def _peel(
    links: Links, alive: np.ndarray, counts: np.ndarray, hops: int, degree: Degree
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Blocks (n, g), sizes (B, g) and degrees (B, g) of a slice."""
    nodes = left = alive != 0
    removed = np.zeros(nodes.shape, dtype=np.int16)
    one, largest = alive.dtype.type(1), np.iinfo(counts.dtype).max
    sizes, degrees = [], []
    while left.any():
        weight, first = weights(links, alive, counts, hops)
        # Arithmetic on whole arrays, because choosing by masks costs several times as much: what is removed weighs 0,
        # and gets the largest number.
        weight += np.multiply(~left, largest, dtype=weight.dtype)
        block = (weight == weight.min(0)) & left
        if degree == "least":
            chosen = (first | (block.astype(first.dtype) - one)).min(0)
        else:
            chosen = np.take_along_axis(first, block.argmax(0)[None], 0)[0]
        sizes.append(_total(block, 0))
        degrees.append(chosen.astype(np.int16) - 1)
        left = left & ~block
        if isinstance(links, np.ndarray):
            # Hydrogens are often numbered last and removed first.
            rows = int(left.any(1).nonzero()[0].max(initial=-1)) + 1
            left, links = left[:rows], links[:rows, :rows]
        alive = np.negative(left, dtype=alive.dtype, casting="unsafe")
        removed[: len(left)] += left
    steps = np.zeros((2, len(sizes), nodes.shape[1]), dtype=np.int16)
    if sizes:
        steps[0], steps[1] = sizes, degrees
    # What was removed last comes first.
    back = (steps[0] > 0).sum(0) - 1 - np.arange(len(sizes))[:, None]
    found = np.where(back >= 0, np.take_along_axis(steps, np.maximum(back, 0)[None], 1), 0)
    blocks = np.where(nodes, removed.max(0, initial=0) - removed, -1)
    return blocks, found[0], found[1]
