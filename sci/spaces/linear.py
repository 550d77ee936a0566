"""Where a leaf lives: Euclidean, symmetric or centred space.

A space knows how to project onto itself, what its inner product and dimension are under a mask,
and how to number its independent elements, so that noise, norms and dimension counts agree: the
noise of a space is standard normal on it, an adjacency has one draw per unordered pair, a centred
cloud of n points in three dimensions has 3 (n - 1) degrees of freedom.

Masks are bool, (B, N), over the first axis after the batch; `None` means that everything is
present.
"""

from __future__ import annotations

import functools
import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from sci.noise import Noise

__all__ = ["Centred", "Euclidean", "Space", "Symmetric", "widest"]


def widest(device: torch.device) -> torch.dtype:
    """float64, or float32 where there is none: Apple's GPUs."""
    return torch.float32 if device.type == "mps" else torch.float64


class Space:
    """Base of the linear spaces: here `exp(x, v) = x + v` and tangent vectors are elements."""

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest point of the space, zero where masked; shaped like x."""
        raise TypeError(f"{type(self).__name__} does not define project")

    def tangent(self, x: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """The nearest tangent vector at x; shaped like x."""
        return self.project(v, mask)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The point reached from x along v."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The tangent vector at x that leads to y."""
        return y - x

    def inner(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The inner product of each item, (B,), every independent element once."""
        return (_masked(x, mask) * _masked(y, mask)).flatten(1).sum(1)

    def elements(self, like: Tensor) -> int:
        """How many normals a draw takes: the width of what `place` expects."""
        return math.prod(like.shape[1:])

    def place(self, values: Tensor, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """Lay independent values out as a point of the space.

        Arguments:
            values: (B, elements), in the order of the element numbers.
            like: (B, ...) gives the shape, dtype and device.
            mask: (B, N) bool or None.

        Returns:
            A tensor like `like`, zero where masked.
        """
        return _masked(values.to(like).view(like.shape), mask)

    def dimension(self, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """The degrees of freedom of each item, (B,), in the widest type of the device.

        Arguments:
            like: (B, ...) a leaf of this space.
            mask: (B, N) bool or None.
        """
        count = _count(like, mask)
        return count * math.prod(like.shape[2:])

    def noise(
        self,
        noise: Noise,
        leaf: int | str,
        step: int,
        like: Tensor,
        mask: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        """Standard normal noise from each item's stream; arguments as for `Noise.draw`."""
        return self.place(noise.normal(self.elements(like), leaf, step, draw), like, mask)

    def random(
        self, like: Tensor, mask: Tensor | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """Standard normal noise from a torch generator, for training; a tensor like `like`."""
        device = like.device if generator is None else generator.device
        dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        shape = like.shape[0], self.elements(like)
        values = torch.randn(shape, generator=generator, dtype=dtype, device=device)
        return self.place(values, like, mask)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


class Euclidean(Space):
    """All tensors of a shape: (B, ...). Element numbers run along the flattened item."""

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x, zero where masked."""
        return _masked(x, mask)


class Centred(Space):
    """Clouds of points (B, N, F) whose centre of mass over the present nodes is zero."""

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Subtract the mean over the present nodes, then mask."""
        if mask is None:
            return x - x.mean(1, keepdim=True)
        count = mask.sum(1).clamp(min=1).view((-1,) + (1,) * (x.dim() - 1))
        mean = _masked(x, mask).sum(1, keepdim=True) / count
        return _masked(x - mean, mask)

    def inner(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The inner product of the centred parts, (B,)."""
        return (self.project(x, mask) * _masked(y, mask)).flatten(1).sum(1)

    def place(self, values: Tensor, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """Independent values with their mean over the present nodes taken off."""
        return self.project(values.to(like).view(like.shape), mask)

    def dimension(self, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """(n - 1) F for n present nodes, (B,); 0 when there are none."""
        return (_count(like, mask) - 1).clamp(min=0) * math.prod(like.shape[2:])


class Symmetric(Space):
    """Adjacencies (B, N, N, *C): symmetric in the two node axes, zero on the diagonal.

    The unordered pair i < j has the number j (j - 1) / 2 + i and holds as many elements as there
    are channels; pairs of the first n nodes come first, so padding changes no number.
    """

    def project(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """(x + x^T) / 2 without its diagonal, zero where either node is masked."""
        keep = _off_diagonal(x.shape[1], x.device)
        if mask is not None:
            keep = keep & mask[:, :, None] & mask[:, None, :]
        return torch.where(_shaped(keep, x), 0.5 * (x + x.transpose(1, 2)), 0.0)

    def inner(self, x: Tensor, y: Tensor, mask: Tensor | None = None) -> Tensor:
        """The sum over unordered pairs and channels, (B,)."""
        return 0.5 * (self.project(x, mask) * self.project(y, mask)).flatten(1).sum(1)

    def elements(self, like: Tensor) -> int:
        """N (N - 1) / 2 pairs times the channels."""
        nodes = like.shape[1]
        return nodes * (nodes - 1) // 2 * math.prod(like.shape[3:])

    def place(self, values: Tensor, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """One value per unordered pair and channel, mirrored."""
        nodes = like.shape[1]
        channels = math.prod(like.shape[3:])
        table = _pair_table(nodes, values.device)
        padded = torch.nn.functional.pad(
            values.view(len(values), nodes * (nodes - 1) // 2, channels), (0, 0, 0, 1)
        )
        out = padded[:, table].to(like).view(like.shape)
        if mask is None:
            return out
        return torch.where(_shaped(mask[:, :, None] & mask[:, None, :], out), out, 0.0)

    def dimension(self, like: Tensor, mask: Tensor | None = None) -> Tensor:
        """n (n - 1) / 2 pairs of present nodes times the channels, (B,)."""
        count = _count(like, mask)
        return 0.5 * count * (count - 1) * math.prod(like.shape[3:])


def _shaped(mask: Tensor, x: Tensor) -> Tensor:
    return mask.view(mask.shape + (1,) * (x.dim() - mask.dim()))


def _masked(x: Tensor, mask: Tensor | None) -> Tensor:
    # `where` and not a product: whatever a network leaves in the padding, even NaN, goes.
    return x if mask is None else torch.where(_shaped(mask, x), x, 0.0)


def _count(like: Tensor, mask: Tensor | None) -> Tensor:
    """Present positions of the first axis after the batch, (B,); 1 without an axis."""
    if mask is not None:
        return mask.to(widest(mask.device)).sum(1)
    size = like.shape[1] if like.dim() > 1 else 1
    wide = widest(like.device)
    return torch.full((like.shape[0],), float(size), dtype=wide, device=like.device)


@functools.lru_cache(maxsize=64)
def _off_diagonal(nodes: int, device: torch.device) -> Tensor:
    """(1, N, N) bool: true off the diagonal."""
    with torch.inference_mode(False):
        return ~torch.eye(nodes, dtype=torch.bool, device=device)[None]


@functools.lru_cache(maxsize=64)
def _pair_table(nodes: int, device: torch.device) -> Tensor:
    """(N, N) pair numbers; the diagonal points one past the last pair."""
    with torch.inference_mode(False):
        index = torch.arange(nodes, device=device)
        high = torch.maximum(index[:, None], index[None, :])
        low = torch.minimum(index[:, None], index[None, :])
        table = high * (high - 1) // 2 + low
        return torch.where(high == low, nodes * (nodes - 1) // 2, table)
