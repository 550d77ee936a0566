"""The adaptive sampler: errors against tolerances, independence of items, ends, bad networks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import IDS, SPANS, column, exact_flow, gaussian, mixture, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import Adaptive, grids
from sci.schedules import VE, VP, CondOT, Cosine
from sci.spaces import Centred, Symmetric

# --- accuracy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
@pytest.mark.parametrize("order", [3, 5])
@pytest.mark.parametrize("kind", ["angular", "velocity"])
def test_the_error_follows_the_tolerance(schedule, span, order: int, kind: str) -> None:
    denoiser, x = gaussian(schedule), points()
    exact = exact_flow(schedule, x, *span)
    costs = []
    for tolerance in (1e-3, 1e-5, 1e-7):
        sampler = Adaptive(
            rtol=tolerance, atol=tolerance, order=order, kind=kind, start=span[0], stop=span[1]
        )
        with torch.no_grad():
            out = sampler(denoiser, start=x)
        error = float((out.state - exact).abs().max())
        assert 1e-5 * tolerance < error < 50 * tolerance, (tolerance, error)
        costs.append(out.nfe)
    assert costs[0] < costs[1] < costs[2]
    # The cost grows like tolerance^(-1 / order).
    assert costs[2] / costs[1] < 1.6 * 100 ** (1 / order)


def test_one_step_of_each_pair_has_its_order() -> None:
    """y' = -y on the path between populations, whose coordinate is t: a polynomial in the step."""
    decay = Denoiser(lambda x, t, c: -x, Interpolant(), "velocity")
    for order in (3, 5):
        gaps = []
        for step in (0.2, 0.1):
            sampler = Adaptive(rtol=0.99, atol=100.0, order=order, start=0.0, stop=step)
            out = sampler(decay, start=torch.ones(1, 1).double())
            assert out.rejections.tolist() == [0]
            gaps.append(abs(float(out.state) - math.exp(-step)))
        assert math.log2(gaps[0] / gaps[1]) > order + 0.8, gaps


