"""Molecules as two small integer arrays.

A molecule of n heavy atoms is written as

* ``atoms`` (N,) int8: index into ``Vocabulary.atoms``, -1 where there is no atom (padding);
* ``bonds`` (N, N) int8: symmetric, bond order 0 (none), 1, 2 or 3, zero diagonal.

Aromatic rings are written in one Kekule form, so there is no aromatic bond class. Hydrogens are implicit,
stereochemistry and formal charges are dropped: the charge rule of :mod:`sci.graphs.building` puts +1 back on
N, O and S where the bonds demand it, whereas anions come back as neutral atoms with one hydrogen more.
"""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sci.files import FileDamaged, read_hdf5, write_hdf5

if TYPE_CHECKING:
    from rdkit.Chem import Mol

ENCODING_VERSION = 1
_BOND_ORDERS = (1, 2, 3)


@dataclass(frozen=True)
class Vocabulary:
    """The atoms and bond orders a molecule may be made of.

    Arguments:
        atoms: Element symbols; an atom's index in this tuple is its integer in the arrays.
        bonds: Bond orders, a subset of (1, 2, 3). Arrays hold the orders themselves.

    Raises:
        ValueError: An unknown element, a repeated one, hydrogen, or a bond order that is not 1, 2 or 3.

    Example:
        >>> Vocabulary(("C", "N", "O", "F")).atoms[2]
        'O'
    """

    atoms: tuple[str, ...] = ("C", "N", "O", "F")
    bonds: tuple[int, ...] = _BOND_ORDERS

    def __post_init__(self) -> None:
        object.__setattr__(self, "atoms", tuple(str(a) for a in self.atoms))
        object.__setattr__(self, "bonds", tuple(int(b) for b in self.bonds))
        if not self.atoms:
            raise ValueError(
                "A vocabulary needs at least one element; give e.g. atoms=('C', 'N', 'O', 'F')."
            )
        if len(set(self.atoms)) != len(self.atoms):
            raise ValueError(f"Elements are repeated in {self.atoms}; give each symbol once.")
        if "H" in self.atoms:
            raise ValueError("Hydrogens are implicit here; leave 'H' out of the vocabulary.")
        if len(self.atoms) > 127:
            raise ValueError(f"{len(self.atoms)} elements do not fit in int8; give at most 127.")
        if not self.bonds or list(self.bonds) != sorted(set(self.bonds) & set(_BOND_ORDERS)):
            raise ValueError(
                f"Bond orders must be an increasing subset of {_BOND_ORDERS}, not {self.bonds}."
            )
        unknown = [a for a in self.atoms if a not in _SYMBOLS]
        if unknown:
            raise ValueError(f"{unknown} are no element symbols; write them as 'C', 'Cl', 'Br'.")

    @property
    def numbers(self) -> tuple[int, ...]:
        """Atomic numbers of ``atoms``."""
        return tuple(_SYMBOLS.index(a) + 1 for a in self.atoms)

    @classmethod
    def from_smiles(cls, smiles: Iterable[str]) -> Vocabulary:
        """Smallest vocabulary that holds every molecule of a list.

        Arguments:
            smiles: SMILES strings. All three bond orders are always included.

        Returns:
            Elements in the order C, N, O, F, then by atomic number.

        Raises:
            ValueError: A SMILES that RDKit cannot parse, or an atom of no element up to uranium, with its row.
        """
        seen: set[int] = set()
        for row, text in enumerate(smiles):
            for atom in _parse(text, row).GetAtoms():
                if not 1 <= atom.GetAtomicNum() <= len(_SYMBOLS):
                    raise ValueError(
                        f"Row {row} ({text!r}): atom {atom.GetIdx()} is {atom.GetSymbol()}; a vocabulary "
                        "holds the elements up to U. Correct or remove the row."
                    )
                seen.add(atom.GetAtomicNum())
        seen.discard(1)
        first = [z for z in (6, 7, 8, 9) if z in seen]
        numbers = first + sorted(seen - set(first))
        return cls(tuple(_SYMBOLS[z - 1] for z in numbers))

    def to_dict(self) -> dict[str, list[Any]]:
        """JSON-able form; ``Vocabulary(**d)`` reads it back."""
        return {"atoms": list(self.atoms), "bonds": list(self.bonds)}


