"""The pair of predictions that noisy interpolants need: the velocity and the score."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sci import tree
from sci.denoiser.network import Denoiser, total_loss
from sci.denoiser.wrapped import aligned, check_time, wanted_kinds
from sci.paths import Path

__all__ = ["Joined"]


class Joined(Denoiser):
    """The velocity and the score of noisy interpolants, from two networks or from one.

        loss = sum over leaves of mean over items of
               w(t) (|velocity - its target|^2 + |latent prediction - z|^2) / dimension

    The score is trained through the latent, E[z | x_t] = - gamma score, whose error is bounded at
    the ends. Called like any denoiser it gives either kind, so deterministic samplers follow the
    velocity; `both` gives the two with one evaluation.

    Arguments:
        network: a dict of two networks, "velocity" and either "score" or "latent", each called as
            `network(state, t, condition)`; or one network that returns such a dict of trees.
        paths: one interpolant with noise, or a tree of them with the state's names.
        mask: the entry of the condition that masks every leaf, see `Denoiser`.

    Raises:
        TypeError: when the network cannot be called.
        ValueError: when a path is no interpolant with noise, or the dict has other entries.

    Example:
        >>> import torch
        >>> from sci.paths import Interpolant
        >>> networks = {"velocity": lambda x, t, c: 0 * x, "latent": lambda x, t, c: x}
        >>> joined = Joined(networks, Interpolant(noise=0.5))
        >>> velocity, score = joined.both(torch.ones(1, 2), 0.5)
        >>> [round(value, 3) for value in score[0].tolist()]
        [-2.828, -2.828]

    References:
        | Stochastic interpolants: a unifying framework for flows and diffusions
        | (Albergo et al., 2023)
    """

    def __init__(self, network: Any, paths: Any, mask: str | None = None):
        if isinstance(network, dict):
            network = _Pair(network)
        super().__init__(network, paths, "velocity", mask)
        found, structure = tree.flatten(paths, Path)
        for name, path in zip(structure.names, found, strict=True):
            if "latent" not in path.heads:
                raise ValueError(
                    f"leaf '{name or 'state'}': Joined needs an Interpolant with noise, got "
                    f"{path!r}. On a GaussianPath the velocity gives the score: use a Denoiser"
                )

    def forward(
        self, state: Any, t: Tensor | float, condition: Any = None, to: Any = "velocity"
    ) -> Any:
        """Predict the velocity, the score or the latent; arguments as for `Denoiser.forward`."""
        leaves, structure = tree.flatten(state)
        wanted = wanted_kinds(to, structure)
        velocity, latent, name, t = self._heads(state, t, condition)
        out = []
        for place, (path, kind, x) in enumerate(
            zip(self.layout(structure)[0], wanted, leaves, strict=True)
        ):
            if kind == "velocity":
                out.append(velocity[place])
            else:
                out.append(path.convert(latent[place], name, kind, x, t))
        return structure.unflatten(out)

    def both(self, state: Any, t: Tensor | float, condition: Any = None) -> tuple[Any, Any]:
        """The velocity and the score, two trees like the state; one evaluation."""
        leaves, structure = tree.flatten(state)
        velocity, latent, name, t = self._heads(state, t, condition)
        score = [
            path.convert(prediction, name, "score", x, t)
            for path, prediction, x in zip(self.layout(structure)[0], latent, leaves, strict=True)
        ]
        return structure.unflatten(velocity), structure.unflatten(score)

    def loss(
        self,
        data: Any,
        condition: Any = None,
        generator: torch.Generator | None = None,
        t: Tensor | None = None,
        weight: Any = None,
        source: Any = None,
    ) -> Tensor:
        """The error of both predictions; arguments as for `Denoiser.loss`."""
        leaves, structure = tree.flatten(data)
        paths = self.layout(structure)[0]
        encoded = self.encode(condition)
        mask = self.mask_of(encoded)
        state, t, targets = self._corrupt(data, mask, generator, t, source)
        velocity, second, name, _ = self._heads(state, t, encoded)
        errors = []
        for path, x, rate, prediction, target in zip(
            paths, tree.leaves(state), velocity, second, targets, strict=True
        ):
            latent = path.convert(prediction, name, "latent", x, t)
            errors.append(
                path.error(rate, target("velocity"), "velocity", mask)
                + path.error(latent, target("latent"), "latent", mask)
            )
        return total_loss(errors, paths, t, weight)

    def _heads(
        self, state: Any, t: Tensor | float, condition: Any
    ) -> tuple[list[Tensor], list[Tensor], str, Tensor | float]:
        """Velocities, scores or latents (and which), and the time, a float if it has no axis."""
        leaves, structure = tree.flatten(state)
        encoded = self.encode(condition)
        mask = self.mask_of(encoded)
        if isinstance(t, Tensor) and t.dim() == 0:
            t = float(t)
        check_time(t, len(leaves[0]))
        outputs = self._evaluate(state, leaves, t, encoded)
        name = _second(outputs)
        paths = self.layout(structure)[0]
        velocity, second = (
            [
                path.project(prediction, mask)
                for path, prediction in zip(paths, aligned(outputs[kind], structure), strict=True)
            ]
            for kind in ("velocity", name)
        )
        return velocity, second, name, t


class _Pair(nn.Module):
    """Two networks as one that returns a dict."""

    def __init__(self, networks: dict[str, Callable[[Any, Tensor, Any], Any]]):
        super().__init__()
        _second(networks)
        for name, part in networks.items():
            if not callable(part):
                raise TypeError(f"network '{name}' is a {type(part).__name__}: expected a callable")
        self.parts = nn.ModuleDict(
            {name: part for name, part in networks.items() if isinstance(part, nn.Module)}
        )
        self._plain = {name: part for name, part in networks.items() if name not in self.parts}

    def encode(self, condition: Any) -> Any:
        return {
            name: part.encode(condition) if hasattr(part, "encode") else condition
            for name, part in self._all()
        }

    def forward(self, state: Any, t: Tensor, condition: Any) -> dict[str, Any]:
        given = {} if condition is None else condition
        return {name: part(state, t, given.get(name)) for name, part in self._all()}

    def _all(self) -> list[tuple[str, Any]]:
        return [*self.parts.items(), *self._plain.items()]


def _second(parts: Any) -> str:
    """The name of what stands beside the velocity."""
    if isinstance(parts, dict):
        for name in ("score", "latent"):
            if set(parts) == {"velocity", name}:
                return name
    entries = sorted(parts) if isinstance(parts, dict) else type(parts).__name__
    raise ValueError(
        f"expected the entries 'velocity' and either 'score' or 'latent', got {entries}"
    )
