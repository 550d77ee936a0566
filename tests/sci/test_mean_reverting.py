"""Mean-reverting diffusion against the formulae of its papers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sci import samplers
from sci.denoiser import MeanReverting, mean_reverting
from sci.paths import GaussianPath
from sci.schedules import OrnsteinUhlenbeck

MU = torch.tensor([[2.0, -1.0], [0.5, 3.0]], dtype=torch.float64)
SCHEDULE = OrnsteinUhlenbeck(5.0, 0.3)
CONDITION = {"degraded": MU}


def network(x: Tensor, t: Tensor, condition) -> Tensor:
    """Something that depends on everything that it is given."""
    return torch.tanh(x) * (1 + t[:, None]) + 0.1 * condition["degraded"]


def start() -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return MU + 0.3 * torch.randn(2, 2, generator=generator, dtype=torch.float64)


def published(kind: str, times: np.ndarray) -> Tensor:
    """Steps of first order as the papers write them, with the mean in the formula."""
    x = start()
    for s, t in zip(times[:-1], times[1:], strict=True):
        alpha_s, alpha_t = np.exp(-5 * (1 - s)), np.exp(-5 * (1 - t))
        sigma_s, sigma_t = (0.3 * np.sqrt(1 - a**2) for a in (alpha_s, alpha_t))
        step = np.log(alpha_t / sigma_t) - np.log(alpha_s / sigma_s)
        found = network(x, torch.full((2,), s, dtype=torch.float64), CONDITION)
        if kind == "data":
            fall = alpha_t * (np.exp(-step) - 1)
            shift = 1 - sigma_t / sigma_s + fall
            x = sigma_t / sigma_s * x + shift * MU - fall * found
        else:
            ratio = alpha_t / alpha_s
            x = ratio * x + (1 - ratio) * MU - sigma_t * (np.exp(step) - 1) * found
    return x


@pytest.mark.parametrize("kind", ["data", "noise"])
def test_steps_are_those_of_the_papers(kind: str) -> None:
    times = np.array([0.05, 0.2, 0.35, 0.6, 0.8, 0.95])
    denoiser = mean_reverting(network, GaussianPath(SCHEDULE), "degraded", kind)
    z = denoiser.network.shift(start(), CONDITION)
    with torch.no_grad():
        out = samplers.ddim(5, kind=kind)(denoiser, start=z, condition=CONDITION, times=times)
    found = denoiser.network.restore(out.state, CONDITION)
    assert torch.allclose(found, published(kind, times), rtol=1e-10, atol=1e-10)


def test_second_order_steps_carry_the_mean_too() -> None:
    """The multistep formula with + mu (1 - A - sum of the data weights)."""
    times = np.array([0.1, 0.3, 0.5, 0.7])
    denoiser = mean_reverting(network, GaussianPath(SCHEDULE), "degraded", "data")
    sampler = samplers.dpmpp_2m(3)
    z = denoiser.network.shift(start(), CONDITION)
    with torch.no_grad():
        out = sampler(denoiser, start=z, condition=CONDITION, times=times).state
    plan = sampler.plan(GaussianPath(SCHEDULE), times)
    x, past = start(), []
    for step, t in enumerate(times[:-1]):
        past.insert(0, network(x, torch.full((2,), t, dtype=torch.float64), CONDITION))
        scale, weights, _ = plan.coefficients(step)
        terms = list(zip(weights, past, strict=False))
        x = scale * x + sum(w * p for w, p in terms) + MU * (1 - scale - sum(w for w, _ in terms))
    assert torch.allclose(denoiser.network.restore(out, CONDITION), x, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", ["data", "noise", "score", "velocity"])
def test_predictions_of_x_become_those_of_z(kind: str) -> None:
    path = GaussianPath(SCHEDULE)
    data = torch.randn(2, 2, dtype=torch.float64)
    noise, t = torch.randn(2, 2, dtype=torch.float64), 0.4
    alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
    x = alpha * data + (1 - alpha) * MU + sigma * noise
    truths = {
        "data": data,
        "noise": noise,
        "score": -noise / sigma,
        "velocity": SCHEDULE.alpha_dot(t) * (data - MU) + SCHEDULE.sigma_dot(t) * noise,
    }

    def exact(found: Tensor, t: Tensor, condition) -> Tensor:
        assert torch.allclose(found, x)
        return truths[kind]

    denoiser = mean_reverting(exact, path, lambda condition: condition["degraded"], kind)
    z = denoiser.network.shift(x, CONDITION)
    assert torch.allclose(denoiser(z, t, CONDITION), data - MU)
    assert torch.allclose(denoiser(z, t, CONDITION, to="noise"), noise)


def test_training_blurs_towards_the_mean() -> None:
    seen: list[Tensor] = []

    def watch(x: Tensor, t: Tensor, condition) -> Tensor:
        seen.append(x)
        return 0 * x

    count = 4000
    mean = torch.full((count, 1), 5.0, dtype=torch.float64)
    denoiser = mean_reverting(watch, GaussianPath(SCHEDULE), "mean", "noise")
    data = torch.zeros(count, 1, dtype=torch.float64)
    loss = denoiser.loss(
        denoiser.network.shift(data, {"mean": mean}),
        {"mean": mean},
        torch.Generator().manual_seed(0),
        t=torch.full((count,), 0.3, dtype=torch.float64),
    )
    assert abs(float(loss) - 1) < 0.1
    alpha = SCHEDULE.alpha(0.3)
    assert abs(float(seen[0].mean()) - 5 * (1 - alpha)) < 0.02
    assert abs(float(seen[0].std()) - SCHEDULE.sigma(0.3)) < 0.01


def test_trees_encoders_and_mistakes() -> None:
    class Encoder(torch.nn.Module):
        calls = 0

        def encode(self, condition):
            self.calls += 1
            return condition["mean"]["a"] * 0 + 1.0

        def forward(self, x, t, condition):
            return {"a": x["a"] * condition, "b": x["b"]}

    inner = Encoder()
    paths = {"a": GaussianPath(SCHEDULE), "b": GaussianPath(SCHEDULE)}
    denoiser = mean_reverting(inner, paths, "mean", {"a": "data", "b": "noise"})
    condition = {"mean": {"a": MU, "b": 2 * MU}}
    like = {"a": 0 * MU, "b": 0 * MU}
    with torch.no_grad():
        out = samplers.ddim(4)(denoiser, like=like, condition=condition, seed=0).state
    assert inner.calls == 1
    restored = denoiser.network.restore(out, condition)
    assert torch.allclose(restored["b"] - out["b"], 2 * MU)
    with pytest.raises(KeyError, match="the mean is condition\\['mean'\\]"):
        denoiser(like, 0.5, {"other": MU})
    with pytest.raises(ValueError, match="needs a condition"):
        denoiser(like, 0.5)
    with pytest.raises(ValueError, match="predicts one of"):
        mean_reverting(network, GaussianPath(SCHEDULE), "mean", "angular")


def test_the_network_and_its_denoiser_predict_the_same_unless_told() -> None:
    denoiser = mean_reverting(network, GaussianPath(SCHEDULE), "degraded")
    assert denoiser.predicts == MeanReverting(network, "degraded").predicts == "noise"