def encode_smiles(
    smiles: Sequence[str],
    vocabulary: Vocabulary | None = None,
    max_atoms: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
    cache: str | os.PathLike[str] | bool = False,
) -> tuple[np.ndarray, np.ndarray]:
    """Encode SMILES strings as arrays of atoms and bonds.

    Arguments:
        smiles: G SMILES strings.
        vocabulary: Elements and bond orders; C, N, O, F and 1, 2, 3 when None.
        max_atoms: Largest number N of heavy atoms; the largest molecule's when None.
        on_error: "raise", or "skip" to leave out what cannot be encoded (a warning gives the count and the
            first reason; :func:`encode_mols` also returns the rows that were kept).
        progress: Show a progress bar.
        cache: True for the library's cache folder, or a folder. The arrays are kept there under a hash of
            data, vocabulary and encoder version; the file may be deleted at any time.

    Returns:
        ``atoms`` (G, N) int8 with -1 for padding and ``bonds`` (G, N, N) int8 with orders 0 to 3.

    Raises:
        ValueError: SMILES that do not parse, elements outside the vocabulary, molecules that are too large;
            the message names row, SMILES and atom.

    Example:
        >>> atoms, bonds = encode_smiles(["C=O", "CCO"])
        >>> atoms.tolist()
        [[0, 2, -1], [0, 0, 2]]
        >>> bonds[0].tolist()
        [[0, 2, 0], [2, 0, 0], [0, 0, 0]]
    """
    if isinstance(smiles, str):
        raise TypeError(f"smiles is one string ({smiles!r}); give a list: [{smiles!r}].")
    vocabulary = vocabulary or Vocabulary()
    file = None
    if cache is not False:
        file = (
            _cache_folder(cache) / f"encoded-{_digest(smiles, vocabulary, max_atoms, on_error)}.h5"
        )
        stored = _read_cache(file)
        if stored is not None:
            return stored
    mols = (_parse_or_none(s) for s in smiles)
    atoms, bonds, _ = encode_mols(
        mols, vocabulary, max_atoms, on_error, progress, total=len(smiles), names=smiles
    )
    if file is not None:
        _write_cache(file, atoms, bonds)
    return atoms, bonds


def canonical_smiles(smiles: Iterable[str]) -> list[str]:
    """Canonical SMILES without stereochemistry, the form in which molecules are compared.

    Raises:
        ValueError: A SMILES that RDKit cannot parse, with its row.
    """
    from rdkit import Chem

    return [
        Chem.MolToSmiles(_parse(text, row), isomericSmiles=False) for row, text in enumerate(smiles)
    ]


