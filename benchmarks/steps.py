"""Quality of a trained graph model against the number of network evaluations, sampler by sampler.

    python benchmarks/steps.py gdss-qm9 --n 1000 -o benchmarks/results/steps_gdss_qm9.md
    python benchmarks/steps.py gdss-community-small --n 512

Every sampler starts from the same noise and ends with the data prediction. Molecules are judged against
training molecules that were held out from the weights, generic graphs against the training graphs: test data play no
part, so that defaults may be chosen from these tables. "distance" is the root mean square distance of the final state
from that of a fine run of the flow, for deterministic samplers only. Results are kept beside the table as they come:
the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sci
from sci import files, samplers
from sci.graphs.training_data import decode
from sci.noise import Noise
from sci.report import Report

Make = Callable[[int, Any], Any]
FINE = 400


def named(name: str, **settings: Any) -> Make:
    """A preset on the model's grid, ending with the data prediction."""
    return lambda steps, grid: samplers.preset(
        name, steps, **{"grid": grid, "final": "data", **settings}
    )


# The order falls at the end wherever it is above two: see the guide on samplers.
SAMPLERS: dict[str, Make] = {
    "default()": lambda steps, grid: samplers.default(steps),
    "unipc 2": named("unipc", order=2, lower_final=True),
    "unipc 3": named("unipc", order=3, lower_final=True),
    "abm 3": named("abm", order=3, lower_final=True),
    "dpmpp_2m": named("dpmpp_2m"),
    "dpmpp_2m, order falls": named("dpmpp_2m", lower_final=True),
    "dpmpp_2m, order falls, equal angles": named(
        "dpmpp_2m", lower_final=True, grid="uniform_angle"
    ),
    "dpmpp_2m, equal log-SNR": named("dpmpp_2m", grid="uniform_log_snr"),
    "dpmpp_3m": named("dpmpp_3m", lower_final=True),
    "deis 3": named("deis", order=3, lower_final=True),
    "dpm_solver 3": named("dpm_solver", order=3),
    "heun": named("heun"),
    "ddim": named("ddim"),
    "ancestral": named("ancestral"),
    "sde_dpmpp_2m": named("sde_dpmpp_2m"),
}
# What is drawn, and how: the best in black, stochastic samplers dashed.
DRAWN: dict[str, dict[str, Any]] = {
    "unipc 3": {"color": "black", "linewidth": 2.5, "markersize": 5},
    "abm 3": {"color": "tab:red", "linewidth": 1.4, "markersize": 4},
    "default()": {"color": "tab:blue", "linewidth": 1.4, "markersize": 4},
    "dpmpp_2m": {"color": "tab:orange", "linewidth": 1.4, "markersize": 4},
    "heun": {"color": "tab:green", "linewidth": 1.4, "markersize": 4},
    "dpm_solver 3": {"color": "tab:purple", "linewidth": 1.4, "markersize": 4},
    "ddim": {"color": "tab:gray", "linewidth": 1.4, "markersize": 4},
    "sde_dpmpp_2m": {"color": "tab:pink", "linewidth": 1.4, "markersize": 4, "linestyle": "--"},
    "ancestral": {"color": "tab:brown", "linewidth": 1.4, "markersize": 4, "linestyle": "--"},
}
_STOCHASTIC = ("ancestral", "sde_")


