"""Files that are whole or absent: atomic writing, checksums, and damage that is named.

Everything the library writes goes through :func:`atomic`: the content is written under a temporary name
in the target's own folder, flushed to the disk, and renamed. A crash, a full disk or Ctrl-C therefore
leaves the old file or the new one, never a mixture. JSON and HDF5 files of our own carry a SHA-256 of
their content, so that a flipped byte is found when the file is read, not when a figure looks odd.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

__all__ = [
    "FileDamaged",
    "atomic",
    "digest",
    "exclusive",
    "read_attributes",
    "read_hdf5",
    "read_json",
    "sha256",
    "write_hdf5",
    "write_json",
]

_FULL = (errno.ENOSPC, getattr(errno, "EDQUOT", errno.ENOSPC))


class FileDamaged(ValueError):
    """A file is truncated, altered, or not what its name says. The message names the file."""


@contextmanager
def atomic(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside ``path``; on success the content is synced and renamed to ``path``.

    The temporary name keeps the suffix, because writers choose their format by it. What is written there
    may be a file or a folder; an existing file or folder at ``path`` is replaced only on success.

    Arguments:
        path: Where the finished file (or folder) shall stand. Missing parent folders are made.

    Raises:
        OSError: If the disk is full (the message says what could not be written), or for any other
            failure of the file system. The temporary content is removed in every case.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.parent / f".{path.stem}.{uuid.uuid4().hex[:12]}.partial{path.suffix}"
    try:
        yield temporary
        _sync(temporary)
        _replace(temporary, path)
    except OSError as error:
        if error.errno in _FULL or "No space left" in str(error):
            raise OSError(
                error.errno or errno.ENOSPC,
                "the disk is full; nothing was left half-written: free some space and run again",
                str(path),
            ) from error
        raise
    finally:
        _remove(temporary)


def sha256(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def digest(content: Any) -> str:
    """SHA-256 of JSON-able content in canonical form (sorted keys, no spaces)."""
    text = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def write_json(path: str | os.PathLike[str], content: Mapping[str, Any]) -> None:
    """Writes a JSON object atomically, with a ``sha256`` entry over its other entries.

    Arguments:
        path: The file.
        content: JSON-able entries; the key ``sha256`` is the function's own.
    """
    document = json.loads(json.dumps(dict(content)))
    document.pop("sha256", None)
    document["sha256"] = digest(document)
    with atomic(path) as temporary:
        temporary.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", "utf-8")


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """Reads a file of :func:`write_json`, and returns its entries without the checksum.

    Raises:
        FileNotFoundError: If there is no such file.
        FileDamaged: If it is not a JSON object, or does not match its checksum.
    """
    path = Path(path)
    try:
        document = json.loads(path.read_text("utf-8"))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise FileDamaged(f"{path} is not readable as JSON ({error})") from error
    if not isinstance(document, dict):
        raise FileDamaged(f"{path} holds a {type(document).__name__}; expected a JSON object")
    given = document.pop("sha256", None)
    if given is None:
        raise FileDamaged(f"{path} carries no sha256 entry, so it is not a file of this library")
    if given != digest(document):
        raise FileDamaged(f"{path} does not match its checksum: it was altered or damaged")
    return document


def write_hdf5(
    path: str | os.PathLike[str],
    arrays: Mapping[str, np.ndarray],
    attributes: Mapping[str, Any] | None = None,
) -> None:
    """Writes arrays and attributes to an HDF5 file, atomically, compressed, with a checksum.

    Arguments:
        path: The file.
        arrays: Name (slashes make groups) to numeric, boolean or string array. Strings are stored as UTF-8.
        attributes: Attributes of the root: strings, numbers, booleans, or any JSON-able value.
    """
    import h5py

    prepared = {name: _storable(np.asarray(array)) for name, array in arrays.items()}
    notes = json.loads(json.dumps(dict(attributes or {})))
    with atomic(path) as temporary, h5py.File(temporary, "w") as file:
        for name, array in prepared.items():
            squeeze = {"compression": "gzip", "compression_opts": 4} if array.size > 64 else {}
            if array.dtype.kind == "O":
                file.create_dataset(name, data=array, dtype=h5py.string_dtype(), **squeeze)
            else:
                file.create_dataset(name, data=array, **squeeze, shuffle=bool(squeeze) or None)
        for key, value in notes.items():
            plain = isinstance(value, str | int | float)
            file.attrs[key] = value if plain else json.dumps(value)
        file.attrs["json_attributes"] = json.dumps(
            sorted(k for k, v in notes.items() if not isinstance(v, str | int | float))
        )
        file.attrs["sha256"] = _content_digest(prepared, notes)


def read_hdf5(path: str | os.PathLike[str]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of :func:`write_hdf5`.

    Returns:
        The arrays by name (string arrays as ``object`` arrays of ``str``), and the attributes.

    Raises:
        FileNotFoundError: If there is no such file.
        FileDamaged: If it is no HDF5 file, was cut short, or does not match its checksum.
    """
    import h5py

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(errno.ENOENT, "no such file", str(path))
    arrays: dict[str, np.ndarray] = {}

    def visit(name: str, item: Any) -> None:
        if isinstance(item, h5py.Dataset):
            text = h5py.check_string_dtype(item.dtype) is not None
            arrays[name] = np.asarray(item.asstr()[()], dtype=object) if text else item[()]

    try:
        with h5py.File(path, "r") as file:
            file.visititems(visit)
            stored = {key: _native(value) for key, value in file.attrs.items()}
    except (OSError, RuntimeError, KeyError) as error:
        raise FileDamaged(f"{path} is not a whole HDF5 file ({error})") from error
    given = stored.pop("sha256", None)
    if given is None:
        raise FileDamaged(
            f"{path} carries no sha256 attribute, so it is not a file of this library"
        )
    try:
        notes = _notes(stored)
    except ValueError as error:
        raise FileDamaged(f"{path} holds an attribute that cannot be read ({error})") from error
    if given != _content_digest(arrays, notes):
        raise FileDamaged(f"{path} does not match its checksum: it was altered or damaged")
    return arrays, notes