def encode_mols(
    mols: Iterable[Mol | None],
    vocabulary: Vocabulary | None = None,
    max_atoms: int | None = None,
    on_error: Literal["raise", "skip"] = "raise",
    progress: bool = False,
    total: int | None = None,
    names: Sequence[str] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Encode RDKit molecules as arrays of atoms and bonds; see :func:`encode_smiles`.

    Arguments:
        mols: Sanitised RDKit molecules without explicit hydrogens; None counts as a parse error. They are
            Kekulised in place.
        total: Length of ``mols`` for the progress bar, when it is a generator.
        names: What to call the molecules in messages; their SMILES when None.

    Returns:
        ``atoms`` (G, N) int8, ``bonds`` (G, N, N) int8 and ``rows`` (G,) int64: where each came from.
    """
    if on_error not in ("raise", "skip"):
        raise ValueError(f"on_error={on_error!r} is neither 'raise' nor 'skip'.")
    from tqdm.auto import tqdm

    vocabulary = vocabulary or Vocabulary()
    index = {z: i for i, z in enumerate(vocabulary.numbers)}
    numbers: list[list[int]] = []
    ends: list[list[tuple[int, int, int]]] = []
    rows: list[int] = []
    skipped: list[str] = []
    for row, mol in enumerate(
        tqdm(
            mols,
            total=total,
            desc="encoding",
            disable=not progress,
            unit="mol",
            leave=False,
            delay=1,
        )
    ):
        try:
            ids, links = _encode(mol, index, vocabulary, max_atoms)
        except ValueError as error:
            name = names[row] if names is not None else _name(mol)
            message = f"row {row} ({name!r}): {error}"
            if on_error == "raise":
                raise ValueError(message[0].upper() + message[1:]) from None
            skipped.append(message)
            continue
        numbers.append(ids)
        ends.append(links)
        rows.append(row)
    if skipped:
        warnings.warn(
            f"{len(skipped)} of {len(skipped) + len(rows)} molecules were left out; the first: {skipped[0]}",
            stacklevel=2,
        )
    size = max_atoms or max((len(ids) for ids in numbers), default=0)
    return *_fill(numbers, ends, size), np.asarray(rows, dtype=np.int64)


def _encode(
    mol: Mol | None, index: dict[int, int], vocabulary: Vocabulary, max_atoms: int | None
) -> tuple[list[int], list[tuple[int, int, int]]]:
    if mol is None:
        raise ValueError("RDKit cannot parse or sanitise it; correct it, or pass on_error='skip'.")
    from rdkit.Chem import Kekulize

    found = [atom.GetAtomicNum() for atom in mol.GetAtoms()]
    if not found:
        raise ValueError("it holds no atoms; remove the row, or pass on_error='skip'.")
    if max_atoms is not None and len(found) > max_atoms:
        raise ValueError(
            f"{len(found)} heavy atoms, but max_atoms={max_atoms}; raise max_atoms, or pass on_error='skip'."
        )
    try:
        ids = [index[z] for z in found]
    except KeyError:
        at = next(i for i, z in enumerate(found) if z not in index)
        hint = (
            "remove explicit hydrogens (Chem.RemoveHs)"
            if found[at] == 1
            else ("build a vocabulary from your data with Vocabulary.from_smiles")
        )
        raise ValueError(
            f"atom {at} is {mol.GetAtomWithIdx(at).GetSymbol()}, outside the vocabulary "
            f"{', '.join(vocabulary.atoms)}; {hint}, or pass on_error='skip'."
        ) from None
    Kekulize(mol, clearAromaticFlags=True)
    # int(BondType) is the order for single, double and triple bonds.
    links = [(b.GetBeginAtomIdx(), b.GetEndAtomIdx(), int(b.GetBondType())) for b in mol.GetBonds()]
    for i, j, order in links:
        if order not in vocabulary.bonds:
            kind = str(mol.GetBondBetweenAtoms(i, j).GetBondType())
            raise ValueError(
                f"the bond between atoms {i} and {j} is of type {kind}, outside the bond orders "
                f"{vocabulary.bonds}; correct the molecule, or pass on_error='skip'."
            )
    return ids, links


def _fill(
    numbers: list[list[int]], ends: list[list[tuple[int, int, int]]], size: int
) -> tuple[np.ndarray, np.ndarray]:
    count = len(numbers)
    atoms = np.full((count, size), -1, dtype=np.int8)
    bonds = np.zeros((count, size, size), dtype=np.int8)
    if count:
        lengths = np.array([len(ids) for ids in numbers])
        atoms[np.arange(size) < lengths[:, None]] = np.fromiter(
            (a for ids in numbers for a in ids), dtype=np.int8, count=int(lengths.sum())
        )
        graph = np.repeat(np.arange(count), [len(links) for links in ends])
        links = np.array([link for one in ends for link in one], dtype=np.int64).reshape(-1, 3)
        bonds[graph, links[:, 0], links[:, 1]] = links[:, 2]
        bonds[graph, links[:, 1], links[:, 0]] = links[:, 2]
    return atoms, bonds


def _parse_or_none(text: str) -> Mol | None:
    from rdkit import Chem
    from rdkit.rdBase import BlockLogs

    if not isinstance(text, str):
        return None
    with BlockLogs():
        return Chem.MolFromSmiles(text)


def _parse(text: str, row: int) -> Mol:
    mol = _parse_or_none(text)
    if mol is None:
        raise ValueError(
            f"Row {row} ({text!r}): RDKit cannot parse or sanitise it; correct or remove it."
        )
    return mol


def _name(mol: Mol | None) -> str:
    from rdkit import Chem

    return "no molecule" if mol is None else Chem.MolToSmiles(mol)


def _cache_folder(cache: str | os.PathLike[str] | bool) -> Path:
    if not isinstance(cache, bool):
        return Path(cache)
    from sci.datasets import cache_folder

    return cache_folder()


def _digest(smiles: Sequence[str], vocabulary: Vocabulary, *settings: object) -> str:
    digest = hashlib.sha256(repr((ENCODING_VERSION, vocabulary, settings)).encode())
    for text in smiles:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:32]


def _read_cache(file: Path) -> tuple[np.ndarray, np.ndarray] | None:
    # A damaged cache is as good as none: it is written again.
    try:
        arrays, _ = read_hdf5(file)
        return arrays["atoms"], arrays["bonds"]
    except (FileNotFoundError, FileDamaged, KeyError):
        return None


def _write_cache(file: Path, atoms: np.ndarray, bonds: np.ndarray) -> None:
    try:
        write_hdf5(file, {"atoms": atoms, "bonds": bonds})
    except OSError as error:
        warnings.warn(f"The cache file {file} was not written ({error}).", stacklevel=3)


_SYMBOLS = (
    "H He Li Be B C N O F Ne Na Mg Al Si P S Cl Ar K Ca Sc Ti V Cr Mn Fe Co Ni Cu Zn Ga Ge As Se Br Kr "
    "Rb Sr Y Zr Nb Mo Tc Ru Rh Pd Ag Cd In Sn Sb Te I Xe Cs Ba La Ce Pr Nd Pm Sm Eu Gd Tb Dy Ho Er Tm Yb "
    "Lu Hf Ta W Re Os Ir Pt Au Hg Tl Pb Bi Po At Rn Fr Ra Ac Th Pa U"
).split()
