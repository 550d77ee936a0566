"""Linear-Gaussian observations: exact posteriors, without sampling error."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.guidance import Observation
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.samplers import grids
from sci.schedules import VE, VP, CondOT, Cosine, Schedule
from sci.spaces import Centred, Symmetric

SIZE = 4
MEAN = torch.tensor([0.5, -1.0, 0.3, 2.0], dtype=torch.float64)
FACTOR = torch.tensor(
    [[1.0, 0.0, 0.0, 0.0], [0.8, 0.5, 0.0, 0.0], [-0.4, 0.3, 0.7, 0.0], [0.1, -0.6, 0.5, 0.4]],
    dtype=torch.float64,
)
COVARIANCE = FACTOR @ FACTOR.T
MASK = torch.tensor([[1.0, 0, 0, 0], [0, 0, 1, 0]], dtype=torch.float64)
SUMS = torch.tensor([[1.0, 1, 1, 1], [1, -1, 0, 0]], dtype=torch.float64)
BLUR = torch.tensor([[0.5, 0.5, 0, 0], [0, 0.5, 0.5, 0], [0, 0, 0.5, 0.5]], dtype=torch.float64)
OPERATORS = {"mask": MASK, "sums": SUMS, "blur": BLUR}
VALUES = torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64)


def posterior(
    mean: Tensor, covariance: Tensor, operator: Tensor, y: Tensor, std: float
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of N(mean, covariance) given y = operator data + std z."""
    noise = std**2 * torch.eye(len(operator), dtype=torch.float64)
    gain = covariance @ operator.T @ torch.linalg.inv(operator @ covariance @ operator.T + noise)
    return mean + gain @ (y - operator @ mean), covariance - gain @ operator @ covariance


def given_state(schedule: Schedule, x: Tensor, t: float) -> tuple[Tensor, Tensor]:
    """Mean and covariance of data given x_t."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    if sigma == 0:
        return x / alpha, torch.zeros_like(COVARIANCE)
    return posterior(MEAN, COVARIANCE, alpha * torch.eye(SIZE, dtype=torch.float64), x, sigma)


def normal(schedule: Schedule) -> Denoiser:
    """The exact denoiser of N(MEAN, COVARIANCE), in tensor operations."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = schedule.alpha(t).to(x), schedule.sigma(t).to(x)
        covariance = COVARIANCE.to(x)
        blurred = alpha[:, None, None] ** 2 * covariance
        blurred = blurred + sigma[:, None, None] ** 2 * torch.eye(SIZE).to(x)
        gain = alpha[:, None, None] * covariance @ torch.linalg.inv(blurred)
        mean = MEAN.to(x)
        return mean + (gain @ (x - alpha[:, None] * mean)[..., None]).squeeze(-1)

    return Denoiser(network, GaussianPath(schedule))


def states(count: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, SIZE, dtype=torch.float64, generator=generator)


# --- one call ----------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VP(), VE(0.05, 20.0)])
@pytest.mark.parametrize("name", list(OPERATORS))
@pytest.mark.parametrize("std", [0.0, 1e-8, 1e-2, 0.5, 10.0])
def test_a_call_is_the_posterior_mean_given_state_and_measurement(schedule, name, std) -> None:
    operator = OPERATORS[name]
    y = VALUES[: len(operator)]
    guided = Observation(
        normal(schedule), lambda data: data @ operator.T, y[None], std, len(operator)
    )
    assert guided.evaluations == 1 + len(operator)
    x = states(3)
    for t in (0.02, 0.4, 0.8, 0.97):
        out = guided(x, t)
        for row in range(3):
            mean, covariance = given_state(schedule, x[row], t)
            expected = posterior(mean, covariance, operator, y, std)[0]
            assert torch.allclose(out[row], expected, rtol=1e-7, atol=1e-7), (t, row)


