"""What is known stays: inpainting, motif scaffolding, imputation, completion of a scaffold.

The known entries of the data prediction are given instead of predicted. A sampler that integrates
the flow then carries them along alpha(t) known + sigma(t) z with the noise z that they started from,
which is how the network has seen data in training, and arrives at them.

Only the prediction is changed, not the network's idea of the whole: what it fills in fits the known
part as far as the network is led by its noised copy. `samplers.Resampled` goes back and forth until
both agree; `Observation` uses the network's own covariance, at the price of passes back through it.

**Which entries.** A mask by node (B, N) marks whole nodes, and on a symmetric leaf the pairs whose
both ends are marked. A mask with further axes marks entries.

**Centred leaves** have no position of their own: known points are known up to a translation. Their
mean is moved to the mean of the predicted ones, channel by channel, so that the leaf stays centred
and the known part keeps its shape.

References:
    | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022)
    | Score-based generative modeling through stochastic differential equations (Song et al., 2021)
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sci import tree
from sci.guidance.base import Bound, Guidance, is_linear, over_entries, per_leaf
from sci.paths import Path
from sci.spaces import Centred, Symmetric

__all__ = ["Replacement"]


class Replacement(Guidance):
    """Samples of which a part is known.

        data[mask] = known[mask]

    With a sampler that ends on a data prediction (`final="data"`) the samples have the known part
    bit for bit; after others, `finish` puts it in. Make it the outermost wrapper: what another one
    changes afterwards is changed.

    Arguments:
        denoiser: a `Denoiser`, or another wrapper.
        known: the values: a tensor, or a tree of the state's names from which leaves may be missing.
            Classes (B, ...) int64, or probabilities, for a discrete leaf; unit quaternions for
            rotations. A batch axis of 1 serves all items. Entries outside the mask are not read.
        mask: where they are known, bool: (B, N) by node, for all leaves of `known` or a tree of
            masks, or with the axes of the leaf by entry. None: where values are finite (NaN is
            missing), or not negative for classes.

    Raises:
        TypeError: when a mask is not bool.
        ValueError: when shapes do not fit, known values are not finite, a symmetric leaf has a mask
            or values that are not symmetric, or quaternions are not of unit length.

    Example:
        >>> import torch
        >>> from sci import samplers
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import Cosine
        >>> plain = Denoiser(lambda x, t, condition: 0 * x + 1, GaussianPath(Cosine()))
        >>> filled = Replacement(plain, torch.tensor([[7.0, float("nan")]]))
        >>> samples = samplers.default(4)(filled, like=torch.zeros(1, 2))
        >>> samples.state.tolist()
        [[7.0, 1.0]]

    References:
        | RePaint: inpainting using denoising diffusion probabilistic models (Lugmayr et al., 2022)
    """

    def __init__(self, denoiser: Any, known: Any, mask: Any = None):
        super().__init__(denoiser)
        found, structure = tree.flatten(known)
        paths, layout = tree.flatten(denoiser.paths, Path)
        by_name = dict(zip(layout.names, paths, strict=True))
        masks = per_leaf(mask, structure.names, Tensor, "mask")
        self._names = list(structure.names)
        for name, value, where in zip(structure.names, found, masks, strict=True):
            if layout.build is not None and name not in by_name:
                close = difflib.get_close_matches(name, layout.names, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise ValueError(
                    f"known has the leaf '{name}'{hint}: the paths have {layout.names}"
                )
            path = paths[0] if layout.build is None else by_name[name]
            value, where = _checked(name or "state", path, value, where)
            self.tensors[f"known {name}"] = value
            self.tensors[f"mask {name}"] = where

    def data(self, state: Any, t: Tensor | float, condition: Any = None) -> Any:
        """The data prediction with the known part in place; see `Wrapped.data`.

        Raises:
            ValueError: when the known values do not have the leaf's shape.
        """
        bound = self.encode(condition)
        outputs = self.denoiser(state, t, bound.encoding, to="data")
        return self._placed(outputs, state, bound)

    def start(self, noise: Any, like: Any, condition: Any = None, t: float = 0.0) -> Any:
        """A state to start from: the paths' source, the known part at alpha(t) known + sigma(t) z.

        Where alpha(0) = 0 this is the source itself, which samplers start from anyway; on VE and
        other schedules that start with data in the state the known part begins where it belongs.

        Arguments:
            noise: the items' streams.
            like: a tree of the shape of what is wanted.
            condition: a tree with a batch axis, or None for the bound one.
            t: the first time of the sampler.
        """
        bound = self.encode(condition)
        leaves, structure = tree.flatten(like)
        mask = self.mask_of(bound)
        source = [
            path.source(noise, name or "state", leaf, mask)
            for path, name, leaf in zip(
                self.layout(structure)[0], structure.names, leaves, strict=True
            )
        ]

        def end(path: Path, name: str, x: Tensor) -> Tensor:
            # The noise that the source was made of, whatever its law.
            return x / path.source_std if is_linear(path) else x

        return self._noised(structure.unflatten(source), t, noise, -1, 0, bound, end)

    def redraw(
        self,
        state: Any,
        t: Tensor | float,
        noise: Any,
        step: int,
        condition: Any = None,
        draw: int = 0,
    ) -> Any:
        """The state with its known part drawn afresh: alpha(t) known + sigma(t) z.

        Arguments:
            state: the tree, each leaf (B, ...).
            t: its time, a float or (B,).
            noise: the items' streams.
            step: the address of z in the streams.
            condition: a tree with a batch axis, or None for the bound one.
            draw: the address of z in the streams.

        Raises:
            ValueError: when the noise of a known leaf's path is not that of its space.
        """
        bound = self.encode(condition)
        state = super().redraw(state, t, noise, step, bound, draw)
        mask = self.mask_of(bound)

        def end(path: Path, name: str, x: Tensor) -> Tensor:
            if is_linear(path) and "score" not in path.heads:
                raise ValueError(
                    f"leaf '{name}' cannot draw its known part afresh: the noise of its "
                    f"{type(path).__name__} is not Gaussian. Use a plain sampler, and "
                    "Replacement.start"
                )
            return noise.draw(path.space, name, step, x, mask, draw)

        return self._noised(state, t, noise, step, draw, bound, end)

    def finish(self, state: Any, condition: Any = None) -> Any:
        """Samples with the known part put in, for samplers that do not end on a data prediction.

        Arguments:
            state: the tree of samples.
            condition: a tree with a batch axis, or None for the bound one.
        """
        bound = self.encode(condition)
        return self._placed(super().finish(state, bound), state, bound)

    def _noised(
        self,
        state: Any,
        t: Tensor | float,
        noise: Any,
        step: int,
        draw: int,
        bound: Bound,
        end: Callable[[Path, str, Tensor], Tensor],
    ) -> Any:
        """The state with its known part noised to time t by `end`, the noise of a leaf; classes by
        uniforms from the streams."""
        leaves, structure = tree.flatten(state)
        mask = self.mask_of(bound)
        blurred: list[Tensor | None] = []
        for path, name, x in zip(self.layout(structure)[0], structure.names, leaves, strict=True):
            if name not in self._names:
                blurred.append(None)
                continue
            known = self._settings(bound, len(x))[f"known {name}"].to(x.device)
            if x.is_floating_point():
                known = known.to(x.dtype)
                z = end(path, name or "state", x)
            else:
                known = known.argmax(-1) if known.is_floating_point() else known
                shape = torch.empty(x.shape, device=x.device)
                values = noise.uniform(path.space.elements(x), name or "state", step, draw)
                z = path.space.place(values, shape, mask)
            blurred.append(path.corrupt(known.expand(x.shape), z, t))
        return self._placed(state, state, bound, blurred)

    def _placed(
        self, outputs: Any, state: Any, bound: Bound, values: list[Tensor | None] | None = None
    ) -> Any:
        """Outputs with the known values, or others in their place."""
        leaves, structure = tree.flatten(state)
        missing = [name for name in self._names if name not in structure.names]
        if missing:
            raise ValueError(f"known has the leaves {missing}, the state has {structure.names}")
        settings = self._settings(bound, len(leaves[0]))
        present = self.mask_of(bound)
        out = tree.leaves(outputs)
        for place, (path, name, x) in enumerate(
            zip(self.layout(structure)[0], structure.names, leaves, strict=True)
        ):
            if name not in self._names:
                continue
            data = out[place]
            value = None if values is None else values[place]
            if value is None:
                value = settings[f"known {name}"].to(data.device)
                value = _like(value, data, x, name or "state")
            where = over_entries(settings[f"mask {name}"].to(data.device), path, x.dim())
            if present is not None:
                where = where & over_entries(present, path, x.dim())
            where = where.view(where.shape + (1,) * (data.dim() - x.dim()))
            if isinstance(path.space, Centred):
                value = value + _shift(data - value, where)
            out[place] = torch.where(where, value, data)
        return structure.unflatten(out)


def _shift(gap: Tensor, where: Tensor) -> Tensor:
    """The mean gap over the marked points, channel by channel; (B, 1, ...)."""
    count = where.expand(gap.shape).sum(1, keepdim=True).clamp(min=1)
    return torch.where(where, gap, 0.0).sum(1, keepdim=True) / count


def _like(value: Tensor, data: Tensor, x: Tensor, name: str) -> Tensor:
    """Known values in the form of a data prediction: probabilities for classes."""
    if not x.is_floating_point() and data.is_floating_point() and not value.is_floating_point():
        classes = torch.arange(data.shape[-1], device=data.device)
        value = value[..., None] == classes
    elif not data.is_floating_point() and value.is_floating_point():
        value = value.argmax(-1)
    if value.dim() != data.dim() or value.shape[1:] != data.shape[1:]:
        raise ValueError(
            f"known values of leaf '{name}' have shape {tuple(value.shape)}: expected "
            f"{(f'1 or {len(data)}', *data.shape[1:])}"
        )
    return value.to(data.dtype)


def _checked(name: str, path: Path, value: Tensor, where: Tensor | None) -> tuple[Tensor, Tensor]:
    """Known values, zero (or the identity) where they are not known, and their mask."""
    value = value.detach()
    discrete = "logits" in path.heads
    whole = value.dim() - (discrete and value.is_floating_point())
    if where is None:
        where = torch.isfinite(value) if value.is_floating_point() else value >= 0
        # Probabilities, and the four numbers of a rotation, are known together.
        if (discrete and value.is_floating_point()) or not is_linear(path):
            where = where.all(-1)
    if where.dtype != torch.bool:
        raise TypeError(f"the mask of leaf '{name}' is {where.dtype}: expected bool")
    if where.dim() > 1 and not is_linear(path) and where.shape[-1] == 1 < where.dim() - 1:
        where = where.squeeze(-1)
    if where.dim() < min(2, whole) or where.dim() > whole:
        raise ValueError(
            f"the mask of leaf '{name}' has shape {tuple(where.shape)} for values "
            f"{tuple(value.shape)}: expected (batch, nodes), or the axes of the leaf"
        )
    marked = over_entries(where, path, whole)
    sizes = zip(marked.shape, value.shape[:whole], strict=True)
    if any(a != b and 1 not in (a, b) for a, b in sizes):
        raise ValueError(
            f"the mask of leaf '{name}' has shape {tuple(where.shape)}, which does not fit values "
            f"of shape {tuple(value.shape)}"
        )
    marked = marked.view(marked.shape + (1,) * (value.dim() - whole)).expand(
        torch.broadcast_shapes(marked.shape + (1,) * (value.dim() - whole), value.shape)
    )
    value = value.expand(marked.shape)
    filled = torch.where(marked, value, torch.zeros_like(value))
    if value.is_floating_point() and not bool(torch.isfinite(filled).all()):
        raise ValueError(
            f"known values of leaf '{name}' are not finite where the mask says they are known"
        )
    if isinstance(path.space, Symmetric):
        off = ~torch.eye(value.shape[1], dtype=torch.bool, device=value.device)
        off = off.view((1, *off.shape) + (1,) * (value.dim() - 3))
        marked = marked & off
        filled = torch.where(off, filled, torch.zeros_like(filled))
        if not (
            torch.equal(marked, marked.transpose(1, 2))
            and torch.equal(filled, filled.transpose(1, 2))
        ):
            raise ValueError(
                f"leaf '{name}' is symmetric: expected a mask and known values that are, too; use "
                "(x + x.transpose(1, 2)) / 2 and mask & mask.transpose(1, 2)"
            )
        if where.dim() > 2:
            where = where & off.view((1, *off.shape[1:3]) + (1,) * (where.dim() - 3))
    if not is_linear(path):
        length = torch.where(marked, value, 0.5).norm(dim=-1)
        if not bool(((length - 1).abs() < 1e-3).all()):
            raise ValueError(f"known rotations of leaf '{name}' are no unit quaternions")
        identity = torch.zeros_like(filled)
        identity[..., 0] = 1.0
        filled = torch.where(marked, filled, identity)
    return filled, where
