"""The samplers of sciflows: both recommendations and every deterministic row of the table of presets.

Presets of flow matching (kind velocity) run on the straight line, all others on the VP path with the linear rate, the
continuous form of the schedule that diffusers has by default. Every preset has its own grid, ends and order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.paths import GaussianPath
from sci.samplers.adaptive import Adaptive
from sci.schedules import VP, CondOT, Schedule

from .mixtures import Problems, velocity

__all__ = ["DEFAULT", "ROWS", "adaptive", "denoiser"]

Run = Callable[[Problems, int], tuple[Tensor, tuple[float, float]]]
DEFAULT = "default(exact=True)"


def denoiser(problems: Problems, schedule: Schedule) -> Denoiser:
    """The exact denoiser of the mixtures on a path; on the straight line the exact velocity, finite at both ends."""
    straight = isinstance(schedule, CondOT)

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        # All items have one time.
        time = float(t[0].double())
        data = problems.data(x, schedule.alpha(time), schedule.sigma(time))
        return velocity(data, x, time) if straight else data

    return Denoiser(network, GaussianPath(schedule), "velocity" if straight else "data")


def _sampled(make: Callable[[int], Any], schedule: Schedule) -> Run:
    def run(problems: Problems, nfe: int) -> tuple[Tensor, tuple[float, float]]:
        exact = denoiser(problems, schedule)
        sampler = make(nfe)
        first = float(sampler.plan(exact.paths).times[0])
        level = schedule.alpha(first), schedule.sigma(first)
        return sampler(exact, start=problems.noise * level[1]).state, level

    return run


def _presets() -> dict[str, Run]:
    rows = {
        DEFAULT: _sampled(lambda nfe: samplers.default(nfe, exact=True), VP()),
        f"{DEFAULT}, CondOT": _sampled(lambda nfe: samplers.default(nfe, exact=True), CondOT()),
        "default()": _sampled(lambda nfe: samplers.default(nfe), VP()),
    }
    for name, preset in samplers.TABLE.items():
        orders = getattr(preset, "orders", ()) or (None,)
        for order in sorted(orders, key=lambda order: order or 0):
            changes = {} if order is None else {"order": order}

            def make(nfe: int, name: str = name, changes: dict[str, Any] = changes) -> Any:
                return samplers.preset(name, nfe, **changes)

            try:
                example = make(20)
            except (TypeError, ValueError):
                # What needs tables of its own.
                continue
            if _noisy(example) or isinstance(example, Adaptive):
                continue
            straight = getattr(example, "kind", None) == "velocity"
            label = name if len(orders) == 1 else f"{name} {order}"
            rows[label] = _sampled(make, CondOT() if straight else VP())
    return rows


def adaptive(problems: Problems, tolerance: float, order: int) -> tuple[Tensor, float]:
    """The samples of our adaptive sampler on the straight line, and the mean evaluations an item."""

    def network(x: Tensor, t: Tensor, condition: Any) -> Tensor:
        data, left = problems.data(x, t, 1.0 - t), (1.0 - t)[:, None]
        # At the end the limit, as in `velocity`.
        return torch.where(left > 0, (data - x) / left.clamp(min=1e-300), data)

    exact = Denoiser(network, GaussianPath(CondOT()), "velocity")
    found = samplers.adaptive(tolerance, tolerance, order=order)(exact, start=problems.noise)
    return found.state, float(found.evaluations.mean())


def _noisy(sampler: Any) -> bool:
    return any(bool(getattr(sampler, name, 0)) for name in ("stochasticity", "churn"))


ROWS = _presets()
