"""The picture: error against evaluations, a few named curves, labelled where they end."""

from __future__ import annotations

import os
from collections.abc import Mapping

import numpy as np

from .tables import Results

__all__ = ["draw"]

# Okabe and Ito's colours, which readers with any colour vision can tell apart.
_COLOURS = ("#000000", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#CC79A7", "#7F7F7F")


def draw(results: Results, curves: Mapping[str, str], path: str | os.PathLike[str]) -> None:
    """Writes the picture.

    Arguments:
        results: what was measured.
        curves: row -> label; the first one is drawn thicker.
        path: of the file.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    from matplotlib.ticker import NullFormatter, ScalarFormatter

    dimensions = sorted({dimension for _, dimension, _ in results})
    figure, axes = plt.subplots(1, len(dimensions), figsize=(11.5, 4.8), sharey=True)
    for axis, dimension in zip(np.atleast_1d(axes), dimensions, strict=True):
        ends = []
        for (name, label), colour in zip(curves.items(), _COLOURS, strict=False):
            cells = sorted(
                (cell.nfe, cell.mean("median"))
                for (row, size, _), cell in results.items()
                if row == name and size == dimension
            )
            if not cells:
                continue
            counts, values = zip(*dict(cells).items(), strict=True)
            first = name == next(iter(curves))
            axis.plot(
                counts,
                values,
                color=colour,
                linewidth=2.8 if first else 1.6,
                marker="o",
                markersize=5 if first else 3.5,
                zorder=3 if first else 2,
                clip_on=False,
            )
            ends.append((np.log10(values[-1]), counts[-1], label, colour, first))
        axis.set_xscale("log")
        axis.set_yscale("log")
        axis.set_xlim(3.7, 50)
        ticks = sorted({budget for _, _, budget in results})
        axis.set_xticks(ticks)
        axis.xaxis.set_major_formatter(ScalarFormatter())
        axis.xaxis.set_minor_formatter(NullFormatter())
        axis.minorticks_off()
        axis.grid(True, color="0.9", linewidth=0.8)
        for side in ("top", "right"):
            axis.spines[side].set_visible(False)
        axis.set_xlabel("network evaluations a sample")
        axis.set_title(f"{dimension} dimensions", loc="left")
        _labels(axis, ends)
    first_axis = np.atleast_1d(axes)[0]
    first_axis.set_ylabel("median distance from the exact sample")
    figure.tight_layout(w_pad=1.0)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _labels(axis, ends) -> None:
    """Labels at the ends of the curves, pushed apart so that none covers another."""
    low, high = np.log10(axis.get_ylim())
    gap = 0.047 * (high - low)
    ends = sorted(ends)
    places = [end[0] for end in ends]
    for _ in range(200):
        for below in range(len(places) - 1):
            lack = gap - (places[below + 1] - places[below])
            if lack > 0:
                places[below] -= lack / 2
                places[below + 1] += lack / 2
    for place, (value, count, label, colour, first) in zip(places, ends, strict=True):
        axis.annotate(
            label,
            (count, 10**value),
            (56, 10**place),
            color=colour,
            fontsize=9,
            fontweight="bold" if first else "normal",
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "linewidth": 0.6, "shrinkA": 1},
        )
