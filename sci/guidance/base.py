"""What the wrappers share: conditions that carry their settings, and gradients on a space.

**Settings per item.** A wrapper may hold tensors with a batch axis (known values, a scale an item).
They travel inside the encoded condition, so that `Carry.take`, batches of pairs and other wrappers
find them beside the item that they belong to, and with `.to(device)`. Tensors whose batch axis has
the size 1 serve all.

**Gradients on a space.** The elements of a leaf are not independent: an adjacency has one degree of
freedom a pair, padding none. With `place` the linear map from independent coordinates w to the
leaf, the gradient of f on the space is

    grad f(x) = place( d f(x + place(w)) / dw at w = 0 ),

which counts every pair once, keeps a centred leaf centred and is zero in the padding.

**The silent end.** Where alpha vanishes the state says nothing of data and the factor sigma^2 /
alpha of a guidance term is infinite, while the term has a limit. Below the ratio alpha / sigma =
eps^(1/3), eps the state's precision, the state is taken for one at that ratio. There what is left
out, of the order of the ratio, is as small as the rounding of the network's slope, eps / ratio^2.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import difflib
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from sci import tree
from sci.denoiser import Encoded
from sci.denoiser.wrapped import Wrapped
from sci.paths import Path, like_time
from sci.spaces import Space, Symmetric

__all__ = ["Bound", "Guidance"]


@dataclasses.dataclass(frozen=True)
class Bound(Encoded):
    """A condition as a wrapper of guidance passes it on.

    Arguments:
        condition: as the user gave it.
        encoding: what the inner denoiser receives.
        own: the wrapper's tensors with a batch axis, by name.
    """

    own: Any = None


class Guidance(Wrapped):
    """Base of the wrappers of guidance; changes nothing by itself.

    A subclass overrides `data`, and puts its tensors with a batch axis into `tensors`.

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.
    """

    def __init__(self, denoiser: Any):
        super().__init__(denoiser)
        self.bound: Bound | None = None
        self.tensors: dict[str, Tensor] = {}

    def encode(self, condition: Any) -> Bound:
        """The condition as later calls take it: the inner denoiser's, and the wrapper's tensors.

        Arguments:
            condition: a tree with a batch axis, an `Encoded`, or None for what `given` has bound.
        """
        if condition is None and self.bound is not None:
            return self.bound
        if isinstance(condition, Bound):
            return condition
        inner = self.denoiser.encode(condition)
        raw = inner.condition if isinstance(inner, Encoded) else inner
        return Bound(raw, inner, self._carried(raw))

    def given(self, condition: Any) -> Any:
        """This denoiser with a condition bound to it, encoded once; the parameters are shared."""
        bound = copy.copy(self)
        bound.bound = None
        bound.bound = bound.encode(condition)
        return bound

    def mask_of(self, condition: Any = None) -> Tensor | None:
        """The (B, N) bool mask that the condition holds, or None; see `Denoiser.mask_of`."""
        held = self.bound if condition is None else condition
        return self.denoiser.mask_of(self.inside(held) if isinstance(held, Bound) else held)

    def inside(self, condition: Bound) -> Any:
        """The condition of the inner denoiser, one row an item."""
        return condition.encoding

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        # What moves the module to a device moves its settings too.
        super()._apply(fn, recurse)
        self.tensors = {name: fn(tensor) for name, tensor in self.tensors.items()}
        return self

    def _carried(self, raw: Any) -> dict[str, Tensor]:
        """The wrapper's tensors with a batch axis, checked against the condition."""
        if raw is not None and tree.leaves(raw):
            self._check_rows(self.tensors, tree.batch_size(raw), "got a condition for")
        return {name: tensor for name, tensor in self.tensors.items() if len(tensor) > 1}

    def _settings(self, condition: Bound, batch: int) -> dict[str, Tensor]:
        """The wrapper's tensors for the items of a call, checked for their number."""
        found = {**self.tensors, **(condition.own or {})}
        self._check_rows(found, batch, "is called with")
        return found

    def _check_rows(self, tensors: dict[str, Tensor], batch: int, what: str) -> None:
        for name, tensor in tensors.items():
            if len(tensor) not in (1, batch):
                raise ValueError(
                    f"{type(self).__name__} has {name} for {len(tensor)} items and {what} "
                    f"{batch}: give one row an item, or one row for all"
                )


# --- settings ----------------------------------------------------------------------------------


def per_leaf(value: Any, names: list[str], leaf: Any, what: str) -> list[Any]:
    """One setting a leaf: a bare one for all, or a tree in which leaves may be missing (None).

    Raises:
        ValueError: for a name that the state does not have.
        TypeError: when something is neither a container nor a setting.
    """
    if value is None or isinstance(value, leaf):
        return [value] * len(names)
    found, given = tree.flatten(value, leaf)
    for name in given.names:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f" (did you mean '{close[0]}'?)" if close else ""
            raise ValueError(f"{what} names the leaf '{name}'{hint}: the state has {names}")
    table = dict(zip(given.names, found, strict=True))
    return [table.get(name) for name in names]


def check_scale(scale: Any, what: str = "scale") -> None:
    """Raise unless a scale is a finite number, a tensor (B,), or a function of the time."""
    if isinstance(scale, Tensor):
        if scale.dim() != 1 or not scale.is_floating_point():
            raise ValueError(
                f"{what} is a tensor {tuple(scale.shape)} of {scale.dtype}: expected one floating "
                "number an item, shape (batch,)"
            )
    elif isinstance(scale, bool) or not (callable(scale) or isinstance(scale, (int, float))):
        raise TypeError(
            f"{what} is a {type(scale).__name__}: expected a number, a tensor (batch,), or a "
            "function of the path time"
        )
    elif isinstance(scale, (int, float)) and not math.isfinite(scale):
        raise ValueError(f"{what} must be finite, got {scale}")