def test_pure_noise_has_its_limit_and_pure_data_is_left() -> None:
    guided = Observation(normal(CondOT()), lambda data: data @ SUMS.T, VALUES[None, :2], 0.3, 2)
    expected = posterior(MEAN, COVARIANCE, SUMS, VALUES[:2], 0.3)[0]
    x = states(2)
    assert torch.allclose(guided(x, 0.0), expected.expand(2, -1), atol=3e-5)
    assert torch.allclose(guided(x, 1.0), x, atol=1e-12)
    velocity = guided(x, 0.0, to="velocity")
    assert torch.allclose(velocity, expected - x, atol=3e-5)


def test_affine_operators_and_different_errors_of_the_measurements() -> None:
    schedule, shift = Cosine(), torch.tensor([3.0, -2.0], dtype=torch.float64)
    stds = torch.tensor([[0.1, 1.5]], dtype=torch.float64)
    y = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    guided = Observation(normal(schedule), lambda data: data @ SUMS.T + shift, y, stds, 2)
    x = states(1)
    mean, covariance = given_state(schedule, x[0], 0.6)
    gain = (
        covariance
        @ SUMS.T
        @ torch.linalg.inv(SUMS @ covariance @ SUMS.T + torch.diag(stds[0] ** 2))
    )
    expected = mean + gain @ (y[0] - shift - SUMS @ mean)
    assert torch.allclose(guided(x, 0.6)[0], expected, atol=1e-9)


# --- whole runs --------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [CondOT(), Cosine()], ids=["CondOT", "Cosine"])
@pytest.mark.parametrize("name", list(OPERATORS))
@pytest.mark.parametrize("std", [1e-6, 0.1, 1.0])
def test_samples_have_the_posterior_mean_and_covariance(schedule, name: str, std: float) -> None:
    """The flow of a Gaussian is affine in its start: five starts give its mean and its matrix, and
    matrix matrix^T is the covariance of what it makes of standard noise. No sampling error."""
    operator = OPERATORS[name]
    y = VALUES[: len(operator)]
    guided = Observation(
        normal(schedule), lambda data: data @ operator.T, y[None], std, len(operator)
    )
    start = torch.cat([torch.zeros(1, SIZE), torch.eye(SIZE)]).double()
    sampler = samplers.abm(3, 80, grid=grids.uniform_time(0, 1))
    with torch.no_grad():
        out = sampler(guided, start=start)
    assert out.nfe == 80 * (1 + len(operator))
    mean, covariance = posterior(MEAN, COVARIANCE, operator, y, std)
    matrix = (out.state[1:] - out.state[0]).T
    assert torch.allclose(out.state[0], mean, atol=5e-6)
    assert torch.allclose(matrix @ matrix.T, covariance, atol=3e-5)


def test_sampled_moments_agree_within_sampling_error() -> None:
    """n = 20,000 stochastic samples; the bound is four standard errors and the step's own error."""
    count, std = 20_000, 0.2
    schedule = Cosine()
    guided = Observation(normal(schedule), lambda data: data @ SUMS.T, VALUES[None, :2], std, 2)
    sampler = samplers.sde_dpmpp_2m(40)
    like = torch.zeros(count, SIZE, dtype=torch.float64)
    with torch.no_grad():
        out = sampler(guided, like=like, noise=Noise(0, range(count))).state
    mean, covariance = posterior(MEAN, COVARIANCE, SUMS, VALUES[:2], std)
    spread = covariance.diagonal().sqrt()
    assert ((out.mean(0) - mean).abs() < 4 * spread / math.sqrt(count) + 5e-3).all()
    error = 4 * math.sqrt(2 / count) * torch.outer(spread, spread) + 1e-2
    assert ((torch.cov(out.T) - covariance).abs() < error).all()


# --- spaces and trees --------------------------------------------------------------------------


