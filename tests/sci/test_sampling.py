"""Running samplers: ends, carries, gradients, invariance, errors, grids, cost."""

from __future__ import annotations

import gc
import math
import time

import numpy as np
import pytest
import torch
from analytic import MEAN, STD, gaussian, points, run
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.samplers import Multistep, grids
from sci.schedules import VE, VP, CondOT, Cosine
from sci.spaces import Centred, Symmetric

# --- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["data", "difference", "angular", "velocity"])
@pytest.mark.parametrize("variable", ["log_snr", "S", "t"])
@pytest.mark.parametrize("schedule", [CondOT(), Cosine()], ids=["CondOT", "Cosine"])
def test_whole_interval_from_pure_noise_to_pure_data(schedule, kind: str, variable: str) -> None:
    denoiser, x = gaussian(schedule), points()
    sampler = Multistep(80, kind, variable, 2, corrector=1, grid=grids.uniform_time(0, 1))
    assert torch.allclose(run(sampler, denoiser, x), MEAN + STD * x, atol=0.03)


def test_interpolants_carry_one_population_into_another() -> None:
    source = torch.randn(16, 2, dtype=torch.float64)
    for path in (Interpolant(), Interpolant(noise=0.3)):
        shift = Denoiser(lambda x, t, c: torch.full_like(x, 2.0), path, "velocity")
        out = samplers.ab(2, 5)(shift, start=source)
        length = path.span[1] - path.span[0]
        assert torch.allclose(out.state, source + 2.0 * length) and out.nfe == 5


def test_kind_noise_cannot_start_from_pure_noise() -> None:
    with pytest.raises(ValueError, match="leaf 'state' cannot follow kind='noise'"):
        Multistep(10, "noise", grid=grids.uniform_time(0, 1)).plan(GaussianPath(CondOT()))


def test_final_evaluation_is_counted_and_returns_the_data_prediction() -> None:
    denoiser, x = gaussian(VE(0.1, 10.0)), points()
    calls = []
    counted = Denoiser(
        lambda s, t, c: (calls.append(float(t[0])), denoiser.network(s, t, c))[1], denoiser.paths
    )
    out = samplers.ddim(7, final="data")(counted, start=x)
    assert out.nfe == len(calls) == 7 and calls[-1] == out.times[-1] == 1.0
    before = run(samplers.ddim(6), denoiser, x)
    assert torch.allclose(out.state, denoiser(before, 1.0), atol=1e-12)
    plain = samplers.ddim(7)(counted, start=x)
    assert plain.nfe == 7 and len(plain.times) == 7 and plain.times[-1] < 1.0


def test_lower_final_order_and_corrected_start() -> None:
    path = GaussianPath(Cosine())
    plan = Multistep(8, order=3, lower_final=True).plan(path)
    assert [len(plan.coefficients(k)[1]) for k in range(8)] == [1, 2, 3, 3, 3, 3, 2, 1]
    assert [len(Multistep(4, order=3).plan(path).coefficients(k)[1]) for k in range(4)] == [
        1,
        2,
        3,
        3,
    ]


# --- times that differ by item -----------------------------------------------------------------


@pytest.mark.parametrize("name", ["unipc", "abm", "ancestral", "sde_dpmpp_2m"])
def test_times_per_item_equal_items_alone(name: str) -> None:
    denoiser, x = gaussian(Cosine()), points(3)
    starts = [0.1, 0.3, 0.5]
    times = np.stack([np.linspace(start, 0.95, 7) for start in starts], 1)
    sampler = samplers.preset(name, 6)
    whole = run(sampler, denoiser, x, times=times)
    for row in range(3):
        alone = run(sampler, denoiser, x[row : row + 1], times=times[:, row], noise=Noise(0, [row]))
        assert torch.allclose(whole[row : row + 1], alone, rtol=1e-9, atol=1e-9)


# --- carries -----------------------------------------------------------------------------------