def scale_at(scale: Any, t: Tensor | float, x: Tensor) -> Any:
    """A scale at a time, ready to multiply x: a number, or (B, 1, ...)."""
    value = scale(t) if callable(scale) else scale
    if isinstance(value, Tensor) and value.dim():
        return like_time(value, x)
    return value


# --- spaces ------------------------------------------------------------------------------------


def is_linear(path: Path) -> bool:
    """Whether points of the leaf's space may be added."""
    return type(path.space).exp is Space.exp


def is_gaussian(path: Path, leaf: Tensor) -> bool:
    """Whether the leaf is data blurred by Gaussian noise: there is a score."""
    known = {"data", "score"} <= path.heads
    return leaf.is_floating_point() and known and is_linear(path)


def blur(path: Path, t: Any) -> tuple[Any, Any]:
    """(alpha, sigma) at a time: floats, or (B,) tensors."""
    return path.schedule.alpha(t), path.schedule.sigma(t)


def shaped(value: Any, x: Tensor) -> Any:
    """A number as it is, a (B,) tensor as (B, 1, ...) like x."""
    return like_time(value, x) if isinstance(value, Tensor) else value


def coordinates(path: Path, leaf: Tensor) -> Tensor:
    """Zeros (B, elements) that record gradients: an offset of the leaf in its own coordinates."""
    return leaf.new_zeros((len(leaf), path.space.elements(leaf)), requires_grad=True)


def presence(mask: Tensor | None, path: Path, leaf: Tensor) -> Tensor | None:
    """Which entries of a leaf count, (B or 1, N, 1, ...), or pairs on `Symmetric`; None when all
    do."""
    if mask is None:
        if not isinstance(path.space, Symmetric):
            return None
        mask = torch.ones((1, leaf.shape[1]), dtype=torch.bool, device=leaf.device)
    return over_entries(mask, path, leaf.dim())


def tilted(logs: Tensor, like: Tensor) -> Tensor:
    """Probabilities of logits, and zeros where `like` holds none: in the padding."""
    return torch.where(like.sum(-1, keepdim=True) > 0, logs.softmax(-1), 0.0)


def over_entries(mask: Tensor, path: Path, axes: int) -> Tensor:
    """A mask by node (B, N), or by entries, with as many axes as the leaf.

    On a space of pairs a pair counts where both of its ends do.
    """
    if isinstance(path.space, Symmetric) and mask.dim() == 2:
        pairs = mask[:, :, None] & mask[:, None, :]
        mask = pairs & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return mask.view(mask.shape + (1,) * (axes - mask.dim()))


# --- gradients ---------------------------------------------------------------------------------


@contextlib.contextmanager
def recording() -> Iterator[None]:
    """Record gradients, whatever the caller has forbidden."""
    with torch.inference_mode(False), torch.enable_grad():
        yield


def recordable(value: Any) -> Any:
    """A tree whose tensors may take part in a recording."""
    return tree.map(lambda leaf: leaf.clone() if leaf.is_inference() else leaf, value)


def audible(
    leaves: list[Tensor], paths: list[Path], t: Tensor | float, floors: dict[Any, float]
) -> tuple[list[Tensor], Tensor | float]:
    """The state and the time, moved off the silent end; see the module's head.

    Arguments:
        leaves: of the state.
        paths: one a leaf.
        t: a float or (B,).
        floors: remembers the earliest time, by precision.
    """
    blurred = [is_gaussian(path, leaf) for path, leaf in zip(paths, leaves, strict=True)]
    precise = max(
        (torch.finfo(leaf.dtype).eps for leaf, yes in zip(leaves, blurred, strict=True) if yes),
        default=0.0,
    )
    key = (precise, tuple(blurred))
    if key not in floors:
        floors[key] = max(
            (_earliest(path, precise) for path, yes in zip(paths, blurred, strict=True) if yes),
            default=0.0,
        )
    floor = floors[key]
    if isinstance(t, Tensor):
        later: Any = t.clamp(min=floor)
    elif t >= floor:
        return leaves, t
    else:
        later = floor
    moved = [
        x * shaped(blur(path, later)[1] / blur(path, t)[1], x) if yes else x
        for path, x, yes in zip(paths, leaves, blurred, strict=True)
    ]
    return moved, later


def _earliest(path: Path, eps: float) -> float:
    least = math.log(eps) / 3.0
    return 0.0 if path.schedule.log_snr(0.0) >= least else float(path.schedule.time(least))


def gradients(
    value: Tensor,
    variables: list[Tensor],
    create: bool,
    weights: Tensor | None = None,
) -> list[Tensor]:
    """The gradients of the sum of `value`, zero where it does not depend on a variable.

    Arguments:
        value: any tensor.
        variables: by which it is differentiated.
        create: whether the gradients are recorded themselves.
        weights: of the entries in the sum, taken for constants; the recording of `value` then stays
            for further calls.
    """
    found = torch.autograd.grad(
        value,
        variables,
        torch.ones_like(value) if weights is None else weights,
        create_graph=create,
        retain_graph=create or weights is not None,
        allow_unused=True,
    )
    return [
        torch.zeros_like(variable) if part is None else part
        for part, variable in zip(found, variables, strict=True)
    ]
