"""What wraps a denoiser: the base of guidance, thresholding and changes of clock."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import torch
from torch import Tensor, nn

from sci import tree
from sci.paths import Path
from sci.schedules import Schedule

__all__ = ["Retimed", "Wrapped"]

# Earlier than this no path has come close to data.
_FAR = 0.9


class Wrapped(nn.Module):
    """A denoiser around another one.

    A subclass overrides `data`; every other kind follows from the data prediction, the state and
    the time by the paths' conversions. Here `data` is the inner denoiser's, so that the base
    changes nothing.

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.

    Raises:
        TypeError: when the denoiser cannot be called, or has no paths.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> class Clipped(Wrapped):
        ...     def data(self, state, t, condition=None):
        ...         return super().data(state, t, condition).clamp(-1, 1)
        >>> three = Denoiser(lambda x, t, condition: 0 * x + 3, GaussianPath(CondOT()))
        >>> Clipped(three)(torch.zeros(1, 2), 0.5, to="velocity")
        tensor([[2., 2.]])
    """

    def __init__(self, denoiser: Any):
        super().__init__()
        if not callable(denoiser) or not hasattr(denoiser, "paths"):
            raise TypeError(
                f"denoiser is a {type(denoiser).__name__}: expected a sci.Denoiser, or a wrapper "
                "of one"
            )
        self.denoiser = denoiser
        self._layouts: dict[tree.Structure, tuple[list[Path], list[str]]] = {}

    @property
    def paths(self) -> Any:
        """The tree of paths that samplers see: the inner denoiser's unless overridden."""
        return self.denoiser.paths

    @property
    def evaluations(self) -> int:
        """Network evaluations that one call costs: the inner denoiser's unless overridden."""
        return getattr(self.denoiser, "evaluations", 1)

    def layout(self, structure: tree.Structure) -> tuple[list[Path], list[str]]:
        """The paths that samplers see and the kinds that the network predicts, one a leaf."""
        found = self._layouts.get(structure)
        if found is None:
            inner = self.denoiser.layout(structure)[1]
            found = tree.spread(self.paths, structure, Path, "the tree of paths"), inner
            self._layouts[structure] = found
        return found

    def encode(self, condition: Any) -> Any:
        """The condition as later calls take it; see `Denoiser.encode`."""
        return self.denoiser.encode(condition)

    def mask_of(self, condition: Any = None) -> Tensor | None:
        """The (B, N) bool mask that the condition holds, or None; see `Denoiser.mask_of`."""
        return self.denoiser.mask_of(condition)

    def given(self, condition: Any) -> Any:
        """This denoiser with a condition bound to it, encoded once; the parameters are shared."""
        bound = copy.copy(self)
        # A shallow copy shares the table of modules, and the inner denoiser is one of them.
        bound._modules = dict(self._modules)
        bound.denoiser = self.denoiser.given(condition)
        return bound

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The data prediction: what subclasses override.

        Arguments:
            state: the tree, each leaf (B, ...).
            t: path time in [0, 1], (B,) or a float.
            condition: a tree with a batch axis, an `Encoded`, or None for the bound one.

        Returns:
            A tree like the state; probabilities for discrete leaves.
        """
        return self.denoiser(state, t, condition, to="data")

    def forward(
        self, state: Any, t: Tensor | float, condition: Any = None, to: Any = "data"
    ) -> Any:
        """Predict; arguments as for `Denoiser.forward`.

        Returns:
            A tree like the state.

        Raises:
            ValueError: when a path has no such kind, or t is out of [0, 1] or has another shape.
        """
        leaves, structure = tree.flatten(state)
        if isinstance(t, Tensor) and t.dim() == 0:
            t = float(t)
        check_time(t, len(leaves[0]))
        paths, wanted = self.layout(structure)[0], wanted_kinds(to, structure)
        t = before_data(t, leaves, paths, ["data"] * len(paths), wanted)
        return structure.unflatten(
            [
                path.convert(prediction, "data", kind, x, t)
                for path, prediction, kind, x in zip(
                    paths,
                    aligned(self.data(state, t, condition), structure),
                    wanted,
                    leaves,
                    strict=True,
                )
            ]
        )

    def inside(self, condition: Any) -> Any:
        """The condition of the inner denoiser, one row an item."""
        return condition

    def redraw(
        self,
        state: Any,
        t: Tensor | float,
        noise: Any,
        step: int,
        condition: Any = None,
        draw: int = 0,
    ) -> Any:
        """The state with fresh noise on what is known, see `sci.guidance.Replacement.redraw`;
        otherwise as it is."""
        inner = getattr(self.denoiser, "redraw", None)
        if inner is None:
            return state
        return inner(state, t, noise, step, self.inside(self.encode(condition)), draw)

    def finish(self, state: Any, condition: Any = None) -> Any:
        """Samples with what is known put in, see `sci.guidance.Replacement.finish`; otherwise as
        they are."""
        inner = getattr(self.denoiser, "finish", None)
        return state if inner is None else inner(state, self.inside(self.encode(condition)))


class Retimed(Wrapped):
    """A wrapper that asks the inner denoiser at another time and converts on its own paths."""

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The data prediction; arguments as for `Wrapped.data`."""
        return self(state, t, condition, to="data")

    def forward(
        self, state: Any, t: Tensor | float, condition: Any = None, to: Any = "data"
    ) -> Any:
        """Predict; arguments as for `Denoiser.forward`, with t the sampler's time."""
        leaves, structure = tree.flatten(state)
        if isinstance(t, Tensor) and t.dim() == 0:
            t = float(t)
        check_time(t, len(leaves[0]))
        paths, wanted = self.layout(structure)[0], wanted_kinds(to, structure)
        kinds = self._kinds(structure, wanted)
        t = before_data(t, leaves, paths, kinds, wanted)
        predictions = self._ask(leaves, structure, t, condition, kinds)
        return structure.unflatten(
            [
                path.convert(prediction, kind, target, x, t)
                for path, prediction, kind, target, x in zip(
                    paths, predictions, kinds, wanted, leaves, strict=True
                )
            ]
        )

    def redraw(
        self,
        state: Any,
        t: Tensor | float,
        noise: Any,
        step: int,
        condition: Any = None,
        draw: int = 0,
    ) -> Any:
        """The state as it is: what is known inside has its noise on another clock."""
        return state

    def _kinds(self, structure: tree.Structure, wanted: list[str]) -> list[str]:
        """The kinds that are asked of the inner denoiser for the wanted ones."""
        raise TypeError(f"{type(self).__name__} does not say what it asks")

    def _ask(
        self,
        leaves: list[Tensor],
        structure: tree.Structure,
        t: Tensor | float,
        condition: Any,
        kinds: list[str],
    ) -> list[Tensor]:
        """Predictions of the inner denoiser, of these kinds."""
        raise TypeError(f"{type(self).__name__} does not say what it asks")


