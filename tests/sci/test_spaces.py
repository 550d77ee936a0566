"""Spaces: projections, dimensions and noise agree with each other."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sci.noise import Noise
from sci.spaces import Centred, Euclidean, Rotations, Space, Symmetric

MASK = torch.tensor([[True, True, True, False], [True, True, False, False], [True] * 4])


def like(space: Space, channels: int = 2) -> Tensor:
    shape = (3, 4, 4, channels) if isinstance(space, Symmetric) else (3, 4, channels)
    return torch.zeros(shape, dtype=torch.float64)


SPACES = [Euclidean(), Symmetric(), Centred()]


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_projection_is_orthogonal_and_idempotent(space: Space, mask: Tensor | None) -> None:
    x, y = torch.randn_like(like(space)), torch.randn_like(like(space))
    once = space.project(x, mask)
    assert torch.allclose(space.project(once, mask), once, atol=1e-14)
    rest = x - once
    gap = (rest * space.project(y, mask)).flatten(1).sum(1)
    assert gap.abs().max() < 1e-12
    assert torch.equal(space.tangent(x, y, mask), space.project(y, mask))


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("space", SPACES, ids=str)
def test_noise_lies_in_the_space_with_one_unit_per_dimension(space: Space, mask) -> None:
    shape = like(space)
    dimension = space.dimension(shape, mask)
    rows = 2000
    big = shape.repeat((rows,) + (1,) * (shape.dim() - 1))
    many = None if mask is None else mask.repeat(rows, 1)
    noise = Noise(0, range(3 * rows)).draw(space, "x", 0, big, many)
    assert torch.allclose(space.project(noise, many), noise, atol=1e-6)
    length = space.inner(noise, noise, many).view(rows, 3).mean(0)
    assert torch.allclose(length, dimension, rtol=0.06)
    trained = space.random(big, many, torch.Generator().manual_seed(0))
    length = space.inner(trained, trained, many).view(rows, 3).mean(0)
    assert torch.allclose(length, dimension, rtol=0.06)


def test_dimensions_count_what_is_present() -> None:
    assert Euclidean().dimension(like(Euclidean()), MASK).tolist() == [6, 4, 8]
    assert Centred().dimension(like(Centred()), MASK).tolist() == [4, 2, 6]
    assert Symmetric().dimension(like(Symmetric()), MASK).tolist() == [6, 2, 12]
    assert Euclidean().dimension(torch.zeros(2, 3, 5)).tolist() == [15, 15]
    assert Euclidean().dimension(torch.zeros(2)).tolist() == [1, 1]
    empty = torch.zeros(3, 4, dtype=torch.bool)
    assert Centred().dimension(like(Centred()), empty).tolist() == [0, 0, 0]


def test_pairs_are_numbered_by_column() -> None:
    values = torch.arange(6.0).repeat(3, 1)
    out = Symmetric().place(values, torch.zeros(3, 4, 4))
    for high in range(4):
        for low in range(high):
            number = high * (high - 1) // 2 + low
            assert out[0, low, high] == out[0, high, low] == number
        assert out[0, high, high] == 0
    channels = Symmetric().place(torch.arange(12.0).repeat(3, 1), like(Symmetric()).float())
    assert channels[0, 1, 2].tolist() == [4.0, 5.0]


def test_centred_noise_is_standard_on_its_subspace() -> None:
    noise = Noise(0, range(20000)).draw(Centred(), "x", 0, torch.zeros(20000, 3, 1))
    covariance = torch.cov(noise.squeeze(-1).T.double())
    expected = torch.eye(3, dtype=torch.float64) - 1.0 / 3
    assert torch.allclose(covariance, expected, atol=0.02)


@pytest.mark.parametrize("space", SPACES, ids=str)
def test_padding_with_nan_does_not_leak(space: Space) -> None:
    x = torch.randn_like(like(space))
    clean = space.project(x, MASK)
    x[1, 2:] = float("nan")
    if isinstance(space, Symmetric):
        x[1, :, 2:] = float("nan")
    assert torch.equal(space.project(x, MASK), clean)


def test_exp_and_log_are_inverse() -> None:
    x, y = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(Euclidean().exp(x, Euclidean().log(x, y)), y)
    assert Euclidean() == Euclidean() and Euclidean() != Centred()


def test_counts_avoid_float64_where_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sci.spaces.linear.widest", lambda device: torch.float32)
    for space in SPACES:
        for mask in (None, MASK):
            assert space.dimension(like(space), mask).dtype == torch.float32


@pytest.mark.parametrize("space", [*SPACES, Rotations()], ids=str)
def test_inner_products_and_their_gradients_ignore_the_padding(space: Space) -> None:
    shape = (3, 4, 3) if isinstance(space, Rotations) else like(space).shape
    x, y = torch.randn(2, *shape, dtype=torch.float64).unbind()
    x, y = space.tangent(x, x, MASK), space.tangent(y, y, MASK)
    expected = space.inner(x, y, MASK)
    dirty = y.clone()
    dirty[0, 3] = float("nan")
    if isinstance(space, Symmetric):
        dirty[0, :, 3] = float("nan")
    x = torch.where(dirty.isnan(), dirty, x).requires_grad_()
    found = space.inner(x, dirty, MASK)
    assert torch.allclose(found, expected)
    (slope,) = torch.autograd.grad(found.sum(), x)
    assert torch.isfinite(slope).all() and slope.abs().sum() > 0
