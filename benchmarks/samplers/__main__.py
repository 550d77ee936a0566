"""Error against network evaluations on exact mixtures, sciflows and its peers in one run.

    OMP_NUM_THREADS=1 python -m benchmarks.samplers                     # from the repository's root; about 2 minutes
    python -m benchmarks.samplers --mixtures 2 --only UniPC default     # a look

Every sampler of sciflows, diffusers, torchdiffeq, flow_matching, azula and k-diffusion runs in this process on the
same mixtures from the same noise (5 mixtures x 3 seeds, 128 samples each, 2 and 10 dimensions). The error of a sample
is its distance from the point that the exact probability flow of the same path reaches, from the same noise, at
sigma = 0. Peers run at their defaults and in the variants that their users choose. Budgets are upper bounds: what takes
two evaluations a step makes the most steps that fit.
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import logging
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from . import ours, picture, tables
from .mixtures import BATCH, Problems, errors

BUDGETS = (5, 8, 10, 15, 20, 50)
DIMENSIONS = (2, 10)
ROOT = Path(__file__).parents[2]
PACKAGES = {
    "diffusers": "diffusers",
    "torchdiffeq": "torchdiffeq",
    "flow_matching": "flow_matching",
    "azula": "azula",
    "k-diffusion": "k-diffusion",
}
NAMED = ["diffusers UniPC 2", "diffusers UniPC 3", "diffusers DPM++ 2M"]
OURS = f"sciflows {ours.DEFAULT}"
CURVES = {
    OURS: "sciflows default(exact=True)",
    "azula Rectified vAB 3": "azula, vAB 3, rectified",
    "torchdiffeq midpoint": "torchdiffeq, midpoint",
    "torchdiffeq rk4": "torchdiffeq, rk4",
    "diffusers UniPC 3 flow": "diffusers, UniPC 3, flow sigmas",
    "diffusers UniPC 2": "diffusers, UniPC 2",
    "diffusers DPM++ 2M": "diffusers, DPM++ 2M",
    "diffusers DDIM": "diffusers, DDIM",
}


def main() -> None:
    """Reads the command line, measures, prints, and writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mixtures", type=int, default=5)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="number of the first mixture")
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the rows")
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/samplers_mixtures.md"))
    parser.add_argument("--picture", default=str(ROOT / "docs/pictures/samplers_mixtures.png"))
    options = parser.parse_args()
    quiet()
    began = time.process_time()
    rows, versions = collect()
    if options.only:
        rows = {k: v for k, v in rows.items() if any(part in k for part in options.only)}
    problems = {
        dimension: Problems.draw(dimension, options.mixtures, options.seeds, options.first)
        for dimension in DIMENSIONS
    }
    results = tables.measure(rows, problems, BUDGETS, lambda line: print(line, file=sys.stderr))
    parts = [
        "# Samplers on exact mixtures",
        "",
        f"{options.mixtures} mixtures (five modes, standard deviations 0.15 to 0.4) x {options.seeds} seeds, "
        f"{BATCH} samples each; made by `python -m benchmarks.samplers`. Entries are errors of the samples "
        "against the exact flow from the same noise, geometric means over the mixtures and seeds; columns are "
        "budgets of network evaluations, in brackets what was used where it is less; the last column is the "
        "factor of one standard deviation over mixtures and seeds. The best of a column is bold.",
        "",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
        "",
    ]
    peers = [name for name in rows if not name.startswith("sciflows")]
    if OURS in rows and peers:
        named = [name for name in NAMED if name in rows]
        parts += ["## Ratios", "", tables.ratios(results, peers, OURS, named)]
    for dimension in DIMENSIONS:
        for statistic in tables.STATISTICS:
            table = tables.markdown(results, rows, dimension, statistic, OURS)
            parts += [f"## {dimension}-D, {statistic} over samples", "", table]
    if not options.only:
        note = "NFE is the mean over samples for sciflows, where each has its own steps."
        parts += ["## Adaptive solvers on the straight line", "", note, "", adaptive(problems)]
    text = "\n".join(parts)
    print(text)
    print(f"{time.process_time() - began:.0f} s of CPU time", file=sys.stderr)
    if not options.only:
        Path(options.out).write_text(text, encoding="utf-8")
        picture.draw(results, CURVES, options.picture)


def collect() -> tuple[dict[str, Any], dict[str, str]]:
    """All rows of the packages that are installed, by full name, and the versions."""
    rows = {f"sciflows {name}": run for name, run in ours.ROWS.items()}
    versions = {"torch": torch.__version__}
    for package, name in PACKAGES.items():
        try:
            versions[package] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            print(f"{package} is not installed and is left out", file=sys.stderr)
            continue
        module = importlib.import_module(
            ".diffusion_peers" if package == "diffusers" else ".flow_peers", __package__
        )
        found = module.ROWS if package == "diffusers" else module.ROWS[package]
        rows |= {f"{package} {label}": run for label, run in found.items()}
    return rows, versions


def adaptive(problems: dict[int, Problems]) -> str:
    """Adaptive solvers at several tolerances, one problem at a time: dopri5 chooses its step from the whole batch."""
    from . import flow_peers

    solvers = {
        "sciflows adaptive 5": lambda single, tolerance: ours.adaptive(single, tolerance, 5),
        "sciflows adaptive 3": lambda single, tolerance: ours.adaptive(single, tolerance, 3),
        "torchdiffeq dopri5": lambda single, tolerance: flow_peers.adaptive(
            single, tolerance, "dopri5"
        ),
        "torchdiffeq bosh3": lambda single, tolerance: flow_peers.adaptive(
            single, tolerance, "bosh3"
        ),
    }
    lines = ["| | tolerance | NFE | median | RMS |", "| --- | ---: | ---: | ---: | ---: |"]
    for dimension, together in problems.items():
        exact = together.exact(*flow_peers.CONDOT).chunk(len(together.means))
        for name, solve in solvers.items():
            for tolerance in (1e-2, 1e-3, 1e-4, 1e-5, 1e-7):
                found = []
                for single, target in zip(together.split(), exact, strict=True):
                    with torch.no_grad():
                        samples, nfe = solve(single, tolerance)
                    found.append((nfe, *(float(e[0]) for e in errors(single, samples, target))))
                nfe, median, rms = np.exp(np.log(np.array(found)).mean(0))
                lines.append(
                    f"| {name}, {dimension}-D | {tolerance:g} | {nfe:.0f} "
                    f"| {tables.short(median)} | {tables.short(rms)} |"
                )
    return "\n".join(lines) + "\n"


def quiet() -> None:
    """Silences what the peers say about each step."""
    warnings.filterwarnings("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)


if __name__ == "__main__":
    main()
