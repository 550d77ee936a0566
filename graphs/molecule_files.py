"""Molecules in files: HDF5 (everything), SMILES and SDF (valid molecules)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from sci.files import atomic, read_data, write_hdf5
from sci.graphs.encoding import Vocabulary
from sci.graphs.molecules import Molecules

if TYPE_CHECKING:
    from rdkit.Chem import Mol

FORMAT_VERSION = 1
_CLASS = "sci.graphs.molecules:Molecules"


def write(molecules: Molecules, path: str | os.PathLike[str]) -> None:
    """Write molecules in the format that the suffix names: .h5, .hdf5, .smi or .sdf.

    Raises:
        ValueError: Another suffix.
    """
    suffix = _suffix(path)
    if suffix == ".smi":
        write_smi(molecules, path)
    elif suffix == ".sdf":
        write_sdf(molecules, path)
    else:
        _write_hdf5(molecules, path)


def read(path: str | os.PathLike[str], vocabulary: Vocabulary | None = None) -> Molecules:
    """Read molecules in the format that the suffix names: .h5, .hdf5, .smi or .sdf.

    Arguments:
        path: The file.
        vocabulary: For .smi and .sdf; when None, the smallest that holds the file's molecules, and C, N,
            O, F where it holds none.

    Raises:
        ValueError: Another suffix, a damaged file, one that holds no molecules, or molecules that cannot be
            encoded (the message names the row).
        FileNotFoundError: There is no such file.
    """
    suffix = _suffix(path)
    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if suffix == ".smi":
        from sci.graphs.load import read_smiles

        smiles = read_smiles(path)
        return Molecules.from_smiles(smiles, vocabulary or _smallest(smiles))
    if suffix == ".sdf":
        if vocabulary is None:
            from rdkit import Chem

            vocabulary = _smallest([Chem.MolToSmiles(mol) for mol in sdf_mols(path) if mol])
        return Molecules.from_sdf(path, vocabulary)
    return _read_hdf5(path)


def _smallest(smiles: list[str]) -> Vocabulary:
    return Vocabulary.from_smiles(smiles) if smiles else Vocabulary()


def write_smi(molecules: Molecules, path: str | os.PathLike[str]) -> int:
    """Write one line ``SMILES row`` per valid molecule; returns how many there are."""
    lines = [f"{text} {row}\n" for row, text in enumerate(molecules.smiles) if text is not None]
    with atomic(path) as temporary:
        temporary.write_text("".join(lines), encoding="ascii")
    return len(lines)


def write_sdf(molecules: Molecules, path: str | os.PathLike[str]) -> int:
    """Write valid molecules as an SDF file with flat coordinates; returns how many there are.

    The title line is the row; the property SMILES and the entries of ``attrs`` go with each molecule.
    """
    from rdkit import Chem
    from rdkit.Chem.rdDepictor import Compute2DCoords

    count = 0
    with atomic(path) as temporary:
        writer = Chem.SDWriter(str(temporary))
        for row, mol in enumerate(molecules.mols):
            if mol is None:
                continue
            copy = Chem.Mol(mol)
            Compute2DCoords(copy)
            copy.SetProp("_Name", str(row))
            copy.SetProp("SMILES", Chem.MolToSmiles(mol))
            for key, value in molecules.attrs.items():
                copy.SetProp(str(key), str(value))
            writer.write(copy)
            count += 1
        writer.close()
    return count


def sdf_mols(path: str | os.PathLike[str]) -> Iterator[Mol | None]:
    """Molecules of an SDF file, None where RDKit cannot read or sanitise one."""
    from rdkit import Chem
    from rdkit.rdBase import BlockLogs

    if not Path(path).exists():
        raise FileNotFoundError(f"There is no file {path}.")
    if Path(path).stat().st_size == 0:
        return
    with BlockLogs():
        yield from Chem.SDMolSupplier(str(path), removeHs=True)


def _write_hdf5(molecules: Molecules, path: str | os.PathLike[str]) -> None:
    # Only one triangle is stored: the other is its mirror.
    i, j = np.tril_indices(molecules.max_atoms, -1)
    write_hdf5(
        path,
        {"atoms": molecules.atoms, "bonds": molecules.bonds[:, i, j]},
        {
            "data_class": _CLASS,
            "format_version": FORMAT_VERSION,
            "vocabulary": molecules.vocabulary.to_dict(),
            "layout": "atoms (molecule, atom), -1 = none; bonds (molecule, pair i > j in row-major order)",
            "attrs": molecules.attrs,
        },
    )


def _read_hdf5(path: str | os.PathLike[str]) -> Molecules:
    arrays, notes = read_data(path, _CLASS, FORMAT_VERSION)
    atoms, lower = arrays["atoms"], arrays["bonds"]
    i, j = np.tril_indices(atoms.shape[1], -1)
    bonds = np.zeros((*atoms.shape, atoms.shape[1]), dtype=np.int8)
    bonds[:, i, j] = lower
    bonds[:, j, i] = lower
    return Molecules(atoms, bonds, Vocabulary(**notes["vocabulary"]), notes["attrs"])


def _suffix(path: str | os.PathLike[str]) -> str:
    suffix = Path(path).suffix.lower()
    if suffix not in (".h5", ".hdf5", ".smi", ".sdf"):
        raise ValueError(
            f"{path}: molecules are kept in .h5, .smi and .sdf files; give one of these suffixes."
        )
    return suffix
