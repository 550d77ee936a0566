"""The multistep engine: several leaves, named methods, moments, a mixture. Orders: test_orders."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import IDS, SPANS, STD, gaussian, mixture, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.samplers import Multistep, grids
from sci.schedules import EDM, VE, VP, CondOT, Cosine, Schedule

# --- several leaves ----------------------------------------------------------------------------


def test_two_leaves_that_do_not_interact_run_as_if_alone() -> None:
    schedules = {"a": Cosine(), "b": VE(0.2, 5.0)}
    alone = {name: gaussian(schedule) for name, schedule in schedules.items()}
    both = Denoiser(
        lambda x, t, c: {name: alone[name].network(x[name], t, c) for name in x},
        {name: GaussianPath(schedule) for name, schedule in schedules.items()},
    )
    sampler = samplers.unipc(3, 12, grid=grids.uniform_time(0.05, 0.95))
    out = run(sampler, both, {"a": points(), "b": points()})
    for name in out:
        assert torch.equal(out[name], run(sampler, alone[name], points()))


# --- named methods against their own formulae --------------------------------------------------


def trace(schedule: Schedule, times: np.ndarray):
    return schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
def test_ddim_is_first_order_in_every_kind(schedule, span) -> None:
    denoiser, x = gaussian(schedule), points()
    times = np.linspace(*span, 9)
    alpha, sigma, _ = trace(schedule, times)
    out = x
    for k in range(8):
        data = denoiser(out, float(times[k]))
        noise = (out - alpha[k] * data) / sigma[k]
        out = alpha[k + 1] * data + sigma[k + 1] * noise
    for kind in ("data", "noise", "difference"):
        for variable in ("log_snr", "S", "t"):
            sampler = Multistep(steps=8, kind=kind, variable=variable, order=1, grid=times)
            assert torch.allclose(run(sampler, denoiser, x), out, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(run(samplers.abm(1, 8, corrector=0, grid=times), denoiser, x), out)


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
def test_dpmpp_2m_and_its_sde(schedule, span) -> None:
    denoiser, x = gaussian(schedule), points()
    times = np.linspace(*span, 9) ** 1.1
    alpha, sigma, log_snr = trace(schedule, times)
    for eta in (0.0, 0.5, 1.0):
        noise, out, old = Noise(0, range(8)), x, None
        for k in range(8):
            data, h = denoiser(out, float(times[k])), log_snr[k + 1] - log_snr[k]
            mixed = data
            if k:
                ratio = (log_snr[k] - log_snr[k - 1]) / h
                mixed = data + (data - old) / (2 * ratio)
            old = data
            out = sigma[k + 1] / sigma[k] * math.exp(-eta * h) * out
            out = out - alpha[k + 1] * math.expm1(-(1 + eta) * h) * mixed
            kick = sigma[k + 1] * math.sqrt(-math.expm1(-2 * eta * h))
            out = out + kick * noise.draw(GaussianPath(schedule).space, "state", k, out)
        sampler = samplers.sde_dpmpp_2m(8, eta=eta, grid=times)
        assert torch.allclose(run(sampler, denoiser, x, noise=Noise(0, range(8))), out, atol=1e-11)


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
def test_unipc_2_in_its_published_form(schedule, span) -> None:
    denoiser, x = gaussian(schedule), points()
    times = np.linspace(*span, 7)
    alpha, sigma, log_snr = trace(schedule, times)
    predicted, corrected, before, values = x, x, x, []
    for k in range(6):
        values.append(denoiser(predicted, float(times[k])))
        corrected = predicted
        if k:
            h = log_snr[k] - log_snr[k - 1]
            grow, b = -math.expm1(-h), math.expm1(-h)
            base = sigma[k] / sigma[k - 1] * before + alpha[k] * grow * values[k - 1]
            fresh = values[k] - values[k - 1]
            phi2 = math.expm1(-h) / -h - 1
            if k == 1:
                corrected = base - alpha[k] * b * 0.5 * fresh
            else:
                ratio = (log_snr[k - 2] - log_snr[k - 1]) / h
                phi3 = phi2 / -h - 0.5
                matrix = np.array([[1.0, 1.0], [ratio, 1.0]])
                rho = np.linalg.solve(matrix, [phi2 / b, 2 * phi3 / b])
                past = (values[k - 2] - values[k - 1]) / ratio
                corrected = base - alpha[k] * b * (rho[0] * past + rho[1] * fresh)
        before = corrected
        h = log_snr[k + 1] - log_snr[k]
        predicted = sigma[k + 1] / sigma[k] * corrected - alpha[k + 1] * math.expm1(-h) * values[k]
        if k:
            ratio = (log_snr[k - 1] - log_snr[k]) / h
            past = (values[k - 1] - values[k]) / ratio
            predicted = predicted - alpha[k + 1] * math.expm1(-h) * 0.5 * past
    out = run(samplers.unipc(2, 6, grid=times), denoiser, x)
    assert torch.allclose(out, predicted, rtol=1e-11, atol=1e-11)


def test_adams_bashforth_constants_on_equal_steps() -> None:
    path = GaussianPath(CondOT())
    for order, constants in ((2, (3 / 2, -1 / 2)), (3, (23 / 12, -16 / 12, 5 / 12))):
        plan = samplers.ab(order, 10, grid=grids.uniform_time(0, 1)).plan(path)
        scale, weights, noise = plan.coefficients(5)
        assert scale == 1.0 and noise == 0.0
        assert np.allclose(weights, np.array(constants) / 10, rtol=1e-12)
    fixed = samplers.ab(3, 10, rule="fixed").plan(path).coefficients(5)[1]
    assert np.allclose(fixed, np.array([23, -16, 5]) / 120, rtol=1e-12)


def test_velocity_and_difference_agree_on_the_straight_line() -> None:
    denoiser, x = gaussian(CondOT()), points()
    for order in (1, 2, 3):
        one = run(samplers.ab(order, 9, corrected_start=False), denoiser, x)
        two = run(Multistep(9, "difference", "S", order, grid="uniform_time"), denoiser, x)
        assert torch.allclose(one, two, atol=1e-12)


@pytest.mark.parametrize(("order", "corrector"), [(1, 1), (2, 0), (3, 2), (4, 4)])
def test_kinds_whose_integrals_are_proportional_to_t_are_the_velocity(order, corrector) -> None:
    """The angle of the cosine path, and sigma of EDM with exponent 1, are linear in t."""
    times = np.linspace(0.02, 0.98, 12) ** 1.2
    for schedule, kind in ((Cosine(), "angular"), (EDM(0.1, 10.0, 1.0), "noise")):
        denoiser, x = gaussian(schedule), points()
        settings = {"order": order, "corrector": corrector, "grid": times, "corrected_start": True}
        one = run(Multistep(11, "velocity", "t", **settings), denoiser, x)
        two = run(Multistep(11, kind, "S", **settings), denoiser, x)
        assert torch.allclose(one, two, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
def test_the_shortcuts_of_unipc_cancel_at_higher_orders(schedule, span) -> None:
    """B(h) matters for two nodes alone: with orders given by step, from the third evaluation on."""
    denoiser, x = gaussian(schedule), points()
    path, times = denoiser.paths, np.linspace(*span, 9)
    for step in range(3, 8):
        found = [
            samplers.unipc(3, 8, rule=rule, grid=times).plan(path).coefficients(step)[1]
            for rule in ("half", "exact")
        ]
        assert np.allclose(*found, rtol=1e-12, atol=1e-13)
    one, two = (
        run(samplers.lms(3, 8, grid=times), denoiser, x),
        run(samplers.preset("deis_rhoab", 8, order=3, grid=times), denoiser, x),
    )
    assert torch.equal(one, two)


@pytest.mark.parametrize("churn", [0.0, 0.5, 1.0, 2.0, math.inf])
def test_ancestral_family_is_stochastic_ddim(churn: float) -> None:
    schedule = Cosine()
    denoiser, x, times = gaussian(schedule), points(), np.linspace(0.1, 0.9, 6)
    alpha, sigma, log_snr = trace(schedule, times)
    noise, out = Noise(3, range(8)), x
    for k in range(5):
        data = denoiser(out, float(times[k]))
        old = (out - alpha[k] * data) / sigma[k]
        kept = math.exp(-churn * (log_snr[k + 1] - log_snr[k]))
        z = noise.draw(GaussianPath(schedule).space, "state", k, out)
        out = alpha[k + 1] * data + sigma[k + 1] * (kept * old + math.sqrt(1 - kept**2) * z)
    sampler = samplers.ancestral(5, churn=churn, grid=times)
    got = run(sampler, denoiser, x, noise=Noise(3, range(8)))
    assert torch.allclose(got, out, atol=1e-12)


def test_ancestral_sampling_is_the_posterior_of_ddpm() -> None:
    schedule = VP()
    t, later = 0.4, 0.5
    plan = samplers.ancestral(1, grid=[t, later]).plan(GaussianPath(schedule))
    scale, (weight,), noise = plan.coefficients(0)
    bar, bar_later = schedule.alpha(t) ** 2, schedule.alpha(later) ** 2
    rate = 1 - bar / bar_later
    assert math.isclose(scale, math.sqrt(1 - rate) * (1 - bar_later) / (1 - bar), rel_tol=1e-12)
    assert math.isclose(weight, math.sqrt(bar_later) * rate / (1 - bar), rel_tol=1e-12)
    assert math.isclose(noise**2, rate * (1 - bar_later) / (1 - bar), rel_tol=1e-11)


# --- stochastic samplers -----------------------------------------------------------------------


class Unit:
    """Item 0 is the start alone; item k + 1 has one unit of noise, at step k."""

    def take(self, rows):
        return self

    def __init__(self, items: int):
        self.items = torch.arange(items)

    def draw(self, space, leaf, step, like, mask=None, draw=0) -> Tensor:
        out = torch.zeros_like(like)
        out[step + 1] = 1.0
        return out


@pytest.mark.parametrize("kind", ["data", "noise"])
@pytest.mark.parametrize("tau", [0.5, 1.0, 1.5])
@pytest.mark.parametrize(("schedule", "span"), SPANS[:3], ids=IDS[:3])
def test_gaussian_variance_is_kept_for_any_strength_of_noise(schedule, span, tau, kind) -> None:
    """Everything is linear, so the variance is the sum of squares of unit responses."""
    denoiser = gaussian(schedule, mean=0.0)

    def variance(t: float) -> float:
        return (schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2

    for order, corrector, least in ((1, 0, 0.85), (2, 0, 1.6), (2, 2, 1.6)):
        errors = []
        for steps in (50, 100, 200):
            x = torch.zeros(steps + 1, 1, dtype=torch.float64)
            x[0] = math.sqrt(variance(span[0]))
            sampler = Multistep(
                steps,
                kind,
                order=order,
                corrector=corrector,
                stochasticity=tau,
                grid=grids.uniform_log_snr(*span),
            )
            out = run(sampler, denoiser, x, noise=Unit(steps + 1))
            errors.append(abs(float((out**2).sum()) / variance(span[1]) - 1))
        slope = -np.polyfit(np.log([50, 100, 200]), np.log(errors), 1)[0]
        # Where the error changes sign on the way there is no slope, but it is small.
        assert slope > least or max(errors) < 2e-3, (order, corrector, errors)
        assert errors[-1] < 0.1


def test_noise_scale_zero_leaves_the_mean_step() -> None:
    denoiser, x = gaussian(Cosine()), points()
    cold = run(samplers.ancestral(6, noise_scale=0.0), denoiser, x, seed=0)
    assert torch.equal(cold, run(samplers.ancestral(6, noise_scale=0.0), denoiser, x, seed=1))
    assert not torch.equal(cold, run(samplers.ancestral(6), denoiser, x, seed=0))


# --- a mixture, and the whole table ------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [n for n, row in samplers.TABLE.items() if row.convergence and not row.stochastic]
)
def test_every_flow_preset_reaches_the_same_samples(name: str) -> None:
    denoiser = mixture(Cosine())
    start = torch.randn(32, 2, dtype=torch.float64)
    grid = grids.uniform_angle(0.02, 0.98)
    truth = run(samplers.abm(3, 600, grid=grid), denoiser, start)
    few, many = (
        float((run(samplers.preset(name, steps, grid=grid), denoiser, start) - truth).abs().mean())
        for steps in (20, 160)
    )
    assert many < 0.02 and many < 0.3 * few


def test_recommended_sampler_for_exact_scores_is_the_better_one_at_ten_evaluations() -> None:
    denoiser = mixture(Cosine())
    start = torch.randn(64, 2, dtype=torch.float64)
    grid = grids.graded_angle(0.02, 0.98)
    truth = run(samplers.abm(3, 600, grid=grid), denoiser, start)

    def error(sampler) -> float:
        return float((run(sampler, denoiser, start) - truth).abs().median())

    best = error(samplers.default(10, exact=True, grid=grid))
    assert best < 0.5 * error(samplers.dpmpp_2m(10, grid=grid))
    assert best < 0.1 * error(samplers.ddim(10, grid=grid))


def test_stochastic_presets_sample_the_mixture() -> None:
    like = torch.zeros(3000, 2, dtype=torch.float64)
    for sampler in (samplers.ancestral(60, final="data"), samplers.sde_dpmpp_2m(40, final="data")):
        with torch.no_grad():
            out = sampler(mixture(Cosine()), like=like, seed=4).state
        near = torch.cdist(out, torch.tensor([[2.0, 0], [-1, 1.5], [-1, -1.5]]).double()).min(1)
        shares = torch.bincount(near.indices, minlength=3) / 3000
        assert (shares - 1 / 3).abs().max() < 0.04
        assert abs(float(near.values.pow(2).mean()) - 0.18) < 0.04
