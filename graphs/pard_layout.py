r"""The two arrays of pairs on which all blocks of a graph are trained at once, and sums over them.

Nodes carry block numbers :math:`b_i = 0, 1, \ldots`; block :math:`b` is generated after all earlier
ones and may see only them and itself. To train all blocks in one pass every node exists twice, clean
(what later blocks see) and noised (what its own block sees). Of the :math:`(2n)^2` ordered pairs half
is never visible. The other half fills exactly two :math:`n \times n` arrays:

- *clean*: entry (i, j) joins the clean nodes i and j;
- *noised*: entry (i, j) is the pair as block :math:`\max(b_i, b_j)` sees it: an end in that block is
  noised, an end in an earlier block is clean.

Hidden tensors are ``nodes (B, K, n, H)`` and ``pairs (B, K, n, n, E)``, with K = 2 for training, or
K = 1 for a single graph, whose blocks are clean up to the last; the clean array never reads the
noised one, so both uses give the same numbers. In either array row i sees column j when
:math:`b_j \le b_i`; the node j it sees is the clean one if :math:`b_j < b_i`.

The sums come with backward passes of their own, which keep less and pass over memory less often than
automatic ones: at the widths of this network memory traffic, not arithmetic, takes the time.

References:
    | Pard: permutation-invariant autoregressive diffusion for graph generation
      (Zhao, Ding, Akoglu, 2024)
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["BlockLayout"]


class BlockLayout:
    """Masks of a batch of graphs whose nodes carry block numbers, shared by all layers.

    Arguments:
        blocks: Block number of every node, shape (B, n), integers; -1 where there is no node.
        kinds: 2 for clean and noised arrays, 1 for a single graph.
        dtype: Floating type of the masks that are multiplied.

    Attributes:
        valid: Which nodes exist, (B, n) bool.
        seen: seen[b, i, j] says that row i sees column j, (B, n, n) bool.
        earlier, same: The two parts of `seen`: j in an earlier block than i, or in the same.
        nodes_valid, pairs_valid: Which nodes (B, K, n) and pairs (B, K, n, n) exist.
        mean_weight: Takes the mean over the columns that a row sees, (B, 1, n, n).
    """

    def __init__(self, blocks: Tensor, kinds: int, dtype: torch.dtype):
        self.kinds = kinds
        self.valid = blocks >= 0
        both = self.valid.unsqueeze(2) & self.valid.unsqueeze(1)
        self.earlier = both & (blocks.unsqueeze(2) > blocks.unsqueeze(1))
        self.same = both & (blocks.unsqueeze(2) == blocks.unsqueeze(1))
        self.seen = self.earlier | self.same
        self.nodes_valid = self.valid.unsqueeze(1).expand(-1, kinds, -1)
        self.pairs_valid = both.unsqueeze(1).expand(-1, kinds, -1, -1)
        self.seen_weight, self.earlier_weight = self.seen.to(dtype), self.earlier.to(dtype)
        count = self.seen_weight.sum(-1, keepdim=True).clamp(min=1)
        self.mean_weight = (self.seen_weight / count).unsqueeze(1)
        if kinds == 2:
            clean = torch.stack((torch.ones_like(self.seen), self.earlier.mT), 1)
            # (B, K, n, 2, n): to which of node i, clean or noised, its pair with j belongs.
            self.end_weight = torch.stack((clean, ~clean), 3).to(dtype)

    def ends(self, first: Tensor, second: Tensor) -> Tensor:
        """Sum over both ends of every pair: first_i + second_j, (B, K, n, C) -> (B, K, n, n, C)."""
        return Ends.apply(first, second, self)

    def sum_ends(self, first: Tensor, second: Tensor) -> Tensor:
        """:meth:`ends` without a gradient of its own."""
        if self.kinds == 1:
            return first.unsqueeze(3) + second.unsqueeze(2)
        (left, left_noised), (right, right_noised) = first.unbind(1), second.unbind(1)
        result = first.new_empty(*first.shape[:3], *first.shape[2:])
        torch.add(left.unsqueeze(2), right.unsqueeze(1), out=result[:, 0])
        # An end is clean in the noised array where it is in the earlier of the two blocks.
        before, after = self.earlier.unsqueeze(-1), self.earlier.mT.unsqueeze(-1)
        torch.where(after, left.unsqueeze(2), left_noised.unsqueeze(2), out=result[:, 1])
        result[:, 1] += torch.where(before, right.unsqueeze(1), right_noised.unsqueeze(1))
        return result

    def split_ends(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Transpose of :meth:`sum_ends`: (B, K, n, n, C) -> twice (B, K, n, C)."""
        if self.kinds == 1:
            return pairs.sum(3), pairs.sum(2)
        weight = self.end_weight.to(pairs.dtype)
        first = (weight @ pairs).sum(1).transpose(1, 2)
        return first, (weight @ pairs.transpose(2, 3)).sum(1).transpose(1, 2)

    def collect(self, attention: Tensor, values: Tensor) -> Tensor:
        """Values of the nodes that every node sees: sum over j of attention.

        Arguments:
            attention: Zero where unseen, shape (B, K, n, n, heads).
            values: Shape (B, K, n, heads, width).

        Returns:
            Shape (B, K, n, heads, width).
        """
        weights, values = attention.permute(0, 1, 4, 2, 3), values.transpose(2, 3)
        if self.kinds == 1:
            return (weights @ values).transpose(2, 3)
        (clean, noised), (values_clean, values_noised) = weights.unbind(1), values.unbind(1)
        before = noised * self.earlier_weight.unsqueeze(1).to(noised.dtype)
        seen = before @ values_clean + (noised - before) @ values_noised
        return torch.stack((clean @ values_clean, seen), 1).transpose(2, 3)

    def product(self, left: Tensor, right: Tensor) -> Tensor:
        """Causal matrix product of every channel, (C, B, K, n, n) twice -> (C, B, K, n, n).

        Entry (i, j) sums left_ik right_kj over the nodes k that i or j sees.
        """
        if self.kinds == 1:
            return SingleProduct.apply(left, right, self.seen_weight)
        return DoubledProduct.apply(left, right, self.seen_weight, self.earlier_weight)


