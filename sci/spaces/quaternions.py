r"""Unit quaternions (..., 4), scalar first: rotations without charts or gimbal lock.

With q = (w, u), |q| = 1, the rotation by the angle |v| about v / |v| is

    exp(v) = (cos(|v| / 2), sin(|v| / 2) v / |v|),     log(q) = 2 atan2(|u|, w) u / |u|  (w >= 0)

and q and -q are the same rotation; log takes the short way, |log(q)| <= pi. With the relative
rotation p^-1 q in the frame of p (the body frame) the geodesic is

    interpolate(p, q, f) = p exp(f log(p^-1 q)).

Where a formula is 0 / 0 its series is used, and both branches of each choice are finite, so that
values and gradients are right at 0 and at pi. All functions broadcast over the leading axes and
keep the dtype.

References:
    | Quaternions and rotation sequences (Kuipers, 1999)
    | Animating rotation with quaternion curves (Shoemake, 1985)
    | Micro Lie theory for state estimation in robotics (Sola, Deray, Atchuthan, 2018)
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = [
    "angle",
    "conjugate",
    "exp",
    "from_matrix",
    "interpolate",
    "log",
    "multiply",
    "normalise",
    "relative",
    "rotate",
    "to_matrix",
    "uniform",
]

# Below this square of a half angle (float64, float32) the next term of the series is rounding.
_SMALL = {torch.float64: 1e-5, torch.float32: 1e-3}


def multiply(p: Tensor, q: Tensor) -> Tensor:
    """The product p q = (p_w q_w - p_u . q_u, p_w q_u + q_w p_u + p_u x q_u); (..., 4).

    As a rotation it is q followed by p.

    Arguments:
        p: (..., 4).
        q: (..., 4), broadcast against p.

    Example:
        >>> import torch
        >>> i, j = torch.eye(4)[1], torch.eye(4)[2]
        >>> multiply(i, j).tolist()
        [0.0, 0.0, 0.0, 1.0]
    """
    p, q = torch.broadcast_tensors(p, q)
    pw, pu, qw, qu = p[..., :1], p[..., 1:], q[..., :1], q[..., 1:]
    w = pw * qw - (pu * qu).sum(-1, keepdim=True)
    return torch.cat((w, torch.linalg.cross(pu, qu) + pw * qu + qw * pu), -1)


def conjugate(q: Tensor) -> Tensor:
    """(w, -u), the inverse of a unit quaternion; (..., 4)."""
    return torch.cat((q[..., :1], -q[..., 1:]), -1)


def relative(p: Tensor, q: Tensor) -> Tensor:
    """p^-1 q, the rotation from p to q in the frame of p; arguments as for `multiply`."""
    return multiply(conjugate(p), q)


def normalise(q: Tensor) -> Tensor:
    """q / |q|; the identity where q is zero; (..., 4)."""
    square = (q * q).sum(-1, keepdim=True)
    empty = square == 0
    unit = q * torch.where(empty, 1.0, square).rsqrt()
    identity = torch.zeros_like(q)
    identity[..., 0] = 1.0
    return torch.where(empty, identity, unit)


def rotate(q: Tensor, v: Tensor) -> Tensor:
    """Vectors turned by rotations, v + 2 w (u x v) + 2 u x (u x v).

    Arguments:
        q: (..., 4) unit.
        v: (..., 3), broadcast against q.

    Returns:
        (..., 3).
    """
    u, v = torch.broadcast_tensors(q[..., 1:], v)
    turn = 2.0 * torch.linalg.cross(u, v)
    return v + q[..., :1] * turn + torch.linalg.cross(u, turn)


def exp(v: Tensor) -> Tensor:
    """The rotation of a rotation vector.

    Arguments:
        v: (..., 3), axis times angle in rad.

    Returns:
        (..., 4) unit quaternions.

    Example:
        >>> import math, torch
        >>> quarter = exp(torch.tensor([0.0, 0.0, math.pi / 2]))
        >>> rotate(quarter, torch.tensor([1.0, 0.0, 0.0])).round(decimals=6).tolist()
        [0.0, 1.0, 0.0]
    """
    square = 0.25 * (v * v).sum(-1, keepdim=True)
    small = square < _small(v)
    half = torch.where(small, 1.0, square).sqrt()
    # sin(h) / h and cos(h) as polynomials in h^2, which are smooth at 0.
    sinc = torch.where(small, _series(square, (1.0, -1 / 6, 1 / 120)), half.sin() / half)
    cosine = torch.where(small, _series(square, (1.0, -1 / 2, 1 / 24)), half.cos())
    return torch.cat((cosine, 0.5 * sinc * v), -1)


def log(q: Tensor) -> Tensor:
    """The rotation vector of a rotation, the short way.

    Arguments:
        q: (..., 4); its length does not matter.

    Returns:
        (..., 3), axis times angle in rad, of length at most pi.
    """
    q = torch.where(q[..., :1] < 0, -q, q)
    w, u = q[..., :1], q[..., 1:]
    square = (u * u).sum(-1, keepdim=True)
    small = square < _small(q) * w * w
    # atan(r) / r with r = |u| / w as a polynomial in r^2.
    ratio = torch.where(small, square, 0.0) / torch.where(small, w * w, 1.0)
    near = 2.0 * _series(ratio, (1.0, -1 / 3, 1 / 5)) / torch.where(small, w, 1.0)
    empty = square == 0
    length = torch.where(small | empty, 1.0, square).sqrt()
    far = 2.0 * torch.atan2(length, torch.where(empty, 1.0, w)) / length
    return torch.where(small, near, far) * u


def angle(p: Tensor, q: Tensor) -> Tensor:
    """The angle between two rotations in rad, in [0, pi], (...,); its gradient is 0 where it is 0.

    Arguments:
        p: (..., 4).
        q: (..., 4), broadcast against p.
    """
    between = relative(p, q)
    square = (between[..., 1:] ** 2).sum(-1)
    empty = square == 0
    length = torch.where(empty, 1.0, square).sqrt()
    return torch.where(empty, 0.0, 2.0 * torch.atan2(length, between[..., 0].abs()))


def interpolate(p: Tensor, q: Tensor, fraction: Tensor | float) -> Tensor:
    """The point of the geodesic from p to q, p exp(f log(p^-1 q)): SLERP the short way.

    Arguments:
        p: (..., 4) unit.
        q: (..., 4) unit.
        fraction: f, a float or a tensor that broadcasts against (..., 1); 0 gives p, 1 gives q
            up to the sign.

    Returns:
        (..., 4).
    """
    return multiply(p, exp(fraction * log(relative(p, q))))


def to_matrix(q: Tensor) -> Tensor:
    """Rotation matrices that act on columns.

    Arguments:
        q: (..., 4) unit.

    Returns:
        (..., 3, 3).
    """
    w, x, y, z = q.unbind(-1)
    rows = (
        (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
        (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
    )
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def from_matrix(matrix: Tensor) -> Tensor:
    """Quaternions of rotation matrices, w >= 0.

    The entries of the matrix give all of 4 q q^T. Its column with the largest diagonal entry is q
    times a number of at least 2 in size, so nothing cancels.

    Arguments:
        matrix: (..., 3, 3), proper rotations.

    Returns:
        (..., 4) unit.
    """
    flat = matrix.flatten(-2).unbind(-1)
    xx, xy, xz, yx, yy, yz, zx, zy, zz = flat
    upper = {
        (0, 0): 1 + xx + yy + zz,
        (1, 1): 1 + xx - yy - zz,
        (2, 2): 1 - xx + yy - zz,
        (3, 3): 1 - xx - yy + zz,
        (0, 1): zy - yz,
        (0, 2): xz - zx,
        (0, 3): yx - xy,
        (1, 2): xy + yx,
        (1, 3): xz + zx,
        (2, 3): yz + zy,
    }
    rows = [[upper[min(i, j), max(i, j)] for j in range(4)] for i in range(4)]
    outer = torch.stack([torch.stack(row, -1) for row in rows], -2)
    largest = outer.diagonal(dim1=-2, dim2=-1).argmax(-1)
    index = largest[..., None, None].expand(*largest.shape, 1, 4)
    column = outer.gather(-2, index).squeeze(-2)
    return normalise(torch.where(column[..., :1] < 0, -column, column))


def uniform(normals: Tensor) -> Tensor:
    """Uniform random rotations from independent standard normals, four a rotation.

    Arguments:
        normals: (..., 4).

    Returns:
        (..., 4) unit.

    References:
        | A note on a method for generating points uniformly on n-dimensional spheres
        | (Muller, 1959)
    """
    return normalise(normals)


def _small(x: Tensor) -> float:
    return _SMALL.get(x.dtype, 1e-3)


def _series(square: Tensor, coefficients: tuple[float, float, float]) -> Tensor:
    first, second, third = coefficients
    return first + square * (second + square * third)
