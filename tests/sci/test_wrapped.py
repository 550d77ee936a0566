"""The base of everything that wraps a denoiser."""

from __future__ import annotations

import pytest
import torch
from analytic import MEAN, STD, gaussian, points, run
from torch import Tensor, nn

from sci import samplers, tree
from sci.denoiser import Denoiser, Encoded, Rescheduled, TimeShift, Wrapped
from sci.guidance import Replacement, Thresholded
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.schedules import VE, CondOT, Cosine
from sci.spaces import Symmetric

KINDS = ["data", "noise", "score", "velocity", "angular", "difference"]


class Halved(Wrapped):
    """Half of every data prediction, at the price of two evaluations."""

    @property
    def evaluations(self) -> int:
        return 2 * super().evaluations

    def data(self, state, t, condition=None):
        found = super().data(state, t, condition)
        return {name: 0.5 * leaf for name, leaf in found.items()}


class Graphs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.calls = 0

    def encode(self, condition):
        self.calls += 1
        return condition["scale"]

    def forward(self, state, t: Tensor, condition: Tensor):
        scale = condition.view(-1, 1, 1)
        return {"nodes": self.layer(state["nodes"]) * scale, "edges": state["edges"] * scale}


def graphs():
    mask = torch.tensor([[True, True, True, False], [True] * 4])
    paths = {"nodes": GaussianPath(Cosine()), "edges": GaussianPath(VE(0.1, 1.0), Symmetric())}
    denoiser = Denoiser(Graphs(), paths, {"nodes": "data", "edges": "noise"}, mask="mask")
    state = {
        "nodes": torch.randn(2, 4, 3) * mask[:, :, None],
        "edges": Symmetric().random(torch.zeros(2, 4, 4), mask),
    }
    return denoiser, state, {"mask": mask, "scale": torch.tensor([1.0, 2.0])}


@pytest.mark.parametrize("kind", KINDS)
def test_the_base_changes_nothing(kind: str) -> None:
    denoiser, x = gaussian(Cosine()), points()
    t = torch.linspace(0.1, 0.9, 8, dtype=torch.float64)
    for time in (0.4, t):
        expected = denoiser(x, time, to=kind)
        assert torch.allclose(Wrapped(denoiser)(x, time, to=kind), expected, rtol=1e-10)
        assert torch.allclose(Wrapped(Wrapped(denoiser))(x, time, to=kind), expected, rtol=1e-10)


def test_an_override_of_data_reaches_every_kind_and_leaf() -> None:
    denoiser, state, condition = graphs()
    halved = Halved(denoiser)
    data = denoiser(state, 0.3, condition)
    kinds = {"nodes": "noise", "edges": "velocity"}
    found = halved(state, 0.3, condition, to=kinds)
    for name, path in denoiser.paths.items():
        expected = path.convert(0.5 * data[name], "data", kinds[name], state[name], 0.3)
        assert torch.allclose(found[name], expected, atol=1e-6)
    mixed = halved(state, 0.3, condition, to={"nodes": "data", "edges": "data"})
    assert torch.equal(mixed["nodes"], 0.5 * data["nodes"])


def test_conditions_masks_and_layouts_are_those_inside() -> None:
    denoiser, state, condition = graphs()
    halved = Halved(denoiser)
    bound = halved.given(condition)
    assert denoiser.network.calls == 1
    assert halved.denoiser is denoiser and denoiser.bound is None
    assert isinstance(bound.denoiser.bound, Encoded) and isinstance(bound, Halved)
    one, two = bound(state, 0.3), bound(state, 0.5)
    assert denoiser.network.calls == 1 and not torch.equal(one["edges"], two["edges"])
    assert torch.equal(bound.mask_of(), condition["mask"])
    assert {id(p) for p in bound.parameters()} == {id(p) for p in denoiser.parameters()}
    paths, kinds = halved.layout(tree.flatten(state)[1])
    assert paths == list(denoiser.paths.values()) and kinds == ["data", "noise"]
    assert halved.paths is denoiser.paths
    samples = samplers.ddim(5)(halved, like=state, condition=condition, seed=1).state
    assert torch.isfinite(samples["nodes"]).all()


def test_evaluations_multiply() -> None:
    denoiser, _, _ = graphs()
    assert denoiser.evaluations == 1 and Wrapped(denoiser).evaluations == 1
    assert Halved(denoiser).evaluations == 2 and Halved(Halved(denoiser)).evaluations == 4


