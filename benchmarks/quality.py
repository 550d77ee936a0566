"""Quality of a trained graph model: several sampling seeds, several budgets, beside real data.

    python benchmarks/quality.py gdss-qm9 --n 10000 --seeds 3 --steps 20 50 -o quality.md
    python benchmarks/quality.py gdss-community-small --reference community-small --n 1024

For every budget of network evaluations the model is sampled with seeds 0, 1, ...; the table shows mean and
standard deviation over the sampling seeds (the training seed is one), then the training set, the floor (real
data against the test set at the same n) and a trivial baseline. Costs are CPU time of this process.
"""

from __future__ import annotations

import argparse
import resource
import sys
import time
from typing import Any

import numpy as np
import torch

import sci
from sci.fields import parse
from sci.report import Report, Value


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a model's name or a checkpoint folder")
    parser.add_argument("--reference", default="qm9")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, nargs="+", default=[20, 50])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="FIELD=VALUE", help="request fields"
    )
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("-o", "--out", nargs="*", default=[], help="report.md, report.json, ...")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    report = measure(options)
    print(report)
    for path in options.out:
        report.write(path)


def measure(options: argparse.Namespace) -> Report:
    """The table of one model."""
    model = sci.load(options.model)
    fields = {keys[0]: value for keys, value in map(parse, options.set)}
    rows: dict[str, dict[str, Value]] = {}
    real: dict[str, Any] = {}
    for steps in options.steps:
        parts: dict[str, list[dict[str, Value]]] = {}
        for seed in range(options.seeds):
            began = time.process_time()
            data = model.sample(options.n, seed=seed, steps=steps, **fields)
            seconds = time.process_time() - began
            table = data.evaluate(options.reference, floor=not real, baseline=not real)
            print(f"{steps} evaluations, seed {seed}\n{table}", file=sys.stderr, flush=True)
            for name, row in table.rows.items():
                if name.startswith("model"):
                    cost = {"ms each": 1000 * seconds / options.n} if name == "model" else {}
                    parts.setdefault(name, []).append({**row, **cost})
            if not real:
                real = {k: v for k, v in table.rows.items() if not k.startswith("model")}
                notes = table.notes
        for name, found in parts.items():
            rows[f"{name}, {steps} evaluations"] = _over_seeds(found)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return Report(
        f"{options.model}: {options.n} samples against {options.reference}",
        rows | real,
        {
            **notes,
            "seeds": f"mean and standard deviation over {options.seeds} sampling seeds, one training seed",
            "ms each": f"CPU milliseconds a sample, {options.threads} thread",
            "peak memory": f"{peak:.0f} MB, metrics included",
        },
    )


def _over_seeds(rows: list[dict[str, Value]]) -> dict[str, Value]:
    """Mean and spread of every column; a spread that a seed brings itself (over chunks) is averaged."""
    out: dict[str, Value] = {}
    for column in rows[0]:
        values = [row[column] for row in rows]
        if any(value is None for value in values):
            out[column] = None
        elif any(isinstance(value, tuple) for value in values):
            out[column] = tuple(np.mean(values, axis=0).tolist())  # type: ignore[assignment,arg-type]
        elif column == "n" or len(values) == 1:
            out[column] = values[0]
        else:
            out[column] = (float(np.mean(values)), float(np.std(values, ddof=1)))  # type: ignore[arg-type]
    return out


if __name__ == "__main__":
    main()
