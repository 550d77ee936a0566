"""The examples in the docstrings run, module by module, under the names that users import.

(pytest's own collection would import ``graphs/`` under its bare name, which is a second copy.)
"""

from __future__ import annotations

import doctest
import importlib
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS


def modules_with_examples() -> list[str]:
    found = []
    for package in SETUPTOOLS["packages"]:
        head, *rest = package.removeprefix("sci").strip(".").split(".")
        top = SETUPTOOLS["package-dir"].get(f"sci.{head}")
        folder = ROOT.joinpath(top, *rest) if top else ROOT / package.replace(".", "/")
        for file in sorted(folder.glob("*.py")):
            if ">>>" in file.read_text():
                found.append(package if file.stem == "__init__" else f"{package}.{file.stem}")
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(name)
    monkeypatch.chdir(tmp_path)
    failed, tried = doctest.testmod(module, optionflags=FLAGS)
    assert tried > 0, f"{name} has examples that doctest does not find"
    assert failed == 0
