"""The tour: one page of pictures and tables from every wing, in a single file without outside parts.

Each wing names a function in ``sci/registry.toml`` (``[wing.graphs] demo = "sci.graphs.demo:demo"``). It takes
the folder of the tour, where it may leave files, and yields :class:`Section` objects as they are made; this
module turns them into ``index.html``.
"""

from __future__ import annotations

import base64
import datetime
import html
import io
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sci import files, registry
from sci.fields import unknown
from sci.report import Report

__all__ = ["Section", "build"]


@dataclass(frozen=True)
class Section:
    """A section of the tour.

    Arguments:
        title: Its heading.
        text: A paragraph below it.
        parts: In order: text (a paragraph), a :class:`~sci.report.Report`, a matplotlib figure, a PIL image,
            anything with ``_repr_html_``, ``_repr_svg_`` or ``_repr_png_``, or a pair (caption, any of these).
    """

    title: str
    text: str = ""
    parts: Sequence[Any] = ()


def build(
    folder: str | os.PathLike[str] = "demo",
    wings: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Path:
    """Makes the page.

    Arguments:
        folder: Where ``index.html`` is written, and the wings' own files.
        wings: Which wings; None takes all that have a section.
        progress: Called with a line of text when a section begins or is done.

    Returns:
        The path of the page.

    Raises:
        KeyError: For a wing without a section; close names are listed.
        RuntimeError: If there is no section at all, or every wing failed. A wing that fails while others work is
            named on the page.
    """
    known = registry.demos()
    for wing in wings or ():
        if wing not in known:
            raise KeyError(unknown("wing with a tour", wing, known))
    chosen = list(wings) if wings is not None else list(known)
    if not chosen:
        raise RuntimeError("no wing has a section of the tour")
    say = progress or (lambda line: None)
    bodies, failures = [], []
    for wing in chosen:
        began = time.monotonic()
        say(f"{wing} ...")
        try:
            for section in _sections(known[wing], Path(folder)):
                bodies.append(_section(section))
                say(f"{wing}: {section.title} ({time.monotonic() - began:.1f} s)")
        except (ImportError, OSError, ValueError, KeyError, RuntimeError) as error:
            failures.append(f"{wing}: {type(error).__name__}: {error}")
            say(f"{wing} failed: {error}")
    if not bodies:
        raise RuntimeError(f"no section could be made: {'; '.join(failures)}")
    path = Path(folder) / "index.html"
    with files.atomic(path) as temporary:
        temporary.write_text(_page(bodies, failures), "utf-8")
    return path


def _sections(target: str, folder: Path) -> Iterator[Section]:
    made: Iterable[Section] | Section = registry.resolve(target)(folder)
    yield from [made] if isinstance(made, Section) else made


def _section(section: Section) -> str:
    parts = "".join(_part(part) for part in section.parts)
    return (
        f"<section><h2>{html.escape(section.title)}</h2>{_paragraph(section.text)}{parts}</section>"
    )


def _part(part: Any) -> str:
    if isinstance(part, tuple) and len(part) == 2 and isinstance(part[0], str):
        return f"<figure>{_part(part[1])}<figcaption>{html.escape(part[0])}</figcaption></figure>"
    if isinstance(part, str):
        return _paragraph(part)
    if isinstance(part, Report):
        return part.to_html()
    if hasattr(part, "savefig"):
        return _figure(part)
    for method in ("_repr_html_", "_repr_svg_"):
        shown = getattr(part, method, lambda: None)()
        if shown is not None:
            return str(shown)
    picture = _png(part)
    if picture is None:
        raise TypeError(
            f"the tour cannot show a {type(part).__name__}; expected text, a report or a picture"
        )
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(picture).decode()}">'


def _figure(figure: Any) -> str:
    stream = io.StringIO()
    figure.savefig(stream, format="svg", bbox_inches="tight")
    if hasattr(figure, "number"):  # made by pyplot, which would keep it for ever
        from matplotlib import pyplot

        pyplot.close(figure)
    text = stream.getvalue()
    return text[text.index("<svg") :]


def _png(part: Any) -> bytes | None:
    if isinstance(part, bytes):
        return part
    if hasattr(part, "_repr_png_"):
        drawn: bytes | None = part._repr_png_()
        return drawn
    return None


def _paragraph(text: str) -> str:
    return f"<p>{html.escape(text)}</p>" if text else ""


def _page(bodies: list[str], failures: list[str]) -> str:
    from sci import __version__

    notes = "".join(f"<p><strong>Not shown.</strong> {html.escape(line)}</p>" for line in failures)
    today = datetime.date.today().isoformat()
    return _PAGE.format(body="".join(bodies), notes=notes, version=__version__, today=today)


_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>sciflows: a tour</title>
<style>
body {{ max-width: 70rem; margin: 2rem auto; padding: 0 1rem; line-height: 1.5;
  font-family: system-ui, sans-serif; color: #1a1a1a; background: #fff; }}
h1, h2 {{ line-height: 1.2; }} section {{ margin-top: 2.5rem; }}
table {{ border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto;
  font-size: .85rem; }}
caption {{ text-align: left; font-weight: 600; }}
th, td {{ padding: .25rem .45rem; white-space: nowrap; border-bottom: 1px solid #ddd;
  font-variant-numeric: tabular-nums; }}
img, svg {{ max-width: 100%; height: auto; background: #fff; }} figure {{ margin: 1rem 0; }}
figcaption, footer {{ color: #555; font-size: .9rem; }}
</style></head><body>
<h1>sciflows: a tour</h1>
<p>Pictures and tables that the shipped models made when this page was built. Every table names what it
rests on; the floor is real data against real data at the same number of samples.</p>
{body}{notes}
<footer><p>sciflows {version}, {today}</p></footer>
</body></html>
"""
