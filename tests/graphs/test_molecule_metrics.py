"""FCD, NSPDK and the table of molecules."""

from __future__ import annotations

import warnings
from dataclasses import replace

import numpy as np
import pytest

from sci.graphs import chemnet, load
from sci.graphs.encoding import Vocabulary
from sci.graphs.molecule_metrics import evaluate, independent
from sci.graphs.molecules import Molecules

REAL = [
    "CCO",
    "CCN",
    "CC=O",
    "C1CC1O",
    "CC#N",
    "COC",
    "CCC",
    "NC=O",
    "CC(C)O",
    "C1CCO1",
    "CCF",
    "OCCO",
]


@pytest.fixture(scope="module")
def qm9() -> load.MoleculeData:
    return load.molecules("qm9")


@pytest.fixture(scope="module")
def small(qm9) -> load.MoleculeData:
    """Six hundred rows of QM9: the same code in seconds."""
    rows = np.random.default_rng(0).permutation(len(qm9.smiles))[:600]
    smiles = [qm9.smiles[row] for row in rows]
    splits = {"train": np.arange(450), "test": np.arange(450, 600)}
    return load.MoleculeData("small", smiles, splits, qm9.vocabulary, 9, True, cache=False)


def cheap(molecules: Molecules, reference, **options):
    return evaluate(molecules, reference, fcd=0, nspdk=0, progress=False, **options).rows


def test_columns_count_what_they_say():
    generated = Molecules.concat(
        [
            Molecules.from_smiles(["CCO", "CCO", "CCCC", "CC.N", "c1ccoc1"]),
            Molecules(np.array([[3, 3]]), np.array([[[0, 3], [3, 0]]])),
        ]
    )
    row = cheap(generated, REAL, train=Molecules.from_smiles(["CCO", "CC"]), floor=False)["model"]
    assert row["n"] == 6
    assert row["validity"] == row["valency"] == pytest.approx(5 / 6)
    assert row["connected"] == pytest.approx(4 / 6)
    # Largest pieces: CCO twice, CCCC, CC, c1ccoc1; the training set knows CCO and CC.
    assert row["uniqueness"] == pytest.approx(4 / 5) and row["novelty"] == pytest.approx(2 / 4)
    assert row["V.U.N."] == pytest.approx(2 / 6)
    assert row["rings"] == pytest.approx(1 / 5)
    assert row["length"] == pytest.approx((3 + 3 + 4 + 2 + 7) / 5)


def test_nothing_valid_gives_no_figures_and_no_error():
    bad = Molecules(np.array([[3, 3]]), np.array([[[0, 3], [3, 0]]]))
    row = evaluate(bad, REAL, train=["C"], nspdk=5, progress=False, floor=False).rows["model"]
    assert (
        row["validity"] == 0
        and row["uniqueness"] is None
        and row["FCD"] is None
        and row["NSPDK"] is None
    )


def test_a_charged_training_molecule_is_not_novel_when_it_comes_back_neutral():
    smiles = ["C[NH2+]CC(=O)[O-]", "CCO", "CCC"] * 4
    data = load.MoleculeData(
        "own",
        smiles,
        {"train": np.arange(9), "test": np.arange(9, 12)},
        load.Vocabulary(),
        6,
        True,
        cache=False,
    )
    assert data.train.smiles[0] == "CNCC(=O)O"
    assert cheap(data.train, data, floor=False)["model"]["novelty"] == 0


def test_the_table_has_every_row_and_is_the_same_twice(small):
    generated = small.train.resample(60, seed=3)
    first = evaluate(generated, small, nspdk=20, draws=2, progress=False)
    assert list(first.rows) == ["model", "training set", "floor", "independent atoms and bonds"]
    model, floor, bad = (first.rows[k] for k in ("model", "floor", "independent atoms and bonds"))
    assert model["novelty"] == 0 and model["validity"] == 1
    assert abs(model["FCD"] - floor["FCD"][0]) < 4 * floor["FCD"][1] + 1
    assert bad["FCD"] > 1.5 * model["FCD"] and bad["NSPDK"] > 1.2 * model["NSPDK"]
    assert floor["FCD"][1] > 0 and first == evaluate(
        generated, small, nspdk=20, draws=2, progress=False
    )


def test_without_a_training_set_the_floor_halves_the_reference():
    report = evaluate(Molecules.from_smiles(REAL), REAL, fcd=0, nspdk=0, draws=3, progress=False)
    assert list(report.rows) == ["model", "floor"] and report.rows["model"]["novelty"] is None
    assert report.rows["floor"]["n"] == 6 and "one half" in report.notes["floor"]


def test_rows_of_real_molecules_are_kept_for_named_data(small, tmp_path, monkeypatch):
    monkeypatch.setenv("SCI_CACHE", str(tmp_path))
    named = replace(small, named=True)
    options = {"nspdk": 5, "draws": 2, "progress": False}
    first = evaluate(named.train.resample(20), named, **options)
    assert len(list(tmp_path.iterdir())) == 5
    monkeypatch.setattr(chemnet, "nspdk_mean", lambda *_, **__: np.zeros(65_537))
    second = evaluate(named.train.resample(20), named, **options)
    for row in ("training set", "floor", "independent atoms and bonds"):
        assert second.rows[row] == first.rows[row]
    assert second.rows["model"]["NSPDK"] != first.rows["model"]["NSPDK"]