def check_time(t: Tensor | float, batch: int) -> None:
    """Raise a ValueError unless t is a float in [0, 1], or (B,) of them.

    The values of a tensor on a GPU are not looked at: that would wait for the device.
    """
    if not isinstance(t, Tensor):
        if not 0 <= t <= 1:
            raise ValueError(f"t must lie in [0, 1] (0 the source, 1 the data), got {t}")
        return
    if t.shape != (batch,):
        raise ValueError(
            f"t has shape {tuple(t.shape)} for {batch} items: expected a float, or a tensor of "
            f"shape ({batch},)"
        )
    if t.device.type == "cpu" and batch:
        low, high = (float(end) for end in t.detach().aminmax())
        if not (low >= 0 and high <= 1):
            raise ValueError(
                f"t must lie in [0, 1] (0 the source, 1 the data), got values from {low} to {high}"
            )


def before_data(
    t: Tensor | float,
    leaves: list[Tensor],
    paths: list[Path],
    kinds: list[str],
    wanted: list[str],
) -> Tensor | float:
    """t, or the last time before 1 at which data predictions still give every wanted kind.

    Where sigma is 0 a data prediction says nothing of noise and velocity, which have a limit. The
    time stops where sigma / alpha is the root of the precision of the state: there what is left
    out and what is rounded are alike.
    """
    if not isinstance(t, Tensor) and t < _FAR:
        return t
    last = 1.0
    for x, path, kind, target in zip(leaves, paths, kinds, wanted, strict=True):
        if kind == "data" and target not in ("data", "logits"):
            last = min(last, _last_time(path.schedule, x.dtype))
    if last == 1.0:
        return t
    return t.clamp(max=last) if isinstance(t, Tensor) else min(t, last)


@functools.lru_cache(maxsize=256)
def _last_time(schedule: Schedule, dtype: torch.dtype) -> float:
    """Where sigma / alpha is the root of the precision; 1 where sigma never vanishes."""
    if schedule.sigma(1.0) > 0:
        return 1.0
    precision = min(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps)
    return schedule.time(-0.5 * math.log(precision))


def wanted_kinds(to: Any, structure: tree.Structure) -> list[str]:
    """The kinds that are wanted, one a leaf."""
    if isinstance(to, str):
        return [to] if structure.build is None else [to] * len(structure.names)
    return tree.spread(to, structure, str, "to")


def aligned(outputs: Any, structure: tree.Structure) -> list[Tensor]:
    """The leaves of a network's output, in the order of the state's names.

    Raises:
        ValueError: when the names differ.
    """
    found, given = tree.flatten(outputs)
    if given is structure or given == structure or given.names == structure.names:
        return found
    if set(given.names) != set(structure.names):
        raise ValueError(f"expected the leaves {structure.names} (the state's), got {given.names}")
    by_name = dict(zip(given.names, found, strict=True))
    return [by_name[name] for name in structure.names]
