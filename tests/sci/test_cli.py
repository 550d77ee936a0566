"""The command: what it does, and how it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from toy import Points
from typer.testing import CliRunner, Result

import sci
from sci.cli import app


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words])


def refused(result: Result, *texts: str) -> None:
    """One line, no traceback, exit code 2."""
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("sci: "), result.stderr
    for text in texts:
        assert text in lines[0]


def test_version_and_help() -> None:
    assert run("--version").output == f"sciflows {sci.__version__}\n"
    words = run("--help").output
    for command in ("models", "sample", "train", "tune", "evaluate", "demo"):
        assert command in words


def test_models_lists_the_tables() -> None:
    result = run("models")
    assert (
        result.exit_code == 0
        and "toy-ring" in result.output
        and "points on a ring" in result.output
    )


def test_models_imports_no_wing_and_no_torch() -> None:
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom sci.cli import app\n"
        "assert CliRunner().invoke(app, ['models']).exit_code == 0\n"
        "heavy = {'torch', 'rdkit', 'lightning', 'sci.graphs', 'toy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_sample_writes_extends_and_refuses(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.h5"
    common = ("sample", folder, "-o", out, "-q", "--device", "cpu", "--seed", 4)
    result = run(*common, "-n", 30, "--set", "steps=3")
    assert result.exit_code == 0 and "30 items" in result.output
    made = Points.read(out)
    assert len(made) == 30 and made.attrs["nfe"] == 3 and made.attrs["seed"] == 4
    assert run(*common, "-n", 40, "--set", "steps=3").exit_code == 0
    assert len(Points.read(out)) == 40
    refused(run(*common, "-n", 40, "--set", "steps=4"), "a.h5", "--overwrite")
    assert run(*common, "-n", 5, "--set", "steps=4", "--overwrite").exit_code == 0
    assert len(Points.read(out)) == 5


def test_sample_refuses_bad_input(folder: Path, tmp_path: Path) -> None:
    out = ("-o", tmp_path / "a.h5", "-q")
    refused(run("sample", folder, *out, "-n", -4), "-n is -4", "positive integer")
    refused(run("sample", "toy-rnig", *out), "did you mean 'toy-ring'")
    refused(run("sample", folder, *out, "--set", "stepps=3"), "did you mean 'steps'")
    refused(run("sample", folder, *out, "--set", "steps"), "name=value")
    refused(run("sample", folder, *out, "--set", "steps=0"), "at least 1")
    refused(run("sample", folder, *out, "--set", "steps=2024-05-01"), "'2024-05-01'", "int")
    refused(run("sample", folder, *out, "--device", "gpu0"), "no device")
    refused(run("sample", folder, "-n", 3, "-o", tmp_path / "a.pdf", "-q"), ".pdf", ".h5")
    (folder / "model.safetensors").write_bytes(b"nothing")
    refused(run("sample", folder, *out), "model.safetensors", "sha256")


def test_train_and_go_on(tmp_path: Path) -> None:
    out = tmp_path / "run"
    common = ("train", "toy-ring", "-o", out, "-q", "--device", "cpu", "--set", "training.steps=20")
    stopped = run(*common, "--set", "training.max_minutes=0.00001", "--seed", 5)
    assert stopped.exit_code == 0 and "the same command continues" in stopped.output
    result = run(*common, "--seed", 5)
    assert result.exit_code == 0 and "step 20 of 20, finished" in result.output
    assert sci.load(out / "model").training_record["seed"] == 5
    tuned = run(*common[:3], tmp_path / "tuned", *common[4:], "--from", out / "model")
    assert tuned.exit_code == 0
    refused(run(*common, "--seed", 6), "recipe.seed: 5 there, 6 asked")
    refused(run(*common, "--set", "optimiser.lrr=1"), "did you mean 'lr'")
    refused(run("train", "toy-rin"), "did you mean 'toy-ring'")


def test_evaluate_a_file_and_a_model(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.csv"
    assert run("sample", folder, "-n", 9, "-o", out, "-q", "--device", "cpu").exit_code == 0
    result = run("evaluate", out, "--reference", "ring", "-o", tmp_path / "r.json")
    assert result.exit_code == 0 and "floor" in result.output and "n: 9" in result.output
    assert json.loads((tmp_path / "r.json").read_text())["notes"]["n"] == 9
    refused(run("evaluate", out), "--reference")
    refused(run("evaluate", out, "--reference", "rnig"), "'rnig'")
    refused(run("evaluate", out, "-n", 5, "--reference", "ring"), "is a file")
    refused(run("evaluate", tmp_path / "b.csv", "-r", "ring"), "there is no file", "b.csv")
    run("train", "toy-ring", "-o", tmp_path / "run", "-q", "--device", "cpu")
    result = run("evaluate", tmp_path / "run" / "model", "-q", "--seed", 2, "--set", "steps=5")
    assert result.exit_code == 0
    for note in ("n: 64", "nfe: 5", "sampling seed: 2", "training seed: 3", "CPU minutes"):
        assert note in result.output


def test_evaluate_refuses_before_it_samples(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toy.Toy.generate", lambda *_: pytest.fail("sampled in vain"))
    refused(run("evaluate", folder, "-q"), "--reference")
    refused(run("evaluate", folder, "-q", "-r", "ring", "-o", tmp_path / "r.pdf"), ".pdf", ".json")


def test_demo(tmp_path: Path) -> None:
    result = run("demo", "--wing", "toys", "-o", tmp_path)
    assert result.exit_code == 0 and "toys: Toys & rings" in result.stderr
    assert result.stdout.strip() == str(tmp_path / "index.html")
    refused(run("demo", "--wing", "toy", "-o", tmp_path), "did you mean 'toys'")


def test_debug_shows_the_traceback() -> None:
    result = run("--debug", "sample", "nothing-like-it")
    assert isinstance(result.exception, KeyError)


def test_module_runs_as_a_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "sci", "sample", "x/y"], capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == "sci: there is no checkpoint folder x/y\n"
    assert "Traceback" not in done.stderr


def test_interruption_is_said(
    monkeypatch: pytest.MonkeyPatch, folder: Path, tmp_path: Path
) -> None:
    def interrupt(*arguments: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("sci.generation.generate_to", interrupt)
    result = run("sample", folder, "-n", 3, "-o", tmp_path / "a.h5")
    assert result.exit_code == 130 and "run the same command again" in result.stderr
