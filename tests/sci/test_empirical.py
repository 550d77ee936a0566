"""The empirical kind: its tables, its equality with other kinds, its orders, its measurement."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from analytic import IDS, MEAN, SPANS, STD, exact_flow, gaussian, mixture, points, run
from scipy.integrate import quad

from sci import samplers
from sci.denoiser import Denoiser
from sci.paths import GaussianPath, Interpolant
from sci.samplers import Multistep, grids
from sci.samplers.empirical import EmpiricalStatistics, measure
from sci.schedules import VP, Cosine
from sci.spaces import Centred, Symmetric

NOISE = EmpiricalStatistics([0.0], [0.0], [0.0])
DATA = EmpiricalStatistics([-1.0, 2.0], [1.0, 1.0], [1.0, 1.0])
# Few points: the splines are smooth, so orders show early.
CURVED = EmpiricalStatistics([-3.0, 0.0, 3.0], [0.9, 0.5, 0.1], [1.2, 0.4, -0.3], [0.1, 0.3, -0.2])


# --- equalities --------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
@pytest.mark.parametrize(("order", "corrector"), [(1, 0), (2, 0), (3, 3), (4, 2)])
def test_constant_tables_are_the_kinds_noise_and_data(schedule, span, order, corrector) -> None:
    denoiser, x = mixture(schedule), torch.randn(8, 2, dtype=torch.float64)
    grid = grids.uniform_log_snr(*span)
    for statistics, kind in ((NOISE, "noise"), (DATA, "data")):
        for variable in ("log_snr", "t"):
            settings = {"variable": variable, "order": order, "corrector": corrector, "grid": grid}
            one = run(Multistep(12, statistics, **settings), denoiser, x)
            two = run(Multistep(12, kind, **settings), denoiser, x)
            assert torch.allclose(one, two, rtol=1e-11, atol=1e-11)


def test_one_step_is_the_integral_of_the_frozen_remainder() -> None:
    """f = e^S (g + B) with g frozen: d(e^L x / alpha) = -e^(L - lambda) f, by quadrature."""
    schedule, (start, stop) = Cosine(), (0.4, 0.6)
    denoiser, x = gaussian(schedule), points()
    first, last = schedule.log_snr(start), schedule.log_snr(stop)
    linear, slope, offset = CURVED._tables

    def grown(at: float, remainder: float) -> float:
        decayed = quad(lambda u: math.exp(-integral(slope, first, u)) * offset.value(u), first, at)
        return math.exp(integral(slope, first, at)) * (remainder + decayed[0])

    def integral(table, low: float, high: float) -> float:
        return quad(table.value, low, high, epsabs=1e-13)[0]

    noise = denoiser(x, start, to="noise")
    remainders = noise - float(linear.value(first)) / schedule.sigma(start) * x
    expected = []
    for state, remainder in zip(x[:, 0].tolist(), remainders[:, 0].tolist(), strict=True):
        moved = quad(
            lambda u, r=remainder: math.exp(integral(linear, first, u) - u) * grown(u, r),
            first,
            last,
            epsabs=1e-12,
        )[0]
        whole = state / schedule.alpha(start) - moved
        expected.append(schedule.alpha(stop) * math.exp(-integral(linear, first, last)) * whole)
    got = run(Multistep(1, CURVED, order=1, grid=[start, stop]), denoiser, x)
    assert np.allclose(got[:, 0].numpy(), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("settings", [{}, {"corrector": 2}, {"compensation": 1.0}])
def test_times_per_item_and_lists_equal_the_plain_run(settings: dict) -> None:
    denoiser, x = mixture(Cosine()), torch.randn(3, 2, dtype=torch.float64)
    times = np.linspace(0.05, 0.9, 8)
    plain = run(Multistep(7, CURVED, order=2, grid=times, **settings), denoiser, x)
    listed = run(Multistep(7, [CURVED] * 7, order=2, grid=times, **settings), denoiser, x)
    each = run(
        Multistep(7, CURVED, order=2, **settings), denoiser, x, times=np.tile(times[:, None], 3)
    )
    assert torch.equal(plain, listed) and torch.allclose(plain, each, rtol=1e-12, atol=1e-12)


def test_empirical_and_other_kinds_mix() -> None:
    denoiser, x = mixture(Cosine()), torch.randn(8, 2, dtype=torch.float64)
    times = np.linspace(0.05, 0.9, 8)
    mixed = run(Multistep(7, [NOISE, "data"] * 3 + ["noise"], order=3, grid=times), denoiser, x)
    plain = run(Multistep(7, ["noise", "data"] * 3 + ["noise"], order=3, grid=times), denoiser, x)
    assert torch.allclose(mixed, plain, rtol=1e-11, atol=1e-11)


# --- orders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("order", "corrector", "claim"), [(1, 0, 1), (2, 0, 2), (3, 0, 3), (2, 2, 3), (3, 3, 4)]
)
def test_order_of_convergence_whatever_the_tables(order: int, corrector: int, claim: int) -> None:
    denoiser, x = mixture(Cosine()), torch.linspace(-1, 1, 16, dtype=torch.float64).view(8, 2)
    grid = grids.uniform_log_snr(0.1, 0.9)
    truth = run(samplers.abm(3, 1500, grid=grid), denoiser, x)
    counts, errors = (60, 120, 240), []
    for steps in counts:
        sampler = Multistep(
            steps, CURVED, order=order, corrector=corrector, grid=grid, corrected_start=order > 1
        )
        errors.append(float((run(sampler, denoiser, x) - truth).pow(2).mean().sqrt()))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] > claim - 0.15, errors


# --- measurement -------------------------------------------------------------------------------


def test_a_gaussian_is_measured_exactly_and_then_solved_in_one_step() -> None:
    """noise = sigma (x - alpha mean) / v: l = sigma^2 / v, and f depends on lambda alone."""
    schedule, denoiser = Cosine(), gaussian(Cosine())
    data = MEAN + STD * torch.randn(50, 1, dtype=torch.float64)
    found = measure(denoiser, data, grid=grids.uniform_log_snr(0.02, 0.98))
    times = schedule.time(np.array(found.log_snr))
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    variance = alpha**2 * STD**2 + sigma**2
    assert np.allclose(found.linear, sigma**2 / variance, rtol=1e-10, atol=1e-12)
    # f = -alpha sigma mean / v, so s = d(log f) / d(lambda), with d(alpha) = alpha sigma^2 d(lambda)
    growth = 1 - 2 * alpha**2 - 2 * alpha**2 * sigma**2 * (STD**2 - 1) / variance
    assert np.allclose(found.slope[5:-5], growth[5:-5], atol=5e-3) and not any(found.offset)
    x = points()
    exact = exact_flow(schedule, x, 0.05, 0.95)
    got = run(Multistep(1, found, order=1, grid=[0.05, 0.95]), denoiser, x)
    assert torch.allclose(got, exact, atol=1e-3)
    assert not torch.allclose(
        run(Multistep(1, "noise", order=1, grid=[0.05, 0.95]), denoiser, x), exact, atol=0.5
    )


def test_measured_tables_beat_the_noise_kind_on_a_mixture() -> None:
    denoiser = mixture(Cosine())
    means = torch.tensor([[2.0, 0.0], [-1.0, 1.5], [-1.0, -1.5]], dtype=torch.float64)
    data = means[torch.arange(300) % 3] + 0.3 * torch.randn(300, 2, dtype=torch.float64)
    grid = grids.uniform_log_snr(0.02, 0.98)
    generator = torch.Generator().manual_seed(0)
    found = measure(denoiser, data, 40, grid=grid, generator=generator)
    again = measure(denoiser, data, 40, grid=grid, generator=generator.manual_seed(0))
    assert again == found and any(found.offset)
    x = torch.randn(128, 2, dtype=torch.float64)
    truth = run(samplers.abm(3, 600, grid=grid), denoiser, x)

    def error(kind) -> float:
        sampler = Multistep(5, kind, order=2, corrector=2, grid=grid)
        return float((run(sampler, denoiser, x) - truth).abs().mean())

    assert error(found) < 0.7 * min(error("noise"), error("data"))


def test_leaves_are_measured_on_their_spaces_and_masks() -> None:
    """Isotropic Gaussian data on every leaf: l is sigma^2 / (alpha^2 + sigma^2) on each."""
    paths = {
        "nodes": GaussianPath(Cosine()),
        "edges": GaussianPath(VP(), Symmetric()),
        "places": GaussianPath(Cosine(), Centred()),
    }

    def network(state, t, condition):
        out = {}
        for name, x in state.items():
            schedule = paths[name].schedule
            alpha, sigma = schedule.alpha(t), schedule.sigma(t)
            gain = (alpha / (alpha**2 + sigma**2)).view((-1,) + (1,) * (x.dim() - 1))
            out[name] = gain * x
        # A coupling between leaves has no part in the leaf's own derivative.
        out["nodes"] = out["nodes"] + 0.3 * out["places"].sum(2, keepdim=True)
        return out

    denoiser = Denoiser(network, paths, mask="mask")
    mask = torch.arange(4)[None] < torch.tensor([[4], [3], [2], [4], [3]])
    data = {
        "nodes": torch.randn(5, 4, 2, dtype=torch.float64),
        "edges": torch.randn(5, 4, 4, dtype=torch.float64),
        "places": torch.randn(5, 4, 3, dtype=torch.float64),
    }
    grid = grids.uniform_time(0.05, 0.95)
    found = measure(denoiser, data, 12, {"mask": mask}, grid)
    times = grid(paths, 11)
    for name, path in paths.items():
        sigma, alpha = path.schedule.sigma(times), path.schedule.alpha(times)
        assert np.allclose(found[name].log_snr, path.schedule.log_snr(times))
        assert np.allclose(found[name].linear, sigma**2 / (alpha**2 + sigma**2), atol=1e-10)
    assert not any(found["places"].offset)
    leaves = {name: {"kind": one} for name, one in found.items()}
    sampler = Multistep(5, order=2, leaves=leaves, grid=grid)
    with torch.no_grad():
        out = sampler(denoiser, like=data, condition={"mask": mask}).state
    assert out["places"].sum(1).abs().max() < 1e-6
    assert (out["edges"] - out["edges"].transpose(1, 2)).abs().max() < 1e-12
    assert out["nodes"][~mask].abs().max() == 0


def test_an_offset_respects_masks_and_spaces() -> None:
    statistics = EmpiricalStatistics([0.0], [0.5], [0.2], [0.7])
    path = GaussianPath(Cosine(), Symmetric())
    denoiser = Denoiser(lambda s, t, c: 0 * s + 1.0, path, mask="mask")
    mask = torch.arange(4)[None] < torch.tensor([[4], [2]])
    with torch.no_grad():
        out = Multistep(4, statistics, order=2)(
            denoiser, like=torch.zeros(2, 4, 4, dtype=torch.float64), condition={"mask": mask}
        ).state
    assert out.diagonal(dim1=1, dim2=2).abs().max() == 0 and out[1, 2:].abs().max() == 0
    assert torch.equal(out, out.transpose(1, 2)) and out[0, 0, 1] != 0


# --- values ------------------------------------------------------------------------------------


def test_statistics_are_plain_numbers() -> None:
    saved = json.loads(json.dumps(dataclasses.asdict(CURVED)))
    assert EmpiricalStatistics(**saved) == CURVED and hash(CURVED) == hash(CURVED)
    linear = CURVED._tables[0]
    assert linear.value(-9.0) == 0.9 and linear.value(9.0) == pytest.approx(0.1)
    whole = quad(linear.value, -5.0, 4.0, points=[-3, 0, 3])[0]
    assert linear.integral(4.0) - linear.integral(-5.0) == pytest.approx(whole, rel=1e-12)


def test_bad_statistics_are_refused() -> None:
    for fields, message in (
        (([0.0, 1.0], [0.0], [0.0, 0.0]), "linear has 1 values"),
        (([1.0, 0.0], [0.0, 0.0], [0.0, 0.0]), "increase"),
        (([0.0], [math.nan], [0.0]), "finite"),
        (([], [], []), "at least one"),
    ):
        with pytest.raises(ValueError, match=message):
            EmpiricalStatistics(*fields)
    for options in ({"variable": "S"}, {"rule": "half"}):
        with pytest.raises(ValueError, match="empirical statistics need"):
            Multistep(4, NOISE, **options)
    with pytest.raises(ValueError, match="not for"):
        Multistep(4, NOISE, stochasticity=1.0)
    denoiser = Denoiser(lambda s, t, c: s, Interpolant(noise=0.5), "velocity")
    with pytest.raises(ValueError, match="predicts no noise"):
        measure(denoiser, torch.zeros(2, 1))
    with pytest.raises(ValueError, match="points >= 2"):
        measure(gaussian(Cosine()), points(), points=1)