def test_gradients_flow_through_wrappers() -> None:
    x = points().requires_grad_()
    out = run_with_gradient(Wrapped(gaussian(CondOT())), x)
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert (slope.abs() > 0).all()
    assert torch.allclose(out.detach(), run(sampler(), gaussian(CondOT()), points()), rtol=1e-9)


def sampler():
    return samplers.ddim(6, grid=samplers.grids.uniform_time(0.1, 0.9))


def run_with_gradient(denoiser, x: Tensor) -> Tensor:
    return sampler()(denoiser, start=x).state


def test_times_and_inner_denoisers_are_checked() -> None:
    wrapped, x = Wrapped(gaussian(CondOT())), points()
    for t in (-0.1, 1.1, float("nan"), torch.full((8,), 1.5), torch.tensor(2.0)):
        for denoiser in (wrapped, wrapped.denoiser):
            with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
                denoiser(x, t)
    for t in (torch.full((7,), 0.5), torch.full((8, 1), 0.5), torch.full((1,), 0.5)):
        for denoiser in (wrapped, wrapped.denoiser):
            with pytest.raises(ValueError, match=r"expected a float, or a tensor of shape \(8,\)"):
                denoiser(x, t)
    with pytest.raises(TypeError, match="expected a sci.Denoiser"):
        Wrapped(3)
    with pytest.raises(TypeError, match="expected a sci.Denoiser"):
        Wrapped(lambda x, t: x)
    with pytest.raises(ValueError, match="the state's"):
        denoiser, state, condition = graphs()
        bad = Halved(denoiser)
        bad.data = lambda state, t, condition=None: {"nodes": state["nodes"]}  # type: ignore[method-assign]
        bad(state, 0.5, condition, to="noise")


@pytest.mark.parametrize("name", ["heun", "rk4"])
def test_samplers_that_end_on_a_velocity_take_wrappers(name: str) -> None:
    """The last stage asks for the velocity at t = 1, where data predictions know nothing of it."""
    network = gaussian(CondOT()).network
    path = GaussianPath(CondOT())

    def velocity(x: Tensor, t: Tensor, condition) -> Tensor:
        # Of N(MEAN, STD^2) data in closed form, finite at both ends.
        alpha, sigma = t[:, None], 1 - t[:, None]
        blurred = (alpha * STD) ** 2 + sigma**2
        return MEAN + (alpha * STD**2 - sigma) / blurred * (x - alpha * MEAN)

    plain = Denoiser(velocity, path, "velocity")
    x, sampler = points(), samplers.preset(name, 8)
    assert torch.allclose(plain(x, 0.4), Denoiser(network, path)(x, 0.4))
    expected = run(sampler, plain, x)
    assert torch.allclose(run(sampler, Wrapped(plain), x), expected, atol=1e-6)
    assert torch.allclose(run(sampler, Denoiser(network, path), x), expected, atol=1e-6)


def test_leaves_of_an_override_may_come_in_any_order() -> None:
    class Shuffled(Wrapped):
        def data(self, state, t, condition=None):
            found = super().data(state, t, condition)
            return dict(reversed(found.items()))

    paths = {"a": GaussianPath(CondOT()), "b": GaussianPath(CondOT())}
    plain = Denoiser(lambda x, t, c: {"a": 0 * x["a"] + 1, "b": 0 * x["b"] + 2}, paths)
    state = {"a": torch.zeros(1, 2), "b": torch.zeros(1, 2)}
    for outer in (Shuffled(plain), Thresholded(Shuffled(plain), -9, 9)):
        found = outer(state, 0.5)
        assert list(found) == ["a", "b"]
        assert float(found["a"][0, 0]) == 1 and float(found["b"][0, 0]) == 2


def test_what_is_known_is_found_inside_any_wrapper() -> None:
    known = torch.tensor([[5.0, float("nan")]], dtype=torch.float64)
    inner = Replacement(gaussian(Cosine()), known)
    x, noise = torch.zeros(3, 2, dtype=torch.float64), Noise(0, range(3))
    outer = [Wrapped(inner), TimeShift(inner, 0.1), Rescheduled(inner, CondOT())]
    for each in outer:
        assert each.finish(x).tolist() == [[5.0, 0.0]] * 3
    assert torch.equal(outer[0].redraw(x, 0.5, noise, 0), inner.redraw(x, 0.5, noise, 0))
    # Another schedule has other noise at that time: nothing is drawn.
    assert outer[2].redraw(x, 0.5, noise, 0) is x
    assert Wrapped(gaussian(Cosine())).finish(x) is x