def test_pairs_of_a_symmetric_leaf_are_one_unknown() -> None:
    """Independent pairs of variance 0.49: a measured pair moves, by the gain of one unknown."""
    schedule, variance, t, std = CondOT(), 0.49, 0.6, 0.3

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = (a.to(x)[:, None, None] for a in (schedule.alpha(t), schedule.sigma(t)))
        return alpha * variance / (alpha**2 * variance + sigma**2) * x

    plain = Denoiser(network, GaussianPath(schedule, Symmetric()), mask="mask")
    x = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[True, True, True, True], [True, True, True, False]])
    x = Symmetric().project(x, mask)
    condition = {"mask": mask}
    y = torch.tensor([[2.0], [-1.0]], dtype=torch.float64)
    guided = Observation(plain, lambda data: data[:, 0, 1:3].sum(1, keepdim=True), y, std, 1)
    before, after = plain(x, t, condition), guided(x, t, condition)
    left = variance * (1 - t) ** 2 / (t**2 * variance + (1 - t) ** 2)
    gap = y[:, 0] - before[:, 0, 1:3].sum(1)
    change = left * gap / (2 * left + std**2)
    expected = before.clone()
    for other in (1, 2):
        expected[:, 0, other] += change
        expected[:, other, 0] += change
    assert torch.allclose(after, expected, atol=1e-12)


