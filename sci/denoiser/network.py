"""A network, a tree of paths, and nothing more: predictions of any kind, and the loss.

    denoiser = Denoiser(network, GaussianPath(Cosine()), predicts="data")
    loss = denoiser.loss(data)
    data_prediction = denoiser(x, t)
    score = denoiser(x, t, to="score")

The kind that the network was trained to predict and the kind that a sampler wants are independent.
Guidance, thresholding and changes of clock work by wrapping: `Wrapped` is their base, and whatever
has the same call can be sampled from.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sci import tree
from sci.denoiser.wrapped import aligned, before_data, check_time, wanted_kinds
from sci.paths import Path, check_kind
from sci.spaces import widest

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

    A call costs one network evaluation: `evaluations` is 1.

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

    evaluations: int = 1

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
            ValueError: when the mask has another shape.
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
        if mask.dim() != 2:
            raise ValueError(
                f"condition['{self.mask}'] has shape {tuple(mask.shape)}: expected (batch, nodes)"
            )
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
            ValueError: when the network returns another structure, a path has no such kind, or t
                is out of [0, 1] or has another shape.
        """
        leaves, structure = tree.flatten(state)
        paths, kinds = self.layout(structure)
        encoded = self.encode(condition)
        mask = self.mask_of(encoded)
        if isinstance(t, Tensor) and t.dim() == 0:
            t = float(t)
        check_time(t, len(leaves[0]))
        wanted = wanted_kinds(to, structure)
        t = before_data(t, leaves, paths, kinds, wanted)
        predictions = aligned(self._evaluate(state, leaves, t, encoded), structure)
        out = []
        for path, prediction, kind, target, x in zip(
            paths, predictions, kinds, wanted, leaves, strict=True
        ):
            found = path.convert(path.project(prediction, mask), kind, target, x, t)
            # Logits of 0 in the padding would be probabilities of something.
            discrete = kind != target and "logits" in path.heads
            out.append(path.project(found, mask) if discrete else found)
        return structure.unflatten(out)

    def _evaluate(
        self, state: Any, leaves: list[Tensor], t: Tensor | float, encoded: Encoded | None
    ) -> Any:
        """What the network returns, at a time in the type of the first floating leaf."""
        like = leaves[0]
        batch = like.shape[0]
        if not like.is_floating_point():
            floating = [leaf for leaf in leaves if leaf.is_floating_point()]
            like = floating[0] if floating else torch.empty((), device=like.device)
        if isinstance(t, Tensor):
            time = t.to(like)
        else:
            time = like.new_full((batch,), t)
        return self.network(state, time, None if encoded is None else encoded.encoding)

    def loss(
        self,
        data: Any,
        condition: Any = None,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
        weight: Any = None,
        source: Any = None,
    ) -> Tensor:
        """The error of the predicted kind, which is the path's `error`; on linear paths

            sum over leaves of mean over items of w(t) |prediction - target|^2 / dimension.

        Arguments:
            data: the tree, each leaf (B, ...), at t = 1.
            condition: a tree with a batch axis, or None.
            generator: for the times and the noise; torch's own when None.
            t: (B,) path times; uniform on the paths' span when None, one stratum an item.
            weight: a function of (t, path) that returns (B,) or a number, a (B,) tensor, a number,
                or None for 1.
            source: the other end for interpolants, a tree like data; the path's noise when None.

        Returns:
            A scalar; 0 for an empty batch.

        Raises:
            ValueError: when the trees disagree, t is out of [0, 1], or the weights are not (B,).
            TypeError: when a linear leaf is not floating.
        """
        structure = tree.flatten(data)[1]
        paths, kinds = self.layout(structure)
        encoded = self.encode(condition)
        mask = self.mask_of(encoded)
        state, t, targets = self._corrupt(data, mask, generator, t, source)
        predictions = tree.leaves(self(state, t, encoded, to=structure.unflatten(kinds)))
        errors = [
            path.error(prediction, target(kind), kind, mask)
            for path, kind, prediction, target in zip(
                paths, kinds, predictions, targets, strict=True
            )
        ]
        return total_loss(errors, paths, t, weight)

    def _corrupt(
        self, data: Any, mask: Tensor | None, generator: Any, t: Tensor | None, source: Any
    ) -> tuple[Any, Tensor, list[Callable[[str], Tensor]]]:
        """A training state, its times, and for each leaf what a kind should predict there."""
        leaves, structure = tree.flatten(data)
        paths = self.layout(structure)[0]
        batch, device = tree.batch_size(data), leaves[0].device
        if t is None:
            t = self.times(batch, generator).to(device, widest(device))
        elif not isinstance(t, Tensor) or t.shape != (batch,):
            got = tuple(t.shape) if isinstance(t, Tensor) else type(t).__name__
            raise ValueError(f"t must be a tensor of shape ({batch},), got {got}")
        elif not bool(((t >= 0) & (t <= 1)).all()):
            raise ValueError("t must lie in [0, 1] (0 the source, 1 the data)")
        sources = None if source is None else aligned(source, structure)
        states: list[Tensor] = []
        targets: list[Callable[[str], Tensor]] = []
        for place, (path, leaf) in enumerate(zip(paths, leaves, strict=True)):
            if not leaf.is_floating_point() and "logits" not in path.heads:
                raise TypeError(
                    f"leaf '{structure.names[place] or 'state'}' is {leaf.dtype}: its "
                    f"{type(path).__name__} needs floating data; sci.CategoricalPath takes classes"
                )
            clean = path.project(leaf, mask)
            if sources is None:
                end = path.random(clean, mask, generator)
            else:
                end = path.project(sources[place], mask)
            latent = path.latent(clean, mask, generator)
            given: dict[str, Any] = {"data": clean, "noise": end, "t": t}
            if latent is not None:
                given["latent"] = latent
            states.append(path.corrupt(**given))
            targets.append(functools.partial(path.target, **given))
        return structure.unflatten(states), t, targets

    def times(self, batch: int, generator: torch.Generator | None = None) -> Tensor:
        """Training times, (B,), in the widest type of the device: uniform on the span that the
        paths share, one stratum an item, in random order."""
        spans = [path.span for path in tree.flatten(self.paths, Path)[0]]
        low, high = max(span[0] for span in spans), min(span[1] for span in spans)
        if not low < high:
            raise ValueError(f"the leaves share no times: their paths have the spans {spans}")
        device = torch.device("cpu") if generator is None else generator.device
        offset = torch.rand((), generator=generator, dtype=widest(device), device=device)
        order = torch.randperm(batch, generator=generator, device=device)
        return low + (high - low) * (order + offset) / max(batch, 1)


def total_loss(errors: list[Tensor], paths: list[Path], t: Tensor, weight: Any) -> Tensor:
    """The sum over leaves of the weighted mean over items."""
    total = torch.zeros((), device=t.device)
    for path, per_item in zip(paths, errors, strict=True):
        if weight is not None:
            factor = weight(t, path) if callable(weight) else weight
            if isinstance(factor, Tensor):
                if factor.shape not in ((), per_item.shape):
                    raise ValueError(
                        f"the weights have shape {tuple(factor.shape)}: expected one an item, "
                        f"{tuple(per_item.shape)}"
                    )
                factor = factor.to(per_item)
            per_item = per_item * factor
        total = total + per_item.sum() / max(len(per_item), 1)
    return total
