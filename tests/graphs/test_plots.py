"""Pictures are drawn without a screen, and show what they are given."""

from __future__ import annotations

import io

import networkx
import numpy as np
import pytest
from PIL import Image

from sci.graphs import plots
from sci.graphs.dense import Graphs
from sci.graphs.molecules import Molecules
from sci.report import Report

MOLECULES = Molecules.from_smiles(["CCO", "c1ccccc1", "CC(=O)OC1CCCCC1", "C#N", "N"])
INVALID = Molecules(np.array([[3, 3]]), np.array([[[0, 2], [2, 0]]]))


def ink(picture: Image.Image) -> np.ndarray:
    """Where a picture is not white."""
    return (np.asarray(picture.convert("L")) < 200).astype(int)


def test_each_molecule_has_its_place_in_the_grid():
    picture = plots.molecule_grid(MOLECULES, columns=3, size=120)
    assert picture.size == (360, 240)
    cells = [
        ink(picture)[120 * i : 120 * i + 120, 120 * j : 120 * j + 120].sum()
        for i in (0, 1)
        for j in (0, 1, 2)
    ]
    assert all(cell > 50 for cell in cells[:5]) and cells[5] == 0


def test_a_molecule_that_is_not_valid_is_drawn_or_skipped():
    both = Molecules.concat([INVALID, MOLECULES[:1]])
    assert plots.molecule_grid(both, size=100).size == (200, 100)
    assert ink(plots.molecule_grid(INVALID, size=100)).sum() > 50
    assert plots.molecule_grid(both, size=100, skip_invalid=True).size == (100, 100)
    with pytest.raises(ValueError, match="no molecules"):
        plots.molecule_grid(INVALID, skip_invalid=True)


def test_long_labels_are_shortened():
    assert (
        plots._shortened("C" * 100, 220).endswith("...") and plots._shortened("CCO", 220) == "CCO"
    )


def test_graphs_are_drawn_the_same_way_twice():
    graphs = Graphs.from_networkx(
        [
            networkx.path_graph(1),
            networkx.path_graph(2),
            networkx.empty_graph(3),
            networkx.grid_2d_graph(8, 9),
        ]
    )
    first, second = (plots.png_bytes(graphs.plot(size=1.0)) for _ in range(2))
    assert first == second
    assert first != plots.png_bytes(graphs[::-1].plot(size=1.0))
    with pytest.raises(ValueError, match="no graphs"):
        plots.graph_grid(graphs[:0])


def test_a_layout_fills_its_panel():
    xy = plots._upright(np.random.default_rng(0).normal(size=(30, 2)) * [1, 5])
    assert np.ptp(xy[:, 0]) > np.ptp(xy[:, 1])
    assert np.abs(xy / [1, 0.75]).max() == pytest.approx(1)


def test_bars_and_curves():
    report = Report(
        "r", {"model": {"n": 3.0, "FCD": (1.0, 0.1), "validity": None}, "floor": {"FCD": 0.2}}
    )
    figure = plots.metric_bars(report)
    assert [panel.get_title() for panel in figure.axes] == ["FCD", "validity"]
    widths = [bar.get_width() for bar in figure.axes[0].patches]
    assert widths == [1.0, 0.2]
    with pytest.raises(KeyError, match="FCD"):
        plots.metric_bars(report, ["fcd"])
    figure = plots.metric_curves({"a": [(20, 1.0, 0.1), (10, 2.0)], "b": [(10, 1.0)]}, floor=0.5)
    (panel,) = figure.axes
    assert panel.lines[0].get_xdata().tolist() == [10, 20]
    with pytest.raises(ValueError, match="no curves"):
        plots.metric_curves({})


def test_notebooks_show_pictures():
    for thing in (MOLECULES, Graphs.from_networkx([networkx.cycle_graph(4)])):
        assert Image.open(io.BytesIO(thing._repr_png_())).format == "PNG"
    assert MOLECULES[:0]._repr_png_() is None


def test_too_few_labels_are_refused_and_more_are_left_over():
    graphs = Graphs.from_networkx([networkx.path_graph(3), networkx.path_graph(4)])
    with pytest.raises(ValueError, match="1 labels for 5 pictures"):
        plots.molecule_grid(MOLECULES, labels=["one"])
    with pytest.raises(ValueError, match="1 labels for 2 pictures"):
        plots.graph_grid(graphs, labels=["one"])
    figure = plots.graph_grid(graphs, labels=["one", "two", "three"])
    assert [panel.get_title() for panel in figure.axes] == ["one", "two"]


def test_a_graph_without_nodes_leaves_its_panel_empty():
    figure = Graphs.from_networkx([networkx.path_graph(3), networkx.Graph()]).plot()
    assert [panel.get_title() for panel in figure.axes] == ["3 nodes, 2 edges", "0 nodes, 0 edges"]
    assert [len(panel.collections) for panel in figure.axes] == [2, 0]
