"""Noise that is addressed, not drawn: every normal is a function of where it is used.

In generation each item (a molecule, a trajectory, a window) owns a stream. The value at

    (seed, item, leaf, step, draw, element)

is the same whatever the batch size, the order, the number of workers or the batch mates; elements
are counted by node or pair, never by padded position (the spaces do the counting). So an item can
be made again alone, and a chunk that was lost is made again bit for bit.

The generator is Philox4x32 with 10 rounds (Salmon et al. 2011), a bijection of a 128-bit counter
under a 64-bit key, written in int64 tensor operations. The key of a (leaf, draw) is the image of
the seed; the counter holds (element // 4, item, step). Pairs of 32-bit words give pairs of
normals by Box-Muller, in float64 and then rounded to float32, |z| < 6.8.

References:
    | Parallel random numbers: as easy as 1, 2, 3 (Salmon, Moraes, Dror, Shaw, 2011)
    | A note on the generation of random normal deviates (Box, Muller, 1958)
"""

from __future__ import annotations

import functools
import math
import operator
import zlib
from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

__all__ = ["Noise", "philox"]

_MASK = 0xFFFFFFFF
_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
# Counters per pass: about 2^14 four-word blocks keep the work in the second-level cache.
_CHUNK = 1 << 14
# Steps are drawn ahead while the whole window stays below this many values.
_WINDOW = 1 << 16
_LONGEST = 16


def philox(counter: Sequence[Tensor | int], key: tuple[int, int]) -> tuple[Tensor, ...]:
    """Philox4x32-10: four 32-bit words for every counter.

    Per round, with hi and lo the halves of a 64-bit product,

        (c0, c1, c2, c3) <- (hi(M1 c2) ^ c1 ^ k0, lo(M1 c2), hi(M0 c0) ^ c3 ^ k1, lo(M0 c0)).

    Arguments:
        counter: four int64 tensors (or ints) with values in [0, 2^32) that broadcast.
        key: two ints in [0, 2^32).

    Returns:
        Four int64 tensors of the broadcast shape, values in [0, 2^32).
    """
    first, second, third, fourth = (torch.as_tensor(word) for word in counter)
    low, high = key
    for _ in range(10):
        left, right = first * _MULTIPLIERS[0], third * _MULTIPLIERS[1]
        # Only what is multiplied next must be clean; the other two words keep their upper half.
        first = ((right >> 32) ^ (second ^ low)).bitwise_and_(_MASK)
        third = ((left >> 32) ^ (fourth ^ high)).bitwise_and_(_MASK)
        second, fourth = right, left
        low, high = (low + _WEYL[0]) & _MASK, (high + _WEYL[1]) & _MASK
    words = torch.broadcast_tensors(first, second & _MASK, third, fourth & _MASK)
    return tuple(words)


@functools.lru_cache(maxsize=1024)
def _key(seed: int, leaf: int, draw: int) -> tuple[int, int]:
    """The key of a stream: the seed's image, so that leaves and draws never share counters."""
    words = philox((leaf, draw & _MASK, 0x5C1F1035, 0), (seed & _MASK, seed >> 32))
    return int(words[0]), int(words[1])


def _leaf_number(leaf: int | str) -> int:
    return zlib.crc32(leaf.encode()) if isinstance(leaf, str) else operator.index(leaf) & _MASK


