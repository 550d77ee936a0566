"""Guidance by the gradient of a target: a property, a classifier, an energy, a measured mismatch.

With target f(data, condition) = log p(y | data), the score of the guided law is

    score + w grad_x f(data_hat(x)),    so that    data = data_hat + w (sigma^2 / alpha) grad_x f

where the gradient goes back through the network. Because sigma^2 / alpha d data_hat / dx is the
covariance of data given x, this equals data_hat + w Cov(data | x) grad f: the network itself says
which way the data can move. Without the pass through the network (`through=False`) the covariance is
replaced by the one of independent Gaussian data of standard deviation s,

    data = data_hat + w v grad f(data_hat),    v = s^2 sigma^2 / (s^2 alpha^2 + sigma^2),

which is cheaper, steadier with networks that were trained on little data, and blind to correlations.
A leaf without a score (rotations, interpolants) always takes the second form, on rotations along the
geodesic; a discrete leaf takes p <- p exp(w grad f), normalised.

Adding f to the log density at the expectation is exact for linear f, and for others only where data
is nearly known; `Observation` treats linear-Gaussian measurements exactly. A trained network's slope
near pure noise is small and not exact while sigma^2 / alpha is large: `clip` bounds what comes of it.

References:
    | Diffusion models beat GANs on image synthesis (Dhariwal, Nichol, 2021)
    | Diffusion posterior sampling for general noisy inverse problems (Chung et al., 2023)
    | Universal guidance for diffusion models (Bansal et al., 2023)
    | DiGress: discrete denoising diffusion for graph generation (Vignac et al., 2023)
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sci import tree
from sci.guidance.base import (
    Guidance,
    audible,
    blur,
    check_scale,
    coordinates,
    gradients,
    is_gaussian,
    is_linear,
    per_leaf,
    presence,
    recordable,
    recording,
    scale_at,
    shaped,
    tilted,
)
from sci.paths import Path, like_time
from sci.spaces import Symmetric

__all__ = ["Gradient"]


class Gradient(Guidance):
    """Guidance along the gradient of a target on the predicted data.

        data = data_hat + w (sigma^2 / alpha) grad_x f(data_hat(x), condition)

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.
        target: f(data, condition) -> (B,), differentiable, each item's own log p(y | data) up to a
            constant. `data` is the tree of data predictions (probabilities for discrete leaves),
            `condition` what the user gave.
        scale: w: a number, a tensor (B,), a function of the path time, or a tree of these with the
            names of the leaves that are guided.
        through: whether the gradient goes back through the network.
        std: s, the standard deviation of the data: a number or a tree of numbers by leaf. It enters
            v, thus `through=False`, `normalise` and `clip`.
        normalise: whether the change of each item and leaf has root mean square w sqrt(v), whatever
            the length of the gradient; then w is in units of the estimated uncertainty of data.
        clip: the largest root mean square of the change of an item and leaf, in the same units
            (of the logits for discrete leaves); None for no limit.
        check: whether every gradient is looked at, and one that is not finite raises. That waits
            for the device at each evaluation; without it such values spread, and the sampler names
            item, step and leaf at the end.

    Raises:
        TypeError: when the target cannot be called, or a scale is of another type.
        ValueError: for settings out of range.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> plain = Denoiser(lambda x, t, condition: 0.5 * x, GaussianPath(CondOT()))
        >>> guided = Gradient(plain, lambda data, condition: 4 * data.sum(1))
        >>> guided(torch.zeros(1, 1), 0.5).tolist()
        [[1.0]]

    References:
        | Diffusion posterior sampling for general noisy inverse problems (Chung et al., 2023)
    """

    def __init__(
        self,
        denoiser: Any,
        target: Callable[[Any, Any], Tensor],
        scale: Any = 1.0,
        through: bool = True,
        std: Any = 1.0,
        normalise: bool = False,
        clip: float | None = None,
        check: bool = False,
    ):
        super().__init__(denoiser)
        if not callable(target):
            raise TypeError(
                f"target is a {type(target).__name__}: expected a function of (data, condition) "
                "that returns (batch,)"
            )
        if clip is not None and not clip > 0:
            raise ValueError(f"clip must be positive, got {clip}")
        # A tuple of types does not cover functions, so a container is told by being one.
        single = isinstance(scale, (int, float, Tensor)) or callable(scale)
        self.scale = {None: scale} if single else scale
        if not isinstance(self.scale, dict):
            raise TypeError(
                f"scale is a {type(scale).__name__}: expected a number, a tensor (batch,), a "
                "function of the time, or a dict of these by leaf name"
            )
        for name, value in self.scale.items():
            check_scale(value, "scale" if name is None else f"scale of leaf '{name}'")
            if isinstance(value, Tensor):
                self.tensors["scale" if name is None else f"scale of leaf '{name}'"] = value
        for value in tree.flatten(std, (int, float))[0]:
            if not 0 < value < math.inf:
                raise ValueError(f"std must be positive and finite, got {value}")
        self.target = target
        self.through = bool(through)
        self.std = std
        self.normalise = bool(normalise)
        self.clip = clip
        self.check = bool(check)
        self._floors: dict[Any, float] = {}

    @property
    def evaluations(self) -> int:
        """The inner denoiser's; twice that through the network, for the way back."""
        return super().evaluations * (2 if self.through else 1)

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The guided data prediction; see `Wrapped.data`.

        Raises:
            ValueError: when the target returns another shape than (B,) or depends on no leaf.
            FloatingPointError: with `check`, when a gradient is not finite; names the leaf.
        """
        bound = self.encode(condition)
        leaves, structure = tree.flatten(state)
        names = [name or "state" for name in structure.names]
        paths = self.layout(structure)[0]
        mask = self.mask_of(bound)
        scales = self._scales(names, self._settings(bound, len(leaves[0])))
        stds = per_leaf(self.std, structure.names, (int, float), "std")
        keep = torch.is_grad_enabled()
        with recording():
            leaves, bound = recordable(leaves), recordable(bound)
            through = [
                self.through and scale is not None and is_gaussian(path, x)
                for path, x, scale in zip(paths, leaves, scales, strict=True)
            ]
            if any(through):
                leaves, t = audible(leaves, paths, t, self._floors)
            offsets: list[Tensor | None] = [
                coordinates(path, x) if yes else None
                for path, x, yes in zip(paths, leaves, through, strict=True)
            ]
            moved = [
                x if offset is None else x + path.space.place(offset, x, mask)
                for path, x, offset in zip(paths, leaves, offsets, strict=True)
            ]
            with torch.set_grad_enabled(keep or any(through)):
                predicted = tree.leaves(
                    self.denoiser(structure.unflatten(moved), t, bound.encoding, to="data")
                )
            shown = []
            for place, (path, x, data) in enumerate(zip(paths, leaves, predicted, strict=True)):
                if scales[place] is not None and not through[place]:
                    data, offsets[place] = _loosened(path, x, data, mask)
                shown.append(data)
            value = self.target(structure.unflatten(shown), bound.condition)
            self._check_value(value, len(leaves[0]))
            places = [place for place, offset in enumerate(offsets) if offset is not None]
            variables = [offset for offset in offsets if offset is not None]
            slopes = dict(zip(places, gradients(value, variables, keep), strict=True))
        out = []
        for place, (path, x, data) in enumerate(zip(paths, leaves, predicted, strict=True)):
            if place not in slopes:
                out.append(data)
                continue
            scale = scale_at(scales[place], t, data)
            slope = _direction(path, x, slopes[place], mask)
            if self.check and not bool(torch.isfinite(slope).all()):
                raise FloatingPointError(
                    f"the gradient of the target for leaf '{names[place]}' is not finite in "
                    f"{int((~torch.isfinite(slope).flatten(1).all(1)).sum())} of {len(slope)} "
                    "items: look at the target there (roots and logarithms at 0, divisions)"
                )
            std = 1.0 if stds[place] is None else float(stds[place])
            out.append(self._guided(path, x, data, slope, t, scale, std, through[place], mask))
        return structure.unflatten(out if keep else [leaf.detach() for leaf in out])

    def _guided(
        self,
        path: Path,
        x: Tensor,
        data: Tensor,
        slope: Tensor,
        t: Any,
        scale: Any,
        std: float,
        through: bool,
        mask: Tensor | None,
    ) -> Tensor:
        """One leaf's data prediction with the change that guidance makes."""
        alpha, sigma = blur(path, t)
        discrete = not x.is_floating_point()
        spread: Any = 1.0
        if not discrete:
            spread = std * sigma / ((std * alpha) ** 2 + sigma**2) ** 0.5
        if through:
            factor = sigma**2 / alpha
        else:
            factor = spread**2
        if self.normalise:
            size = _size(path, slope, mask, discrete)
            change = slope * like_time(torch.where(size > 0, 1.0 / size, size), slope)
            change = change * shaped(spread, slope) * scale
        else:
            change = slope * shaped(factor, slope) * scale
        if self.clip is not None:
            size = _size(path, change, mask, discrete)
            limit = self.clip * spread
            limit = limit.to(size) if isinstance(limit, Tensor) else size.new_full((), limit)
            change = change * like_time(
                torch.where(size > limit, limit / size, torch.ones_like(size)), change
            )
        if discrete:
            tiny = torch.finfo(data.dtype).tiny
            return tilted(data.clamp_min(tiny).log() + change, data)
        return path.space.exp(data, change)

    def _scales(self, names: list[str], settings: dict[str, Tensor]) -> list[Any]:
        if None in self.scale:
            return [settings.get("scale", self.scale[None])] * len(names)
        per_leaf({name: 1.0 for name in self.scale}, names, float, "scale")
        return [settings.get(f"scale of leaf '{name}'", self.scale.get(name)) for name in names]

    def _check_value(self, value: Any, batch: int) -> None:
        if not isinstance(value, Tensor) or value.shape != (batch,):
            got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(
                f"the target returned {got}: expected one number an item, shape ({batch},); sum "
                "over the other axes"
            )
        if not value.requires_grad:
            raise ValueError(
                "the target does not depend on data in a differentiable way: keep argmax, rounding, "
                "detach and NumPy out of it"
            )


