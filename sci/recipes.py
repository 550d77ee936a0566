"""Recipes: TOML files that say what to train, on what, and how; and overrides of them.

A recipe has the tables ``[recipe]`` (name, model, seed), ``[data]`` (what ``Model.prepare`` takes),
``[model]`` (fields of the model's Config), ``[training]``, ``[optimiser]``, and, free in form,
``[evaluation]`` and ``[budget]``. An override is ``table.key=value``, the value read as TOML.
"""

from __future__ import annotations

import copy
import math
import os
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

from sci import registry
from sci.fields import build, parse, plain, unknown

__all__ = ["CheckpointEvery", "LearningRate", "Optimiser", "Recipe", "Training"]


@dataclass(frozen=True)
class LearningRate:
    r"""The learning rate's course, as a factor of its peak.

    With s the step, w the warm-up, S all steps, h the hold and f the final factor, the warm-up is
    (s + 1) / w for s < w; then, with u = (s - b) / (S - b) and b = max(w, h S),

    | kind | factor at s ≥ b (before b it is 1) |
    |---|---|
    | ``constant`` | 1 |
    | ``cosine`` | f + (1 - f) (1 + cos(π u)) / 2 |
    | ``linear`` | 1 - (1 - f) u |
    | ``exponential`` | max(γ^((s - b) / every), f) |

    Arguments:
        kind: One of the four.
        warmup: Steps of linear warm-up.
        hold: Fraction of all steps, in [0, 1], at the peak before the descent begins.
        final: Factor at the end, in [0, 1].
        gamma: Factor γ of ``exponential`` for every ``every`` steps.
        every: Steps a factor γ.
    """

    kind: Literal["constant", "cosine", "linear", "exponential"] = "constant"
    warmup: int = 0
    hold: float = 0.0
    final: float = 0.0
    gamma: float = 0.999
    every: int = 1

    def __post_init__(self) -> None:
        if self.warmup < 0 or self.every < 1:
            raise ValueError(
                f"schedule: warmup is {self.warmup}, every {self.every}; expected ≥ 0 and ≥ 1"
            )
        for name in ("hold", "final", "gamma"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(
                    f"schedule: {name} is {getattr(self, name)}; expected a number in [0, 1]"
                )

    def factor(self, step: int, steps: int) -> float:
        """The factor at ``step`` of ``steps``."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        begin = max(self.warmup, round(self.hold * steps))
        if step < begin or self.kind == "constant":
            return 1.0
        if self.kind == "exponential":
            return max(self.gamma ** ((step - begin) / self.every), self.final)
        progress = min((step - begin) / max(steps - begin, 1), 1.0)
        if self.kind == "linear":
            return 1.0 - (1.0 - self.final) * progress
        return self.final + (1.0 - self.final) * 0.5 * (1.0 + math.cos(math.pi * progress))


@dataclass(frozen=True)
class Optimiser:
    """The optimiser: ``adamw``, ``adam`` or ``sgd``.

    Arguments:
        name: Which.
        lr: Peak learning rate, above 0.
        betas: Of Adam and AdamW.
        eps: Of Adam and AdamW.
        momentum: Of SGD.
        weight_decay: At least 0; decoupled for AdamW, added to the gradient for the others.
        clip: Largest gradient norm of a parameter group; None does not clip.
        schedule: The learning rate's course.
    """

    name: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    momentum: float = 0.9
    weight_decay: float = 0.0
    clip: float | None = None
    schedule: LearningRate = field(default_factory=LearningRate)

    def __post_init__(self) -> None:
        if not self.lr > 0:
            raise ValueError(f"[optimiser] lr is {self.lr}; expected a number above 0")
        if self.clip is not None and not self.clip > 0:
            raise ValueError(f"[optimiser] clip is {self.clip}; expected a number above 0, or none")


@dataclass(frozen=True)
class CheckpointEvery:
    """A checkpoint is written every so many steps and every so many minutes, whichever comes first."""

    steps: int = 1000
    minutes: float = 5.0

    def __post_init__(self) -> None:
        if self.steps < 1 or not self.minutes > 0:
            raise ValueError(f"checkpoint_every is {self}; expected positive steps and minutes")


@dataclass(frozen=True)
class Training:
    """How long, how much at once, how exactly.

    Arguments:
        steps: Optimisation steps in all.
        batch_size: Items a step, over all devices together.
        precision: ``"32-true"``, or ``"bf16-mixed"`` (autocast; weights and moments stay float32).
        compile: Whether to call the model's ``compile_networks``.
        ema_decay: Decay d of the averaged weights, min(d, (1 + n) / (10 + n)) after n steps; 0 averages nothing.
        checkpoint_every: Steps and minutes between checkpoints.
        log_every: Steps between lines of ``log.csv``.
        validate_every: Steps between validations on the averaged weights; 0 never validates.
        validation_items: Most items a validation.
        max_minutes: Stops this call, at a checkpoint, after so many minutes by the clock; a rerun goes on.
        devices: Devices of this machine to train on (torchrun and SLURM decide for themselves).
        nodes: Machines.
        logger: Beside ``log.csv``: ``"tensorboard"`` or ``"wandb"``.
    """

    steps: int
    batch_size: int
    precision: Literal["32-true", "bf16-mixed"] = "32-true"
    compile: bool = False
    ema_decay: float = 0.999
    checkpoint_every: CheckpointEvery = field(default_factory=CheckpointEvery)
    log_every: int = 50
    validate_every: int = 1000
    validation_items: int = 2048
    max_minutes: float | None = None
    devices: int = 1
    nodes: int = 1
    logger: Literal["tensorboard", "wandb"] | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "log_every", "validation_items", "devices", "nodes"):
            if getattr(self, name) < 1:
                raise ValueError(f"[training] {name} is {getattr(self, name)}; expected at least 1")
        if self.validate_every < 0:
            raise ValueError(
                f"[training] validate_every is {self.validate_every}; expected 0 or more"
            )
        if not 0 <= self.ema_decay < 1:
            raise ValueError(
                f"[training] ema_decay is {self.ema_decay}; expected a number in [0, 1)"
            )
        if self.max_minutes is not None and not self.max_minutes > 0:
            raise ValueError(
                f"[training] max_minutes is {self.max_minutes}; expected a number above 0"
            )


# These change how a run proceeds, not which arrays it ends with, so a rerun may change them.
_FREE = {
    "checkpoint_every",
    "log_every",
    "validate_every",
    "validation_items",
    "max_minutes",
    "devices",
    "nodes",
    "logger",
}
_TABLES = ("recipe", "data", "model", "training", "optimiser", "evaluation", "budget")


@dataclass(frozen=True)
class Recipe:
    """A recipe, read and checked.

    Arguments:
        name: The recipe's name.
        model: The model's short class name.
        seed: The training seed.
        data: What ``Model.prepare`` takes.
        config: The ``[model]`` table: fields of the model's Config.
        training: The ``[training]`` table.
        optimiser: The ``[optimiser]`` table.
        evaluation: How the trained model is judged; free in form.
        budget: What the training costs; free in form.
        overridden: Names of the Config fields that the caller set by hand.
    """

    name: str
    model: str
    seed: int
    data: dict[str, Any]
    config: dict[str, Any]
    training: Training
    optimiser: Optimiser
    evaluation: dict[str, Any] = field(default_factory=dict)
    budget: dict[str, Any] = field(default_factory=dict)
    overridden: tuple[str, ...] = ()

    @classmethod
    def read(
        cls, name: str | os.PathLike[str], overrides: Iterable[str] = (), seed: int | None = None
    ) -> Recipe:
        """Reads a recipe.

        Arguments:
            name: A path ending in ``.toml``, a model's name, or a recipe's name.
            overrides: Settings like ``"optimiser.lr=2e-3"``.
            seed: The training seed, in place of the recipe's.

        Raises:
            KeyError: If there is no such recipe; close names are listed.
            ValueError: If the file is not valid TOML, or for an unknown key or a bad value.
        """
        path = registry.find_recipe(os.fspath(name))
        try:
            tables = tomllib.loads(path.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML: {error}") from error
        return cls.from_tables(tables, overrides, seed, str(path))

    @classmethod
    def from_tables(
        cls,
        tables: dict[str, Any],
        overrides: Iterable[str] = (),
        seed: int | None = None,
        source: str = "recipe",
    ) -> Recipe:
        """Makes a recipe from its tables, as TOML gives them; see :meth:`read`."""
        tables = copy.deepcopy(tables)
        for table, content in tables.items():
            if table not in _TABLES:
                raise ValueError(f"{source}: {unknown('table', table, _TABLES)}")
            if not isinstance(content, dict):
                raise ValueError(f"{source}: {table} is {content!r}; expected a table [{table}]")
        overridden = [_override(tables, assignment) for assignment in overrides]
        head = build(_Head, tables.get("recipe", {}), f"[recipe] of {source}")
        return cls(
            name=head.name,
            model=head.model,
            seed=head.seed if seed is None else seed,
            data=tables.get("data", {}),
            config=tables.get("model", {}),
            training=build(Training, tables.get("training", {}), f"[training] of {source}"),
            optimiser=build(Optimiser, tables.get("optimiser", {}), f"[optimiser] of {source}"),
            evaluation=tables.get("evaluation", {}),
            budget=tables.get("budget", {}),
            overridden=tuple(keys[1] for keys in overridden if keys[0] == "model"),
        )

    def tables(self) -> dict[str, Any]:
        """The recipe as JSON-able tables, every default filled in."""
        return {
            "recipe": {"name": self.name, "model": self.model, "seed": self.seed},
            "data": plain(self.data),
            "model": plain(self.config),
            "training": plain(self.training),
            "optimiser": plain(self.optimiser),
            "evaluation": plain(self.evaluation),
            "budget": plain(self.budget),
        }

    def identity(self) -> dict[str, Any]:
        """The tables without what does not change the trained arrays; a rerun must agree on these."""
        tables = {k: v for k, v in self.tables().items() if k not in ("evaluation", "budget")}
        tables["training"] = {k: v for k, v in tables["training"].items() if k not in _FREE}
        return tables

    def rate(self) -> Callable[[int], float]:
        """The learning rate's factor as a function of the step."""
        return lambda step: self.optimiser.schedule.factor(step, self.training.steps)


@dataclass(frozen=True)
class _Head:
    name: str
    model: str
    seed: int = 0


def _override(tables: dict[str, Any], assignment: str) -> list[str]:
    keys, value = parse(assignment)
    if len(keys) < 2 or keys[0] not in _TABLES:
        tables_known = (f"{table}." for table in _TABLES)
        raise ValueError(
            f"cannot apply {assignment!r}: {unknown('table', keys[0] + '.', tables_known)}; "
            "settings look like optimiser.lr=2e-3"
        )
    place = tables.setdefault(keys[0], {})
    if keys[0] == "data" and keys[1] not in place:
        raise ValueError(
            f"cannot apply {assignment!r}: {unknown('key of [data] in this recipe', keys[1], place)}"
        )
    for key in keys[1:-1]:
        place = place.setdefault(key, {})
        if not isinstance(place, dict):
            raise ValueError(f"cannot apply {assignment!r}: {key!r} is a value, not a table")
    place[keys[-1]] = value
    return keys
