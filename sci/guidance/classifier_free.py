"""Classifier-free guidance: one network, seen with its condition and without.

    score = score_without + w (score_with - score_without)

At one state x and one time every score is (alpha data - x) / sigma^2, an affine function of the
data prediction with the same x for both. So combining scores is combining data predictions,

    data = data_without + w (data_with - data_without),

and also noise, velocity or angular predictions. Rotations are combined along the geodesic from one
prediction to the other; discrete leaves combine log probabilities and are normalised again.

References:
    | Classifier-free diffusion guidance (Ho, Salimans, 2022)
    | Common diffusion noise schedules and sample steps are flawed (Lin, Liu, Li, Yang, 2024)
    | Applying guidance in a limited interval improves sample and distribution quality in diffusion
    | models (Kynkäänniemi et al., 2024)
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sci import tree
from sci.denoiser import Encoded
from sci.guidance.base import Bound, Guidance, check_scale, is_linear, shaped, tilted
from sci.paths import Path, like_time

__all__ = ["ClassifierFree"]


class ClassifierFree(Guidance):
    """Guidance towards the condition, by a network that also knows the null condition.

        data = data_without + w (data_with - data_without)

    w = 1 is the conditional model, w = 0 the unconditional one, both exactly and for the price of
    one evaluation when w is that number; w > 1 exaggerates what the condition changes. Otherwise a
    call costs two evaluations, made as one batch of pairs where both conditions have the same
    shapes.

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.
        scale: w: a number, a tensor (B,), or a function of the path time t (a float, or (B,)) that
            returns either.
        null: what stands for "no condition": a dict of entries of the condition and the values
            that replace them (a number, or a tensor that broadcasts); names of entries that become
            zero; a tensor, for a condition that is one tensor; a function of the condition; or None
            for a network that takes None.
        rescale: from 0 to 1, how far the length |data| of each item and leaf is brought back to
            that of the conditional prediction; rotations and classes have none.
        interval: (start, stop), path times between which w holds; outside it is 1, at the same
            cost. None: always.
        batched: whether both evaluations may be one call.

    Raises:
        TypeError: for a scale or a null of another type.
        ValueError: for settings out of range.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> network = lambda x, t, condition: 0 * x + condition["label"][:, None]
        >>> labelled = Denoiser(network, GaussianPath(CondOT()))
        >>> guided = ClassifierFree(labelled, scale=3.0, null={"label": 0.0})
        >>> guided(torch.zeros(2, 1), 0.5, {"label": torch.tensor([1.0, 2.0])}).tolist()
        [[3.0], [6.0]]

    References:
        | Classifier-free diffusion guidance (Ho, Salimans, 2022)
    """

    def __init__(
        self,
        denoiser: Any,
        scale: float | Tensor | Callable[[Any], Any] = 2.0,
        null: Any = None,
        rescale: float = 0.0,
        interval: tuple[float, float] | None = None,
        batched: bool = True,
    ):
        super().__init__(denoiser)
        check_scale(scale)
        if not 0 <= rescale <= 1:
            raise ValueError(f"rescale must lie in [0, 1], got {rescale}")
        if interval is not None and not 0 <= interval[0] < interval[1] <= 1:
            raise ValueError(f"expected 0 <= start < stop <= 1 for the interval, got {interval}")
        if isinstance(null, str):
            null = (null,)
        elif isinstance(null, (list, set, frozenset)):
            null = tuple(null)
        if not (null is None or callable(null) or isinstance(null, (dict, tuple, Tensor))):
            raise TypeError(
                f"null is a {type(null).__name__}: expected names of entries, a dict of entries, a "
                "tensor, a function of the condition, or None"
            )
        self.scale = scale
        self.null = null
        self.rescale = float(rescale)
        self.interval = interval
        self.batched = batched
        if isinstance(scale, Tensor):
            self.tensors["scale"] = scale
        self._alone: int | None = None
        # Outside of an interval the scale is 1, so that 0 is alone only without one.
        if isinstance(scale, (int, float)) and (scale == 1 or (scale == 0 and interval is None)):
            self._alone = int(scale)

    @property
    def evaluations(self) -> int:
        """Two a call, or one when the scale is the number 0 or 1; times the inner denoiser's."""
        return super().evaluations * (2 if self._alone is None else 1)

    def encode(self, condition: Any) -> Bound:
        """The condition and the null condition, both encoded by the inner denoiser.

        Raises:
            ValueError: without a condition, or inside a wrapper that has replaced it by None.
            KeyError: when the condition lacks an entry that `null` names.
        """
        if condition is None and self.bound is not None:
            return self.bound
        if isinstance(condition, Bound):
            return condition
        given = self.denoiser.encode(condition)
        raw = given.condition if isinstance(given, Encoded) else given
        if raw is None:
            raise ValueError(
                "ClassifierFree got no condition: pass `condition=` to the sampler, or bind one "
                "with `given`"
            )
        if isinstance(given, Encoded) and given.encoding is None:
            raise ValueError(
                "this condition has been replaced by None already: a ClassifierFree around another "
                "one needs a null that names entries"
            )
        # The network sees None, the mask is still there.
        blank = Encoded(raw, None) if self.null is None else self._blank(raw)
        pair = given, self.denoiser.encode(blank)
        # Pairs lie beside each other, (B, 2, ...), so that the batch of both is a view.
        both = tree.map(lambda *two: torch.stack(two, 1), *pair) if self._alike(*pair) else pair
        return Bound(raw, both, self._carried(raw))

    def inside(self, condition: Bound) -> Any:
        """The inner denoiser's own condition."""
        return self._part(condition, 0)

    def mask_of(self, condition: Any = None) -> Tensor | None:
        """The (B, N) bool mask that the condition holds, or None; see `Denoiser.mask_of`."""
        held = self.bound if condition is None else condition
        raw = held.condition if isinstance(held, Encoded) else held
        return self.denoiser.mask_of(None if raw is None else Encoded(raw, None))

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The guided data prediction; see `Wrapped.data`."""
        bound = self.encode(condition)
        if self._alone is not None:
            return self.denoiser(state, t, self._part(bound, 1 - self._alone), to="data")
        leaves, structure = tree.flatten(state)
        paths = self.layout(structure)[0]
        mask = self.mask_of(bound)
        scale = self._settings(bound, len(leaves[0])).get("scale", self.scale)
        value = self._limited(scale(t) if callable(scale) else scale, t)
        given, blank = self._both(state, t, bound)
        return structure.unflatten(
            [
                self._combine(path, x, with_it, without, value, mask)
                for path, x, with_it, without in zip(
                    paths, leaves, tree.leaves(given), tree.leaves(blank), strict=True
                )
            ]
        )

    def _both(self, state: Any, t: Any, bound: Bound) -> tuple[Any, Any]:
        """The predictions with the condition and without it."""
        if isinstance(bound.encoding, tuple):
            parts = [self.denoiser(state, t, part, to="data") for part in bound.encoding]
            return parts[0], parts[1]
        twice = tree.map(lambda leaf: leaf.repeat_interleave(2, 0), state)
        times = t.repeat_interleave(2) if isinstance(t, Tensor) and t.dim() else t
        pairs = tree.map(lambda leaf: leaf.flatten(0, 1), bound.encoding)
        out = self.denoiser(twice, times, pairs, to="data")
        return tree.map(lambda leaf: leaf[0::2], out), tree.map(lambda leaf: leaf[1::2], out)

    def _part(self, bound: Bound, which: int) -> Any:
        if isinstance(bound.encoding, tuple):
            return bound.encoding[which]
        return tree.map(lambda leaf: leaf[:, which], bound.encoding)

    def _alike(self, given: Any, blank: Any) -> bool:
        if not self.batched:
            return False
        (first, one), (second, other) = tree.flatten(given), tree.flatten(blank)
        return one == other and all(
            a.shape == b.shape and a.dtype == b.dtype for a, b in zip(first, second, strict=True)
        )

    def _limited(self, scale: Any, t: Any) -> Any:
        if self.interval is None:
            return scale
        start, stop = self.interval
        if not isinstance(t, Tensor):
            return scale if start <= t <= stop else 1.0
        inside = (t >= start) & (t <= stop)
        value = scale if isinstance(scale, Tensor) else torch.full_like(t, scale)
        return torch.where(inside.to(value.device), value, torch.ones_like(value))

    def _combine(
        self, path: Path, x: Tensor, given: Tensor, blank: Tensor, scale: Any, mask: Tensor | None
    ) -> Tensor:
        if not isinstance(scale, Tensor):
            scale = float(scale)
        elif scale.dim():
            scale = shaped(scale, given)
        else:
            scale = scale.to(given)
        if not x.is_floating_point():
            return _normalised(given, blank, scale)
        if not is_linear(path):
            turn = path.space.log(blank, given)
            return path.space.exp(blank, turn * scale)
        # `lerp` is exact at 0 and at 1.
        guided = torch.lerp(blank, given, scale)
        if self.rescale:
            ratio = _length(path, given, mask) / _length(path, guided, mask)
            guided = guided * like_time(1.0 + self.rescale * (ratio - 1.0), guided)
        return guided

    def _blank(self, raw: Any) -> Any:
        """The null condition."""
        if callable(self.null):
            return self.null(raw)
        if isinstance(self.null, Tensor):
            if not isinstance(raw, Tensor):
                raise TypeError(
                    f"null is a tensor and the condition a {type(raw).__name__}: name the entries "
                    "that it replaces, null={'label': value}"
                )
            return _filled(self.null, raw, "the condition")
        if dataclasses.is_dataclass(raw) and not isinstance(raw, type):
            table = {field.name: getattr(raw, field.name) for field in dataclasses.fields(raw)}
        elif isinstance(raw, dict):
            table = raw
        else:
            raise TypeError(
                f"null names entries and the condition is a {type(raw).__name__}: expected a dict "
                "or a dataclass; otherwise give null as a tensor or a function"
            )
        entries = self.null if isinstance(self.null, dict) else dict.fromkeys(self.null, 0)
        changed = {}
        for name, value in entries.items():
            if name not in table:
                close = difflib.get_close_matches(str(name), [str(key) for key in table], n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise KeyError(f"the condition has no '{name}'{hint}: it has {sorted(table)}")
            changed[name] = tree.map(
                lambda entry, name=name, value=value: _filled(value, entry, name), table[name]
            )
        if isinstance(raw, dict):
            return {**raw, **changed}
        return dataclasses.replace(raw, **changed)


def _filled(value: Any, like: Tensor, name: str) -> Tensor:
    """A value in the shape and type of an entry."""
    found = torch.as_tensor(value, dtype=like.dtype, device=like.device)
    try:
        return found.expand_as(like).clone()
    except RuntimeError:
        raise ValueError(
            f"null for {name} has shape {tuple(found.shape)}, which does not broadcast to "
            f"{tuple(like.shape)}"
        ) from None


def _normalised(given: Tensor, blank: Tensor, scale: Any) -> Tensor:
    """p proportional to p_without (p_with / p_without)^w over the last axis."""
    tiny = torch.finfo(given.dtype).tiny
    logs = torch.lerp(blank.clamp_min(tiny).log(), given.clamp_min(tiny).log(), scale)
    return tilted(logs, given)


def _length(path: Path, x: Tensor, mask: Tensor | None) -> Tensor:
    """|x| of each item on its space, and 1 for an item of zeros."""
    square = path.space.inner(x, x, mask)
    empty = square == 0
    return torch.where(empty, torch.ones_like(square), square).sqrt()
