"""The kinetic-optimal path for given data, from a measured table.

How costly a path is depends on the data through one curve: the share of their energy that the best
prediction keeps at each noise level,

    energy(theta) = E |data prediction|^2 / E |data|^2,    theta = atan(m alpha / sigma),

with m^2 the mean square of an element. Any trained denoiser gives it; then the path of least
kinetic energy is a straight chord in a warped plane (`Tabulated.kinetic_optimal`), and
`sci.denoiser.Rescheduled` samples on it:

    schedule = sci.kinetic.optimal(denoiser, data)
    samples = sampler(sci.denoiser.Rescheduled(denoiser, schedule), like=data)

The best prediction is an expectation, so E |data|^2 = E |prediction|^2 + E |data - prediction|^2.
The last term is what is measured: it is small, with a small relative error, exactly where the
first two are nearly the same.

References:
    | On kinetic optimal probability paths for generative models (Shaul et al., 2023)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci import tree
from sci.paths import Path
from sci.schedules import Tabulated

__all__ = ["EnergyTable", "measure", "optimal"]

# The least speed in the warped plane, squared: keeps noise in the table from making it stand still.
_SLOWEST = 1e-3


@dataclasses.dataclass(frozen=True)
class EnergyTable:
    """The energy of the data prediction at each angle.

    Arguments:
        angles: (n,) theta from 0 (noise) to pi / 2 (data).
        energy: (n,) in [0, 1].
        spread: (n,) standard errors of the energy; nan where it is extrapolated.
        scale: m, the root of the mean square of an element of the data.
        items: how many items were measured.
    """

    angles: np.ndarray
    energy: np.ndarray
    spread: np.ndarray
    scale: float
    items: int

    def schedule(self) -> Tabulated:
        """The kinetic-optimal schedule of this table."""
        # 1 - energy is at most cos^2 theta, the loss of the best linear prediction.
        most = (1.0 - _SLOWEST) * np.cos(self.angles) ** 2
        energy = 1.0 - np.minimum(1.0 - self.energy, most)
        return Tabulated.kinetic_optimal(self.angles, energy, self.scale)


@torch.no_grad()
def measure(
    denoiser: Any,
    data: Any,
    condition: Any = None,
    leaf: str | None = None,
    angles: int = 65,
    seed: int = 0,
    batch: int = 1024,
) -> EnergyTable:
    """Measure the energy of a denoiser's data prediction along its path.

    Arguments:
        denoiser: a `Denoiser`, or a wrapper of one.
        data: a tree of clean data, each leaf (items, ...); some hundreds of items suffice.
        condition: a tree with the same first axis, or None.
        leaf: which leaf is measured, by name; all together when None, on one common schedule.
        angles: how many, >= 5, equally far apart from 0 to pi / 2. Those beyond the trained span
            share the relative loss (1 - energy) / cos^2 theta of the nearest one inside.
        seed: of the noise.
        batch: items an evaluation.

    Returns:
        The table, over present elements only where the denoiser has a mask.

    Raises:
        ValueError: for fewer than five angles, data without energy, or leaves on different
            schedules when no leaf is named.
        KeyError: for a leaf that the data do not have.
        TypeError: for a leaf whose path is not linear.
        FloatingPointError: when a prediction is not finite; names the time.
    """
    if angles < 5:
        raise ValueError(f"measure: expected five or more angles, got {angles}")
    leaves, structure = tree.flatten(data)
    items = tree.batch_size(data)
    paths = tree.spread(denoiser.paths, structure, Path, "the denoiser's tree of paths")
    chosen = _chosen(structure, paths, leaf)
    encoded = denoiser.encode(condition)
    mask = denoiser.mask_of(encoded)
    clean = [path.project(x, mask) for path, x in zip(paths, leaves, strict=True)]
    whole, size = torch.zeros(items, dtype=torch.float64), 0.0
    for place in chosen:
        space, x = paths[place].space, clean[place]
        whole += space.inner(x, x, mask).cpu()
        size += float(space.dimension(x, mask).sum())
    mean_square = float(whole.sum()) / max(size, 1.0)
    if not 0 < mean_square < np.inf:
        raise ValueError(f"measure: the data have the mean square {mean_square}")
    scale = mean_square**0.5
    theta = np.linspace(0.0, 0.5 * np.pi, angles)
    schedule = paths[chosen[0]].schedule
    with np.errstate(divide="ignore", over="ignore"):
        log_snr = np.log(np.tan(theta)) - np.log(scale)
    log_snr[-1] = np.inf
    low, high = (schedule.log_snr(end) for end in paths[chosen[0]].span)
    # At the very ends there is nothing to measure, or nothing to lose.
    inside = (log_snr > low) & (log_snr < high) & np.isfinite(log_snr)
    if not inside.any():
        raise ValueError(f"measure: none of the {angles} angles lies on the span: ask for more")
    generator = torch.Generator().manual_seed(seed)
    loss, error = np.full(angles, np.nan), np.full(angles, np.nan)
    for place in np.nonzero(inside)[0].tolist():
        t = float(schedule.time(float(log_snr[place])))
        lost = []
        for start in range(0, items, batch):
            rows = slice(start, start + batch)
            lost.append(
                _lost(denoiser, structure, paths, chosen, clean, encoded, rows, t, generator)
            )
        each = torch.cat(lost)
        loss[place] = share = float(each.sum() / whole.sum())
        if not np.isfinite(share):
            raise FloatingPointError(f"measure: the data prediction is not finite at t = {t:.6g}")
        gap = each - share * whole
        error[place] = float(gap.std() / whole.mean()) / items**0.5 if items > 1 else np.nan
    # What the best linear prediction loses is cos^2 theta: relative to it the curve is flat.
    squared = np.cos(theta) ** 2
    relative = np.interp(theta, theta[inside], loss[inside] / squared[inside])
    energy = np.clip(1.0 - relative * squared, 0.0, 1.0)
    return EnergyTable(theta, energy, error, scale, items)


def optimal(denoiser: Any, data: Any, condition: Any = None, **options: Any) -> Tabulated:
    """The kinetic-optimal schedule for some data: measured, and solved for.

    Arguments:
        denoiser: a `Denoiser`, or a wrapper of one.
        data: a tree of clean data, each leaf (items, ...).
        condition: a tree with the same first axis, or None.
        options: as for `measure`.

    Example:
        >>> import torch
        >>> from sci.denoiser import Denoiser
        >>> from sci.paths import GaussianPath
        >>> from sci.schedules import CondOT
        >>> point = Denoiser(lambda x, t, condition: 0 * x + 1, GaussianPath(CondOT()))
        >>> schedule = optimal(point, torch.ones(8, 2))
        >>> round(schedule.alpha(0.25), 3), round(schedule.sigma(0.25), 3)
        (0.25, 0.75)
    """
    return measure(denoiser, data, condition, **options).schedule()


def _chosen(structure: tree.Structure, paths: list[Path], leaf: str | None) -> list[int]:
    """The places of the leaves that are measured."""
    names = [name or "state" for name in structure.names]
    if leaf is not None and leaf not in names:
        raise KeyError(f"no leaf '{leaf}': expected {' or '.join(names)}")
    chosen = list(range(len(names))) if leaf is None else [names.index(leaf)]
    first = paths[chosen[0]]
    probe = np.linspace(*first.span, 9)[1:-1]
    for place in chosen:
        path, name = paths[place], names[place]
        if "difference" not in path.heads:
            raise TypeError(
                f"measure: leaf '{name}' has a {type(path).__name__}, which is not linear: choose "
                "a linear leaf with leaf=..."
            )
        if not np.allclose(path.schedule.log_snr(probe), first.schedule.log_snr(probe)):
            raise ValueError(
                f"measure: the leaves '{names[chosen[0]]}' and '{name}' are on different "
                f"schedules: choose one with leaf='{name}'"
            )
    return chosen


def _lost(
    denoiser: Any,
    structure: tree.Structure,
    paths: list[Path],
    chosen: list[int],
    clean: list[Tensor],
    encoded: Any,
    rows: slice,
    t: float,
    generator: torch.Generator,
) -> Tensor:
    """|data - prediction|^2 of some items, (B,) float64 on the CPU."""
    condition = None if encoded is None else tree.index(encoded, rows)
    mask = denoiser.mask_of(condition)
    part = [x[rows] for x in clean]
    state = structure.unflatten(
        [
            path.corrupt(x, path.random(x, mask, generator), t)
            for path, x in zip(paths, part, strict=True)
        ]
    )
    predictions = tree.leaves(denoiser(state, t, condition, to="data"))
    total = torch.zeros(len(part[0]), dtype=torch.float64)
    for place in chosen:
        gap = predictions[place] - part[place]
        total += paths[place].space.inner(gap, gap, mask).cpu()
    return total
