"""What a fit leaves: a sampler, and how good it was on items that the fit has not seen."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from sci.samplers import Multistep, grids

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["SETTINGS", "Tuned", "table"]

# The fields of a `Multistep` that a fitted sampler keeps, besides its steps and its times.
SETTINGS = (
    "kind",
    "order",
    "corrector",
    "variable",
    "rule",
    "final",
    "corrected_start",
    "compensation",
    "max_ratio",
    "leaves",
)


@dataclasses.dataclass(frozen=True)
class Tuned:
    """A fitted sampler, and how good it is on items that the fit has not seen.

    Errors are in units of the spread of the teacher's samples: 1 is as far as another sample, and
    those of the same problem can be compared.

    Arguments:
        nfe: network evaluations an item.
        times: increasing, in [0, 1]: nfe of them when `final` is "data", else nfe + 1.
        kind, order, corrector: of each evaluation's step, see `sci.samplers.Multistep`.
        variable, rule, final, corrected_start, compensation, max_ratio, leaves: as in `Multistep`.
        error, mean_error, median_error: over the held-out items, the root of the mean square, the
            mean and the median of the distance.
        default_error, default_mean_error, default_median_error: of the sampler that stood before.
        teacher: evaluations of the fine trajectory.
        teacher_error: root mean square between it and one of half as many evaluations.
        measure: the objective of the fit.
        items, held_out: how many items the fit saw, and how many judged it.
        evaluations: network evaluations an item that the fit took, without the teacher's.
        seed: of the noise and the search.
        improved: whether the fit was better on the held-out items; else these are the settings that
            stood before.
        interrupted: whether the search was stopped before its end.
        seconds, default_seconds: for the held-out items, with the fitted sampler and the one before.
        version: of the library.
        request: what the model was asked for, when the fit was to a model.
    """

    nfe: int
    times: tuple[float, ...]
    kind: tuple[str, ...]
    order: tuple[int, ...]
    corrector: tuple[int, ...]
    variable: str
    rule: str
    final: str | None
    corrected_start: bool
    compensation: tuple[float, ...] | None
    max_ratio: float | None
    leaves: dict[str, Any] | None
    error: float
    mean_error: float
    median_error: float
    default_error: float
    default_mean_error: float
    default_median_error: float
    teacher: int
    teacher_error: float
    measure: str
    items: int
    held_out: int
    evaluations: int
    seed: int
    improved: bool
    interrupted: bool
    version: str
    seconds: float = dataclasses.field(default=0.0, compare=False)
    default_seconds: float = dataclasses.field(default=0.0, compare=False)
    request: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        wanted = self.nfe + (self.final is None)
        if len(self.times) != wanted:
            raise ValueError(
                f"a sampler of {self.nfe} evaluations with final={self.final!r} has {wanted} "
                f"times, got {len(self.times)}"
            )
        self.sampler()

    def sampler(self) -> Multistep:
        """The sampler.

        Raises:
            ValueError: when the settings make none.
        """
        settings = {name: getattr(self, name) for name in SETTINGS}
        return Multistep(steps=self.nfe, grid=grids.from_times(self.times), **settings)


def table(found: Sequence[Tuned]) -> Table:
    """Held-out errors before and after, for a console (`rich`)."""
    from rich.table import Table

    out = Table(box=None, header_style="bold", pad_edge=False)
    out.add_column("sampler", overflow="fold")
    for name in ("evaluations", "RMS error", "mean", "median", "ms/item"):
        out.add_column(name, justify="right")

    def add(name: str, evaluations: int, *values: float) -> None:
        out.add_row(name, str(evaluations), *(f"{value:.3g}" for value in values))

    for tuned in found:
        unit = 1000.0 / tuned.held_out
        errors = tuned.default_error, tuned.default_mean_error, tuned.default_median_error
        add("before", tuned.nfe, *errors, unit * tuned.default_seconds)
        errors = tuned.error, tuned.mean_error, tuned.median_error
        name = "fitted" if tuned.improved else "fitted: no better"
        add(name, tuned.nfe, *errors, unit * tuned.seconds)
    last = found[-1]
    add("fine trajectory", last.teacher, last.teacher_error)
    out.caption = (
        f"On {last.held_out} items that the fit has not seen, seed {last.seed}; "
        "1 is the distance of another sample."
    )
    return out
