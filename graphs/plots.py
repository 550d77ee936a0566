"""Pictures: molecules drawn by RDKit, graphs and tables of metrics drawn by matplotlib."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from sci.graphs.dense import Graphs
from sci.graphs.molecules import Molecules

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from PIL.Image import Image

    from sci.report import Report

_INK = "#22303c"
_MODEL = "#2f6f9f"
_OTHER = "#b9c4cc"
_EDGE = "#93a1ad"
_ACCENT = "#d9822b"
# Height of a graph's panel for a width of 1.
_ASPECT = 0.75


def molecule_grid(
    molecules: Molecules,
    count: int = 12,
    columns: int = 4,
    size: int = 220,
    labels: Sequence[str] | None = None,
    skip_invalid: bool = False,
    highlight: Sequence[Sequence[int]] | None = None,
) -> Image:
    """A grid picture of molecules.

    Arguments:
        molecules: Molecules; the first ``count`` are drawn.
        count: How many at most.
        columns: Pictures per row.
        size: Width and height of one picture in pixels.
        labels: A line below each picture; the SMILES when None, "not valid" where there is none.
        skip_invalid: Draw the first valid ones instead. Otherwise a molecule that is not valid is drawn as it was
            built, and labelled so.
        highlight: For each picture the atoms to be marked, with the bonds between them; not with ``skip_invalid``.

    Returns:
        A PIL image; ``image.save("molecules.png")`` writes it.

    Raises:
        ValueError: There is nothing to draw, or there are too few labels or highlights.
    """
    from PIL import Image as images
    from rdkit import Chem
    from rdkit.Chem.Draw import rdMolDraw2D
    from rdkit.rdBase import BlockLogs

    from sci.graphs import building

    if skip_invalid:
        if highlight is not None:
            raise ValueError("highlight cannot follow skip_invalid; choose the molecules yourself.")
        molecules = molecules[: 10 * count]
        molecules = molecules[molecules.valid]
    molecules = molecules[:count]
    if not len(molecules):
        raise ValueError("There are no molecules to draw.")
    columns = min(columns, len(molecules))
    rows = -(-len(molecules) // columns)
    drawn = []
    with BlockLogs():
        raw = building.build(molecules.atoms, molecules.bonds, molecules.vocabulary)
        for good, built in zip(molecules.mols, raw, strict=True):
            mol = Chem.Mol(built if good is None else good)
            if good is None:
                mol.UpdatePropertyCache(strict=False)
                Chem.FastFindRings(mol)
            drawn.append(
                rdMolDraw2D.PrepareMolForDrawing(mol, kekulize=good is not None, addChiralHs=False)
            )
    texts = _labels(labels, [s or "not valid" for s in molecules.smiles])
    texts = [_shortened(text, size) for text in texts]
    canvas = rdMolDraw2D.MolDraw2DCairo(columns * size, rows * size, size, size)
    # Its type stub declares every option to be of the class itself.
    style: Any = canvas.drawOptions()
    style.padding = 0.07
    style.bondLineWidth = 2
    style.fixedBondLength = size / 5.5
    style.maxFontSize = max(12, size // 13)
    style.legendFontSize = _legend_height(size)
    style.legendFraction = 0.11
    style.setLegendColour((0.35, 0.40, 0.45))
    style.drawMolsSameScale = False
    style.setHighlightColour((0.97, 0.80, 0.55))
    marked = _marked(drawn, highlight)
    canvas.DrawMolecules(drawn, legends=texts, highlightAtoms=marked[0], highlightBonds=marked[1])
    canvas.FinishDrawing()
    return images.open(io.BytesIO(canvas.GetDrawingText()))


def graph_grid(
    graphs: Graphs,
    count: int = 12,
    columns: int = 4,
    size: float = 2.2,
    seed: int = 0,
    labels: Sequence[str] | None = None,
) -> Figure:
    """A grid picture of graphs by a spring layout; nodes are coloured by their degree.

    Arguments:
        graphs: Graphs; the first ``count`` are drawn.
        count: How many at most.
        columns: Pictures per row.
        size: Width and height of one picture in inches.
        seed: Seed of the layout, so that the same graph looks the same.
        labels: A line above each picture; numbers of nodes and edges when None.

    Returns:
        A matplotlib figure; ``figure.savefig("graphs.png")`` writes it.

    Raises:
        ValueError: There is nothing to draw, or there are too few labels.
    """
    from matplotlib.figure import Figure

    graphs = graphs[:count]
    if not len(graphs):
        raise ValueError("There are no graphs to draw.")
    columns = min(columns, len(graphs))
    rows = -(-len(graphs) // columns)
    figure = Figure(
        figsize=(columns * size, rows * (_ASPECT * size + 0.18)), dpi=150, facecolor="white"
    )
    panels = figure.subplots(rows, columns, squeeze=False).ravel()
    figure.subplots_adjust(left=0.01, right=0.99, bottom=0.01, top=0.95, wspace=0.04, hspace=0.12)
    counts = zip(graphs.sizes.tolist(), graphs.edge_counts.tolist(), strict=True)
    texts = _labels(labels, [f"{n} nodes, {e} edges" for n, e in counts])
    for panel in panels:
        panel.set_axis_off()
    for panel, adjacency, text in zip(panels, graphs, texts, strict=False):
        _draw_graph(panel, adjacency, size, seed)
        panel.set_title(text, fontsize=7.5, color=_INK, pad=2)
    return figure


def metric_bars(report: Report, columns: Sequence[str] | None = None, width: float = 2.1) -> Figure:
    """A report as bars: one panel a column, one bar a row, with spreads; the first row stands out.

    Arguments:
        report: A table of :meth:`Molecules.evaluate` or :meth:`Graphs.evaluate`.
        columns: Which columns; all but ``n`` when None.
        width: Width of one panel in inches.

    Raises:
        KeyError: The report has no such column.
    """
    from matplotlib.figure import Figure

    chosen = list(columns) if columns is not None else [c for c in report.columns if c != "n"]
    unknown = [c for c in chosen if c not in report.columns]
    if unknown:
        raise KeyError(f"The report has no columns {unknown}; it has {', '.join(report.columns)}.")
    names = list(report.rows)
    figure = Figure(
        figsize=(width * len(chosen) + 1.6, 0.34 * len(names) + 0.9), dpi=150, facecolor="white"
    )
    panels = figure.subplots(1, len(chosen), squeeze=False, sharey=True)[0]
    places = np.arange(len(names))[::-1]
    for panel, column in zip(panels, chosen, strict=True):
        entries = [report.rows[name].get(column) for name in names]
        pairs = [entry if isinstance(entry, tuple) else (entry, None) for entry in entries]
        for place, (value, spread), colour in zip(
            places, pairs, [_MODEL, *[_OTHER] * len(names)], strict=False
        ):
            if value is None:
                panel.text(0, place, "  not defined", va="center", fontsize=7, color=_EDGE)
                continue
            panel.barh(place, value, height=0.62, color=colour, xerr=spread, ecolor=_INK, capsize=2)
            panel.text(
                value + (spread or 0), place, f"  {value:.3g}", va="center", fontsize=7, color=_INK
            )
        largest = max((v + (s or 0) for v, s in pairs if v is not None), default=1.0)
        panel.set_xlim(0, max(largest, 1e-12) * 1.32)
        panel.set_title(column, fontsize=9, color=_INK)
        panel.set_yticks(places, names, fontsize=8, color=_INK)
        panel.locator_params(axis="x", nbins=3)
        _bare(panel)
        panel.tick_params(axis="y", length=0)
    figure.tight_layout()
    return figure


def metric_curves(
    curves: Mapping[str, Sequence[tuple[float, float] | tuple[float, float, float]]],
    x: str = "network evaluations",
    y: str = "FCD",
    floor: float | None = None,
    log: bool = True,
) -> Figure:
    """A quality against a cost, one line per sampler or model, with the floor as a dashed line.

    Arguments:
        curves: Name to points (cost, quality) or (cost, quality, spread).
        x, y: What the axes show.
        floor: What real data score.
        log: Logarithmic cost axis.

    Raises:
        ValueError: There are no curves.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("There are no curves to draw.")
    figure = Figure(figsize=(4.8, 3.2), dpi=150, facecolor="white")
    panel = figure.subplots()
    colours = [_MODEL, _ACCENT, "#4d8f61", "#8a5a9e", "#b0413e", "#5c6f7d"]
    for k, (name, points) in enumerate(curves.items()):
        table = np.array([[*point, 0.0][:3] for point in sorted(points)])
        panel.errorbar(
            table[:, 0],
            table[:, 1],
            yerr=table[:, 2] if table[:, 2].any() else None,
            label=name,
            color=colours[k % len(colours)],
            marker="o",
            markersize=4,
            linewidth=1.6,
            capsize=2,
        )
    if floor is not None:
        panel.axhline(floor, color=_EDGE, linestyle="--", linewidth=1, label="floor: real data")
    if log:
        panel.set_xscale("log")
        costs = sorted({point[0] for points in curves.values() for point in points})
        panel.set_xticks(costs, [f"{cost:g}" for cost in costs], minor=False)
        panel.minorticks_off()
    panel.set_xlabel(x, fontsize=9, color=_INK)
    panel.set_ylabel(y, fontsize=9, color=_INK)
    panel.set_ylim(bottom=0)
    panel.legend(frameon=False, fontsize=8, labelcolor=_INK)
    _bare(panel, left=True)
    figure.tight_layout()
    return figure


