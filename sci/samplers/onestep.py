r"""One-step methods: Runge-Kutta samplers that keep no past.

A transition from s to t evaluates the network at a few stage points and then forgets them. Every
stage point, and t itself, is

    x_i = (c_i / c_s) x_s + sum_(j < i) W_ij P_j

with the predictions P_j of the stages before; c and S belong to the kind of prediction, see
`sci.samplers.weights`. Two families differ in the stage times and in W.

*Classical* methods (euler, midpoint, heun, ralston, heun3, rk4) have a tableau (a, b, c): the
stages are at fractions of S of the first leaf,

    S_i = S_s + c_i (S_t - S_s),    W_ij = c(t_i) a_ij (S_t - S_s) dS / dS_first (t_j).

In the kind velocity, S is t and this is the method of the textbooks on dx/dt; in the kind noise it
is the rhoRK of DEIS, with two stages the Heun sampler of EDM.

*Exponential* methods (exponential_1, _2, _3) have stages at fractions of log-SNR of the first leaf
(1/2; 1/3 and 2/3) and integrate the polynomial through the predictions exactly: DDIM, DPM-Solver-2
and -3 in the kind noise, DPM-Solver++ 2S and 3S in the kind data. The last step of the third order
uses the predictions at 0 and 2/3 only. For the polynomial through them, the error of the integral
is proportional to int_0^1 u (u - 2/3) du = 0, which gains one order. A leaf with another schedule
has its nodes at 2/3 + O(h) of its own log-SNR, which changes the integral by O(h) of a term that is
already small enough: the order holds.

On a curved space (rotations) the same weights serve along geodesics, x_i = exp(x_s, sum_j W_ij P_j)
in the kind velocity; what is left out there is of third order in a step, so there are methods up to
order 2.

`steps` counts evaluations, and a transition with m stages spans m steps of the grid. There are
`steps // m` full transitions; when r evaluations remain, one last transition over r steps takes a
method of r stages. It lowers the order of the whole to min(order, r + 1), so convergence is best
seen at multiples of m.

References:
    | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    | DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in around 10 steps
    | (Lu et al., 2022)
    | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
    | (Lu et al., 2022)
    | Fast sampling of diffusion models with exponential integrator (Zhang, Chen, 2023)
    | Runge-Kutta-Munthe-Kaas methods: Lie group methods (Iserles et al., 2000)
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from torch import Tensor

from sci import tree
from sci.paths import Path, check_kind
from sci.samplers import grids
from sci.samplers.checks import curved, gaussian, whole
from sci.samplers.churn import churn, churned
from sci.samplers.coordinates import Coordinate
from sci.samplers.lie import follow
from sci.samplers.loop import Carry, Plan, Sampler
from sci.samplers.runge_kutta import (
    CLASSICAL,
    EXPONENTIAL,
    Point,
    methods_of,
    stages_of,
    transition,
)
from sci.samplers.stepper import Draws
from sci.samplers.values import multiplier, of_items, ready
from sci.samplers.weights import ENGINE_KINDS

__all__ = ["OneStep", "OneStepPlan"]

_CURVED = ("euler", "midpoint", "heun", "ralston", "exponential_1", "exponential_2")
_METHODS = (*CLASSICAL, *EXPONENTIAL)


@dataclasses.dataclass(frozen=True)
class OneStep(Sampler):
    """A Runge-Kutta sampler.

        x_i = (c_i / c_s) x_s + sum_(j < i) W_ij P_j        for each stage, and for the next point

    Arguments:
        steps: network evaluations an item, >= 1 (>= 2 with `final`).
        method: classical, "euler", "midpoint", "heun", "ralston", "heun3" or "rk4"; or
            exponential, "exponential_1", "exponential_2" or "exponential_3". heun and rk4 evaluate
            at the end of every transition, the others inside only: better where the grid ends
            with sigma = 0 and the network predicts data, which then says little of the velocity.
        kind: the prediction whose polynomial or tableau it is: "data", "noise", "difference",
            "angular" or "velocity". What the network was trained to predict does not matter.
        rule: "exact", or "half" for the last point of transitions by exponential_2 as DPM-Solver
            publishes it: the weight of the midpoint is then the whole integral.
        grid: a name, a grid, a list of times, or a callable (paths, evaluations) -> times; a
            transition spans as many steps of it as it has evaluations.
        final: "data" returns the data prediction at the last time, which costs one of the steps;
            None returns the state at the last time. With sigma / alpha small at the last time it
            is the Euler step to no noise with which EDM ends.
        churn: noise that is added before each transition, >= 0: with n transitions the ratio
            sigma / alpha of the first leaf grows by the factor 1 + min(churn / n, sqrt(2) - 1),
            at constant data, and the transition starts from the earlier time that belongs to it,
            see `sci.samplers.churn`.
        churn_range: the ratios sigma / alpha between which there is churn.
        churn_noise: a factor on the noise of the churn, >= 0.
        leaves: settings of some leaves, {"name": {"kind": ...}}.

    Raises:
        ValueError: for settings out of range; unknown names list close ones.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> denoiser = Denoiser(lambda x, t, condition: x, GaussianPath(CondOT()), "velocity")
        >>> samples = OneStep(steps=8, method="rk4")(denoiser, start=torch.ones(1, 1))
        >>> round(float(samples.state), 3), samples.nfe
        (2.717, 8)

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
    """

    steps: int = 20
    method: str = "heun"
    kind: str = "velocity"
    rule: str = "exact"
    grid: Any = "uniform_time"
    final: str | None = None
    churn: float = 0.0
    churn_range: tuple[float, float] = (0.0, math.inf)
    churn_noise: float = 1.0
    leaves: Any = None

    def __post_init__(self) -> None:
        check_kind(self.method, _METHODS, "unknown method")
        check_kind(self.kind, ENGINE_KINDS, "unknown kind")
        check_kind(self.rule, ("exact", "half"), "unknown rule")
        if self.rule == "half" and self.method not in EXPONENTIAL:
            raise ValueError(
                f"rule='half' exists for the exponential methods, not for method='{self.method}'"
            )
        if self.final not in (None, "data"):
            raise ValueError(f"final must be None or 'data', got {self.final!r}")
        whole("steps", self.steps, 1 if self.final is None else 2)
        if not (0.0 <= self.churn < math.inf and 0.0 <= self.churn_noise < math.inf):
            raise ValueError(
                "churn and churn_noise must be finite and not negative, got "
                f"{self.churn} and {self.churn_noise}"
            )
        low, high = self.churn_range
        if not 0.0 <= low < high:
            raise ValueError(f"churn_range must be 0 <= low < high, got {self.churn_range}")
        for name, settings in (self.leaves or {}).items():
            if set(settings) - {"kind"}:
                raise ValueError(f"leaf '{name}': only 'kind' differs by leaf, got {settings}")
            check_kind(
                settings.get("kind", self.kind), ENGINE_KINDS, f"leaf '{name}': unknown kind"
            )
        object.__setattr__(self, "grid", grids.find(self.grid))

    @property
    def transitions(self) -> list[str]:
        """The method of each transition, one a time that the grid has besides the first."""
        return methods_of(self.method, self.steps - (self.final is not None))

    def plan(self, paths: Any, times: Any = None) -> OneStepPlan:
        """The coefficients for some paths; see `Sampler.plan`.

        Arguments:
            paths: one path, or the tree of paths of a state.
            times: in place of the sampler's grid; one more than there are evaluations, of which
                the ends of the transitions are taken, or one more than there are transitions;
                (n,) or (n, B).

        Raises:
            ValueError: when the times are no grid or another number, or a leaf cannot follow.
        """
        found, structure = tree.flatten(paths, Path)
        evaluations, count = self.steps - (self.final is not None), len(self.transitions)
        if times is None:
            given = getattr(self.grid, "times", ())
            times = self.grid(paths, count if len(given) == count + 1 else evaluations)
        grid = grids.check_times(times)
        if len(grid) == evaluations + 1:
            grid = grid[[*range(0, evaluations, stages_of(self.method)), evaluations]]
        elif len(grid) != count + 1:
            raise ValueError(
                f"{evaluations} evaluations of '{self.method}' make {count} transitions: expected "
                f"{evaluations + 1} or {count + 1} times, got {len(grid)}"
            )
        return OneStepPlan(self, structure, found, grid)


class OneStepPlan(Plan):
    """The coefficients of a `OneStep` sampler; see `Plan`.

    Arguments:
        sampler: the settings.
        structure: of the tree of paths.
        paths: one a leaf.
        grid: (n + 1,) or (n + 1, B), the ends of the transitions.

    Raises:
        ValueError: when a leaf cannot follow the settings; names the leaf.
    """

    def __init__(
        self, sampler: OneStep, structure: tree.Structure, paths: list[Path], grid: np.ndarray
    ):
        names = [name or "state" for name in structure.names]
        kinds = _kinds(sampler, names, paths)
        leaves = [Coordinate(path, kind) for path, kind in zip(paths, kinds, strict=True)]
        ends = grid[:, None] if grid.ndim == 1 else grid
        low, high = float(grid.min()), float(grid.max())
        follows = [leaf is leaves[0] or leaf.follows(leaves[0], low, high) for leaf in leaves]
        times: list[np.ndarray] = []
        self._rows: list[list[_Row]] = []
        self._churns: list[list[tuple[Any, Any]] | None] = []
        with np.errstate(all="ignore"):
            for place, method in enumerate(sampler.transitions):
                start, stop = ends[place], ends[place + 1]
                earlier = churned(sampler, leaves[0], start, ends[0])
                churns = None
                if bool((earlier < start).any()):
                    pairs = [
                        churn(sampler, name, leaf, start, earlier)
                        for name, leaf in zip(names, leaves, strict=True)
                    ]
                    churns = [(ready(scale), ready(spread)) for scale, spread in pairs]
                stages, points = transition(
                    method, sampler.rule, names, leaves, follows, earlier, stop
                )
                last = len(stages) - 1
                self._rows.extend(
                    [_Row(leaf[k], k == 0, k == last) for leaf in points] for k in range(last + 1)
                )
                times.extend(stages)
                self._churns.extend([churns] + [None] * last)
        if sampler.final is not None:
            times.append(ends[-1])
        clock = np.stack(times)
        super().__init__(sampler, structure, paths, clock[:, 0] if grid.ndim == 1 else clock)
        self.grid = grid
        alike = len(set(kinds)) == 1
        self._wanted: Any = kinds[0] if alike else structure.unflatten(kinds)
        self._curved = [
            (path.space, kind) if curved(path) else None
            for path, kind in zip(paths, kinds, strict=True)
        ]

    def step(self, denoiser: Any, carry: Carry) -> Carry:
        """One evaluation, and the point that follows from it: a stage, or the next time."""
        step = carry.step
        if step == len(self._rows):
            outputs = self._predictions(denoiser, carry, "data")
            ends = tuple(out.to(x.dtype) for out, x in zip(outputs, carry.leaves, strict=True))
            return dataclasses.replace(carry, leaves=ends, step=step + 1, nfe=carry.nfe + 1)
        carry = self._stir(denoiser, carry)
        predictions = self._predictions(denoiser, carry, self._wanted)
        leaves, history, base = [], [], []
        for place, (row, prediction) in enumerate(zip(self._rows[step], predictions, strict=True)):
            before = carry.leaves[place] if row.first else carry.base[place]
            newest = prediction.to(before.dtype)
            past = (newest,) if row.first else (newest, *carry.history[place])
            leaves.append(row.apply(before, past, carry.rows, self._curved[place]))
            history.append(() if row.last else past)
            base.append(before)
        last = self._rows[step][0].last
        return dataclasses.replace(
            carry,
            leaves=tuple(leaves),
            step=step + 1,
            nfe=carry.nfe + 1,
            history=tuple(history),
            base=() if last else tuple(base),
        )

    def coefficients(self, step: int, leaf: int | str = 0) -> tuple[Any, tuple[Any, ...]]:
        """(A, (W_0, W_1, ...)) of the point that follows an evaluation, newest stage first; the
        state that A multiplies is that at the start of the transition, after its churn."""
        row = self._rows[step][leaf if isinstance(leaf, int) else self.names.index(leaf)]
        return row.scale, row.weights

    def _stir(self, denoiser: Any, carry: Carry) -> Carry:
        """The carry with the noise of the churn, where this evaluation starts with one."""
        churns = self._churns[carry.step]
        if churns is None:
            return carry
        leaves = []
        for (scale, spread), path, name, x in zip(
            churns, self.paths, self.names, carry.leaves, strict=True
        ):
            draws = Draws(carry.noise, denoiser, carry.condition, path, name, carry.step)
            kick = draws.normal(x) * multiplier(spread, x, carry.rows)
            leaves.append(x * multiplier(scale, x, carry.rows) + kick)
        return dataclasses.replace(carry, leaves=tuple(leaves))


class _Row:
    """One evaluation of one leaf: where it leads from the start of the transition.

    Coefficients are Python floats, or (B,) tensors when the times differ by item.
    """

    __slots__ = ("first", "last", "scale", "weights")

    def __init__(self, point: Point, first: bool, last: bool):
        self.first, self.last = first, last
        self.scale: Any = ready(point.scale)
        self.weights: tuple[Any, ...] = tuple(map(ready, reversed(point.weights)))

    def apply(
        self, base: Tensor, past: tuple[Tensor, ...], rows: Tensor | None, bent: Any = None
    ) -> Tensor:
        """A x + sum_j W_j P_j; with a space and a kind (`bent`) along its geodesics, see
        `sci.samplers.lie.follow`."""
        if bent is not None:
            weights = [of_items(one, base.device, base.dtype, rows) for one in self.weights]
            space, kind = bent
            return follow(space, kind, base, weights, past)
        out = base * multiplier(self.scale, base, rows)
        for weight, prediction in zip(self.weights, past, strict=True):
            if not isinstance(weight, float):
                out = out + prediction * multiplier(weight, base, rows)
            elif weight:
                # In place on a fresh tensor: nothing that autograd keeps is touched.
                out.add_(prediction, alpha=weight)
        return out


def _kinds(sampler: OneStep, names: list[str], paths: list[Path]) -> list[str]:
    """The kind of each leaf, checked."""
    overrides = sampler.leaves or {}
    unknown = sorted(set(overrides) - set(names))
    if unknown:
        raise ValueError(f"leaves has settings for {unknown}; the state has {names}")
    kinds = []
    for name, path in zip(names, paths, strict=True):
        kind = overrides.get(name, {}).get("kind", sampler.kind)
        if "velocity" not in path.heads:
            raise ValueError(
                f"leaf '{name}' cannot follow a one-step method: its path {type(path).__name__} "
                f"has no velocity, only {', '.join(sorted(path.heads))}; use sci.samplers.Multistep"
            )
        if curved(path) and not (kind in path.heads and sampler.method in _CURVED):
            raise ValueError(
                f"leaf '{name}' cannot follow method='{sampler.method}' with kind='{kind}': its "
                f"space {path.space!r} is curved and takes {', '.join(_CURVED)}, with "
                f"leaves={{'{name}': {{'kind': 'velocity'}}}} or 'data'"
            )
        for one, what in ((kind, f"kind='{kind}'"), (sampler.final, "final='data'")):
            if one is not None and one not in path.heads:
                raise ValueError(
                    f"leaf '{name}' cannot follow {what}: its path {type(path).__name__} has "
                    f"{', '.join(sorted(path.heads))}"
                )
        if sampler.churn and not gaussian(path):
            raise ValueError(
                f"leaf '{name}' cannot be churned: its path {type(path).__name__} has no Gaussian "
                "noise to add; use churn=0"
            )
        kinds.append(kind)
    return kinds
