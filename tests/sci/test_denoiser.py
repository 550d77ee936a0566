"""Denoisers: predictions, masks, encodings, losses."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sci.denoiser import Denoiser, Encoded
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.samplers import ddim
from sci.schedules import VE, VP, CondOT, Cosine
from sci.spaces import Centred, Symmetric, widest

MASK = torch.tensor([[True, True, True, False], [True, True, True, True]])


class Graphs(nn.Module):
    """A network on nodes and edges, with a condition that it encodes."""

    def __init__(self) -> None:
        super().__init__()
        self.nodes, self.edges = nn.Linear(3, 3), nn.Linear(1, 1)
        self.calls = 0

    def encode(self, condition) -> Tensor:
        self.calls += 1
        return condition["scale"] * 2

    def forward(self, state, t: Tensor, condition: Tensor | None):
        assert t.shape == (2,)
        scale = condition.view(-1, 1, 1)
        edges = self.edges(state["edges"].unsqueeze(-1)).squeeze(-1)
        return {"nodes": self.nodes(state["nodes"]) * scale, "edges": edges * scale}


def graphs() -> tuple[Denoiser, dict[str, Tensor], dict[str, Tensor]]:
    paths = {"nodes": GaussianPath(Cosine()), "edges": GaussianPath(VE(0.1, 1.0), Symmetric())}
    denoiser = Denoiser(Graphs(), paths, {"nodes": "data", "edges": "noise"}, mask="mask")
    state = {
        "nodes": torch.randn(2, 4, 3) * MASK[:, :, None],
        "edges": Symmetric().random(torch.zeros(2, 4, 4), MASK),
    }
    return denoiser, state, {"mask": MASK, "scale": torch.tensor([1.0, 2.0])}


def test_predictions_lie_in_their_spaces_and_convert_leaf_by_leaf() -> None:
    denoiser, state, condition = graphs()
    data = denoiser(state, 0.3, condition)
    noise = denoiser(state, 0.3, condition, to={"nodes": "noise", "edges": "noise"})
    for name, path in denoiser.paths.items():
        for prediction in (data[name], noise[name]):
            assert torch.equal(path.space.project(prediction, MASK), prediction)
        assert torch.allclose(path.corrupt(data[name], noise[name], 0.3), state[name], atol=1e-5)


def test_float_and_tensor_times_agree() -> None:
    denoiser, state, condition = graphs()
    one = denoiser(state, 0.3, condition, to="velocity")
    two = denoiser(state, torch.tensor([0.3, 0.3], dtype=torch.float64), condition, to="velocity")
    three = denoiser(state, torch.tensor(0.3, dtype=torch.float64), condition, to="velocity")
    for name in state:
        assert torch.allclose(one[name], two[name], atol=1e-5)
        assert torch.equal(one[name], three[name])


def test_conditions_are_encoded_once_by_given_and_by_samplers() -> None:
    denoiser, state, condition = graphs()
    bound = denoiser.given(condition)
    assert denoiser.network.calls == 1 and denoiser.bound is None
    first, second = bound(state, 0.3), bound(state, 0.5)
    assert denoiser.network.calls == 1
    assert not torch.equal(first["edges"], second["edges"])
    assert torch.equal(first["edges"], denoiser(state, 0.3, condition)["edges"])
    before = denoiser.network.calls
    with torch.no_grad():
        one = ddim(5)(denoiser, like=state, condition=condition).state
        assert denoiser.network.calls == before + 1
        two = ddim(5)(bound, like=state).state
    assert denoiser.network.calls == before + 1
    assert torch.equal(one["edges"], two["edges"])
    assert isinstance(bound.bound, Encoded)
    assert {id(p) for p in bound.parameters()} == {id(p) for p in denoiser.parameters()}


def test_missing_masks_are_named() -> None:
    denoiser, state, condition = graphs()
    with pytest.raises(KeyError, match=r"condition\['mask'\]"):
        denoiser(state, 0.3, {"scale": condition["scale"]})
    flags = {**condition, "mask": MASK.float()}
    assert torch.equal(
        denoiser(state, 0.3, flags)["nodes"], denoiser(state, 0.3, condition)["nodes"]
    )


def test_loss_of_the_exact_answer_is_zero_and_of_zero_is_one() -> None:
    _, state, _ = graphs()
    path = GaussianPath(CondOT())
    oracle = Denoiser(
        lambda x, t, c: path.convert(state["nodes"], "data", "noise", x, t.double()), path, "noise"
    )
    assert oracle.loss(state["nodes"]) < 1e-6
    data = torch.randn(5000, 4, 3)
    for kind in ("data", "noise"):
        zero = Denoiser(lambda x, t, c: torch.zeros_like(x), path, kind)
        assert abs(zero.loss(data, generator=torch.Generator().manual_seed(0)) - 1) < 0.03


def test_loss_ignores_padding_and_counts_dimensions() -> None:
    denoiser, state, condition = graphs()
    generator = torch.Generator()
    loss = denoiser.loss(state, condition, generator.manual_seed(3))
    dirty = {"nodes": state["nodes"].clone(), "edges": state["edges"].clone()}
    dirty["nodes"][0, 3] = 1e6
    dirty["edges"][0, 3] = 1e6
    assert torch.allclose(denoiser.loss(dirty, condition, generator.manual_seed(3)), loss)
    loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in denoiser.parameters())


def test_loss_is_a_function_of_the_generator() -> None:
    denoiser, state, condition = graphs()
    losses = [
        denoiser.loss(state, condition, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    ]
    assert losses[0] == losses[1] != losses[2]


def test_weights_and_times() -> None:
    path = GaussianPath(VP())
    denoiser = Denoiser(lambda x, t, c: torch.zeros_like(x), path, "noise")
    data, t = torch.randn(6, 2), torch.linspace(0.1, 0.9, 6)
    generator = torch.Generator()

    def loss(**options) -> Tensor:
        return denoiser.loss(data, generator=generator.manual_seed(0), t=t, **options)

    assert torch.allclose(loss(weight=torch.full((6,), 3.0)), 3 * loss())
    assert torch.allclose(loss(weight=lambda t, path: 2 + 0 * t), 2 * loss())
    with pytest.raises(ValueError, match=r"lie in \[0, 1\]"):
        denoiser.loss(data, t=t + 1)
    times = denoiser.times(1000, generator.manual_seed(0))
    low, high = VP().span
    edges = torch.histc(times, 100, low, high)
    assert (
        times.min() >= low
        and times.max() <= high
        and torch.equal(edges, torch.full((100,), 10.0).double())
    )


def test_interpolants_train_between_given_ends() -> None:
    source, data = torch.randn(8, 2), torch.randn(8, 2)
    exact = Denoiser(lambda x, t, c: data - source, Interpolant(), "velocity")
    assert exact.loss(data, source=source) < 1e-10
    noisy = Denoiser(lambda x, t, c: data - source, Interpolant(noise=0.3), "velocity")
    assert noisy.loss(data, source=source) > 1e-3


def test_mistakes_are_named() -> None:
    path = GaussianPath(CondOT())
    with pytest.raises(ValueError, match="cannot predict"):
        Denoiser(lambda x, t, c: x, Interpolant(), "score")
    with pytest.raises(ValueError, match="did you mean 'data'"):
        Denoiser(lambda x, t, c: x, path, "dat")
    with pytest.raises(TypeError, match="callable"):
        Denoiser(3, path)
    with pytest.raises(ValueError, match=r"expected the leaves \['a'\]"):
        Denoiser(lambda x, t, c: {"b": x["a"]}, path)({"a": torch.zeros(1, 1)}, 0.5)
    with pytest.raises(ValueError, match="tree of paths"):
        Denoiser(lambda x, t, c: x, {"a": path})({"b": torch.zeros(1, 1)}, 0.5)


def test_noise_addresses_use_leaf_names() -> None:
    denoiser, state, condition = graphs()
    noise = Noise(0, range(2))
    start = {
        name: path.source(noise, name, state[name], MASK) for name, path in denoiser.paths.items()
    }
    with torch.no_grad():
        one = ddim(4)(denoiser, like=state, condition=condition, noise=noise).state
        two = ddim(4)(denoiser, start=start, condition=condition).state
    for name in state:
        assert torch.equal(one[name], two[name])


class Classes(GaussianPath):
    """A leaf that overrides every hook of the loss: int64 in, logits out."""

    heads = frozenset({"logits", "data"})

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return x if mask is None else torch.where(mask if x.dim() == 2 else mask[..., None], x, 0)

    def random(self, like: Tensor, mask=None, generator=None) -> Tensor:
        return torch.randint(3, like.shape, generator=generator)

    def corrupt(self, data: Tensor, noise: Tensor, t) -> Tensor:
        keep = torch.linspace(0, 1, data.shape[1])[None] < t[:, None]
        return torch.where(keep, data, noise)

    def target(self, kind: str, data: Tensor, noise: Tensor, t) -> Tensor:
        return data

    def error(self, prediction: Tensor, target: Tensor, kind: str, mask=None) -> Tensor:
        cross = nn.functional.cross_entropy(prediction.transpose(1, 2), target, reduction="none")
        return (cross * mask).sum(1) / mask.sum(1)


def test_leaves_need_not_be_floating() -> None:
    seen: list[Tensor] = []

    def network(state, t: Tensor, condition):
        seen.append(t)
        out = {"kinds": nn.functional.one_hot(state["kinds"], 3) * 2.0}
        return {name: out.get(name, leaf) for name, leaf in state.items()}

    data, mask = torch.tensor([[0, 1, 2, 1], [2, 2, 0, 0]]), MASK
    alone = Denoiser(network, {"kinds": Classes(CondOT())}, {"kinds": "logits"}, mask="mask")
    generator = torch.Generator()
    loss = alone.loss({"kinds": data}, {"mask": mask}, generator.manual_seed(0))
    assert seen[-1].dtype == torch.float32 and loss > 0
    dirty = torch.where(mask, data, 2)
    again = alone.loss({"kinds": dirty}, {"mask": mask}, generator.manual_seed(0))
    assert torch.equal(loss, again)
    paths = {"kinds": Classes(CondOT()), "x": GaussianPath(CondOT())}
    both = Denoiser(network, paths, {"kinds": "logits", "x": "data"}, mask="mask")
    state = {"kinds": data, "x": torch.randn(2, 4, 3, dtype=torch.float64)}
    both(state, 0.5, {"mask": mask}, to={"kinds": "logits", "x": "noise"})
    assert seen[-1].dtype == torch.float64
    assert torch.isfinite(both.loss(state, {"mask": mask}))


def test_networks_may_name_their_leaves_in_another_order() -> None:
    paths = {"a": GaussianPath(CondOT()), "b": GaussianPath(CondOT())}
    denoiser = Denoiser(lambda x, t, c: {"b": x["b"] + 1, "a": x["a"] + 2}, paths)
    found = denoiser({"a": torch.zeros(1, 1), "b": torch.zeros(1, 1)}, 0.5)
    assert list(found) == ["a", "b"] and float(found["a"]) == 2 and float(found["b"]) == 1


def test_nothing_in_the_padding_reaches_the_network_or_the_loss() -> None:
    denoiser, state, condition = graphs()
    generator = torch.Generator()
    loss = denoiser.loss(state, condition, generator.manual_seed(3))
    dirty = {name: leaf.clone() for name, leaf in state.items()}
    dirty["nodes"][0, 3] = float("nan")
    dirty["edges"][0, 3] = dirty["edges"][0, :, 3] = float("nan")
    assert torch.equal(denoiser.loss(dirty, condition, generator.manual_seed(3)), loss)


def test_times_avoid_float64_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    assert widest(torch.device("mps")) == torch.float32
    assert widest(torch.device("cpu")) == widest(torch.device("cuda")) == torch.float64
    monkeypatch.setattr("sci.denoiser.network.widest", lambda device: torch.float32)
    denoiser = Denoiser(lambda x, t, c: x, GaussianPath(Cosine()))
    assert denoiser.times(4).dtype == torch.float32


def test_an_empty_batch_has_no_loss_and_no_predictions() -> None:
    denoiser = Denoiser(lambda x, t, c: 0 * x, GaussianPath(Cosine()))
    empty = torch.zeros(0, 3)
    assert denoiser.loss(empty) == 0
    for t in (0.5, torch.zeros(0)):
        assert denoiser(empty, t, to="velocity").shape == (0, 3)


def test_given_sources_are_brought_into_the_space() -> None:
    seen: list[Tensor] = []
    path = GaussianPath(CondOT(), Centred())
    denoiser = Denoiser(lambda x, t, c: (seen.append(x), 0 * x)[1], path, mask="mask")
    source = torch.randn(2, 4, 3) + 5
    source[0, 3] = float("nan")
    loss = denoiser.loss(torch.zeros(2, 4, 3), {"mask": MASK}, source=source)
    assert torch.isfinite(loss)
    assert seen[0].sum(1).abs().max() < 1e-5 and not seen[0][0, 3].any()


def test_wrong_losses_are_named() -> None:
    data = torch.randn(4, 3)
    denoiser = Denoiser(lambda x, t, c: 0 * x, GaussianPath(Cosine()))
    generator = torch.Generator()
    one = denoiser.loss(data, generator=generator.manual_seed(0))
    for weight in (2.0, lambda t, path: 2.0, torch.tensor(2.0)):
        assert denoiser.loss(data, generator=generator.manual_seed(0), weight=weight) == 2 * one
    with pytest.raises(ValueError, match=r"weights have shape \(3,\): expected one an item"):
        denoiser.loss(data, weight=torch.ones(3))
    with pytest.raises(ValueError, match=r"t must be a tensor of shape \(4,\), got float"):
        denoiser.loss(data, t=0.5)
    with pytest.raises(TypeError, match="leaf 'state' is torch.int64"):
        denoiser.loss(data.long())
    masked = Denoiser(lambda x, t, c: x, GaussianPath(Cosine()), mask="mask")
    with pytest.raises(ValueError, match=r"shape \(4, 3, 1\): expected \(batch, nodes\)"):
        masked(data, 0.5, {"mask": torch.ones(4, 3, 1, dtype=torch.bool)})
    path = GaussianPath(Cosine())
    apart = {"a": path.rescheduled(Cosine(), (0.1, 0.4)), "b": path.rescheduled(VP(), (0.5, 0.9))}
    with pytest.raises(ValueError, match="share no times"):
        Denoiser(lambda x, t, c: x, apart).times(3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_data_network_has_a_velocity_at_data(dtype: torch.dtype) -> None:
    """The straight flow of N(0, 0.25) data: at t = 1 the velocity is x."""
    for schedule in (CondOT(), Cosine()):

        def network(x: Tensor, t: Tensor, condition, schedule=schedule) -> Tensor:
            alpha, sigma = (f(t).to(x)[:, None] for f in (schedule.alpha, schedule.sigma))
            return 0.25 * alpha / (0.25 * alpha**2 + sigma**2) * x

        denoiser = Denoiser(network, GaussianPath(schedule))
        x = torch.tensor([[0.3], [-0.7]], dtype=dtype)
        expected = schedule.alpha_dot(1.0) * x
        for t in (1.0, torch.ones(2, dtype=dtype)):
            found = denoiser(x, t, to="velocity")
            assert torch.allclose(found, expected, atol=20 * torch.finfo(dtype).eps ** 0.5)
            assert torch.equal(denoiser(x, t), x)
