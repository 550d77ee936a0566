"""Graphs as class indices, for training, and the way back to data objects.

A batch is a dict of class indices: ``nodes`` (B, N) int8 with -1 at padding and ``pairs`` (P, B) int8,
the classes of the unordered pairs in the order of :func:`sci.graphs.pairs.pair_index`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.fields import unknown
from sci.graphs import load
from sci.graphs.dense import Graphs
from sci.graphs.encoding import Vocabulary
from sci.graphs.molecules import Molecules
from sci.graphs.pairs import pair_index

__all__ = ["GraphTraining", "decode", "split", "within"]

_OPTIONS = {"molecules", "graphs", "folder", "validation", "validation_seed"}


class GraphTraining:
    """Graphs as class indices, by index.

    Arguments:
        nodes: (G, N) int8 node classes, -1 at padding.
        edges: (G, N, N) int8 edge classes, 0 for no edge.

    When a batch is collated, each graph's nodes are left in their order: the network is equivariant, so
    shuffling them would change nothing.
    """

    def __init__(self, nodes: np.ndarray, edges: np.ndarray):
        smaller, larger = pair_index(nodes.shape[1])
        self.nodes = torch.from_numpy(nodes.astype(np.int8))
        self.pairs = torch.from_numpy(edges.astype(np.int8))[:, smaller, larger]

    def __len__(self) -> int:
        return len(self.nodes)

    def collate(self, indices: Tensor) -> dict[str, Tensor]:
        """The batch of some graphs, cut to the largest of them."""
        nodes, pairs = self.nodes[indices], self.pairs[indices]
        size = int((nodes >= 0).sum(1).max())
        return {"nodes": nodes[:, :size], "pairs": pairs[:, : size * (size - 1) // 2].t()}


def split(
    options: Mapping[str, Any], elements: Sequence[str] = ()
) -> tuple[GraphTraining, GraphTraining | None, dict[str, Any]]:
    """Data of a recipe: the ``[data]`` table.

    Arguments:
        options: One of ``molecules`` (a name such as "qm9", or a SMILES or SDF file) and ``graphs`` (a
            name such as "community-small"); ``folder`` where its files are, if not found by themselves;
            ``validation`` how many training graphs are held out, a number or a fraction below 1, 0 for
            none; ``validation_seed``.
        elements: Encode molecules with these elements, not with those that occur in them.

    Returns:
        Training and validation data, and the class frequencies, sizes and elements of the training
        graphs. Test graphs are not touched.

    Raises:
        KeyError: For an unknown option or data set.
        ValueError: If not exactly one data set is named, or too much is held out.
    """
    for name in options:
        if name not in _OPTIONS:
            raise KeyError(unknown("option of [data]", name, sorted(_OPTIONS)))
    if ("molecules" in options) == ("graphs" in options):
        raise ValueError("[data] must name one data set: molecules = ... or graphs = ...")
    folder = options.get("folder")
    atoms: tuple[str, ...] = ()
    if "molecules" in options:
        source = load.molecules(options["molecules"], folder=folder, progress=True)
        if elements:
            source = replace(source, vocabulary=Vocabulary(tuple(elements)))
        molecules = source.train
        nodes, edges = molecules.atoms, molecules.bonds
        atoms = molecules.vocabulary.atoms
    else:
        graphs = load.graphs(options["graphs"], folder=folder).train
        mask = np.arange(graphs.adjacency.shape[1]) < graphs.sizes[:, None]
        nodes, edges = np.where(mask, 0, -1), graphs.adjacency
    held_out = options.get("validation", 0)
    held_out = int(held_out * len(nodes) if 0 < held_out < 1 else held_out)
    if not 0 <= held_out < len(nodes):
        raise ValueError(
            f"[data] validation is {held_out}; expected 0 to {len(nodes) - 1}, since there are "
            f"{len(nodes)} training graphs"
        )
    order = np.random.default_rng(int(options.get("validation_seed", 0))).permutation(len(nodes))
    train, held = order[held_out:], order[:held_out]
    data = GraphTraining(nodes[train], edges[train])
    laws = _laws(data, max(len(atoms), 1), 4 if atoms else 2)
    validation = GraphTraining(nodes[held], edges[held]) if held_out else None
    return data, validation, laws | {"atoms": atoms}


def within(sizes: Sequence[int], largest: int) -> tuple[int, ...]:
    """A law of sizes as a model of at most ``largest`` nodes holds it.

    Raises:
        ValueError: If there are larger graphs.
    """
    if len(sizes) - 1 > largest:
        raise ValueError(
            f"the data have graphs of {len(sizes) - 1} nodes, but the model to fine-tune was trained on at "
            f"most {largest}: leave the larger ones out, or train from the start"
        )
    return tuple(sizes) + (0,) * (largest + 1 - len(sizes))


def _laws(data: GraphTraining, node_classes: int, edge_classes: int) -> dict[str, Any]:
    """Frequencies of the classes and of the sizes; a class never seen is given half an entry."""
    mask = data.nodes >= 0
    smaller, larger = pair_index(mask.shape[1])
    present = {"node": data.nodes[mask], "edge": data.pairs[mask[:, smaller] & mask[:, larger]]}
    laws: dict[str, Any] = {}
    for name, classes in (("node", node_classes), ("edge", edge_classes)):
        counts = torch.bincount(present[name].long(), minlength=classes).double().clamp(min=0.5)
        laws[f"{name}_frequencies"] = tuple((counts / counts.sum()).tolist())
    laws["sizes"] = tuple(torch.bincount(mask.sum(1)).tolist())
    return laws


def decode(
    nodes: Tensor, edges: Tensor, mask: Tensor, atoms: Sequence[str], attrs: dict[str, Any]
) -> Molecules | Graphs:
    """The data object of generated classes.

    Arguments:
        nodes: (B, N) node classes.
        edges: (B, N, N) edge classes, symmetric.
        mask: (B, N) which nodes exist.
        atoms: Element symbols for molecules; empty for generic graphs.
        attrs: Where they are from.
    """
    here = mask.cpu().numpy()
    pairs = here[:, :, None] & here[:, None] & ~np.eye(here.shape[1], dtype=bool)
    classes = np.where(pairs, edges.cpu().numpy(), 0).astype(np.int8)
    if not atoms:
        return Graphs(classes, here.sum(1), attrs)
    ids = np.where(here, nodes.cpu().numpy(), -1).astype(np.int8)
    return Molecules(ids, classes, Vocabulary(tuple(atoms)), attrs)