def png_bytes(picture: Image | Figure) -> bytes:
    """A picture of this module as the bytes of a PNG file."""
    stream = io.BytesIO()
    if hasattr(picture, "savefig"):
        picture.savefig(stream, format="png")
    else:
        picture.save(stream, format="PNG")
    return stream.getvalue()


def _labels(given: Sequence[str] | None, default: list[str]) -> list[str]:
    if given is None:
        return default
    if len(given) < len(default):
        raise ValueError(
            f"There are {len(given)} labels for {len(default)} pictures; give one each."
        )
    return [str(text) for text in given[: len(default)]]


def _marked(
    mols: Sequence[Any], highlight: Sequence[Sequence[int]] | None
) -> tuple[list[list[int]], list[list[int]]]:
    """Atoms and bonds of each picture that are highlighted."""
    if highlight is None:
        return [[] for _ in mols], [[] for _ in mols]
    if len(highlight) < len(mols):
        raise ValueError(
            f"There are {len(highlight)} highlights for {len(mols)} pictures; give one each."
        )
    atoms = [[int(k) for k in chosen] for chosen in highlight[: len(mols)]]
    bonds = [
        [
            bond.GetIdx()
            for bond in mol.GetBonds()
            if {bond.GetBeginAtomIdx(), bond.GetEndAtomIdx()} <= set(chosen)
        ]
        for mol, chosen in zip(mols, atoms, strict=True)
    ]
    return atoms, bonds


