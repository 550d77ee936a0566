"""From arrays to RDKit molecules: the charge rule, and what counts as valid.

Bonds are added one by one, in row-major order of the lower triangle. After each bond the first atom whose
valence is exceeded is looked at: if it is N, O or S and has exactly one bond order more than its neutral
valence (3, 2 and 2), it receives the formal charge +1 (Jo, Lee & Hwang 2022, after Zang & Wang 2020). Since
RDKit lets neutral sulphur have valence 4 and 6, the rule in fact acts on N and O only. The order of the atoms
matters: of two atoms that one bond overfills, the second is charged only if another bond follows.

Three questions are then asked, in falling generosity:

* **valency**: RDKit's ``SANITIZE_PROPERTIES`` step passes on the molecule as built, i.e. no atom has too many
  bonds. This is the "validity without correction" of GDSS. Nothing is asked of rings or of connectivity.
* **validity**: RDKit's whole sanitisation passes on the whole graph as it is; nothing is removed or repaired
  before. RDKit begins by rewriting some textbook forms (N(=O)=O to its charged form), so that in rare cases a
  valid molecule fails on valency.
* **connected**: valid and in one piece.

References:
    | Score-based Generative Modeling of Graphs via the System of SDEs (Jo, Lee & Hwang, 2022)
    | https://arxiv.org/abs/2202.02514
    | MoFlow: An Invertible Flow Model for Generating Molecular Graphs (Zang & Wang, 2020)
    | https://arxiv.org/abs/2006.10137
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from sci.graphs.encoding import Vocabulary

if TYPE_CHECKING:
    from rdkit.Chem import Mol

_NEUTRAL_VALENCE = {7: 3, 8: 2, 16: 2}
_NO_LIMIT = 127


@dataclass(frozen=True)
class Verdict:
    """What RDKit says of a list of molecules; see the module for the words.

    Arguments:
        valency, valid, connected: (G,) bool.
        smiles: Canonical SMILES of the whole molecule, None where it is not valid.
        largest: Canonical SMILES of the largest piece (most heavy atoms; then the longer SMILES, then the
            first in the alphabet), None where the molecule is not valid.
    """

    valency: np.ndarray
    valid: np.ndarray
    connected: np.ndarray
    smiles: list[str | None]
    largest: list[str | None]


def charges(atoms: np.ndarray, bonds: np.ndarray, vocabulary: Vocabulary) -> np.ndarray:
    """Formal charges that the +1 rule gives, for all molecules at once.

    Arguments:
        atoms: (G, N) integers, -1 for padding.
        bonds: (G, N, N) bond orders, symmetric.

    Returns:
        (G, N) int8 of 0 and 1.
    """
    from rdkit.Chem import GetPeriodicTable

    table = GetPeriodicTable()

    def limit(number: int) -> int:
        allowed = list(table.GetValenceList(number))
        return _NO_LIMIT if -1 in allowed else max(allowed)

    numbers = vocabulary.numbers
    # The last entry serves the padding's index -1.
    chargeable = np.array([z in _NEUTRAL_VALENCE for z in numbers] + [False])[atoms]
    neutral = np.array([_NEUTRAL_VALENCE.get(z, _NO_LIMIT) for z in numbers] + [0])[atoms]
    most = np.array([limit(z) for z in numbers] + [_NO_LIMIT])[atoms]
    # A cation has the valences of the element before it.
    cation = np.array([limit(z - 1) if z in _NEUTRAL_VALENCE else 0 for z in numbers] + [0])[atoms]

    charge = np.zeros(atoms.shape, dtype=np.int8)
    valence = np.zeros(atoms.shape, dtype=np.int16)
    for i in range(1, atoms.shape[1]):
        for j in range(i):
            rows = np.flatnonzero(bonds[:, i, j])
            if not len(rows):
                continue
            valence[rows, i] += bonds[rows, i, j]
            valence[rows, j] += bonds[rows, i, j]
            over = valence[rows] > most[rows]
            hit = over.any(1)
            rows, first = rows[hit], over[hit].argmax(1)
            by_one = chargeable[rows, first] & (valence[rows, first] - neutral[rows, first] == 1)
            rows, first = rows[by_one], first[by_one]
            charge[rows, first] = 1
            most[rows, first] = cation[rows, first]
    return charge


def build(atoms: np.ndarray, bonds: np.ndarray, vocabulary: Vocabulary) -> Iterator[Mol]:
    """RDKit molecules as built: charges set, not sanitised, one at a time.

    Arguments:
        atoms: (G, N) integers, -1 for padding.
        bonds: (G, N, N) bond orders 0 to 3, symmetric.

    Yields:
        One editable RDKit molecule per row; an empty one where there are no atoms.
    """
    from rdkit import Chem

    kinds = {
        (index, plus): Chem.Atom(number)
        for index, number in enumerate(vocabulary.numbers)
        for plus in (0, 1)
    }
    for (_, plus), atom in kinds.items():
        atom.SetFormalCharge(plus)
    orders = (Chem.BondType.ZERO, Chem.BondType.SINGLE, Chem.BondType.DOUBLE, Chem.BondType.TRIPLE)

    charge = charges(atoms, bonds, vocabulary)
    real = atoms >= 0
    # Position of an atom among the atoms that are there.
    place = np.cumsum(real, 1) - 1
    lower = np.tril(np.ones(bonds.shape[1:], dtype=bool), -1)
    graph, i, j = np.nonzero((bonds != 0) & lower)
    links = np.stack([place[graph, i], place[graph, j], bonds[graph, i, j]], 1).tolist()
    stops = np.searchsorted(graph, np.arange(len(atoms)), side="right").tolist()
    start = 0
    for row, stop in enumerate(stops):
        mol = Chem.RWMol()
        here = real[row]
        for index, plus in zip(atoms[row][here].tolist(), charge[row][here].tolist(), strict=True):
            mol.AddAtom(kinds[index, plus])
        for end, begin, order in links[start:stop]:
            mol.AddBond(end, begin, orders[order])
        start = stop
        yield mol


def sanitise(mol: Mol) -> tuple[bool, bool]:
    """Ask RDKit for valency and validity; a valid molecule is left sanitised.

    Arguments:
        mol: A molecule as built; changed in place.

    Returns:
        (valency, validity). An empty molecule is neither.
    """
    from rdkit import Chem

    if not mol.GetNumAtoms():
        return False, False
    flags = Chem.SanitizeFlags
    valency = (
        Chem.SanitizeMol(mol, flags.SANITIZE_PROPERTIES, catchErrors=True) == flags.SANITIZE_NONE
    )
    valid = Chem.SanitizeMol(mol, catchErrors=True) == flags.SANITIZE_NONE
    return valency, valid


def sanitised(atoms: np.ndarray, bonds: np.ndarray, vocabulary: Vocabulary) -> list[Mol | None]:
    """Sanitised RDKit molecules, None where a molecule is not valid."""
    from rdkit.rdBase import BlockLogs

    with BlockLogs():
        return [
            mol.GetMol() if sanitise(mol)[1] else None for mol in build(atoms, bonds, vocabulary)
        ]


def judge(
    atoms: np.ndarray, bonds: np.ndarray, vocabulary: Vocabulary, progress: bool = False
) -> Verdict:
    """Valency, validity, connectedness and SMILES of many molecules (about 0.15 ms each).

    Arguments:
        atoms: (G, N) integers, -1 for padding.
        bonds: (G, N, N) bond orders 0 to 3, symmetric.
        progress: Show a progress bar.
    """
    from rdkit import Chem
    from rdkit.rdBase import BlockLogs
    from tqdm.auto import tqdm

    count = len(atoms)
    flags = np.zeros((3, count), dtype=bool)
    smiles: list[str | None] = [None] * count
    largest: list[str | None] = [None] * count
    with BlockLogs():
        mols = build(atoms, bonds, vocabulary)
        bar = tqdm(
            mols,
            total=count,
            desc="sanitising",
            disable=not progress,
            unit="mol",
            leave=False,
            delay=1,
        )
        for row, mol in enumerate(bar):
            valency, valid = sanitise(mol)
            flags[0, row] = valency
            if not valid:
                continue
            text = Chem.MolToSmiles(mol)
            flags[1, row], flags[2, row] = True, "." not in text
            smiles[row] = text
            largest[row] = text if flags[2, row] else largest_piece(mol)
    return Verdict(flags[0], flags[1], flags[2], smiles, largest)


def largest_piece(mol: Mol) -> str:
    """Canonical SMILES of the piece with most heavy atoms; see :class:`Verdict`."""
    from rdkit import Chem

    pieces = Chem.GetMolFrags(mol, asMols=True)
    named = [(piece.GetNumHeavyAtoms(), Chem.MolToSmiles(piece)) for piece in pieces]
    return min(named, key=lambda piece: (-piece[0], -len(piece[1]), piece[1]))[1]


def without_hydrogens(mol: Mol | None) -> Mol | None:
    """A sanitised copy without explicit hydrogens; None for None and for what RDKit cannot sanitise."""
    from rdkit import Chem
    from rdkit.rdBase import BlockLogs

    if mol is None:
        return None
    try:
        with BlockLogs():
            return Chem.RemoveHs(mol)
    except Chem.MolSanitizeException:
        return None
