"""The measurement and its tables: geometric means over the problems, with their spread, and ratios to ours."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch

from .mixtures import Problems, errors

__all__ = ["Cell", "Results", "markdown", "measure", "ratios"]

STATISTICS = ("median", "RMS")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one budget on the problems of one dimension.

    Arguments:
        nfe: evaluations that were made.
        values: for each statistic, one error a problem.
    """

    nfe: int
    values: dict[str, np.ndarray]

    def mean(self, statistic: str) -> float:
        """The geometric mean over the problems."""
        return float(np.exp(np.log(self.values[statistic]).mean()))

    def spread(self, statistic: str) -> float:
        """The factor that one standard deviation of the logarithm makes."""
        return float(np.exp(np.log(self.values[statistic]).std(ddof=1)))


# (row, dimension, budget) -> what was measured
Results = dict[tuple[str, int, int], Cell]


def measure(
    rows: dict[str, Callable[..., Any]],
    problems: dict[int, Problems],
    budgets: Iterable[int],
    report: Callable[[str], None],
) -> Results:
    """Runs every row at every budget in every dimension; what a row cannot do is left out."""
    found: Results = {}
    for name, run in rows.items():
        for dimension, problem in problems.items():
            for budget in budgets:
                problem.nfe = 0
                try:
                    with torch.no_grad():
                        samples, level = run(problem, budget)
                except (ValueError, FloatingPointError) as error:
                    report(f"{name}, {budget} evaluations: {error}")
                    continue
                nfe = problem.nfe
                if not bool(torch.isfinite(samples).all()):
                    report(f"{name}, {budget} evaluations: not finite")
                    continue
                values = errors(problem, samples, problem.exact(*level))
                cell = Cell(nfe, dict(zip(STATISTICS, values, strict=True)))
                found[name, dimension, budget] = cell
        report(name)
    return found


def markdown(
    results: Results, names: Iterable[str], dimension: int, statistic: str, ours: str
) -> str:
    """One table: columns by budget, the best in bold, the evaluations made in brackets where they are fewer."""
    budgets = sorted({budget for _, _, budget in results})
    best = {
        budget: min(
            cell.mean(statistic)
            for (_, size, at), cell in results.items()
            if size == dimension and at == budget
        )
        for budget in budgets
    }
    lines = [
        "| | " + " | ".join(str(budget) for budget in budgets) + " | spread at 10 |",
        "| --- |" + " ---: |" * (len(budgets) + 1),
    ]
    for name in names:
        cells = [results.get((name, dimension, budget)) for budget in budgets]
        if not any(cells):
            continue
        texts = [
            "-" if cell is None else _text(cell, statistic, budget, best[budget])
            for cell, budget in zip(cells, budgets, strict=True)
        ]
        ten = results.get((name, dimension, 10))
        spread = "-" if ten is None else f"x{ten.spread(statistic):.1f}"
        label = f"**{name}**" if name == ours else name
        lines.append(f"| {label} | " + " | ".join([*texts, spread]) + " |")
    return "\n".join(lines) + "\n"


def _text(cell: Cell, statistic: str, budget: int, best: float) -> str:
    value = cell.mean(statistic)
    text = short(value)
    if value == best:
        text = f"**{text}**"
    return text if cell.nfe == budget else f"{text} ({cell.nfe})"


def short(value: float) -> str:
    """Two digits, without an exponent where four zeros do."""
    if not math.isfinite(value):
        return "-"
    return f"{value:.1e}" if value < 1e-4 or value >= 1000 else f"{value:.2g}"


def ratios(results: Results, peers: list[str], ours: str, named: list[str]) -> str:
    """How many times the error of some peers, and of the best of all, is ours: one row each."""
    budgets = sorted({budget for _, _, budget in results})
    lines = [
        "| peer / ours | | " + " | ".join(str(budget) for budget in budgets) + " |",
        "| --- | --- |" + " ---: |" * len(budgets),
    ]
    for dimension in sorted({size for _, size, _ in results}):
        for statistic in STATISTICS:
            where = f"{dimension}-D, {statistic}"
            for name in named:
                cells = [
                    _ratio(results, name, ours, dimension, budget, statistic) for budget in budgets
                ]
                lines.append(f"| {name} | {where} | " + " | ".join(cells) + " |")
            cells = []
            for budget in budgets:
                there = [peer for peer in peers if (peer, dimension, budget) in results]
                best = min(there, key=lambda peer: results[peer, dimension, budget].mean(statistic))
                text = _ratio(results, best, ours, dimension, budget, statistic)
                cells.append(f"{text} {best}")
            lines.append(f"| best of all peers | {where} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _ratio(
    results: Results, peer: str, ours: str, dimension: int, budget: int, statistic: str
) -> str:
    """The quotient of the geometric means, peer / ours."""
    first = results.get((peer, dimension, budget))
    second = results.get((ours, dimension, budget))
    if first is None or second is None:
        return "-"
    ratio = first.mean(statistic) / second.mean(statistic)
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"
