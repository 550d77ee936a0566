"""Scaffolds: reading them, and completions that keep them to the bond."""

from __future__ import annotations

import networkx
import numpy as np
import pytest
import torch
from rdkit import Chem

import sci
from sci.graphs import guided
from sci.graphs.dense import Graphs
from sci.graphs.encoding import Vocabulary
from sci.graphs.mended import MendedGDSS, MendedGDSSConfig
from sci.graphs.molecules import Molecules
from sci.graphs.scaffolds import Scaffold, edge_list

SMALL = {"depth": 2, "node_width": 32, "pair_width": 24, "triangle_width": 4, "time_width": 16}


def random_model(atoms: tuple[str, ...] = ("C", "N", "O", "F")) -> MendedGDSS:
    torch.manual_seed(0)
    classes = {
        "node_frequencies": (0.7, 0.1, 0.15, 0.05) if atoms else (1.0,),
        "edge_frequencies": (0.7, 0.2, 0.07, 0.03) if atoms else (0.7, 0.3),
    }
    model = MendedGDSS(
        MendedGDSSConfig(**classes, sizes=(0, 0, 1, 2, 4, 8, 16), atoms=atoms, **SMALL)
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model.eval()


def test_smiles_with_and_without_places_to_attach():
    plain = Scaffold.from_smiles("C=CO")
    assert plain.nodes == (0, 0, 2) and plain.open == (True, True, True)
    assert plain.edges == ((0, 2, 0), (2, 0, 1), (0, 1, 0))
    marked = Scaffold.from_smiles("*n1cccc1")
    assert marked.nodes == (1, 0, 0, 0, 0) and marked.open == (True, False, False, False, False)
    # Two places on one atom, and two pieces.
    twice = Scaffold.from_smiles("*C(*)O.*N")
    assert twice.nodes == (0, 2, 1) and twice.open == (True, False, True)
    assert twice.edges[2] == (0, 0, 0)


def test_edges_and_networkx():
    square = networkx.relabel_nodes(networkx.cycle_graph(4), dict(enumerate("abcd")))
    scaffold = Scaffold.from_edges(edge_list(square))
    expected = networkx.to_numpy_array(square, dtype=int)
    assert np.array_equal(scaffold.edges, expected) and scaffold.nodes == (0, 0, 0, 0)
    lonely = Scaffold.from_edges("0-1, 2")
    assert lonely.edges == ((0, 1, 0), (1, 0, 0), (0, 0, 0))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("xx", "cannot parse"),
        ("", "no atoms"),
        ("CS", "outside the vocabulary"),
        ("C[O-]", "without charges"),
        ("C*C", "exactly one atom"),
        ("**", "exactly one atom"),
    ],
)
def test_bad_smiles(text, message):
    with pytest.raises(ValueError, match=message):
        Scaffold.from_smiles(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("c1ccccc1", "is no edge"),
        ("0-0", "is no edge"),
        ("0-2", "number them"),
        ("", "number them"),
    ],
)
def test_bad_edges(text, message):
    with pytest.raises(ValueError, match=message):
        Scaffold.from_edges(text)


def test_known_entries_are_the_classes_less_the_frequencies():
    scaffold = Scaffold.from_smiles("*C=O")
    node_law, edge_law = torch.tensor([0.7, 0.1, 0.1, 0.1]), torch.tensor([0.7, 0.1, 0.1, 0.1])
    values, masks = scaffold.known(4, node_law, edge_law)
    assert masks["nodes"][0].tolist() == [True, True, False, False]
    # Carbon is open and oxygen closed: only the oxygen's pairs with new atoms are known.
    pairs = masks["edges"][0, ..., 0]
    assert pairs.int().tolist() == [[0, 1, 0, 0], [1, 0, 1, 1], [0, 1, 0, 0], [0, 1, 0, 0]]
    nodes, edges = values["nodes"][0] + node_law, values["edges"][0] + edge_law
    assert nodes[:2].argmax(-1).tolist() == [0, 2] and edges[0, 1].argmax() == 2
    torch.testing.assert_close(edges[1, 3], torch.tensor([1.0, 0.0, 0.0, 0.0]))
    assert not values["nodes"][0, 2:].any() and not values["edges"][0, 0, 2:].any()


def test_the_likelihood_counts_every_known_entry_once():
    scaffold = Scaffold.from_smiles("*C=O")
    generator = torch.Generator().manual_seed(0)
    nodes = torch.rand(2, 4, 4, generator=generator).softmax(-1)
    raw = torch.rand(2, 4, 4, 4, generator=generator)
    edges = (raw + raw.transpose(1, 2)).softmax(-1)
    mask = torch.tensor([[True] * 4, [True, True, True, False]])
    law = torch.full((4,), 0.25)
    values, masks = scaffold.known(4, law, law)
    classes = {
        "nodes": torch.where(masks["nodes"][..., None], values["nodes"] + law, 0.0),
        "edges": torch.where(masks["edges"], values["edges"] + law, 0.0),
    }
    found = guided.log_likelihood(classes, {"nodes": nodes, "edges": edges}, mask)
    for item in range(2):
        expected = nodes[item, 0, 0].log() + nodes[item, 1, 2].log() + edges[item, 0, 1, 2].log()
        for new in range(2, int(mask[item].sum())):
            expected = expected + edges[item, 1, new, 0].log()
        torch.testing.assert_close(found[item], expected)


