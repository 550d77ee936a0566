"""The package list, the package data, the versions, and the arrows between the folders."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
WINGS = ("graphs", "proteins", "pde", "timeseries", "cells")
FOLDERS = (*WINGS, "datasets")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
SETUPTOOLS = PROJECT["tool"]["setuptools"]
# What each part may import of `sci`, beside itself. The empty string stands for the core.
MAY_IMPORT = {
    "": {"datasets"},
    **{wing: {"", "datasets"} for wing in WINGS},
    "datasets": set(),
}


def package_of(file: Path) -> str:
    """Dotted name under which a source file is imported."""
    parts = file.relative_to(ROOT).with_suffix("").parts
    parts = parts[:-1] if parts[-1] == "__init__" else parts
    return ".".join(parts if parts[0] == "sci" else ("sci", *parts))


def sources(*folders: str) -> list[Path]:
    return [file for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def imports(tree: ast.AST, module: str, package: bool) -> Iterator[str]:
    """Absolute names of everything that a module imports, and every ``sci.<part>`` that it reads."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = module.split(".")[: None if package else -1]
                above = above[: len(above) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            yield from (f"{base}.{alias.name}" for alias in node.names)
        elif (
            isinstance(node, ast.Attribute)
            and isinstance(node.value, ast.Name)
            and node.value.id == "sci"
            and node.attr in FOLDERS
        ):
            yield f"sci.{node.attr}"


def part(name: str) -> str | None:
    """Which part of the house an imported name belongs to; None if it is not ours."""
    head, _, rest = name.partition(".")
    if head != "sci":
        return None
    second = rest.partition(".")[0]
    return second if second in FOLDERS else ""


def breaches(source: str, module: str, package: bool = False) -> list[str]:
    """Imports of ``module`` that point up or sideways."""
    own = part(module)
    assert own is not None
    allowed = MAY_IMPORT[own] | {own}
    return [
        name
        for name in imports(ast.parse(source), module, package)
        if (there := part(name)) is not None and there not in allowed
    ]


def bare(source: str) -> list[str]:
    """Imports of our folders by their bare names."""
    names = imports(ast.parse(source), "x", False)
    return [name for name in names if name.partition(".")[0] in FOLDERS]


def test_every_package_is_listed() -> None:
    found = {package_of(file) for file in sources("sci", *FOLDERS) if file.name == "__init__.py"}
    assert sorted(SETUPTOOLS["packages"]) == sorted(found)


def test_every_module_is_in_a_package() -> None:
    packages = set(SETUPTOOLS["packages"])
    for file in sources("sci", *FOLDERS):
        name = package_of(file)
        assert name in packages or name.rpartition(".")[0] in packages, f"{file} is in no package"


def test_package_folders() -> None:
    assert SETUPTOOLS["package-dir"] == {"sci": "sci", **{f"sci.{name}": name for name in FOLDERS}}


def test_every_data_file_is_packaged() -> None:
    data = SETUPTOOLS["package-data"]
    files = [
        file
        for folder in ("sci", *FOLDERS)
        for file in (ROOT / folder).rglob("*")
        if file.is_file() and file.suffix != ".py" and "__pycache__" not in file.parts
    ]
    assert files
    for file in files:
        folder, inside = file.relative_to(ROOT).as_posix().split("/", 1)
        patterns = data["sci" if folder == "sci" else f"sci.{folder}"]
        assert any(
            fnmatch(inside, pattern) and inside.count("/") == pattern.count("/")
            for pattern in patterns
        ), f"{folder}/{inside} is matched by no pattern of package-data: {patterns}"


def test_no_pattern_of_package_data_is_idle() -> None:
    for package, patterns in SETUPTOOLS["package-data"].items():
        folder = ROOT / (package if package == "sci" else package.removeprefix("sci."))
        for pattern in patterns:
            assert any(folder.glob(pattern)), f"{package}: {pattern} matches nothing"


def test_versions_agree() -> None:
    import sci

    changes = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    citation = re.search(r"^version: (\S+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    assert changes[0] == sci.__version__
    assert citation is not None and citation[1] == sci.__version__


def test_constraints_pin_every_dependency() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line]
    pins = [line for line in lines if not line.startswith("#")]
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[A-Za-z0-9.]+", pin) for pin in pins)
    pinned = {re.sub(r"[-_.]+", "-", pin.partition("==")[0].lower()) for pin in pins}
    extras = PROJECT["project"]["optional-dependencies"]
    wanted = [
        *PROJECT["project"]["dependencies"],
        *(one for name in extras for one in extras[name]),
    ]
    for requirement in wanted:
        found = re.match(r"[A-Za-z0-9._-]+", requirement)
        assert found is not None
        name = re.sub(r"[-_.]+", "-", found[0].lower())
        assert name == "sciflows" or name in pinned, f"constraints.txt does not pin {name}"


@pytest.mark.parametrize("folder", ["sci", *FOLDERS])
def test_arrows_point_down(folder: str) -> None:
    for file in sources(folder):
        found = breaches(file.read_text(), package_of(file), file.name == "__init__.py")
        assert not found, f"{file.relative_to(ROOT)} must not import {', '.join(found)}"


def test_no_bare_imports() -> None:
    for file in sources("sci", *FOLDERS, "tests", "benchmarks", "docs", "notebooks"):
        found = bare(file.read_text())
        assert not found, f"{file.relative_to(ROOT)}: import sci.{found[0]}, not {found[0]}"


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sci.model", "import sci.graphs"),
        ("sci.model", "from sci import pde"),
        ("sci.model", "def f():\n    import sci\n    return sci.cells.load()"),
        ("sci.samplers.engine", "from ..graphs import dense"),
        ("sci.graphs.gdss", "from sci.pde.fields import Field"),
        ("sci.graphs.gdss", "from ..pde import fields"),
        ("sci.datasets.locate", "from sci.files import atomic"),
        ("sci.datasets.locate", "import sci"),
    ],
)
def test_the_check_of_arrows_sees(module: str, source: str) -> None:
    assert breaches(source, module)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("sci.model", "from sci.files import atomic\nfrom . import tree\nimport graphlib"),
        ("sci.graphs.gdss", "from sci import Model, datasets\nfrom .dense import DenseGraphs"),
        ("sci.datasets.locate", "from sci.datasets.catalogue import Card"),
    ],
)
def test_the_check_of_arrows_lets_pass(module: str, source: str) -> None:
    assert not breaches(source, module)


def test_the_check_of_bare_imports_sees() -> None:
    assert bare("import graphs") and bare("from pde.fields import Field")
    assert not bare("from sci import graphs") and not bare("import graphs_of_others")
