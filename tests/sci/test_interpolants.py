"""Interpolants between populations, and the velocity and the score together."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sci.denoiser import Denoiser, Joined
from sci.paths import GaussianPath, Interpolant
from sci.schedules import CondOT
from sci.spaces import Symmetric


def test_interpolant_between_two_ends() -> None:
    path = Interpolant()
    data, source = torch.randn(4, 2), torch.randn(4, 2)
    assert torch.equal(path.corrupt(data, source, 0.0), source)
    assert torch.equal(path.corrupt(data, source, 1.0), data)
    assert torch.allclose(path.target("velocity", data, source, 0.3), data - source)
    x = path.corrupt(data, source, 0.25)
    assert torch.allclose(path.convert(data - source, "velocity", "data", x, 0.25), data, atol=1e-6)
    assert path.span == (0.0, 1.0) and path.deviation(0.3) == 0.0
    with pytest.raises(ValueError, match="score"):
        path.convert(x, "velocity", "score", x, 0.25)


def test_interpolant_with_noise() -> None:
    path = Interpolant(noise=0.5)
    data, source = torch.randn(4, 2).double(), torch.randn(4, 2).double()
    z, t = torch.randn(4, 2).double(), torch.tensor([0.2, 0.4, 0.6, 0.8], dtype=torch.float64)
    ahead = path.corrupt(data, source, t + 1e-6, z)
    behind = path.corrupt(data, source, t - 1e-6, z)
    velocity = path.target("velocity", data, source, t, z)
    assert torch.allclose(velocity, (ahead - behind) / 2e-6, atol=1e-6)
    gamma = 0.5 * torch.sqrt(2 * t * (1 - t))[:, None]
    score = path.target("score", data, source, t, z)
    assert torch.allclose(score, -z / gamma)
    assert torch.equal(path.target("latent", data, source, t, z), z)
    assert torch.allclose(path.convert(score, "score", "latent", z, t), z)
    assert torch.allclose(path.convert(z[0], "latent", "score", z[0], 0.2), score[0])
    with pytest.raises(ValueError, match="does not determine"):
        path.convert(velocity, "velocity", "score", z, 0.5)
    with pytest.raises(ValueError, match="give `latent`"):
        path.corrupt(data, source, t)
    with pytest.raises(ValueError, match="no `latent`"):
        Interpolant().corrupt(data, source, t, z)


def test_noisy_interpolants_stay_off_the_ends_where_they_are_singular() -> None:
    assert Interpolant(noise=0.1).span == (0.001, 0.999)
    assert Interpolant(noise=0.1, span=(0.2, 0.7)).span == (0.2, 0.7)
    denoiser = Denoiser(lambda x, t, c: 0 * x, Interpolant(noise=1.0), "velocity")
    data = torch.zeros(100000, 1)
    times = denoiser.times(100000, torch.Generator().manual_seed(0))
    assert times.min() >= 0.001 and times.max() <= 0.999
    loss = denoiser.loss(data, generator=torch.Generator().manual_seed(0), source=data)
    # E gamma'^2 = int (1 - 2 t)^2 / (2 t (1 - t)) dt, which is finite on the span only.
    expected = torch.log(torch.tensor(999.0)) - 2
    assert abs(float(loss / expected) - 1) < 0.1


class Heads(nn.Module):
    def __init__(self, second: str, factor: float = 1.0):
        super().__init__()
        self.rate = nn.Parameter(torch.tensor(0.3, dtype=torch.float64))
        self.second, self.factor, self.calls = second, factor, 0

    def forward(self, x: Tensor, t: Tensor, condition) -> dict[str, Tensor]:
        self.calls += 1
        gamma = 0.5 * torch.sqrt(2 * t * (1 - t))[:, None]
        latent = 0.7 * x
        second = latent if self.second == "latent" else -latent / gamma
        return {"velocity": self.rate * x, self.second: self.factor * second}


def test_one_network_or_two_and_score_or_latent_are_the_same() -> None:
    path, x = Interpolant(noise=0.5), torch.randn(6, 2, dtype=torch.float64)
    t = torch.linspace(0.1, 0.9, 6, dtype=torch.float64)
    one, other = Heads("score"), Heads("latent")
    pair = {
        "velocity": lambda x, t, c: one(x, t, c)["velocity"],
        "latent": lambda x, t, c: other(x, t, c)["latent"],
    }
    joined = [Joined(one, path), Joined(other, path), Joined(pair, path)]
    for time in (0.3, t):
        velocity, score = joined[0].both(x, time)
        for each in joined:
            found = each.both(x, time)
            assert torch.allclose(found[0], velocity) and torch.allclose(found[1], score)
            assert torch.allclose(each(x, time, to="velocity"), velocity)
            assert torch.allclose(each(x, time, to="score"), score)
            assert torch.allclose(each(x, time, to="latent"), 0.7 * x)
    before = one.calls
    joined[0].both(x, 0.3)
    assert one.calls == before + 1 and joined[0].evaluations == 1
    losses = [each.loss(x, generator=torch.Generator().manual_seed(1)) for each in joined]
    assert torch.allclose(losses[0], losses[1]) and torch.allclose(losses[0], losses[2])
    losses[0].backward()
    assert one.rate.grad is not None and one.rate.grad.abs() > 0


def test_both_losses_are_least_at_the_expectations() -> None:
    """Between two centred Gaussians the expectations are linear in the state."""
    noise, count = 0.5, 20000
    path = Interpolant(noise=noise)

    def network(scale: float, shift: float):
        def call(x: Tensor, t: Tensor, condition) -> dict[str, Tensor]:
            t = t[:, None]
            spread = t**2 * 0.25 + (1 - t) ** 2 * 1.44 + 2 * noise**2 * t * (1 - t)
            growth = 0.5 * t - 2.88 * (1 - t) + 2 * noise**2 * (1 - 2 * t)
            latent = noise * torch.sqrt(2 * t * (1 - t)) / spread * x
            return {"velocity": (0.5 * growth / spread + shift) * x, "latent": scale * latent}

        return call

    generator = torch.Generator().manual_seed(0)
    data = 0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    source = 1.2 * torch.randn(count, 1, generator=generator, dtype=torch.float64)

    def loss(scale: float, shift: float) -> float:
        joined = Joined(network(scale, shift), path)
        return float(joined.loss(data, generator=generator.manual_seed(1), source=source))

    best = loss(1.0, 0.0)
    for scale, shift in ((0.8, 0.0), (1.2, 0.0), (1.0, -0.2), (1.0, 0.2)):
        assert loss(scale, shift) > best + 1e-3


class Encoding(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.calls = nn.Linear(1, 1), 0

    def encode(self, condition):
        self.calls += 1
        return condition["scale"]

    def forward(self, x, t, condition):
        return {"edges": self.layer(x["edges"][..., None])[..., 0] * condition.view(-1, 1, 1)}


def test_trees_masks_and_encodings() -> None:
    velocity, score = Encoding(), Encoding()
    paths = {"edges": Interpolant(space=Symmetric(), noise=0.3)}
    joined = Joined({"velocity": velocity, "score": score}, paths, mask="mask")
    assert len(list(joined.parameters())) == 4
    mask = torch.tensor([[True, True, False], [True, True, True]])
    condition = {"mask": mask, "scale": torch.tensor([1.0, 2.0])}
    bound = joined.given(condition)
    state = {"edges": torch.randn(2, 3, 3)}
    for tree in (*bound.both(state, 0.4), *joined.both(state, 0.4, condition)):
        assert torch.equal(Symmetric().project(tree["edges"], mask), tree["edges"])
    assert velocity.calls == 2 and score.calls == 2
    loss = joined.loss(state, condition, torch.Generator().manual_seed(0))
    loss.backward()
    assert all(p.grad is not None for p in joined.parameters())


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="Interpolant with noise"):
        Joined(lambda x, t, c: x, GaussianPath(CondOT()))
    with pytest.raises(ValueError, match="Interpolant with noise"):
        Joined(lambda x, t, c: x, Interpolant())
    with pytest.raises(ValueError, match="'velocity' and either 'score' or 'latent'"):
        Joined({"velocity": lambda x, t, c: x}, Interpolant(noise=0.1))
    with pytest.raises(TypeError, match="network 'velocity' is a int"):
        Joined({"velocity": 3, "latent": lambda x, t, c: x}, Interpolant(noise=0.1))
    with pytest.raises(ValueError, match="did you mean 'latent'"):
        Interpolant(noise=0.1).convert(torch.zeros(1), "latnt", "score", torch.zeros(1), 0.5)
    joined = Joined(lambda x, t, c: x, Interpolant(noise=0.1))
    with pytest.raises(ValueError, match="t must lie in"):
        joined(torch.zeros(1, 1), 1.5)
    with pytest.raises(ValueError, match="got Tensor"):
        joined(torch.zeros(1, 1), 0.5)
    with pytest.raises(ValueError, match="negative"):
        Interpolant(noise=-1.0)


def test_ends_of_a_noisy_interpolant_are_its_ends() -> None:
    path, (data, source, z) = Interpolant(noise=0.5), torch.randn(3, 4, 2)
    for first, last in ((0.0, 1.0), (torch.zeros(4), torch.ones(4))):
        assert torch.equal(path.corrupt(data, source, first, z), source)
        assert torch.equal(path.corrupt(data, source, last, z), data)


def test_another_schedule_stays_off_the_ends_too() -> None:
    assert Interpolant(noise=0.1).rescheduled(CondOT()).span == (0.001, 0.999)
    assert Interpolant().rescheduled(CondOT()).span == (0.0, 1.0)
