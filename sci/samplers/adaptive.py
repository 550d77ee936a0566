r"""Adaptive sampling: each item takes the steps that its own error asks for.

The flow is written in a coordinate that is finite at both ends. With the angle S = atan2(sigma,
alpha) of the first leaf and y = x / c, c = sqrt(alpha^2 + sigma^2), it is dy / dS = v with the v of
v-prediction; leaves without that kind (paths between populations) keep y = x and their velocity.
The interval is mapped to q in [0, 1]. An embedded pair of Runge-Kutta methods gives two results of
neighbouring orders p and p - 1 from the same evaluations, and the root mean square

    E = |(y_p - y_(p-1)) / (atol + rtol max(|y|, |y_p|))|

over the elements of all leaves of an item decides: the item accepts the step when E <= 1, and its
next step is longer or shorter by 0.9 E^(-1/p), between 0.2 and 5. Every item has its own time and
step, so its samples do not depend on its batch mates; items that have arrived leave the batch.

References:
    | A family of embedded Runge-Kutta formulae (Dormand, Prince, 1980)
    | A 3(2) pair of Runge-Kutta formulas (Bogacki, Shampine, 1989)
    | Solving ordinary differential equations I: nonstiff problems (Hairer, Norsett, Wanner, 1993)
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.denoiser.wrapped import Wrapped
from sci.paths import Path
from sci.samplers.checks import curved, whole
from sci.samplers.coordinates import Coordinate
from sci.samplers.embedded import PAIRS, Flow, Run
from sci.samplers.loop import Carry, Sampler, Samples, mask_for
from sci.samplers.watch import progress_bar, recomputing

__all__ = ["Adaptive", "AdaptiveSamples"]

# Where a kind cannot be had at an end of the span, sampling stays this far inside, in log-SNR.
_LARGEST = 5.0


@dataclasses.dataclass(frozen=True)
class AdaptiveSamples(Samples):
    """What `Adaptive` returns: `Samples`, where nfe is the largest number of evaluations of an
    item and times is (evaluations, B), NaN once an item has arrived.

    Arguments:
        evaluations: (B,) int, network evaluations of each item.
        rejections: (B,) int, steps of each item that were tried again with a shorter one.
    """

    evaluations: np.ndarray
    rejections: np.ndarray


@dataclasses.dataclass(frozen=True)
class Adaptive(Sampler):
    """A Runge-Kutta sampler with embedded error, one step size an item.

    Arguments:
        steps: the most evaluations that an item may take, >= 10.
        order: 5 for Dormand-Prince 5(4), six evaluations a step; 3 for Bogacki-Shampine 3(2),
            three, the better one at loose tolerances.
        rtol: relative tolerance of a step, > 0.
        atol: absolute tolerance of a step, > 0, in units of the state over sqrt(alpha^2 + sigma^2);
            at the data end, of the data.
        start: the first time; the latest start of the leaves' spans when None, moved to log-SNR -5
            when the kind that is integrated cannot be had there from what the network predicts.
        stop: the last time; the earliest stop of the spans when None, moved to 5 likewise.
        kind: "angular", where leaves without it take their velocity, or "velocity" for all.
        final: "data" returns the data prediction at the last time, one evaluation more; None
            returns the state at the last time.

    Raises:
        ValueError: for settings out of range.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> denoiser = Denoiser(lambda x, t, condition: x, GaussianPath(CondOT()), "velocity")
        >>> samples = Adaptive(rtol=1e-6, atol=1e-6)(denoiser, start=torch.ones(2, 1).double())
        >>> [round(float(value), 4) for value in samples.state]
        [2.7183, 2.7183]

    References:
        | A family of embedded Runge-Kutta formulae (Dormand, Prince, 1980)
        | A 3(2) pair of Runge-Kutta formulas (Bogacki, Shampine, 1989)
    """

    steps: int = 1000
    order: int = 5
    rtol: float = 1e-4
    atol: float = 1e-4
    start: float | None = None
    stop: float | None = None
    kind: str = "angular"
    final: str | None = None

    def __post_init__(self) -> None:
        whole("steps, the most evaluations of an item,", self.steps, 10)
        if self.order not in PAIRS:
            raise ValueError(f"order must be 3 or 5, got {self.order!r}")
        if not (0 < self.rtol < 1 and 0 < self.atol < math.inf):
            raise ValueError(
                f"expected 0 < rtol < 1 and atol > 0, got rtol={self.rtol}, atol={self.atol}"
            )
        if self.kind not in ("angular", "velocity"):
            raise ValueError(f"kind must be 'angular' or 'velocity', got {self.kind!r}")
        if self.final not in (None, "data"):
            raise ValueError(f"final must be None or 'data', got {self.final!r}")

    def plan(self, paths: Any, times: Any = None) -> Any:
        """There is none: the steps depend on the items. Call the sampler.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "an adaptive sampler has no plan ahead, its steps depend on the samples: call it, or "
            "take a sampler of fixed steps such as sci.samplers.abm"
        )

    def __call__(
        self,
        denoiser: Any,
        start: Any = None,
        like: Any = None,
        condition: Any = None,
        noise: Any = None,
        seed: int = 0,
        times: Any = None,
        progress: bool = False,
        callback: Callable[[Carry], Carry | None] | None = None,
        checkpoint: bool = False,
    ) -> AdaptiveSamples:
        """Sample; arguments as for `Sampler.__call__`, but for these.

        Arguments:
            times: the two ends, (2,) or (2, B), in place of the sampler's.
            callback: called after each round of steps with the carry of the items that are under
                way, each at its own time; `carry.rows` says which they are. The state that it
                returns goes on, at the cost of one evaluation an item.

        Raises:
            ValueError: for bad ends, or a leaf that no adaptive method can follow; names it.
            FloatingPointError: when the network's values are not finite; names item, time and leaf.
            RuntimeError: when an item needs more evaluations than `steps`; names item and time.
        """
        paths, structure, leaves, noise, condition = self._prepare(
            denoiser, start, like, condition, noise, seed
        )
        names = [name or "state" for name in structure.names]
        call = recomputing(denoiser) if checkpoint else denoiser
        coordinates = self._coordinates(names, paths)
        ends = self._ends(denoiser, structure, names, coordinates, times, len(leaves[0]))
        flow = Flow(call, structure, coordinates, ends.to(leaves[0].device))
        run = Run(self, flow, names, leaves, condition, noise, mask_for(denoiser, condition))
        bar = progress_bar(len(leaves[0])) if progress else None
        while len(run.rows):
            arrived = run.advance()
            if callback is not None and len(run.rows):
                run.heed(callback)
            if bar is not None:
                bar.update(arrived)
        if bar is not None:
            bar.close()
        state, times = run.result()
        cost = getattr(denoiser, "evaluations", 1)
        evaluations = cost * run.evaluations
        most = int(evaluations.max(initial=0))
        return AdaptiveSamples(state, most, times, self, evaluations, run.rejections)

    def _coordinates(self, names: list[str], paths: list[Path]) -> list[Coordinate]:
        """The coordinate of each leaf, checked."""
        found = []
        for name, path in zip(names, paths, strict=True):
            if "velocity" not in path.heads or curved(path):
                raise ValueError(
                    f"leaf '{name}' cannot follow an adaptive method: its path "
                    f"{type(path).__name__} on {path.space!r} is no flow of a linear space; use "
                    "sci.samplers.Multistep"
                )
            if self.final is not None and "data" not in path.heads:
                raise ValueError(
                    f"leaf '{name}' cannot follow final='data': its path {type(path).__name__} has "
                    f"{', '.join(sorted(path.heads))}"
                )
            angular = self.kind == "angular" and "angular" in path.heads
            found.append(Coordinate(path, "angular" if angular else "velocity"))
        return found

    def _ends(
        self,
        denoiser: Any,
        structure: tree.Structure,
        names: list[str],
        leaves: list[Coordinate],
        times: Any,
        batch: int,
    ) -> Tensor:
        """(2, B) float64: where each item starts and stops."""
        kinds = ["data"] * len(leaves)
        if hasattr(denoiser, "layout") and not isinstance(denoiser, Wrapped):
            kinds = denoiser.layout(structure)[1]
        given = (self.start, self.stop) if times is None else (0.0, 1.0)
        found: list[Any] = list(given)
        if times is not None:
            table = torch.as_tensor(times, dtype=torch.float64).detach().cpu()
            if table.shape not in ((2,), (2, batch)):
                raise ValueError(
                    f"times have shape {tuple(table.shape)}: an adaptive sampler takes the two "
                    f"ends, (2,) or (2, {batch})"
                )
            found = list(table)
        else:
            if self.start is None:
                found[0] = max(leaf.path.span[0] for leaf in leaves)
            if self.stop is None:
                found[1] = min(leaf.path.span[1] for leaf in leaves)
        for place, bound in enumerate((-_LARGEST, _LARGEST)):
            for name, leaf, kind in zip(names, leaves, kinds, strict=True):
                if _finite(leaf, kind, found[place]):
                    continue
                if given[place] is not None:
                    raise ValueError(
                        f"leaf '{name}' cannot be integrated from or to t = {found[place]}: there "
                        f"its '{leaf.kind}' cannot be had from the '{kind}' that is predicted; "
                        "give ends inside (0, 1)"
                    )
                found[place] = leaf.path.schedule.time(bound)
        ends = torch.stack([torch.as_tensor(t, dtype=torch.float64).expand(batch) for t in found])
        if not bool(((ends >= 0) & (ends <= 1)).all() and (ends[0] < ends[1]).all()):
            raise ValueError(
                f"expected 0 <= start < stop <= 1 for every item, got {found[0]} and {found[1]}"
            )
        return ends


def _finite(leaf: Coordinate, kind: str, t: Any) -> bool:
    """Whether the kind that is integrated can be had from another one at these times."""
    if kind == leaf.kind:
        return True
    found = leaf.path.coefficients(kind, leaf.kind, torch.as_tensor(t, dtype=torch.float64))
    return all(bool(torch.isfinite(values).all()) for values in found)
