"""Chunked generation: resuming, extending, refusing, full disks, several processes."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from toy import Points, Toy

import sci
from sci import files
from sci.generation import generate_to


def make(folder: Path, n: int, out: Path, **options: Any) -> Points:
    settings = {"chunk": 20, "batch_size": 8, "device": "cpu", "progress": False, **options}
    return Points.read(generate_to(sci.load(folder), n, out, **settings))


class Counting:
    """Counts the items that are generated, and can fail at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.items: list[int] = []
        self.error: BaseException | None = None
        self.fail_at = -1
        original = Toy.generate

        def generate(model: Toy, request: Any, items: Any, noise: Any) -> Points:
            if self.fail_at in items and self.error is not None:
                raise self.error
            self.items += items
            return original(model, request, items, noise)

        monkeypatch.setattr(Toy, "generate", generate)


@pytest.fixture
def counting(monkeypatch: pytest.MonkeyPatch) -> Counting:
    return Counting(monkeypatch)


def test_result_is_that_of_sample_with_provenance(folder: Path, tmp_path: Path) -> None:
    made = make(folder, 50, tmp_path / "a.h5", seed=5, request={"steps": 3})
    sampled = sci.load(folder).sample(50, seed=5, steps=3, progress=False)
    np.testing.assert_allclose(made.values, sampled.values, atol=1e-5)
    assert made.attrs["n"] == 50 and made.attrs["seed"] == 5 and made.attrs["nfe"] == 3
    assert made.attrs["request"] == {"steps": 3, "shift": 0.0} and made.attrs["model"] == "toy"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.h5", "checkpoint"]


@pytest.mark.parametrize("error", [KeyboardInterrupt(), RuntimeError("power cut")])
def test_interrupted_and_resumed_is_bit_equal(
    folder: Path, tmp_path: Path, counting: Counting, error: BaseException
) -> None:
    whole = make(folder, 70, tmp_path / "whole.h5")
    counting.items.clear()
    counting.error, counting.fail_at = error, 50
    with pytest.raises(type(error)):
        make(folder, 70, tmp_path / "cut.h5")
    assert not (tmp_path / "cut.h5").exists()
    parts = sorted(p.name for p in (tmp_path / "cut.h5.parts").glob("items-*"))
    assert parts == ["items-000000000-000000020.h5", "items-000000020-000000040.h5"]
    counting.items.clear()
    counting.fail_at = -1
    again = make(folder, 70, tmp_path / "cut.h5")
    assert counting.items == list(range(40, 70))
    assert np.array_equal(again.values, whole.values)
    assert not (tmp_path / "cut.h5.parts").exists()


def test_a_finished_file_is_left_alone(folder: Path, tmp_path: Path, counting: Counting) -> None:
    make(folder, 30, tmp_path / "a.h5")
    stamp = (tmp_path / "a.h5").stat().st_mtime_ns
    counting.items.clear()
    make(folder, 30, tmp_path / "a.h5")
    assert counting.items == [] and (tmp_path / "a.h5").stat().st_mtime_ns == stamp


@pytest.mark.parametrize("keep_parts", [False, True])
def test_a_larger_n_extends(
    folder: Path, tmp_path: Path, counting: Counting, keep_parts: bool
) -> None:
    whole = make(folder, 90, tmp_path / "whole.h5")
    first = make(folder, 50, tmp_path / "a.h5", keep_parts=keep_parts)
    counting.items.clear()
    more = make(folder, 90, tmp_path / "a.h5", keep_parts=keep_parts)
    # With the parts there, the short last chunk is made anew, so that the layout is that of one call.
    assert counting.items == list(range(40 if keep_parts else 50, 90))
    np.testing.assert_allclose(more.values, whole.values, atol=1e-5)
    assert np.array_equal(more.values[:40], first.values[:40])
    if keep_parts:
        assert np.array_equal(more.values, whole.values)
    assert more.attrs["n"] == 90


def test_other_formats_extend_from_kept_parts_only(folder: Path, tmp_path: Path) -> None:
    make(folder, 30, tmp_path / "a.csv", keep_parts=True)
    assert len(make(folder, 50, tmp_path / "a.csv", keep_parts=True)) == 50
    make(folder, 30, tmp_path / "b.csv")
    with pytest.raises(FileExistsError, match="only .h5 files can be extended"):
        make(folder, 50, tmp_path / "b.csv")
    assert len(make(folder, 20, tmp_path / "b.csv", overwrite=True)) == 20


def test_another_request_is_refused(folder: Path, tmp_path: Path, counting: Counting) -> None:
    make(folder, 30, tmp_path / "a.h5")
    for options in ({"seed": 1}, {"request": {"steps": 2}}, {"chunk": 10}):
        with pytest.raises(FileExistsError, match="was not made by this model, request, seed"):
            make(folder, 60, tmp_path / "a.h5", **options)
    with pytest.raises(FileExistsError, match="holds 30 items already, more than 20"):
        make(folder, 20, tmp_path / "a.h5")
    counting.error, counting.fail_at = RuntimeError("stop"), 45
    with pytest.raises(RuntimeError, match="stop"):
        make(folder, 60, tmp_path / "b.h5")
    counting.fail_at = -1
    with pytest.raises(ValueError, match="parts of another request.*seed: 0 there"):
        make(folder, 60, tmp_path / "b.h5", seed=1)
    with pytest.raises(ValueError, match="a request for 60 items, more than 50"):
        make(folder, 50, tmp_path / "b.h5")
    anew = make(folder, 60, tmp_path / "b.h5", seed=1, overwrite=True)
    assert anew.attrs["seed"] == 1 and len(anew) == 60


