"""The checkpoint folder of a model: its three files, written whole and read with every check.

``model.safetensors`` holds the weights (float32 or float16), ``config.json`` the format version, the model's
short name, its configuration, the SHA-256 of the weights and how they were trained, ``card.md`` what the model
is. Nothing in it is code.
"""

from __future__ import annotations

import datetime
import hashlib
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sci import files
from sci.fields import plain, unknown

__all__ = ["FORMAT_VERSION", "read_config", "read_weights", "write"]

FORMAT_VERSION = 1
_ENTRIES = {
    "format_version",
    "model",
    "config",
    "weights_sha256",
    "dtype",
    "sciflows",
    "saved",
    "training",
}


def write(
    folder: Path,
    name: str,
    config: Any,
    state: Mapping[str, Tensor],
    training: Mapping[str, Any],
    card: str | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Writes a checkpoint folder; each file appears whole, ``config.json`` last.

    Arguments:
        folder: The folder; an existing checkpoint in it is replaced, its card kept if none is given.
        name: The model's short name.
        config: Its configuration.
        state: Its weights.
        training: How it was trained.
        card: The model card, in Markdown.
        dtype: ``torch.float16`` halves the size of float32 weights; None keeps them as they are.

    Raises:
        ValueError: If a weight is not finite, or overflows in ``dtype``.
    """
    from safetensors.torch import save

    from sci import __version__

    if dtype not in (None, torch.float32, torch.float16):
        raise ValueError(f"dtype is {dtype}; expected torch.float32 or torch.float16")
    weights = {}
    for key, value in state.items():
        _check_finite(key, value, "this model has")
        kept = value.detach().to("cpu", copy=True).contiguous()
        weights[key] = kept.to(dtype) if dtype and kept.dtype == torch.float32 else kept
        _check_finite(key, weights[key], f"as {dtype}, this model has")
    with ExitStack() as stack:
        # The stack renames in reverse order, so config.json, which vouches for the weights, comes last.
        config_file = stack.enter_context(files.atomic(folder / "config.json"))
        if card is not None:
            stack.enter_context(files.atomic(folder / "card.md")).write_text(card, "utf-8")
        weights_file = stack.enter_context(files.atomic(folder / "model.safetensors"))
        # Not save_file, which makes files that others may not read whatever the umask.
        weights_file.write_bytes(save(weights))
        files.write_json(
            config_file,
            {
                "format_version": FORMAT_VERSION,
                "model": name,
                "config": plain(config),
                "weights_sha256": files.sha256(weights_file),
                "dtype": "float16" if dtype == torch.float16 else "float32",
                "sciflows": __version__,
                "saved": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
                "training": plain(training),
            },
        )


def read_weights(folder: Path, expected: str) -> dict[str, Tensor]:
    """Reads the weights of a checkpoint folder.

    Arguments:
        folder: The folder.
        expected: The SHA-256 that ``config.json`` gives.

    Raises:
        FileNotFoundError: If the file is missing.
        sci.files.FileDamaged: If it does not match, or holds weights that are not finite.
    """
    from safetensors.torch import load

    path = folder / "model.safetensors"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no whole checkpoint: model.safetensors is missing")
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != expected:
        raise files.FileDamaged(
            f"{path} ({len(content)} bytes) does not match the sha256 in config.json: it is truncated, "
            "altered, or from another checkpoint; copy or download the folder again"
        )
    weights: dict[str, Tensor] = load(content)
    for key, value in weights.items():
        _check_finite(key, value, f"{path} has", files.FileDamaged)
    return weights


def read_config(folder: Path) -> dict[str, Any]:
    """Reads and checks ``config.json`` of a checkpoint folder.

    Raises:
        FileNotFoundError: If the folder or the file is missing.
        sci.files.FileDamaged: If the file was altered or lacks an entry.
        ValueError: If it is of a format, or has entries, that this version does not know.
    """
    path = folder / "config.json"
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint folder {folder}")
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no checkpoint of this library: config.json is missing"
        )
    entries = files.read_json(path)
    version = entries.get("format_version")
    if version != FORMAT_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}; this version of sciflows reads {FORMAT_VERSION}: "
            "it was written by a newer version (update sciflows) or is no checkpoint of this library"
        )
    for key in entries:
        if key not in _ENTRIES:
            raise ValueError(f"{path}: {unknown('entry', key, _ENTRIES)}")
    missing = _ENTRIES - entries.keys()
    if missing:
        raise files.FileDamaged(f"{path} lacks {', '.join(sorted(missing))}")
    return entries


def _check_finite(key: str, value: Tensor, what: str, error: type[ValueError] = ValueError) -> None:
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise error(f"{what} a weight that is not finite (NaN or infinity): {key}")
