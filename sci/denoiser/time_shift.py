"""Time-Shift Sampler: the network is told the time that the state looks like."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sci import tree
from sci.denoiser.wrapped import Retimed
from sci.paths import Path, like_time
from sci.spaces import widest

__all__ = ["TimeShift", "variance"]


class TimeShift(Retimed):
    """The network is told the time that the state looks like, within a window.

    Errors of earlier steps leave a state whose noise level is not that of the sampler's clock. The
    time given to the network is the one within t +- window at which the expected variance

        alpha^2 data_variance + sigma^2

    is nearest to the state's own, item by item, over the present elements; with several leaves the
    squared gaps are added. The sampler goes on with t: the prediction is taken at the shifted time
    and converted at t. Nothing is shifted at the start of the span, where the noise is exact, nor
    by leaves of a single element, which have no variance.

    Arguments:
        denoiser: a `Denoiser`, or a wrapper of one.
        window: the largest shift, in path time; w / 1000 for a window of w of a thousand levels.
        cutoff: the last time that is shifted.
        data_variance: of the elements of an item; 0, as published, judges by the noise alone.
        resolution: distance of the times that are compared.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> denoiser = Denoiser(lambda x, t, condition: 0 * x, GaussianPath(CondOT()))
        >>> state = torch.linspace(-1, 1, 101)[None]  # of variance 0.343, so sigma is 0.586
        >>> [round(float(t), 3) for t in TimeShift(denoiser, window=0.1).shifted(state, 0.5)]
        [0.414]

    References:
        | Alleviating exposure bias in diffusion models through sampling with shifted time steps
        | (Li et al., 2024)
    """

    def __init__(
        self,
        denoiser: Any,
        window: float,
        cutoff: float = 1.0,
        data_variance: float = 0.0,
        resolution: float = 1e-3,
    ):
        super().__init__(denoiser)
        if not (0 < resolution <= window <= 1):
            raise ValueError(
                f"expected 0 < resolution <= window <= 1, got resolution={resolution} and "
                f"window={window}"
            )
        if not 0 <= cutoff <= 1 or not data_variance >= 0:
            raise ValueError(
                "expected 0 <= cutoff <= 1 and data_variance >= 0, got "
                f"cutoff={cutoff} and data_variance={data_variance}"
            )
        self.window, self.cutoff = float(window), float(cutoff)
        self.data_variance, self.resolution = float(data_variance), float(resolution)

    def shifted(self, state: Any, t: Tensor | float, condition: Any = None) -> Tensor:
        """The time given to the network, (B,), in the widest type of the device.

        Arguments:
            state: the tree, each leaf (B, ...).
            t: the sampler's time, (B,) or a float.
            condition: a tree with a batch axis, an `Encoded`, or None for the bound one.
        """
        leaves, structure = tree.flatten(state)
        return self._shift(leaves, structure, t, self.encode(condition))

    def _shift(
        self, leaves: list[Tensor], structure: tree.Structure, t: Any, condition: Any
    ) -> Tensor:
        first = leaves[0]
        wide: dict[str, Any] = {"dtype": widest(first.device), "device": first.device}
        time = t.to(**wide) if isinstance(t, Tensor) else torch.full((len(first),), t, **wide)
        paths = self.layout(structure)[0]
        start = max(path.span[0] for path in paths)
        stop = min(path.span[1] for path in paths)
        mask = self.mask_of(condition)
        reach = int(self.window / self.resolution + 1e-9)
        # 0, -1, 1, -2, ...: the unshifted time comes first, so that it wins ties.
        place = torch.arange(2 * reach + 1, device=first.device)
        offsets = ((place + 1) // 2 * (1 - 2 * (place % 2))).to(**wide) * self.resolution
        candidates = (time[:, None] + offsets).clamp(start, stop)
        gap = torch.zeros_like(candidates)
        for path, x in zip(paths, leaves, strict=True):
            if "difference" not in path.heads:
                continue
            schedule = path.schedule
            expected = (
                schedule.alpha(candidates) ** 2 * self.data_variance
                + schedule.sigma(candidates) ** 2
            )
            # The spread of a single number says nothing.
            several = path.space.dimension(x, mask) > 1
            own = variance(path, x.detach(), mask).to(**wide)
            gap = gap + several[:, None] * (own[:, None] - expected) ** 2
        best = candidates.gather(1, gap.argmin(1, keepdim=True)).squeeze(1)
        return torch.where((time > start) & (time <= self.cutoff), best, time)

    def _kinds(self, structure: tree.Structure, wanted: list[str]) -> list[str]:
        return self.denoiser.layout(structure)[1]

    def _ask(
        self,
        leaves: list[Tensor],
        structure: tree.Structure,
        t: Tensor | float,
        condition: Any,
        kinds: list[str],
    ) -> list[Tensor]:
        state = structure.unflatten(leaves)
        condition = self.encode(condition)
        start = max(path.span[0] for path in self.layout(structure)[0])
        if isinstance(t, float) and not start < t <= self.cutoff:
            time: Tensor | float = t
        else:
            time = self._shift(leaves, structure, t, condition)
        return tree.leaves(self.denoiser(state, time, condition, to=structure.unflatten(kinds)))


def variance(path: Path, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """The variance of each item's present, independent elements about their mean, (B,)."""
    ones = path.space.project(torch.ones_like(x), mask)
    size = path.space.dimension(x, mask).to(x.dtype)
    # How much of the constant lies in the space: none of it in a centred one.
    constant = path.space.inner(ones, ones, mask)
    mean = path.space.inner(x, ones, mask) / constant.clamp(min=1e-12)
    centred = x - like_time(mean, x) * ones
    freedom = size - (constant > 0.5).to(x.dtype)
    return path.space.inner(centred, centred, mask) / freedom.clamp(min=1)