def test_fcd_is_the_one_of_the_package(small):
    fcd = pytest.importorskip("fcd")
    first, second = small.split_smiles("train")[:150], small.split_smiles("test")[:150]
    ours = chemnet.frechet(chemnet.chemnet_moments(first), chemnet.chemnet_moments(second))
    network = fcd.load_ref_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        theirs = fcd.get_fcd(first, second, network)
    assert ours == pytest.approx(theirs, rel=2e-3)


def test_repeated_smiles_count_as_often_as_they_occur():
    pytest.importorskip("fcd")
    twice = chemnet.chemnet_moments(["CCO", "CCO", "CCO", "CCN"])
    once = chemnet.chemnet_moments(["CCO", "CCN"])
    assert twice.count == 4
    apart = once.mean - twice.mean
    assert np.abs(apart).max() > 0 and chemnet.frechet(once, once) == pytest.approx(0, abs=1e-6)
    with pytest.raises(ValueError, match="at least two"):
        chemnet.chemnet_moments(["C"])


def test_nspdk_is_the_linear_kernel_over_all_pairs():
    eden = pytest.importorskip("eden.graph")
    first, second = REAL[:5], REAL[5:]
    features = [
        eden.Vectorizer(complexity=4, discrete=True)
        .transform([chemnet._labelled(s) for s in part])
        .toarray()
        for part in (first, second)
    ]
    x, y = features
    expected = (x @ x.T).mean() + (y @ y.T).mean() - 2 * (x @ y.T).mean()
    found = chemnet.nspdk_mmd(chemnet.nspdk_mean(first), chemnet.nspdk_mean(second))
    assert found == pytest.approx(expected) and found > 0
    assert np.allclose(np.square(x).sum(1), 1)


def test_nspdk_does_not_depend_on_the_order_of_atoms():
    pytest.importorskip("eden")
    assert np.allclose(chemnet.nspdk_mean(["OCC"]), chemnet.nspdk_mean(["CCO"]))
    assert chemnet.nspdk_mmd(chemnet.nspdk_mean(["C=CO"]), chemnet.nspdk_mean(["CCO"])) > 0.1


def test_independent_atoms_and_bonds_have_the_frequencies_of_the_data(small):
    drawn = independent(small.train, 4000, seed=1)
    for found, real in (
        (np.bincount(drawn.atoms[drawn.mask]), np.bincount(small.train.atoms[small.train.mask])),
        (np.bincount(drawn.sizes), np.bincount(small.train.sizes)),
    ):
        assert np.allclose(found / found.sum(), real / real.sum(), atol=0.02)
    per_pair = [m.bonds.sum() / (m.sizes * (m.sizes - 1)).sum() for m in (drawn, small.train)]
    assert per_pair[0] == pytest.approx(per_pair[1], rel=0.03)


def test_bad_questions_are_refused(small):
    with pytest.raises(ValueError, match="no molecules"):
        evaluate(small.train[:0], small)
    with pytest.raises(TypeError, match="list of SMILES"):
        evaluate(small.train, [1, 2])
    with pytest.raises(KeyError, match="qm9"):
        evaluate(small.train, "qm8")


@pytest.mark.slow
def test_the_floor_of_qm9_is_the_known_one(qm9):
    """2,000 training SMILES against the 13,082 test rows: about .22."""
    rng = np.random.default_rng(0)
    train = qm9.canonical("train")
    some = [train[row] for row in rng.choice(len(train), 2000, replace=False)]
    value = chemnet.frechet(
        chemnet.chemnet_moments(some), chemnet.chemnet_moments(qm9.canonical("test"))
    )
    assert 0.18 < value < 0.28


def test_smiles_of_ones_own_are_compared_as_molecules():
    molecules = Molecules.from_smiles(["CCO", "CC", "C1CC1O"])
    options = {"fcd": 0, "nspdk": 0, "progress": False}
    table = molecules.evaluate(["OCC", "CC", "C(O)C", "OC1CC1"], train=["OCC", "C(C)"], **options)
    assert table.rows["model"]["novelty"] == pytest.approx(1 / 3)
    assert table.rows["model"]["V.U.N."] == pytest.approx(1 / 3)
    with pytest.raises(ValueError, match=r"Row 1 \('xx'\)"):
        molecules.evaluate(["CCO", "xx"], **options)


def test_a_reference_too_small_for_a_figure():
    molecules = Molecules.from_smiles(["CCO", "CC"])
    table = molecules.evaluate(["CCO"], nspdk=0, progress=False)
    assert table.rows["model"]["FCD"] is None and table.rows["model"]["validity"] == 1
    with pytest.raises(ValueError, match="no valid molecules to compare with in molecules"):
        molecules.evaluate(load.molecules(["CCO", "CC"], cache=False), progress=False)


def test_a_training_salt_is_not_novel_by_its_largest_piece():
    salts = ["CCO.Cl", "CC[NH3+].[Cl-]", "CCC"]
    data = load.MoleculeData(
        "salts",
        salts,
        {"train": np.arange(3), "test": np.arange(3)},
        Vocabulary(("C", "N", "O", "Cl")),
        4,
        cache=False,
    )
    for table in (
        data.train.evaluate(data, fcd=0, nspdk=0, progress=False),
        Molecules.from_smiles(["CCO"]).evaluate(salts, train=salts, fcd=0, nspdk=0, progress=False),
    ):
        assert table.rows["model"]["novelty"] == 0 and table.rows["model"]["V.U.N."] == 0


def test_single_atoms_have_a_baseline():
    drawn = independent(Molecules.from_smiles(["C", "N"]), 20)
    assert drawn.max_atoms == 1 and set(drawn.smiles) == {"C", "N"}
