"""Linear multistep predictor-corrector samplers: one engine for the named fast solvers.

DDIM, DPM-Solver(++), DEIS, PNDM, UniPC, Adams-Bashforth-Moulton flows, ancestral sampling and SDE
variants are settings of one formula; `sci.samplers.weights` has the theory, `presets` the names.
Coefficients are worked out once, in float64, and held as Python floats, so a step is a few fused
multiply-adds; they are arrays when the times differ by item.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.paths import Path, like_time
from sci.samplers import grids
from sci.samplers.loop import Carry, Plan, Sampler, check_times, mask_for
from sci.samplers.weights import ENGINE_KINDS, Coefficients, coefficients

__all__ = ["Multistep", "MultistepPlan"]

_VARIABLES = ("log_snr", "S", "t")
_RULES = ("exact", "half", "fixed")


@dataclasses.dataclass(frozen=True)
class Multistep(Sampler):
    """A linear multistep sampler.

        x_t = A x_s + sum_j W_j P_j + N z

    Arguments:
        steps: network evaluations an item, >= 1.
        kind: the prediction that is extrapolated: "data", "noise", "difference" (data - noise),
            "angular" (v of v-prediction) or "velocity" (dx/dt). What the network was trained to
            predict does not matter.
        variable: in which the prediction is a polynomial: "log_snr", "t" or "S", the integral that
            belongs to the kind.
        order: of the predictor, 1 to 4; lower at the first steps, which have no past.
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
        corrected_start: whether the first step, which has order 1, is corrected to order 2, so that
            predictors of order 3 converge with order 3 whatever the start.

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
    """

    steps: int = 20
    kind: str = "data"
    variable: str = "log_snr"
    order: int = 2
    corrector: int = 0
    rule: str = "exact"
    stochasticity: float = 0.0
    noise_scale: float = 1.0
    grid: Any = "uniform_log_snr"
    final: str | None = None
    lower_final: bool = False
    corrected_start: bool = False

    def __post_init__(self) -> None:
        _choice("kind", self.kind, ENGINE_KINDS)
        _choice("variable", self.variable, _VARIABLES)
        _choice("rule", self.rule, _RULES)
        for name, value, low, high in (
            ("order", self.order, 1, 4),
            ("corrector", self.corrector, 0, 4),
            ("steps", self.steps, 1 if self.final is None else 2, math.inf),
        ):
            if not (isinstance(value, int) and low <= value <= high):
                raise ValueError(f"{name} must be an integer from {low} to {high}, got {value!r}")
        if self.final not in (None, "data"):
            raise ValueError(f"final must be None or 'data', got {self.final!r}")
        if not (self.stochasticity >= 0 and self.noise_scale >= 0):
            raise ValueError(
                "stochasticity and noise_scale must not be negative, got "
                f"{self.stochasticity} and {self.noise_scale}"
            )
        if self.stochasticity and self.kind not in ("data", "noise"):
            raise ValueError(
                f"stochasticity={self.stochasticity} exists for the kinds 'data' and 'noise', "
                f"not for '{self.kind}'"
            )
        renewal = (1, 0, "data")
        if math.isinf(self.stochasticity) and (self.order, self.corrector, self.kind) != renewal:
            raise ValueError(
                "infinite stochasticity renews all noise: it needs kind='data' and order=1"
            )
        object.__setattr__(self, "grid", grids.find(self.grid))

    def plan(self, paths: Any, times: Any = None) -> MultistepPlan:
        """The coefficients for some paths; see `Sampler.plan`."""
        found, structure = tree.flatten(paths, Path)
        if times is None:
            times = self.grid(paths, self.steps - (self.final is not None))
        return MultistepPlan(self, structure, found, check_times(times, 2))


class MultistepPlan(Plan):
    """The coefficients of a `Multistep` sampler; see `Plan`.

    Arguments:
        sampler: the settings.
        structure: of the tree of paths.
        paths: one a leaf.
        grid: (n,) or (n, B) times; n - 1 transitions, and with `final` one evaluation more.

    Raises:
        ValueError: when a leaf cannot follow the settings; names the leaf.
    """

    def __init__(
        self, sampler: Multistep, structure: tree.Structure, paths: list[Path], grid: np.ndarray
    ):
        super().__init__(sampler, structure, paths, grid if sampler.final else grid[:-1])
        self.grid = grid
        self._keep = max(sampler.order - 1, sampler.corrector)
        self._predict: list[list[_Row]] = []
        self._correct: list[list[_Row | None]] = []
        for name, path in zip(self.names, paths, strict=True):
            if sampler.kind not in path.heads:
                raise ValueError(
                    f"leaf '{name}' cannot follow kind='{sampler.kind}': its path "
                    f"{type(path).__name__} has {', '.join(sorted(path.heads))}"
                )
            predict, correct = _table(sampler, name, path, grid)
            self._predict.append(predict)
            self._correct.append(correct)
        # What a corrector needs is carried only to the points that are corrected.
        self._carries_base = [
            any(rows[step + 1] is not None for rows in self._correct)
            for step in range(len(grid) - 1)
        ]

    def coefficients(self, step: int, leaf: int | str = 0) -> tuple[Any, tuple[Any, ...], Any]:
        """(A, (W_0, W_1, ...), N) of the predictor at a step of a leaf, newest node first."""
        row = self._predict[leaf if isinstance(leaf, int) else self.names.index(leaf)][step]
        return row.scale, row.weights, row.noise

    def _start(self, carry: Carry) -> Carry:
        return dataclasses.replace(carry, history=((),) * len(carry.leaves))

    def step(self, denoiser: Any, carry: Carry) -> Carry:
        """One evaluation, the correction of this point, and the prediction of the next one."""
        step, sampler = carry.step, self.sampler
        last = step == len(self._predict[0])
        outputs = denoiser(
            carry.state,
            self._time(carry),
            carry.condition,
            to="data" if last else sampler.kind,
        )
        predictions = [outputs] if isinstance(outputs, Tensor) else tree.flatten(outputs)[0]
        if last:
            return Carry(
                tuple(predictions),
                carry.structure,
                carry.noise,
                carry.condition,
                step + 1,
                carry.nfe + 1,
                history=carry.history,
                rows=carry.rows,
            )
        mask, looked_up = None, False
        leaves, history, base, kicks = [], [], [], []
        for place, (x, prediction) in enumerate(zip(carry.leaves, predictions, strict=True)):
            past = (prediction, *carry.history[place])
            correction = self._correct[place][step]
            if correction is not None:
                x = correction.apply(carry.base[place], past, carry.rows)
                last_kick = carry.kicks[place]
                if last_kick is not None:
                    x = x + last_kick
            row = self._predict[place][step]
            out = row.apply(x, past, carry.rows)
            kick = None
            if row.noisy:
                if not looked_up:
                    mask, looked_up = mask_for(denoiser, carry.condition), True
                path = self.paths[place]
                draw = carry.noise.draw(path.space, self.names[place], step, x, mask)
                kick = draw * row.of("noise", x, carry.rows)
                out = out + kick
            leaves.append(out)
            history.append(past[: self._keep])
            if self._carries_base[step]:
                base.append(x)
                kicks.append(kick)
        return Carry(
            tuple(leaves),
            carry.structure,
            carry.noise,
            carry.condition,
            step + 1,
            carry.nfe + 1,
            tuple(history),
            tuple(base),
            tuple(kicks),
            carry.rows,
        )


class _Row:
    """One step of one leaf: Python floats, or (B,) tensors when the times differ by item."""

    __slots__ = ("noise", "noisy", "scale", "shared", "weights")

    def __init__(self, found: Coefficients, noise_scale: float):
        self.shared = found.scale.shape[0] == 1
        convert = (lambda a: float(a[0])) if self.shared else torch.from_numpy
        noise = found.noise * noise_scale
        self.scale: Any = convert(found.scale)
        self.weights: tuple[Any, ...] = tuple(convert(weight) for weight in found.weights)
        self.noise: Any = convert(noise)
        self.noisy = bool((noise != 0).any())

    def apply(self, x: Tensor, past: tuple[Tensor, ...], rows: Tensor | None) -> Tensor:
        """A x + sum_j W_j P_j."""
        if self.shared:
            out = x * self.scale
            for weight, prediction in zip(self.weights, past, strict=False):
                # In place on a fresh tensor: nothing that autograd keeps is touched.
                out.add_(prediction, alpha=weight)
            return out
        out = x * _per_item(self.scale, x, rows)
        for weight, prediction in zip(self.weights, past, strict=False):
            out = out + prediction * _per_item(weight, x, rows)
        return out

    def of(self, name: str, x: Tensor, rows: Tensor | None) -> Any:
        """A coefficient, ready to multiply x."""
        value = getattr(self, name)
        return value if self.shared else _per_item(value, x, rows)


def _per_item(value: Tensor, x: Tensor, rows: Tensor | None) -> Tensor:
    return like_time(value if rows is None else value[rows.to(value.device)], x)


def _table(
    sampler: Multistep, name: str, path: Path, grid: np.ndarray
) -> tuple[list[_Row], list[_Row | None]]:
    """All steps of one leaf: predictors, and the correctors of the points that they start from."""
    times = grid[:, None] if grid.ndim == 1 else grid
    transitions = len(times) - 1
    settings = path, sampler.kind, sampler.variable, sampler.rule, sampler.stochasticity
    predict: list[_Row] = []
    correct: list[_Row | None] = [None]
    for step in range(transitions):
        order = min(sampler.order, step + 1)
        if sampler.lower_final:
            order = min(order, transitions - step)
        nodes = [times[step - back] for back in range(order)]
        found = coefficients(*settings, nodes, times[step + 1])
        if not all(np.isfinite(a).all() for a in (found.scale, found.noise, *found.weights)):
            raise ValueError(
                f"leaf '{name}' cannot follow kind='{sampler.kind}' from t = {times[step][0]:.6g} "
                f"to {times[step + 1][0]:.6g}: its coefficients are not finite there. Use ends "
                "inside (0, 1), or kind='difference', 'angular' or 'velocity'"
            )
        predict.append(_Row(found, sampler.noise_scale))
        correctors = sampler.corrector
        if step == 0 and sampler.corrected_start:
            correctors = max(correctors, 1)
        backs = range(min(correctors, step + 1))
        nodes = [times[step + 1], *(times[step - back] for back in backs)]
        row = None
        if backs:
            found = coefficients(*settings, nodes, times[step + 1], corrector=True)
            row = _Row(found, 0.0) if found.weights else None
        correct.append(row)
    return predict, correct


def _choice(name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        close = difflib.get_close_matches(str(value), allowed, n=1)
        hint = f" (did you mean '{close[0]}'?)" if close else ""
        raise ValueError(f"unknown {name} {value!r}{hint}: expected one of {', '.join(allowed)}")
