"""Guidance of gdss-qm9: the surrogate of properties, molecules of wanted properties, completions of scaffolds.

    python benchmarks/guidance.py -o benchmarks/results/guidance_gdss_qm9.md
    python benchmarks/guidance.py --parts surrogate
    python benchmarks/guidance.py --parts --picture docs/pictures/scaffold.png

Properties are RDKit's, never the surrogate's. Beside every guided row stand unguided molecules and the best of k of
them, chosen by RDKit's own property (which the guided ones never see), where k is what the same CPU time makes. The
strength of guidance is chosen on a sampling seed of its own, by the mean absolute error over the targets in standard
deviations; the table is made with other seeds.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sci
from sci.graphs import guided, load
from sci.graphs.descriptors import PROPERTIES, measure
from sci.graphs.molecules import Molecules
from sci.graphs.properties import PropertySurrogate
from sci.graphs.scaffolds import Scaffold
from sci.report import Report, Value

TARGETS: tuple[dict[str, float], ...] = (
    {"logp": -1.5},
    {"logp": 1.0},
    {"logp": 2.5},
    {"qed": 0.35},
    {"qed": 0.6},
    {"logp": 1.0, "qed": 0.55},
)
SCAFFOLDS = {
    "epoxide, one place": "*C1CO1",
    "furan": "c1ccoc1",
    "amide": "NC=O",
    "benzene, one place": "*c1ccccc1",
    "cyclopropane and methanol, to be joined": "C1CC1.CO",
}
STRENGTHS = (1.0, 4.0, 8.0, 16.0)
CHOOSING_SEED = 100


def main() -> None:
    """Reads the command line, measures, prints and writes the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parts = ("surrogate", "properties", "scaffolds")
    parser.add_argument("--parts", nargs="*", choices=parts, default=parts)
    parser.add_argument("--n", type=int, default=150)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--surrogate", default="properties-qm9")
    parser.add_argument("-o", "--out", type=Path, help="a Markdown file")
    parser.add_argument("--picture", type=Path, help="where to draw scaffolds and completions")
    options = parser.parse_args()
    torch.set_num_threads(1)
    reports: list[Report] = []
    for part in options.parts:
        began = time.process_time()
        for report in globals()[f"measure_{part}"](options):
            report.notes["CPU seconds of this part"] = round(time.process_time() - began)
            print(report, flush=True)
            reports.append(report)
    if options.picture is not None:
        draw(options.picture)
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join(report.to_markdown() for report in reports), "utf-8")


# --- the surrogate -----------------------------------------------------------------------------


def measure_surrogate(options: argparse.Namespace) -> list[Report]:
    """Errors on test molecules: as they are, and through the generator at several path times."""
    model: Any = sci.load(options.surrogate)
    source = load.molecules("qm9")
    test, train = source.test, source.train.resample(20_000, seed=0)
    truth, known = measure(test), measure(train)
    rows: dict[str, dict[str, Value]] = {
        "surrogate": _errors(model.predict(test), truth),
        "linear in the numbers of atoms and bonds": _errors(
            _counted(test) @ np.linalg.lstsq(_counted(train), known, rcond=None)[0], truth
        ),
        "the training molecules' mean": _errors(np.tile(known.mean(0), (len(test), 1)), truth),
    }
    clean = Report(
        f"{options.surrogate}: {len(test)} test molecules of QM9 against RDKit",
        rows,
        {
            "rmse": "in the property's own unit (logP, QED: none; weight: g/mol; TPSA: square angstrom)",
            "parameters": sum(p.numel() for p in model.parameters()),
        },
    )
    times = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9)
    noised = {f"t = {t}": _noised_row(model, test.resample(2000, seed=1), t) for t in times}
    through = Report(
        f"{options.surrogate}: what it says of the predictions of {model.config.denoiser} for noised molecules",
        noised,
        {
            "n": "2,000 test molecules",
            "R2": "of the predicted mean; it is 0 where nothing is decided yet",
            "z": "root mean square of (truth - mean) / predicted standard deviation; 1 is honest",
        },
    )
    return [clean, through]


def _errors(predicted: np.ndarray, truth: np.ndarray) -> dict[str, Value]:
    error = ((predicted - truth) ** 2).mean(0)
    row: dict[str, Value] = {}
    for k, name in enumerate(PROPERTIES):
        row[f"{name} rmse"] = float(error[k] ** 0.5)
        row[f"{name} R2"] = float(1 - error[k] / truth[:, k].var())
    return row


def _counted(molecules: Molecules) -> np.ndarray:
    atoms = [(molecules.atoms == k).sum(1) for k in range(len(molecules.vocabulary.atoms))]
    bonds = [(molecules.bonds == k).sum((1, 2)) / 2 for k in (1, 2, 3)]
    return np.stack([np.ones(len(molecules)), *atoms, *bonds], 1)


