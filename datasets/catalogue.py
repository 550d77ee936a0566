"""Cards: what a data set is, whose it is, and which bytes it is made of.

A card names one or several *files*. A file is known by its name and has one or several *forms* of the
same content: the form this library prefers to read, and often the form its authors publish (say a
``.npz`` and the pickle it was made from). Each form has its own checksum, so that whichever of them lies
on a disk can be recognised.
"""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

_CARDS = Path(__file__).parent / "cards"
_REQUIRED = {"name", "title", "summary", "licence", "homepage", "citation", "files"}
_OPTIONAL = {"notes"}
_FILE_REQUIRED = {"name", "holds", "sha256", "bytes"}
_FILE_OPTIONAL = {"urls", "upstream"}
_FORM_REQUIRED = {"name", "holds", "sha256", "bytes", "urls"}


@dataclass(frozen=True)
class Form:
    """One sequence of bytes that holds a data file.

    Arguments:
        name: file name, without a folder.
        holds: what is inside, and how it is laid out.
        sha256: checksum, 64 lower-case hexadecimal digits.
        bytes: size of the file.
        urls: addresses it can be downloaded from, best first; empty if this form is published nowhere.
    """

    name: str
    holds: str
    sha256: str
    bytes: int
    urls: tuple[str, ...] = ()


@dataclass(frozen=True)
class File:
    """One file of a data set: its preferred form first, then the forms its authors publish."""

    forms: tuple[Form, ...]

    @property
    def name(self) -> str:
        """Name of the preferred form; it names the file."""
        return self.forms[0].name


@dataclass(frozen=True)
class Card:
    """What a data set is, as its card says.

    Arguments:
        name: short name, as in ``sci.datasets.path(name)``.
        title: one line.
        summary: what the data are, how many, how they are split.
        licence: licence of the data, and how far it has been verified.
        homepage: where the data set is described.
        citation: the works to cite, one string each.
        files: its files, the main one first.
        notes: pitfalls that have bitten somebody.
    """

    name: str
    title: str
    summary: str
    licence: str
    homepage: str
    citation: tuple[str, ...]
    files: tuple[File, ...]
    notes: tuple[str, ...] = ()

    def file(self, name: str | None = None) -> File:
        """The file called ``name`` (of any of its forms), or the main file.

        Raises:
            KeyError: no file of this card has that name; close names are listed.
        """
        if name is None:
            return self.files[0]
        for file in self.files:
            if name in {form.name for form in file.forms}:
                return file
        names = [file.name for file in self.files]
        raise KeyError(_unknown(f"file of data set {self.name!r}", name, names))

    def __str__(self) -> str:
        rows = [
            f"{self.name}: {self.title}",
            self.summary,
            f"licence: {self.licence}",
            f"see: {self.homepage}",
        ]
        rows += [f"cite: {work}" for work in self.citation]
        rows += [f"file: {file.name}, {file.forms[0].holds}" for file in self.files]
        rows += [f"note: {note}" for note in self.notes]
        return "\n".join(rows)


def available() -> list[str]:
    """Names of all data sets that have a card, sorted."""
    return sorted(file.stem for file in _CARDS.glob("*.toml"))


def card(name: str) -> Card:
    """The card of a data set.

    Arguments:
        name: one of :func:`available`.

    Raises:
        KeyError: no such data set; close names are listed.
    """
    names = available()
    if name not in names:
        raise KeyError(_unknown("data set", name, names))
    return _packaged(name)


def read_card(path: str | Path) -> Card:
    """Reads a card from a TOML file, for instance one for your own data; :func:`sci.datasets.path` takes the result.

    Arguments:
        path: a file laid out like those in ``datasets/cards``.

    Raises:
        ValueError: the file is not TOML, lacks a field, has an unknown one, or a checksum or address is malformed.
    """
    path = Path(path)
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not a card: it is not valid TOML ({error})") from error
    _fields(path, "the card", table, _REQUIRED, _OPTIONAL)
    if not table["files"]:
        raise ValueError(f"{path}: a card needs at least one [[files]] table")
    return Card(
        name=table["name"],
        title=table["title"],
        summary=table["summary"],
        licence=table["licence"],
        homepage=table["homepage"],
        citation=tuple(table["citation"]),
        files=tuple(_file(path, entry) for entry in table["files"]),
        notes=tuple(table.get("notes", ())),
    )


@cache
def _packaged(name: str) -> Card:
    return read_card(_CARDS / f"{name}.toml")


def _file(path: Path, table: Mapping[str, Any]) -> File:
    _fields(path, "a [[files]] table", table, _FILE_REQUIRED, _FILE_OPTIONAL)
    preferred = _form(path, {key: value for key, value in table.items() if key != "upstream"})
    for entry in table.get("upstream", ()):
        _fields(path, "a [[files.upstream]] table", entry, _FORM_REQUIRED, set())
    return File((preferred, *(_form(path, entry) for entry in table.get("upstream", ()))))


def _form(path: Path, table: Mapping[str, Any]) -> Form:
    name, sha256, urls = table["name"], table["sha256"], tuple(table.get("urls", ()))
    if not name or Path(name).name != name:
        raise ValueError(f"{path}: file name {name!r} must be a bare name, without a folder")
    if not re.fullmatch(r"[0-9a-f]{64}", sha256):
        raise ValueError(
            f"{path}: sha256 of {name!r} must be 64 lower-case hexadecimal digits, got {sha256!r}"
        )
    for url in urls:
        if not url.startswith(("https://", "http://")):
            raise ValueError(
                f"{path}: address of {name!r} must begin with https:// or http://, got {url!r}"
            )
    return Form(name=name, holds=table["holds"], sha256=sha256, bytes=table["bytes"], urls=urls)


def _fields(
    path: Path, what: str, table: Mapping[str, Any], required: set[str], optional: set[str]
) -> None:
    if missing := sorted(required - table.keys()):
        raise ValueError(f"{path}: {what} lacks {', '.join(missing)}")
    if unknown := sorted(table.keys() - required - optional):
        raise ValueError(
            f"{path}: {what} has unknown fields {', '.join(unknown)}; known: {sorted(required | optional)}"
        )


def _unknown(what: str, name: str, names: Iterable[str]) -> str:
    names = list(names)
    close = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, close))}?" if close else "none is close."
    return f"no {what} is called {name!r}; {hint} There are: {', '.join(names)}"
