"""Counts of the 15 orbits of connected induced subgraphs of two to four nodes, per node.

Orbits are numbered as by Przulj (2007): 0 edge; 1 end and 2 middle of a path of three; 3 triangle; 4 end and 5
middle of a path of four; 6 leaf and 7 centre of a star; 8 four-cycle; 9 pendant, 10 far and 11 near node of a
triangle with a tail; 12 node of degree two and 13 of degree three in a four-cycle with a chord; 14 complete.

The counts follow from a few matrix products. With adjacency A, degrees d, triangles per edge T = A * A^2, triangles per
node t, and complete four-graphs per edge K (pairs of adjacent common neighbours), every orbit is first counted in
subgraphs that need not be induced; those of denser subgraphs are then taken off.

References:
    | Biological network comparison using graphlet degree distribution (Przulj, 2007)
    | A combinatorial approach to graphlet counting (Hocevar & Demsar, 2014)
"""

from __future__ import annotations

import numpy as np


def orbit_counts(adjacency: np.ndarray) -> np.ndarray:
    """Orbit counts of every node.

    Arguments:
        adjacency: (n, n) array of 0 and 1, symmetric, with zero diagonal.

    Returns:
        (n, 15) int64.
    """
    a = np.asarray(adjacency, dtype=np.float64)
    size = len(a)
    degree = a.sum(1)
    square = a @ a
    edge_triangles = a * square
    triangles = edge_triangles.sum(1) / 2

    first, second = np.nonzero(np.triu(a))
    common = a[first] * a[second]
    # Neighbours of each common neighbour among the common neighbours of the same edge.
    adjacent = (common @ a) * common
    per_edge = adjacent.sum(1) / 2
    complete = np.zeros((size, size))
    complete[first, second] = complete[second, first] = per_edge

    count = np.zeros((15, size))
    count[0] = degree
    count[1] = a @ (degree - 1) - 2 * triangles
    count[2] = _choose_two(degree) - triangles
    count[3] = triangles

    count[14] = complete.sum(1) / 3
    count[13] = (_choose_two(edge_triangles) - complete).sum(1)
    count[12] = (common * (edge_triangles[first, second] - 1)[:, None] - adjacent).sum(0)
    # Sum over common neighbours w of u and v of the triangles on the edge (u, w).
    spread = edge_triangles @ a
    count[11] = triangles * (degree - 2) - 2 * _choose_two(edge_triangles).sum(1) + 3 * count[14]
    count[10] = (edge_triangles * degree - edge_triangles**2 - a * spread.T + 2 * complete).sum(1)
    count[9] = (a * (triangles - spread.T) + complete).sum(1)
    apart = square - np.diag(degree)
    count[8] = _choose_two(apart).sum(1) - count[12] - count[13] - 3 * count[14]
    count[7] = degree * (degree - 1) * (degree - 2) / 6 - count[11] - count[13] - count[14]
    count[6] = (
        a @ ((degree - 1) * (degree - 2) / 2)
        - count[9]
        - count[10]
        - 2 * count[12]
        - count[13]
        - 3 * count[14]
    )
    count[5] = (
        (degree - 1) * (a @ (degree - 1))
        - 2 * triangles
        - count[10]
        - 2 * (count[8] + count[11] + count[12])
        - 4 * count[13]
        - 6 * count[14]
    )
    count[4] = (
        apart @ (degree - 1)
        - 2 * triangles
        - count[10]
        - 2 * (count[8] + count[9] + count[13])
        - 4 * count[12]
        - 6 * count[14]
    )
    return np.rint(count.T).astype(np.int64)


def _choose_two(n: np.ndarray) -> np.ndarray:
    return n * (n - 1) / 2
