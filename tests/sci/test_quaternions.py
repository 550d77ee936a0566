"""Quaternions: against matrix exponentials, scipy, and the stored reference arrays."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from sci.spaces import quaternions as quat

AXIS = torch.tensor([0.36, -0.48, 0.8], dtype=torch.float64)
ANGLES = [0.0, 1e-12, 1e-6, 1e-3, 3e-3, 0.02, 0.0633, 0.5, 2.0, 3.0, math.pi - 1e-5]


def skew(v: Tensor) -> Tensor:
    x, y, z = v.unbind(-1)
    zero = torch.zeros_like(x)
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def vectors(count: int = 50) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(count, 3, generator=generator, dtype=torch.float64)


def quaternions(count: int = 50, seed: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return quat.uniform(torch.randn(count, 4, generator=generator, dtype=torch.float64))


def scipy_of(q: Tensor) -> Rotation:
    return Rotation.from_quat(q.roll(-1, -1).numpy())


def apart(p: Tensor, q: Tensor) -> float:
    """Largest distance of two lists of quaternions, up to their signs."""
    return float(torch.minimum((p - q).norm(dim=-1), (p + q).norm(dim=-1)).max())


def test_exp_is_the_matrix_exponential() -> None:
    v = vectors()
    assert torch.allclose(quat.to_matrix(quat.exp(v)), torch.linalg.matrix_exp(skew(v)), atol=1e-13)


def test_products_vectors_and_matrices_agree_with_scipy() -> None:
    p, q, v = quaternions(seed=1), quaternions(seed=2), vectors()
    product = torch.from_numpy((scipy_of(p) * scipy_of(q)).as_quat()).roll(1, -1)
    assert apart(quat.multiply(p, q), product) < 1e-14
    assert np.allclose(quat.to_matrix(p), scipy_of(p).as_matrix(), atol=1e-14)
    assert np.allclose(quat.rotate(p, v), scipy_of(p).apply(v.numpy()), atol=1e-13)
    assert np.allclose(quat.log(p), scipy_of(p).as_rotvec(), atol=1e-13)
    assert np.allclose(quat.angle(p, q), (scipy_of(p).inv() * scipy_of(q)).magnitude(), atol=1e-13)
    assert torch.allclose(quat.multiply(p, quat.conjugate(p)), quat.exp(0 * v), atol=1e-15)


@pytest.mark.parametrize("dtype, tolerance", [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("size", ANGLES)
def test_log_inverts_exp_to_the_far_side(size: float, dtype: torch.dtype, tolerance: float) -> None:
    v = (size * AXIS).to(dtype)
    back = quat.log(quat.exp(v))
    assert back.dtype == dtype
    assert float((back - v).norm()) <= tolerance * max(size, 1e-6)


def test_a_half_turn_has_length_pi() -> None:
    half = quat.exp(math.pi * AXIS)
    assert math.isclose(float(quat.log(half).norm()), math.pi, rel_tol=1e-12)
    exact = torch.cat([torch.zeros(1, dtype=torch.float64), AXIS])
    assert torch.allclose(quat.log(exact), math.pi * AXIS)
    assert torch.allclose(quat.log(-quat.exp(AXIS)), quat.log(quat.exp(AXIS)), atol=1e-15)
    long_way = quat.log(quat.exp((math.pi + 0.5) * AXIS))
    assert torch.allclose(long_way, (0.5 - math.pi) * AXIS, atol=1e-14)


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-4, 0.0064, 1.0, 3.1])
def test_gradients_of_exp(size: float) -> None:
    v = (size * AXIS).requires_grad_()
    assert torch.autograd.gradcheck(quat.exp, v, atol=1e-7)


@pytest.mark.parametrize("size", [0.0, 1e-4, 0.0063, 0.0065, 1.0, 3.1, math.pi - 1e-3])
def test_gradients_of_log(size: float) -> None:
    q = quat.exp(size * AXIS).requires_grad_()
    assert torch.autograd.gradcheck(quat.log, q, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradients_are_finite_where_formulae_are_singular(dtype: torch.dtype) -> None:
    axis = AXIS.to(dtype)
    half_turn = torch.cat([torch.zeros(1, dtype=dtype), axis])
    points = torch.stack([quat.exp(0 * axis), quat.exp(1e-30 * axis), half_turn, -half_turn])
    points = torch.cat([points, torch.zeros(1, 4, dtype=dtype)]).requires_grad_()
    p = quat.exp(0 * axis)
    outcomes = [
        quat.log(points).sum(),
        quat.angle(p, points).sum(),
        quat.normalise(points).sum(),
        quat.interpolate(p, points, 0.3).sum(),
        quat.from_matrix(quat.to_matrix(points[:4])).sum(),
    ]
    for outcome in outcomes:
        assert torch.isfinite(outcome)
        (slope,) = torch.autograd.grad(outcome, points)
        assert torch.isfinite(slope).all()


def test_matrices_of_every_kind_are_inverted() -> None:
    turns = [
        size * axis
        for axis in torch.cat([torch.eye(3, dtype=torch.float64), vectors(20)])
        for size in (0.0, 1e-8, 1.0, 3.0 / max(1.0, float(axis.norm())))
    ]
    q = torch.cat([quat.exp(torch.stack(turns)), quaternions(200)])
    halves = torch.cat(
        [torch.zeros(3, 1, dtype=torch.float64), torch.eye(3, dtype=torch.float64)], 1
    )
    q = torch.cat([q, halves])
    back = quat.from_matrix(quat.to_matrix(q))
    assert apart(back, q) < 1e-14
    assert (back[:, 0] >= 0).all()
    single = quat.from_matrix(quat.to_matrix(q.float()))
    assert single.dtype == torch.float32 and apart(single.double(), q) < 1e-6


def test_interpolation_runs_at_equal_speed_the_short_way() -> None:
    p, q = quaternions(seed=7), quaternions(seed=8)
    whole = quat.angle(p, q)
    for fraction in (0.0, 0.25, 0.8, 1.0):
        point = quat.interpolate(p, q, fraction)
        assert torch.allclose(quat.angle(p, point), fraction * whole, atol=1e-7)
        assert torch.allclose(quat.angle(point, q), (1 - fraction) * whole, atol=1e-7)
    fractions = torch.rand(len(p), 1, dtype=torch.float64)
    point = quat.interpolate(p, q, fractions)
    assert torch.allclose(quat.angle(p, point), fractions[:, 0] * whole, atol=1e-7)


@pytest.mark.parametrize("size", [1e-4, 0.5, 3.0, math.pi - 1e-3, math.pi - 1e-5])
def test_interpolation_is_exact_in_single_precision(size: float) -> None:
    p = quaternions(seed=4)
    q = quat.multiply(p, quat.exp(size * AXIS))
    for fraction in (0.1, 0.5, 0.9):
        exact = quat.multiply(p, quat.exp(fraction * size * AXIS))
        found = quat.interpolate(p.float(), q.float(), fraction).double()
        assert apart(found, exact) < 1e-6


def test_uniform_rotations_have_the_law_of_the_angle() -> None:
    q = quat.uniform(torch.randn(20000, 4, generator=torch.Generator().manual_seed(0)))
    angle = quat.angle(q, torch.tensor([1.0, 0, 0, 0])).double().sort().values
    exact = (angle - angle.sin()) / math.pi
    steps = torch.arange(1, len(q) + 1, dtype=torch.float64) / len(q)
    # The 99.9 % point of Kolmogorov's statistic is 1.95 / sqrt(n).
    assert float((exact - steps).abs().max()) < 1.95 / math.sqrt(len(q))
    assert quat.to_matrix(q).mean(0).abs().max() < 0.02


def test_the_stored_reference_is_reproduced(shared: Path) -> None:
    stored = np.load(shared / "reference" / "reqflow_quaternion.npz")
    tensors = {name: torch.from_numpy(stored[name]) for name in stored.files}
    near_pi = math.pi - tensors["relative_angle"] < 1e-5
    q0, q1 = tensors["quat0"], tensors["quat1"]
    assert apart(quat.from_matrix(tensors["rot0"]), q0) < 1e-8
    assert torch.allclose(quat.to_matrix(q1), tensors["rot_from_quat1"], atol=1e-12)
    assert torch.allclose(quat.multiply(q0, q1), tensors["quat_mul"], atol=1e-14)
    assert torch.allclose(quat.conjugate(q0), tensors["quat_conj"])
    assert torch.allclose(quat.log(q0), tensors["rotvec0"], atol=1e-6)
    v = tensors["rotvec_in"]
    assert torch.allclose(quat.to_matrix(quat.exp(v)), tensors["rotmat_from_rotvec"], atol=1e-8)
    clear = ~near_pi
    for t, point, matrix, turn in zip(
        tensors["slerp_t"],
        tensors["slerp_quat"],
        tensors["slerp_rot"],
        tensors["angvel_target"],
        strict=True,
    ):
        found = quat.interpolate(q0, q1, float(t))
        assert apart(found[clear], point[clear]) < 1e-8
        assert torch.allclose(quat.to_matrix(found)[clear], matrix[clear], atol=1e-8)
        left = quat.log(quat.multiply(quat.conjugate(found), q1))
        assert torch.allclose(left[clear], turn[clear], atol=1e-8)
