"""10,000 QM9 molecules from the published GDSS checkpoint, by the published samplers.

The predictor-corrector sampler evaluates both networks 2,000 times a molecule (1,000 steps, as published), S4 100
times (100 steps). Molecules are made in chunks, one file each with the CPU time it took: a run that is stopped goes on
from the last chunk, and a second run of the same settings only judges. Each chunk is one batch. With ``--norm batch``,
as published, the corrector's step is averaged over the batch, so that a molecule depends on its chunk: the published
results had one chunk, ``--norm batch --chunk 10000``. With ``--norm item`` (ours) the chunk changes nothing but memory.

The published figures for the predictor-corrector are 0.957 (valency) and 2.900 (FCD), Jo, Lee and Hwang (2022).

Usage::

    OMP_NUM_THREADS=1 python benchmarks/gdss_published.py gdss_qm9.pth --sampler s4 pc [--n 10000] [-o report.json]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

STEPS = {"s4": 100, "pc": 1000}


def settings(options: argparse.Namespace, sampler: str) -> dict[str, Any]:
    """What the molecules of a run depend on, kept with every chunk."""
    from sci.files import sha256

    return {
        "checkpoint": sha256(options.checkpoint),
        "sampler": sampler,
        "steps": options.steps or STEPS[sampler],
        "norm": options.norm,
        "chunk": options.chunk,
        "seed": options.seed,
    }


@torch.no_grad()
def molecules(options: argparse.Namespace, sampler: str) -> tuple[Any, int, float]:
    """The molecules of a run, evaluations of the networks per molecule, and CPU seconds in all.

    Raises:
        ValueError: If the folder holds chunks of other settings.
    """
    from sci.graphs.gdss import GDSS
    from sci.graphs.molecules import Molecules
    from sci.noise import Noise

    model = GDSS.from_published(options.checkpoint)
    asked = settings(options, sampler)
    request = model.request(sampler=sampler, steps=asked["steps"], norm=options.norm)
    folder = options.folder / f"{sampler}-{asked['steps']}-{options.norm}"
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    bar = tqdm(range(0, options.n, options.chunk), desc=folder.name, unit="chunk")
    for start in bar:
        items = range(start, min(start + options.chunk, options.n))
        file = folder / f"{items.start:06d}-{items.stop:06d}.h5"
        if file.exists():
            part = Molecules.read(file)
            if part.attrs.get("settings") != asked:
                raise ValueError(
                    f"{file} was made with {part.attrs.get('settings')}, now {asked} is asked for: "
                    "give another --folder, or remove it"
                )
        else:
            cpu = time.process_time()
            part = model.generate(request, items, Noise(options.seed, items))
            part.attrs |= {"settings": asked, "cpu_seconds": time.process_time() - cpu}
            part.write(file)
        bar.set_postfix(cpu_seconds=f"{part.attrs['cpu_seconds']:.0f}")
        parts.append(part)
    seconds = sum(part.attrs["cpu_seconds"] for part in parts)
    return Molecules.concat(parts), parts[0].attrs["nfe"], seconds


def main() -> None:
    """Generate what is missing, judge, print."""
    from sci.report import Report

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("checkpoint", type=Path, help="the published file gdss_qm9.pth")
    parser.add_argument("--sampler", choices=STEPS, nargs="+", default=["s4"])
    parser.add_argument("--steps", type=int, help="in place of 100 (s4) and 1000 (pc)")
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--norm", choices=["item", "batch"], default="item")
    parser.add_argument("--chunk", type=int, default=1000, help="molecules a batch and a file")
    parser.add_argument("--seed", type=int, default=0, help="the sampling seed")
    parser.add_argument("--folder", type=Path, default=Path("build/gdss_published"))
    parser.add_argument("-o", "--out", type=Path, help="write the table (.json, .md or .html)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows: dict[str, Any] = {}
    notes: dict[str, Any] = {}
    for number, sampler in enumerate(options.sampler):
        drawn, evaluations, seconds = molecules(options, sampler)
        judged = drawn.evaluate("qm9", floor=number == 0, baseline=number == 0)
        found = dict(judged.rows)
        cost = {
            "NFE": evaluations,
            "CPU s": seconds,
            "CPU-ms a molecule": 1e3 * seconds / len(drawn),
        }
        rows[f"published checkpoint, {sampler}"] = found.pop("model") | cost
        rows |= {name: row for name, row in found.items() if name not in rows}
        notes |= judged.notes
    notes |= {"norm": options.norm, "chunk": options.chunk, "sampling seed": options.seed}
    report = Report(f"GDSS on QM9, {options.n} molecules, published weights", rows, notes)
    print(report)
    if options.out is not None:
        report.write(options.out)


if __name__ == "__main__":
    main()
