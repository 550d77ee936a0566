"""Score and flow generative models for science: one core, one wing per science.

``sci.load(name)`` gives a trained model; ``sci.graphs``, ``sci.proteins``, ``sci.pde``, ``sci.timeseries``
and ``sci.cells`` are the wings, ``sci.datasets`` the data. All of them, and the core's modules, are
imported when they are first used.

Time ``t`` runs forward from 0 (the source: noise, or a source population) to 1 (data).
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sci.denoiser import Denoiser as Denoiser
    from sci.denoiser import Joined as Joined
    from sci.denoiser import Wrapped as Wrapped
    from sci.model import Model as Model
    from sci.model import load as load
    from sci.noise import Noise as Noise
    from sci.paths import CategoricalPath as CategoricalPath
    from sci.paths import GaussianPath as GaussianPath
    from sci.paths import GeodesicPath as GeodesicPath
    from sci.paths import HeavyTailedPath as HeavyTailedPath
    from sci.paths import Interpolant as Interpolant
    from sci.report import Report as Report

__version__ = "0.2.0"

_FOLDERS = ("graphs", "proteins", "pde", "timeseries", "cells", "datasets")
_MODULES = (
    *_FOLDERS,
    "checkpoint",
    "cli",
    "demo",
    "denoiser",
    "devices",
    "fields",
    "files",
    "generation",
    "guidance",
    "kinetic",
    "metrics",
    "model",
    "noise",
    "optimisation",
    "paths",
    "recipes",
    "registry",
    "report",
    "runs",
    "samplers",
    "schedules",
    "sde",
    "session",
    "spaces",
    "training",
    "tree",
    "tuning",
)
_NAMES = {
    "CategoricalPath": "sci.paths",
    "Denoiser": "sci.denoiser",
    "GaussianPath": "sci.paths",
    "GeodesicPath": "sci.paths",
    "HeavyTailedPath": "sci.paths",
    "Interpolant": "sci.paths",
    "Joined": "sci.denoiser",
    "Model": "sci.model",
    "Noise": "sci.noise",
    "Report": "sci.report",
    "Wrapped": "sci.denoiser",
    "load": "sci.model",
}

__all__ = ["__version__", *sorted(_MODULES), *sorted(_NAMES)]


class _SourceTree:
    """Finds ``sci.graphs`` and its neighbours beside ``sci/`` when running from the source tree.

    In the repository the wings are top-level folders; an installed package has them inside ``sci/`` and
    never gets here, because the normal search comes first.
    """

    root = Path(__file__).resolve().parent.parent

    @classmethod
    def find_spec(
        cls, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        parent, _, folder = name.rpartition(".")
        if parent != __name__ or folder not in _FOLDERS:
            return None
        initial = cls.root / folder / "__init__.py"
        if not initial.is_file() or not (cls.root / "pyproject.toml").is_file():
            return None
        return importlib.util.spec_from_file_location(
            name, initial, submodule_search_locations=[str(initial.parent)]
        )


sys.meta_path.append(_SourceTree)


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(_NAMES[name]), name)
    elif name in _MODULES:
        value = importlib.import_module(f"{__name__}.{name}")
    else:
        raise AttributeError(f"module 'sci' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
