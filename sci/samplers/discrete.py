"""Classes under the multistep samplers: each step draws from the posterior.

    x_s ~ sum over data of q(x_s | x_t, data) p(data | x_t)

by the inverse of the cumulative sum and one uniform an element. Nothing is extrapolated: orders,
kinds, correctors and the sampler's stochasticity are for the other leaves. The errors are two:
elements are drawn independently of each other within a step, which vanishes with the length of the
steps, and what the network does not know.

Elements that are still noise are of no use, so a run that stops close to data stops at data: the
last transition goes to t = 1 when less than one element in a hundred would be noise at its end
(grids stop just short of 1 where other leaves need it).

References:
    | Structured denoising diffusion models in discrete state-spaces (Austin et al., 2021)
    | DeFoG: discrete flow matching for graph generation (Qin et al., 2025)
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths.categorical import CategoricalPath
from sci.samplers.stepper import Draws, Stepper
from sci.samplers.values import of_items
from sci.spaces import widest

__all__ = ["CategoricalStepper"]

# The share of noise below which a run ends at data.
_LEFT = 0.01


class CategoricalStepper(Stepper):
    """A leaf of classes, see the module; arguments as for `Stepper`.

    Arguments:
        stochasticity: eta >= 0, how much is drawn afresh at each step: 1 the posterior, 0 the
            fewest jumps, above 1 elements are noised again and redrawn, inf renews all (project
            and noise); the marginals at each time are the same, see `sci.paths.kernels`. It is set for
            the leaf, `leaves={name: {"stochasticity": 2.0}}`; the sampler's own is not for classes.
        choice: what `final="data"` takes from the last prediction: "draw" or "mode".
        temperature: > 0; the predicted logarithms of probabilities are divided by it.

    Raises:
        ValueError: for options out of range; names the leaf.
    """

    integer = True
    options = frozenset({"choice", "stochasticity", "temperature"})

    def __init__(
        self,
        settings: Any,
        name: str,
        path: CategoricalPath,
        grid: np.ndarray,
        stochasticity: float = 1.0,
        choice: str = "draw",
        temperature: float = 1.0,
    ):
        super().__init__(settings, name, path, grid)
        for option, value, least in (
            ("stochasticity", stochasticity, 0.0),
            ("temperature", temperature, 1e-6),
        ):
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= least:
                raise ValueError(f"leaf '{name}': {option} must be at least {least}, got {value!r}")
        if choice not in ("draw", "mode"):
            raise ValueError(f"leaf '{name}': choice must be 'draw' or 'mode', got {choice!r}")
        self._path = path
        self._stochasticity, self._temperature = float(stochasticity), float(temperature)
        self._choice = choice
        times = np.array(grid, dtype=np.float64)
        if settings.final is None:
            times[-1] = np.where(path.keep(times[-1:]) > 1.0 - _LEFT, 1.0, times[-1:])[0]
        self._times: list[Any] = (
            times.tolist() if times.ndim == 1 else list(torch.from_numpy(times))
        )

    def wants(self, step: int) -> str:
        """Probabilities of the data, at every step."""
        return "data"

    def advance(
        self,
        step: int,
        x: Tensor,
        past: tuple[Tensor, ...],
        draws: Draws,
        rows: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One transition; see `Stepper.advance`."""
        now, then = self._time(step, x, rows), self._time(step + 1, x, rows)
        law = self._path.posterior(x, self._tempered(past[0]), now, then, self._stochasticity)
        return self._path.draw(law, draws.uniform(x)), ()

    def finish(
        self, step: int, x: Tensor, prediction: Tensor, draws: Draws, rows: Tensor | None
    ) -> Tensor:
        """Draws from the prediction, or its mode; what the state tells for sure is kept."""
        now = self._time(len(self._times) - 1, x, rows)
        law = self._path.posterior(x, self._tempered(prediction), now, 1.0)
        if self._choice == "draw":
            return self._path.draw(law, draws.uniform(x))
        mode = torch.where(torch.isfinite(law).all(-1), law.argmax(-1), -1)
        return self._path.project(mode, draws.mask)

    def _time(self, step: int, x: Tensor, rows: Tensor | None) -> Any:
        return of_items(self._times[step], x.device, widest(x.device), rows)

    def _tempered(self, probabilities: Tensor) -> Tensor:
        if self._temperature == 1.0:
            return probabilities
        tiny = torch.finfo(probabilities.dtype).tiny
        return (probabilities.clamp(min=tiny).log() / self._temperature).softmax(-1)