def _legend_height(size: int) -> int:
    return max(11, size // 16)


def _shortened(text: str, size: int) -> str:
    # RDKit would shrink a long legend until it cannot be read.
    most = max(8, int(0.92 * size / (0.58 * _legend_height(size))))
    return text if len(text) <= most else text[: most - 3] + "..."


def _draw_graph(panel: Axes, adjacency: np.ndarray, size: float, seed: int) -> None:
    import networkx
    from matplotlib.collections import LineCollection

    graph = networkx.from_numpy_array(adjacency)
    if not len(graph):
        return
    if len(graph) > 60:
        # A spring layout that starts from the spectral one untangles large graphs.
        start = networkx.spectral_layout(graph)
        jitter = np.random.default_rng(seed).normal(0, 1e-3, (len(graph), 2))
        start = {node: start[node] + jitter[node] for node in graph}
        places = networkx.spring_layout(graph, pos=start, seed=seed, iterations=100, method="force")
    else:
        places = networkx.kamada_kawai_layout(graph) if networkx.is_connected(graph) else None
        places = networkx.spring_layout(graph, pos=places, seed=seed, iterations=40, method="force")
    xy = _upright(np.array([places[node] for node in range(len(graph))]).reshape(-1, 2))
    i, j = np.nonzero(np.triu(adjacency))
    lines = list(np.stack([xy[i], xy[j]], 1))
    scale = size * 72 / np.sqrt(max(len(graph), 1))
    panel.add_collection(
        LineCollection(lines, colors=_EDGE, linewidths=min(1.2, scale / 22), alpha=0.8, zorder=1)
    )
    degree = adjacency.sum(1)
    panel.scatter(
        xy[:, 0],
        xy[:, 1],
        s=np.clip((scale / 4.2) ** 2, 4, 70),
        c=degree,
        cmap="viridis_r",
        vmin=0,
        vmax=max(int(degree.max(initial=0)), 1),
        edgecolors="white",
        linewidths=0.6,
        zorder=2,
    )
    panel.set_aspect("equal")
    panel.set_xlim(-1.12, 1.12)
    panel.set_ylim(-1.12 * _ASPECT, 1.12 * _ASPECT)


def _upright(xy: np.ndarray) -> np.ndarray:
    """Turns a layout so that its long axis lies flat, and scales it to fill its panel."""
    middle = xy - xy.mean(0)
    axes = np.linalg.svd(middle, full_matrices=False)[2] if len(xy) > 2 else np.eye(2)
    turned = middle @ axes.T
    turned -= (turned.max(0) + turned.min(0)) / 2
    return turned / max(np.abs(turned / [1, _ASPECT]).max(), 1e-12)


def _bare(panel: Axes, left: bool = False) -> None:
    for side in ("top", "right", *(() if left else ("left",))):
        panel.spines[side].set_visible(False)
    for side in ("bottom", "left"):
        panel.spines[side].set_color(_OTHER)
    panel.tick_params(colors=_INK, labelsize=7.5, length=2, color=_OTHER)
