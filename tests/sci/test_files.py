"""Atomic writing, checksums, locks."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sci import files


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_atomic_replaces_on_success(tmp_path: Path) -> None:
    target = tmp_path / "new" / "a.txt"
    with files.atomic(target) as temporary:
        assert temporary.suffix == ".txt" and temporary.parent == target.parent
        temporary.write_text("one")
        assert not target.exists()
    assert target.read_text() == "one" and names(target.parent) == ["a.txt"]


@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt()])
def test_atomic_keeps_the_old_file_on_failure(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(type(error)), files.atomic(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old" and names(tmp_path) == ["a.txt"]


@pytest.mark.parametrize(
    "error",
    [OSError(errno.ENOSPC, "No space left on device"), OSError("write: No space left (h5)")],
)
def test_full_disk_is_named_and_leaves_nothing(tmp_path: Path, error: OSError) -> None:
    target = tmp_path / "a.h5"
    with pytest.raises(OSError, match="disk is full") as caught, files.atomic(target) as temporary:
        temporary.write_text("half")
        raise error
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(target)
    assert names(tmp_path) == []


def test_atomic_replaces_a_folder(tmp_path: Path) -> None:
    target = tmp_path / "backbones"
    for text in ("one", "two"):
        with files.atomic(target) as temporary:
            temporary.mkdir()
            (temporary / f"{text}.pdb").write_text(text)
    assert names(target) == ["two.pdb"] and names(tmp_path) == ["backbones"]


def test_json_round_trip_and_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    files.write_json(path, {"b": [1, 2.5], "ä": None})
    assert files.read_json(path) == {"b": [1, 2.5], "ä": None}
    path.write_text(path.read_text().replace("2.5", "2.6"))
    with pytest.raises(files.FileDamaged, match=r"a\.json does not match"):
        files.read_json(path)
    for text, message in (("{", "not readable"), ("[1]", "holds a list"), ("{}", "no sha256")):
        path.write_text(text)
        with pytest.raises(files.FileDamaged, match=message):
            files.read_json(path)


def test_hdf5_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    arrays = {
        "x": np.arange(300, dtype=np.float32).reshape(100, 3),
        "group/flags": np.array([True, False]),
        "text": np.array(["a", "ßµ", ""]),
        "empty": np.zeros((0, 4), dtype=np.int8),
        "scalar": np.float64(2.5),
    }
    notes = {
        "n": 3,
        "f": 0.1,
        "ok": True,
        "name": "toy",
        "request": {"steps": [1, None]},
        "none": None,
    }
    files.write_hdf5(path, arrays, notes)
    read, attributes = files.read_hdf5(path)
    assert attributes == notes and attributes["ok"] is True
    assert files.read_attributes(path) == notes
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        assert np.array_equal(read[name], array)
    assert read["x"].dtype == np.float32 and read["empty"].shape == (0, 4)


def test_hdf5_damage_is_found(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "a.h5"
    files.write_hdf5(path, {"x": np.arange(10)}, {"n": 1})
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(files.FileDamaged, match=r"a\.h5 is not a whole"):
        files.read_hdf5(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file["x"][3] = 99
    with pytest.raises(files.FileDamaged, match="does not match its checksum"):
        files.read_hdf5(path)
    path.write_bytes(whole)
    with h5py.File(path, "a") as file:
        file.attrs["n"] = 2
    with pytest.raises(files.FileDamaged, match="does not match its checksum"):
        files.read_hdf5(path)
    with h5py.File(path, "w") as file:
        file["x"] = 1
    with pytest.raises(files.FileDamaged, match="no sha256"):
        files.read_hdf5(path)
    with pytest.raises(FileNotFoundError):
        files.read_hdf5(tmp_path / "none.h5")
    with pytest.raises(TypeError, match="complex|dtype"):
        files.write_hdf5(path, {"x": np.zeros(2, dtype="M8[s]")})


def test_exclusive_lock_of_another_process(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    code = (
        "import sys, time\nfrom sci import files\n"
        f"with files.exclusive({str(lock)!r}, 'it'):\n    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another process is working on it"):
            with files.exclusive(lock, "it"):
                pass
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()
    with files.exclusive(lock, "it"):
        pass


def test_data_files_are_of_their_class_and_version(tmp_path: Path) -> None:
    path = tmp_path / "a.h5"
    files.write_hdf5(path, {"x": np.arange(3)}, {"data_class": "m:A", "format_version": 1})
    assert files.read_data(path, "m:A", 1)[0]["x"].tolist() == [0, 1, 2]
    with pytest.raises(files.FileDamaged, match="holds m:A, not m:B"):
        files.read_data(path, "m:B", 1)
    with pytest.raises(files.FileDamaged, match="format version 1, .* reads 2"):
        files.read_data(path, "m:A", 2)


def test_an_attribute_that_cannot_be_read_is_damage(tmp_path: Path) -> None:
    import h5py

    path = tmp_path / "a.h5"
    files.write_hdf5(path, {"x": np.arange(3)}, {"settings": {"a": 1}})
    with h5py.File(path, "a") as file:
        file.attrs["settings"] = "{broken"
    for read in (files.read_hdf5, files.read_attributes):
        with pytest.raises(files.FileDamaged, match="a.h5"):
            read(path)