def test_hard_items_take_more_evaluations_and_are_as_good() -> None:
    denoiser, grid = mixture(Cosine()), grids.uniform_angle(0.02, 0.98)
    x = torch.randn(48, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    truth = run(samplers.abm(4, 3000, grid=grid), denoiser, x)
    with torch.no_grad():
        out = Adaptive(rtol=1e-6, atol=1e-6, start=0.02, stop=0.98)(denoiser, start=x)
    assert float((out.state - truth).abs().max()) < 1e-4
    assert out.nfe == out.evaluations.max() > 1.3 * out.evaluations.min()
    assert out.times.shape == (out.nfe, 48)
    assert (np.isfinite(out.times).sum(0) == out.evaluations).all()
    assert np.nanmin(out.times) == 0.02 and np.nanmax(out.times) == 0.98


# --- items -------------------------------------------------------------------------------------


def graph_denoiser() -> Denoiser:
    paths = {
        "nodes": GaussianPath(Cosine()),
        "edges": GaussianPath(VE(0.1, 1.0), Symmetric()),
        "places": GaussianPath(VP(), Centred()),
    }

    def network(state, t, condition):
        heat = torch.tanh(state["edges"]).sum(2, keepdim=True) + condition["label"][:, None, None]
        return {
            "nodes": torch.tanh(state["nodes"] + heat),
            "edges": torch.tanh(state["edges"]) + (heat + heat.transpose(1, 2)),
            "places": state["places"] * torch.tanh(heat),
        }

    return Denoiser(
        network, paths, {"nodes": "data", "edges": "noise", "places": "angular"}, "mask"
    )


@pytest.mark.parametrize("order", [3, 5])
def test_items_do_not_depend_on_their_batch(order: int) -> None:
    denoiser = graph_denoiser()
    sampler = Adaptive(order=order, rtol=1e-4, atol=1e-4, start=0.05, stop=0.95)

    def sample(items, size: int):
        count = len(items)
        mask = torch.arange(size)[None] < torch.tensor([[2 + item % 3] for item in items])
        like = {
            "nodes": torch.zeros(count, size, 3).double(),
            "edges": torch.zeros(count, size, size).double(),
            "places": torch.zeros(count, size, 3).double(),
        }
        condition = {"mask": mask, "label": torch.tensor([0.3 * item for item in items]).double()}
        with torch.no_grad():
            return sampler(denoiser, like=like, condition=condition, noise=Noise(0, items))

    whole = sample(range(5), 4)
    assert len(set(whole.evaluations.tolist())) > 1
    for item in range(5):
        alone, padded = sample([item], 4), sample([item], 6)
        assert alone.nfe == whole.evaluations[item]
        for leaf in whole.state:
            assert torch.allclose(alone.state[leaf][0], whole.state[leaf][item], atol=1e-9)
            inside = padded.state[leaf][0, :4]
            inside = inside[:, :4] if leaf == "edges" else inside
            assert torch.allclose(inside, whole.state[leaf][item], atol=1e-6)
    assert torch.equal(whole.state["edges"], whole.state["edges"].transpose(1, 2))


def test_leaves_of_different_schedules_agree_with_many_fixed_steps() -> None:
    denoiser = graph_denoiser().given(
        {"mask": torch.ones(2, 3, dtype=torch.bool), "label": torch.zeros(2).double()}
    )
    shape = torch.Generator().manual_seed(1)
    start = {
        "nodes": torch.randn(2, 3, 3, generator=shape).double(),
        "edges": torch.randn(2, 3, 3, generator=shape).double(),
        "places": torch.randn(2, 3, 3, generator=shape).double(),
    }
    grid = grids.uniform_time(0.05, 0.95)
    truth = run(samplers.rk4(800, kind="angular", grid=grid), denoiser, start)
    out = run(Adaptive(rtol=1e-8, atol=1e-8, start=0.05, stop=0.95), denoiser, start)
    for leaf in truth:
        assert torch.allclose(out[leaf], truth[leaf], atol=1e-6)


def test_every_item_may_have_its_own_ends() -> None:
    denoiser, x = gaussian(VP()), points(3)
    ends = torch.tensor([[0.1, 0.3, 0.5], [0.9, 0.95, 0.7]])
    sampler = Adaptive(rtol=1e-8, atol=1e-8)
    out = run(sampler, denoiser, x, times=ends)
    for row in range(3):
        low, high = (float(t) for t in ends[:, row].double())
        exact = exact_flow(VP(), x[row : row + 1], low, high)
        assert torch.allclose(out[row : row + 1], exact, atol=1e-6)
        alone = run(sampler, denoiser, x[row : row + 1], times=[low, high])
        assert torch.allclose(alone, out[row : row + 1], atol=1e-9)


# --- ends --------------------------------------------------------------------------------------


def test_the_whole_interval_where_the_network_allows_it() -> None:
    """A network that predicts the velocity is integrated to sigma = 0, one of data up to lambda 5."""
    schedule, x = CondOT(), points()
    by_data = gaussian(schedule)

    def velocity(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = column(t, x), column(1 - t, x)
        spread = alpha**2 * 0.49 + sigma**2
        return 1.3 + (alpha * 0.49 - sigma) / spread * (x - alpha * 1.3)

    by_velocity = Denoiser(velocity, GaussianPath(schedule), "velocity")
    tight = {"rtol": 1e-8, "atol": 1e-8}
    out = Adaptive(kind="velocity", **tight)(by_velocity, start=x)
    assert np.nanmin(out.times) == 0.0 and np.nanmax(out.times) == 1.0
    assert torch.allclose(out.state, 1.3 + 0.7 * x, atol=1e-6)
    # Wrapped in a change of kind, the velocity is not at hand; the run stays inside.
    inside = Adaptive(**tight)(by_data, start=x)
    stop = CondOT().time(5.0)
    assert np.nanmin(inside.times) == 0.0 and math.isclose(np.nanmax(inside.times), stop)
    assert torch.allclose(inside.state, exact_flow(schedule, x, 0.0, stop), atol=1e-6)
    last = Adaptive(final="data", **tight)(by_data, start=x)
    assert last.nfe == inside.nfe + 1 and (last.evaluations == inside.evaluations + 1).all()
    assert torch.allclose(last.state, by_data(inside.state, stop), atol=1e-9)
    with pytest.raises(ValueError, match="leaf 'state' cannot be integrated.*t = 1.*'data'"):
        Adaptive(stop=1.0)(by_data, start=x)


def test_flows_between_populations() -> None:
    source = torch.randn(16, 2, dtype=torch.float64)
    for path in (Interpolant(), Interpolant(noise=0.3)):
        growth = Denoiser(lambda x, t, c: x, path, "velocity")
        out = Adaptive(rtol=1e-8, atol=1e-8, start=0.0, stop=1.0)(growth, start=source)
        assert torch.allclose(out.state, source * math.e, rtol=1e-6)


def test_single_precision_stays_single() -> None:
    out = Adaptive(start=0.05, stop=0.95)(gaussian(Cosine()), start=points().float())
    assert out.state.dtype == torch.float32
    exact = exact_flow(Cosine(), points(), 0.05, 0.95)
    assert torch.allclose(out.state.double(), exact, atol=1e-3)


# --- gradients, callbacks, cost ----------------------------------------------------------------


@pytest.mark.parametrize("order", [3, 5])
def test_gradients_match_finite_differences(order: int) -> None:
    """Tight tolerances: the choice of the steps, which is not differentiated, hardly matters."""
    sampler = Adaptive(order=order, rtol=1e-7, atol=1e-7, start=0.1, stop=0.9)
    start = points(3)

    def outcome(weight: Tensor, x: Tensor, checkpoint: bool = False) -> Tensor:
        denoiser = Denoiser(lambda s, t, c: torch.tanh(s * weight) * weight, GaussianPath(Cosine()))
        return (sampler(denoiser, start=x, checkpoint=checkpoint).state ** 2).sum()

    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = start.clone().requires_grad_()
    by_weight, by_start = torch.autograd.grad(outcome(weight, x), (weight, x))
    again = torch.autograd.grad(outcome(weight, x, checkpoint=True), (weight, x))
    assert torch.equal(by_weight, again[0]) and torch.equal(by_start, again[1])
    with torch.no_grad():
        step = 1e-3
        expected = (outcome(weight + step, x) - outcome(weight - step, x)) / (2 * step)
        assert torch.allclose(by_weight, expected, rtol=1e-4)
        moved = torch.zeros_like(x)
        moved[2] = step
        expected = (outcome(weight, x + moved) - outcome(weight, x - moved)) / (2 * step)
        assert torch.allclose(by_start[2, 0], expected, rtol=1e-4)


def test_callbacks_see_items_under_way_and_may_move_them() -> None:
    denoiser, x = gaussian(Cosine()), points(4)
    sampler = Adaptive(rtol=1e-6, atol=1e-6, start=0.05, stop=0.95)
    plain, seen = sampler(denoiser, start=x), []

    def watch(carry):
        seen.append((carry.step, len(carry.leaves[0]), carry.rows.tolist()))
        return carry

    watched = sampler(denoiser, start=x, callback=watch, progress=True)
    assert torch.equal(watched.state, plain.state) and watched.nfe == plain.nfe
    assert [step for step, _, _ in seen] == list(range(1, len(seen) + 1))
    assert seen[0][1] == 4 and seen[-1][1] <= 4 and set(seen[-1][2]) <= set(range(4))

    def reset(carry):
        return carry.with_state(torch.zeros_like(carry.state)) if carry.step == 2 else None

    same = sampler(denoiser, start=x, callback=reset)
    assert float(same.state.std()) < 0.1 * float(plain.state.std())


def test_joint_evaluations_are_shared_and_wrappers_are_counted() -> None:
    denoiser, calls = gaussian(Cosine()), []
    counted = Denoiser(
        lambda s, t, c: (calls.append(len(s)), denoiser.network(s, t, c))[1], denoiser.paths
    )
    out = Adaptive(start=0.05, stop=0.95)(counted, start=points())
    assert len(calls) == out.nfe and sum(calls) == out.evaluations.sum()
    counted.evaluations = 2
    twice = Adaptive(start=0.05, stop=0.95)(counted, start=points())
    assert twice.nfe == 2 * out.nfe


# --- what goes wrong ---------------------------------------------------------------------------


def test_too_few_evaluations_name_the_item_and_its_time() -> None:
    x = torch.randn(6, 2, dtype=torch.float64)
    sampler = Adaptive(steps=30, rtol=1e-9, atol=1e-9, start=0.02, stop=0.98)
    with pytest.raises(RuntimeError, match=r"item 4\d \(row \d\) is at t = 0\.\d+ after \d+ eval"):
        sampler(mixture(Cosine()), start=x, noise=Noise(0, range(40, 46)))


def test_networks_that_fail_are_named() -> None:
    plain = gaussian(Cosine())

    def broken(after: float):
        def network(s, t, c):
            out = plain.network(s, t, c).clone()
            out[(t > after) & (s[:, 0] > 1.5)] = float("nan")
            return out

        return Denoiser(network, plain.paths)

    sampler = Adaptive(start=0.05, stop=0.95)
    x = torch.tensor([[-1.0], [2.0], [0.0]], dtype=torch.float64)
    noise = Noise(0, [7, 8, 9])
    with pytest.raises(FloatingPointError, match=r"item 8 \(row 1\) is at t = 0.05, where leaf"):
        sampler(broken(0.0), start=x, noise=noise)
    with pytest.raises(FloatingPointError, match=r"item 8 .*t = 0\.[34]\d*: leaf 'state' has pred"):
        sampler(broken(0.4), start=x, noise=noise)
    x[2] = float("inf")
    with pytest.raises(FloatingPointError, match="item 9"):
        sampler(plain, start=x, noise=noise)


def test_leaves_that_cannot_follow_are_named() -> None:
    zero = torch.zeros(1, 2)
    for path in (CategoricalPath(CondOT(), 3), GeodesicPath()):
        denoiser = Denoiser(lambda s, t, c: s, {"a": GaussianPath(VP()), "b": path}, "data")
        with pytest.raises(ValueError, match="leaf 'b' cannot follow an adaptive method"):
            Adaptive()(denoiser, start={"a": zero, "b": torch.zeros(1, 2, 4)})


def test_bad_settings_are_refused() -> None:
    for changes, text in (
        ({"steps": 3}, "steps"),
        ({"order": 4}, "order must be 3 or 5"),
        ({"rtol": 0.0}, "rtol"),
        ({"atol": -1.0}, "atol"),
        ({"kind": "data"}, "kind"),
        ({"final": "noise"}, "final"),
    ):
        with pytest.raises(ValueError, match=text):
            Adaptive(**changes)
    with pytest.raises(TypeError, match="no plan ahead"):
        Adaptive().plan(GaussianPath(VP()))
    x = points(3)
    for times in ([0.1, 0.5, 0.9], [[0.1, 0.2], [0.8, 0.9]]):
        with pytest.raises(ValueError, match="two ends"):
            Adaptive()(gaussian(VP()), start=x, times=times)
    for times in ([0.9, 0.1], [0.1, 1.5]):
        with pytest.raises(ValueError, match="start < stop"):
            Adaptive()(gaussian(VP()), start=x, times=times)
    with pytest.raises(ValueError, match="either `start`"):
        Adaptive()(gaussian(VP()))
