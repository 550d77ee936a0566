"""The wheel, installed into an empty folder and used from outside the repository."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("graphs", "proteins", "pde", "timeseries", "cells", "datasets")
PACKAGES = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]

IMPORT_ALL = """
import importlib, json, sys
print(json.dumps({name: importlib.import_module(name).__file__ for name in sys.argv[1:]}))
"""

FIND_DATA = """
import json
from sci import datasets
print(json.dumps([str(datasets.path("qm9")), datasets.available()]))
"""


def run(*arguments: str, cwd: Path, **environment: str) -> str:
    """Runs this Python; what it prints. Shows what it said if it fails."""
    done = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wheel built from a copy of the source, so that no earlier build can leak into it."""
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for folder in ("sci", *FOLDERS):
        shutil.copytree(
            ROOT / folder, source / folder, ignore=shutil.ignore_patterns("__pycache__")
        )
    built = tmp_path_factory.mktemp("wheel")
    pip = ("-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation")
    run(*pip, "--wheel-dir", str(built), str(source), cwd=built)
    (found,) = built.glob("sciflows-*.whl")
    return found


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    target = tmp_path_factory.mktemp("site")
    pip = ("-m", "pip", "install", "--quiet", "--no-deps", "--no-index")
    run(*pip, "--target", str(target), str(wheel), cwd=target)
    return target


def test_wheel_holds_every_file(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = {name for name in archive.namelist() if name.startswith("sci/")}
        others = {name.split("/")[0] for name in archive.namelist()} - {"sci"}
    expected = {
        (f"{folder}/" if folder == "sci" else f"sci/{folder}/")
        + file.relative_to(ROOT / folder).as_posix()
        for folder in ("sci", *FOLDERS)
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and "__pycache__" not in file.parts
    }
    assert inside == expected
    assert len(others) == 1 and others.pop().endswith(".dist-info")


def test_installed_packages_import_from_the_wheel(site: Path, tmp_path: Path) -> None:
    places = json.loads(run("-c", IMPORT_ALL, *PACKAGES, cwd=tmp_path, PYTHONPATH=str(site)))
    for name in PACKAGES:
        expected = site.joinpath(*name.split("."), "__init__.py")
        assert Path(places[name]) == expected, f"{name} was imported from {places[name]}"


def test_installed_data_are_found(site: Path, tmp_path: Path) -> None:
    found, names = json.loads(run("-c", FIND_DATA, cwd=tmp_path, PYTHONPATH=str(site), SCI_DATA=""))
    assert Path(found) == site / "sci" / "datasets" / "files" / "qm9.csv.gz"
    assert names == sorted(file.stem for file in (ROOT / "datasets" / "cards").glob("*.toml"))


def test_installed_command_lists_the_models(site: Path, tmp_path: Path) -> None:
    registry = tomllib.loads((ROOT / "sci" / "registry.toml").read_text())
    listed = run("-m", "sci", "models", cwd=tmp_path, PYTHONPATH=str(site), COLUMNS="200")
    assert (site / "bin" / "sci").is_file()
    for name in registry.get("model", {}):
        assert name in listed


@pytest.mark.slow
def test_installed_types_resolve(site: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text('from sci import datasets\nreveal_type(datasets.path("qm9"))\n')
    said = run(
        *("-m", "mypy", "--ignore-missing-imports", "--follow-imports=silent", script.name),
        cwd=tmp_path,
        MYPYPATH=str(site),
    )
    assert 'Revealed type is "pathlib.Path"' in said
