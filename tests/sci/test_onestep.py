"""Running one-step samplers: rotations, counts, items, gradients, ends, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import gaussian, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import OneStep, grids
from sci.schedules import VE, CondOT, Cosine
from sci.spaces import Symmetric, quaternions

# --- rotations ---------------------------------------------------------------------------------


def turning(pull: float = 2.0) -> Denoiser:
    """Rotations that are drawn to x(t) = exp(t a) exp(t b), which solves the flow."""
    a, b = torch.tensor([0.5, -1.0, 0.3]).double(), torch.tensor([0.4, 0.6, -1.1]).double()

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        time = t[:, None, None]
        inner = quaternions.exp(time * b)
        where = quaternions.multiply(quaternions.exp(time * a), inner)
        drift = b + quaternions.rotate(quaternions.conjugate(inner), a.expand_as(x[..., 1:]))
        return drift + pull * quaternions.log(quaternions.multiply(quaternions.conjugate(x), where))

    return Denoiser(network, GeodesicPath(), "velocity")


@pytest.mark.parametrize(
    ("method", "kind", "order"),
    [
        ("euler", "velocity", 1),
        ("midpoint", "velocity", 2),
        ("heun", "velocity", 2),
        ("ralston", "velocity", 2),
        ("exponential_2", "data", 2),
    ],
)
def test_rotations_keep_the_order(method: str, kind: str, order: int) -> None:
    denoiser = turning()
    ones = torch.zeros(2, 3, 4, dtype=torch.float64)
    ones[..., 0] = 1.0
    a, b = torch.tensor([0.5, -1.0, 0.3]).double(), torch.tensor([0.4, 0.6, -1.1]).double()
    first, last = 0.1, 0.9

    def where(t: float) -> Tensor:
        return quaternions.multiply(quaternions.exp(t * a), quaternions.exp(t * b))

    errors, counts = [], (40, 80, 160)
    for steps in counts:
        sampler = OneStep(steps, method, kind, grid=grids.uniform_time(first, last))
        out = run(sampler, denoiser, where(first).expand_as(ones))
        assert torch.allclose(out.norm(dim=-1), torch.ones(2, 3).double())
        gap = quaternions.multiply(quaternions.conjugate(out), where(last))
        errors.append(float(quaternions.log(gap).norm(dim=-1).max()))
    slope = -np.polyfit(np.log(counts), np.log(errors), 1)[0]
    assert slope > order - 0.1, errors


def test_rotations_beside_a_linear_leaf() -> None:
    turn = turning()
    flow = gaussian(Cosine())
    both = Denoiser(
        lambda x, t, c: {
            "places": flow.network(x["places"], t, c),
            "turns": turn.network(x["turns"], t, c),
        },
        {"places": flow.paths, "turns": turn.paths},
        {"places": "data", "turns": "velocity"},
    )
    start = {"places": points(3), "turns": quaternions.normalise(torch.ones(3, 2, 4).double())}
    sampler = samplers.midpoint(12, grid=grids.uniform_time(0.1, 0.8))
    out = run(sampler, both, start)
    assert torch.equal(out["places"], run(sampler, flow, start["places"]))
    assert torch.equal(out["turns"], run(sampler, turn, start["turns"]))
    # A coordinate other than t leads: the rotations follow it at their own rate.
    mixed = OneStep(
        400, "midpoint", "noise", grid=grids.uniform_time(0.1, 0.8),
        leaves={"turns": {"kind": "velocity"}},
    )  # fmt: skip
    fine = run(samplers.midpoint(400, grid=grids.uniform_time(0.1, 0.8)), both, start)
    assert torch.allclose(run(mixed, both, start)["turns"], fine["turns"], atol=1e-4)


# --- running -----------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["euler", "heun", "heun3", "rk4", "exponential_3"])
def test_steps_are_evaluations(method: str) -> None:
    denoiser, x = gaussian(Cosine()), points(2)
    calls: list[float] = []
    counted = Denoiser(
        lambda s, t, c: (calls.append(float(t[0])), denoiser.network(s, t, c))[1], denoiser.paths
    )
    for steps in range(1, 14):
        for final in (None, "data") if steps > 1 else (None,):
            calls.clear()
            out = OneStep(steps, method, grid="uniform_log_snr", final=final)(counted, start=x)
            assert out.nfe == len(calls) == len(out.times) == steps
            assert np.allclose(out.times, calls, atol=1e-12)
            assert final is None or math.isclose(calls[-1], 0.995)


def test_times_per_item_equal_items_alone_and_carries_can_be_split() -> None:
    denoiser, x = gaussian(Cosine()), points(3)
    times = np.stack([np.linspace(start, 0.95, 5) for start in (0.1, 0.3, 0.5)], 1)
    for sampler in (samplers.rk4(16), samplers.dpmpp_2s(8), samplers.edm_heun(8, 2.0, final=None)):
        whole = run(sampler, denoiser, x, times=times)
        for row in range(3):
            one = run(
                sampler, denoiser, x[row : row + 1], times=times[:, row], noise=Noise(0, [row])
            )
            assert torch.allclose(whole[row : row + 1], one, rtol=1e-9, atol=1e-9)
        plan = sampler.plan(denoiser.paths, times)
        with torch.no_grad():
            carry = plan.init(x, Noise(0, range(3)))
            # In the middle of a transition.
            for _ in range(3):
                carry = plan.step(denoiser, carry)
            part = carry.take([2, 0])
            while part.step < plan.steps:
                part = plan.step(denoiser, part)
            # What a transition needs is not carried past its end.
            assert part.history == ((),) and part.base == ()
        assert torch.allclose(part.state, whole[[2, 0]], rtol=1e-9, atol=1e-9)


def test_padding_and_batch_mates_do_not_matter_under_churn() -> None:
    paths = {"nodes": GaussianPath(Cosine()), "edges": GaussianPath(VE(0.1, 1.0), Symmetric())}

    def network(state, t, condition):
        heat = torch.tanh(state["edges"]).sum(2, keepdim=True)
        return {
            "nodes": torch.tanh(state["nodes"] + heat),
            "edges": torch.tanh(state["edges"]) + (heat + heat.transpose(1, 2)),
        }

    denoiser = Denoiser(network, paths, {"nodes": "data", "edges": "noise"}, "mask")
    sampler = samplers.edm_heun(9, 3.0, grid=grids.uniform_time(0.05, 0.95))

    def sample(items, size: int):
        mask = torch.arange(size)[None] < torch.tensor([[2 + item % 3] for item in items])
        like = {
            "nodes": torch.zeros(len(items), size, 3).double(),
            "edges": torch.zeros(len(items), size, size).double(),
        }
        noise = Noise(0, items)
        with torch.no_grad():
            return sampler(denoiser, like=like, condition={"mask": mask}, noise=noise).state

    whole, order = sample(range(6), 4), [4, 0, 5]
    padded = sample(order, 7)
    assert torch.allclose(whole["nodes"][order], padded["nodes"][:, :4], atol=1e-6)
    assert torch.allclose(whole["edges"][order], padded["edges"][:, :4, :4], atol=1e-6)
    assert torch.equal(padded["edges"], padded["edges"].transpose(1, 2))
    assert padded["nodes"][:, 4:].abs().sum() == 0


@pytest.mark.parametrize("name", ["rk4", "dpmpp_2s", "edm_heun"])
def test_gradients_match_finite_differences(name: str) -> None:
    start = points(4)
    changes = {"churn": 2.0} if name == "edm_heun" else {}
    sampler = samplers.preset(name, 7, grid=grids.uniform_time(0.1, 0.9), **changes)

    def outcome(weight: Tensor, x: Tensor, checkpoint: bool = False) -> Tensor:
        denoiser = Denoiser(lambda s, t, c: torch.tanh(s * weight) * weight, GaussianPath(Cosine()))
        return (sampler(denoiser, start=x, seed=1, checkpoint=checkpoint).state ** 2).sum()

    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    x = start.clone().requires_grad_()
    by_weight, by_start = torch.autograd.grad(outcome(weight, x), (weight, x))
    again = torch.autograd.grad(outcome(weight, x, checkpoint=True), (weight, x))
    assert torch.equal(by_weight, again[0]) and torch.equal(by_start, again[1])
    with torch.no_grad():
        step = 1e-6
        expected = (outcome(weight + step, x) - outcome(weight - step, x)) / (2 * step)
        assert torch.allclose(by_weight, expected, rtol=1e-6)
        moved = torch.zeros_like(x)
        moved[2] = step
        expected = (outcome(weight, x + moved) - outcome(weight, x - moved)) / (2 * step)
        assert torch.allclose(by_start[2, 0], expected, rtol=1e-6)


def test_flows_between_populations_and_single_precision() -> None:
    source = torch.randn(16, 2, dtype=torch.float64)
    shift = Denoiser(lambda x, t, c: torch.full_like(x, 2.0), Interpolant(), "velocity")
    for name in ("heun", "midpoint", "rk4"):
        assert torch.allclose(run(samplers.preset(name, 8), shift, source), source + 2.0)
    out = run(samplers.rk4(8), shift, source.float())
    assert out.dtype == torch.float32


# --- errors ------------------------------------------------------------------------------------


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'heun"):
        OneStep(method="heunn")
    with pytest.raises(ValueError, match="kind"):
        OneStep(kind="score")
    with pytest.raises(ValueError, match="exponential methods"):
        OneStep(rule="half")
    with pytest.raises(ValueError, match="steps must be an integer >= 2"):
        OneStep(steps=1, final="data")
    with pytest.raises(ValueError, match="churn_range"):
        OneStep(churn=1.0, churn_range=(2.0, 1.0))
    with pytest.raises(ValueError, match="churn and churn_noise"):
        OneStep(churn=-1.0)
    with pytest.raises(ValueError, match="only 'kind' differs"):
        OneStep(leaves={"a": {"method": "rk4"}})
    with pytest.raises(ValueError, match="2 transitions: expected 6 or 3 times, got 4"):
        samplers.rk4(5, grid=[0.1, 0.2, 0.3, 0.4]).plan(
            GaussianPath(Cosine()), [0.1, 0.2, 0.3, 0.9]
        )


def test_leaves_that_cannot_follow_are_named() -> None:
    good = GaussianPath(Cosine())
    with pytest.raises(ValueError, match="leaf 'b' cannot follow a one-step method.*Multistep"):
        samplers.rk4(4).plan({"a": good, "b": CategoricalPath(CondOT(), 3)})
    with pytest.raises(
        ValueError, match="leaf 'b' cannot follow method='rk4'.*'midpoint'|midpoint"
    ):
        samplers.rk4(4).plan({"a": good, "b": GeodesicPath()})
    with pytest.raises(ValueError, match="leaf 'b' cannot follow kind='data'"):
        samplers.dpmpp_2s(4).plan({"a": good, "b": Interpolant(noise=0.1)})
    with pytest.raises(ValueError, match="leaf 'b' cannot be churned"):
        samplers.heun(4, churn=1.0).plan({"a": good, "b": Interpolant()})
    with pytest.raises(ValueError, match=r"settings for \['c'\]"):
        samplers.heun(4, leaves={"c": {"kind": "data"}}).plan({"a": good})


def test_ends_without_noise_or_data_are_refused_or_passed_as_each_method_can() -> None:
    path, whole = GaussianPath(CondOT()), grids.uniform_time(0, 1)
    with pytest.raises(ValueError, match="leaf 'state' cannot follow method='exponential_2'"):
        samplers.dpmpp_2s(4, grid=whole).plan(path)
    with pytest.raises(ValueError, match="no noise to predict.*one evaluation remains"):
        samplers.edm_heun(4, grid=grids.uniform_time(0.2, 1), final=None).plan(path)
    # An Euler step reaches sigma = 0 and returns the data prediction.
    denoiser, x = gaussian(CondOT()), points()
    sampler = samplers.edm_heun(5, grid=grids.uniform_time(0.2, 1), final=None)
    before = samplers.edm_heun(4, grid=[0.2, 0.52, 0.84], final=None)
    expected = denoiser(run(before, denoiser, x), 0.84)
    assert torch.allclose(run(sampler, denoiser, x), expected, rtol=1e-10, atol=1e-10)
    # The midpoint rule never looks at the ends.
    assert torch.isfinite(run(samplers.midpoint(8), denoiser, x)).all()
    blind = Denoiser(lambda x, t, condition: x, path, "noise")
    with pytest.raises(FloatingPointError, match="t = 0, where alpha = 0"):
        samplers.heun(8)(blind, start=x)