def test_other_weights_are_another_request(folder: Path, tmp_path: Path) -> None:
    import torch

    make(folder, 30, tmp_path / "a.h5")
    model = sci.load(folder)
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(FileExistsError, match="was not made by this model"):
        generate_to(model, 60, tmp_path / "a.h5", chunk=20, batch_size=8, device="cpu")


def test_a_full_disk_keeps_what_is_done(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, counting: Counting
) -> None:
    original, calls = Points.write, []

    def write(points: Points, path: Path) -> None:
        calls.append(path)
        if len(calls) == 3:
            Path(path).write_bytes(b"half a file")
            raise OSError(errno.ENOSPC, "No space left on device")
        original(points, path)

    monkeypatch.setattr(Points, "write", write)
    with pytest.raises(OSError, match="disk is full") as caught:
        make(folder, 70, tmp_path / "a.h5")
    assert caught.value.errno == errno.ENOSPC
    parts = sorted(p.name for p in (tmp_path / "a.h5.parts").iterdir() if p.suffix == ".h5")
    assert parts == ["items-000000000-000000020.h5", "items-000000020-000000040.h5"]
    assert not (tmp_path / "a.h5").exists()
    counting.items.clear()
    assert len(make(folder, 70, tmp_path / "a.h5")) == 70
    assert counting.items == list(range(40, 70))


def test_a_damaged_part_is_made_again(folder: Path, tmp_path: Path, counting: Counting) -> None:
    whole = make(folder, 60, tmp_path / "a.h5", keep_parts=True)
    part = tmp_path / "a.h5.parts" / "items-000000020-000000040.h5"
    part.write_bytes(part.read_bytes()[:-40])
    counting.items.clear()
    again = make(folder, 60, tmp_path / "a.h5", keep_parts=True)
    assert counting.items == list(range(20, 40))
    assert np.array_equal(again.values, whole.values)


def test_two_processes_share_the_work(folder: Path, tmp_path: Path) -> None:
    whole = make(folder, 100, tmp_path / "whole.h5")
    log = tmp_path / "log"
    options = ["-n", "100", "--chunk", "20", "--batch-size", "8", "--device", "cpu", "-q"]
    command = [sys.executable, "-m", "sci", "sample", str(folder), *options]
    processes = [
        subprocess.Popen(
            [*command, "-o", str(tmp_path / "a.h5")],
            env={**os.environ, "RANK": str(rank), "WORLD_SIZE": "2", "TOY_LOG": f"{log}{rank}"},
        )
        for rank in range(2)
    ]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert np.array_equal(Points.read(tmp_path / "a.h5").values, whole.values)
    firsts = [
        sorted(
            {json.loads(line)[0] // 20 for line in Path(f"{log}{rank}").read_text().splitlines()}
        )
        for rank in range(2)
    ]
    assert firsts == [[0, 2, 4], [1, 3]]
    assert not (tmp_path / "a.h5.parts").exists()


@pytest.mark.parametrize("suffix", [".h5", ".csv"])
def test_a_late_process_does_not_wait_for_work_that_is_done(
    folder: Path, tmp_path: Path, suffix: str
) -> None:
    out = tmp_path / f"a{suffix}"
    make(folder, 30, out)
    command = [sys.executable, "-m", "sci", "sample", str(folder), "-n", "30", "-o", str(out)]
    late = subprocess.Popen(
        [*command, "--chunk", "20", "--batch-size", "8", "--device", "cpu", "-q"],
        env={**os.environ, "RANK": "1", "WORLD_SIZE": "2"},
    )
    try:
        assert late.wait(60) == 0
    finally:
        late.kill()
        late.wait()
    assert sorted(p.name for p in tmp_path.iterdir()) == [out.name, "checkpoint"]


def test_parts_without_a_manifest_are_not_trusted(folder: Path, tmp_path: Path) -> None:
    """A kill while the parts are dropped can leave some of them behind."""
    whole = make(folder, 30, tmp_path / "whole.h5", seed=1)
    make(folder, 30, tmp_path / "a.h5", seed=0, keep_parts=True)
    (tmp_path / "a.h5.parts" / "manifest.json").unlink()
    anew = make(folder, 30, tmp_path / "a.h5", seed=1, overwrite=True)
    assert np.array_equal(anew.values, whole.values)


def test_bad_numbers_are_refused(folder: Path, tmp_path: Path) -> None:
    for options in ({"n": 0}, {"n": -5}, {"chunk": 0}, {"batch_size": 0}):
        given = {"n": 5, **options}
        with pytest.raises(ValueError, match=f"{next(iter(options))} is .*positive integer"):
            make(folder, given.pop("n"), tmp_path / "a.h5", **given)
    with pytest.raises(TypeError, match="did you mean 'steps'"):
        make(folder, 5, tmp_path / "a.h5", request={"step": 3})
    assert not (tmp_path / "a.h5.parts").exists()


def test_a_file_in_use_is_refused(folder: Path, tmp_path: Path) -> None:
    code = (
        "import time\nfrom sci import files\n"
        f"with files.exclusive({str(tmp_path / 'a.h5.parts' / 'lock-0')!r}, 'it'):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(RuntimeError, match="another process is working on the file"):
            make(folder, 5, tmp_path / "a.h5")
    finally:
        holder.kill()
        holder.wait()
        holder.stdout.close()


def test_damage_of_the_file_to_extend_is_found(folder: Path, tmp_path: Path) -> None:
    import h5py

    make(folder, 30, tmp_path / "a.h5")
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["values"][0, 0] = 9.0
    with pytest.raises(files.FileDamaged, match="does not match its checksum"):
        make(folder, 60, tmp_path / "a.h5")
