"""Data sets of molecules and of generic graphs, by name or of your own, with their splits."""

from __future__ import annotations

import csv
import difflib
import gzip
import io
import json
import os
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np

from sci.graphs.dense import Graphs
from sci.graphs.encoding import Vocabulary, canonical_smiles
from sci.graphs.molecules import Molecules
from sci.graphs.pickled import read_pickle

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class _Source:
    table: str
    column: str
    canonical: bool
    rows: str
    atoms: tuple[str, ...]
    max_atoms: int


# GDSS reads the ids of both lists as zero-based rows of the table, and so do we.
_MOLECULES = {
    "qm9": _Source("qm9.csv.gz", "canonical", True, "valid_idx_qm9.json", ("C", "N", "O", "F"), 9),
    "zinc250k": _Source(
        "zinc250k.csv.gz",
        "smiles",
        False,
        "valid_idx_zinc250k.json",
        ("C", "N", "O", "F", "P", "S", "Cl", "Br", "I"),
        38,
    ),
}
_MOSES = {
    "train": "moses_train.csv.gz",
    "test": "moses_test.csv.gz",
    "test scaffolds": "moses_test_scaffolds.csv.gz",
}
_GRAPHS = ("community-small", "ego-small", "enzymes", "grid", "planar", "sbm", "tree")
_GDSS_TEST_FRACTION = 0.2
# Spreadsheets put a mark before the first character of a table.
_ENCODING = "utf-8-sig"


@dataclass(frozen=True)
class MoleculeData:
    """A data set of molecules: SMILES, the rows of each split, and the splits as arrays.

    Arguments:
        name: The data set's name.
        smiles: SMILES of all rows.
        rows: Row numbers by split; "train" and "test".
        vocabulary: Elements and bond orders.
        max_atoms: Padded size.
        is_canonical: Whether ``smiles`` are RDKit's canonical ones without stereochemistry.
        named: Whether it is one of the library's data sets.
        progress: Show a progress bar while encoding.
        cache: Where encoded arrays are kept, see :func:`sci.graphs.encoding.encode_smiles`.
    """

    name: str
    smiles: list[str]
    rows: dict[str, np.ndarray]
    vocabulary: Vocabulary
    max_atoms: int
    is_canonical: bool = False
    named: bool = False
    progress: bool = False
    cache: str | os.PathLike[str] | bool = True

    @cached_property
    def train(self) -> Molecules:
        """The training molecules."""
        return self.split("train")

    @cached_property
    def test(self) -> Molecules:
        """The test molecules: to be read once, after all choices are made."""
        return self.split("test")

    def split(self, name: str) -> Molecules:
        """The molecules of one split, encoded."""
        return Molecules.from_smiles(
            self.split_smiles(name),
            self.vocabulary,
            self.max_atoms,
            progress=self.progress,
            cache=self.cache,
            attrs={"data": self.name, "split": name},
        )

    def split_smiles(self, name: str) -> list[str]:
        """The SMILES of one split, as in the source."""
        return [self.smiles[row] for row in _split(self.name, self.rows, name)]

    def canonical(self, name: str) -> list[str]:
        """The SMILES of one split in canonical form, without stereochemistry."""
        smiles = self.split_smiles(name)
        return smiles if self.is_canonical else canonical_smiles(smiles)


@dataclass(frozen=True)
class GraphData:
    """A data set of generic graphs.

    Arguments:
        name: The data set's name.
        graphs: All graphs.
        rows: Graph numbers by split: "train", "test" and, for some sets, "validation".
    """

    name: str
    graphs: Graphs
    rows: dict[str, np.ndarray]

    @property
    def train(self) -> Graphs:
        """The training graphs."""
        return self.split("train")

    @property
    def test(self) -> Graphs:
        """The test graphs: to be read once, after all choices are made."""
        return self.split("test")

    def split(self, name: str) -> Graphs:
        """The graphs of one split."""
        return self.graphs[_split(self.name, self.rows, name)]


