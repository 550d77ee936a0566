"""Rotations under the multistep samplers: orders 1 and 2 on the geodesics.

With the rate kappa of the leaf, sigma = 1 - kappa, and a constant data prediction the exact step is

    x_t = x_s exp(F log(x_s^-1 data)),    F = 1 - sigma_t / sigma_s = 1 - e^-(L_t - L_s),

L the integral of the speed -sigma' / sigma. This is the linear engine's step of the kind data with
alpha = kappa, whose weights W_j sum to F, so that weights of order 2 come from
`sci.samplers.weights`. They bend the aim instead of the step,

    aim = data_0 exp(sum_(j > 0) (W_j / F) log(data_0^-1 data_j)),    x_t = x_s exp(F log(x_s^-1 aim)),

which has the same order, is the linear step for small angles, and never mixes two ways around when
data is near the far side of x_s. The kind velocity is Adams-Bashforth in the body frame, in the variable t

    x_t = x_s exp(sum_j W_j velocity_j),    W = h, or h (1 + h / 2 h', -h / 2 h') at order 2,

where the commutators that are left out are of third order in a step. The variable "t" holds from
end to end; "log_snr" and "S" are infinite at the ends, which costs the steps beside them an order.

References:
    | Lie-group methods (Iserles, Munthe-Kaas, Norsett, Zanna, 2000)
    | Fast protein backbone generation with SE(3) flow matching (Yim et al., 2023)
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths import like_time
from sci.paths.geodesic import GeodesicPath, find_rate
from sci.samplers.checks import infinite
from sci.samplers.stepper import Draws, Stepper
from sci.samplers.values import of_items, ready
from sci.samplers.weights import coefficients, usable
from sci.spaces import Space

__all__ = ["RotationStepper", "follow"]

# Settings, what serves, and what to set instead.
_LIMITS: tuple[tuple[str, Callable[[Any], bool], Any], ...] = (
    ("kind", lambda kind: isinstance(kind, str) and kind in ("data", "velocity"), "data"),
    ("order", lambda order: order <= 2, 2),
    ("corrector", lambda nodes: not nodes, 0),
    ("stochasticity", lambda tau: not tau, 0.0),
    ("compensation", lambda ratio: ratio is None, None),
)


def follow(
    space: Space, kind: str, x: Tensor, weights: Sequence[Any], predictions: Sequence[Tensor]
) -> Tensor:
    """One row of a tableau on a curved space: from x along weighted predictions.

    Arguments:
        space: of the leaf.
        kind: "data", points (B, N, 4), or "velocity", (B, N, 3) in the body frame.
        x: (B, N, 4) where the transition starts.
        weights: floats or (B,) tensors, one a prediction; those of data sum to the share of the way
            that is gone, which is not 0.
        predictions: those of data bend the aim, which is the first one.

    Returns:
        (B, N, 4).
    """
    if kind == "velocity":
        return space.exp(x, _total(weights, predictions))
    share, aim = sum(weights), predictions[0]
    if len(weights) > 1:
        bends = [space.log(aim, point) for point in predictions[1:]]
        aim = space.exp(aim, _total([weight / share for weight in weights[1:]], bends))
    return space.exp(x, _times(share, space.log(x, aim)))


class RotationStepper(Stepper):
    """A leaf of rotations, see the module; arguments as for `Stepper`.

    It takes the kinds data and velocity, orders 1 and 2, any variable and rule, and neither a
    corrector nor noise. `corrected_start` changes nothing: order 2 needs no help at the start.

    Arguments:
        rate: how the leaf is sampled, when another way than it was trained: "linear",
            "exponential" or a schedule, see `sci.paths.geodesic.GeodesicPath`. The denoiser is then asked
            for data.

    Raises:
        ValueError: for a setting that rotations cannot follow; names the leaf and what to set.
    """

    options = frozenset({"rate"})

    def __init__(
        self, settings: Any, name: str, path: GeodesicPath, grid: np.ndarray, rate: Any = None
    ):
        super().__init__(settings, name, path, grid)
        self._space = path.space
        self._own = rate is not None
        self._path = path if rate is None else path.with_rate(find_rate(rate))
        transitions = len(grid) - 1
        self._kinds = [settings.at("kind", step) for step in range(transitions)]
        self._check(transitions)
        times = grid[:, None] if grid.ndim == 1 else grid
        self._weights = [self._table(times, step) for step in range(transitions)]
        # The velocity of another rate than the trained one, from data: its factor at each step.
        self._speeds = [ready(np.asarray(self._path.speed(time))) for time in times[:-1]]

    def wants(self, step: int) -> str:
        """The kind of prediction that this step takes."""
        return "data" if self._own else self._kinds[step]

    def advance(
        self,
        step: int,
        x: Tensor,
        past: tuple[Tensor, ...],
        draws: Draws,
        rows: Tensor | None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """One transition; see `Stepper.advance`."""
        kind, newest = self._kinds[step], past[0].to(x.dtype)
        if self._own and kind == "velocity":
            newest = self._space.log(x, newest)
            newest = _times(of_items(self._speeds[step], x.device, x.dtype, rows), newest)
        weights = [of_items(one, x.device, x.dtype, rows) for one in self._weights[step]]
        predictions = (newest, *past[1 : len(weights)])
        return follow(self._space, kind, x, weights, predictions), (newest,)

    def _check(self, transitions: int) -> None:
        """Refuse what rotations cannot follow, all of it at once."""
        wrong: dict[str, Any] = {}
        amends: dict[str, Any] = {}
        for name, serves, amend in _LIMITS:
            values = [self.settings.at(name, step) for step in range(transitions)]
            bad = [value for value in values if not serves(value)]
            if bad:
                wrong[name], amends[name] = bad[0], amend
        if wrong:
            given = ", ".join(f"{name}={value!r}" for name, value in wrong.items())
            raise ValueError(
                f"leaf '{self.name}' holds rotations and cannot follow {given}: they take the "
                "kinds 'data' and 'velocity', orders 1 and 2, no corrector, no noise and no "
                f"compensation. Give the sampler leaves={{'{self.name}': {amends!r}}}"
            )

    def _table(self, times: np.ndarray, step: int) -> list[Any]:
        """The weights of one step, floats or (B,) tensors: one or two of them."""
        path, kind, settings = self._path, self._kinds[step], self.settings
        start, stop = times[step], times[step + 1]
        total = coefficients(path, kind, "t", "exact", 0.0, [start], stop).weights[0]
        order = min(settings.at("order", step), step + 1)
        final = settings.lower_final and step == len(times) - 2
        if order == 1 or final or self._kinds[step - 1] != kind:
            return [ready(total)]
        nodes = [start, times[step - 1]]
        variable = settings.variable
        serves = usable(path, kind, variable, nodes, start, stop, settings.max_ratio) == 2
        with np.errstate(all="ignore"):
            pair = coefficients(path, kind, variable, settings.rule, 0.0, nodes, stop)
            older = np.where(serves, pair.weights[1], 0.0)
            if kind == "data" and variable == "t":
                # Where nothing is left of the state, the aim is data as extrapolated to the end.
                reach, limit = (stop - start) / (start - nodes[1]), settings.max_ratio or np.inf
                fits = (reach <= limit) & (reach >= 1.0 / limit)
                older = np.where(fits & (path.schedule.sigma(stop) == 0), -reach, older)
        item = infinite([older])
        if item is not None:
            raise ValueError(
                f"leaf '{self.name}' cannot follow variable='{variable}' from t = "
                f"{start[item]:.6g} to {stop[item]:.6g}: use 't'"
            )
        return [ready(total - older), ready(older)] if older.any() else [ready(total)]


def _total(weights: Sequence[Any], vectors: Sequence[Tensor]) -> Tensor:
    """sum_j W_j v_j."""
    terms = [_times(weight, v) for weight, v in zip(weights, vectors, strict=True)]
    return functools.reduce(torch.add, terms)


def _times(weight: Any, x: Tensor) -> Tensor:
    return x * (like_time(weight, x) if isinstance(weight, Tensor) else weight)
