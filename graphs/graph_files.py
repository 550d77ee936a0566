"""Generic graphs in HDF5 files, as lists of edges."""

from __future__ import annotations

import os

import numpy as np

from sci.files import read_data, write_hdf5
from sci.graphs.dense import Graphs

FORMAT_VERSION = 1
_CLASS = "sci.graphs.dense:Graphs"


def write(graphs: Graphs, path: str | os.PathLike[str]) -> None:
    """Write graphs to an HDF5 file.

    It holds ``num_nodes`` (G,), ``edges`` (E, 2), every edge once and numbered within its graph, and ``edge_ptr``
    (G + 1,): the edges of graph g are ``edges[edge_ptr[g]:edge_ptr[g + 1]]``.

    Raises:
        ValueError: The suffix is not .h5 or .hdf5.
    """
    _check_suffix(path)
    graph, i, j = np.nonzero(np.triu(graphs.adjacency))
    arrays: dict[str, np.ndarray] = {
        "num_nodes": graphs.sizes,
        "edges": np.stack([i, j], 1).astype(np.int32),
        "edge_ptr": np.searchsorted(graph, np.arange(len(graphs) + 1)),
    }
    attributes = {"data_class": _CLASS, "format_version": FORMAT_VERSION, "attrs": graphs.attrs}
    write_hdf5(path, arrays, attributes)


def read(path: str | os.PathLike[str]) -> Graphs:
    """Read a file of :func:`write`.

    Raises:
        FileNotFoundError: There is no such file.
        FileDamaged: It is damaged, of another version, or holds something else.
    """
    _check_suffix(path)
    arrays, notes = read_data(path, _CLASS, FORMAT_VERSION)
    return Graphs.from_edges(
        arrays["num_nodes"], arrays["edges"], arrays["edge_ptr"], notes["attrs"]
    )


def _check_suffix(path: str | os.PathLike[str]) -> None:
    if not str(path).lower().endswith((".h5", ".hdf5")):
        raise ValueError(f"{path}: graphs are kept in HDF5 files; give the suffix .h5.")
