"""Encoding, building, the charge rule, the data object and its files."""

from __future__ import annotations

import re
import warnings

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rdkit import Chem
from rdkit.rdBase import BlockLogs

from sci.files import FileDamaged
from sci.graphs import building, encoding
from sci.graphs.encoding import Vocabulary, canonical_smiles, encode_smiles
from sci.graphs.molecules import Molecules

WIDE = Vocabulary(("C", "N", "O", "F", "P", "S", "Cl", "Br", "I"))
SOME = ["CCO", "c1ccccc1O", "N#CC=O", "C1CC1", "C[N+](C)(C)C", "OC(=O)c1ccoc1", "F", "CC(C)=C=O"]


def random_arrays(count: int, size: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    atoms = rng.integers(0, len(WIDE.atoms), (count, size))
    atoms[rng.random((count, size)) < 0.15] = -1
    bonds = np.tril(rng.choice(4, (count, size, size), p=[0.62, 0.25, 0.1, 0.03]), -1)
    bonds *= (atoms >= 0)[:, :, None] & (atoms >= 0)[:, None]
    return atoms, bonds + bonds.transpose(0, 2, 1)


def charged_one_by_one(atoms: np.ndarray, bonds: np.ndarray) -> tuple[list[int], bool]:
    """The rule as it is told: after each bond, ask RDKit who has too many, and read the answer."""
    normal = {7: 3, 8: 2, 16: 2}
    mol = Chem.RWMol()
    place = {i: mol.AddAtom(Chem.Atom(WIDE.numbers[a])) for i, a in enumerate(atoms) if a >= 0}
    kinds = [None, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE]
    properties = Chem.SanitizeFlags.SANITIZE_PROPERTIES
    for i, j in zip(*np.nonzero(np.tril(bonds)), strict=True):
        mol.AddBond(place[i], place[j], kinds[bonds[i, j]])
        try:
            Chem.SanitizeMol(mol, properties)
        except ValueError as error:
            index, valence = map(int, re.findall(r"\d+", str(error).split("#")[1])[:2])
            atom = mol.GetAtomWithIdx(index)
            if valence - normal.get(atom.GetAtomicNum(), valence) == 1:
                atom.SetFormalCharge(1)
    passes = mol.GetNumAtoms() > 0 and Chem.SanitizeMol(mol, properties, catchErrors=True) == 0
    return [atom.GetFormalCharge() for atom in mol.GetAtoms()], passes


def test_the_charge_rule_is_the_one_told_bond_by_bond():
    atoms, bonds = random_arrays(600, 6, seed=0)
    found = building.charges(atoms, bonds, WIDE)
    valency = Molecules(atoms, bonds, WIDE).valency
    charged = 0
    with BlockLogs():
        for row in range(len(atoms)):
            told, passes = charged_one_by_one(atoms[row], bonds[row])
            assert found[row][atoms[row] >= 0].tolist() == told
            assert valency[row] == passes
            charged += sum(told)
    assert charged > 30 and 0.1 < valency.mean() < 0.9


@pytest.mark.parametrize("text", SOME)
def test_molecules_come_back_from_arrays(text):
    assert Molecules.from_smiles([text], WIDE).smiles == canonical_smiles([text])


def test_arrays_are_kekulised_and_padded():
    atoms, bonds = encode_smiles(["c1ccccc1", "C=O"])
    assert atoms.dtype == bonds.dtype == np.int8
    assert atoms[1].tolist() == [0, 2, -1, -1, -1, -1]
    ring = bonds[0]
    assert sorted(ring[np.triu_indices(6)].tolist())[-6:] == [1, 1, 1, 2, 2, 2]
    assert np.array_equal(ring, ring.T) and not bonds[1, 2:].any()


def test_stereochemistry_and_anions_are_dropped():
    assert Molecules.from_smiles(["C[C@H](N)O", "F/C=C/F", "CC(=O)[O-]"]).smiles == [
        "CC(N)O",
        "FC=CF",
        "CC(=O)O",
    ]


def test_the_three_verdicts_differ_as_told():
    atoms = np.array([[0, 0, -1], [0, 3, 3], [0, 2, 0], [-1, -1, -1]])
    bonds = np.zeros((4, 3, 3), dtype=int)
    bonds[1, 1, 2] = bonds[1, 2, 1] = 2
    bonds[2, 0, 1] = bonds[2, 1, 0] = 2
    bonds[2, 2, 1] = bonds[2, 1, 2] = 1
    molecules = Molecules(atoms, bonds)
    assert molecules.valency.tolist() == [True, False, True, False]
    assert molecules.valid.tolist() == [True, False, True, False]
    assert molecules.connected.tolist() == [False, False, True, False]
    assert molecules.smiles == ["C.C", None, "C=[O+]C", None]
    assert molecules.mols[1] is None and molecules.mols[2].GetNumAtoms() == 3


def test_valency_asks_the_molecule_as_built_and_validity_all_of_rdkit():
    nitro = Molecules(
        np.array([[1, 0, 2, 2]]), bond_matrix(4, [(0, 1, 1), (0, 2, 2), (0, 3, 2)])[None]
    )
    assert not nitro.valency[0] and nitro.valid[0] and nitro.smiles == ["C[N+](=O)[O-]"]


def bond_matrix(size: int, bonds: list[tuple[int, int, int]]) -> np.ndarray:
    matrix = np.zeros((size, size), dtype=int)
    for i, j, order in bonds:
        matrix[i, j] = matrix[j, i] = order
    return matrix


def test_the_largest_piece_has_most_atoms():
    both = Molecules.from_smiles(["CCCC.OCCCCO", "C.N", "C#C.CC"])
    assert both.verdict.largest == ["OCCCCO", "C", "C#C"]


@given(st.integers(0, 10**6))
def test_any_valid_molecule_is_encoded_and_built_again(seed):
    atoms, bonds = random_arrays(40, 5, seed)
    molecules = Molecules(np.where(atoms > 0, atoms % 4, atoms), bonds)
    good = [text for text in molecules.smiles if text is not None and "+" not in text]
    assert Molecules.from_smiles(good).smiles == good


@pytest.mark.parametrize(
    ("smiles", "options", "message"),
    [
        (["CCO", "CCS"], {}, r"[Rr]ow 1 \('CCS'\): atom 2 is S, .*from_smiles.*on_error='skip'"),
        (["CCO", "C(C"], {}, r"[Rr]ow 1 \('C\(C'\): RDKit cannot parse"),
        (["CCCC"], {"max_atoms": 3}, r"4 heavy atoms, but max_atoms=3"),
        (["CCO", ""], {}, "no atoms"),
        (["C=C"], {"vocabulary": Vocabulary(bonds=(1,))}, "atoms 0 and 1 is of type DOUBLE"),
        ([None], {}, "cannot parse"),
    ],
)
def test_what_cannot_be_encoded_is_named(smiles, options, message):
    with pytest.raises(ValueError, match=message):
        encode_smiles(smiles, **options)


def test_skipping_counts_what_it_leaves_out():
    with pytest.warns(UserWarning, match="2 of 3 molecules were left out; the first: row 0"):
        atoms, _ = encode_smiles(["CS", "CC", "C("], on_error="skip")
    assert atoms.tolist() == [[0, 0]]
    with pytest.raises(TypeError, match="one string"):
        encode_smiles("CCO")
    with pytest.raises(ValueError, match="neither"):
        encode_smiles(["C"], on_error="ignore")


def test_a_vocabulary_is_learnt_and_checked():
    assert Vocabulary.from_smiles(["CCS", "N", "CBr", "CF"]).atoms == ("C", "N", "F", "S", "Br")
    assert Vocabulary(**WIDE.to_dict()) == WIDE
    for bad in (
        {"atoms": ("C", "Xx")},
        {"atoms": ("C", "C")},
        {"atoms": ("H",)},
        {"atoms": ()},
        {"bonds": (2, 1)},
    ):
        with pytest.raises(ValueError):
            Vocabulary(**bad)


def test_the_cache_gives_the_same_arrays_and_survives_damage(tmp_path, monkeypatch):
    first = encode_smiles(SOME, WIDE, cache=tmp_path)
    (file,) = tmp_path.iterdir()
    monkeypatch.setattr(encoding, "encode_mols", lambda *_: pytest.fail("encoded again"))
    assert all(
        np.array_equal(a, b)
        for a, b in zip(first, encode_smiles(SOME, WIDE, cache=tmp_path), strict=True)
    )
    monkeypatch.undo()
    file.write_bytes(file.read_bytes()[:100])
    assert all(
        np.array_equal(a, b)
        for a, b in zip(first, encode_smiles(SOME, WIDE, cache=tmp_path), strict=True)
    )
    encode_smiles(SOME, WIDE, max_atoms=12, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_index_concat_and_resample():
    molecules = Molecules.from_smiles(SOME, WIDE, attrs={"seed": 1, "model": "a"})
    parts = [molecules[:2], Molecules.from_smiles(SOME[2:], WIDE, attrs={"seed": 2, "model": "a"})]
    both = Molecules.concat(parts)
    assert both.smiles == molecules.smiles and both.attrs == {"model": "a"}
    assert molecules[-1].smiles == ["CC(C)=C=O"] and molecules[molecules.sizes == 1].smiles == ["F"]
    assert len(molecules.resample(20)) == 20 and len(set(molecules.resample(8, seed=1).smiles)) == 8
    with pytest.raises(IndexError):
        molecules[8]
    with pytest.raises(ValueError, match="vocabulary"):
        Molecules.concat([molecules, Molecules.from_smiles(["C"])])


@pytest.mark.parametrize(
    ("atoms", "bonds", "message"),
    [
        (np.zeros((2, 3), int), np.zeros((2, 3, 2), int), "expected"),
        (np.zeros((1, 2)), np.zeros((1, 2, 2), int), "integers"),
        (np.full((1, 2), 4), np.zeros((1, 2, 2), int), "-1 .padding. to 3"),
        (np.zeros((1, 2), int), np.full((1, 2, 2), 4), "orders"),
        (np.zeros((1, 2), int), np.array([[[0, 1], [0, 0]]]), "not symmetric"),
        (np.zeros((1, 2), int), np.eye(2, dtype=int)[None], "to itself"),
        (np.array([[0, -1]]), 1 - np.eye(2, dtype=int)[None], "padding"),
    ],
)
def test_arrays_that_are_no_molecules_are_refused(atoms, bonds, message):
    with pytest.raises(ValueError, match=message):
        Molecules(atoms, bonds)


@pytest.mark.parametrize("suffix", [".h5", ".smi", ".sdf"])
def test_files_give_back_the_molecules(tmp_path, suffix):
    molecules = Molecules.from_smiles(SOME, WIDE, attrs={"model": "none", "seed": 0})
    path = tmp_path / f"molecules{suffix}"
    molecules.write(path)
    back = Molecules.read(path)
    assert back.smiles == molecules.smiles
    if suffix == ".h5":
        assert back.vocabulary == WIDE and back.attrs == molecules.attrs
        assert np.array_equal(back.bonds, molecules.bonds) and np.array_equal(
            back.atoms, molecules.atoms
        )
        with h5py.File(path) as file:
            assert file.attrs["data_class"] == "sci.graphs.molecules:Molecules"
            assert file["bonds"].dtype == np.int8 and file["bonds"].shape == (8, 28)


def test_only_valid_molecules_go_into_chemical_files_and_keep_their_row(tmp_path):
    molecules = Molecules(np.array([[3, 3], [0, 0]]), np.array([[[0, 2], [2, 0]]] * 2))
    assert molecules.to_smi(tmp_path / "m.smi") == 1 and molecules.to_sdf(tmp_path / "m.sdf") == 1
    assert (tmp_path / "m.smi").read_text() == "C=C 1\n"
    (mol,) = Chem.SDMolSupplier(str(tmp_path / "m.sdf"))
    assert mol.GetProp("_Name") == "1" and mol.GetConformer().GetPositions().any()


def test_damaged_and_foreign_files_are_named(tmp_path):
    path = tmp_path / "molecules.h5"
    Molecules.from_smiles(SOME, WIDE).write(path)
    with h5py.File(path, "r+") as file:
        file["atoms"][0, 0] = 1
    with pytest.raises(FileDamaged, match="molecules.h5"):
        Molecules.read(path)
    with pytest.raises(ValueError, match="suffixes"):
        Molecules.read(tmp_path / "molecules.xyz")
    for suffix in (".h5", ".smi", ".sdf"):
        with pytest.raises(FileNotFoundError):
            Molecules.read(tmp_path / f"none{suffix}")


def test_other_libraries_get_the_same_graph():
    molecules = Molecules.from_smiles(["N#CC=O"])
    (data,), (graph,) = molecules.to_pyg(), molecules.to_networkx()
    assert data.z.tolist() == [7, 6, 6, 8] and data.x.argmax(1).tolist() == [1, 0, 0, 2]
    orders = {
        frozenset(e): int(a.argmax()) + 1
        for e, a in zip(data.edge_index.T.tolist(), data.edge_attr, strict=True)
    }
    assert orders == {frozenset({0, 1}): 3, frozenset({1, 2}): 1, frozenset({2, 3}): 2}
    assert {frozenset(e): d["order"] for *e, d in graph.edges(data=True)} == orders
    assert [graph.nodes[k]["symbol"] for k in range(4)] == ["N", "C", "C", "O"]


def test_rdkit_molecules_lose_their_hydrogens():
    mols = [Chem.AddHs(Chem.MolFromSmiles("CCO"))]
    assert Molecules.from_rdkit(mols).smiles == ["CCO"]
    with pytest.raises(ValueError, match="row 0|Row 0"):
        Molecules.from_rdkit([None])


def test_ten_thousand_molecules_take_seconds():
    import time

    molecules = Molecules.from_smiles(SOME * 125, WIDE)
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert molecules.connected.all()
    assert time.process_time() - start < 2.0


@pytest.mark.parametrize(("smiles", "symbol"), [("*CC", r"\*"), ("[Pu]", "Pu")])
def test_atoms_that_no_vocabulary_holds_are_named(smiles, symbol):
    with pytest.raises(ValueError, match=rf"Row 1 .*atom 0 is {symbol}; a vocabulary"):
        Vocabulary.from_smiles(["CCO", smiles])


@pytest.mark.parametrize("suffix", ["smi", "sdf"])
def test_a_file_without_molecules_reads_as_none(tmp_path, suffix):
    Molecules(np.array([[3, 3]]), np.array([[[0, 2], [2, 0]]])).write(tmp_path / f"none.{suffix}")
    assert len(Molecules.read(tmp_path / f"none.{suffix}")) == 0


def test_a_broken_record_is_named_also_where_no_record_is_whole(tmp_path):
    (tmp_path / "broken.sdf").write_text("no molecule\nat all\n$$$$\n")
    with pytest.raises(ValueError, match="Row 0"):
        Molecules.read(tmp_path / "broken.sdf")


@pytest.mark.parametrize("order", [-1, 4, 256, 257])
def test_bond_orders_are_not_taken_modulo_256(order):
    with pytest.raises(ValueError, match="expected 0 and the orders"):
        Molecules(np.array([[0, 0]]), np.array([[[0, order], [order, 0]]]))


def test_rdkit_molecules_that_cannot_be_sanitised_are_named_or_skipped():
    mols = [Chem.MolFromSmiles("C(C)(C)(C)(C)C", sanitize=False), Chem.MolFromSmiles("CCO")]
    with pytest.raises(ValueError, match="Row 0"):
        Molecules.from_rdkit(mols)
    with pytest.warns(UserWarning, match="1 of 2"):
        assert Molecules.from_rdkit(mols, on_error="skip").smiles == ["CCO"]
