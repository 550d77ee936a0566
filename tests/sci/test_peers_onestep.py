"""Named one-step samplers against diffusers' schedulers: equal, or different for a stated reason.

Both see the same exact score of a Gaussian mixture at the same levels. 1e-10 holds where the peer
computes in float64; 3e-7 (relative) where its step rounds to float32.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from peers import EXPLODING, ROUNDED, TIMES, Mixture, close, drive, levels, ours
from torch import Tensor

from sci import samplers
from sci.schedules import VP, CondOT

diffusers = pytest.importorskip("diffusers", reason="the peer of these tests is not installed")

# What the peers themselves are warned of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=[2, 10], ids=["2-D", "10-D"])
def mixture(request) -> Mixture:
    return Mixture(request.param)


def even(count: int) -> np.ndarray:
    """Times at equal steps in log-SNR, where the inner points of the singlestep solvers lie."""
    return VP().time(np.linspace(*VP().log_snr(np.array([0.1, 0.87])), count + 1))


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("dpmsolver++", "data"), ("dpmsolver", "noise")], ids=["++", ""]
)
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_singlestep(mixture: Mixture, algorithm: str, kind: str, order: int) -> None:
    sampler = samplers.dpm_solver(order, 12, kind=kind, grid=even(12)[::order])
    mine = ours(mixture, VP(), sampler, mixture.start)
    assert close(mine, singlestep(mixture, algorithm, order), 2 * ROUNDED)


def singlestep(mixture: Mixture, algorithm: str, order: int) -> Tensor:
    settings = {
        "algorithm_type": algorithm,
        "solver_order": order,
        "final_sigmas_type": "sigma_min",
        "lower_order_final": False,
    }
    ratios = levels(VP(), even(12))[2]
    return drive(mixture, "DPMSolverSinglestepScheduler", ratios, mixture.start, **settings)


def third_order(mixture: Mixture, share: Callable[[float], float]) -> Tensor:
    """DPM-Solver++(3S); the weight of the slope on the way to the last stage is `share(h)` of its length h."""
    alpha, sigma, _ = levels(VP(), even(12))
    log_snr, x = VP().log_snr(even(12)), mixture.start

    def first_order(x: Tensor, data: Tensor, s: int, t: int) -> Tensor:
        grown = -math.expm1(log_snr[s] - log_snr[t])
        return sigma[t] / sigma[s] * x + alpha[t] * grown * data

    def gained(h: float) -> float:
        """int_0^h e^(u - h) u du / h."""
        return 1 + math.expm1(-h) / h

    for k in range(0, 12, 3):
        here = mixture.data(x, alpha[k], sigma[k])
        inner = mixture.data(first_order(x, here, k, k + 1), alpha[k + 1], sigma[k + 1])
        h = log_snr[k + 2] - log_snr[k]
        out = first_order(x, here, k, k + 2) + alpha[k + 2] * share(h) * 2 * (inner - here)
        outer = mixture.data(out, alpha[k + 2], sigma[k + 2])
        h = log_snr[k + 3] - log_snr[k]
        x = first_order(x, here, k, k + 3) + alpha[k + 3] * gained(h) * 1.5 * (outer - here)
    return x


def test_dpmpp_3s_goes_to_its_last_stage_by_the_exact_integral_and_theirs_by_the_midpoint(
    mixture: Mixture,
) -> None:
    theirs = singlestep(mixture, "dpmsolver++", 3)
    mine = ours(mixture, VP(), samplers.dpmpp_3s(12, grid=even(12)[::3]), mixture.start)
    assert close(mine, third_order(mixture, lambda h: 1 + math.expm1(-h) / h))
    assert close(third_order(mixture, lambda h: -0.5 * math.expm1(-h)), theirs, ROUNDED)
    assert not close(mine, theirs, 1e-3)


def test_flow_match_euler_and_heun(mixture: Mixture) -> None:
    name = "FlowMatchEulerDiscreteScheduler"
    theirs = drive(mixture, name, 1 - TIMES, mixture.start, "velocity")
    sampler = samplers.euler(8, grid=TIMES)
    assert close(ours(mixture, CondOT(), sampler, mixture.start), theirs, ROUNDED)
    name = "FlowMatchHeunDiscreteScheduler"
    theirs = drive(mixture, name, 1 - TIMES, mixture.start, "velocity")
    sampler = samplers.heun(16, grid=TIMES)
    assert close(ours(mixture, CondOT(), sampler, mixture.start), theirs, ROUNDED)


def test_midpoint_in_sigma_is_dpm_solver_2(mixture: Mixture) -> None:
    """KDPM2 evaluates at the geometric mean of the levels."""
    ratios = levels(EXPLODING)[2]
    scheduler = diffusers.KDPM2DiscreteScheduler()
    scheduler.set_timesteps(8)
    scheduler.sigmas = torch.from_numpy(np.repeat(ratios, 2)[1:])
    between = np.sqrt(ratios[1:] * ratios[:-1])
    scheduler.sigmas_interpol = torch.from_numpy(np.repeat(between, 2))
    scheduler.timesteps = torch.arange(16, 0, -1, dtype=torch.float64)
    x = start = mixture.start * ratios[0]
    for t in scheduler.timesteps:
        alpha = float(scheduler.scale_model_input(torch.ones((), dtype=torch.float64), t))
        output = mixture.noise(x * alpha, alpha, (1 - alpha**2) ** 0.5)
        x = scheduler.step(output, t, x).prev_sample
    sampler = samplers.dpm_solver(2, 16, grid=TIMES)
    assert close(ours(mixture, EXPLODING, sampler, start), x)


# --- the recommendation -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["UniPCMultistepScheduler", "DPMSolverMultistepScheduler"])
def test_default_for_exact_scores_is_ten_times_closer_at_ten_evaluations(mixture, name) -> None:
    """Against the peers' own defaults, from the same noise; `benchmarks/samplers` measures it on many mixtures."""
    scheduler = getattr(diffusers, name)()
    scheduler.set_timesteps(10)
    x = mixture.start
    for index, t in enumerate(scheduler.timesteps):
        size = float(scheduler.sigmas[index])
        alpha = (1 + size**2) ** -0.5
        x = scheduler.step(mixture.noise(x, alpha, size * alpha), t, x).prev_sample
    # One flow for both: the levels at which they start differ by less than the errors.
    exact = ours(mixture, VP(), samplers.default(1000, exact=True), mixture.start)
    mine = ours(mixture, VP(), samplers.default(10, exact=True), mixture.start)

    def median(samples: Tensor) -> float:
        return float(torch.linalg.vector_norm(samples - exact, dim=1).median())

    assert median(mine) < 0.1 * median(x)
