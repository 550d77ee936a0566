"""Data sets by name and of one's own, their splits, and the restricted pickle reader."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile

import networkx
import numpy as np
import pytest

from sci.graphs import load
from sci.graphs.dense import Graphs
from sci.graphs.molecules import Molecules
from sci.graphs.pickled import read_pickle

GRAPHS = [networkx.cycle_graph(n) for n in range(3, 13)]


@pytest.fixture(scope="module")
def qm9() -> load.MoleculeData:
    return load.molecules("qm9")


def test_qm9_is_split_by_row_as_gdss_does(qm9):
    assert len(qm9.smiles) == 133_885
    assert len(qm9.rows["train"]) == 120_803 and len(qm9.rows["test"]) == 13_082
    assert not set(qm9.rows["train"]) & set(qm9.rows["test"])
    # The published list begins with "007278", which is row 7278 and not identifier 7278.
    assert 7278 in qm9.rows["test"] and qm9.smiles[0] == "C"


def test_qm9_molecules_pass_through_arrays_unchanged_but_for_charges(qm9):
    small = Molecules.from_smiles(qm9.split_smiles("test")[:300], qm9.vocabulary, qm9.max_atoms)
    assert small.atoms.shape == (300, 9) and small.connected.all()
    for before, after in zip(qm9.canonical("test")[:300], small.smiles, strict=True):
        assert before == after or "+" in before


@pytest.mark.slow
def test_all_of_qm9_is_encoded_and_cached(qm9, tmp_path):
    data = load.molecules("qm9", cache=tmp_path)
    assert len(data.train) == 120_803 and len(data.test) == 13_082
    assert data.train.valid.all() and np.bincount(data.train.sizes)[9] > 90_000
    assert len(list(tmp_path.iterdir())) == 2


def test_unknown_names_list_close_ones(qm9):
    with pytest.raises(KeyError, match="qm9"):
        load.molecules("qm-9")
    with pytest.raises(KeyError, match="community-small"):
        load.graphs("community")
    with pytest.raises(KeyError, match="train, test"):
        qm9.split("validation")


def test_own_smiles_from_a_list_and_from_files(tmp_path):
    smiles = ["CCO", "CS", "C[C@H](N)O", "c1ccccc1", "CCBr"] * 4
    (tmp_path / "a.smi").write_text("".join(f"{s} name{k}\n" for k, s in enumerate(smiles)))
    (tmp_path / "a.csv").write_text(
        "id,SMILES\n" + "".join(f"{k},{s}\n" for k, s in enumerate(smiles))
    )
    with gzip.open(tmp_path / "a.tsv.gz", "wt") as stream:
        stream.write("smiles\tx\n" + "".join(f"{s}\t1\n" for s in smiles))
    sources = [smiles, tmp_path / "a.smi", str(tmp_path / "a.csv"), tmp_path / "a.tsv.gz"]
    sets = [load.molecules(source, test_fraction=0.25, seed=1, cache=False) for source in sources]
    for data in sets:
        assert data.vocabulary.atoms == ("C", "N", "O", "S", "Br") and data.max_atoms == 6
        assert len(data.train) == 15 and len(data.test) == 5 and data.train.valid.all()
        assert data.split_smiles("test") == sets[0].split_smiles("test")
    assert "CC(N)O" in sets[0].smiles


def test_own_sdf(tmp_path):
    Molecules.from_smiles(["CCO", "C#N"]).write(tmp_path / "a.sdf")
    data = load.molecules(tmp_path / "a.sdf", test_fraction=0.0, cache=False)
    assert data.train.smiles == ["CCO", "C#N"] and len(data.test) == 0


def test_files_that_cannot_be_read_are_named(tmp_path):
    (tmp_path / "a.csv").write_text("id,structure\n1,C\n")
    (tmp_path / "a.xyz").write_text("C")
    (tmp_path / "bad.smi").write_text("CC\nC(\n")
    with pytest.raises(FileNotFoundError, match=r"none\.smi"):
        load.molecules(tmp_path / "none.smi")
    with pytest.raises(ValueError, match="its columns are id, structure"):
        load.molecules(tmp_path / "a.csv")
    with pytest.raises(ValueError, match=r"\.smi, \.txt, \.csv"):
        load.molecules(tmp_path / "a.xyz")
    with pytest.raises(ValueError, match="Row 1"):
        load.molecules(tmp_path / "bad.smi")
    with pytest.raises(ValueError, match="no molecules"):
        load.molecules([])
    with pytest.raises(ValueError, match="test_fraction"):
        load.molecules(["C"], test_fraction=1.5)


def test_the_published_archive_of_zinc_reads_as_a_list(tmp_path):
    content = b"CCO\nCN\n"
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        entry = tarfile.TarInfo("zinc.txt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    (tmp_path / "zinc.txt.gz").write_bytes(stream.getvalue())
    assert load.read_smiles(tmp_path / "zinc.txt.gz") == ["CCO", "CN"]


def test_moses_has_its_published_splits(shared):
    data = load.molecules("moses", folder=shared / "data" / "molecules")
    sizes = {split: len(rows) for split, rows in data.rows.items()}
    assert sizes == {"train": 1_584_663, "test": 176_074, "test scaffolds": 176_225}
    assert len(data.smiles) == sum(sizes.values())
    some = data.split_smiles("test scaffolds")[:200]
    encoded = Molecules.from_smiles(some, data.vocabulary, data.max_atoms)
    assert encoded.smiles == some


def test_zinc_has_its_published_split(shared):
    data = load.molecules("zinc250k", folder=shared / "data" / "molecules")
    assert len(data.rows["train"]) == 224_568 and len(data.rows["test"]) == 24_887
    some = Molecules.from_smiles(data.split_smiles("test")[:50], data.vocabulary, data.max_atoms)
    assert some.connected.all()


@pytest.mark.parametrize(
    ("name", "train", "test", "largest"),
    [
        ("community-small", 80, 20, 20),
        ("ego-small", 160, 40, 17),
        ("enzymes", 470, 117, 125),
        ("grid", 80, 20, 361),
        ("planar", 128, 40, 64),
        ("sbm", 128, 40, 187),
        ("tree", 128, 40, 64),
    ],
)
def test_named_graphs_have_their_published_splits(shared, name, train, test, largest):
    data = load.graphs(name, folder=shared / "data" / "graphs")
    assert (len(data.train), len(data.test)) == (train, test)
    assert data.graphs.sizes.max() == largest
    if "validation" in data.rows:
        assert len(data.split("validation")) == 32
    else:
        assert data.rows["test"].tolist() == list(range(test))


def test_own_graphs_from_a_list_and_from_a_file(tmp_path):
    Graphs.from_networkx(GRAPHS).write(tmp_path / "g.h5")
    first, second = load.graphs(GRAPHS, seed=3), load.graphs(tmp_path / "g.h5", seed=3)
    assert len(first.train) == 8 and len(first.test) == 2
    assert np.array_equal(first.test.adjacency, second.test.adjacency)
    assert sorted(np.concatenate([*first.rows.values()])) == list(range(10))
    assert not np.array_equal(first.rows["test"], load.graphs(GRAPHS, seed=4).rows["test"])


def test_pickled_lists_and_dicts_of_graphs_are_read(tmp_path):
    numbered = networkx.relabel_nodes(GRAPHS[3], {k: np.int64(k) for k in GRAPHS[3]})
    view = networkx.complete_graph(9).subgraph([1, 2, 4])
    (tmp_path / "list.pkl").write_bytes(pickle.dumps([GRAPHS[0], numbered, view]))
    (graphs,) = read_pickle(tmp_path / "list.pkl").values()
    for before, after in zip([GRAPHS[0], numbered, view], graphs, strict=True):
        assert list(before) == list(after) and networkx.utils.graphs_equal(
            networkx.Graph(before.edges), networkx.Graph(after.edges)
        )
    (tmp_path / "dict.pkl").write_bytes(pickle.dumps({"train": GRAPHS[:3], "val": GRAPHS[3:4]}))
    assert {key: len(part) for key, part in read_pickle(tmp_path / "dict.pkl").items()} == {
        "train": 3,
        "val": 1,
    }


class Attack:
    def __reduce__(self):
        return print, ("this must not be printed",)


@pytest.mark.parametrize(
    "content", [pickle.dumps([Attack()]), pickle.dumps([1]), b"no pickle", pickle.dumps(3)]
)
def test_pickles_of_anything_else_are_refused(tmp_path, capsys, content):
    (tmp_path / "bad.pkl").write_bytes(content)
    with pytest.raises(ValueError, match=r"bad\.pkl"):
        read_pickle(tmp_path / "bad.pkl")
    assert not capsys.readouterr().out


def test_tables_of_spreadsheets(tmp_path):
    (tmp_path / "marked.csv").write_text("\ufeffsmiles, name\nCCO,a\n\nCC,b\n", encoding="utf-8")
    assert load.read_smiles(tmp_path / "marked.csv") == ["CCO", "CC"]
    assert load.read_smiles(tmp_path / "marked.csv", "name") == ["a", "b"]
    (tmp_path / "ragged.csv").write_text("name,smiles\na,CCO\nb\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"ragged.csv, line 3, ends before the column 'smiles'"):
        load.read_smiles(tmp_path / "ragged.csv")
