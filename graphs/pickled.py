"""A reader of published pickles of networkx graphs that runs none of their code.

A pickle may call any function of any module when it is read. Here every class of networkx is replaced by an empty
holder of attributes, and all other names are refused but plain containers and NumPy numbers (labels of nodes).
"""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import networkx


def read_pickle(path: str | os.PathLike[str]) -> dict[str, list[networkx.Graph]]:
    """Graphs of a pickled list, under the key "", or of a pickled dict of lists, under its keys.

    Node order and edges are kept, attributes are not.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is no pickle of undirected networkx graphs, or asks for other code.
    """
    content = Path(path).read_bytes()
    try:
        stored = _Reader(io.BytesIO(content)).load()
    except (pickle.UnpicklingError, EOFError, AttributeError, IndexError, TypeError) as error:
        raise ValueError(f"{path} is no pickle of networkx graphs: {error}") from error
    parts = stored if isinstance(stored, dict) else {"": stored}
    if not all(isinstance(part, list) for part in parts.values()):
        raise ValueError(
            f"{path} holds {type(stored).__name__}; expected lists of networkx graphs."
        )
    return {str(key): [_graph(item, path) for item in part] for key, part in parts.items()}


class _Holder:
    """Stands in for any class of networkx: keeps attributes, does nothing."""


class _Reader(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("networkx."):
            return _Holder
        plain = {"dict": dict, "list": list, "set": set}
        if module in ("builtins", "__builtin__") and name in plain:
            return plain[name]
        number = {"scalar": np.float64(0).__reduce__()[0], "dtype": np.dtype}
        if (
            module in ("numpy", "numpy.core.multiarray", "numpy._core.multiarray")
            and name in number
        ):
            return number[name]
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _graph(item: object, path: str | os.PathLike[str]) -> networkx.Graph:
    import networkx

    if not isinstance(item, _Holder):
        raise ValueError(f"{path} holds {type(item).__name__} where a networkx graph was expected.")
    state = vars(item)
    # networkx 1 calls them adj and node. A view of a subgraph holds the whole graph and the nodes it shows.
    neighbours = state.get("_adj", state.get("adj", {}))
    nodes = state.get("_node", state.get("node", neighbours))
    if isinstance(neighbours, _Holder):
        shown = vars(vars(neighbours)["NODE_OK"])["nodes"]
        neighbours = vars(neighbours)["_atlas"]
        # networkx lists the nodes of a small view in the order of this set.
        nodes = [
            n for n in (shown if 2 * len(shown) < len(neighbours) else neighbours) if n in shown
        ]
    graph = networkx.Graph()
    graph.add_nodes_from(nodes)
    graph.add_edges_from((u, v) for u in nodes for v in neighbours[u] if v in graph)
    return graph
