"""Guidance by the gradient of a target."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.guidance import Gradient
from sci.paths import GaussianPath
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import grids
from sci.schedules import VE, VP, CondOT, Cosine, Schedule
from sci.spaces import Centred, Symmetric, quaternions


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


FACTOR = torch.tensor([[1.0, 0.0, 0.0], [0.8, 0.5, 0.0], [-0.4, 0.3, 0.7]], dtype=torch.float64)
COVARIANCE, MEAN = FACTOR @ FACTOR.T, torch.tensor([0.5, -1.0, 0.3], dtype=torch.float64)
SLOPE = torch.tensor([0.4, -0.3, 0.8], dtype=torch.float64)


def normal(schedule: Schedule) -> Denoiser:
    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = (a.to(x)[:, None, None] for a in (schedule.alpha(t), schedule.sigma(t)))
        blurred = alpha**2 * COVARIANCE + sigma**2 * torch.eye(3, dtype=torch.float64)
        gain = alpha * COVARIANCE @ torch.linalg.inv(blurred)
        return MEAN + (gain @ (x - alpha[..., 0] * MEAN)[..., None]).squeeze(-1)

    return Denoiser(network, GaussianPath(schedule))


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VP(), VE(0.05, 20.0)])
def test_a_linear_target_moves_data_by_its_covariance(schedule) -> None:
    guided = Gradient(normal(schedule), lambda data, condition: data @ SLOPE, 1.7)
    assert guided.evaluations == 2
    x = random(2, 3)
    for t in (0.05, 0.5, 0.95):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        left = torch.linalg.inv(
            torch.linalg.inv(COVARIANCE) + (alpha / sigma) ** 2 * torch.eye(3).double()
        )
        expected = normal(schedule)(x, t) + 1.7 * left @ SLOPE
        assert torch.allclose(guided(x, t), expected, rtol=1e-8, atol=1e-8)


def test_samples_of_a_tilted_gaussian_have_its_mean_and_covariance() -> None:
    """exp(w a data) shifts the mean by w S a and keeps S; the flow is affine in its start."""
    guided = Gradient(normal(CondOT()), lambda data, condition: data @ SLOPE, 1.7)
    start = torch.cat([torch.zeros(1, 3), torch.eye(3)]).double()
    with torch.no_grad():
        out = samplers.abm(3, 80, grid=grids.uniform_time(0, 1))(guided, start=start)
    matrix = (out.state[1:] - out.state[0]).T
    assert out.nfe == 160
    assert torch.allclose(out.state[0], MEAN + 1.7 * COVARIANCE @ SLOPE, atol=1e-5)
    assert torch.allclose(matrix @ matrix.T, COVARIANCE, atol=3e-5)


def test_without_the_network_the_prior_variance_stands_in() -> None:
    schedule, std, t = Cosine(), 1.5, 0.4
    guided = Gradient(
        normal(schedule), lambda data, condition: -((data - 1) ** 2).sum(1), 0.5, False, std
    )
    assert guided.evaluations == 1
    x = random(2, 3)
    data = normal(schedule)(x, t)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    variance = 1 / (1 / std**2 + (alpha / sigma) ** 2)
    expected = data - 0.5 * variance * 2 * (data - 1)
    assert torch.allclose(guided(x, t), expected, atol=1e-12)
    with torch.no_grad():
        assert torch.allclose(guided(x, t), expected, atol=1e-12)
    pure = guided(x, 0.0)
    assert torch.isfinite(pure).all()


@pytest.mark.parametrize("through", [True, False])
def test_pairs_count_once_and_padding_stays_empty(through) -> None:
    """Independent pairs of variance one: a pair moves by w v times its own slope, not half of it."""
    schedule, t = CondOT(), 0.6

    def network(state, t: Tensor, condition):
        alpha, sigma = (a.double() for a in (schedule.alpha(t), schedule.sigma(t)))
        gain = alpha / (alpha**2 + sigma**2)
        return {
            "edges": gain[:, None, None] * state["edges"],
            "places": gain[:, None, None] * state["places"],
        }

    paths = {
        "edges": GaussianPath(schedule, Symmetric()),
        "places": GaussianPath(schedule, Centred()),
    }
    mask = torch.tensor([[True, True, True, False]])
    plain = Denoiser(network, paths, mask="mask")
    state = {
        "edges": Symmetric().project(random(1, 4, 4), mask),
        "places": Centred().project(random(1, 4, 2, seed=1), mask),
    }
    condition = {"mask": mask}

    def target(data, condition):
        return 3 * data["edges"][:, 0, 1] + 5 * data["edges"][:, 2, 3] + 2 * data["places"][:, 0, 0]

    out = Gradient(plain, target, 0.5, through)(state, t, condition)
    before = plain(state, t, condition)
    variance = (1 - t) ** 2 / (t**2 + (1 - t) ** 2)
    moved = torch.zeros(4, 4, dtype=torch.float64)
    moved[0, 1] = moved[1, 0] = 0.5 * variance * 3
    assert torch.allclose(out["edges"] - before["edges"], moved, atol=1e-12)
    moved = torch.zeros(4, 2, dtype=torch.float64)
    moved[:3, 0] = 0.5 * variance * 2 * torch.tensor([2 / 3, -1 / 3, -1 / 3])
    assert torch.allclose(out["places"] - before["places"], moved, atol=1e-12)


def test_classes_are_tilted_and_rotations_turn_uphill() -> None:
    probabilities = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    unit = quaternions.exp(torch.zeros(1, 1, 3, dtype=torch.float64))
    paths = {"kind": CategoricalPath(CondOT(), 3), "turn": GeodesicPath()}
    plain = Denoiser(lambda s, t, c: {"kind": probabilities, "turn": unit}, paths)
    state = {"kind": torch.zeros(1, 1, dtype=torch.int64), "turn": unit}
    slope = torch.tensor([0.0, 1.0, 2.0], dtype=torch.float64)

    def target(data, condition):
        return (data["kind"][:, 0] * slope).sum(-1) + 4 * data["turn"][:, 0, 3]

    out = Gradient(plain, target, 1.5)(state, 0.25)
    expected = probabilities * (1.5 * slope).exp()
    assert torch.allclose(out["kind"], expected / expected.sum(), atol=1e-12)
    # q = (cos(a / 2), 0, 0, sin(a / 2)) has slope 1/2 in the angle.
    variance = 0.75**2 / (0.25**2 + 0.75**2)
    turn = torch.tensor([0.0, 0.0, 1.5 * variance * 2.0], dtype=torch.float64)
    assert torch.allclose(quaternions.log(out["turn"])[0, 0], turn, atol=1e-9)


def test_normalised_and_clipped_changes_are_in_units_of_the_uncertainty() -> None:
    schedule, t, x = Cosine(), 0.3, random(2, 3)
    unit = schedule.sigma(t)

    def target(data, condition):
        return condition * (data @ SLOPE)

    steep = torch.tensor([1.0, 1e6], dtype=torch.float64)
    before = normal(schedule)(x, t)
    fixed = Gradient(normal(schedule), target, 0.2, normalise=True)(x, t, steep) - before
    size = (fixed**2).mean(1).sqrt()
    assert torch.allclose(size, torch.full((2,), 0.2 * unit, dtype=torch.float64))
    gentle = Gradient(normal(schedule), target, 1.0)(x, t, steep) - before
    clipped = Gradient(normal(schedule), target, 1.0, clip=2.0)(x, t, steep) - before
    assert torch.equal(clipped[0], gentle[0]) and (gentle[0] ** 2).mean().sqrt() < 2 * unit
    assert torch.allclose((clipped[1] ** 2).mean().sqrt(), torch.tensor(2 * unit).double())


def test_leaves_may_have_their_own_scale_or_none() -> None:
    paths = {"a": GaussianPath(CondOT()), "b": GaussianPath(VP())}
    plain = Denoiser(lambda s, t, c: {"a": 0.5 * s["a"], "b": 0.5 * s["b"]}, paths)
    state = {"a": random(2, 2), "b": random(2, 2, seed=1)}

    def target(data, condition):
        return data["a"].sum(1) + data["b"].sum(1)

    before = plain(state, 0.5)
    scale = torch.tensor([1.0, 2.0], dtype=torch.float64)
    out = Gradient(plain, target, {"b": scale})(state, 0.5)
    assert torch.equal(out["a"], before["a"])
    moved = (out["b"] - before["b"])[:, 0]
    sigma, alpha = VP().sigma(0.5), VP().alpha(0.5)
    assert torch.allclose(moved, scale * 0.5 * sigma**2 / alpha)
    late = Gradient(plain, target, {"b": lambda t: 0.0 if t < 0.6 else 1.0})
    assert torch.equal(late(state, 0.5)["b"], before["b"])
    with pytest.raises(ValueError, match="did you mean"):
        Gradient(plain, target, {"bb": 1.0})(state, 0.5)


def test_wrong_targets_and_settings_are_named() -> None:
    plain, x = normal(CondOT()), random(2, 3)
    with pytest.raises(TypeError, match="target is a float"):
        Gradient(plain, 3.0)
    with pytest.raises(ValueError, match="std must be positive"):
        Gradient(plain, lambda d, c: d.sum(1), std=0.0)
    with pytest.raises(ValueError, match="clip"):
        Gradient(plain, lambda d, c: d.sum(1), clip=-1.0)
    with pytest.raises(ValueError, match=r"returned \(\): expected one number an item"):
        Gradient(plain, lambda d, c: d.sum())(x, 0.5)
    with pytest.raises(ValueError, match="does not depend on data"):
        Gradient(plain, lambda d, c: d.detach().sum(1))(x, 0.5)
    with pytest.raises(FloatingPointError, match="leaf 'state' is not finite in 2 of 2"):
        Gradient(plain, lambda d, c: (0 * d).sqrt().sum(1), check=True)(x, 0.5)
    with pytest.raises(ValueError, match="t must lie in"):
        Gradient(plain, lambda d, c: d.sum(1))(x, 1.5)


def test_a_gradient_that_is_not_finite_is_traced_by_the_sampler() -> None:
    """sqrt has no slope at 0: item 1 asks for it from the start, the others never."""
    paths = {"a": GaussianPath(CondOT()), "b": GaussianPath(CondOT())}
    plain = Denoiser(lambda s, t, c: {"a": 0.5 * s["a"], "b": 0.5 * s["b"]}, paths)

    def target(data, condition):
        return (condition[:, None] * data["b"] ** 2).sqrt().sum(1)

    guided = Gradient(plain, target, 0.1)
    on = torch.tensor([1.0, 0.0, 1.0], dtype=torch.float64)
    like = {"a": torch.zeros(3, 2).double(), "b": torch.zeros(3, 2).double()}
    sampler = samplers.ddim(4, grid=grids.uniform_time(0.1, 0.9))
    with pytest.raises(FloatingPointError, match=r"leaf 'b' of item 1 \(row 1; .*after step 0"):
        sampler(guided, like=like, condition=on)


def test_classes_take_a_scale_by_item_and_pairs_count_once() -> None:
    uniform = torch.full((2, 3, 3, 2), 0.5, dtype=torch.float64)
    path = CategoricalPath(CondOT(), 2, space=Symmetric())
    plain = Denoiser(lambda x, t, c: uniform, path)
    state = torch.zeros(2, 3, 3, dtype=torch.int64)

    def target(data, condition):
        return data[..., 1].sum((1, 2))

    scale = torch.tensor([0.5, 0.25], dtype=torch.float64)
    out = Gradient(plain, target, scale)(state, 0.5)
    # Both entries of a pair are in the sum, so the slope of a pair is 2.
    for row, w in enumerate(scale.tolist()):
        tilt = torch.tensor([0.0, 2.0 * w], dtype=torch.float64).softmax(-1)
        assert torch.allclose(out[row, 0, 1], tilt) and torch.equal(out[row, 0, 1], out[row, 1, 0])
    assert not out.diagonal(dim1=1, dim2=2).any()
    # The root mean square is over pairs and classes, not over the diagonal: the slopes are 0 and 2.
    out = Gradient(plain, target, 0.5, normalise=True)(state, 0.5)
    shift = (out[0, 0, 1, 1] / out[0, 0, 1, 0]).log()
    assert torch.allclose(shift, torch.tensor(0.5 * 2**0.5, dtype=torch.float64))
