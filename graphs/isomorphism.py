"""Which graphs are the same, and which have the structure they should have."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Callable

import numpy as np

_ROUNDS = 4


def signature(adjacency: np.ndarray) -> str:
    """A hash that isomorphic graphs share: four rounds of Weisfeiler-Leman colour refinement.

    Each round gives every node the hash of its colour and the sorted colours of its neighbours.

    Arguments:
        adjacency: (n, n) array of 0 and 1.
    """
    neighbours = [np.flatnonzero(row).tolist() for row in adjacency]
    colours = [str(len(row)) for row in neighbours]
    for _ in range(_ROUNDS):
        colours = [
            _hash(colours[node] + "|" + ",".join(sorted(colours[other] for other in row)))
            for node, row in enumerate(neighbours)
        ]
    return _hash(f"{len(adjacency)};" + ",".join(sorted(colours)))


class Catalogue:
    """Graphs sorted into classes of isomorphism: by hash first, and then exactly.

    Example:
        >>> catalogue = Catalogue()
        >>> path = np.array([[0, 1, 0], [1, 0, 1], [0, 1, 0]])
        >>> [catalogue.add(a) for a in (path, 1 - np.eye(3, dtype=int), path[[1, 0, 2]][:, [1, 0, 2]])]
        [0, 1, 0]
    """

    def __init__(self) -> None:
        self._classes: dict[str, list[tuple[int, object]]] = defaultdict(list)
        self.count = 0

    def find(self, adjacency: np.ndarray) -> int | None:
        """Number of the class that a graph belongs to; None if it is new."""
        return self._find(self._classes.get(signature(adjacency), []), adjacency)

    def add(self, adjacency: np.ndarray) -> int:
        """Number of the class that a graph belongs to, which is made if there is none."""
        import networkx

        members = self._classes[signature(adjacency)]
        found = self._find(members, adjacency)
        if found is not None:
            return found
        members.append((self.count, networkx.from_numpy_array(adjacency)))
        self.count += 1
        return self.count - 1

    @staticmethod
    def _find(members: list[tuple[int, object]], adjacency: np.ndarray) -> int | None:
        import networkx

        if not members:
            return None
        graph = networkx.from_numpy_array(adjacency)
        for number, other in members:
            # networkx denies that a graph without nodes is isomorphic to itself.
            if not len(graph) or networkx.vf2pp_is_isomorphic(graph, other):
                return number
        return None


def is_planar(adjacency: np.ndarray) -> bool:
    """Whether a graph is connected and can be drawn in the plane without crossings."""
    import networkx

    graph = networkx.from_numpy_array(adjacency)
    return len(graph) > 0 and networkx.is_connected(graph) and networkx.check_planarity(graph)[0]


def is_tree(adjacency: np.ndarray) -> bool:
    """Whether a graph is connected and has no cycles."""
    import networkx

    return len(adjacency) > 0 and networkx.is_tree(networkx.from_numpy_array(adjacency))


def is_grid(adjacency: np.ndarray) -> bool:
    """Whether a graph is a rectangular grid of at least 2 by 2 nodes.

    In a grid of a by b nodes the distances u and v from two corners that are b - 1 apart are row + column and
    row + b - 1 - column. They give every node its place; what remains is to compare the edges.
    """
    import networkx

    graph = networkx.from_numpy_array(adjacency)
    corners = [node for node, degree in graph.degree if degree == 2]
    if len(corners) != 4 or not networkx.is_connected(graph):
        return False
    first = np.array(
        [
            d
            for _, d in sorted(
                networkx.single_source_shortest_path_length(graph, corners[0]).items()
            )
        ]
    )
    for other in corners[1:]:
        lengths = networkx.single_source_shortest_path_length(graph, other)
        second = np.array([d for _, d in sorted(lengths.items())])
        last = int(first[other])
        row, column = (first + second - last) // 2, (first - second + last) // 2
        width, height = last + 1, len(graph) // (last + 1)
        place = row * width + column
        if height * width != len(graph) or not np.array_equal(
            np.sort(place), np.arange(len(graph))
        ):
            continue
        target = networkx.to_numpy_array(networkx.grid_2d_graph(height, width), weight=None) > 0
        if np.array_equal(target[np.ix_(place, place)], np.asarray(adjacency, dtype=bool)):
            return True
    return False


# Being drawn from a stochastic block model is no property of a single graph, and the usual test needs a package that
# pip cannot install: there is no rule for such data.
RULES: dict[str, Callable[[np.ndarray], bool]] = {
    "planar": is_planar,
    "tree": is_tree,
    "grid": is_grid,
}


def _hash(text: str) -> str:
    return hashlib.blake2b(text.encode(), digest_size=12).hexdigest()