@pytest.mark.parametrize("per_item", [False, True])
def test_taking_items_midway_equals_running_them_alone(per_item: bool) -> None:
    denoiser, x = gaussian(Cosine()), points(5)
    sampler = Multistep(8, order=3, corrector=2, stochasticity=0.7)
    times = None
    if per_item:
        times = np.stack([np.linspace(0.05 + 0.05 * i, 0.9, 9) for i in range(5)], 1)
    plan = sampler.plan(denoiser.paths, times)
    rows = torch.tensor([3, 1])
    with torch.no_grad():
        carry = plan.init(x, Noise(0, range(5)), {"label": torch.arange(5)})
        for _ in range(4):
            carry = plan.step(denoiser, carry)
        part = carry.take(rows)
        assert part.condition["label"].tolist() == [3, 1] and part.noise.items.tolist() == [3, 1]
        while carry.step < plan.steps:
            carry, part = plan.step(denoiser, carry), plan.step(denoiser, part)
    assert torch.allclose(carry.state[rows], part.state, rtol=1e-12, atol=1e-12)


def test_steps_are_pure_and_resampling_may_keep_streams_in_place() -> None:
    denoiser, x = gaussian(Cosine()), points(4)
    plan = samplers.sde_dpmpp_2m(6).plan(denoiser.paths)
    with torch.no_grad():
        carry = plan.step(denoiser, plan.init(x, Noise(0, range(4))))
        kept = carry.leaves[0].clone()
        one, two = plan.step(denoiser, carry), plan.step(denoiser, carry)
        assert torch.equal(one.state, two.state) and torch.equal(carry.leaves[0], kept)
        copies = carry.take([2, 2, 2, 2], noise=False)
        spread = plan.step(denoiser, copies).state
        assert len({float(value) for value in spread}) == 4
        clones = plan.step(denoiser, carry.take([2, 2])).state
        assert clones[0] == clones[1]
    with pytest.raises(ValueError, match="streams in place"):
        carry.take([0, 1], noise=False)


def test_callbacks_see_and_change_the_carry() -> None:
    denoiser, x = gaussian(Cosine()), points(2)
    seen = []

    def callback(carry):
        seen.append(carry.step)
        return carry.with_state(torch.zeros_like(carry.state)) if carry.step == 3 else None

    out = samplers.ddim(5)(denoiser, start=x, callback=callback, progress=True)
    assert seen == [1, 2, 3, 4, 5] and out.state[0] == out.state[1]


# --- gradients ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ddim", "unipc", "abm", "sde_dpmpp_2m"])
def test_gradients_through_a_sampler_match_finite_differences(name: str) -> None:
    schedule, start = Cosine(), points(4)
    sampler = samplers.preset(name, 5, grid=grids.uniform_time(0.1, 0.9))

    def outcome(weight: Tensor, x: Tensor, checkpoint: bool = False) -> Tensor:
        denoiser = Denoiser(lambda s, t, c: torch.tanh(s * weight) * weight, GaussianPath(schedule))
        return (sampler(denoiser, start=x, seed=1, checkpoint=checkpoint).state ** 2).sum()

    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = start.clone().requires_grad_()
    slope, slopes = torch.autograd.grad(outcome(weight, x), (weight, x))
    again = torch.autograd.grad(outcome(weight, x, checkpoint=True), (weight, x))
    assert torch.equal(slope, again[0]) and torch.equal(slopes, again[1])
    with torch.no_grad():
        step = 1e-6
        expected = (outcome(weight + step, x) - outcome(weight - step, x)) / (2 * step)
        assert torch.allclose(slope, expected, rtol=1e-6)
        moved = torch.zeros_like(x)
        moved[2] = step
        expected = (outcome(weight, x + moved) - outcome(weight, x - moved)) / (2 * step)
        assert torch.allclose(slopes[2, 0], expected, rtol=1e-6)


# --- masks, symmetry, batches ------------------------------------------------------------------


