"""Every named sampler converges with the order that the table claims, warm-up included.

The slope is the regression of the logarithm of the error over the three finest grids, and at least
the claim less 0.15; one leaf on four schedules, and two leaves of correlated data on different
schedules. Claims of stochastic samplers are for moments: `test_engine.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from analytic import IDS, SPANS, column, coupled, exact_flow, gaussian, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.paths import GaussianPath
from sci.samplers import Multistep, OneStep, grids
from sci.schedules import VE, VP, CondOT, Cosine

FLOWS = {
    name: row for name, row in samplers.TABLE.items() if row.convergence and not row.stochastic
}
CLAIMS = [
    (name, order, claim) for name, row in FLOWS.items() for order, claim in row.convergence.items()
]
TIGHT = 0.15


def slope(sampler: Any, denoiser: Denoiser, start: Any, truth: Any, counts: tuple[int, ...]):
    """The order of convergence of `sampler(steps)`, and the errors."""
    errors = []
    for steps in counts:
        out = run(sampler(steps), denoiser, start)
        pairs = [(out, truth)] if isinstance(out, Tensor) else [(out[k], truth[k]) for k in out]
        errors.append(max(float((a - b).pow(2).mean().sqrt()) for a, b in pairs))
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0], errors


def named(name: str, order: int, grid: Any, **options: Any) -> Any:
    """The preset as a function of its steps; EDM without the Euler step to no noise."""
    if FLOWS[name].settings.get("final"):
        options["final"] = None
    return lambda steps: samplers.preset(name, steps, order=order, grid=grid, **options)


def finest(claim: float, high: int = 120) -> tuple[int, ...]:
    """Three grids, multiples of the stages of every singlestep method."""
    return (48, 96, 192) if claim < 3 else (high, 2 * high, 4 * high)


def test_the_table_claims_an_order_for_every_order_of_every_flow() -> None:
    for name, row in samplers.TABLE.items():
        if row.sampler in (Multistep, OneStep):
            assert set(row.convergence) == set(row.orders), name
    assert dict(FLOWS["lms"].convergence)[4] == dict(FLOWS["abm"].convergence)[3] == 4
    assert dict(FLOWS["dpmpp_3m"].convergence)[3] == 3


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
@pytest.mark.parametrize(("name", "order", "claim"), CLAIMS)
def test_order_with_one_leaf(schedule, span, name: str, order: int, claim: float) -> None:
    x = points()
    truth = exact_flow(schedule, x, *span)
    sampler = named(name, order, grids.uniform_log_snr(*span))
    found, errors = slope(sampler, gaussian(schedule), x, truth, finest(claim, 180))
    assert found > claim - TIGHT, errors


@functools.cache
def two_leaves() -> tuple[Denoiser, Any, Any, Any]:
    denoiser = coupled({"a": Cosine(), "b": VE(0.5, 5.0)})
    start = {"a": points(), "b": 3 * points().flip(0)}
    grid = grids.uniform_time(0.15, 0.75)
    truth = run(samplers.rk4(2400, grid=grid), denoiser, start)
    check = run(samplers.abm(3, 1500, grid=grid), denoiser, start)
    assert all(torch.allclose(truth[k], check[k], rtol=1e-11, atol=1e-11) for k in truth)
    return denoiser, start, grid, truth


@pytest.mark.parametrize(("name", "order", "claim"), CLAIMS)
def test_order_with_two_leaves_on_different_schedules(name: str, order: int, claim: float) -> None:
    denoiser, start, grid, truth = two_leaves()
    found, errors = slope(named(name, order, grid), denoiser, start, truth, finest(claim))
    assert found > claim - TIGHT, errors


# --- nonlinear dynamics, and the start ---------------------------------------------------------


@functools.cache
def bimodal(schedule: Any, span: tuple[float, float]) -> tuple[Denoiser, Tensor, Tensor, Any]:
    """Two wide Gaussians on a line."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = column(schedule.alpha(t), x), column(schedule.sigma(t), x)
        spread = alpha**2 * 0.5 + sigma**2
        lean = torch.tanh(alpha * x / spread)
        return lean + alpha * 0.5 / spread * (x - alpha * lean)

    denoiser, x = Denoiser(network, GaussianPath(schedule)), points()
    grid = grids.uniform_log_snr(*span)
    return denoiser, x, run(samplers.abm(3, 1500, grid=grid), denoiser, x), grid


NARROW = [
    (VP(), (0.3, 0.9)),
    (Cosine(), (0.2, 0.8)),
    (VE(0.1, 10.0), (0.3, 0.8)),
    (CondOT(), (0.2, 0.8)),
]


@pytest.mark.parametrize(("schedule", "span"), NARROW, ids=IDS)
@pytest.mark.parametrize(
    ("name", "order", "claim"),
    [("dpmpp_3m", 3, 3), ("deis", 4, 4), ("lms", 4, 4), ("ab", 4, 4), ("abm", 3, 4), ("abm", 4, 4)],
)
def test_order_on_a_mixture(schedule, span, name: str, order: int, claim: float) -> None:
    denoiser, x, truth, grid = bimodal(schedule, span)
    found, errors = slope(named(name, order, grid), denoiser, x, truth, finest(claim))
    assert found > claim - TIGHT, errors


@pytest.mark.parametrize(("order", "corrector"), [(3, 0), (4, 0), (3, 3)])
def test_without_a_corrected_start_the_first_steps_hold_the_order_down(order, corrector) -> None:
    """Where the start matters most: a fast start, then nothing that damps its error."""
    denoiser = Denoiser(
        lambda x, t, c: torch.cos(3 * x + 5 * t[:, None]), GaussianPath(CondOT()), "velocity"
    )
    x, grid = points(), grids.uniform_time(0.0, 1.0)
    truth = run(samplers.rk4(2400, grid=grid), denoiser, x)
    settings = {"kind": "velocity", "variable": "t", "order": order, "corrector": corrector}
    found = {
        flag: slope(
            lambda steps, flag=flag: Multistep(steps, **settings, grid=grid, corrected_start=flag),
            denoiser,
            x,
            truth,
            (120, 240, 480),
        )[0]
        for flag in (False, True)
    }
    claim = min(4, order + 1 if corrector else order)
    assert found[True] > claim - TIGHT and found[False] < claim - 0.5, found