class Numbered(Protocol):
    """What can lay noise out: the spaces of :mod:`sci.spaces`, which number their elements."""

    def noise(
        self,
        noise: Noise,
        leaf: int | str,
        step: int,
        like: Tensor,
        mask: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        """Standard noise like `like`, zero where masked."""


class Noise:
    """Independent standard noise, one stream an item.

    Arguments:
        seed: the sampling seed, an int; taken modulo 2^64.
        items: the numbers of the items, in [0, 2^63), one a batch row.
        device: where the values are made.

    Raises:
        TypeError: when the seed is no integer.
        ValueError: when items are negative or not one-dimensional.

    Example:
        >>> import torch
        >>> whole = Noise(0, range(4)).normal(3, leaf="nodes", step=0)
        >>> part = Noise(0, [2]).normal(3, leaf="nodes", step=0)
        >>> torch.equal(whole[2:3], part)
        True

    References:
        | Parallel random numbers: as easy as 1, 2, 3 (Salmon, Moraes, Dror, Shaw, 2011)
    """

    def __init__(self, seed: int, items: Sequence[int] | range | Tensor, device: Any = "cpu"):
        if isinstance(seed, bool):
            raise TypeError("seed is a bool: expected an integer")
        try:
            self.seed = operator.index(seed) % (1 << 64)
        except TypeError:
            raise TypeError(f"seed is a {type(seed).__name__}: expected an integer") from None
        numbers: Any = items if isinstance(items, Tensor) else list(items)
        self.items = torch.as_tensor(numbers, dtype=torch.int64, device=device)
        if self.items.dim() != 1:
            raise ValueError(f"items have shape {tuple(self.items.shape)}: expected one axis")
        if self.items.numel() and int(self.items.min()) < 0:
            raise ValueError(f"items must not be negative, got {int(self.items.min())}")
        self._ahead: dict[tuple[object, ...], tuple[int, Tensor]] = {}

    def __len__(self) -> int:
        return self.items.shape[0]

    def __repr__(self) -> str:
        return f"Noise(seed={self.seed}, items={len(self)})"

    def take(self, index: Tensor | Sequence[int] | slice) -> Noise:
        """The streams of some of the items: `items[index]`."""
        rows = index if isinstance(index, (Tensor, slice)) else torch.as_tensor(index)
        return Noise(self.seed, self.items[rows], self.items.device)

    def normal(self, elements: Tensor | int, leaf: int | str, step: int, draw: int = 0) -> Tensor:
        """Standard normals, rounded to float32.

        Arguments:
            elements: the numbers of the elements, (E,) int64; an int E stands for 0, ..., E - 1.
            leaf: the leaf's name, or a number.
            step: the sampler's step; the initial state uses -1.
            draw: which draw of the step.

        Returns:
            (B, E) float32.
        """
        return self._values("normal", elements, leaf, step, draw)

    def uniform(self, elements: Tensor | int, leaf: int | str, step: int, draw: int = 0) -> Tensor:
        """Uniforms in the open interval (0, 1), multiples of 2^-24; arguments as for `normal`.

        Returns:
            (B, E) float32.
        """
        return self._values("uniform", elements, leaf, step, draw)

    def normals(self, count: int, leaf: int | str, steps: Tensor, draw: int = 0) -> Tensor:
        """Normals of elements 0, ..., count - 1 at several steps at once: (S, B, count) float32.

        Arguments:
            count: of elements.
            leaf: the leaf's name, or a number.
            steps: (S,) int64.
            draw: which draw of the steps.
        """
        key = _key(self.seed, _leaf_number(leaf), draw)
        return self._block("normal", key, torch.arange((count + 3) // 4), steps)[..., :count]

    def draw(
        self,
        space: Numbered,
        leaf: int | str,
        step: int,
        like: Tensor,
        mask: Tensor | None = None,
        draw: int = 0,
    ) -> Tensor:
        """Standard noise of a space, shaped and typed like a leaf.

        Arguments:
            space: where the leaf lives; it numbers the elements.
            leaf: the leaf's name.
            step: the sampler's step.
            like: (B, ...) gives the shape, dtype and device.
            mask: (B, N) bool over the first axis after the batch, or None.
            draw: which draw of the step.

        Returns:
            A tensor like `like`, zero where masked.
        """
        return space.noise(self, leaf, step, like, mask, draw)

    def _values(
        self, law: str, elements: Tensor | int, leaf: int | str, step: int, draw: int
    ) -> Tensor:
        if isinstance(elements, int):
            return self._range(law, elements, leaf, step, draw)
        blocks, place = torch.unique(elements // 4, return_inverse=True)
        key = _key(self.seed, _leaf_number(leaf), draw)
        values = self._block(law, key, blocks, torch.tensor([step]))[0]
        return values[:, place.to(values.device) * 4 + (elements % 4).to(values.device)]

    def _range(self, law: str, count: int, leaf: int | str, step: int, draw: int) -> Tensor:
        """Values of elements 0, ..., count - 1; a window of steps at a time when they are few."""
        key = _key(self.seed, _leaf_number(leaf), draw)
        blocks = torch.arange((count + 3) // 4)
        total = max(1, len(self) * blocks.numel() * 4)
        length = 1
        while length < _LONGEST and 2 * length * total <= _WINDOW:
            length *= 2
        if step < 0 or length == 1:
            return self._block(law, key, blocks, torch.tensor([step]))[0, :, :count]
        first = step - step % length
        address = (law, key, count)
        kept = self._ahead.get(address)
        if kept is None or kept[0] != first:
            steps = torch.arange(first, first + length)
            kept = first, self._block(law, key, blocks, steps)[..., :count]
            self._ahead[address] = kept
        # A copy, lest a caller's in-place change reach the values that are kept.
        return kept[1][step - first].clone()

    def _block(self, law: str, key: tuple[int, int], blocks: Tensor, steps: Tensor) -> Tensor:
        """(S, B, 4 K) values for S steps and K blocks of four elements."""
        target = self.items.device
        # No float64 on Apple's GPUs: there the values are made on the CPU and sent.
        device = torch.device("cpu") if target.type == "mps" else target
        blocks, steps, items = blocks.to(device), steps.to(device), self.items.to(device)
        out = torch.empty(
            (len(steps), len(items), blocks.numel(), 4), dtype=torch.float32, device=device
        )
        if out.numel() == 0:
            return out.flatten(2).to(target)
        rows = max(1, _CHUNK // max(1, len(steps) * blocks.numel()))
        columns = max(1, _CHUNK // len(steps))
        for row in range(0, len(items), rows):
            numbers = items[row : row + rows, None]
            for column in range(0, blocks.numel(), columns):
                part = blocks[column : column + columns]
                words = philox(
                    (part, numbers >> 32, numbers & _MASK, (steps & _MASK)[:, None, None]), key
                )
                where = out[:, row : row + rows, column : column + columns]
                if law == "normal":
                    _box_muller(words, where)
                else:
                    for place, word in enumerate(words):
                        where[..., place] = ((word >> 9).double() + 0.5) * 2.0**-23
        return out.flatten(2).to(target)


def _box_muller(words: tuple[Tensor, ...], out: Tensor) -> None:
    """Two pairs of normals from four words: sqrt(-2 log u) (cos, sin)(2 pi v)."""
    for place in (0, 2):
        radius = words[place].double().add_(0.5).mul_(2.0**-32).log_().mul_(-2.0).sqrt_()
        angle = words[place + 1].double().add_(0.5).mul_(2.0**-31 * math.pi)
        out[..., place] = radius * angle.cos()
        out[..., place + 1] = radius.mul_(angle.sin_())