class Ends(torch.autograd.Function):
    """:meth:`BlockLayout.ends`; the gradient sums rows by matrix products."""

    @staticmethod
    def forward(context, first: Tensor, second: Tensor, layout: BlockLayout) -> Tensor:
        context.layout = layout
        return layout.sum_ends(first, second)

    @staticmethod
    def backward(context, gradient: Tensor):
        return *context.layout.split_ends(gradient), None


class Gate(torch.autograd.Function):
    """The message silu(shift + silu(z) scale + z), z = first_i + second_j, of the attention.

    It keeps z, its input and the argument of the last silu.
    """

    @staticmethod
    def forward(
        context, first: Tensor, second: Tensor, gates: Tensor, layout: BlockLayout
    ) -> Tensor:
        ends = layout.sum_ends(first, second)
        scale, shift = gates.chunk(2, dim=-1)
        inner = torch.add(ends, shift).addcmul_(functional.silu(ends), scale)
        context.save_for_backward(ends, gates, inner)
        context.layout = layout
        return functional.silu(inner)

    @staticmethod
    def backward(context, gradient: Tensor):
        ends, gates, inner = context.saved_tensors
        gradient = torch.ops.aten.silu_backward(gradient.to(inner.dtype), inner)
        scale = gates.chunk(2, dim=-1)[0]
        to_gates = torch.empty_like(gates)
        to_scale, to_shift = to_gates.chunk(2, dim=-1)
        torch.mul(gradient, functional.silu(ends), out=to_scale)
        to_shift.copy_(gradient)
        to_ends = torch.ops.aten.silu_backward(gradient * scale, ends).add_(gradient)
        return *context.layout.split_ends(to_ends), to_gates, None


def _flat(matrices: Tensor) -> Tensor:
    """(C, B, n, m) -> (C B, n, m)."""
    return matrices.flatten(0, 1)


class SingleProduct(torch.autograd.Function):
    """The causal product on one graph: rows up to what i sees below, columns above."""

    @staticmethod
    def forward(context, left: Tensor, right: Tensor, seen: Tensor) -> Tensor:
        context.save_for_backward(left, right, seen)
        seen = seen.to(left.dtype)
        shape, left, right = left.shape, left[:, :, 0], right[:, :, 0]
        lower = torch.bmm(_flat(left * seen), _flat(right)).view(left.shape)
        upper = torch.bmm(_flat(left), _flat(right * seen.mT)).view(left.shape)
        return torch.where(seen > 0, lower, upper).view(shape)

    @staticmethod
    def backward(context, gradient: Tensor):
        left, right, seen = context.saved_tensors
        gradient, seen = gradient.to(left.dtype), seen.to(left.dtype)
        shape, left, right = left.shape, left[:, :, 0], right[:, :, 0]
        lower = gradient[:, :, 0] * seen
        upper = _flat(gradient[:, :, 0] - lower)
        lower = _flat(lower)
        to_left = torch.bmm(lower, _flat(right).mT).view(left.shape).mul_(seen)
        to_left += torch.bmm(upper, _flat(right * seen.mT).mT).view(left.shape)
        to_right = torch.bmm(_flat(left).mT, upper).view(left.shape).mul_(seen.mT)
        to_right += torch.bmm(_flat(left * seen).mT, lower).view(left.shape)
        return to_left.view(shape), to_right.view(shape), None