def graph_denoiser() -> Denoiser:
    paths = {
        "nodes": GaussianPath(Cosine()),
        "edges": GaussianPath(VE(0.1, 1.0), Symmetric()),
        "places": GaussianPath(VP(), Centred()),
    }

    def network(state, t, condition):
        heat = torch.tanh(state["edges"]).sum(2, keepdim=True)
        return {
            "nodes": torch.tanh(state["nodes"] + heat),
            "edges": torch.tanh(state["edges"]) + (heat + heat.transpose(1, 2)),
            "places": state["places"] * torch.tanh(heat),
        }

    return Denoiser(
        network, paths, {"nodes": "data", "edges": "noise", "places": "angular"}, "mask"
    )


def shapes(batch: int, size: int) -> dict[str, Tensor]:
    return {
        "nodes": torch.zeros(batch, size, 3, dtype=torch.float64),
        "edges": torch.zeros(batch, size, size, dtype=torch.float64),
        "places": torch.zeros(batch, size, 3, dtype=torch.float64),
    }


@pytest.mark.parametrize("name", ["sde_dpmpp_2m", "unipc", "ancestral"])
def test_padding_batch_size_and_order_do_not_matter(name: str) -> None:
    denoiser = graph_denoiser()
    sampler = samplers.preset(name, 6, grid=grids.uniform_time(0.05, 0.95))

    def sample(items, size: int):
        mask = torch.arange(size)[None] < torch.tensor([[2 + item % 3] for item in items])
        with torch.no_grad():
            return sampler(
                denoiser,
                like=shapes(len(items), size),
                condition={"mask": mask},
                noise=Noise(0, items),
            ).state

    whole, order = sample(range(6), 4), [4, 0, 5]
    some = sample(order, 4)
    padded = sample(order, 7)
    for leaf in whole:
        assert torch.allclose(whole[leaf][order], some[leaf], atol=1e-12)
        inside = padded[leaf][:, :4, :4] if leaf == "edges" else padded[leaf][:, :4]
        assert torch.allclose(inside, some[leaf], atol=1e-6)
        assert padded[leaf][:, 4:].abs().sum() == 0
    assert torch.equal(whole["edges"], whole["edges"].transpose(1, 2))
    assert whole["places"].sum(1).abs().max() < 1e-6


def test_single_precision_runs_stay_single() -> None:
    denoiser, x = gaussian(Cosine()), points().float()
    out = run(samplers.unipc(3, 10), denoiser, x)
    assert out.dtype == torch.float32
    assert torch.allclose(out.double(), run(samplers.unipc(3, 10), denoiser, x.double()), atol=1e-5)


@pytest.mark.parametrize("wide", [torch.float64, torch.bfloat16])
def test_leaves_keep_their_dtype_whatever_the_network_returns(wide: torch.dtype) -> None:
    plan = samplers.abm(2, 5).plan(GaussianPath(Cosine()))
    carry = plan.init(points().float(), Noise(0, range(8)))
    while carry.step < 5:
        carry = plan.step(lambda s, t, c, to: torch.tanh(s).to(wide), carry)
    assert carry.state.dtype == torch.float32


# --- errors ------------------------------------------------------------------------------------


def test_a_value_that_is_not_finite_is_traced_to_item_step_and_leaf() -> None:
    denoiser = graph_denoiser()
    plain = denoiser.network

    def network(state, t, condition):
        out = dict(plain(state, t, condition))
        broken = out["edges"].clone()
        if float(t[0]) > 0.5:
            broken[1] = float("nan")
        out["edges"] = broken
        return out

    broken = Denoiser(network, denoiser.paths, denoiser.predicts)
    sampler = samplers.sde_dpmpp_2m(10, grid=grids.uniform_time(0.05, 0.95), final="data")
    with pytest.raises(
        FloatingPointError,
        match=r"leaf 'edges' of item 31 \(row 1; .*step 5 of 10 \(evaluated at t = 0\.\d+",
    ):
        sampler(broken, like=shapes(3, 4), noise=Noise(0, [30, 31, 32]))
    start = {name: leaf + 1.0 for name, leaf in shapes(2, 4).items()}
    start["nodes"][0, 0, 0] = float("inf")
    with pytest.raises(FloatingPointError, match="leaf 'nodes' of item 0 .*at the start"):
        sampler(denoiser.given({"mask": torch.ones(2, 4, dtype=torch.bool)}), start=start)


