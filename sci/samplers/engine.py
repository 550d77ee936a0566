"""Linear multistep predictor-corrector samplers: one engine for the named fast solvers.

DDIM, DPM-Solver(++), DEIS, PNDM, UniPC, Adams-Bashforth-Moulton flows, ancestral sampling and SDE
variants are settings of one formula; `sci.samplers.weights` has the theory, `presets` the names.
Coefficients are worked out once, in float64, and held as Python floats, so a step is a few fused
multiply-adds; they are arrays when the times differ by item. Leaves that are no linear space have
steppers of their own; all leaves share the clock and the evaluations.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from sci import tree
from sci.paths import Path, check_kind
from sci.samplers import grids
from sci.samplers.checks import whole
from sci.samplers.empirical import EmpiricalStatistics
from sci.samplers.loop import Carry, Plan, Sampler
from sci.samplers.stepper import Draws, Stepper, stepper_for
from sci.samplers.weights import ENGINE_KINDS

__all__ = ["Multistep", "MultistepPlan"]

_VARIABLES = ("log_snr", "S", "t")
_RULES = ("exact", "half", "fixed")
_PER_STEP = ("order", "kind", "corrector", "stochasticity", "compensation")
_SHARED = ("steps", "grid", "final", "leaves")


@dataclasses.dataclass(frozen=True)
class Multistep(Sampler):
    """A linear multistep sampler.

        x_t = A x_s + sum_j W_j P_j + N z

    The settings order, kind, corrector, stochasticity and compensation may differ by step: then
    they are sequences of length `steps`, and entry i belongs to the transition that starts at
    evaluation i (the corrector of that transition acts when the prediction at its end is known).

    Arguments:
        steps: network evaluations an item, >= 1.
        kind: the prediction that is extrapolated: "data", "noise", "difference" (data - noise),
            "angular" (v of v-prediction), "velocity" (dx/dt), or an `EmpiricalStatistics`. What
            the network was trained to predict does not matter.
        variable: in which the prediction is a polynomial: "log_snr", "t" or "S", the integral that
            belongs to the kind.
        order: of the predictor, 1 to 4, at most `steps`; lower at the first steps, which have no
            past.
        corrector: past nodes of the corrector besides the new one, 0 (none) to 4. It uses the
            prediction at the predicted point, so it costs no evaluation.
        rule: "exact", "half" (the midpoint forms with two nodes) or "fixed" (Adams' constants).
        stochasticity: tau >= 0, the strength of the noise that is added, for the kinds data and
            noise: 0 the flow, 1 the reverse SDE. Stochastic DDIM with exponent g has tau = sqrt(g).
        noise_scale: a factor on what is added, >= 0; below 1 it lowers the temperature.
        grid: a name, a grid, a list of times, or a callable (paths, steps) -> times.
        final: "data" returns the data prediction at the last time, which costs one of the steps;
            None returns the state at the last time.
        lower_final: whether the order falls towards the end, so that the last step has order 1.
        corrected_start: whether the first points are corrected as predictions become known, so
            that the method has its order whatever the start: `order`, or with a corrector one
            more, at most 4. No evaluation is added.
        leaves: settings of single leaves, {name: {setting: value}}: all of these but steps, grid
            and final, and those that leaves of another space have of their own.
        compensation: the ratio r of dynamic compensation, from the third evaluation on: before a
            prediction P_i is extrapolated, it is replaced by the polynomial in t through the
            newest three, taken at r t_i + (1 - r) t_(i-1), and kept so. 1 changes nothing; None
            is off.
        max_ratio: >= 1; nodes beyond a place where two neighbouring steps, measured in the
            variable, differ by more than this ratio are not used. None for no limit.

    Raises:
        ValueError: for settings out of range; unknown names list close ones.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> denoiser = Denoiser(lambda x, t, condition: 0 * x + 3, GaussianPath(CondOT()))
        >>> sampler = Multistep(steps=4, kind="velocity", variable="t")
        >>> samples = sampler(denoiser, like=torch.zeros(2, 1))
        >>> samples.state.shape, samples.nfe
        (torch.Size([2, 1]), 4)

    References:
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
        | UniPC: a unified predictor-corrector framework (Zhao et al., 2023)
        | SA-Solver: stochastic Adams solver for fast sampling of diffusion models
        | (Xue et al., 2023)
        | A unified sampling framework for solver searching of diffusion probabilistic models
        | (Liu et al., 2023)
        | DC-Solver: improving predictor-corrector diffusion sampler via dynamic compensation
        | (Zhao et al., 2024)
    """

    steps: int = 20
    kind: Any = "data"
    variable: str = "log_snr"
    order: Any = 2
    corrector: Any = 0
    rule: str = "exact"
    stochasticity: Any = 0.0
    noise_scale: float = 1.0
    grid: Any = "uniform_log_snr"
    final: str | None = None
    lower_final: bool = False
    corrected_start: bool = False
    leaves: Mapping[str, Mapping[str, Any]] | None = dataclasses.field(default=None, hash=False)
    compensation: Any = None
    max_ratio: float | None = None

    def __post_init__(self) -> None:
        check_kind(self.variable, _VARIABLES, "unknown variable")
        check_kind(self.rule, _RULES, "unknown rule")
        if self.final not in (None, "data"):
            raise ValueError(f"final must be None or 'data', got {self.final!r}")
        whole("steps", self.steps, 1 if self.final is None else 2)
        for name in _PER_STEP:
            value = getattr(self, name)
            if _listed(value):
                if len(value) != self.steps:
                    raise ValueError(
                        f"{name} has {len(value)} entries: a setting by step needs one for each of "
                        f"the {self.steps} evaluations"
                    )
                entries = value.tolist() if isinstance(value, np.ndarray) else value
                object.__setattr__(self, name, tuple(entries))
        for step in range(self.steps):
            self._check(step)
            if not any(isinstance(getattr(self, name), tuple) for name in _PER_STEP):
                break
        if not 0 <= self.noise_scale < math.inf:
            raise ValueError(f"noise_scale must be finite and not negative, got {self.noise_scale}")
        if not (self.max_ratio is None or self.max_ratio >= 1):
            raise ValueError(f"max_ratio must be None or at least 1, got {self.max_ratio}")
        object.__setattr__(self, "grid", grids.find(self.grid))

    def _check(self, step: int) -> None:
        """The settings of one step."""
        kind, order, corrector, tau, ratio = (
            self.at(name, step)
            for name in ("kind", "order", "corrector", "stochasticity", "compensation")
        )
        if not isinstance(kind, EmpiricalStatistics):
            check_kind(kind, ENGINE_KINDS, "unknown kind")
        elif self.variable == "S" or self.rule != "exact":
            raise ValueError(
                "empirical statistics need variable='log_snr' or 't' and rule='exact', got "
                f"{self.variable!r} and {self.rule!r}"
            )
        whole("order", order, 1, 4)
        whole("corrector", corrector, 0, 4)
        if order > self.steps:
            raise ValueError(
                f"order={order} needs at least {order} evaluations, got steps={self.steps}: "
                "lower the order or take more steps"
            )
        if not (isinstance(tau, (int, float, np.number)) and tau >= 0):
            raise ValueError(f"stochasticity must not be negative, got {tau!r}")
        if tau and kind not in ("data", "noise"):
            raise ValueError(
                f"stochasticity={tau} exists for the kinds 'data' and 'noise', not for "
                + (f"'{kind}'" if isinstance(kind, str) else "empirical statistics")
            )
        if math.isinf(tau) and (order, corrector, kind) != (1, 0, "data"):
            raise ValueError(
                "infinite stochasticity renews all noise: it needs kind='data' and order=1, "
                "without a corrector"
            )
        if not (ratio is None or math.isfinite(ratio)):
            raise ValueError(f"compensation must be finite or None, got {ratio}")

    def at(self, name: str, step: int) -> Any:
        """A setting at a step: its entry where it is given by step."""
        value = getattr(self, name)
        return value[step] if isinstance(value, tuple) else value

    def _fit(self, evaluations: int) -> None:
        """Refuse times whose number does not serve the settings."""
        for name in _PER_STEP:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != evaluations:
                raise ValueError(
                    f"{name} has {len(value)} entries, the times give {evaluations} evaluations"
                )
        order = max(self.order) if isinstance(self.order, tuple) else self.order
        if order > evaluations:
            raise ValueError(
                f"order={order} needs at least {order} evaluations, the times give {evaluations}: "
                "lower the order or give more times"
            )

    def stepper(self, name: str, path: Path, grid: np.ndarray) -> Stepper:
        """The stepper of a leaf, under the leaf's settings.

        Arguments:
            name: of the leaf.
            path: of the leaf.
            grid: (n,) or (n, B) float64 times.

        Raises:
            ValueError: when the leaf cannot follow the settings; names the leaf.
        """
        kind = stepper_for(path)
        changes = dict((self.leaves or {}).get(name, {}))
        own = {option: changes.pop(option) for option in [*changes] if option in kind.options}
        fields = [field.name for field in dataclasses.fields(self) if field.name not in _SHARED]
        for option in changes:
            if option not in fields:
                allowed = [*fields, *sorted(kind.options)]
                close = difflib.get_close_matches(option, allowed, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise ValueError(
                    f"leaf '{name}' has no setting '{option}'{hint}: expected {', '.join(allowed)}"
                )
        try:
            settings = dataclasses.replace(self, leaves=None, **changes)
            settings._fit(len(grid) - (self.final is None))
        except ValueError as error:
            raise ValueError(f"leaf '{name}': {error}") from error
        return kind(settings, name, path, grid, **own)

    def plan(self, paths: Any, times: Any = None) -> MultistepPlan:
        """The coefficients for some paths; see `Sampler.plan`."""
        found, structure = tree.flatten(paths, Path)
        if times is None:
            times = self.grid(paths, self.steps - (self.final is not None))
        return MultistepPlan(self, structure, found, grids.check_times(times))


class MultistepPlan(Plan):
    """The steppers of a `Multistep` sampler, one a leaf; see `Plan`.

    Arguments:
        sampler: the settings.
        structure: of the tree of paths.
        paths: one a leaf.
        grid: (n,) or (n, B) times; n - 1 transitions, and with `final` one evaluation more.

    Raises:
        ValueError: when a leaf cannot follow the settings, or settings are for an unknown leaf;
            names the leaf.
    """

    def __init__(
        self, sampler: Multistep, structure: tree.Structure, paths: list[Path], grid: np.ndarray
    ):
        super().__init__(sampler, structure, paths, grid if sampler.final else grid[:-1])
        self.grid = grid
        for name in sampler.leaves or ():
            if name not in self.names:
                close = difflib.get_close_matches(name, self.names, n=1)
                hint = f" (did you mean '{close[0]}'?)" if close else ""
                raise ValueError(
                    f"settings are given for a leaf '{name}'{hint}: "
                    f"the state has {', '.join(self.names)}"
                )
        self.steppers = [
            sampler.stepper(name, path, grid) for name, path in zip(self.names, paths, strict=True)
        ]
        self.integer = tuple(stepper.integer for stepper in self.steppers)
        self._transitions = len(grid) - 1
        self._kinds = [
            self._asked([stepper.wants(step) for stepper in self.steppers])
            for step in range(self._transitions)
        ]
        if sampler.final:
            self._kinds.append(self._asked([stepper.wants_last for stepper in self.steppers]))
        self._moves = [
            (stepper.advance, path, name)
            for stepper, path, name in zip(self.steppers, paths, self.names, strict=True)
        ]

    def coefficients(self, step: int, leaf: int | str = 0) -> tuple[Any, tuple[Any, ...], Any]:
        """(A, (U_0, U_1, ...), N) of a step of a linear leaf, the newest prediction first:

            x_next = A x + sum_j U_j P_j + N z,

        with all corrections; see `sci.samplers.rows`.
        """
        place = leaf if isinstance(leaf, int) else self.names.index(leaf)
        stepper: Any = self.steppers[place]
        return stepper.coefficients(step)

    def _asked(self, kinds: list[str]) -> Any:
        """The kinds as a denoiser takes them: one name when they agree, else a tree."""
        return kinds[0] if len(set(kinds)) == 1 else self.structure.unflatten(kinds)

    def _start(self, carry: Carry) -> Carry:
        return dataclasses.replace(carry, history=((),) * len(carry.leaves))

    def step(self, denoiser: Any, carry: Carry) -> Carry:
        """One evaluation, and the transition of every leaf to the next time."""
        step, condition, noise, rows = carry.step, carry.condition, carry.noise, carry.rows
        predictions = self._predictions(denoiser, carry, self._kinds[step])
        past = carry.history
        leaves: list[Tensor] = []
        history: list[tuple[Tensor, ...]] = []
        if step == self._transitions:
            for stepper, x, prediction in zip(
                self.steppers, carry.leaves, predictions, strict=True
            ):
                draws = Draws(noise, denoiser, condition, stepper.path, stepper.name, step)
                leaves.append(stepper.finish(step, x, prediction, draws, rows))
            history.extend(past)
        else:
            for place, (advance, path, name) in enumerate(self._moves):
                draws = Draws(noise, denoiser, condition, path, name, step)
                known = (predictions[place], *past[place])
                x, kept = advance(step, carry.leaves[place], known, draws, rows)
                leaves.append(x)
                history.append(kept)
        return Carry(
            tuple(leaves),
            carry.structure,
            noise,
            condition,
            step + 1,
            carry.nfe + 1,
            tuple(history),
            (),
            rows,
        )


def _listed(value: Any) -> bool:
    return isinstance(value, (Sequence, np.ndarray)) and not isinstance(value, str)
