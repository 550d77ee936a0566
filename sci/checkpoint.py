"""The checkpoint folder of a model: its files, written whole and read with every check.

``model.safetensors`` holds the weights (float32 or float16), ``config.json`` the format version, the model's
short name, its configuration, the SHA-256 of the weights and how they were trained, ``card.md`` what the model
is, and ``samplers.json``, if there is one, the samplers that were fitted to these weights. Nothing in it is code.
"""

from __future__ import annotations

import datetime
import hashlib
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sci import files
from sci.fields import build, plain, unknown

if TYPE_CHECKING:
    from sci.samplers.tuned import Tuned

__all__ = [
    "FORMAT_VERSION",
    "copy",
    "read_config",
    "read_samplers",
    "read_weights",
    "stands",
    "write",
    "write_samplers",
]

FORMAT_VERSION = 1
SAMPLERS_VERSION = 1
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
    tuned: Mapping[int, Tuned] | None = None,
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
        tuned: The samplers fitted to the weights, by evaluations; they replace those of the folder.

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
        if tuned:
            samplers_file = stack.enter_context(files.atomic(folder / "samplers.json"))
            files.write_json(samplers_file, _samplers(files.sha256(weights_file), tuned))
        else:
            # Of other weights: it must not stand beside these.
            (folder / "samplers.json").unlink(missing_ok=True)
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


def read_samplers(folder: Path, weights: str) -> dict[int, Tuned]:
    """Reads ``samplers.json`` of a checkpoint folder.

    Arguments:
        folder: The folder.
        weights: The SHA-256 of its weights.

    Returns:
        The fitted samplers by their evaluations an item; none when there is no such file.

    Raises:
        sci.files.FileDamaged: If the file was altered, or belongs to other weights.
        ValueError: If it is of a format, or has entries, that this version does not know.
    """
    path = folder / "samplers.json"
    if not path.is_file():
        return {}
    from sci.samplers.tuned import Tuned

    entries = files.read_json(path)
    version = entries.get("format_version")
    if version != SAMPLERS_VERSION:
        raise ValueError(
            f"{path} has format_version {version!r}; this version of sciflows reads {SAMPLERS_VERSION}: "
            "update sciflows, or remove the file to sample without fitted samplers"
        )
    if entries.get("weights_sha256") != weights:
        raise files.FileDamaged(
            f"{path} was fitted to other weights than those beside it: remove it, or run sci tune again"
        )
    table = entries.get("samplers")
    if not isinstance(table, dict):
        raise files.FileDamaged(f"{path} holds no table of samplers")
    found = {}
    for key, fields in sorted(table.items(), key=lambda item: len(item[0])):
        where = f"sampler {key!r} of {path}"
        if not isinstance(fields, dict) or str(fields.get("nfe")) != key:
            raise files.FileDamaged(f"{where} is not for {key} evaluations")
        try:
            found[int(key)] = build(Tuned, fields, where)
        except ValueError as error:
            told = str(error).startswith(where)
            raise ValueError(str(error) if told else f"{where}: {error}") from error
    return found


def write_samplers(folder: Path, tuned: Mapping[int, Tuned]) -> Path:
    """Adds fitted samplers to a checkpoint folder; those for other evaluations stay.

    Arguments:
        folder: The folder.
        tuned: The samplers by their evaluations an item.

    Returns:
        The file.

    Raises:
        FileNotFoundError, sci.files.FileDamaged, ValueError: If the folder holds no sound checkpoint.
    """
    weights = read_config(folder)["weights_sha256"]
    there = read_samplers(folder, weights)
    path = folder / "samplers.json"
    files.write_json(path, _samplers(weights, {**there, **tuned}))
    return path


def copy(source: Path, target: Path) -> None:
    """Copies a checkpoint folder; nothing is done where the same weights stand already.

    Arguments:
        source: The folder to copy.
        target: Where to; a new or empty folder, or a checkpoint of the same weights.

    Raises:
        FileExistsError: If there is something else.
    """
    if stands(source, target):
        return
    with files.atomic(target) as temporary:
        temporary.mkdir()
        for name in ("model.safetensors", "card.md", "samplers.json", "config.json"):
            if (source / name).is_file():
                shutil.copyfile(source / name, temporary / name)


def stands(source: Path, target: Path) -> bool:
    """Whether ``target`` is a checkpoint of the same weights already.

    Raises:
        FileExistsError: If there is something else, which a copy would replace.
    """
    if (target / "config.json").is_file():
        if read_config(target)["weights_sha256"] == read_config(source)["weights_sha256"]:
            return True
        raise FileExistsError(f"{target} holds a checkpoint of other weights; give another folder")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FileExistsError(f"{target} exists and is no checkpoint; give another folder")
    return False


def _samplers(weights: str, tuned: Mapping[int, Tuned]) -> dict[str, Any]:
    return {
        "format_version": SAMPLERS_VERSION,
        "weights_sha256": weights,
        "samplers": {str(nfe): plain(tuned[nfe]) for nfe in sorted(tuned)},
    }


def _check_finite(key: str, value: Tensor, what: str, error: type[ValueError] = ValueError) -> None:
    if value.is_floating_point() and not torch.isfinite(value).all():
        raise error(f"{what} a weight that is not finite (NaN or infinity): {key}")
