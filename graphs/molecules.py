"""The data object of molecules: arrays of atoms and bonds that know RDKit, files and metrics."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sci.graphs import building
from sci.graphs.encoding import Vocabulary, encode_mols, encode_smiles

if TYPE_CHECKING:
    import networkx
    from PIL.Image import Image
    from rdkit.Chem import Mol
    from torch_geometric.data import Data

    from sci.report import Report


class Molecules:
    """Molecules without hydrogens as arrays of atoms and bonds.

    Arguments:
        atoms: (G, N) integers into ``vocabulary.atoms``, -1 where there is no atom.
        bonds: (G, N, N) bond orders 0 to 3: symmetric, zero diagonal, zero at padding.
        vocabulary: What the integers mean; C, N, O, F and 1, 2, 3 when None.
        attrs: Where the molecules are from: model, version, seed, sampler, nfe, date.

    Raises:
        ValueError: Wrong shapes, integers outside the vocabulary, unsymmetric bonds or bonds to padding.

    Indexing by an integer, a slice, a list of integers or a boolean array returns ``Molecules`` again.

    Example:
        >>> molecules = Molecules.from_smiles(["CCO", "C1CC1", "N#CC=O"])
        >>> len(molecules), molecules.sizes.tolist(), molecules[1:].smiles
        (3, [3, 3, 4], ['C1CC1', 'N#CC=O'])
    """

    suffixes = (".h5", ".hdf5", ".smi", ".sdf")

    def __init__(
        self,
        atoms: np.ndarray,
        bonds: np.ndarray,
        vocabulary: Vocabulary | None = None,
        attrs: dict[str, Any] | None = None,
    ) -> None:
        self.vocabulary = vocabulary or Vocabulary()
        self.atoms, self.bonds = _checked(np.asarray(atoms), np.asarray(bonds), self.vocabulary)
        self.attrs: dict[str, Any] = dict(attrs or {})

    @classmethod
    def from_smiles(
        cls,
        smiles: Sequence[str],
        vocabulary: Vocabulary | None = None,
        max_atoms: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        progress: bool = False,
        cache: str | os.PathLike[str] | bool = False,
        attrs: dict[str, Any] | None = None,
    ) -> Molecules:
        """Molecules from SMILES strings; arguments and errors as in :func:`encode_smiles`."""
        arrays = encode_smiles(smiles, vocabulary, max_atoms, on_error, progress, cache)
        return cls(*arrays, vocabulary, attrs)

    @classmethod
    def from_rdkit(
        cls,
        mols: Iterable[Mol | None],
        vocabulary: Vocabulary | None = None,
        max_atoms: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
        attrs: dict[str, Any] | None = None,
    ) -> Molecules:
        """Molecules from RDKit molecules, whose explicit hydrogens are removed; None counts as an error."""
        bare = (building.without_hydrogens(mol) for mol in mols)
        atoms, bonds, _ = encode_mols(bare, vocabulary, max_atoms, on_error)
        return cls(atoms, bonds, vocabulary, attrs)

    @classmethod
    def from_sdf(
        cls,
        path: str | os.PathLike[str],
        vocabulary: Vocabulary | None = None,
        max_atoms: int | None = None,
        on_error: Literal["raise", "skip"] = "raise",
    ) -> Molecules:
        """Molecules from an SDF file (coordinates and properties are not kept)."""
        from sci.graphs.molecule_files import sdf_mols

        return cls.from_rdkit(sdf_mols(path), vocabulary, max_atoms, on_error)

    @classmethod
    def concat(cls, parts: Sequence[Molecules]) -> Molecules:
        """One object from several of the same vocabulary; sizes are padded to the largest.

        The ``attrs`` kept are those on which all parts agree.
        """
        parts = list(parts)
        if not parts:
            raise ValueError("There is nothing to concatenate; give at least one Molecules object.")
        vocabulary = parts[0].vocabulary
        for number, part in enumerate(parts):
            if part.vocabulary != vocabulary:
                raise ValueError(
                    f"Part {number} has the vocabulary {part.vocabulary}, part 0 {vocabulary}; "
                    "encode all with one vocabulary."
                )
        size = max(part.max_atoms for part in parts)
        padded = [part._pad(size) for part in parts]
        attrs = {
            key: value
            for key, value in parts[0].attrs.items()
            if all(key in part.attrs and part.attrs[key] == value for part in parts)
        }
        atoms, bonds = (np.concatenate(arrays) for arrays in zip(*padded, strict=True))
        return cls(atoms, bonds, vocabulary, attrs)

    def __len__(self) -> int:
        return len(self.atoms)

    def __getitem__(self, index: Any) -> Molecules:
        if isinstance(index, int | np.integer):
            if not -len(self) <= index < len(self):
                raise IndexError(f"Molecule {index} of {len(self)} was asked for.")
            index = [int(index)]
        chosen = np.arange(len(self))[index]
        return Molecules(self.atoms[chosen], self.bonds[chosen], self.vocabulary, self.attrs)

    def __iter__(self) -> Iterator[Molecules]:
        return (self[i] for i in range(len(self)))

    def __repr__(self) -> str:
        return (
            f"Molecules({len(self)} of at most {self.max_atoms} heavy atoms, "
            f"atoms {' '.join(self.vocabulary.atoms)})"
        )

    def _repr_png_(self) -> bytes | None:
        from sci.graphs.plots import png_bytes

        return png_bytes(self.plot(count=12)) if len(self) else None

    @property
    def max_atoms(self) -> int:
        """The padded size N."""
        return self.atoms.shape[1]

    @property
    def mask(self) -> np.ndarray:
        """(G, N) bool: where there is an atom."""
        return self.atoms >= 0

    @property
    def sizes(self) -> np.ndarray:
        """(G,) int64: heavy atoms per molecule."""
        return self.mask.sum(1)

    @cached_property
    def verdict(self) -> building.Verdict:
        """Valency, validity, connectedness and SMILES, worked out once; see :mod:`sci.graphs.building`."""
        return building.judge(self.atoms, self.bonds, self.vocabulary, progress=len(self) > 20_000)

    @property
    def valency(self) -> np.ndarray:
        """(G,) bool: no atom has too many bonds (after the +1 charge rule)."""
        return self.verdict.valency

    @property
    def valid(self) -> np.ndarray:
        """(G,) bool: RDKit sanitises the whole graph as it is."""
        return self.verdict.valid

    @property
    def connected(self) -> np.ndarray:
        """(G,) bool: valid and in one piece."""
        return self.verdict.connected

    @property
    def smiles(self) -> list[str | None]:
        """Canonical SMILES, pieces joined by dots; None where the molecule is not valid."""
        return self.verdict.smiles

    @cached_property
    def mols(self) -> list[Mol | None]:
        """Sanitised RDKit molecules; None where the molecule is not valid."""
        return building.sanitised(self.atoms, self.bonds, self.vocabulary)

    def resample(self, n: int, seed: int = 0) -> Molecules:
        """n molecules drawn uniformly, without replacement as long as there are enough."""
        rng = np.random.default_rng(seed)
        return self[rng.choice(len(self), size=n, replace=n > len(self))]

    def to_smi(self, path: str | os.PathLike[str]) -> int:
        """Write valid molecules as lines ``SMILES number``; returns how many were written."""
        from sci.graphs.molecule_files import write_smi

        return write_smi(self, path)

    def to_sdf(self, path: str | os.PathLike[str]) -> int:
        """Write valid molecules with two-dimensional coordinates; returns how many were written."""
        from sci.graphs.molecule_files import write_sdf

        return write_sdf(self, path)

    def write(self, path: str | os.PathLike[str]) -> None:
        """Write a file by its suffix: ``.h5`` (everything), ``.smi`` or ``.sdf`` (valid molecules only)."""
        from sci.graphs.molecule_files import write

        write(self, path)

    @classmethod
    def read(cls, path: str | os.PathLike[str], vocabulary: Vocabulary | None = None) -> Molecules:
        """Read what :meth:`write` wrote. For .smi and .sdf the vocabulary is found in the file when None."""
        from sci.graphs.molecule_files import read

        return read(path, vocabulary)

    def to_pyg(self) -> list[Data]:
        """One PyTorch Geometric ``Data`` a molecule.

        Each has ``x`` (n, A) float one-hot atoms, ``z`` (n,) atomic numbers, ``edge_index`` (2, 2E) with both
        directions and ``edge_attr`` (2E, 3) float one-hot bond orders 1, 2, 3.
        """
        import torch
        from torch_geometric.data import Data

        numbers = np.array(self.vocabulary.numbers)
        out = []
        for ids, orders in self._trimmed():
            i, j = np.nonzero(orders)
            out.append(
                Data(
                    x=torch.eye(len(numbers))[torch.from_numpy(ids).long()],
                    z=torch.from_numpy(numbers[ids]),
                    edge_index=torch.from_numpy(np.stack([i, j])),
                    edge_attr=torch.eye(3)[torch.from_numpy(orders[i, j]).long() - 1],
                )
            )
        return out

    def to_networkx(self) -> list[networkx.Graph]:
        """One networkx graph a molecule: node attribute ``symbol``, edge attribute ``order``."""
        import networkx

        out = []
        for ids, orders in self._trimmed():
            graph = networkx.Graph()
            graph.add_nodes_from(
                (k, {"symbol": self.vocabulary.atoms[a]}) for k, a in enumerate(ids)
            )
            i, j = np.nonzero(np.triu(orders))
            edges = zip(i.tolist(), j.tolist(), orders[i, j].tolist(), strict=True)
            graph.add_weighted_edges_from(edges, weight="order")
            out.append(graph)
        return out

    def evaluate(self, reference: Any = "qm9", **options: Any) -> Report:
        """Judge the molecules against a data set; see :func:`sci.graphs.molecule_metrics.evaluate`."""
        from sci.graphs.molecule_metrics import evaluate

        return evaluate(self, reference, **options)

    def plot(self, count: int = 12, columns: int = 4, **options: Any) -> Image:
        """A grid picture of the first molecules; see :func:`sci.graphs.plots.molecule_grid`."""
        from sci.graphs.plots import molecule_grid

        return molecule_grid(self, count=count, columns=columns, **options)

    def _trimmed(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for row, here in enumerate(self.mask):
            yield self.atoms[row][here], self.bonds[row][np.ix_(here, here)]

    def _pad(self, size: int) -> tuple[np.ndarray, np.ndarray]:
        more = size - self.max_atoms
        atoms = np.pad(self.atoms, ((0, 0), (0, more)), constant_values=-1)
        return atoms, np.pad(self.bonds, ((0, 0), (0, more), (0, more)))


def _checked(
    atoms: np.ndarray, bonds: np.ndarray, vocabulary: Vocabulary
) -> tuple[np.ndarray, np.ndarray]:
    if atoms.ndim != 2 or bonds.shape != (*atoms.shape, *atoms.shape[1:]):
        raise ValueError(
            f"atoms has shape {atoms.shape} and bonds {bonds.shape}; expected (G, N) and (G, N, N)."
        )
    for name, array in (("atoms", atoms), ("bonds", bonds)):
        if not np.issubdtype(array.dtype, np.integer):
            raise ValueError(f"{name} has dtype {array.dtype}; give integers.")
    if atoms.size == 0:
        return atoms.astype(np.int8), bonds.astype(np.int8)
    most = len(vocabulary.atoms) - 1
    if atoms.min() < -1 or atoms.max() > most:
        raise ValueError(
            f"atoms holds integers from {atoms.min()} to {atoms.max()}; expected -1 (padding) to {most} for "
            f"the vocabulary {' '.join(vocabulary.atoms)}."
        )
    if bonds.min() < 0 or bonds.max() > max(vocabulary.bonds):
        raise ValueError(
            f"bonds holds integers from {bonds.min()} to {bonds.max()}; expected 0 and the orders "
            f"{vocabulary.bonds}."
        )
    present = set(np.flatnonzero(np.bincount(bonds.reshape(-1).astype(np.uint8)))) - {0}
    if not present <= set(vocabulary.bonds):
        raise ValueError(
            f"bonds holds {sorted(present)}; expected 0 and the orders {vocabulary.bonds}."
        )
    if not np.array_equal(bonds, bonds.transpose(0, 2, 1)):
        row = int(np.flatnonzero((bonds != bonds.transpose(0, 2, 1)).any((1, 2)))[0])
        raise ValueError(f"bonds of molecule {row} are not symmetric; give both (i, j) and (j, i).")
    allowed = (atoms >= 0)[:, :, None] & (atoms >= 0)[:, None] & ~np.eye(atoms.shape[1], dtype=bool)
    if (bonds * ~allowed).any():
        row = int(np.flatnonzero((bonds * ~allowed).any((1, 2)))[0])
        raise ValueError(
            f"Molecule {row} has bonds from an atom to itself or to padding; set them to 0."
        )
    return atoms.astype(np.int8), bonds.astype(np.int8)
