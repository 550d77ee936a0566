"""Tables of measured quality: the model beside its floor, the training set and trivial baselines.

A figure alone says little. A report keeps, with every value, its spread where it is known, and below the
table what it rests on: how many samples, which seeds, how many network evaluations, what cost.
"""

from __future__ import annotations

import html
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sci import files
from sci.fields import plain

__all__ = ["Report", "Value"]

Value = float | tuple[float, float] | None


class Report:
    """A table of named rows and columns, with notes.

    Arguments:
        title: What was measured.
        rows: Row name (``"model"``, ``"floor"``, ``"training set"``, a baseline) to column name to value: a
            number, a pair (value, spread), or None where the quantity has no meaning.
        notes: What the figures rest on, e.g. ``{"n": 1000, "seeds": 3, "nfe": 20}``. None values are left out.

    Example:
        >>> print(Report("QM9", {"model": {"valid": (0.95, 0.01)}, "floor": {"valid": 1.0}}, {"n": 1000}))
        QM9
                       valid
        model  0.950 ± 0.010
        floor          1.000
        n: 1000

    Raises:
        ValueError: If a value is neither a number, a pair nor None.
    """

    def __init__(
        self,
        title: str,
        rows: Mapping[str, Mapping[str, Value]],
        notes: Mapping[str, Any] | None = None,
    ) -> None:
        self.title = title
        self.rows = {
            name: {key: _checked(name, key, v) for key, v in row.items()}
            for name, row in rows.items()
        }
        self.notes = {
            key: plain(value) for key, value in (notes or {}).items() if value is not None
        }

    @property
    def columns(self) -> list[str]:
        """Column names, in the order of their first appearance."""
        return list(dict.fromkeys(key for row in self.rows.values() for key in row))

    def __str__(self) -> str:
        table = [["", *self.columns], *self._cells()]
        widths = [max(map(len, column)) for column in zip(*table, strict=True)]
        lines = [
            "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
            for row in table
        ]
        return "\n".join([self.title, *lines, *self._notes()])

    def __repr__(self) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Report) and self.to_dict() == other.to_dict()

    def _repr_html_(self) -> str:
        return self.to_html()

    def to_markdown(self) -> str:
        """The table in Markdown, the title as a bold line, the notes below."""
        head = ["", *self.columns]
        lines = [
            f"**{self.title}**",
            "",
            _pipes(head),
            _pipes(["---", *["---:"] * len(self.columns)]),
        ]
        lines += [_pipes(row) for row in self._cells()]
        return "\n".join([*lines, "", *(f"{note}  " for note in self._notes())]).rstrip() + "\n"

    def to_html(self) -> str:
        """The table in HTML, without scripts or outside styles."""

        def cells(row: list[str], tag: str) -> str:
            numbers = "".join(
                f'<{tag} style="text-align:right">{html.escape(cell)}</{tag}>' for cell in row[1:]
            )
            return f'<tr><th style="text-align:left">{html.escape(row[0])}</th>{numbers}</tr>'

        body = "".join(cells(row, "td") for row in self._cells())
        notes = "<br>".join(map(html.escape, self._notes()))
        return (
            f"<table><caption>{html.escape(self.title)}</caption><thead>{cells(['', *self.columns], 'th')}</thead>"
            f"<tbody>{body}</tbody></table>" + (f"<p><small>{notes}</small></p>" if notes else "")
        )

    def to_dict(self) -> dict[str, Any]:
        """The report as JSON-able tables; pairs become ``{"value": v, "spread": s}``."""
        rows = {
            name: {key: _entry(value) for key, value in row.items()}
            for name, row in self.rows.items()
        }
        return {"title": self.title, "rows": rows, "notes": self.notes}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Report:
        """The report of :meth:`to_dict`."""
        rows = {
            name: {
                k: (v["value"], v["spread"]) if isinstance(v, Mapping) else v
                for k, v in row.items()
            }
            for name, row in content["rows"].items()
        }
        return cls(content["title"], rows, content["notes"])

    def write(self, path: str | os.PathLike[str]) -> None:
        """Writes the report; the suffix chooses among ``.json``, ``.md``, ``.html`` and ``.txt``.

        Raises:
            ValueError: For any other suffix.
        """
        makers = {
            ".json": lambda: json.dumps(self.to_dict(), indent=2, ensure_ascii=False) + "\n",
            ".md": self.to_markdown,
            ".html": lambda: _PAGE.format(title=html.escape(self.title), body=self.to_html()),
            ".txt": lambda: f"{self}\n",
        }
        suffix = self.check_suffix(path)
        with files.atomic(path) as temporary:
            temporary.write_text(makers[suffix](), "utf-8")

    @staticmethod
    def check_suffix(path: str | os.PathLike[str]) -> str:
        """The suffix of a file that :meth:`write` can write, to be asked before a long evaluation.

        Raises:
            ValueError: For any other suffix.
        """
        suffix = Path(path).suffix
        if suffix not in _SUFFIXES:
            raise ValueError(
                f"cannot write a report as {suffix!r}; expected {', '.join(_SUFFIXES)}"
            )
        return suffix

    def _cells(self) -> list[list[str]]:
        return [
            [name, *(_text(row.get(key)) for key in self.columns)]
            for name, row in self.rows.items()
        ]

    def _notes(self) -> list[str]:
        return [
            f"{key}: {', '.join(map(str, value)) if isinstance(value, list) else value}"
            for key, value in self.notes.items()
        ]


_SUFFIXES = (".json", ".md", ".html", ".txt")
_PAGE = (
    '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title></head>'
    "<body>{body}</body></html>\n"
)


def _checked(row: str, column: str, value: Any) -> Value:
    if value is None:
        return None
    try:
        if isinstance(value, tuple | list):
            centre, spread = value
            return float(centre), float(spread)
        return float(value)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"report: {row} / {column} is {value!r}; expected a number, a pair (value, spread) or None"
        ) from error


def _entry(value: Value) -> Any:
    return {"value": value[0], "spread": value[1]} if isinstance(value, tuple) else value


def _text(value: Value) -> str:
    """A number in about three significant digits; a spread in the decimals of its value."""
    if value is None:
        return "-"
    centre, spread = value if isinstance(value, tuple) else (value, None)
    if not math.isfinite(centre):
        return str(centre)
    size = abs(centre)
    if size != 0 and (size < 1e-3 or size >= 1e6):
        return f"{centre:.2e}" + ("" if spread is None else f" ± {spread:.1e}")
    decimals = 0 if size >= 1000 else 1 if size >= 100 else 2 if size >= 10 else 3
    if spread is None and centre == round(centre) and size >= 10:
        decimals = 0
    if size < 0.1 and size != 0:
        decimals = 4
    return f"{centre:.{decimals}f}" + ("" if spread is None else f" ± {spread:.{decimals}f}")


def _pipes(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