def test_bad_grids_are_refused() -> None:
    path, sampler = GaussianPath(Cosine()), samplers.ddim(3)
    for times in ([0.1, 0.1, 0.2], [0.3, 0.2], [0.1], [0.1, 1.2], [0.1, float("nan")], 0.5):
        with pytest.raises(ValueError, match="times"):
            sampler.plan(path, times)
    with pytest.raises(ValueError, match="start < stop"):
        grids.uniform_time(0.9, 0.1)(path, 3)
    with pytest.raises(ValueError, match="at least one step"):
        grids.uniform_time()(path, 0)
    with pytest.raises(ValueError, match="3 times"):
        samplers.ddim(5, grid=[0.1, 0.2, 0.3]).plan(path)
    with pytest.raises(ValueError, match="uniform_angle"):
        samplers.ddim(5, grid="uniform_angel")
    with pytest.raises(ValueError, match="times are for 4 items"):
        sampler(gaussian(Cosine()), start=points(3), times=np.tile([[0.1], [0.9]], 4))


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'difference'"):
        Multistep(kind="differences")
    with pytest.raises(ValueError, match="rule"):
        Multistep(rule="trapezoid")
    with pytest.raises(ValueError, match="order"):
        Multistep(order=5)
    with pytest.raises(ValueError, match="not for 'angular'"):
        Multistep(kind="angular", stochasticity=1.0)
    with pytest.raises(ValueError, match="infinite"):
        Multistep(stochasticity=math.inf)
    with pytest.raises(ValueError, match="expected unipc"):
        samplers.preset("unipcc")
    with pytest.raises(ValueError, match="order of"):
        samplers.preset("dpmpp_2m", order=3)
    with pytest.raises(ValueError, match="leaf 'b' cannot follow kind='data'"):
        samplers.ddim(3).plan({"a": GaussianPath(Cosine()), "b": Interpolant(noise=0.1)})


def test_bad_calls_are_refused() -> None:
    denoiser, x = gaussian(Cosine()), points(3)
    sampler = samplers.ddim(3)
    with pytest.raises(ValueError, match="either `start`"):
        sampler(denoiser)
    with pytest.raises(ValueError, match="either `start`"):
        sampler(denoiser, start=x, like=x)
    with pytest.raises(ValueError, match="streams for 3 items"):
        sampler(denoiser, start=x, noise=Noise(0, range(2)))
    with pytest.raises(ValueError, match="condition has 2 items"):
        sampler(denoiser, start=x, condition=torch.zeros(2))
    with pytest.raises(TypeError, match="floating"):
        sampler(denoiser, start=torch.zeros(2, 1, dtype=torch.int64))
    with pytest.raises(ValueError, match="the paths"):
        sampler.plan({"a": GaussianPath(Cosine())}).init({"b": x}, Noise(0, range(3)))


# --- grids -------------------------------------------------------------------------------------


def test_grids_are_equal_steps_in_their_variable() -> None:
    path = GaussianPath(VP())
    for grid in (
        grids.uniform_time(),
        grids.uniform_angle(),
        grids.uniform_log_snr(),
        grids.karras(),
    ):
        times = grid(path, 9)
        assert times.dtype == np.float64 and len(times) == 10 and (np.diff(times) > 0).all()
        assert (times[0], times[-1]) == path.span
        log_snr = path.schedule.log_snr(times)
        steps = {
            "uniform_time": np.diff(times),
            "uniform_angle": np.diff(np.arctan(np.exp(log_snr))),
            "uniform_log_snr": np.diff(log_snr),
            "karras": np.diff(np.exp(-log_snr / 7)),
        }[type(grid).__name__]
        assert np.allclose(steps, steps[0], rtol=1e-7)
    both = {"a": GaussianPath(VP()), "b": GaussianPath(Cosine())}
    assert grids.uniform_time()(both, 4)[[0, -1]].tolist() == [0.005, 0.995]
    straight = grids.uniform_log_snr()(GaussianPath(CondOT()), 4)
    assert np.allclose(CondOT().log_snr(straight), [-5, -2.5, 0, 2.5, 5])


