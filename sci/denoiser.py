"""A network, a tree of paths, and nothing more: predictions of any kind, and the loss.

    denoiser = Denoiser(network, GaussianPath(Cosine()), predicts="data")
    loss = denoiser.loss(data)
    data_prediction = denoiser(x, t)
    score = denoiser(x, t, to="score")

The kind that the network was trained to predict and the kind that a sampler wants are independent.
Guidance works by wrapping: whatever has the call signature below can be sampled from.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sci import tree
from sci.paths import Interpolant, Path, check_kind, like_time

__all__ = ["Denoiser", "Encoded"]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """A condition and what the network's `encode` made of it; a tree with a batch axis.

    Arguments:
        condition: as the user gave it.
        encoding: what the network receives in its place.
    """

    condition: Any
    encoding: Any


class Denoiser(nn.Module):
    """A network on a tree of paths.

    The network is called as `network(state, t, condition)` with t of shape (B,) and returns a
    tree like the state. When it has a method `encode(condition)`, it receives the encoding in
    place of the condition; samplers encode once a run. Predictions are projected to the space of
    their leaf.

    Arguments:
        network: the callable, usually a module.
        paths: one path, or a tree of paths with the state's names.
        predicts: the kind that the network predicts, or a tree of kinds.
        mask: the entry of the condition, a dict, that masks every leaf: (B, N) bool; None for none.

    Raises:
        TypeError: when `paths` holds something else, or the network cannot be called.
        ValueError: when a path has no such prediction kind.

    Example:
        >>> import torch
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import VE
        >>> path = GaussianPath(VE(0.1, 1.0))
        >>> zero = Denoiser(lambda state, t, condition: 0 * state, path, predicts="data")
        >>> zero(torch.ones(1, 2), 0.0, to="score")
        tensor([[-1., -1.]])
    """

    def __init__(
        self,
        network: Callable[[Any, Tensor, Any], Any],
        paths: Any,
        predicts: Any = "data",
        mask: str | None = None,
    ):
        super().__init__()
        if not callable(network):
            raise TypeError(f"network is a {type(network).__name__}: expected a callable")
        self.network = network
        self.paths = paths
        self.predicts = predicts
        self.mask = mask
        self.bound: Encoded | None = None
        found, structure = tree.flatten(paths, Path)
        kinds = tree.spread(predicts, structure, str, "predicts")
        for name, path, kind in zip(structure.names, found, kinds, strict=True):
            check_kind(kind, path.heads, f"leaf '{name or 'state'}' cannot predict")
        self._layouts: dict[tree.Structure, tuple[list[Path], list[str]]] = {}

    def layout(self, structure: tree.Structure) -> tuple[list[Path], list[str]]:
        """The paths and the predicted kinds, one a leaf of a state.

        Raises:
            ValueError: when the state has other names than the paths.
        """
        found = self._layouts.get(structure)
        if found is None:
            found = (
                tree.spread(self.paths, structure, Path, "the tree of paths"),
                tree.spread(self.predicts, structure, str, "predicts"),
            )
            self._layouts[structure] = found
        return found

    def encode(self, condition: Any) -> Encoded | None:
        """The condition with the network's encoding, which later calls take as it is.

        Arguments:
            condition: a tree with a batch axis, an `Encoded`, or None for what `given` has bound.
        """
        if condition is None:
            return self.bound
        if isinstance(condition, Encoded):
            return condition
        encode = getattr(self.network, "encode", None)
        return Encoded(condition, condition if encode is None else encode(condition))

    def given(self, condition: Any) -> Denoiser:
        """This denoiser with a condition bound to it, encoded once; the parameters are shared."""
        bound = copy.copy(self)
        bound.bound = self.encode(condition)
        return bound

    def mask_of(self, condition: Any = None) -> Tensor | None:
        """The (B, N) bool mask that the condition holds, or None.

        Raises:
            KeyError: when the denoiser has a mask and the condition has no such entry.
        """
        if self.mask is None:
            return None
        held = self.bound if condition is None else condition
        raw = held.condition if isinstance(held, Encoded) else held
        if not isinstance(raw, dict) or self.mask not in raw:
            entries = sorted(raw) if isinstance(raw, dict) else type(raw).__name__
            raise KeyError(
                f"the denoiser takes its mask from condition['{self.mask}'], got {entries}: "
                f"pass condition={{'{self.mask}': (batch, nodes) bool, ...}}"
            )
        mask = raw[self.mask]
        return mask if mask.dtype == torch.bool else mask > 0.5

    def forward(
        self, state: Any, t: Tensor | float, condition: Any = None, to: Any = "data"
    ) -> Any:
        """Predict.

        Arguments:
            state: the tree, each leaf (B, ...).
            t: path time in [0, 1], (B,) or a float; conversions are quicker with a float.
            condition: a tree with a batch axis, an `Encoded`, or None for the bound one.
            to: the kind that is wanted, or a tree of kinds with the state's names.

        Returns:
            A tree like the state.

        Raises:
            ValueError: when the network returns another structure, or a path has no such kind.
        """
        leaves, structure = tree.flatten(state)
        paths, kinds = self.layout(structure)
        encoded = self.encode(condition)
        mask = self.mask_of(encoded)
        first = leaves[0]
        if isinstance(t, Tensor) and t.dim() == 0:
            t = float(t)
        if isinstance(t, Tensor):
            time = t.to(first.dtype)
        else:
            time = first.new_full((first.shape[0],), t)
        outputs = self.network(state, time, None if encoded is None else encoded.encoding)
        predictions = _aligned(outputs, structure)
        wanted = (
            [to] * len(leaves) if isinstance(to, str) else tree.spread(to, structure, str, "to")
        )
        return structure.unflatten(
            [
                path.convert(path.space.project(prediction, mask), kind, target, x, t)
                for path, prediction, kind, target, x in zip(
                    paths, predictions, kinds, wanted, leaves, strict=True
                )
            ]
        )

    def loss(
        self,
        data: Any,
        condition: Any = None,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
        weight: Any = None,
        source: Any = None,
    ) -> Tensor:
        """Mean squared error of the predicted kind:

            sum over leaves of mean over items of w(t) |prediction - target|^2 / dimension.

        Arguments:
            data: the tree, each leaf (B, ...), at t = 1.
            condition: a tree with a batch axis, or None.
            generator: for the times and the noise; torch's own when None.
            t: (B,) path times; uniform on the paths' span when None, one stratum an item.
            weight: a function of (t, path) that returns (B,), a (B,) tensor, or None for 1.
            source: the other end for interpolants, a tree like data; standard noise when None.

        Returns:
            A scalar.

        Raises:
            ValueError: when the trees disagree, or t is out of [0, 1].
        """
        leaves, structure = tree.flatten(data)
        paths, kinds = self.layout(structure)
        encoded = self.encode(condition)
        mask = self.mask_of(encoded)
        batch, device = tree.batch_size(data), leaves[0].device
        if t is None:
            t = self.times(batch, generator).to(device)
        elif t.shape != (batch,) or bool((t < 0).any()) or bool((t > 1).any()):
            raise ValueError(
                f"t must have shape ({batch},) and lie in [0, 1], got {tuple(t.shape)}"
            )
        sources = None if source is None else _aligned(source, structure)
        states, targets = [], []
        for place, (path, kind, leaf) in enumerate(zip(paths, kinds, leaves, strict=True)):
            end = path.space.random(leaf, mask, generator) if sources is None else sources[place]
            extra: dict[str, Any] = {}
            if isinstance(path, Interpolant) and path.noise:
                extra["latent"] = path.space.random(leaf, mask, generator)
            states.append(path.corrupt(leaf, end, t, **extra))
            targets.append(path.target(kind, leaf, end, t, **extra))
        predictions = tree.leaves(
            self(structure.unflatten(states), t, encoded, to=structure.unflatten(kinds))
        )
        total = torch.zeros((), device=device)
        for path, leaf, prediction, target in zip(paths, leaves, predictions, targets, strict=True):
            error = prediction - target
            size = path.space.dimension(leaf, mask).clamp(min=1).to(error.dtype)
            per_item = path.space.inner(error, error, mask) / size
            if weight is not None:
                factor = weight(t, path) if callable(weight) else weight
                per_item = per_item * like_time(factor, per_item)
            total = total + per_item.mean()
        return total

    def times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Training times, (B,) float64: uniform on the span that the paths share, one stratum an
        item, in random order."""
        spans = [path.span for path in tree.flatten(self.paths, Path)[0]]
        low, high = max(span[0] for span in spans), min(span[1] for span in spans)
        device = "cpu" if generator is None else generator.device
        offset = torch.rand((), generator=generator, dtype=torch.float64, device=device)
        order = torch.randperm(batch, generator=generator, device=device)
        return low + (high - low) * (order + offset) / max(batch, 1)


def _aligned(outputs: Any, structure: tree.Structure) -> list[Tensor]:
    """The leaves of a network's output, checked against the state's names."""
    found, given = tree.flatten(outputs)
    if given != structure and given.names != structure.names:
        raise ValueError(f"expected the leaves {structure.names} (the state's), got {given.names}")
    return found
