"""Molecules and graphs: data, metrics, pictures, and generative models of them.

Everything is imported when it is first used, so that ``import sci.graphs`` needs neither RDKit nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sci.graphs.dense import DenseGraphs as DenseGraphs
    from sci.graphs.dense import Graphs as Graphs
    from sci.graphs.encoding import Vocabulary as Vocabulary
    from sci.graphs.encoding import encode_smiles as encode_smiles
    from sci.graphs.gdss import GDSS as GDSS
    from sci.graphs.mended import MendedGDSS as MendedGDSS
    from sci.graphs.metrics import mmd as mmd
    from sci.graphs.molecules import Molecules as Molecules
    from sci.graphs.properties import PropertySurrogate as PropertySurrogate
    from sci.graphs.scaffolds import Scaffold as Scaffold

_NAMES = {
    "GDSS": "sci.graphs.gdss",
    "DenseGraphs": "sci.graphs.dense",
    "Graphs": "sci.graphs.dense",
    "MendedGDSS": "sci.graphs.mended",
    "Molecules": "sci.graphs.molecules",
    "PropertySurrogate": "sci.graphs.properties",
    "Scaffold": "sci.graphs.scaffolds",
    "Vocabulary": "sci.graphs.encoding",
    "encode_smiles": "sci.graphs.encoding",
    "mmd": "sci.graphs.metrics",
}
_MODULES = (
    "building",
    "chemnet",
    "dense",
    "descriptors",
    "encoding",
    "graph_files",
    "isomorphism",
    "load",
    "metrics",
    "molecule_files",
    "molecule_metrics",
    "molecules",
    "orbits",
    "plots",
    "scaffolds",
)

__all__ = [*_MODULES, *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
        globals()[name] = value
        return value
    try:
        return importlib.import_module(f"sci.graphs.{name}")
    except ModuleNotFoundError as error:
        if error.name != f"sci.graphs.{name}":
            raise
    raise AttributeError(f"module 'sci.graphs' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_MODULES, *_NAMES})
