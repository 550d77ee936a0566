"""Wrappers around wrappers, in every sampler."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import labelled, random
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from sci import samplers
from sci.denoiser import Denoiser
from sci.guidance import ClassifierFree, Gradient, Observation, Replacement, Thresholded
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.samplers import grids
from sci.schedules import VP, CondOT, Cosine


def stack(batch: int = 3):
    """Everything in everything, with settings for each item."""
    rows = slice(0, batch)
    scale = torch.tensor([1.5, 0.0, 3.0], dtype=torch.float64)[rows]
    known = torch.tensor([[0.3, 0], [-1.0, 0], [0.8, 0]], dtype=torch.float64)[rows]
    mask = torch.tensor([[True, False]])
    inner = Gradient(
        labelled(Cosine()), lambda data, condition: -((data[:, 1] - condition["aim"]) ** 2), 0.3
    )
    free = ClassifierFree(inner, scale, {"label": -1})
    return Replacement(Thresholded(free, -4.0, 4.0), known, mask)


CONDITION = {
    "label": torch.tensor([0, 1, 2]),
    "aim": torch.tensor([1.0, -1.0, 0.5], dtype=torch.float64),
}


def test_wrappers_compose_and_cost_what_they_say() -> None:
    guided = stack()
    assert guided.evaluations == 4
    x = random(3, 2)
    with torch.no_grad():
        out = samplers.dpmpp_2m(6, final="data")(guided, start=x, condition=CONDITION)
    assert out.nfe == 24
    assert out.state[:, 0].tolist() == [0.3, -1.0, 0.8]
    # By hand, at one time.
    inner = Gradient(labelled(Cosine()), lambda d, c: -((d[:, 1] - c["aim"]) ** 2), 0.3)
    blank = {**CONDITION, "label": torch.full((3,), -1)}
    one, other = inner(x, 0.4, CONDITION), inner(x, 0.4, blank)
    scale = torch.tensor([[1.5], [0.0], [3.0]], dtype=torch.float64)
    expected = (other + scale * (one - other)).clamp(-4, 4)
    expected[:, 0] = torch.tensor([0.3, -1.0, 0.8])
    assert torch.allclose(guided(x, 0.4, CONDITION), expected, atol=1e-12)


def test_known_values_inside_the_pair_of_a_classifier_free_call() -> None:
    known = torch.tensor([[0.3, float("nan")], [float("nan"), 2.0]], dtype=torch.float64)
    inside = ClassifierFree(Replacement(labelled(VP()), known), 2.0, {"label": -1})
    outside = Replacement(ClassifierFree(labelled(VP()), 2.0, {"label": -1}), known)
    condition, x = {"label": torch.tensor([0, 2])}, random(2, 2)
    assert torch.allclose(inside(x, 0.5, condition), outside(x, 0.5, condition), atol=1e-12)
    finished = inside.finish(x, condition)
    assert finished[0, 0] == 0.3 and finished[1, 1] == 2.0


@pytest.mark.parametrize("name", ["dpmpp_2m", "unipc", "abm", "sde_dpmpp_2m"])
def test_an_item_alone_is_the_item_in_a_batch(name: str) -> None:
    guided, x = stack(), random(3, 2)
    sampler = samplers.preset(name, 5, grid=grids.uniform_time(0.05, 0.95))
    plan = sampler.plan(guided.paths)
    with torch.no_grad():
        whole = sampler(guided, start=x, condition=CONDITION, noise=Noise(0, range(3))).state
        carry = plan.init(x, Noise(0, range(3)), guided.encode(CONDITION))
        part = plan.step(guided, carry).take([2, 1])
        while part.step < plan.steps:
            part = plan.step(guided, part)
    assert torch.allclose(part.state, whole[[2, 1]], rtol=1e-10, atol=1e-10)
    with torch.no_grad():
        one = {name: value[:1] for name, value in CONDITION.items()}
        alone = sampler(stack(1), start=x[:1], condition=one, noise=Noise(0, [0])).state
    assert torch.allclose(alone, whole[:1], rtol=1e-10, atol=1e-10)


def test_times_by_item_equal_items_at_their_own_time() -> None:
    guided, x = stack(), random(3, 2)
    times = torch.tensor([0.2, 0.5, 0.9], dtype=torch.float64)
    whole = guided(x, times, CONDITION)
    for row, t in enumerate(times.tolist()):
        assert torch.allclose(whole[row], guided(x, t, CONDITION)[row], rtol=1e-10, atol=1e-10)


def test_binding_a_condition_is_passing_it() -> None:
    guided, x = stack(), random(3, 2)
    bound = guided.given(CONDITION)
    assert torch.equal(bound(x, 0.5), guided(x, 0.5, CONDITION))
    assert guided.bound is None
    nested = Replacement(ClassifierFree(labelled(VP()).given(CONDITION), 2.0, {"label": -1}), x)
    assert torch.equal(nested(x + 1, 0.5), x)


@pytest.mark.parametrize("checkpoint", [False, True])
def test_gradients_flow_through_samplers_and_wrappers(checkpoint: bool) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    plain = Denoiser(
        lambda x, t, c: network(torch.cat([x, c["label"][:, None]], 1)), GaussianPath(Cosine())
    )
    guided = Replacement(
        ClassifierFree(
            Gradient(plain, lambda data, c: -(data**4).sum(1), 0.1), 1.5, {"label": 0.0}
        ),
        torch.tensor([[0.2, float("nan")]], dtype=torch.float64),
    )
    condition = {"label": torch.tensor([1.0, -1.0], dtype=torch.float64)}
    sampler = samplers.dpmpp_2m(4, grid=grids.uniform_time(0.1, 0.9))

    def outcome() -> Tensor:
        out = sampler(guided, start=random(2, 2), condition=condition, checkpoint=checkpoint)
        return (out.state**2).sum()

    parameter = network[0].weight
    slope = torch.autograd.grad(outcome(), parameter)[0]
    with torch.no_grad():
        step = 1e-6
        parameter[0, 0] += step
        high = outcome()
        parameter[0, 0] -= 2 * step
        low = outcome()
        parameter[0, 0] += step
    assert math.isclose(float(slope[0, 0]), float(high - low) / (2 * step), rel_tol=1e-5)


def test_single_precision_and_no_grad() -> None:
    guided = stack()
    x = random(3, 2)
    with torch.no_grad():
        narrow = guided(x.float(), 0.5, CONDITION)
    wide = guided(x, 0.5, CONDITION)
    assert not narrow.requires_grad
    assert torch.allclose(narrow.double(), wide, atol=1e-4)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.heun(6),
        samplers.rk4(8),
        samplers.Adaptive(steps=2000, rtol=1e-3, atol=1e-3),
        samplers.PredictorCorrector(steps=20),
        samplers.S4(steps=20),
        samplers.default(6),
        samplers.unipc(3, 6),
    ],
    ids=lambda sampler: type(sampler).__name__,
)
def test_every_sampler_takes_wrappers(sampler) -> None:
    guided, x = stack(), random(3, 2)
    calls = []
    inner = guided.denoiser.denoiser.denoiser.denoiser
    network = inner.network
    inner.network = lambda x, t, c: (calls.append(len(x)), network(x, t, c))[1]
    # Langevin samplers have no drift at alpha = 0.
    langevin = isinstance(sampler, (samplers.PredictorCorrector, samplers.S4))
    times = torch.linspace(0.01, 0.99, 20) if langevin else None
    with torch.no_grad():
        out = sampler(guided, start=x, condition=CONDITION, times=times)
    assert torch.isfinite(out.state).all()
    # Each batched call is two evaluations forward and two back.
    assert sum(calls) * 2 >= out.nfe and max(calls) == 6
    if not isinstance(sampler, samplers.Adaptive):
        assert out.nfe == 4 * len(calls)
    assert guided.finish(out.state, CONDITION)[:, 0].tolist() == [0.3, -1.0, 0.8]


def test_observation_and_replacement_agree_where_both_are_exact() -> None:
    """Independent entries: a known one tells nothing of the others, and is returned by both."""
    plain = Denoiser(lambda x, t, c: 0.5 * x, GaussianPath(CondOT()))
    x = random(2, 3)
    y = torch.tensor([[0.7]], dtype=torch.float64)
    seen = Observation(plain, lambda data: data[:, :1], y, iterations=1)(x, 0.5)
    kept = Replacement(plain, torch.tensor([[0.7, math.nan, math.nan]]).double())(x, 0.5)
    assert torch.allclose(seen, kept, atol=1e-12)


class Watch(TorchDispatchMode):
    """Notes operations that bring a value from the device to Python."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket in (torch.ops.aten._local_scalar_dense, torch.ops.aten.nonzero):
            self.found.append(func)
        return func(*args, **(kwargs or {}))


def test_no_wrapper_waits_for_the_device() -> None:
    plain = labelled(Cosine())
    wrappers = [
        stack(),
        guided_pair(plain),
        Gradient(plain, lambda data, c: -(data**2).sum(1), normalise=True, clip=1.0),
        Gradient(plain, lambda data, c: -(data**2).sum(1), through=False),
        Observation(plain, lambda data: data[:, :1], torch.zeros(3, 1).double(), 0.1),
        Thresholded(plain, -1.0, 1.0, 0.9),
    ]
    for wrapper in wrappers:
        encoded = wrapper.encode(CONDITION)
        with Watch() as watch, torch.no_grad():
            wrapper(random(3, 2), 0.4, encoded, to="velocity")
        assert not watch.found, (type(wrapper).__name__, watch.found)


def guided_pair(plain: Denoiser) -> ClassifierFree:
    return ClassifierFree(plain, 2.0, {"label": -1}, rescale=0.5, interval=(0.2, 0.8))
