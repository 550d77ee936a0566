"""Bounds on the data prediction: pixels, probabilities, concentrations, standardised series.

Strong guidance pushes data predictions out of the range that the network has seen, and the sampler
carries the excess on. Static thresholding cuts at fixed bounds. Dynamic thresholding lets each item
choose its bound s, a quantile of its own entries, and shrinks the item so that s comes to lie at the
fixed bound: fewer entries stick to the bounds.

References:
    | Photorealistic text-to-image diffusion models with deep language understanding
    | (Saharia et al., 2022)
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sci import tree
from sci.guidance.base import Guidance, is_linear, per_leaf, presence
from sci.paths import Path, like_time

__all__ = ["Thresholded"]


class Thresholded(Guidance):
    """Data predictions kept within bounds.

        static     clip(data, low, high)
        dynamic    m + h clip((data - m) / s, -1, 1),    m = (low + high) / 2, h = (high - low) / 2,
                   s = max(h, the quantile of |data - m| over the item's present entries)

    Rotations and discrete leaves are left as they are; a centred leaf is centred again, so that its
    bounds hold up to that shift.

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.
        low: the lower bound, in units of the data: a number, or a tree of numbers that names the
            leaves to be bounded.
        high: the upper bound, likewise.
        quantile: in (0, 1) for dynamic thresholding, such as 0.995; None for static.

    Raises:
        ValueError: when a bound is missing, low >= high, or the quantile is out of (0, 1).

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> wide = Denoiser(lambda x, t, condition: 4 * x, GaussianPath(CondOT()))
        >>> Thresholded(wide, -1, 1)(torch.tensor([[0.1, 0.5]]), 0.5).tolist()
        [[0.4000000059604645, 1.0]]

    References:
        | Photorealistic text-to-image diffusion models with deep language understanding
        | (Saharia et al., 2022)
    """

    def __init__(
        self, denoiser: Any, low: Any = -1.0, high: Any = 1.0, quantile: float | None = None
    ):
        super().__init__(denoiser)
        lows, highs = (tree.flatten(bound, (int, float)) for bound in (low, high))
        if lows[1].names != highs[1].names:
            raise ValueError(
                f"low names the leaves {lows[1].names}, high {highs[1].names}: give both the same"
            )
        for name, below, above in zip(lows[1].names, lows[0], highs[0], strict=True):
            if not below < above:
                where = f" of leaf '{name}'" if name else ""
                raise ValueError(f"expected low < high{where}, got {below} and {above}")
        if quantile is not None and not 0 < quantile < 1:
            raise ValueError(f"quantile must lie in (0, 1), got {quantile}")
        self.low, self.high, self.quantile = low, high, quantile

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The bounded data prediction; see `Wrapped.data`."""
        bound = self.encode(condition)
        leaves, structure = tree.flatten(state)
        paths = self.layout(structure)[0]
        lows = per_leaf(self.low, structure.names, (int, float), "low")
        highs = per_leaf(self.high, structure.names, (int, float), "high")
        mask = self.mask_of(bound)
        out = []
        for path, x, data, low, high in zip(
            paths,
            leaves,
            tree.leaves(self.denoiser(state, t, bound.encoding, to="data")),
            lows,
            highs,
            strict=True,
        ):
            if low is not None and x.is_floating_point() and is_linear(path):
                data = self._bounded(path, data, float(low), float(high), mask)
            out.append(data)
        return structure.unflatten(out)

    def _bounded(
        self, path: Path, data: Tensor, low: float, high: float, mask: Tensor | None
    ) -> Tensor:
        if self.quantile is None:
            return path.space.project(data.clamp(low, high), mask)
        middle, half = 0.5 * (low + high), 0.5 * (high - low)
        far = (data - middle).abs()
        present = presence(mask, path, data)
        if present is not None:
            far = torch.where(present, far, torch.nan)
        if not len(data):
            return data
        # An item without entries has no quantile and needs none.
        reach = far.flatten(1).nanquantile(self.quantile, 1).nan_to_num(nan=half)
        reach = like_time(reach.clamp(min=half), data)
        inside = torch.maximum(torch.minimum(data - middle, reach), -reach)
        return path.space.project(middle + inside * (half / reach), mask)
