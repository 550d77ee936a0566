"""One-step samplers against published formulae, their orders of convergence, and churn."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import IDS, SPANS, STD, coupled, exact_flow, gaussian, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.samplers import grids
from sci.schedules import EDM, VE, CondOT, Cosine
from sci.spaces import Euclidean

PATHS = pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)


def between(span: tuple[float, float], count: int) -> np.ndarray:
    """Uneven times."""
    share = np.linspace(0, 1, count + 1)
    return span[0] + (span[1] - span[0]) * (0.6 * share + 0.4 * share**2)


def close(one: Tensor, two: Tensor) -> bool:
    return torch.allclose(one, two, rtol=1e-10, atol=1e-10)


# --- named methods against their own formulae --------------------------------------------------


@PATHS
def test_dpm_solver_singlestep_in_its_published_form(schedule, span) -> None:
    """Orders 2 and 3 in the kind noise, from log-SNR and expm1 alone."""
    denoiser, times = gaussian(schedule), between(span, 4)
    for order in (1, 2, 3):
        x = points()
        for s, t in zip(times[:-1], times[1:], strict=True):
            low, h = schedule.log_snr(s), schedule.log_snr(t) - schedule.log_snr(s)

            def at(share: float, low=low, h=h, t=t) -> float:
                return t if share == 1 else schedule.time(low + share * h)

            def move(x, share, noise, s=s, h=h, at=at) -> Tensor:
                end = at(share)
                shrink = schedule.alpha(end) / schedule.alpha(s)
                return shrink * x - schedule.sigma(end) * math.expm1(share * h) * noise

            first = denoiser(x, s, to="noise")
            if order == 1:
                x = move(x, 1, first)
            elif order == 2:
                x = move(x, 1, denoiser(move(x, 0.5, first), at(0.5), to="noise"))
            else:
                one, two = 1 / 3, 2 / 3
                second = denoiser(move(x, one, first), at(one), to="noise") - first
                bend = math.expm1(two * h) / (two * h) - 1
                point = move(x, two, first)
                point = point - schedule.sigma(at(two)) * two / one * bend * second
                third = denoiser(point, at(two), to="noise") - first
                bend = math.expm1(h) / h - 1
                x = move(x, 1, first) - schedule.sigma(t) / two * bend * third
        sampler = samplers.dpm_solver(order, 4 * order, grid=times)
        assert close(run(sampler, denoiser, points()), x), order


@PATHS
def test_dpmpp_singlestep_in_its_published_form(schedule, span) -> None:
    denoiser, times = gaussian(schedule), between(span, 4)
    for order in (2, 3):
        x = points()
        for s, t in zip(times[:-1], times[1:], strict=True):
            low, h = schedule.log_snr(s), schedule.log_snr(t) - schedule.log_snr(s)
            half, one, two = (schedule.time(low + share * h) for share in (1 / 2, 1 / 3, 2 / 3))

            def move(x, end, share, data, s=s, h=h) -> Tensor:
                shrink = schedule.sigma(end) / schedule.sigma(s)
                return shrink * x - schedule.alpha(end) * math.expm1(-share * h) * data

            first = denoiser(x, s)
            if order == 2:
                x = move(x, t, 1, denoiser(move(x, half, 1 / 2, first), half))
                continue
            second = denoiser(move(x, one, 1 / 3, first), one) - first
            bend = math.expm1(-2 / 3 * h) / (2 / 3 * h) + 1
            point = move(x, two, 2 / 3, first) + schedule.alpha(two) * 2 * bend * second
            third = denoiser(point, two) - first
            bend = math.expm1(-h) / h + 1
            x = move(x, t, 1, first) + schedule.alpha(t) * 1.5 * bend * third
        sampler = samplers.preset(f"dpmpp_{order}s", 4 * order, grid=times)
        assert close(run(sampler, denoiser, points()), x), order


@PATHS
@pytest.mark.parametrize("churn", [0.0, 3.0, 100.0])
def test_edm_in_its_own_form(schedule, span, churn: float) -> None:
    """The published loop in y = x / alpha and rho = sigma / alpha, with its churn."""
    denoiser, times, count = gaussian(schedule), between(span, 6), 6
    low, high, extra = 0.3, 3.0, 1.007
    noise, calls = Noise(1, range(8)), []
    y = points() / schedule.alpha(times[0])

    def clean(y: Tensor, rho: float) -> Tensor:
        t = schedule.time(-math.log(rho))
        calls.append(t)
        return denoiser(schedule.alpha(t) * y, min(max(t, 0.0), 1.0))

    ratios = [math.exp(-schedule.log_snr(t)) for t in times]
    for k in range(count):
        now, then = ratios[k], ratios[k + 1]
        gamma = min(churn / count, math.sqrt(2) - 1) if low <= now <= high else 0.0
        raised = min(now * (1 + gamma), math.exp(-schedule.log_snr(schedule.span[0])))
        step = 2 * k
        z = noise.draw(Euclidean(), "state", step, y)
        y = y + math.sqrt(max(0.0, raised**2 - now**2)) * extra * z
        slope = (y - clean(y, raised)) / raised
        guess = y + (then - raised) * slope
        after = (guess - clean(guess, then)) / then
        y = y + (then - raised) * 0.5 * (slope + after)
    expected = schedule.alpha(times[-1]) * y
    sampler = samplers.edm_heun(
        12, churn, churn_range=(low, high), churn_noise=extra, grid=times, final=None
    )
    out = sampler(denoiser, start=points(), noise=Noise(1, range(8)))
    assert close(out.state, expected)
    assert np.allclose(out.times, calls, atol=1e-9)
    # The last data prediction is the Euler step to sigma = 0.
    whole = samplers.edm_heun(13, churn, churn_range=(low, high), churn_noise=extra, grid=times)
    last = run(whole, denoiser, points(), noise=Noise(1, range(8)))
    slope = (y - clean(y, ratios[-1])) / ratios[-1]
    assert close(last, y - ratios[-1] * slope)


@PATHS
def test_textbook_methods_on_the_velocity(schedule, span) -> None:
    denoiser, times = gaussian(schedule), between(span, 5)

    def v(x: Tensor, t: float) -> Tensor:
        return denoiser(x, t, to="velocity")

    def midpoint(x, s, h):
        return x + h * v(x + h / 2 * v(x, s), s + h / 2)

    def heun(x, s, h):
        k = v(x, s)
        return x + h / 2 * (k + v(x + h * k, s + h))

    def rk4(x, s, h):
        a = v(x, s)
        b = v(x + h / 2 * a, s + h / 2)
        c = v(x + h / 2 * b, s + h / 2)
        return x + h / 6 * (a + 2 * b + 2 * c + v(x + h * c, s + h))

    for name, method, cost in (("midpoint", midpoint, 2), ("heun", heun, 2), ("rk4", rk4, 4)):
        x = points()
        for s, t in zip(times[:-1], times[1:], strict=True):
            x = method(x, s, t - s)
        sampler = samplers.preset(name, 5 * cost, grid=times)
        assert close(run(sampler, denoiser, points()), x), name


def test_a_remainder_is_a_shorter_transition_of_lower_order() -> None:
    """Seven evaluations of rk4: one full transition, then three stages over 3/7 of the grid."""
    schedule = CondOT()
    denoiser, x = gaussian(schedule), points()
    grid = grids.uniform_time(0.1, 0.8)
    sampler = samplers.rk4(7, grid=grid)
    assert sampler.transitions == ["rk4", "heun3"]
    plan = sampler.plan(denoiser.paths)
    assert np.allclose(plan.grid, [0.1, 0.5, 0.8])

    def v(x: Tensor, t: float) -> Tensor:
        return denoiser(x, t, to="velocity")

    x = run(samplers.rk4(4, grid=grids.uniform_time(0.1, 0.5)), denoiser, x)
    a = v(x, 0.5)
    b = v(x + 0.1 * a, 0.6)
    x = x + 0.3 / 4 * (a + 3 * v(x + 0.2 * b, 0.7))
    assert close(run(sampler, denoiser, points()), x)
    assert samplers.heun(5).transitions == ["heun", "heun", "euler"]
    assert samplers.dpmpp_3s(11).transitions == ["exponential_3"] * 3 + ["exponential_2"]
    # A grid may be given by its transitions, or by its evaluations.
    times = [0.1, 0.2, 0.5, 0.8]
    one = run(samplers.heun(5, grid=times), denoiser, points())
    two = run(samplers.heun(5, grid=[0.1, 0.15, 0.2, 0.3, 0.5, 0.8]), denoiser, points())
    assert torch.equal(one, two)


# --- orders of convergence ---------------------------------------------------------------------

ORDERS = [
    ("dpm_solver", {"order": 1}, 1),
    ("dpm_solver", {"order": 2}, 2),
    ("dpm_solver", {"order": 3}, 3),
    ("dpmpp_2s", {}, 2),
    ("dpmpp_3s", {}, 3),
    ("heun", {}, 2),
    ("midpoint", {}, 2),
    ("rk4", {}, 4),
    ("edm_heun", {"final": None}, 2),
    ("heun", {"method": "ralston", "kind": "angular"}, 2),
    ("heun", {"method": "heun3", "kind": "difference"}, 3),
    ("rk4", {"kind": "noise"}, 4),
]
# Multiples of the stages; high orders show only where every step is short.
COUNTS = {1: (30, 60, 120), 2: (60, 120, 240), 3: (120, 240, 480), 4: (120, 240, 480)}


def slope(counts, errors) -> float:
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


@PATHS
@pytest.mark.parametrize(("name", "changes", "order"), ORDERS)
def test_order_of_convergence(schedule, span, name, changes, order) -> None:
    denoiser, x = gaussian(schedule), points()
    exact = exact_flow(schedule, x, *span)
    errors = []
    for steps in COUNTS[order]:
        sampler = samplers.preset(name, steps, grid=grids.uniform_log_snr(*span), **changes)
        errors.append(float((run(sampler, denoiser, x) - exact).abs().sum()))
    assert slope(COUNTS[order], errors) > order - 0.15, errors


@pytest.fixture(scope="module")
def truth():
    denoiser = coupled({"a": Cosine(), "b": VE(0.2, 5.0)})
    start = {"a": points(), "b": 3 * points().flip(0)}
    grid = grids.uniform_time(0.05, 0.9)
    exact = run(samplers.rk4(1600, kind="angular", grid=grid), denoiser, start)
    return denoiser, start, grid, exact


@pytest.mark.parametrize(("name", "changes", "order"), ORDERS[1:])
def test_order_with_two_leaves_on_different_schedules(truth, name, changes, order) -> None:
    denoiser, start, grid, exact = truth
    errors = []
    for steps in COUNTS[order]:
        out = run(samplers.preset(name, steps, grid=grid, **changes), denoiser, start)
        errors.append(sum(float((out[leaf] - exact[leaf]).abs().sum()) for leaf in out))
    assert slope(COUNTS[order], errors) > order - 0.15, errors


def test_kinds_may_differ_by_leaf(truth) -> None:
    denoiser, start, grid, exact = truth
    errors = []
    for steps in (80, 160, 320):
        sampler = samplers.rk4(steps, grid=grid, kind="angular", leaves={"b": {"kind": "noise"}})
        out = run(sampler, denoiser, start)
        errors.append(sum(float((out[leaf] - exact[leaf]).abs().sum()) for leaf in out))
    assert slope((80, 160, 320), errors) > 3.85, errors


def test_constant_predictions_are_integrated_exactly_on_every_leaf() -> None:
    schedules = {"a": Cosine(), "b": VE(0.2, 5.0)}
    paths = {name: GaussianPath(schedule) for name, schedule in schedules.items()}
    fixed = Denoiser(lambda x, t, c: {name: 0 * leaf + 1.5 for name, leaf in x.items()}, paths)
    start = {name: points() for name in paths}
    for name in ("edm_heun", "rk4", "dpmpp_2s", "dpmpp_3s"):
        changes = {"kind": "noise"} if name == "rk4" else {}
        noisy = Denoiser(fixed.network, paths, "noise") if name in ("edm_heun", "rk4") else fixed
        grid = grids.uniform_time(0.2, 0.8)
        out = run(samplers.preset(name, 12, grid=grid, final=None, **changes), noisy, start)
        for leaf, schedule in schedules.items():
            low, high = ([f(t) for f in (schedule.alpha, schedule.sigma)] for t in (0.2, 0.8))
            if noisy is fixed:
                expected = high[0] * 1.5 + high[1] * (points() - low[0] * 1.5) / low[1]
            else:
                expected = high[1] * 1.5 + high[0] * (points() - low[1] * 1.5) / low[0]
            assert close(out[leaf], expected), (name, leaf)


def test_two_leaves_that_do_not_interact_run_as_if_alone() -> None:
    alone = {"a": gaussian(Cosine()), "b": gaussian(VE(0.2, 5.0))}
    both = Denoiser(
        lambda x, t, c: {name: alone[name].network(x[name], t, c) for name in x},
        {name: one.paths for name, one in alone.items()},
    )
    grid = grids.uniform_time(0.05, 0.95)
    for sampler in (samplers.rk4(12, grid=grid), samplers.midpoint(12, grid=grid)):
        out = run(sampler, both, {"a": points(), "b": points()})
        for name in out:
            assert torch.equal(out[name], run(sampler, alone[name], points()))


# --- churn -------------------------------------------------------------------------------------


class Unit:
    """Item 0 is the start alone; item k + 1 has one unit of noise, at evaluation k."""

    def __init__(self, items: int):
        self.items = torch.arange(items)

    def draw(self, space, leaf, step, like, mask=None, draw=0) -> Tensor:
        out = torch.zeros_like(like)
        out[step + 1] = 1.0
        return out


@PATHS
@pytest.mark.parametrize("churn", [1.0, 8.0])
def test_churn_keeps_the_variance_of_a_gaussian(schedule, span, churn: float) -> None:
    """Everything is linear, so the variance is the sum of squares of unit responses."""
    denoiser = gaussian(schedule, mean=0.0)

    def variance(t: float) -> float:
        return (schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2

    errors, noises, counts = [], [], (48, 96, 192)
    for steps in counts:
        x = torch.zeros(steps + 1, 1, dtype=torch.float64)
        x[0] = math.sqrt(variance(span[0]))
        sampler = samplers.edm_heun(
            steps, churn, grid=grids.uniform_log_snr(*span), final=None, churn_range=(0.0, 8.0)
        )
        out = run(sampler, denoiser, x, noise=Unit(steps + 1))
        errors.append(abs(float((out**2).sum()) / variance(span[1]) - 1))
        noises.append(float((out[1:] ** 2).sum()) / variance(span[1]))
    assert slope(counts, errors) > 1.85 and errors[-1] < 5e-3, errors
    # The noise of the churn makes up a share of the variance that does not fade.
    assert noises[-1] > 0.5 * noises[0] > 1e-4


def test_churn_moves_every_leaf_to_its_own_level() -> None:
    """A network that says nothing: then x is noise, and each leaf keeps its own variance."""
    schedules = {"a": Cosine(), "b": VE(0.2, 5.0)}
    paths = {name: GaussianPath(schedule) for name, schedule in schedules.items()}
    silent = Denoiser(lambda x, t, c: {name: 0 * leaf for name, leaf in x.items()}, paths)
    grid = grids.uniform_time(0.2, 0.8)
    sampler = samplers.edm_heun(20, 4.0, grid=grid, final=None)
    start = {name: torch.zeros(21, 1).double() for name in paths}
    for name, schedule in schedules.items():
        start[name][0] = schedule.sigma(0.2)
    out = run(sampler, silent, start, noise=Unit(21))
    for name, schedule in schedules.items():
        assert math.isclose(float((out[name] ** 2).sum()), schedule.sigma(0.8) ** 2, rel_tol=1e-9)
        assert float((out[name][1:] ** 2).sum()) > 0.1 * schedule.sigma(0.8) ** 2


def test_churn_stays_in_its_range_and_on_the_path() -> None:
    path = GaussianPath(EDM())
    quiet = samplers.edm_heun(20, grid="karras").plan(path)
    plan = samplers.edm_heun(20, 30.0, churn_range=(0.05, 50.0)).plan(path)
    before, after = EDM().sigma(quiet.times[::2]), EDM().sigma(plan.times[::2])
    inside = (before[:-1] >= 0.05) & (before[:-1] <= 50)
    grown = after[:-1] / before[:-1]
    assert inside.any() and not inside.all()
    assert np.allclose(grown[inside], math.sqrt(2)) and np.allclose(grown[~inside], 1)
    assert samplers.edm_heun(20, 30.0).plan(path).times.min() == 0.0
