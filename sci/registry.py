"""The static table of models, classes, data types and wings; reading it imports no wing.

``sci/registry.toml`` lists what ships. Further tables, for models of one's own, are named by the
environment variable ``SCI_REGISTRY`` (paths separated as in ``PATH``) or given to :func:`extend`.

A table has five kinds of entries::

    [class."short-name"]        # what config.json of a checkpoint names
    target = "package.module:Class"
    extra = "proteins"          # optional: pip install sciflows[proteins]

    [model."name"]              # a trained model
    class = "short-name"
    folder = "graphs/weights/name"       # below sci, or relative to the table's own file
    recipe = "graphs/recipes/name.toml"  # optional
    wing = "graphs"
    summary = "one line"

    [data."name"]               # a data type, for `sci evaluate FILE`
    target = "package.module:Class"
    suffixes = [".smi", ".sdf", ".h5"]

    [wing.name]                 # a wing with a section in the tour
    demo = "package.module:function"
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from sci.fields import build, unknown

__all__ = [
    "DataEntry",
    "ModelEntry",
    "class_name",
    "data_class",
    "demos",
    "extend",
    "find_class",
    "find_recipe",
    "model",
    "models",
    "resolve",
]

_SHIPPED = Path(__file__).parent / "registry.toml"
_added: list[Path] = []


@dataclass(frozen=True)
class ClassEntry:
    """A model class: where it is, and the extra it needs."""

    target: str
    extra: str | None = None


@dataclass(frozen=True)
class ModelEntry:
    """A trained model: its name, class, folder of weights, recipe, wing and summary."""

    name: str
    model: str
    folder: Path
    recipe: Path | None
    wing: str
    summary: str


@dataclass(frozen=True)
class DataEntry:
    """A data type: its name, its class as ``module:Class``, and the suffixes it reads."""

    target: str
    suffixes: tuple[str, ...] = ()
    name: str = ""


def extend(path: str | os.PathLike[str]) -> None:
    """Adds a registry file for this process.

    Arguments:
        path: A TOML file laid out like ``sci/registry.toml``. Its folders and recipes are relative to it.
    """
    path = Path(path).resolve()
    if not path.is_file():
        raise FileNotFoundError(f"there is no registry file {path}")
    if path not in _added:
        _added.append(path)


def models() -> dict[str, ModelEntry]:
    """Every trained model of the tables, by name."""
    found = {}
    for path, table in _tables():
        for name, entry in table.get("model", {}).items():
            missing = {"class", "folder"} - entry.keys()
            if missing:
                raise ValueError(f"{path}: model {name!r} lacks {', '.join(sorted(missing))}")
            recipe = entry.get("recipe")
            found[name] = ModelEntry(
                name=name,
                model=entry["class"],
                folder=_place(path, entry["folder"]),
                recipe=None if recipe is None else _place(path, recipe),
                wing=entry.get("wing", ""),
                summary=entry.get("summary", ""),
            )
    return found


def model(name: str) -> ModelEntry:
    """The entry of a trained model.

    Raises:
        KeyError: If there is none of that name; close names are listed.
    """
    known = models()
    if name not in known:
        raise KeyError(unknown("model", name, known))
    return known[name]


def find_class(name: str) -> type[Any]:
    """Imports the model class of a short name.

    Arguments:
        name: The short name of ``config.json`` or of a recipe, e.g. ``"mended-gdss"``.

    Raises:
        KeyError: If no class has that name; close names are listed.
        ImportError: If a package is missing; the message says what to install.
    """
    known = {key: value for _, table in _tables() for key, value in table.get("class", {}).items()}
    if name not in known:
        raise KeyError(unknown("model class", name, known))
    entry = known[name]
    if isinstance(entry, str):
        return resolve(entry)
    checked = build(ClassEntry, entry, f"class {name!r} of the registry")
    return resolve(checked.target, checked.extra)


def class_name(kind: type[Any]) -> str | None:
    """The short name of a model class, None where no table lists it."""
    target = f"{kind.__module__}:{kind.__qualname__}"
    for _, table in _tables():
        for name, entry in table.get("class", {}).items():
            if target == (entry if isinstance(entry, str) else entry.get("target")):
                return str(name)
    return None


def data_entries() -> list[DataEntry]:
    """Every data type of the tables, in their order."""
    entries = []
    for path, table in _tables():
        for name, entry in table.get("data", {}).items():
            entries.append(build(DataEntry, {**entry, "name": name}, f"data {name!r} of {path}"))
    return entries


def data_class(path: str | os.PathLike[str]) -> type[Any]:
    """Chooses the data class that reads a file.

    A file's own attribute ``data_class`` (HDF5, NetCDF) decides where there is one; it must name a data
    type of the tables, so that a file cannot name code of its own. Otherwise the suffix decides.

    Raises:
        ValueError: If no data type, or more than one, reads that suffix.
    """
    path = Path(path)
    entries = data_entries()
    named = _attribute(path)
    if named is not None:
        for entry in entries:
            if named in (entry.name, entry.target):
                return resolve(entry.target)
        raise ValueError(
            f"{path}: {unknown('data type', named, (entry.name for entry in entries))}"
        )
    suffix = path.suffix.lower()
    fitting = [entry for entry in entries if suffix in entry.suffixes]
    if len(fitting) == 1:
        return resolve(fitting[0].target)
    if not fitting:
        known = sorted({suffix for entry in entries for suffix in entry.suffixes})
        raise ValueError(
            f"{path}: nothing here reads {suffix or 'a file without suffix'!r}; readable: {known}"
        )
    raise ValueError(
        f"{path}: {', '.join(entry.name for entry in fitting)} all read {suffix!r}, and the file does not "
        "carry the attribute data_class that would decide"
    )


def demos() -> dict[str, str]:
    """The tour's sections: wing name to ``module:function``."""
    return {
        name: entry["demo"]
        for _, table in _tables()
        for name, entry in table.get("wing", {}).items()
        if "demo" in entry
    }


