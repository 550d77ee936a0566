"""Batch generation into the files of molecules and graphs."""

from __future__ import annotations

import pytest
import torch

from sci.generation import generate_to
from sci.graphs.mended import MendedGDSS, MendedGDSSConfig
from sci.graphs.molecules import Molecules


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return MendedGDSS(
        MendedGDSSConfig(
            node_frequencies=(0.6, 0.4),
            edge_frequencies=(0.6, 0.2, 0.1, 0.1),
            sizes=(0, 0, 1, 1),
            atoms=("C", "O"),
            depth=1,
            node_width=8,
            pair_width=8,
            triangle_width=2,
            time_width=8,
        )
    ).eval()


def generate(model, n, out, **request):
    return generate_to(
        model, n, out, request={"steps": 2, **request}, device="cpu", chunk=4, progress=False
    )


def test_a_file_equals_sampling(model, tmp_path):
    found = Molecules.read(generate(model, 10, tmp_path / "a.h5"))
    whole = model.sample(10, steps=2, progress=False)
    assert found.sizes.tolist() == whole.sizes.tolist()
    assert found.smiles == whole.smiles
    assert not (tmp_path / "a.h5.parts").exists()


def test_a_foreign_suffix_is_refused_before_any_work(model, tmp_path):
    with pytest.raises(ValueError, match=r"\.h5, \.hdf5, \.smi, \.sdf"):
        generate(model, 10, tmp_path / "a.xyz")
    assert list(tmp_path.iterdir()) == []


def test_a_refused_request_does_not_stand_in_the_way(model, tmp_path):
    with pytest.raises(ValueError, match="at most 3 nodes"):
        generate(model, 4, tmp_path / "a.h5", size=9)
    assert len(Molecules.read(generate(model, 4, tmp_path / "a.h5", size=3))) == 4


def test_another_surrogate_makes_another_file(model, tmp_path, monkeypatch):
    """The weights of models that take part decide the result as well as the model's own."""
    partner = torch.nn.Linear(1, 1)
    partner.digest = lambda: "one"
    monkeypatch.setattr(type(model), "partners", lambda self, request: [partner])
    out = generate(model, 4, tmp_path / "a.h5")
    assert generate(model, 8, tmp_path / "a.h5") == out
    partner.digest = lambda: "another"
    with pytest.raises(FileExistsError, match="not made by this model"):
        generate(model, 12, tmp_path / "a.h5")