def main() -> None:
    """Reads the command line, measures, writes the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("--n", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0, help="sampling seed")
    parser.add_argument(
        "--steps", type=int, nargs="+", default=[5, 8, 10, 20, 50, 200], metavar="NFE"
    )
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=list(SAMPLERS))
    parser.add_argument("-o", "--out", type=Path, default=Path("build/steps.md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    report, quality = measure(options)
    print(report)
    report.write(options.out)
    picture(report, quality, options.out.with_suffix(".png"))


def measure(options: argparse.Namespace) -> tuple[Report, str]:
    """The table, and the name of its quality column."""
    model = sci.load(options.model)
    model.tuned = {}  # fitted samplers play no part, and must not change the digest
    kept = options.out.with_suffix(".json")
    settings = [options.model, model.digest(), options.n, options.seed]
    known: dict[str, Any] = {}
    if kept.is_file() and (found := files.read_json(kept)).get("settings") == settings:
        known = found["rows"]
    judge, quality, notes = _judge(model)
    fine: dict[str, Any] = {}
    for name in options.samplers:
        for steps in options.steps:
            key = f"{name} @ {steps}"
            if key in known:
                continue
            if not fine:
                fine["state"] = _run(model, options, named("unipc", order=2)(FINE, _grid(model)))[1]
            began = time.process_time()
            data, state, nfe = _sample(model, options, SAMPLERS[name], steps)
            seconds = time.process_time() - began
            row = {"evaluations": float(nfe), **judge(data)}
            row["ms each"] = 1000 * seconds / options.n
            if not name.startswith(_STOCHASTIC):
                row["distance"] = _distance(state, fine["state"])
            known[key] = row
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.write_json(kept, {"settings": settings, "rows": known})
            print(key, {k: f"{v:.4g}" for k, v in row.items()}, flush=True)
    rows = {f"{name} @ {steps}" for name in options.samplers for steps in options.steps}
    notes["seeds"] = f"sampling seed {options.seed}, one training seed; n = {options.n}"
    notes["distance"] = f"from the flow at {FINE} evaluations, per entry of the state"
    title = f"{options.model}: samplers against network evaluations"
    return Report(title, {key: row for key, row in known.items() if key in rows}, notes), quality


def _grid(model: Any) -> Any:
    return samplers.grids.from_quantiles(model.times)


def _sample(model: Any, options: argparse.Namespace, make: Make, steps: int) -> Any:
    return _run(model, options, make(steps, _grid(model)))


def _run(model: Any, options: argparse.Namespace, sampler: Any) -> tuple[Any, Any, int]:
    """Data, final states on the noise of the seed, and evaluations."""
    request, parts, states, nfe = model.request(), [], [], 0
    with torch.no_grad():
        for start in range(0, options.n, model.batch_size):
            items = range(start, min(start + model.batch_size, options.n))
            problem = model.problem(request, items, Noise(options.seed, items))
            result = sampler(
                problem.denoiser,
                like=problem.like,
                condition=problem.condition,
                noise=Noise(options.seed, items),
            )
            parts.append(_decode(model, problem, result))
            states.append(result.state)
            nfe = result.nfe
    return model.Data.concat(parts), states, nfe


def _decode(model: Any, problem: Any, result: Any) -> Any:
    nodes = (result.state["nodes"] + model.node_law).argmax(-1)
    edges = (result.state["edges"] + model.edge_law).argmax(-1)
    return decode(nodes, edges, problem.condition["mask"], model.config.atoms, {})


def _distance(first: list[Any], second: list[Any]) -> float:
    """Root mean square over the entries of all leaves."""
    total, count = 0.0, 0
    for one, other in zip(first, second, strict=True):
        for name in one:
            total += float((one[name].double() - other[name].double()).square().sum())
            count += one[name].numel()
    return math.sqrt(total / count)


def _judge(model: Any) -> tuple[Callable[[Any], dict[str, float]], str, dict[str, Any]]:
    """How samples of this model are judged, the column to draw, and what the figures rest on."""
    from sci.graphs import load
    from sci.graphs import metrics as graph_metrics

    data = model.training_record["recipe"]["data"]
    if "molecules" in data:
        from sci.graphs.molecule_metrics import evaluate

        source = load.molecules(data["molecules"])
        order = np.random.default_rng(data.get("validation_seed", 0)).permutation(len(source.train))
        held = source.train[order[: data["validation"]]]

        def molecules(sampled: Any) -> dict[str, float]:
            table = evaluate(sampled, held, floor=False, baseline=False, nspdk=0, progress=False)
            row = table.rows["model"]
            return {
                k: row[k] for k in ("valency", "connected", "uniqueness", "FCD", "length", "rings")
            }

        return molecules, "FCD", {"reference": f"{len(held)} held-out training molecules"}
    train = load.graphs(data["graphs"]).train

    def graphs(sampled: Any) -> dict[str, float]:
        distances = graph_metrics.mmd(sampled, train)
        connected = float(np.mean([graph_metrics.is_connected(a) for a in sampled]))
        return {"mean MMD": float(np.mean(list(distances.values()))), **distances} | {
            "connected": connected
        }

    return graphs, "mean MMD", {"reference": f"{len(train)} training graphs"}


def picture(report: Report, quality: str, path: Path) -> None:
    """Quality and distance against evaluations for the main samplers."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot, ticker

    lines: dict[str, list[dict[str, Any]]] = {}
    for key, row in report.rows.items():
        lines.setdefault(key.rsplit(" @ ", 1)[0], []).append(dict(row))
    shown = [name for name in DRAWN if name in lines]
    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.6), constrained_layout=True)
    for name in shown:
        for axis, column in zip(axes, (quality, "distance"), strict=True):
            points = [(r["evaluations"], r[column]) for r in lines[name] if column in r]
            if points:
                axis.plot(*zip(*sorted(points), strict=True), label=name, marker="o", **DRAWN[name])
    for axis, label in zip(axes, (quality, "distance from the fine flow"), strict=True):
        axis.set(xscale="log", yscale="log", xlabel="network evaluations", ylabel=label)
        axis.xaxis.set_major_locator(ticker.FixedLocator([5, 8, 10, 20, 50, 100, 200]))
        axis.xaxis.set_minor_locator(ticker.NullLocator())
        axis.xaxis.set_major_formatter(ticker.ScalarFormatter())
        axis.yaxis.set_minor_formatter(ticker.NullFormatter())
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    low, high = axes[0].get_ylim()
    ticks = [f * 10.0**e for e in range(-4, 2) for f in (1, 1.5, 2, 3, 5, 7)]
    axes[0].yaxis.set_major_locator(ticker.FixedLocator([y for y in ticks if low < y < high]))
    axes[0].yaxis.set_major_formatter(ticker.FormatStrFormatter("%g"))
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9)
    figure.suptitle(report.title, fontsize=11)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    main()
