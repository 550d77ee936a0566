"""Training a model by a recipe: Lightning's Trainer runs the steps, on one device or on many.

Steps are counted, not epochs. What a step does is in :mod:`sci.optimisation`, what happens around it in
:mod:`sci.session`, what a recipe says in :mod:`sci.recipes`, what a run leaves behind in :mod:`sci.runs`.
A run may be killed at any moment: the same call continues from the last checkpoint, and ends with the arrays
of a run that was never stopped.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sci import files, registry
from sci.fields import build, plain
from sci.model import Model, choose_device, load
from sci.optimisation import mix
from sci.recipes import Recipe, Training
from sci.runs import RunFolder
from sci.session import Run, Session

__all__ = ["Run", "train"]


def train(
    recipe: Recipe | str | os.PathLike[str],
    out: str | os.PathLike[str],
    start: str | os.PathLike[str] | None = None,
    device: str = "auto",
    progress: bool = True,
) -> Run:
    """Trains a model, or continues to.

    Arguments:
        recipe: A recipe, or its name or file.
        out: The run's folder. If it holds this run already, the run continues from its last checkpoint.
        start: A model to fine-tune: a name of ``sci models`` or a checkpoint folder. Its configuration is
            kept, except for what the data decide and the recipe's overrides.
        device: ``"auto"``, ``"cpu"``, ``"cuda"`` or ``"mps"``; how many is the recipe's ``training.devices``.
        progress: Whether to show a progress bar.

    Returns:
        Where the run stands: finished, or stopped cleanly by ``max_minutes``, Ctrl-C or SIGTERM.

    Raises:
        ValueError: For a bad recipe, or if the folder holds another run.
        FloatingPointError: If a loss or a weight is not finite.
        RuntimeError: If another process is training in the folder.
    """
    recipe = recipe if isinstance(recipe, Recipe) else Recipe.read(recipe)
    folder = RunFolder(out)
    chosen = choose_device(device)
    identity = {**recipe.identity(), "start": None if start is None else os.fspath(start)}
    with contextlib.ExitStack() as stack:
        if _rank() == 0:
            stack.enter_context(
                files.exclusive(folder.folder / ".lock", f"the run {folder.folder}")
            )
            folder.claim(identity, recipe.tables())
        stack.enter_context(torch.random.fork_rng(devices=[]))
        checkpoint = folder.load_checkpoint()
        if checkpoint is not None and checkpoint[0] >= recipe.training.steps:
            standing = _standing(folder, checkpoint[0])
            if standing is not None:
                return standing
        kind = registry.find_class(recipe.model)
        origin = None if start is None else _origin(kind, recipe, start)
        prepared = kind.prepare(dict(recipe.data), None if origin is None else origin.config)
        model = _build(kind, recipe, prepared.config, origin)
        session = Session(recipe, folder, model, prepared.train, prepared.validation, checkpoint)
        session.start_name = identity["start"]
        _fit(session, chosen, progress)
    return session.run()


def _origin(kind: type[Model], recipe: Recipe, start: str | os.PathLike[str]) -> Model:
    origin = load(start)
    if not isinstance(origin, kind):
        raise ValueError(f"{start} is a {origin.name!r}, but the recipe trains a {recipe.model!r}")
    return origin


def _build(
    kind: type[Model], recipe: Recipe, learnt: dict[str, Any], origin: Model | None
) -> Model:
    torch.manual_seed(mix(recipe.seed, "initialisation"))
    if origin is None:
        fields = {**learnt, **recipe.config}
        return kind(build(kind.Config, plain(fields), f"[model] of recipe {recipe.name}"))
    by_hand = {name: recipe.config[name] for name in recipe.overridden}
    fields = {**recipe.config, **plain(origin.config), **learnt, **by_hand}
    model = kind(build(kind.Config, plain(fields), "configuration of the model to fine-tune"))
    try:
        model.load_state_dict(origin.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"the model cannot be fine-tuned with these data and settings: {error}"
        ) from error
    return model


def _fit(session: Session, device: torch.device, progress: bool) -> None:
    """Runs the session under Lightning's Trainer."""
    with warnings.catch_warnings(), _quiet():
        import lightning.pytorch as lightning
        from lightning.pytorch.strategies import DDPStrategy

        class Glue(lightning.LightningModule):
            """Steps by number; the session does the rest."""

            def __init__(self) -> None:
                super().__init__()
                self.model = session.model
                self.automatic_optimization = False

            def configure_optimizers(self) -> None:
                return None

            def on_fit_start(self) -> None:
                session.open(self.trainer.global_rank, self.trainer.world_size, progress)
                session.loggers = self.trainer.loggers

            def on_train_start(self) -> None:
                # Only now: Lightning sets its own handlers, which end the process, after on_fit_start.
                if threading.current_thread() is threading.main_thread():
                    for number in handlers:
                        signal.signal(number, session.request_stop)

            def training_step(self, step: int, batch_index: int) -> None:
                session.advance(step)

            def on_train_end(self) -> None:
                session.close()

        class Unwrapped(DDPStrategy):
            """Processes and their group only: the session averages the gradients of each group itself."""

            def configure_ddp(self) -> None:
                return None

        class Steps:
            def __iter__(self) -> Iterator[int]:
                return session.steps()

        training = _launched(session.recipe.training)
        several = training.devices * training.nodes > 1
        warnings.filterwarnings("ignore", module="lightning")
        warnings.filterwarnings("ignore", message=".*LeafSpec.*")
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        index: Any = (
            [device.index] if device.index is not None and not several else training.devices
        )
        trainer = lightning.Trainer(
            accelerator={"cuda": "gpu"}.get(device.type, device.type),
            devices=index,
            num_nodes=training.nodes,
            strategy=Unwrapped() if several else "auto",
            max_epochs=1,
            logger=_loggers(training.logger, session.folder.folder),
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
        try:
            trainer.fit(Glue(), train_dataloaders=Steps())
        except SystemExit as stopped:  # how Lightning passes on a second Ctrl-C
            raise KeyboardInterrupt from stopped
        finally:
            session.model.to("cpu")
            for number, handler in handlers.items():
                if threading.current_thread() is threading.main_thread():
                    signal.signal(number, handler)


def _loggers(name: str | None, folder: Path) -> Any:
    if name is None:
        return False
    from lightning.pytorch import loggers

    if name == "tensorboard":
        return loggers.TensorBoardLogger(folder, name="tensorboard", version="")
    return loggers.WandbLogger(project="sciflows", save_dir=folder, name=folder.name)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Lightning's notes on devices and tips are not the user's business here."""
    names = ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero")
    levels = {name: logging.getLogger(name).level for name in names}
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


def _rank() -> int:
    for name in ("RANK", "SLURM_PROCID", "LOCAL_RANK"):
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0


def _launched(training: Training) -> Training:
    """Devices and nodes as torchrun has set them up, where it has."""
    if "LOCAL_WORLD_SIZE" not in os.environ or "WORLD_SIZE" not in os.environ:
        return training
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    return replace(training, devices=local, nodes=max(int(os.environ["WORLD_SIZE"]) // local, 1))


def _standing(folder: RunFolder, step: int) -> Run | None:
    """The standing of a run that was finished before; None where its model must be written again.

    A call that was killed between the last checkpoint and the model leaves no model, an earlier one, or half of one.
    """
    try:
        record = Model.load(folder.model).training_record
    except (FileNotFoundError, files.FileDamaged):
        return None
    if record.get("steps") != step:
        return None
    return Run(
        folder.folder, step, True, record["wall_minutes"], record["cpu_minutes"], record["losses"]
    )