def test_kept_sees_every_difference():
    scaffold = Scaffold.from_smiles("*C=O")
    texts = ["C=O", "C(=O)N", "CO", "C(=O)(N)C", "N=O"]
    molecules = Molecules.from_smiles(texts)
    assert scaffold.kept(molecules).tolist() == [True, True, False, True, False]
    ring = Scaffold.from_smiles("C=CO")
    closed = Molecules.from_smiles(["C=CO", "C1=CO1"])
    assert ring.kept(closed).tolist() == [True, False]
    # An atom joined to a closed one.
    bonds = closed.bonds.copy()
    assert Scaffold.from_smiles("*C=C").kept(closed).tolist() == [False, False]
    assert bonds.shape == (2, 3, 3)
    squares = Graphs.from_networkx([networkx.cycle_graph(4), networkx.complete_graph(4)])
    assert Scaffold.from_edges("0-1 1-2 2-3 3-0").kept(squares).tolist() == [True, False]
    assert not Scaffold.from_edges("0-1 1-2 2-3 3-4").kept(squares).any()


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"guidance": 0.0},
        {"guidance": 3.0, "stochasticity": 1.0},
        {"repeats": 2},
        {"sampler": "heun"},
    ],
)
def test_even_an_untrained_model_keeps_the_scaffold(fields):
    model = random_model()
    scaffold = "*C1CO1"
    molecules = model.sample(40, seed=1, steps=5, scaffold=scaffold, progress=False, **fields)
    assert Scaffold.from_smiles(scaffold).kept(molecules).all()
    assert molecules.sizes.min() >= 4
    calls = 5 if "repeats" not in fields else 2 * 4 + 1
    assert molecules.attrs["nfe"] == calls * (1 if fields.get("guidance") == 0.0 else 2)


def test_sizes_leave_room():
    model = random_model()
    free = model.sample(30, steps=2, progress=False)
    assert free.sizes.min() < 5
    assert set(model.sample(30, steps=2, scaffold="CCCC", progress=False).sizes) == {5, 6}
    assert set(model.sample(4, steps=2, scaffold="CCCCCC", progress=False).sizes) == {6}
    asked = model.sample(4, steps=2, scaffold="CCC", size=3, progress=False)
    assert asked.smiles == ["CCC"] * 4
    with pytest.raises(ValueError, match="at most 6"):
        model.sample(2, steps=2, scaffold="CCCCCCC", progress=False)
    with pytest.raises(ValueError, match="size is 2"):
        model.sample(2, steps=2, scaffold="CCC", size=2, progress=False)
    with pytest.raises(ValueError, match="repeats is 2"):
        model.sample(2, repeats=2, progress=False)


def test_items_do_not_depend_on_batches():
    model = random_model()
    whole, pieces = (
        model.sample(9, seed=3, steps=4, scaffold="*C=O", batch_size=size, progress=False)
        for size in (9, 2)
    )
    same = (whole.atoms == pieces._pad(whole.max_atoms)[0]).all(1)
    assert np.array_equal(whole.sizes, pieces.sizes) and same.all()


def test_graphs_without_labels():
    model = random_model(())
    graphs = model.sample(12, steps=4, scaffold=networkx.cycle_graph(4), progress=False)
    assert isinstance(graphs, Graphs) and graphs.sizes.min() >= 5
    square = networkx.to_numpy_array(networkx.cycle_graph(4))
    assert all(np.array_equal(adjacency[:4, :4], square) for adjacency in graphs)
    with pytest.raises(ValueError, match="is no edge"):
        model.sample(2, scaffold="C1CC1", progress=False)


@pytest.mark.parametrize("scaffold", ["*C1CO1", "NC=O", "c1ccoc1"])
def test_molecules_hold_the_scaffold_and_guidance_makes_them_valid(scaffold):
    model = sci.load("gdss-qm9")
    parsed = Scaffold.from_smiles(scaffold, Vocabulary(model.config.atoms))
    loose, firm = (
        model.sample(64, seed=2, scaffold=scaffold, guidance=w, progress=False) for w in (0.0, 1.5)
    )
    assert parsed.kept(loose).all() and parsed.kept(firm).all()
    assert firm.valid.mean() > max(0.9, loose.valid.mean())
    # Any bond order: RDKit may call a ring aromatic that the scaffold alone does not have as one.
    query = Chem.MolFromSmarts(
        {"*C1CO1": "[#6]1~[#6]~[#8]~1", "NC=O": "[#7]~[#6]~[#8]"}.get(scaffold, "c1ccoc1")
    )
    mols = [mol for mol in firm.mols if mol is not None]
    held = np.mean([mol.HasSubstructMatch(query) for mol in mols])
    assert held == 1.0 if scaffold != "c1ccoc1" else held > 0.9


def test_pictures_mark_the_scaffold():
    molecules = Molecules.from_smiles(["C1CO1", "CC1CO1"])
    plain, marked = (molecules.plot(highlight=h) for h in (None, [range(3), [1, 2, 3]]))
    assert plain.size == marked.size
    assert np.asarray(plain).tobytes() != np.asarray(marked).tobytes()
    with pytest.raises(ValueError, match="1 highlights for 2"):
        molecules.plot(highlight=[[0]])
    with pytest.raises(ValueError, match="skip_invalid"):
        molecules.plot(highlight=[[0], [0]], skip_invalid=True)