def _loosened(path: Path, x: Tensor, data: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """A data prediction that may move, and the offset that moves it."""
    if not x.is_floating_point():
        offset = torch.zeros_like(data, requires_grad=True)
        return data + offset, offset
    if is_linear(path):
        offset = coordinates(path, data)
        return data + path.space.place(offset, data, mask), offset
    offset = torch.zeros_like(path.space.log(data, data), requires_grad=True)
    return path.space.exp(data, offset), offset


def _direction(path: Path, x: Tensor, slope: Tensor, mask: Tensor | None) -> Tensor:
    """The gradient in the leaf's space, from the one in its coordinates."""
    if not x.is_floating_point():
        # A pair is one element that is written twice.
        if isinstance(path.space, Symmetric):
            slope = slope + slope.transpose(1, 2)
        present = presence(mask, path, slope)
        return slope if present is None else torch.where(present, slope, 0.0)
    if is_linear(path):
        return path.space.place(slope, x, mask)
    return path.space.tangent(x, slope, mask)


def _size(path: Path, x: Tensor, mask: Tensor | None, discrete: bool) -> Tensor:
    """The root mean square of each item's independent entries, (B,); 0 where there are none."""
    count = path.space.dimension(x, mask).clamp(min=1).to(x.dtype)
    square = (x * x).flatten(1).sum(1) if discrete else path.space.inner(x, x, mask)
    square = (0.5 if discrete and isinstance(path.space, Symmetric) else 1.0) * square / count
    # The root has no slope at 0; nothing moves there.
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)
