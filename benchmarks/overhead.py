"""What a sampler costs besides the network: microseconds a step, with a network that does nothing.

    OMP_NUM_THREADS=1 python benchmarks/overhead.py

CPU time of this process, on a batch of one item with two numbers, and with three leaves; the least of several repeats,
which is the figure that other work on the machine disturbs least. Peers and sciflows take turns within a repeat. The
starting noise is drawn outside; deterministic methods only. The figure is the slope between a short and a long run. For
sciflows it is printed twice: with a plan (the table of coefficients) that is made already, and for a whole call, which
makes or finds its plan. Peers work out their coefficients as they go.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import logging
import sys
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.schedules import VP, CondOT

ROOT = Path(__file__).parents[1]
SHORT, LONG = 20, 220
Run = Callable[[int], Any]
SHAPE = (1, 2)


def main() -> None:
    """Reads the command line, measures, prints and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--only", nargs="*", default=[], help="parts of the names of the rows")
    parser.add_argument("--out", default=str(ROOT / "benchmarks/results/samplers_overhead.md"))
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    rows = ours() | peers()
    if options.only:
        rows = {k: v for k, v in rows.items() if any(part in k for part in options.only)}
    with torch.no_grad():
        table = report(measure(rows, options.repeats))
    print(table)
    if not options.only:
        Path(options.out).write_text(table, encoding="utf-8")


def measure(rows: dict[str, tuple[Run, ...]], repeats: int) -> dict[str, list[float]]:
    """For each row microseconds a step, of each of its runs."""
    least: dict[tuple[str, int, int], float] = {}
    for runs in rows.values():
        for run in runs:
            run(SHORT)
    for _ in range(repeats):
        for name, runs in rows.items():
            for which, run in enumerate(runs):
                for steps in (SHORT, LONG):
                    began = time.process_time_ns()
                    run(steps)
                    spent = (time.process_time_ns() - began) / 1000
                    place = name, which, steps
                    least[place] = min(spent, least.get(place, float("inf")))
    return {
        name: [
            (least[name, which, LONG] - least[name, which, SHORT]) / (LONG - SHORT)
            for which in range(len(runs))
        ]
        for name, runs in rows.items()
    }


def report(found: dict[str, list[float]]) -> str:
    """The table."""
    lines = [
        "# Overhead of a step",
        "",
        "Microseconds of CPU time a network evaluation, with a network that does nothing; least of several "
        "repeats; made by `python benchmarks/overhead.py`. A sciflows sampler makes a plan, its table of "
        "coefficients, before the loop: the first column is the loop alone, the second the whole call. Peers "
        "work out their coefficients in the loop.",
        "",
        "| | the loop, a step | the whole call, a step |",
        "| --- | ---: | ---: |",
    ]
    lines += [f"| {name} | {times[0]:.1f} | {times[-1]:.1f} |" for name, times in found.items()]
    packages = ("torch", "diffusers", "torchdiffeq", "flow_matching", "azula", "k-diffusion")
    versions = []
    for name in packages:
        try:
            versions.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            continue
    return "\n".join([*lines, "", "Versions: " + ", ".join(versions) + "."]) + "\n"


def ours() -> dict[str, tuple[Run, ...]]:
    """The deterministic presets with one leaf, and with three leaves of different schedules."""
    single = Denoiser(lambda x, t, condition: x, GaussianPath(VP()))
    straight = Denoiser(lambda x, t, condition: x, GaussianPath(CondOT()), "velocity")
    rates = {"a": (0.1, 20.0), "b": (0.2, 10.0), "c": (0.1, 8.0)}
    triple = Denoiser(
        lambda x, t, condition: x, {name: GaussianPath(VP(*rate)) for name, rate in rates.items()}
    )
    one, three = torch.ones(SHAPE), {name: torch.ones(SHAPE) for name in rates}
    makers: dict[str, Callable[[int], Any]] = {
        "default(exact=True)": lambda steps: samplers.default(steps, exact=True),
        "default()": samplers.default,
    }
    for name in samplers.TABLE:

        def make(steps: int, name: str = name) -> Any:
            return samplers.preset(name, steps)

        try:
            example = make(20)
        except (TypeError, ValueError):
            continue
        noisy = any(bool(getattr(example, field, 0)) for field in ("stochasticity", "churn"))
        if not noisy and type(example).__name__ in ("Multistep", "OneStep"):
            makers[name] = make
    rows = {}
    for name, maker in makers.items():
        velocity = getattr(maker(20), "kind", None) == "velocity"
        rows[f"sciflows {name}, one leaf"] = _runs(straight if velocity else single, one, maker)
        rows[f"sciflows {name}, three leaves"] = _runs(triple, three, maker)
    return rows