def molecules(
    source: str | os.PathLike[str] | Sequence[str] = "qm9",
    folder: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.1,
    seed: int = 0,
    progress: bool = False,
    cache: str | os.PathLike[str] | bool = True,
) -> MoleculeData:
    """A data set of molecules: one of the library's, a file, or a list of SMILES.

    ``qm9``: 133,885 molecules of C, N, O and F, at most 9 heavy atoms; 13,082 test rows, the rest training.
    ``zinc250k``: 249,455 molecules, at most 38 heavy atoms; 24,887 test rows, the rest training. The test
    lists (of GraphNVP and MoFlow) are read as zero-based rows, as GDSS does. QM9's list was probably meant as
    one-based identifiers: as a random split it is as good, and it is the split of the published results.
    ``moses``: 1,584,663 training molecules of C, N, S, O, F, Cl and Br, at most 27 heavy atoms, 176,074 test
    molecules, and 176,225 whose scaffolds the training set lacks (split "test scaffolds").

    Arguments:
        source: "qm9", "zinc250k", "moses", a .smi, .txt, .csv, .tsv (also .gz) or .sdf file, or SMILES strings.
        folder: For a name: where the files are; when None, ``sci.datasets.path`` finds or downloads them.
        test_fraction: For your own data: part of the molecules that is held out at random.
        seed: For your own data: seed of that split.
        progress: Show a progress bar while encoding.
        cache: Keep encoded arrays in the library's cache folder (True), in a folder, or nowhere (False).

    Returns:
        Data with ``train`` and ``test``, encoded when first asked for (0.1 ms a molecule, then cached). The
        vocabulary and ``max_atoms`` of your own data are the smallest that hold all molecules.

    Raises:
        KeyError: An unknown name; the message lists the close ones.
        FileNotFoundError: There is no such file.
        ValueError: Molecules that RDKit cannot parse, with their row.

    References:
        | Quantum chemistry structures and properties of 134 kilo molecules (Ramakrishnan et al., 2014)
        | https://doi.org/10.1038/sdata.2014.22
    """
    if isinstance(source, str) and not Path(source).suffix:
        return _named_molecules(source, folder, progress, cache)
    smiles = list(source) if _is_list(source) else read_smiles(source)  # type: ignore[arg-type]
    if not smiles:
        raise ValueError(f"There are no molecules in {source}.")
    name = "molecules" if _is_list(source) else Path(source).name  # type: ignore[arg-type]
    canonical = canonical_smiles(smiles)
    vocabulary = Vocabulary.from_smiles(canonical)
    from rdkit import Chem

    largest = max(Chem.MolFromSmiles(text).GetNumHeavyAtoms() for text in canonical)
    rows = _random_split(len(smiles), test_fraction, seed)
    return MoleculeData(
        name, canonical, rows, vocabulary, largest, True, progress=progress, cache=cache
    )


def graphs(
    source: str | os.PathLike[str] | Sequence[networkx.Graph] | Graphs = "community-small",
    folder: str | os.PathLike[str] | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
) -> GraphData:
    """A data set of generic graphs: one of the library's, an HDF5 file, or a list of networkx graphs.

    ``community-small``, ``ego-small``, ``enzymes`` and ``grid`` are split as GDSS does: the first fifth is the
    test set, the rest the training set. ``planar``, ``sbm`` and ``tree`` have 128 graphs to train, 32 to
    validate and 40 to test.

    Arguments:
        source: A name, a file of :meth:`Graphs.write`, graphs of networkx, or Graphs.
        folder: For a name: where the files are; when None, ``sci.datasets.path`` finds or downloads them.
        test_fraction: For your own data: part of the graphs that is held out at random.
        seed: For your own data: seed of that split.

    Raises:
        KeyError: An unknown name; the message lists the close ones.
        FileNotFoundError: There is no such file.
    """
    if isinstance(source, str) and not Path(source).suffix:
        from sci import datasets

        name = _known(source, _GRAPHS)
        return _read_graphs(name, datasets.path(name, folder=folder))
    if isinstance(source, Graphs):
        name, own = "graphs", source
    elif _is_list(source):
        name, own = "graphs", Graphs.from_networkx(source)  # type: ignore[arg-type]
    else:
        name, own = Path(source).name, Graphs.read(source)  # type: ignore[arg-type]
    return GraphData(name, own, _random_split(len(own), test_fraction, seed))