def read_data(
    path: str | os.PathLike[str], data_class: str, version: int
) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """Reads a file of :func:`write_hdf5` that holds a data object.

    Arguments:
        path: The file.
        data_class: What its attribute ``data_class`` must say, ``"module:Class"``.
        version: What its attribute ``format_version`` must say.

    Returns:
        As :func:`read_hdf5`.

    Raises:
        FileNotFoundError, FileDamaged: As :func:`read_hdf5`.
        FileDamaged: If it holds something else, or is of another version.
    """
    arrays, notes = read_hdf5(path)
    if notes.get("data_class") != data_class:
        raise FileDamaged(f"{path} holds {notes.get('data_class', 'something')}, not {data_class}")
    if notes.get("format_version") != version:
        raise FileDamaged(
            f"{path} has format version {notes.get('format_version')}, this version of sciflows reads "
            f"{version}; update sciflows"
        )
    return arrays, notes


def read_attributes(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The attributes of a file of :func:`write_hdf5`, without reading or checking its arrays.

    Raises:
        FileDamaged: If it is no HDF5 file.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            return _notes({key: _native(value) for key, value in file.attrs.items()})
    except (OSError, ValueError) as error:
        raise FileDamaged(f"{path} is not a whole HDF5 file ({error})") from error


@contextmanager
def exclusive(path: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Holds a lock file, so that two processes never work in one folder; a killed holder frees it.

    Arguments:
        path: The lock file; it stays, empty.
        what: What is locked, for the message.

    Raises:
        RuntimeError: If another process holds the lock.
    """
    try:
        import fcntl
    except ImportError:  # Windows has no flock; there the lock is not taken.
        yield
        return
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RuntimeError(
                f"another process is working on {what}; wait for it, stop it, or give another folder"
            ) from error
        except OSError:  # a file system without locks
            pass
        yield


def _notes(stored: dict[str, Any]) -> dict[str, Any]:
    coded = json.loads(stored.pop("json_attributes", "[]"))
    stored.pop("sha256", None)
    return {key: json.loads(value) if key in coded else value for key, value in stored.items()}


def _native(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def _storable(array: np.ndarray) -> np.ndarray:
    if array.dtype.kind == "U":
        return array.astype(object)
    if array.dtype.kind in "biufcO":
        return array
    raise TypeError(f"cannot store an array of dtype {array.dtype}; expected numbers or strings")


def _content_digest(arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]) -> str:
    total = hashlib.sha256(digest(dict(notes)).encode())
    for name in sorted(arrays):
        array = arrays[name]
        total.update(f"\0{name}\0{array.dtype.str}\0{array.shape}\0".encode())
        if array.dtype.kind == "O":
            total.update(json.dumps(array.tolist(), ensure_ascii=False).encode())
        else:
            total.update(np.ascontiguousarray(array).data)
    return total.hexdigest()


def _sync(path: Path) -> None:
    """Flushes a file, or every file of a folder, to the disk."""
    members = [path, *path.rglob("*")] if path.is_dir() else [path]
    for member in members:
        if member.is_file():
            descriptor = os.open(member, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def _replace(temporary: Path, path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        aside = path.parent / f".{path.name}.{uuid.uuid4().hex[:12]}.replaced"
        os.rename(path, aside)
        os.rename(temporary, path)
        shutil.rmtree(aside)
    else:
        os.replace(temporary, path)
    if os.name != "nt":
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
