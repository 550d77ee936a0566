"""Properties of finished molecules by RDKit: logP, QED, weight, polar surface, rings."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sci.fields import unknown
from sci.graphs.molecules import Molecules

if TYPE_CHECKING:
    from rdkit.Chem import Mol

__all__ = ["PROPERTIES", "measure"]

PROPERTIES = ("logp", "qed", "weight", "tpsa", "rings")


def measure(molecules: Molecules, properties: Sequence[str] = PROPERTIES) -> np.ndarray:
    """Properties of molecules by RDKit.

    Arguments:
        molecules: The molecules.
        properties: Names of ``PROPERTIES``: ``logp`` (Crippen), ``qed``, ``weight`` (g/mol), ``tpsa`` (square
            angstrom), ``rings`` (number of rings).

    Returns:
        (G, P) float64, NaN where a molecule is not valid.

    Raises:
        ValueError: For a property that is not among them; close names are listed.

    Example:
        >>> measure(Molecules.from_smiles(["CCO", "C1CC1"]), ["rings"])[:, 0].tolist()
        [0.0, 1.0]
    """
    from rdkit.rdBase import BlockLogs

    table = _functions()
    for name in properties:
        if name not in table:
            raise ValueError(unknown("property", name, table))
    chosen = [table[name] for name in properties]
    with BlockLogs():
        rows = [
            [math.nan] * len(chosen) if mol is None else [float(one(mol)) for one in chosen]
            for mol in molecules.mols
        ]
    return np.array(rows, dtype=np.float64).reshape(len(rows), len(chosen))


def _functions() -> dict[str, Callable[[Mol], float]]:
    from rdkit.Chem import QED, Crippen, Descriptors, rdMolDescriptors

    return {
        "logp": Crippen.MolLogP,
        "qed": QED.qed,
        "weight": Descriptors.MolWt,
        "tpsa": rdMolDescriptors.CalcTPSA,
        "rings": rdMolDescriptors.CalcNumRings,
    }