# --- cost --------------------------------------------------------------------------------------


def identity(leaves: int, steps: int, wrapped: bool):
    """A network that returns its input, bare or in a `Denoiser`, with the plan of abm(3)."""
    names = list("abc")[:leaves]
    state = {name: torch.zeros(1, 2) for name in names}
    paths = {name: GaussianPath(Cosine()) for name in names}
    plan = samplers.abm(3, steps).plan(paths)
    if wrapped:
        return state, plan, Denoiser(lambda s, t, c: s, paths, "angular")
    return state, plan, lambda s, t, c, to: s


@pytest.mark.parametrize("wrapped", [False, True], ids=["bare", "denoiser"])
@pytest.mark.parametrize(("leaves", "bound"), [(1, 25e-6), (3, 60e-6)])
def test_a_step_costs_little(leaves: int, bound: float, wrapped: bool) -> None:
    state, plan, denoiser = identity(leaves, 100, wrapped)
    noise, best = Noise(0, [0]), math.inf
    with torch.no_grad():
        for _ in range(20):
            carry, begin = plan.init(state, noise), time.process_time()
            while carry.step < 100:
                carry = plan.step(denoiser, carry)
            best = min(best, (time.process_time() - begin) / 100)
    # The bound is the target on an idle core; a loaded machine is given three times as much.
    assert best < 3 * bound


@pytest.mark.parametrize("name", ["abm", "sde_dpmpp_2m"])
def test_memory_does_not_grow_with_the_steps(name: str) -> None:
    """How many tensors of the state's shape are alive after 10 steps and after 200."""
    sampler = samplers.preset(name, 200, grid=grids.uniform_time(0.05, 0.95))
    denoiser, shape = gaussian(Cosine()), (7, 11, 13)
    counts = {}

    def callback(carry) -> None:
        if carry.step in (10, 200):
            gc.collect()
            counts[carry.step] = sum(
                type(thing) is Tensor and thing.shape == shape for thing in gc.get_objects()
            )

    with torch.no_grad():
        sampler(denoiser, start=torch.zeros(shape), callback=callback)
    assert counts[200] <= counts[10] <= 12


class Synchronised(TorchDispatchMode):
    """Refuses what would make the host wait for a device."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = str(function)
        if any(word in name for word in ("_local_scalar_dense", "nonzero", "equal", "is_nonzero")):
            raise AssertionError(f"{name} waits for the device")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("per_item", [False, True])
@pytest.mark.parametrize("name", ["abm", "unipc", "sde_dpmpp_2m"])
def test_no_step_waits_for_the_device(name: str, per_item: bool) -> None:
    x = torch.randn(3, 2)
    times = np.linspace(0.05, 0.95, 9)
    times = np.stack([times, times**1.1, times**1.2], 1) if per_item else times
    sampler = samplers.preset(name, 8, compensation=0.9, leaves={"state": {"max_ratio": 9.0}})
    plan = sampler.plan(GaussianPath(Cosine()), times)
    carry = plan.init(x, Noise(0, range(3)))
    with torch.no_grad():
        carry = plan.step(lambda s, t, c, to: torch.tanh(s), carry).take([2, 0, 1])
        with Synchronised():
            while carry.step < plan.steps:
                carry = plan.step(lambda s, t, c, to: torch.tanh(s), carry)
        with pytest.raises(AssertionError, match="waits"), Synchronised():
            bool(carry.state.sum() > 0)


def test_times_are_single_precision_where_there_is_no_double(monkeypatch) -> None:
    times = np.tile(np.linspace(0.05, 0.95, 5)[:, None], 2)
    plan = samplers.ddim(4).plan(GaussianPath(Cosine()), times)
    carry = plan.init(torch.zeros(2, 1), Noise(0, range(2)))
    assert plan._time(carry).dtype == torch.float64
    monkeypatch.setattr("sci.samplers.loop.widest", lambda device: torch.float32)
    assert plan._time(carry).dtype == torch.float32
