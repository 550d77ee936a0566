"""What wraps a denoiser: the base of guidance, thresholding and changes of clock."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from sci import tree
from sci.paths import Path

__all__ = ["Retimed", "Wrapped"]


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
        >>> from sci.denoiser.network import Denoiser
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
        data = self.data(state, t, condition)
        if to == "data":
            return data
        paths = self.layout(structure)[0]
        return structure.unflatten(
            [
                path.convert(prediction, "data", kind, x, t)
                for path, prediction, kind, x in zip(
                    paths,
                    aligned(data, structure),
                    wanted_kinds(to, structure),
                    leaves,
                    strict=True,
                )
            ]
        )


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
        wanted = wanted_kinds(to, structure)
        predictions, kinds = self._ask(leaves, structure, t, condition, wanted)
        return structure.unflatten(
            [
                path.convert(prediction, kind, target, x, t)
                for path, prediction, kind, target, x in zip(
                    self.layout(structure)[0], predictions, kinds, wanted, leaves, strict=True
                )
            ]
        )

    def _ask(
        self,
        leaves: list[Tensor],
        structure: tree.Structure,
        t: Tensor | float,
        condition: Any,
        wanted: list[str],
    ) -> tuple[list[Tensor], list[str]]:
        """Predictions of the inner denoiser and their kinds."""
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
    if given == structure or given.names == structure.names:
        return found
    if set(given.names) != set(structure.names):
        raise ValueError(f"expected the leaves {structure.names} (the state's), got {given.names}")
    by_name = dict(zip(given.names, found, strict=True))
    return [by_name[name] for name in structure.names]
