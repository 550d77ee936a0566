"""A training session: what happens around the steps. Log, validation, checkpoints, and when to stop.

It knows nothing of who calls it: :mod:`sci.training` runs it under Lightning's Trainer.
"""

from __future__ import annotations

import os
import platform
import shutil
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from sci.model import Model, TrainingData
from sci.optimisation import Batches, Optimisation
from sci.recipes import Recipe
from sci.runs import RunFolder

__all__ = ["Run", "Session"]


@dataclass(frozen=True)
class Run:
    """Where a training run stands.

    Arguments:
        folder: The run's folder.
        step: Steps done.
        finished: Whether these are all.
        wall_minutes, cpu_minutes: Its cost so far, earlier calls included; CPU minutes are those of this
            process and its children.
        losses: The last validation losses, else the last training losses.
    """

    folder: Path
    step: int
    finished: bool
    wall_minutes: float
    cpu_minutes: float
    losses: dict[str, float]

    @property
    def model(self) -> Model:
        """The trained model, with the averaged weights."""
        return Model.load(self.folder / "model")


class Session:
    """One call's share of a run.

    Arguments:
        recipe: What is trained, and how.
        folder: The run's folder.
        model: The model, initialised.
        data: The training data.
        validation: Held-out data, or None.
        checkpoint: Step and state to continue from, or None.
    """

    start_name: str | None = None

    def __init__(
        self,
        recipe: Recipe,
        folder: RunFolder,
        model: Model,
        data: TrainingData,
        validation: TrainingData | None,
        checkpoint: tuple[int, dict[str, Any]] | None,
    ) -> None:
        self.recipe, self.folder, self.model = recipe, folder, model
        self.data, self.validation, self.checkpoint = data, validation, checkpoint
        self.step = 0 if checkpoint is None else checkpoint[0]
        self.saved = -1 if checkpoint is None else checkpoint[0]
        self.rank, self.world = 0, 1
        self.stopping = self.interrupted = False
        self.loggers: list[Any] = []
        self.last: dict[str, float] = {}
        self.sums: dict[str, torch.Tensor] = {}
        self.summed: dict[str, int] = {}
        self.spent = (0.0, 0.0)
        self.began = self.checkpointed = time.monotonic()
        self.cpu_began = _cpu_seconds()
        self.device_name = "cpu"

    def open(self, rank: int, world: int, progress: bool) -> None:
        """Begins on the device: optimisers, checkpoint, log, progress bar."""
        from tqdm.auto import tqdm

        self.rank, self.world = rank, world
        training = self.recipe.training
        self.batches = Batches(len(self.data), training.batch_size, self.recipe.seed, rank, world)
        self.optimisation = Optimisation(self.model, self.recipe, rank, world)
        if self.checkpoint is not None:
            self.optimisation.restore(self.checkpoint[1])
            self.checkpoint = None
        if training.compile and self.model.device.type == "cpu" and not _has_compiler():
            warnings.warn(
                "there is no C++ compiler (g++ or clang++, or $CXX), so the networks run uncompiled, about a "
                "quarter slower; training.compile=false says so without this warning",
                stacklevel=2,
            )
        elif training.compile:
            keys = list(self.model.state_dict())
            self.model.compile_networks()
            if list(self.model.state_dict()) != keys:
                raise RuntimeError(
                    f"{type(self.model).__name__}.compile_networks changed the names of weights"
                )
        self.device_name = _device_name(self.model.device)
        self.model.train()
        if rank == 0:
            self.spent = self.folder.log.resume(self.step)
        self.bar = tqdm(
            total=training.steps,
            initial=self.step,
            unit="step",
            desc=self.recipe.name,
            disable=not progress or rank != 0,
            mininterval=0.5 if sys.stderr.isatty() else 30.0,
            dynamic_ncols=True,
        )

    def steps(self) -> Iterator[int]:
        """The steps still to do, until it is time to stop."""
        for step in range(self.step, self.recipe.training.steps):
            if self.stopping:
                return
            yield step

    def advance(self, step: int) -> None:
        """Does one step and what is due after it."""
        training = self.recipe.training
        report = self.optimisation.step(self.data.collate(self.batches.indices(step)), step)
        self.step = done = step + 1
        for name, value in report.items():
            self.sums[name] = self.sums[name] + value if name in self.sums else value.float()
            self.summed[name] = self.summed.get(name, 0) + 1
        last = done == training.steps
        validate = training.validate_every and (done % training.validate_every == 0 or last)
        if done % training.log_every == 0 or validate or last:
            self._log(bool(validate and self.validation is not None))
        self.bar.update()
        due = done % training.checkpoint_every.steps == 0
        due |= time.monotonic() - self.checkpointed > 60 * training.checkpoint_every.minutes
        if due and self.rank == 0:
            self._save_checkpoint()
        self._decide_to_stop()

    def close(self) -> None:
        """Writes the last checkpoint and the model."""
        self.bar.close()
        if self.rank != 0:
            return
        if self.saved != self.step:
            self._save_checkpoint()
        record = self._record()
        with self.optimisation.averaged():
            self.model.save(self.folder.model, card=_card(record), training=record)

    def run(self) -> Run:
        """Where the run stands."""
        wall, cpu = self._cost()
        finished = self.step >= self.recipe.training.steps
        return Run(self.folder.folder, self.step, finished, wall / 60, cpu / 60, self.last)

    def request_stop(self, *_: Any) -> None:
        """Signal handler: stop after this step; a second signal stops at once."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.bar.write(
            "stopping after this step and writing a checkpoint (once more to stop at once)"
        )

    def _log(self, validate: bool) -> None:
        losses = {name: float(total) / self.summed[name] for name, total in self.sums.items()}
        self.sums, self.summed = {}, {}
        for name, value in losses.items():
            if not abs(value) < float("inf"):
                raise FloatingPointError(
                    f"{name} is {value} by step {self.step}; the last checkpoint is of step {max(self.saved, 0)}. "
                    "A smaller optimiser.lr or optimiser.clip may help"
                )
        if self.rank != 0:
            return
        if losses:
            self.last = losses
        row = dict(losses)
        if validate and self.validation is not None:
            held_out = self.optimisation.validate(self.validation, self.step)
            self.last = {f"validation/{name}": value for name, value in held_out.items()}
            row |= self.last
        wall, cpu = self._cost()
        rate = self.optimisation.factor(self.step - 1) * self.recipe.optimiser.lr
        costs = {"learning_rate": rate, "wall_seconds": wall, "cpu_seconds": cpu}
        self.folder.log.write({"step": self.step, **costs, **row})
        for logger in self.loggers:
            logger.log_metrics({**costs, **row}, step=self.step)
        self.bar.set_postfix(
            {n: f"{v:.4g}" for n, v in {**losses, **self.last}.items()}, refresh=False
        )

    def _save_checkpoint(self) -> None:
        self.folder.save_checkpoint(self.step, self.optimisation.state())
        self.saved, self.checkpointed = self.step, time.monotonic()

    def _decide_to_stop(self) -> None:
        limit = self.recipe.training.max_minutes
        over = limit is not None and time.monotonic() - self.began > 60 * limit
        if self.world == 1:
            self.stopping = over or self.interrupted
        elif (
            self.step % 16 == 0
        ):  # all ranks must stop at the same step, and agreeing costs a message
            wish = torch.tensor(float(over or self.interrupted), device=self.model.device)
            torch.distributed.all_reduce(wish)
            self.stopping = bool(wish > 0)

    def _cost(self) -> tuple[float, float]:
        wall = self.spent[0] + time.monotonic() - self.began
        return wall, self.spent[1] + _cpu_seconds() - self.cpu_began

    def _record(self) -> dict[str, Any]:
        wall, cpu = self._cost()
        return {
            "recipe": self.recipe.tables(),
            "start": self.start_name,
            "steps": self.step,
            "seed": self.recipe.seed,
            "wall_minutes": round(wall / 60, 3),
            "cpu_minutes": round(cpu / 60, 3),
            "device": self.device_name,
            "devices": self.world,
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "losses": self.last,
            "torch": torch.__version__,
        }


def _cpu_seconds() -> float:
    """CPU seconds of this process and its finished children (compilers work in children)."""
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _has_compiler() -> bool:
    """Whether torch.compile finds a C++ compiler for the CPU."""
    names = [os.environ["CXX"]] if "CXX" in os.environ else ["g++", "clang++", "cl"]
    return any(shutil.which(name) for name in names)


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads, {platform.machine()}"


def _card(record: dict[str, Any]) -> str:
    """A model card of what training knows; quality is measured afterwards."""
    recipe = record["recipe"]["recipe"]
    losses = ", ".join(f"{name} {value:.5g}" for name, value in record["losses"].items()) or "none"
    return (
        f"# {recipe['name']}\n\n"
        f"A `{recipe['model']}` of {record['parameters']:,} parameters, trained by the recipe `{recipe['name']}` "
        f"(training seed {record['seed']}"
        + (f", fine-tuned from `{record['start']}`" if record["start"] else "")
        + f") for {record['steps']:,} steps.\n\n"
        f"- Cost: {record['wall_minutes']:.1f} minutes by the clock, {record['cpu_minutes']:.1f} CPU minutes; "
        f"{record['devices']} x {record['device']}, torch {record['torch']}.\n"
        f"- Losses at the end: {losses}.\n"
        "- Weights: exponential moving average over the steps.\n"
        "- Quality: not measured yet; `sci evaluate` measures it.\n"
    )