@torch.no_grad()
def _noised_row(model: PropertySurrogate, molecules: Molecules, t: float) -> dict[str, Value]:
    generator: Any = sci.load(model.config.denoiser)
    random = torch.Generator().manual_seed(0)
    nodes, edges, mask = model.probabilities(molecules)
    data = {"nodes": nodes - generator.node_law, "edges": edges - generator.edge_law}
    state = {}
    for name, path in generator.paths.items():
        leaf = path.space.project(data[name], mask)
        state[name] = path.corrupt(leaf, path.space.random(leaf, mask, random), t)
    found = generator.denoiser()(state, t, {"mask": mask})
    mean, log_std = model(
        found["nodes"] + generator.node_law, found["edges"] + generator.edge_law, mask
    )
    truth = (torch.from_numpy(measure(molecules)) - model.means) / model.stds
    row: dict[str, Value] = {}
    for k, name in enumerate(PROPERTIES):
        error = mean[:, k] - truth[:, k]
        row[f"{name} R2"] = float(1 - error.square().mean() / truth[:, k].var())
        row[f"{name} z"] = float((error / log_std[:, k].exp()).square().mean().sqrt())
    return row


# --- properties --------------------------------------------------------------------------------


def measure_properties(options: argparse.Namespace) -> list[Report]:
    """Guided, unguided and best of k, for every target."""
    model: Any = sci.load("gdss-qm9")
    scale = dict(zip(*_spreads(options), strict=True))
    known = _known()
    strength, errors, dear = _chosen(model, options, scale)
    cheap = _timed(model, 100 * len(TARGETS), CHOOSING_SEED, steps=options.steps)[1]
    k = max(1, round(dear / cheap))
    tables: dict[str, dict[str, list[dict[str, Value]]]] = {}
    for seed in range(options.seeds):
        plain, cheap = _timed(model, options.n, seed, steps=options.steps)
        pool, _ = _timed(model, k * options.n, 1000 + seed, steps=options.steps)
        for target in TARGETS:
            title = ", ".join(f"{name} {value:g}" for name, value in target.items())
            table = tables.setdefault(" and ".join(target), {})
            steered, dear = _guided(model, options, target, strength, seed, options.n)
            distance = np.nan_to_num(_distance(pool, target, scale), nan=np.inf)
            best = pool[distance.reshape(options.n, k).argmin(1) + k * np.arange(options.n)]
            for label, molecules, count, milliseconds in (
                ("guided", steered, 1, dear),
                (f"best of {k}", best, k, k * cheap),
                ("unguided", plain, 1, cheap),
            ):
                row = _property_row(molecules, target, known)
                cost = {"NFE": float(count * molecules.attrs["nfe"]), "ms each": milliseconds}
                table.setdefault(f"{title}: {label}", []).append(row | cost)
            print(title, seed, table[f"{title}: guided"][-1], file=sys.stderr, flush=True)
    notes = {
        "n": f"{options.n} molecules a row and seed; mean and standard deviation over {options.seeds} sampling seeds",
        "MAE": "mean absolute error of RDKit's property of the valid molecules, per property",
        "strength": f"{strength:g}, chosen on seed {CHOOSING_SEED} by the error in standard deviations: "
        + ", ".join(f"{w:g}: {error:.3f}" for w, error in errors.items()),
        "best of k": f"{k} unguided molecules take the CPU time of a guided one; RDKit chooses",
        "NFE": f"network evaluations a molecule at {options.steps} steps; the way back through the network counts "
        "as one",
        "ms each": "CPU milliseconds a molecule, one thread of a shared machine, RDKit not counted",
        "uniqueness": "distinct SMILES of valid molecules; novelty: distinct ones not in the training set",
    }
    reports = [
        Report(
            f"gdss-qm9: molecules of wanted {name}",
            {row: _over_seeds(found) for row, found in table.items()},
        )
        for name, table in tables.items()
    ]
    reports[-1].notes.update(notes)
    return reports


def _chosen(
    model: Any, options: argparse.Namespace, scale: Mapping[str, float]
) -> tuple[float, dict[float, float], float]:
    """The strength, the error of each, and CPU milliseconds a guided molecule."""
    errors, costs = {}, []
    for strength in STRENGTHS:
        found = []
        for target in TARGETS:
            molecules, milliseconds = _guided(model, options, target, strength, CHOOSING_SEED, 100)
            found.append(np.nanmean(_distance(molecules, target, scale)))
            costs.append(milliseconds)
        errors[strength] = float(np.mean(found))
        print(strength, errors[strength], file=sys.stderr, flush=True)
    return min(errors, key=lambda strength: errors[strength]), errors, float(np.mean(costs))


@cache
def _known() -> set[str | None]:
    """SMILES of the training molecules, as the arrays give them back."""
    return set(load.molecules("qm9").train.smiles)


def _spreads(options: argparse.Namespace) -> tuple[tuple[str, ...], tuple[float, ...]]:
    config: Any = sci.load(options.surrogate).config
    return config.properties, config.stds


def _timed(model: Any, n: int, seed: int, **fields: Any) -> tuple[Molecules, float]:
    """Molecules, and CPU milliseconds each."""
    began = time.process_time()
    molecules = model.sample(n, seed=seed, progress=False, **fields)
    return molecules, 1000 * (time.process_time() - began) / n


