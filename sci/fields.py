"""Plain tables (TOML, JSON, ``--set``) to frozen dataclasses and back, with errors a user can act on."""

from __future__ import annotations

import dataclasses
import datetime
import difflib
import math
import tomllib
import types
import typing
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

__all__ = ["build", "parse", "plain", "unknown"]

T = TypeVar("T")
_DATES = (datetime.date, datetime.time)  # a datetime is a date


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a name that does not exist: close names first, else all of them.

    Arguments:
        kind: What was looked for, e.g. ``"model"``.
        name: What the user gave.
        known: The names that exist.
    """
    known = sorted(known)
    close = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if close:
        return f"no {kind} is called {name!r}; did you mean {' or '.join(map(repr, close))}?"
    listed = ", ".join(map(repr, known)) if known else "there is none at all"
    return f"no {kind} is called {name!r}; known: {listed}"


def build(kind: type[T], values: Mapping[str, Any], what: str) -> T:
    """Makes a dataclass from a plain table, converting lists to tuples and tables to dataclasses.

    Arguments:
        kind: The dataclass.
        values: Field name to JSON-able value. ``"none"`` stands for None in optional fields.
        what: What the table is, for messages, e.g. ``"[optimiser] of recipe.toml"``.

    Raises:
        ValueError: For an unknown field (close names are listed), a missing one, or a value of the wrong
            type; and whatever the dataclass itself raises on bad values.
    """
    fields = {field.name: field for field in dataclasses.fields(kind) if field.init}  # type: ignore[arg-type]
    hints = typing.get_type_hints(kind)
    for name in values:
        if name not in fields:
            raise ValueError(f"{what}: {unknown('field', name, fields)}")
    for name, field in fields.items():
        required = (
            field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        if required and name not in values:
            raise ValueError(f"{what}: the field {name!r} is missing")
    return kind(
        **{name: _convert(value, hints[name], f"{what}: {name}") for name, value in values.items()}
    )


def plain(value: Any) -> Any:
    """The JSON-able form of a dataclass, tuple, path or NumPy scalar, recursively."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name)) for field in dataclasses.fields(value)
        }
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list | range | set | frozenset):
        return [
            plain(item) for item in (sorted(value) if isinstance(value, set | frozenset) else value)
        ]
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    return str(value) if isinstance(value, Path) else value


def parse(assignment: str) -> tuple[list[str], Any]:
    """Splits ``a.b=value`` into its keys and its value, which is read as TOML, else as text.

    Dates and times stay text.

    >>> parse("optimiser.lr=2e-3")
    (['optimiser', 'lr'], 0.002)
    >>> parse("data.folder=runs/mine")
    (['data', 'folder'], 'runs/mine')
    >>> parse("data.since=2024-05-01")
    (['data', 'since'], '2024-05-01')

    Raises:
        ValueError: If there is no ``=`` or an empty key.
    """
    name, equals, text = assignment.partition("=")
    keys = [key.strip() for key in name.split(".")]
    if not equals or not all(keys):
        raise ValueError(
            f"cannot read the setting {assignment!r}; expected name=value, e.g. steps=20"
        )
    try:
        table = tomllib.loads(f"value = {text.strip()}")
    except tomllib.TOMLDecodeError:
        return keys, text.strip()
    if list(table) != ["value"] or isinstance(table["value"], _DATES):
        return keys, text.strip()
    return keys, _undated(table["value"])


def _undated(value: Any) -> Any:
    """The value with the dates in its lists and tables as text: no field holds dates, and JSON has none."""
    if isinstance(value, list):
        return [_undated(item) for item in value]
    if isinstance(value, dict):
        return {key: _undated(item) for key, item in value.items()}
    return value.isoformat() if isinstance(value, _DATES) else value


def _convert(value: Any, hint: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _convert_union(value, arguments, where, hint)
    if origin is typing.Literal:
        if value not in arguments:
            raise ValueError(f"{where}: {unknown('choice', str(value), map(str, arguments))}")
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        if isinstance(value, hint):
            return value
        if isinstance(value, Mapping):
            return build(hint, value, where)
    elif origin is tuple or hint is tuple:
        if isinstance(value, list | tuple | range):
            return _convert_tuple(tuple(value), arguments, where, hint)
    elif origin is list or hint is list:
        if isinstance(value, list | tuple | range):
            return [_convert(item, arguments[0] if arguments else Any, where) for item in value]
    elif origin is dict or hint is dict or origin is Mapping:
        if isinstance(value, Mapping):
            return dict(value)
    elif hint is bool:
        if isinstance(value, bool | np.bool_):
            return bool(value)
    elif hint is int:
        if isinstance(value, int | np.integer) and not isinstance(value, bool):
            return int(value)
        if isinstance(value, float) and value.is_integer():
            return int(value)
    elif hint is float:
        if isinstance(value, int | float | np.number) and not isinstance(value, bool):
            if math.isnan(value):
                raise ValueError(f"{where} is not a number (nan)")
            return float(value)
    elif hint is Path:
        if isinstance(value, str | Path):
            return Path(value)
    elif isinstance(hint, type) and isinstance(value, hint):
        return value
    raise ValueError(f"{where} is {value!r}; expected {_name(hint)}")


def _convert_union(value: Any, arguments: tuple[Any, ...], where: str, hint: Any) -> Any:
    optional = type(None) in arguments
    if optional and (value is None or (isinstance(value, str) and value.lower() == "none")):
        return None
    for argument in arguments:
        if argument is type(None):
            continue
        try:
            return _convert(value, argument, where)
        except ValueError as error:
            if optional and len(arguments) == 2:
                raise ValueError(
                    str(error).replace("; expected ", "; expected none or ")
                ) from error
    raise ValueError(f"{where} is {value!r}; expected {_name(hint)}")


def _convert_tuple(
    value: tuple[Any, ...], arguments: tuple[Any, ...], where: str, hint: Any
) -> Any:
    if not arguments:
        return tuple(tuple(item) if isinstance(item, list) else item for item in value)
    if len(arguments) == 2 and arguments[1] is Ellipsis:
        return tuple(_convert(item, arguments[0], where) for item in value)
    if len(arguments) != len(value):
        raise ValueError(f"{where} has {len(value)} entries; expected {_name(hint)}")
    return tuple(_convert(item, kind, where) for item, kind in zip(value, arguments, strict=True))


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) and not typing.get_args(hint) else str(hint)