class DoubledProduct(torch.autograd.Function):
    """The causal product on clean and noised arrays.

    With P, Q split by where the middle node lies (in an earlier block, in the same), entries whose
    row sees their column are, in the clean array, P Q over what the row sees; in the noised array
    P Q_clean over earlier blocks (P Q_noised if the column is in the row's block, hence noised
    itself) plus P Q_noised over the row's own block. The others follow from the columns.
    """

    @staticmethod
    def forward(context, left: Tensor, right: Tensor, seen: Tensor, earlier: Tensor) -> Tensor:
        context.save_for_backward(left, right, seen, earlier)
        shape, size = left.shape, left.shape[-1]
        seen, earlier = seen.to(left.dtype), earlier.to(left.dtype)
        same = seen - earlier
        rows, inner, columns, within = _factors(left, right, seen, earlier)
        below = torch.bmm(rows, _flat(right[:, :, 0])).view(shape)
        inside = torch.bmm(inner, _flat(right[:, :, 1])).view(shape)
        result = left.new_empty(shape)
        plain, noised = (_flat(left[:, :, kind]) for kind in (0, 1))
        above = torch.bmm(plain, columns[:, 0]).view(*shape[:2], size, size)
        torch.where(seen > 0, below[:, :, 0], above, out=result[:, :, 0])
        above = torch.baddbmm(torch.bmm(noised, within), plain, columns[:, 1])
        lower = torch.where(same > 0, inside[:, :, 1], below[:, :, 1]).add_(inside[:, :, 0])
        torch.where(seen > 0, lower, above.view(lower.shape), out=result[:, :, 1])
        return result

    @staticmethod
    def backward(context, gradient: Tensor):
        left, right, seen, earlier = context.saved_tensors
        shape, gradient = left.shape, gradient.to(left.dtype)
        seen, earlier = seen.to(left.dtype), earlier.to(left.dtype)
        same = seen - earlier
        rows, inner, columns, within = _factors(left, right, seen, earlier)
        plain, noised = (_flat(left[:, :, kind]).mT for kind in (0, 1))
        part = shape[:2] + shape[3:]
        lower = gradient[:, :, 1] * seen
        below = (gradient * torch.stack((seen, earlier), 1)).view(rows.shape)
        inside = torch.stack((lower, gradient[:, :, 1] * same), 2).view(rows.shape)
        above = _flat(gradient[:, :, 0] - gradient[:, :, 0] * seen)
        above_noised = _flat(gradient[:, :, 1] - lower)

        from_clean = torch.bmm(below, _flat(right[:, :, 0]).mT).view(shape)
        from_noised = torch.bmm(inside, _flat(right[:, :, 1]).mT).view(shape)
        to_left = torch.empty_like(left, memory_format=torch.contiguous_format)
        direct = torch.baddbmm(torch.bmm(above, columns[:, 0].mT), above_noised, columns[:, 1].mT)
        torch.addcmul(direct.view(part), from_clean[:, :, 0], seen, out=to_left[:, :, 0])
        other = from_clean[:, :, 1].add_(from_noised[:, :, 1]).mul_(earlier)
        other.addcmul_(from_noised[:, :, 0], same)
        direct = torch.bmm(above_noised, within.mT).view(part)
        torch.add(direct, other, out=to_left[:, :, 1])

        to_right = torch.empty_like(to_left)
        direct = torch.bmm(rows.mT, below).view(part)
        torch.addcmul(direct, torch.bmm(plain, above).view(part), seen.mT, out=to_right[:, :, 0])
        direct = torch.bmm(inner.mT, inside).view(part)
        direct.addcmul_(torch.bmm(plain, above_noised).view(part), earlier.mT)
        other = torch.bmm(noised, above_noised).view(part)
        torch.addcmul(direct, other, same, out=to_right[:, :, 1])
        return to_left, to_right, None, None


def _factors(
    left: Tensor, right: Tensor, seen: Tensor, earlier: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Masked factors of the doubled product: rows for clean and for noised right factors, both
    (C B, 2 n, n); columns (C B, 2, n, n); and the right factor within blocks (C B, n, n)."""
    size, same = left.shape[-1], seen - earlier
    rows = left * torch.stack((seen, earlier), 1)
    inner = left[:, :, 1:] * torch.stack((same, earlier), 1)
    columns = right * torch.stack((seen.mT, earlier.mT), 1)
    return (
        rows.view(-1, 2 * size, size),
        inner.view(-1, 2 * size, size),
        _flat(columns),
        _flat(right[:, :, 1] * same),
    )