def _guided(
    model: Any,
    options: argparse.Namespace,
    target: Mapping[str, float],
    w: float,
    seed: int,
    n: int,
) -> tuple[Molecules, float]:
    return _timed(
        model,
        n,
        seed,
        steps=options.steps,
        targets=dict(target),
        guidance=w,
        surrogate=options.surrogate,
    )


def _distance(
    molecules: Molecules, target: Mapping[str, float], scale: Mapping[str, float]
) -> np.ndarray:
    """(G,) mean over the properties of the absolute error in standard deviations; NaN where not valid."""
    found = measure(molecules, list(target))
    wanted, unit = np.array(list(target.values())), np.array([scale[name] for name in target])
    return np.abs((found - wanted) / unit).mean(1)


def _property_row(
    molecules: Molecules, target: Mapping[str, float], known: set[str | None]
) -> dict[str, Value]:
    found = measure(molecules, list(target))
    row: dict[str, Value] = {}
    for k, (name, value) in enumerate(target.items()):
        column = found[:, k][~np.isnan(found[:, k])]
        row |= {
            f"{name}": float(column.mean()),
            f"{name} spread": float(column.std()),
            f"{name} MAE": float(np.abs(column - value).mean()),
        }
    return row | _quality(molecules, known)


def _quality(molecules: Molecules, known: set[str | None]) -> dict[str, Value]:
    valid = [text for text in molecules.smiles if text is not None]
    distinct = set(valid)
    return {
        "validity": float(molecules.valid.mean()),
        "connected": float(molecules.connected.mean()),
        "uniqueness": len(distinct) / max(len(valid), 1),
        "novelty": len(distinct - known) / max(len(distinct), 1),
    }


# --- scaffolds ---------------------------------------------------------------------------------


def measure_scaffolds(options: argparse.Namespace) -> list[Report]:
    """Completions of each scaffold: with the known part put in only, with repeats, and guided."""
    model: Any = sci.load("gdss-qm9")
    known = _known()
    kinds: dict[str, dict[str, Any]] = {
        "replaced only": {"guidance": 0.0},
        "repeated 4 times": {"guidance": 0.0, "repeats": 4},
        "guided": {},
        "guided, 50 steps": {"steps": 50},
    }
    rows: dict[str, dict[str, Value]] = {}
    for title, smiles in SCAFFOLDS.items():
        scaffold = Scaffold.from_smiles(smiles)
        for label, fields in kinds.items():
            found = []
            for seed in range(options.seeds):
                asked = {"steps": options.steps, **fields, "scaffold": smiles}
                molecules, milliseconds = _timed(model, options.n, seed, **asked)
                found.append(
                    {"kept": float(scaffold.kept(molecules).mean())}
                    | _quality(molecules, known)
                    | {"NFE": float(molecules.attrs["nfe"]), "ms each": milliseconds}
                )
            rows[f"{title}: {label}"] = _over_seeds(found)
        print(
            Report(title, {k: v for k, v in rows.items() if k.startswith(title)}), file=sys.stderr
        )
    notes = {
        "n": f"{options.n} molecules a row and seed; mean and standard deviation over {options.seeds} sampling seeds",
        "scaffolds": ", ".join(f"{title} {smiles}" for title, smiles in SCAFFOLDS.items()),
        "kept": "atoms, bonds, absent bonds and closed atoms are those of the scaffold, on the molecule's first atoms",
        "guided": f"strength {guided.SCAFFOLD_STRENGTH:g}, the default",
    }
    return [Report("gdss-qm9: completions of scaffolds", rows, notes)]


def draw(path: Path, completions: int = 5) -> None:
    """A row for each scaffold: itself, and its first completions of seed 0, none of them picked."""
    model: Any = sci.load("gdss-qm9")
    parts, labels, marks = [], [], []
    for title in ("epoxide, one place", "furan", "amide", "benzene, one place"):
        scaffold = Scaffold.from_smiles(SCAFFOLDS[title])
        atoms, bonds = np.array([scaffold.nodes]), np.array([scaffold.edges])
        made = model.sample(
            completions, seed=0, scaffold=SCAFFOLDS[title], steps=50, progress=False
        )
        parts += [Molecules(atoms, bonds, made.vocabulary), made]
        labels += [f"scaffold {SCAFFOLDS[title]}", *[text or "not valid" for text in made.smiles]]
        marks += [range(len(scaffold))] * (1 + completions)
    columns = 1 + completions
    picture = Molecules.concat(parts).plot(
        count=len(marks), columns=columns, size=200, labels=labels, highlight=marks
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    picture.save(path)


def _over_seeds(rows: Sequence[Mapping[str, Value]]) -> dict[str, Value]:
    """Mean and standard deviation of every column over the seeds; constants stay numbers."""
    out: dict[str, Value] = {}
    for column in rows[0]:
        values = np.array([row[column] for row in rows], dtype=float)
        alike = len(values) == 1 or column == "NFE" or np.ptp(values) == 0
        out[column] = (
            float(values.mean()) if alike else (float(values.mean()), float(values.std(ddof=1)))
        )
    return out


if __name__ == "__main__":
    main()
