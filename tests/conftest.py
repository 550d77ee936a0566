"""What all tests share: one thread, fixed seeds, and the optional folder of reference data."""

from __future__ import annotations

import os
import random
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]

# No windows, and no traces in the user's own cache.
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("SCI_CACHE", str(ROOT / "build" / "cache"))
torch.set_num_threads(1)
hypothesis.settings.register_profile("sci", deadline=None, derandomize=True)
hypothesis.settings.load_profile("sci")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked ``gpu`` are skipped where there is no CUDA device."""
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@pytest.fixture(autouse=True)
def _same_seed() -> None:
    """Every test starts from the same global seeds, whatever ran before it."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - libraries under test may still draw from it
    torch.manual_seed(0)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with reference arrays and raw data: ``$SCI_SHARED``, or ``shared`` beside the repository."""
    folder = Path(os.environ.get("SCI_SHARED", ROOT.parent / "shared"))
    if not folder.is_dir():
        pytest.skip(f"no reference data: {folder} is not a folder (set SCI_SHARED to name one)")
    return folder
