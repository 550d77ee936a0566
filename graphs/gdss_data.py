"""Data of GDSS: one-hot node features and real adjacencies for its processes, thresholds for the way back.

The node features of a molecule are its elements, those of a generic graph its degrees. A node without an edge counts as
absent, as in the published code: its features are zero and no noise reaches it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from sci.graphs import training_data
from sci.graphs.dense import Graphs
from sci.graphs.encoding import Vocabulary
from sci.graphs.molecules import Molecules
from sci.graphs.pairs import dense_index
from sci.model import Prepared

__all__ = ["GDSSTraining", "prepare", "to_graphs", "to_molecules"]


class GDSSTraining:
    """Graphs as the processes see them, by index.

    Arguments:
        classes: Class indices, from :func:`sci.graphs.training_data.split`.
        features: Node features F: elements, or degrees for generic graphs.
        degrees: Whether the nodes' features are their degrees.
    """

    def __init__(self, classes: training_data.GraphTraining, features: int, degrees: bool):
        self.classes, self.features, self.degrees = classes, features, degrees

    def __len__(self) -> int:
        return len(self.classes)

    def collate(self, indices: Tensor) -> dict[str, Tensor]:
        """nodes (B, N, F) one-hot, edges (B, N, N) and mask (B, N), cut to the largest graph."""
        batch = self.classes.collate(indices)
        nodes, pairs = batch["nodes"].long(), batch["pairs"]
        count = nodes.shape[1]
        padded = functional.pad(pairs, (0, 0, 0, 1)).index_select(0, dense_index(count))
        edges = padded.view(count, count, -1).permute(2, 0, 1).to(torch.float32)
        mask = edges.sum(-1) > 1e-5
        labels = (edges > 0).sum(-1) if self.degrees else nodes.clamp(min=0)
        hot = functional.one_hot(labels, self.features) * mask.unsqueeze(-1)
        return {"nodes": hot.to(torch.float32), "edges": edges, "mask": mask}

    def counts(self) -> tuple[list[int], int]:
        """Graphs by number of nodes with an edge, and the largest degree."""
        tally, largest = torch.zeros(self.classes.nodes.shape[1] + 1, dtype=torch.long), 0
        for rows in torch.arange(len(self)).split(4096):
            batch = self.classes.collate(rows)
            count = batch["nodes"].shape[1]
            padded = functional.pad(batch["pairs"] > 0, (0, 0, 0, 1))
            degrees = padded.index_select(0, dense_index(count)).view(count, count, -1).sum(0)
            tally += torch.bincount((degrees > 0).sum(0), minlength=len(tally))
            largest = max(largest, int(degrees.max()))
        return tally.tolist(), largest


def prepare(options: Mapping[str, Any], elements: Sequence[str] = ()) -> Prepared:
    """Training data of a recipe: the ``[data]`` table.

    Arguments:
        elements: As for the function named next.
        options: As for :func:`sci.graphs.training_data.split`; and ``features``, for generic graphs the number F of
            degrees told apart, by default those that occur.

    Raises:
        KeyError: For an unknown option or data set.
        ValueError: If a training graph has a degree of F or more; and as the function named above.
    """
    options = dict(options)
    features = options.pop("features", None)
    classes, held_classes, laws = training_data.split(options, elements)
    atoms = laws["atoms"]
    train = GDSSTraining(classes, len(atoms), not atoms)
    held = None if held_classes is None else GDSSTraining(held_classes, len(atoms), not atoms)
    sizes, largest = train.counts()
    if not atoms:
        largest = max(largest, held.counts()[1] if held else 0)
        features = largest + 1 if features is None else int(features)
        if largest >= features:
            raise ValueError(
                f"[data] features is {features}, but a graph has a node of degree {largest}: "
                f"give at least {largest + 1}"
            )
        for part in filter(None, (train, held)):
            part.features = features
    return Prepared(
        train=train,
        validation=held,
        config={
            "features": train.features,
            "max_nodes": len(sizes) - 1,
            "sizes": sizes,
            "atoms": atoms,
        },
    )


def to_graphs(edges: np.ndarray, sizes: np.ndarray, attrs: dict[str, Any]) -> Graphs:
    """Graphs from real-valued adjacencies (B, N, N): an edge from 0.5 on; isolated nodes are dropped."""
    return Graphs.from_scores(edges, sizes, threshold=0.5, drop_isolated=True, attrs=attrs)


def to_molecules(
    nodes: np.ndarray, edges: np.ndarray, atoms: Sequence[str], attrs: dict[str, Any]
) -> Molecules:
    """Molecules from real-valued node features and adjacencies, with the published thresholds.

    Bond orders change at 0.5, 1.5 and 2.5. An atom is the first element whose feature exceeds 0.5; where none does,
    there is no atom and no bond.

    Arguments:
        nodes: (B, N, F), zero at padding.
        edges: (B, N, N) symmetric.
        atoms: The F element symbols.
        attrs: Where the molecules are from.
    """
    hot = nodes > 0.5
    ids = np.where(hot.any(-1), hot.argmax(-1), -1).astype(np.int8)
    order = np.argsort(ids < 0, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, 1)
    bonds = np.digitize(edges, (0.5, 1.5, 2.5)).astype(np.int8)
    bonds = np.take_along_axis(bonds, order[:, :, None], 1)
    bonds = np.take_along_axis(bonds, order[:, None], 2)
    here = ids >= 0
    bonds *= here[:, :, None] & here[:, None] & ~np.eye(ids.shape[1], dtype=bool)
    return Molecules(ids, bonds, Vocabulary(tuple(atoms)), attrs)