def find_recipe(name: str) -> Path:
    """The TOML file of a recipe: a path, a model's name, or the stem of a file in a wing's ``recipes/``.

    Raises:
        KeyError: If there is none; close names are listed.
    """
    given = Path(name)
    if given.suffix == ".toml":
        if not given.is_file():
            raise FileNotFoundError(f"there is no recipe file {given}")
        return given
    known = {entry.name: entry.recipe for entry in models().values() if entry.recipe is not None}
    for path, table in _tables():
        for wing in table.get("wing", {}):
            for recipe in sorted(_place(path, wing).glob("recipes/*.toml")):
                known.setdefault(recipe.stem, recipe)
    if name not in known:
        raise KeyError(unknown("recipe", name, known) + " (or give the path of a .toml file)")
    return known[name]


def resolve(target: str, extra: str | None = None) -> Any:
    """Imports ``"module:name"``.

    Arguments:
        target: Module and attribute, separated by a colon.
        extra: The optional dependencies it needs, for the message.

    Raises:
        ImportError: If the module, or a package that it needs, is missing.
    """
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        if extra is None:
            raise
        raise ImportError(
            f"{target} needs {error.name}: pip install 'sciflows[{extra}]'"
        ) from error
    except AttributeError as error:
        raise ImportError(
            f"the registry names {target}, but {module} has no {attribute!r}"
        ) from error


def _tables() -> Iterator[tuple[Path, dict[str, Any]]]:
    named = [
        Path(item).resolve()
        for item in os.environ.get("SCI_REGISTRY", "").split(os.pathsep)
        if item
    ]
    for path in dict.fromkeys([_SHIPPED, *named, *_added]):
        if not path.is_file():
            raise FileNotFoundError(f"SCI_REGISTRY names {path}, which does not exist")
        yield path, _parse(path, path.stat().st_mtime_ns)


@cache
def _parse(path: Path, changed: int) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is not valid TOML: {error}") from error


def _place(table: Path, relative: str) -> Path:
    """Where a folder of a table is; found through the import system, without importing the wing."""
    if table != _SHIPPED:
        return table.parent / relative
    head, *rest = Path(relative).parts
    spec = importlib.util.find_spec(f"sci.{head}")
    if spec is None or not spec.submodule_search_locations:
        return _SHIPPED.parent / relative
    return Path(spec.submodule_search_locations[0], *rest)


def _attribute(path: Path) -> str | None:
    if path.suffix.lower() not in (".h5", ".hdf5", ".nc", ".h5ad") or not path.is_file():
        return None
    import h5py

    try:
        with h5py.File(path, "r") as file:
            named = file.attrs.get("data_class")
    except OSError as error:
        raise ValueError(f"{path} is not a readable HDF5 file ({error})") from error
    return named.decode() if isinstance(named, bytes) else named
