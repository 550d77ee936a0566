"""The space of rotations keeps the contract of the spaces."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sci.noise import Noise
from sci.spaces import Euclidean
from sci.spaces import quaternions as quat
from sci.spaces.rotations import Rotations

MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4])
SPACE = Rotations()


def leaf(batch: int = 3, nodes: int = 4) -> Tensor:
    return torch.zeros(batch, nodes, 4, dtype=torch.float64)


def test_projection_normalises_and_fills_with_the_identity() -> None:
    x = torch.randn(3, 4, 4, dtype=torch.float64)
    once = SPACE.project(x, MASK)
    assert torch.allclose(once[MASK], x[MASK] / x[MASK].norm(dim=-1, keepdim=True))
    assert once[~MASK].tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3
    assert torch.allclose(SPACE.project(once, MASK), once, atol=1e-15)
    x[0, 3] = math.nan
    assert torch.equal(SPACE.project(x, MASK), once)
    assert torch.isnan(SPACE.project(x)[0, 3]).all()
    assert SPACE.project(torch.zeros(1, 1, 4)).tolist() == [[[1.0, 0.0, 0.0, 0.0]]]


def test_exp_and_log_are_inverse_and_measure_angles() -> None:
    x, y = SPACE.random(leaf()), SPACE.random(leaf())
    v = SPACE.log(x, y)
    assert v.shape == (3, 4, 3)
    reached = SPACE.exp(x, v)
    assert torch.allclose((reached * y).sum(-1).abs(), torch.ones(3, 4).double())
    angle = quat.angle(x, y)
    assert torch.allclose(SPACE.inner(v, v), (angle**2).sum(1))
    assert torch.allclose(SPACE.inner(v, v, MASK), (angle**2 * MASK).sum(1))
    assert torch.equal(SPACE.tangent(x, v, MASK)[~MASK], torch.zeros(3, 3).double())
    assert torch.equal(SPACE.tangent(x, v), v)


def test_tangent_vectors_turn_in_the_body_frame() -> None:
    x = SPACE.random(leaf())
    v = torch.randn(3, 4, 3, dtype=torch.float64)
    turned = quat.to_matrix(SPACE.exp(x, v))
    assert torch.allclose(turned, quat.to_matrix(x) @ quat.to_matrix(quat.exp(v)), atol=1e-14)


@pytest.mark.parametrize("mask", [None, MASK])
def test_dimensions_count_three_a_node(mask: Tensor | None) -> None:
    expected = [12.0, 12.0, 12.0] if mask is None else [9.0, 6.0, 12.0]
    assert SPACE.dimension(leaf(), mask).tolist() == expected
    assert SPACE.dimension(torch.zeros(3, 4, 3), mask).tolist() == expected
    assert SPACE.dimension(torch.zeros(2, 4)).tolist() == [3.0, 3.0]


def test_noise_is_uniform_and_does_not_depend_on_padding() -> None:
    whole = Noise(0, range(5)).draw(SPACE, "r", 0, torch.zeros(5, 6, 4))
    part = Noise(0, [3]).draw(SPACE, "r", 0, torch.zeros(1, 2, 4))
    assert torch.equal(whole[3:4, :2], part)
    masked = Noise(0, range(3)).draw(SPACE, "r", 0, leaf(), MASK)
    assert torch.equal(masked[MASK], Noise(0, range(3)).draw(SPACE, "r", 0, leaf())[MASK])
    assert masked[~MASK].tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3
    many = Noise(1, range(20000)).draw(SPACE, "r", -1, torch.zeros(20000, 4))
    assert torch.allclose(many.norm(dim=-1), torch.ones(20000))
    # The second moments of a uniform direction in four dimensions.
    assert torch.allclose(many.T @ many / 20000, torch.eye(4) / 4, atol=0.01)


def test_training_noise_follows_the_generator() -> None:
    first, second = (SPACE.random(leaf(), MASK, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second) and first.dtype == torch.float64
    assert torch.allclose(first.norm(dim=-1), torch.ones(3, 4).double())
    assert first[~MASK].tolist() == [[1.0, 0.0, 0.0, 0.0]] * 3


def test_spaces_compare_by_type() -> None:
    assert Rotations() == SPACE and Rotations() != Euclidean()
