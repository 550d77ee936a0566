"""The space of rotations: unit quaternions, one a node.

A leaf is (B, N, 4), or (B, 4), scalar first; q and -q are the same point. A tangent vector is a
rotation vector in the body frame, (B, N, 3) in rad:

    exp(x, v) = x exp(v),    log(x, y) = log(x^-1 y),    |log(x, y)| <= pi

so lengths and inner products are those of rotation vectors, and a node has three degrees of
freedom. There is no standard normal noise on a compact space: the noise is the uniform law, the
direction of four normals a node. Masked nodes hold the identity.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sci.spaces import quaternions
from sci.spaces.linear import Space, widest

__all__ = ["Rotations"]


class Rotations(Space):
    """Unit quaternions (B, N, 4) or (B, 4), scalar first; tangent vectors (B, N, 3) or (B, 3).

    Node i owns the elements 4 i, ..., 4 i + 3 of a draw, so padding changes no number.

    Example:
        >>> import torch
        >>> space = Rotations()
        >>> x = space.random(torch.zeros(2, 5, 4), generator=torch.Generator().manual_seed(0))
        >>> v = torch.full((2, 5, 3), 0.1)
        >>> torch.allclose(space.log(x, space.exp(x, v)), v, atol=1e-6)
        True
    """

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x / |x|; the identity where masked, and where x is zero.

        Arguments:
            x: (B, ..., 4) quaternions of any length.
            mask: (B, N) bool or None.
        """
        unit = quaternions.normalise(x)
        if mask is None:
            return unit
        identity = torch.zeros_like(x)
        identity[..., 0] = 1.0
        return torch.where(_shaped(mask, x), unit, identity)

    def tangent(self, x: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """v, zero where masked: every rotation vector is tangent; (B, ..., 3)."""
        return v if mask is None else torch.where(_shaped(mask, v), v, 0.0)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The rotation reached from x by turning by v in its own frame, of unit length."""
        turned = quaternions.multiply(x, quaternions.exp(v))
        return turned * (turned * turned).sum(-1, keepdim=True).rsqrt()

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The body-frame rotation vector at x that leads to y the short way, (B, ..., 3)."""
        return quaternions.log(quaternions.relative(x, y))

    def inner(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The inner product of tangent vectors, (B,).

        Arguments:
            x: (B, ..., 3).
            y: (B, ..., 3).
            mask: (B, N) bool or None.
        """
        return (self.tangent(x, x, mask) * self.tangent(y, y, mask)).flatten(1).sum(1)

    def dimension(self, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """Three a present node, (B,).

        Arguments:
            like: (B, ..., 4) a leaf, or (B, ..., 3) tangent vectors.
            mask: (B, N) bool or None.
        """
        if mask is not None:
            return 3.0 * math.prod(like.shape[2:-1]) * mask.to(widest(mask.device)).sum(1)
        count = 3.0 * math.prod(like.shape[1:-1])
        return torch.full((len(like),), count, dtype=widest(like.device), device=like.device)

    def place(self, values: Tensor, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """Uniform rotations from normals, four a node in the order of the nodes.

        Arguments:
            values: (B, elements) standard normals.
            like: (B, ..., 4) gives the shape, dtype and device.
            mask: (B, N) bool or None.
        """
        return self.project(values.to(like).view(like.shape), mask)


def _shaped(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(mask.shape + (1,) * (x.dim() - mask.dim()))
