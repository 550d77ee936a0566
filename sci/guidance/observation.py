"""Exact guidance by linear measurements with Gaussian noise.

Given y = A(data) + std z, and with data given x taken for Gaussian of mean data_hat(x) and
covariance C, the posterior mean is

    E[data | x, y] = data_hat + C A^T (A C A^T + std^2)^-1 (y - A data_hat).

The covariance is exact and comes with the network (Tweedie's second formula):

    C = Cov(data | x) = (sigma^2 / alpha) d data_hat / dx.

C A^T u is one pass back through the network, so the linear system is solved by conjugate gradients
in the space of the measurements, a fixed number of steps and no matrix. For Gaussian data nothing is
approximated once the steps reach the number of measurements; for other data the Gaussian is the one
with the right first two moments.

References:
    | Learning diffusion priors from observations by expectation maximization
    | (Rozet, Andry, Lanusse, Louppe, 2024)
    | Tweedie moment projected diffusions for inverse problems (Boys et al., 2024)
    | Pseudoinverse-guided diffusion models for inverse problems (Song et al., 2023)
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
    coordinates,
    gradients,
    is_gaussian,
    recordable,
    recording,
    shaped,
)

__all__ = ["Observation"]


class Observation(Guidance):
    """Guidance by y = A(data) + std z: some entries, sums, averages, blurs, projections.

        data = data_hat + C A^T (A C A^T + std^2)^-1 (y - A data_hat)

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.
        operator: A, a function of the tree of data predictions that is affine and differentiable
            and treats each item by itself: data[:, mask], data.sum(1), a convolution. It returns a
            tensor (B, ...) or a tree of them.
        values: y, like what the operator returns; a batch axis of 1 serves all items.
        std: the standard deviation of the measurement, >= 0: a number, or a tensor that broadcasts
            to a `values` that is one tensor.
        iterations: of conjugate gradients. As many as there are different measurements of an item
            are exact; a few do when the measurements are alike.

    Only leaves on Gaussian paths move; others may be read.

    Raises:
        TypeError: when the operator cannot be called, or values hold something else than tensors.
        ValueError: when values are not finite, std is negative or iterations < 1.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> normal = Denoiser(lambda x, t, condition: x, GaussianPath(CondOT()))
        >>> y = torch.tensor([[2.0]])
        >>> guided = Observation(normal, lambda data: data[:, :1], y, std=0.0, iterations=1)
        >>> guided(torch.zeros(1, 3), 0.5).tolist()
        [[2.0, 0.0, 0.0]]

    References:
        | Learning diffusion priors from observations by expectation maximization
        | (Rozet, Andry, Lanusse, Louppe, 2024)
    """

    def __init__(
        self,
        denoiser: Any,
        operator: Callable[[Any], Any],
        values: Any,
        std: float | Tensor = 0.0,
        iterations: int = 4,
    ):
        super().__init__(denoiser)
        if not callable(operator):
            raise TypeError(f"operator is a {type(operator).__name__}: expected a function of data")
        found, self._shape = tree.flatten(values)
        tree.batch_size(values)
        for name, leaf in zip(self._shape.names, found, strict=True):
            if not leaf.is_floating_point() or not bool(torch.isfinite(leaf).all()):
                raise ValueError(
                    f"values{f' {name!r}' if name else ''} must be floating and finite: leave "
                    "missing measurements out of the operator, for example data[:, present]"
                )
        if isinstance(std, Tensor) and len(found) != 1:
            raise ValueError("std is a tensor and values a tree: give std as a number")
        spread = torch.as_tensor(std, dtype=found[0].dtype, device=found[0].device).detach()
        if not bool((spread >= 0).all()) or not bool(torch.isfinite(spread).all()):
            raise ValueError("std must be finite and not negative")
        if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
            raise ValueError(f"iterations must be an integer >= 1, got {iterations!r}")
        self._sizes = [tuple(leaf.shape[1:]) for leaf in found]
        self.operator = operator
        self.iterations = iterations
        self.tensors["values"] = _joined(found)
        if spread.dim():
            try:
                spread = _joined([spread.expand_as(found[0])])
            except RuntimeError:
                raise ValueError(
                    f"std has shape {tuple(spread.shape)}, which does not broadcast to the values' "
                    f"{tuple(found[0].shape)}"
                ) from None
            self.tensors["std"] = spread
        else:
            self.tensors["std"] = spread.view(1, 1)
        self._floors: dict[Any, float] = {}

    @property
    def evaluations(self) -> int:
        """One, and one pass back through the network for each iteration; times the inner's."""
        return super().evaluations * (1 + self.iterations)

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The posterior mean; see `Wrapped.data`.

        Raises:
            ValueError: when the operator returns another shape than the values have, or no leaf has
                a Gaussian path.
        """
        bound = self.encode(condition)
        leaves, structure = tree.flatten(state)
        paths = self.layout(structure)[0]
        mask = self.mask_of(bound)
        settings = self._settings(bound, len(leaves[0]))
        keep = torch.is_grad_enabled()
        with recording():
            leaves, bound = recordable(leaves), recordable(bound)
            free = [is_gaussian(path, x) for path, x in zip(paths, leaves, strict=True)]
            if not any(free):
                raise ValueError(
                    "Observation moves leaves on Gaussian paths and the state has none; use "
                    "Replacement for known entries, or Gradient"
                )
            leaves, t = audible(leaves, paths, t, self._floors)
            places = [place for place, yes in enumerate(free) if yes]
            offsets = [coordinates(paths[place], leaves[place]) for place in places]
            moved = list(leaves)
            factors = []
            for place, offset in zip(places, offsets, strict=True):
                x = leaves[place]
                moved[place] = x + paths[place].space.place(offset, x, mask)
                alpha, sigma = blur(paths[place], t)
                factors.append(shaped(sigma**2 / alpha, x))
            predicted = tree.leaves(
                self.denoiser(structure.unflatten(moved), t, bound.encoding, to="data")
            )
            seen = self._measure(structure.unflatten(predicted))
            still = list(predicted)
            for place in places:
                still[place] = torch.zeros_like(predicted[place])
            nothing = self._measure(structure.unflatten(still))

            def spread(direction: Tensor) -> list[Tensor]:
                """C A^T direction, a leaf each."""
                slopes = gradients(seen, offsets, keep, direction)
                return [
                    paths[place].space.place(slope, leaves[place], mask) * factor
                    for place, slope, factor in zip(places, slopes, factors, strict=True)
                ]

            def image(parts: list[Tensor]) -> Tensor:
                """A of a direction, without the constant of an affine A."""
                full = list(still)
                for place, part in zip(places, parts, strict=True):
                    full[place] = part
                return self._measure(structure.unflatten(full)) - nothing

            with torch.set_grad_enabled(keep):
                residual = settings["values"].to(seen) - seen
                variance = settings["std"].to(seen) ** 2
                changes = _solve(spread, image, residual, variance, self.iterations)
                for place, change in zip(places, changes, strict=True):
                    predicted[place] = predicted[place] + change
        return structure.unflatten(predicted if keep else [leaf.detach() for leaf in predicted])

    def _measure(self, data: Any) -> Tensor:
        found, shape = tree.flatten(self.operator(data))
        sizes = [tuple(leaf.shape[1:]) for leaf in found]
        if sizes != self._sizes or shape.names != self._shape.names:
            raise ValueError(
                f"the operator returns {sizes} an item and the values have {self._sizes}: expected "
                "the same, each with a batch axis first"
            )
        return _joined(found)


def _joined(leaves: list[Tensor]) -> Tensor:
    """All measurements of an item in a row, (B, M)."""
    return torch.cat([leaf.reshape(len(leaf), math.prod(leaf.shape[1:])) for leaf in leaves], 1)


def _solve(
    spread: Callable[[Tensor], list[Tensor]],
    image: Callable[[list[Tensor]], Tensor],
    residual: Tensor,
    variance: Tensor,
    iterations: int,
) -> list[Tensor]:
    """C A^T u for the u that conjugate gradients find in (A C A^T + variance) u = residual."""
    direction = residual
    square = (residual * residual).sum(1, keepdim=True)
    total: list[Tensor] | None = None
    for count in range(iterations):
        parts = spread(direction)
        product = image(parts) + variance * direction
        energy = (direction * product).sum(1, keepdim=True)
        # A network's Jacobian need not be a covariance: where it is not positive the item stops.
        step = torch.where(energy > 0, square / torch.where(energy > 0, energy, 1.0), 0.0)
        moves = [part * step.view(-1, *[1] * (part.dim() - 1)) for part in parts]
        total = moves if total is None else [a + b for a, b in zip(total, moves, strict=True)]
        if count + 1 == iterations:
            break
        residual = residual - step * product
        fresh = (residual * residual).sum(1, keepdim=True)
        ratio = torch.where(square > 0, fresh / torch.where(square > 0, square, 1.0), 0.0)
        direction = residual + ratio * direction
        square = fresh
    return total or []
