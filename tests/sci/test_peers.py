"""Named multistep samplers against diffusers' schedulers: equal, or different for a stated reason.

Both see the same exact score of a Gaussian mixture at the same levels. 1e-10 holds where the peer
computes in float64; 3e-7 (relative) where its step rounds to float32.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from peers import EXPLODING, ROUNDED, TIMES, Given, Mixture, close, drive, levels, ours
from torch import Tensor

from sci import samplers
from sci.paths import GaussianPath
from sci.samplers import Multistep
from sci.schedules import VP, CondOT, Schedule

diffusers = pytest.importorskip("diffusers", reason="the peer of these tests is not installed")

# What the peers themselves are warned of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=[2, 10], ids=["2-D", "10-D"])
def mixture(request) -> Mixture:
    return Mixture(request.param)


# --- diffusers: first order, ancestral ----------------------------------------------------------


def stepped(mixture: Mixture, scheduler: Any, schedule: Schedule, **options: Any) -> Tensor:
    """DDIM and DDPM, whose levels are a table of alpha^2 by integer time, with our levels in it."""
    alpha, sigma, _ = levels(schedule)
    last = len(TIMES) - 1
    scheduler.set_timesteps(last)
    scheduler.alphas_cumprod = torch.from_numpy(alpha[::-1].copy() ** 2)
    scheduler.timesteps = torch.arange(last, -1, -1)
    x = mixture.start
    for k in range(last):
        noise = mixture.noise(x, alpha[k], sigma[k])
        extra = {name: value(k) for name, value in options.items()}
        x = scheduler.step(noise, last - k, x, **extra).prev_sample
    return x


def test_ddim(mixture: Mixture) -> None:
    count = len(TIMES) - 1
    scheduler = diffusers.DDIMScheduler(num_train_timesteps=count, clip_sample=False)
    theirs = stepped(mixture, scheduler, VP())
    assert close(ours(mixture, VP(), samplers.ddim(count, grid=TIMES), mixture.start), theirs)


def test_ddim_with_eta_is_ancestral_at_one_and_another_family_between(mixture: Mixture) -> None:
    count = len(TIMES) - 1
    draws = torch.randn(count, *mixture.start.shape, dtype=torch.float64)

    def theirs(eta: float) -> Tensor:
        scheduler = diffusers.DDIMScheduler(num_train_timesteps=count, clip_sample=False)
        options = {"eta": lambda k: eta, "variance_noise": lambda k: draws[k]}
        return stepped(mixture, scheduler, VP(), **options)

    def mine(churn: float) -> Tensor:
        sampler = samplers.ancestral(count, churn=churn, grid=TIMES)
        return ours(mixture, VP(), sampler, mixture.start, noise=Given(draws))

    assert close(mine(0.0), theirs(0.0))
    assert close(mine(1.0), theirs(1.0))
    # Their noise has eta times the standard deviation of eta = 1, ours sqrt(1 - r^(2 churn)).
    for churn in (0.25, 0.5, 0.7):
        assert not close(mine(churn), theirs(0.5), 1e-3)


def test_ddpm_mean_and_variance(mixture: Mixture) -> None:
    count = len(TIMES) - 1
    scheduler = diffusers.DDPMScheduler(num_train_timesteps=count, clip_sample=False)
    generator = torch.Generator().manual_seed(0)
    theirs = stepped(mixture, scheduler, VP(), generator=lambda k: generator)
    again = torch.Generator().manual_seed(0)
    draws = [
        torch.randn(mixture.start.shape, generator=again, dtype=torch.float64) for _ in range(count)
    ]
    sampler = samplers.ancestral(count, grid=TIMES)
    mine = ours(mixture, VP(), sampler, mixture.start, noise=Given(torch.stack(draws)))
    assert close(mine, theirs)
    plan = sampler.plan(GaussianPath(VP()))
    for k in range(count):
        variance = float(scheduler._get_variance(count - k))
        assert math.isclose(plan.coefficients(k)[2] ** 2, variance, rel_tol=1e-10)


# --- diffusers: multistep -----------------------------------------------------------------------

MULTI = "DPMSolverMultistepScheduler"
# The last step would otherwise be of first order.
UNTIL_THE_END = {"final_sigmas_type": "sigma_min", "lower_order_final": False}


@pytest.mark.parametrize(
    ("algorithm", "kind"), [("dpmsolver++", "data"), ("dpmsolver", "noise")], ids=["++", ""]
)
@pytest.mark.parametrize(("solver", "rule"), [("midpoint", "half"), ("heun", "exact")])
@pytest.mark.parametrize("order", [1, 2])
def test_dpm_solver_multistep(mixture, algorithm, kind, solver, rule, order) -> None:
    settings = {"algorithm_type": algorithm, "solver_type": solver, "solver_order": order}
    if algorithm == "dpmsolver":
        settings["final_sigmas_type"] = "sigma_min"
    ratios = levels(VP())[2]
    theirs = drive(mixture, MULTI, ratios, mixture.start, **{**UNTIL_THE_END, **settings})
    sampler = Multistep(8, kind, "log_snr", order, rule=rule, grid=TIMES)
    # In the kind noise each step multiplies what was rounded by alpha_t / alpha_s > 1.
    tolerance = ROUNDED if kind == "data" else 2 * ROUNDED
    assert close(ours(mixture, VP(), sampler, mixture.start), theirs, tolerance)


@pytest.mark.parametrize(("solver", "rule"), [("midpoint", "half"), ("heun", "exact")])
def test_sde_dpm_solver_multistep(mixture: Mixture, solver: str, rule: str) -> None:
    draws = torch.randn(8, *mixture.start.shape, dtype=torch.float64)
    settings = {"algorithm_type": "sde-dpmsolver++", "solver_type": solver}
    theirs = drive(
        mixture,
        MULTI,
        levels(VP())[2],
        mixture.start,
        draws=draws,
        **{**UNTIL_THE_END, **settings},
    )
    sampler = samplers.sde_dpmpp_2m(8, rule=rule, grid=TIMES)
    mine = ours(mixture, VP(), sampler, mixture.start, noise=Given(draws))
    # They round the noise to float32 as well.
    assert close(mine, theirs, 2 * ROUNDED)


def test_lower_order_at_the_end(mixture: Mixture) -> None:
    settings = {"final_sigmas_type": "sigma_min", "lower_order_final": True, "solver_order": 2}
    theirs = drive(mixture, MULTI, levels(VP())[2], mixture.start, **settings)
    sampler = samplers.dpmpp_2m(8, grid=TIMES, lower_final=True)
    assert close(ours(mixture, VP(), sampler, mixture.start), theirs, ROUNDED)


def test_dpmpp_2m_on_flow_levels(mixture: Mixture) -> None:
    settings = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", **UNTIL_THE_END}
    theirs = drive(mixture, MULTI, 1 - TIMES, mixture.start, "velocity", **settings)
    sampler = samplers.dpmpp_2m(8, grid=TIMES)
    assert close(ours(mixture, CondOT(), sampler, mixture.start), theirs, ROUNDED)


def third_order(mixture: Mixture, schedule: Schedule, factor: float) -> Tensor:
    """DPM-Solver++(3M) by divided differences; the published code has factor 1, the third derivative needs 2."""
    alpha, sigma, _ = levels(schedule)
    log_snr = schedule.log_snr(TIMES)
    x, past = mixture.start, []
    for k in range(len(TIMES) - 1):
        past.insert(0, mixture.data(x, alpha[k], sigma[k]))
        h = log_snr[k + 1] - log_snr[k]
        decay = math.expm1(-h)
        x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * decay * past[0]
        if k == 0:
            continue
        r0 = (log_snr[k] - log_snr[k - 1]) / h
        slope = (past[0] - past[1]) / r0
        if k == 1:
            x = x - alpha[k + 1] * decay * 0.5 * slope
            continue
        r1 = (log_snr[k - 1] - log_snr[k - 2]) / h
        older = (past[1] - past[2]) / r1
        bend = (slope - older) / (r0 + r1)
        slope = slope + r0 * bend
        x = x + alpha[k + 1] * (decay / h + 1) * slope
        x = x - alpha[k + 1] * ((decay + h) / h**2 - 0.5) * factor * bend
    return x


def test_dpmpp_3m_differs_by_the_factor_two_that_published_code_lacks(mixture: Mixture) -> None:
    settings = {"solver_order": 3, **UNTIL_THE_END}
    theirs = drive(mixture, MULTI, levels(VP())[2], mixture.start, **settings)
    sampler = Multistep(8, "data", "log_snr", 3, rule="half", grid=TIMES)
    mine = ours(mixture, VP(), sampler, mixture.start)
    assert close(third_order(mixture, VP(), 1.0), theirs, ROUNDED)
    assert close(mine, third_order(mixture, VP(), 2.0))
    assert not close(mine, theirs, 1e-3)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", ["data", "noise"])
def test_unipc(mixture: Mixture, kind: str, order: int) -> None:
    settings = {"predict_x0": kind == "data", "solver_order": order, **UNTIL_THE_END}
    theirs = drive(mixture, "UniPCMultistepScheduler", levels(VP())[2], mixture.start, **settings)
    sampler = samplers.unipc(order, 8, kind=kind, grid=TIMES)
    assert close(ours(mixture, VP(), sampler, mixture.start), theirs)


def test_unipc_bh1_differs_where_there_are_two_nodes(mixture: Mixture) -> None:
    """There the weight is B / 2, with B = h in place of e^h - 1; the first step has order 1 and one node."""
    for order in (1, 2):
        settings = {"solver_type": "bh1", "solver_order": order, **UNTIL_THE_END}
        name = "UniPCMultistepScheduler"
        theirs = drive(mixture, name, levels(VP())[2], mixture.start, **settings)
        sampler = samplers.unipc(order, 8, grid=TIMES)
        assert not close(ours(mixture, VP(), sampler, mixture.start), theirs, 1e-3)
        first = drive(mixture, name, levels(VP())[2][:2], mixture.start, **settings)
        sampler = samplers.unipc(1, 1, grid=TIMES[:2])
        assert close(ours(mixture, VP(), sampler, mixture.start), first)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis_in_log_rho(mixture: Mixture, order: int) -> None:
    settings = {"solver_order": order, "lower_order_final": False}
    theirs = drive(mixture, "DEISMultistepScheduler", levels(VP())[2], mixture.start, **settings)
    sampler = Multistep(8, "noise", "log_snr", order, grid=TIMES)
    assert close(ours(mixture, VP(), sampler, mixture.start), theirs)


def test_ipndm(mixture: Mixture) -> None:
    alpha, sigma, _ = levels(VP())
    scheduler = diffusers.IPNDMScheduler()
    scheduler.set_timesteps(8)
    scheduler.alphas, scheduler.betas = torch.from_numpy(alpha), torch.from_numpy(sigma)
    scheduler.timesteps = torch.arange(8, 0, -1)
    x = mixture.start
    for k in range(8):
        data, noise = (f(x, alpha[k], sigma[k]) for f in (mixture.data, mixture.noise))
        x = scheduler.step(alpha[k] * noise - sigma[k] * data, 8 - k, x).prev_sample
    sampler = samplers.ipndm(4, 8, grid=TIMES)
    assert close(ours(mixture, VP(), sampler, mixture.start), x)


# --- diffusers: on the variance-exploding path --------------------------------------------------


def exploding(mixture: Mixture, name: str, sampler: Any, **settings: Any) -> tuple[Tensor, Tensor]:
    ratios = levels(EXPLODING)[2]
    start = mixture.start * ratios[0]
    theirs = drive(mixture, name, ratios, start, scaled=False, **settings)
    return ours(mixture, EXPLODING, sampler, start), theirs


def test_euler_and_lms(mixture: Mixture) -> None:
    settings = {"final_sigmas_type": "sigma_min"}
    sampler = samplers.ddim(8, grid=TIMES)
    # Its step rounds states that are ten times as large as the data.
    assert close(*exploding(mixture, "EulerDiscreteScheduler", sampler, **settings), 10 * ROUNDED)
    sampler = samplers.lms(4, 8, grid=TIMES, corrected_start=False)
    assert close(*exploding(mixture, "LMSDiscreteScheduler", sampler))


def test_heun_in_sigma(mixture: Mixture) -> None:
    sampler = samplers.heun(16, kind="noise", grid=TIMES)
    assert close(*exploding(mixture, "HeunDiscreteScheduler", sampler))


@pytest.mark.parametrize("order", [2, 3])
def test_edm_dpm_solver(mixture: Mixture, order: int) -> None:
    """The same step on the exploding path, with EDM's preconditioning of the network around it."""
    alpha, sigma, _ = levels(EXPLODING)
    scheduler = diffusers.EDMDPMSolverMultistepScheduler(solver_order=order, **UNTIL_THE_END)
    scheduler.set_timesteps(8)
    scheduler.sigmas = torch.from_numpy(sigma)
    scheduler.timesteps = torch.arange(8, 0, -1)
    size = scheduler.config.sigma_data
    x = start = mixture.start * sigma[0]
    for k in range(8):
        kept = size**2 / (sigma[k] ** 2 + size**2)
        out = sigma[k] * size / (sigma[k] ** 2 + size**2) ** 0.5
        output = (mixture.data(x, 1.0, sigma[k]) - kept * x) / out
        x = scheduler.step(output, 8 - k, x).prev_sample
    sampler = Multistep(8, "data", "log_snr", order, rule="half", grid=TIMES)
    same = close(ours(mixture, EXPLODING, sampler, start), x, ROUNDED)
    # The third order lacks its factor 2 here too.
    assert same == (order == 2)