def _runs(denoiser: Denoiser, start: Any, make: Callable[[int], Any]) -> tuple[Run, Run]:
    """The loop with a plan at hand, and the whole call."""
    noise = Noise(0, range(1))
    made = {steps: make(steps) for steps in (SHORT, LONG)}
    plans = {steps: sampler.plan(denoiser.paths) for steps, sampler in made.items()}

    def loop(steps: int) -> Any:
        plan = plans[steps]
        carry = plan.init(start, noise)
        while carry.step < plan.steps:
            carry = plan.step(denoiser, carry)
        return carry

    return loop, lambda steps: made[steps](denoiser, start=start, noise=noise)


def peers() -> dict[str, tuple[Run, ...]]:
    """The schedulers and solvers of the packages that are installed."""
    rows: dict[str, tuple[Run, ...]] = {}
    for find in (_diffusers, _torchdiffeq, _flow_matching, _azula, _k_diffusion):
        try:
            rows |= {name: (run,) for name, run in find().items()}
        except ImportError as error:
            print(f"{error}: left out", file=sys.stderr)
    return rows


def _diffusers() -> dict[str, Run]:
    import diffusers

    def stepped(name: str, **settings: Any) -> Run:
        def run(steps: int) -> Tensor:
            scheduler = getattr(diffusers, name)(**settings)
            scheduler.set_timesteps(steps)
            x = torch.ones(SHAPE)
            for t in scheduler.timesteps:
                if hasattr(scheduler, "scale_model_input"):
                    x = scheduler.scale_model_input(x, t)
                x = scheduler.step(x, t, x).prev_sample
            return x

        return run

    return {
        "diffusers FlowMatchEuler": stepped("FlowMatchEulerDiscreteScheduler"),
        "diffusers Euler": stepped("EulerDiscreteScheduler"),
        "diffusers DDIM": stepped("DDIMScheduler"),
        "diffusers PNDM skip_prk": stepped("PNDMScheduler", skip_prk_steps=True),
        "diffusers DPM++ 2M": stepped("DPMSolverMultistepScheduler"),
        "diffusers DPM++ 3M": stepped("DPMSolverMultistepScheduler", solver_order=3),
        "diffusers DEIS 2": stepped("DEISMultistepScheduler"),
        "diffusers UniPC 2": stepped("UniPCMultistepScheduler"),
        "diffusers UniPC 3": stepped("UniPCMultistepScheduler", solver_order=3),
    }


def _torchdiffeq() -> dict[str, Run]:
    from torchdiffeq import odeint

    def solved(method: str, stages: int) -> Run:
        def run(evaluations: int) -> Tensor:
            times = torch.linspace(0, 1, evaluations // stages + 1)
            return odeint(lambda t, x: x, torch.ones(SHAPE), times, method=method)[-1]

        return run

    return {
        f"torchdiffeq {name}": solved(name, stages)
        for name, stages in (("euler", 1), ("midpoint", 2), ("rk4", 4))
    }


def _flow_matching() -> dict[str, Run]:
    from flow_matching.solver import ODESolver

    def solved(method: str, stages: int) -> Run:
        solver = ODESolver(lambda x, t: x)

        def run(evaluations: int) -> Tensor:
            times = torch.linspace(0, 1, evaluations // stages + 1)
            return solver.sample(torch.ones(SHAPE), step_size=None, method=method, time_grid=times)

        return run

    return {
        f"flow_matching {name}": solved(name, stages)
        for name, stages in (("euler", 1), ("midpoint", 2))
    }


def _azula() -> dict[str, Run]:
    import azula.sample
    from azula.denoise import Denoiser as Base
    from azula.denoise import DiracPosterior
    from azula.noise import VPSchedule

    class Nothing(Base):
        def __init__(self) -> None:
            super().__init__()
            self.schedule = VPSchedule()

        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            return DiracPosterior(x_t)

    def sampled(name: str, **settings: Any) -> Run:
        def run(steps: int) -> Tensor:
            sampler = getattr(azula.sample, f"{name}Sampler")
            return sampler(Nothing(), steps=steps, silent=True, **settings)(torch.ones(SHAPE))

        return run

    rows = {"Euler": {}, "DDIM": {}, "vAB": {"order": 2}, "zEAB": {"order": 2}, "REAB": {}}
    return {f"azula {name}": sampled(name, **settings) for name, settings in rows.items()}


def _k_diffusion() -> dict[str, Run]:
    if str(ROOT) not in sys.path:
        sys.path.append(str(ROOT))
    from benchmarks.samplers.flow_peers import k_diffusion_sampling

    sampling = k_diffusion_sampling()

    def sampled(name: str) -> Run:
        def run(steps: int) -> Tensor:
            sigmas = sampling.get_sigmas_karras(steps, 0.002, 80.0)
            solve = getattr(sampling, f"sample_{name}")
            return solve(lambda x, sigma: x, torch.ones(SHAPE), sigmas, disable=True)

        return run

    return {f"k-diffusion {name}": sampled(name) for name in ("euler", "lms", "dpmpp_2m")}


if __name__ == "__main__":
    main()
