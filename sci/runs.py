"""The folder of a training run: its configuration, checkpoints and log.

``config.json`` is the recipe with every default filled in; ``checkpoints/step-N.pt`` hold plain tensors, each
with a checksum, the last two kept; ``log.csv`` has a line every few steps; ``model/`` is the trained model.
"""

from __future__ import annotations

import csv
import hashlib
import os
import pickle
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sci import files

__all__ = ["Log", "RunFolder"]

_KEPT = 2


class RunFolder:
    """A run's folder.

    Arguments:
        folder: Where; made when first written to.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self.model = self.folder / "model"
        self.log = Log(self.folder / "log.csv")

    def claim(self, identity: Mapping[str, Any], tables: Mapping[str, Any]) -> None:
        """Writes ``config.json``, or checks that the one there is of the same run.

        A run that never came to its first checkpoint, such as one whose data were missing, makes room for another.

        Arguments:
            identity: What decides the trained arrays: recipe tables and the starting model.
            tables: The whole recipe, for the reader.

        Raises:
            ValueError: If the folder holds another run; the differing settings are listed.
            FileExistsError: If the folder holds something else.
        """
        path = self.folder / "config.json"
        if path.is_file():
            there = files.read_json(path).get("identity", {})
            differing = [
                f"{name}: {_get(there, name)!r} there, {_get(identity, name)!r} asked"
                for name in sorted({*_flat(there), *_flat(identity)})
                if _get(there, name) != _get(identity, name)
            ]
            if differing and not self._checkpoints() and not self.model.is_dir():
                self.log.path.unlink(missing_ok=True)
            elif differing:
                raise ValueError(
                    f"{self.folder} holds another run ({'; '.join(differing)}); give another --out folder, or "
                    "the same settings to continue"
                )
        elif self.folder.is_dir() and any(
            p.name != ".lock" and not (p.name.startswith(".config.") and ".partial" in p.name)
            for p in self.folder.iterdir()
        ):
            raise FileExistsError(
                f"{self.folder} is not empty and holds no run; give another --out folder"
            )
        files.write_json(path, {"identity": identity, "recipe": tables})

    def save_checkpoint(self, step: int, state: Mapping[str, Any]) -> Path:
        """Writes ``checkpoints/step-N.pt`` and drops all but the last two.

        Raises:
            FloatingPointError: If a tensor is not finite; the earlier checkpoints stay.
        """
        for name, value in _tensors(state):
            if value.is_floating_point() and not torch.isfinite(value).all():
                raise FloatingPointError(
                    f"at step {step} {name} is not finite; no checkpoint was written"
                )
        path = self.folder / "checkpoints" / f"step-{step}.pt"
        content = {
            "format_version": 1,
            "step": step,
            "sha256": _digest(state),
            "state": dict(state),
        }
        with files.atomic(path) as temporary:
            torch.save(content, temporary)
        for old in self._checkpoints()[_KEPT:]:
            old.unlink()
        return path

    def load_checkpoint(self) -> tuple[int, dict[str, Any]] | None:
        """The step and state of the newest whole checkpoint; None where there is none.

        A damaged one is passed over with a warning that names it.
        """
        for path in self._checkpoints():
            try:
                content = torch.load(path, map_location="cpu", weights_only=True)
                if content["sha256"] != _digest(content["state"]):
                    raise ValueError("its content does not match its checksum")
                return int(content["step"]), content["state"]
            except (
                OSError,
                RuntimeError,
                ValueError,
                KeyError,
                EOFError,
                pickle.UnpicklingError,
            ) as error:
                warnings.warn(f"passing over the damaged checkpoint {path}: {error}", stacklevel=2)
        return None

    def _checkpoints(self) -> list[Path]:
        """Checkpoint files, newest first."""
        found = (self.folder / "checkpoints").glob("step-*.pt")
        steps = {path: path.stem.removeprefix("step-") for path in found}
        own = [path for path, step in steps.items() if step.isdecimal()]  # not a user's copies
        return sorted(own, key=lambda path: int(steps[path]), reverse=True)


class Log:
    """A CSV file with one line every few steps; columns may join later.

    Arguments:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.columns: list[str] = []

    def rows(self) -> list[dict[str, str]]:
        """The lines so far."""
        if not self.path.is_file():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            rows = [{k: v or "" for k, v in row.items() if k} for row in reader]
        return [row for row in rows if row.get("step", "").isdigit()]

    def resume(self, step: int) -> tuple[float, float]:
        """Drops the lines after ``step``.

        Returns:
            Wall and CPU seconds spent so far, those of the dropped lines included.
        """
        rows = self.rows()
        spent = [max((float(row.get(name) or 0) for row in rows), default=0.0) for name in _COSTS]
        self._rewrite([row for row in rows if int(row["step"]) <= step])
        return spent[0], spent[1]

    def write(self, row: Mapping[str, float]) -> None:
        """Adds a line."""
        if any(name not in self.columns for name in row):
            rows = self.rows()
            self.columns += [name for name in row if name not in self.columns]
            self._rewrite(rows)
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            csv.DictWriter(file, self.columns).writerow({k: _text(v) for k, v in row.items()})

    def _rewrite(self, rows: Iterable[dict[str, str]]) -> None:
        rows = list(rows)
        self.columns = list(dict.fromkeys([*self.columns, *(name for row in rows for name in row)]))
        if not self.columns:
            return
        with (
            files.atomic(self.path) as temporary,
            open(temporary, "w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns)
            writer.writeheader()
            writer.writerows(rows)


_COSTS = ("wall_seconds", "cpu_seconds")


def _text(value: float) -> str:
    return str(value) if isinstance(value, int) else f"{value:.6g}"


def _tensors(content: Any, name: str = "") -> list[tuple[str, Tensor]]:
    """Every tensor of nested dicts and lists, with its dotted name."""
    if isinstance(content, Tensor):
        return [(name, content)]
    if isinstance(content, Mapping):
        pairs: Iterable[tuple[Any, Any]] = content.items()
    elif isinstance(content, list | tuple):
        pairs = enumerate(content)
    else:
        return []
    return [
        found
        for key, value in pairs
        for found in _tensors(value, f"{name}.{key}" if name else str(key))
    ]


def _digest(state: Mapping[str, Any]) -> str:
    total = hashlib.sha256()
    for name, value in _tensors(state):
        array = value.detach().cpu().contiguous().reshape(-1)
        total.update(f"\0{name}\0{tuple(value.shape)}\0{array.dtype}\0".encode())
        total.update(array.view(torch.uint8).numpy().data)
    return total.hexdigest()


def _flat(content: Any, name: str = "") -> list[str]:
    if not isinstance(content, Mapping):
        return [name]
    return [
        found
        for key, value in content.items()
        for found in _flat(value, f"{name}.{key}".lstrip("."))
    ]


def _get(content: Any, name: str) -> Any:
    for key in name.split("."):
        if not isinstance(content, Mapping) or key not in content:
            return None
        content = content[key]
    return content