def test_centred_leaves_stay_centred_and_leaves_inform_each_other() -> None:
    schedule = Cosine()

    def network(state, t: Tensor, condition):
        alpha, sigma = (a.to(state["a"]) for a in (schedule.alpha(t), schedule.sigma(t)))
        # One hidden normal number shows in both leaves: data_a = h, data_b = h pattern.
        pattern = torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
        precision = 1 + 3 * alpha**2 / sigma**2
        seen = state["a"][:, 0] + (state["b"][..., 0] * pattern).sum(1)
        hidden = alpha * seen / sigma**2 / precision
        return {"a": hidden[:, None], "b": hidden[:, None, None] * pattern[:, None]}

    paths = {"a": GaussianPath(schedule), "b": GaussianPath(schedule, Centred())}
    plain = Denoiser(network, paths)
    state = {
        "a": torch.tensor([[0.3]], dtype=torch.float64),
        "b": torch.tensor([[[0.2], [0.1], [-0.3]]], dtype=torch.float64),
    }
    y = torch.tensor([[1.2]], dtype=torch.float64)
    guided = Observation(plain, lambda data: data["a"], y, 0.5, 1)
    t = 0.45
    out = guided(state, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    precision = 1 + 3 * alpha**2 / sigma**2 + 1 / 0.25
    seen = 0.3 + 0.2 - 0.1
    hidden = (alpha * seen / sigma**2 + 1.2 / 0.25) / precision
    assert math.isclose(float(out["a"].detach()), hidden, rel_tol=1e-9)
    expected = hidden * torch.tensor([1.0, -1.0, 0.0], dtype=torch.float64)
    assert torch.allclose(out["b"][0, :, 0], expected, atol=1e-9)
    assert out["b"].sum(1).abs().max() < 1e-12


# --- batches, times, gradients -----------------------------------------------------------------


def test_items_do_not_see_each_other_and_may_have_their_own_times() -> None:
    schedule = Cosine()
    y = states(3, seed=2)[:, :2]
    x, t = states(3), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    guided = Observation(normal(schedule), lambda data: data @ SUMS.T, y, 0.2, 2)
    whole = guided(x, t)
    for row in range(3):
        alone = Observation(normal(schedule), lambda data: data @ SUMS.T, y[row : row + 1], 0.2, 2)
        out = alone(x[row : row + 1], float(t[row]))
        assert torch.allclose(whole[row : row + 1], out, rtol=1e-10, atol=1e-10)


def test_taking_items_takes_their_measurements() -> None:
    y = states(3, seed=2)[:, :2]
    guided = Observation(normal(Cosine()), lambda data: data @ SUMS.T, y, 0.2, 2)
    plan = samplers.dpmpp_2m(6).plan(guided.paths)
    rows = torch.tensor([2, 0])
    with torch.no_grad():
        carry = plan.init(states(3), Noise(0, range(3)), guided.encode(None))
        carry = plan.step(guided, carry)
        part = carry.take(rows)
        while carry.step < plan.steps:
            carry, part = plan.step(guided, carry), plan.step(guided, part)
    assert torch.allclose(carry.state[rows], part.state, atol=1e-12)


def test_gradients_reach_network_values_and_state() -> None:
    schedule = CondOT()
    weight = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    plain = Denoiser(lambda x, t, c: torch.tanh(weight * x) + weight, GaussianPath(schedule))
    y = torch.tensor([[0.4]], dtype=torch.float64)
    guided = Observation(plain, lambda data: data.sum(1, keepdim=True), y, 0.3, 3)
    x = states(1).requires_grad_()

    def outcome(weight: Tensor, x: Tensor) -> Tensor:
        return guided(x, 0.5)

    assert torch.autograd.gradcheck(outcome, (weight, x), atol=1e-6)
    with torch.inference_mode():
        out = guided(states(1), 0.5)
    assert torch.allclose(out, guided(states(1), 0.5)) and not out.requires_grad


# --- mistakes ----------------------------------------------------------------------------------


def test_mistakes_are_named() -> None:
    plain, y = normal(CondOT()), VALUES[None, :2]
    x = states(2)
    with pytest.raises(TypeError, match="expected a function of data"):
        Observation(plain, SUMS, y)
    with pytest.raises(ValueError, match="floating and finite"):
        Observation(plain, lambda data: data, torch.tensor([[float("nan")]]))
    with pytest.raises(ValueError, match="not negative"):
        Observation(plain, lambda data: data, y, std=-1.0)
    with pytest.raises(ValueError, match="broadcast"):
        Observation(plain, lambda data: data, y, std=torch.ones(5))
    with pytest.raises(ValueError, match="iterations"):
        Observation(plain, lambda data: data, y, iterations=0)
    with pytest.raises(
        ValueError, match=r"returns \[\(4,\)\] an item and the values have \[\(2,\)\]"
    ):
        Observation(plain, lambda data: data, y)(x, 0.5)
    with pytest.raises(ValueError, match="values for 3 items and is called with 2"):
        Observation(plain, lambda data: data[:, :2], y.expand(3, 2))(x, 0.5)
    bridge = Denoiser(lambda x, t, c: x, Interpolant(), "data")
    with pytest.raises(ValueError, match="Gaussian paths and the state has none"):
        Observation(bridge, lambda data: data[:, :2], y)(x, 0.5)


@pytest.mark.parametrize("kind", ["data", "noise", "angular"])
def test_single_precision_reaches_pure_noise_with_any_kind_of_network(kind: str) -> None:
    """The slope of a network that predicts noise is a small difference near pure noise."""
    schedule = Cosine()
    exact = normal(schedule)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = (a.to(x)[:, None] for a in (schedule.alpha(t), schedule.sigma(t)))
        data = exact.network(x, t, None)
        noise = (x - alpha * data) / sigma
        return {"data": data, "noise": noise, "angular": alpha * noise - sigma * data}[kind]

    plain = Denoiser(network, GaussianPath(schedule), kind)
    y = VALUES[None, :2].float()
    operator = SUMS.float()
    guided = Observation(plain, lambda data: data @ operator.T, y, 0.3, 2)
    expected = posterior(MEAN, COVARIANCE, SUMS, VALUES[:2], 0.3)[0]
    out = guided(states(4).float(), 0.0)
    assert (out.double() - expected).abs().max() < 0.05


def test_a_slope_that_is_no_covariance_moves_nothing() -> None:
    wrong = Denoiser(lambda x, t, c: -x, GaussianPath(CondOT()))
    guided = Observation(wrong, lambda data: data @ SUMS.T, VALUES[None, :2], 0.1, 3)
    assert torch.equal(guided(states(2), 0.4), -states(2))


def test_one_number_an_item_and_no_items() -> None:
    plain = Denoiser(lambda x, t, c: x, GaussianPath(CondOT()))
    y = torch.tensor([2.0, -1.0], dtype=torch.float64)
    x = torch.zeros(2, 3, dtype=torch.float64)
    stds = torch.tensor([0.0, 1.0], dtype=torch.float64)
    out = Observation(plain, lambda data: data[:, 0], y, stds, 1)(x, 0.5)
    # The covariance of this denoiser is sigma^2 / alpha = 1/2.
    assert torch.allclose(out[:, 0], torch.tensor([2.0, -1.0 * 0.5 / 1.5]).double())
    one = Observation(plain, lambda data: data[:, :1], torch.ones(1, 1), iterations=1)
    assert one(torch.zeros(0, 3), 0.5).shape == (0, 3)
