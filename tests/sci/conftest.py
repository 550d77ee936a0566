"""The toy model of ``toy.py``, its registry, and a trained copy of it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))


@pytest.fixture(autouse=True)
def _toys(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every test here knows the toys, in this process and in those it starts."""
    monkeypatch.setenv("SCI_REGISTRY", str(HERE / "toys" / "registry.toml"))
    path = [str(HERE), str(HERE.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The checkpoint folder of an untrained toy."""
    import torch
    from toy import Toy

    torch.manual_seed(1)
    return Toy().save(tmp_path / "checkpoint", card="# Toy\n\nA toy.\n")