def read_smiles(path: str | os.PathLike[str], column: str | None = None) -> list[str]:
    """SMILES strings from a file.

    Arguments:
        path: ``.csv`` or ``.tsv`` with a header, ``.smi`` or ``.txt`` (first word of each line), all of them also
            with ``.gz``; or ``.sdf``.
        column: Column of a table; when None, the one whose name is "smiles" in any case.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The table has no such column or a line that ends before it, the suffix is unknown, or an SDF record
            cannot be read.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"There is no file {path}.")
    suffix = next((s for s in reversed(path.suffixes) if s != ".gz"), "").lower()
    if suffix == ".sdf":
        return _read_sdf(path)
    if suffix not in (".smi", ".txt", ".csv", ".tsv"):
        raise ValueError(
            f"{path.name}: SMILES are read from .smi, .txt, .csv, .tsv (also .gz) and .sdf files."
        )
    with _open_text(path) as stream:
        if suffix in (".smi", ".txt"):
            return [line.split()[0] for line in stream if line.strip()]
        rows = csv.reader(stream, delimiter="\t" if suffix == ".tsv" else ",")
        header = [name.strip() for name in next(rows, [])]
        wanted = [
            k
            for k, h in enumerate(header)
            if h == column or (column is None and h.lower() == "smiles")
        ]
        if not wanted:
            raise ValueError(
                f"{path.name} has no column {column or 'smiles'!r}; its columns are {', '.join(header)}."
            )
        smiles = []
        for row in filter(None, rows):
            if len(row) <= wanted[0]:
                raise ValueError(
                    f"{path.name}, line {rows.line_num}, ends before the column "
                    f"{header[wanted[0]]!r}; complete or remove it."
                )
            smiles.append(row[wanted[0]])
        return smiles


def _named_molecules(
    name: str,
    folder: str | os.PathLike[str] | None,
    progress: bool,
    cache: str | os.PathLike[str] | bool,
) -> MoleculeData:
    from sci import datasets

    if _known(name, (*_MOLECULES, "moses")) == "moses":
        return _moses(folder, progress, cache)
    source = _MOLECULES[name]
    table = datasets.path(name, file=source.table, folder=folder)
    # The published form of ZINC250k is a tar archive with one line per molecule and no header.
    smiles = read_smiles(table, source.column if ".csv" in table.name else None)
    listed = json.loads(datasets.path(name, file=source.rows, folder=folder).read_text())
    ids = listed["valid_idxs"] if isinstance(listed, dict) else listed
    test = np.unique(np.array([int(i) for i in ids], dtype=np.int64))
    rows = {"train": np.setdiff1d(np.arange(len(smiles)), test), "test": test}
    vocabulary = Vocabulary(source.atoms)
    return MoleculeData(
        name, smiles, rows, vocabulary, source.max_atoms, source.canonical, True, progress, cache
    )


def _moses(
    folder: str | os.PathLike[str] | None, progress: bool, cache: str | os.PathLike[str] | bool
) -> MoleculeData:
    """MOSES has a file for each split."""
    from sci import datasets

    smiles: list[str] = []
    rows = {}
    for split, file in _MOSES.items():
        found = read_smiles(datasets.path("moses", file=file, folder=folder), "SMILES")
        rows[split] = np.arange(len(smiles), len(smiles) + len(found))
        smiles += found
    vocabulary = Vocabulary(("C", "N", "S", "O", "F", "Cl", "Br"))
    return MoleculeData("moses", smiles, rows, vocabulary, 27, True, True, progress, cache)


def _open_text(path: Path) -> IO[str]:
    if path.suffix != ".gz":
        return open(path, encoding=_ENCODING)
    content = gzip.decompress(path.read_bytes())
    try:
        with tarfile.open(fileobj=io.BytesIO(content)) as archive:
            member = archive.extractfile(archive.getmembers()[0])
            content = b"" if member is None else member.read()
    except tarfile.ReadError:
        pass
    return io.StringIO(content.decode(_ENCODING))


def _read_sdf(path: Path) -> list[str]:
    from rdkit import Chem

    from sci.graphs.molecule_files import sdf_mols

    out = []
    for row, mol in enumerate(sdf_mols(path)):
        if mol is None:
            raise ValueError(
                f"{path.name}, record {row}: RDKit cannot read or sanitise it; correct or remove it."
            )
        out.append(Chem.MolToSmiles(mol, isomericSmiles=False))
    return out


def _read_graphs(name: str, path: Path) -> GraphData:
    if path.suffix == ".npz":
        with np.load(path, allow_pickle=False) as stored:
            everything = Graphs.from_edges(stored["num_nodes"], stored["edges"], stored["edge_ptr"])
            rows = {
                key.removeprefix("split_"): stored[key]
                for key in stored
                if key.startswith("split_")
            }
        rows = {
            "validation" if key == "val" else key: np.sort(value) for key, value in rows.items()
        }
        return GraphData(name, everything, rows)
    parts = read_pickle(path)
    everything = Graphs.from_networkx([graph for part in parts.values() for graph in part])
    if set(parts) == {""}:
        first = int(_GDSS_TEST_FRACTION * len(everything))
        rows = {"test": np.arange(first), "train": np.arange(first, len(everything))}
    else:
        stops = np.cumsum([0, *(len(part) for part in parts.values())])
        names = ["validation" if key == "val" else key for key in parts]
        rows = {key: np.arange(*stops[k : k + 2]) for k, key in enumerate(names)}
    return GraphData(name, everything, rows)


def _random_split(count: int, test_fraction: float, seed: int) -> dict[str, np.ndarray]:
    if not 0 <= test_fraction < 1:
        raise ValueError(f"test_fraction={test_fraction} is not in [0, 1).")
    order = np.random.default_rng(seed).permutation(count)
    first = round(test_fraction * count)
    return {"train": np.sort(order[first:]), "test": np.sort(order[:first])}


def _split(data: str, rows: dict[str, np.ndarray], name: str) -> np.ndarray:
    if name not in rows:
        raise KeyError(f"{data} has no split {name!r}; it has {', '.join(rows)}.")
    return rows[name]


def _is_list(source: object) -> bool:
    return not isinstance(source, str | os.PathLike)


def _known(name: str, names: Sequence[str]) -> str:
    if name not in names:
        close = difflib.get_close_matches(name, names, 3, 0.4) or list(names)
        raise KeyError(f"There is no data set {name!r}; did you mean {', '.join(close)}?")
    return name
