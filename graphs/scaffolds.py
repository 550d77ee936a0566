"""Scaffolds: a part of a molecule or graph that every generated one must contain, to the bond.

The atoms of a scaffold are the first nodes of what is generated, in their order. Known are their classes and the
class of every pair among them, "no bond" included, so that no ring is closed within the scaffold behind its
back. The other atoms, and the bonds to them, are left to the model.

In SMILES, ``*`` marks where the rest may be attached: ``*c1ccoc1`` lets new atoms bond to that carbon only.
Without a ``*`` they may bond anywhere that valence allows. Pieces separated by a dot are linked by the model.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sci.graphs.dense import Graphs
from sci.graphs.encoding import Vocabulary, encode_mols
from sci.graphs.molecules import Molecules

if TYPE_CHECKING:
    import networkx

__all__ = ["Scaffold", "edge_list"]

_ENTRY = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True)
class Scaffold:
    """A known part of a graph.

    Arguments:
        nodes: Class of each of its k nodes.
        edges: Class of each pair of them, (k, k), symmetric, 0 for no edge.
        open: Which of them may be joined to new nodes.

    Example:
        >>> scaffold = Scaffold.from_smiles("*C1CO1")
        >>> scaffold.nodes, scaffold.open
        ((0, 0, 2), (True, False, False))
    """

    nodes: tuple[int, ...]
    edges: tuple[tuple[int, ...], ...]
    open: tuple[bool, ...]

    def __len__(self) -> int:
        return len(self.nodes)

    @classmethod
    def from_smiles(cls, smiles: str, vocabulary: Vocabulary | None = None) -> Scaffold:
        """A part of a molecule; see the module for ``*`` and dots. Stereochemistry is not kept.

        Arguments:
            smiles: A SMILES string.
            vocabulary: The elements that the model knows; C, N, O, F when None.

        Raises:
            ValueError: A SMILES that RDKit cannot parse, elements outside the vocabulary, no atom at all, charges
                that the model's molecules cannot carry, or a ``*`` that is not bonded to exactly one atom.
        """
        from rdkit import Chem
        from rdkit.rdBase import BlockLogs

        vocabulary = vocabulary or Vocabulary()
        with BlockLogs():
            mol = Chem.MolFromSmiles(smiles)
        what = f"scaffold {smiles!r}"
        if mol is None:
            raise ValueError(f"{what}: RDKit cannot parse or sanitise it; correct the SMILES")
        bare = Chem.RWMol(Chem.RemoveHs(mol))
        Chem.Kekulize(bare, clearAromaticFlags=True)
        stars = [atom for atom in bare.GetAtoms() if atom.GetAtomicNum() == 0]
        for star in stars:
            if star.GetDegree() != 1 or star.GetNeighbors()[0].GetAtomicNum() == 0:
                raise ValueError(f"{what}: a * must be bonded to exactly one atom of the scaffold")
        marked = {star.GetNeighbors()[0].GetIdx() for star in stars}
        places = [atom.GetIdx() for atom in bare.GetAtoms() if atom.GetAtomicNum() != 0]
        for index in sorted((star.GetIdx() for star in stars), reverse=True):
            bare.RemoveAtom(index)
        if not places:
            raise ValueError(f"{what}: it holds no atoms")
        Chem.SanitizeMol(bare)
        wanted = Chem.MolToSmiles(bare, isomericSmiles=False)
        try:
            atoms, bonds, _ = encode_mols([bare.GetMol()], vocabulary)
        except ValueError as error:
            raise ValueError(f"{what}: {error}") from None
        found = Molecules(atoms, bonds, vocabulary).smiles[0]
        if found != wanted:
            raise ValueError(
                f"{what}: the model's molecules carry no charges but the +1 that completes an overfilled atom, so "
                f"it would become {found}; write it without charges"
            )
        return cls(
            tuple(atoms[0].tolist()),
            tuple(map(tuple, bonds[0].tolist())),
            tuple(not stars or place in marked for place in places),
        )

    @classmethod
    def from_edges(cls, text: str) -> Scaffold:
        """A part of a graph without labels: ``"0-1 1-2 2-0 3"``, with single numbers for isolated nodes.

        Raises:
            ValueError: Text of another form, loops, or nodes that are not numbered 0, 1, 2, ...
        """
        pairs: list[tuple[int, int]] = []
        seen: set[int] = set()
        for entry in text.replace(",", " ").split():
            match = _ENTRY.fullmatch(entry)
            if match is None or match[1] == match[2]:
                raise ValueError(
                    f"scaffold {text!r}: {entry!r} is no edge; write a graph as '0-1 1-2 2-0', or give a "
                    "networkx graph"
                )
            ends = [int(end) for end in match.groups() if end is not None]
            seen.update(ends)
            if len(ends) == 2:
                pairs.append((ends[0], ends[1]))
        if not seen or seen != set(range(len(seen))):
            raise ValueError(
                f"scaffold {text!r}: its nodes are {sorted(seen)}; number them 0, 1, 2, ..."
            )
        edges = np.zeros((len(seen), len(seen)), dtype=int)
        for i, j in pairs:
            edges[i, j] = edges[j, i] = 1
        return cls((0,) * len(seen), tuple(map(tuple, edges.tolist())), (True,) * len(seen))

    def known(
        self, width: int, node_law: Tensor, edge_law: Tensor
    ) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """The scaffold as a model's leaves: what is known, and where.

        Arguments:
            width: Number of nodes N of the padded graphs, at least the scaffold's.
            node_law, edge_law: Class frequencies, which are taken off the one-hot classes.

        Returns:
            Two trees of the leaves ``nodes`` (1, N, K) and ``edges`` (1, N, N, C): the values, zero where nothing is
            known, and the masks of what is known, bool, (1, N) and (1, N, N, 1).
        """
        size, device = len(self), node_law.device
        nodes = torch.zeros(width, dtype=torch.long)
        edges = torch.zeros(width, width, dtype=torch.long)
        nodes[:size] = torch.tensor(self.nodes)
        edges[:size, :size] = torch.tensor(self.edges)
        first = torch.arange(width) < size
        closed = torch.zeros(width, dtype=torch.bool)
        closed[:size] = ~torch.tensor(self.open)
        # A closed node has no edge to any new node.
        apart = closed[:, None] & ~first
        pairs = (first[:, None] & first) | apart | apart.t()
        pairs = pairs & ~torch.eye(width, dtype=torch.bool)
        values = {}
        for name, classes, law, where in (
            ("nodes", nodes, node_law, first),
            ("edges", edges, edge_law, pairs),
        ):
            data = functional.one_hot(classes.to(device), len(law)).to(law) - law
            values[name] = torch.where(where.to(device).unsqueeze(-1), data, 0.0).unsqueeze(0)
        masks = {"nodes": first[None].to(device), "edges": pairs[None, ..., None].to(device)}
        return values, masks

    def kept(self, graphs: Molecules | Graphs) -> np.ndarray:
        """Which molecules or graphs hold the scaffold on their first nodes, exactly.

        Returns:
            (G,) bool: classes, edges and absent edges agree, and closed nodes are joined to no new node.
        """
        size = len(self)
        if isinstance(graphs, Molecules):
            width, edges = graphs.max_atoms, graphs.bonds
            nodes = graphs.atoms
        else:
            width, edges = graphs.adjacency.shape[1], graphs.adjacency
            nodes = np.where(np.arange(width) < graphs.sizes[:, None], 0, -1)
        if width < size:
            return np.zeros(len(graphs), dtype=bool)
        same = (nodes[:, :size] == np.array(self.nodes)).all(1)
        same &= (edges[:, :size, :size] == np.array(self.edges)).all((1, 2))
        return same & ~edges[:, :size, size:][:, ~np.array(self.open)].any((1, 2))


def edge_list(graph: networkx.Graph) -> str:
    """A networkx graph as the text of :meth:`Scaffold.from_edges`, nodes in the graph's own order.

    >>> import networkx
    >>> edge_list(networkx.cycle_graph(3))
    '0 1 2 0-1 0-2 1-2'
    """
    numbers = {node: str(k) for k, node in enumerate(graph)}
    edges = [f"{numbers[i]}-{numbers[j]}" for i, j in graph.edges if i != j]
    return " ".join([*numbers.values(), *edges])


def read(scaffold: Any, atoms: Sequence[str]) -> Scaffold:
    """The scaffold of a request: SMILES where the model has elements, else edges."""
    if atoms:
        return Scaffold.from_smiles(scaffold, Vocabulary(tuple(atoms)))
    return Scaffold.from_edges(scaffold)
