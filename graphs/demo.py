"""The graphs wing's part of the tour: real molecules and graphs from the shipped weights, judged."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sci.demo import Section

__all__ = ["demo"]

_MOLECULES = 1000
_GRAPHS = 12
_GUIDED = 100
_TARGETS = (-1.0, 1.0, 2.5)


def demo(folder: Path) -> Iterator[Section]:
    """Generates molecules and graphs, writes them to files, and yields what the page shows.

    ``molecules.smi``, ``molecules.sdf``, ``molecules.h5``, ``molecules.png`` and ``metrics.json`` are left in
    the folder.

    Arguments:
        folder: The folder of the tour.
    """
    yield _molecules(folder)
    yield _guided()
    for name, text in (
        ("gdss-community-small", "Graphs of two communities, 12 to 20 nodes."),
        ("gdss-ego-small", "Neighbourhoods in a citation network, 4 to 17 nodes."),
    ):
        yield _graphs(name, text)


def _molecules(folder: Path) -> Section:
    import sci

    model = sci.load("gdss-qm9")
    began = time.process_time()
    molecules = model.sample(_MOLECULES, seed=0)
    seconds = time.process_time() - began
    folder.mkdir(parents=True, exist_ok=True)
    for suffix in ("smi", "sdf", "h5"):
        molecules.write(folder / f"molecules.{suffix}")
    picture = molecules.plot(count=24, columns=6)
    picture.save(folder / "molecules.png")
    report = molecules.evaluate("qm9", draws=2, nspdk=0)
    report.notes["nfe"] = molecules.attrs["nfe"]
    report.notes["sampling seed"] = 0
    report.notes["cost"] = f"{seconds:.1f} CPU seconds for {_MOLECULES} molecules"
    report.write(folder / "metrics.json")
    return Section(
        "Molecules of up to nine heavy atoms",
        f"{_MOLECULES} molecules by the mended GDSS trained on QM9, {molecules.attrs['nfe']} network "
        f"evaluations each, {seconds:.1f} CPU seconds in all. The same molecules are in molecules.smi, "
        "molecules.sdf and molecules.h5 beside this page.",
        parts=[("The first 24, as generated; none was picked.", picture), report],
    )


def _guided() -> Section:
    import sci
    from sci.graphs import descriptors, plots
    from sci.report import Report

    model = sci.load("gdss-qm9")
    completed = model.sample(_GRAPHS, seed=0, scaffold="*C1CO1")
    oxirane = range(3)  # a scaffold's atoms come first
    picture = plots.molecule_grid(completed, _GRAPHS, 6, highlight=[oxirane] * _GRAPHS)
    rows: dict[str, dict[str, Any]] = {}
    for target in (None, *_TARGETS):
        wish: dict[str, Any] = {} if target is None else {"targets": {"logp": target}}
        molecules = model.sample(_GUIDED, seed=0, **wish)
        found = descriptors.measure(molecules, ["logp"])[:, 0]
        rows["unguided" if target is None else f"logP {target:g}"] = {
            "logP": (float(np.nanmean(found)), float(np.nanstd(found))),
            "validity": float(molecules.valid.mean()),
            "evaluations": float(molecules.attrs["nfe"]),
        }
    report = Report(
        f"{_GUIDED} molecules a row",
        rows,
        {"logP": "Crippen's, by RDKit: mean and standard deviation", "sampling seed": 0},
    )
    return Section(
        "Steered",
        "The same model, unchanged: molecules that keep a given part, and molecules of a wanted logP.",
        parts=[("Completions of an oxirane, none picked.", picture), report],
    )


def _graphs(name: str, text: str) -> Section:
    import sci

    graphs = sci.load(name).sample(_GRAPHS, seed=0)
    return Section(
        f"Graphs: {name}",
        text,
        parts=[
            (f"The first {_GRAPHS} of sampling seed 0.", graphs.plot(count=_GRAPHS, columns=6)),
            f"How they compare with the test graphs is in the model's card; sci evaluate {name} "
            "measures it again.",
        ],
    )
