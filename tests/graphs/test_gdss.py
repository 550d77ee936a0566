"""GDSS: scores, losses and samplers as published, and the model around them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sci.graphs import published
from sci.graphs.dense import Graphs
from sci.graphs.gdss import GDSS, GDSSConfig, GDSSRequest, Process
from sci.graphs.gdss_data import GDSSTraining, prepare, to_graphs, to_molecules
from sci.graphs.molecules import Molecules
from sci.graphs.training_data import GraphTraining
from sci.optimisation import Optimisation
from sci.recipes import Recipe

ROOT = Path(__file__).resolve().parents[2]
RECIPES = sorted((ROOT / "graphs" / "recipes").glob("gdss-faithful-*.toml"))
PUBLISHED = {
    "qm9": "QM9/gdss_qm9.pth",
    "community_small": "community_small/gdss_community_small.pth",
    "zinc250k": "ZINC250k/gdss_zinc250k.pth",
}
ATOMS = ("C", "N", "O", "F")


def small(**changes):
    fields = dict(
        features=4, max_nodes=9, sizes=(3, 0, 1, 2, 4), atoms=ATOMS, hidden=8, attention=8
    )
    return GDSSConfig(**fields | changes)


class Replay:
    """Recorded noise in the place of streams."""

    def __init__(self, arrays, kind, count):
        self.arrays, self.kind, self.items = arrays, kind, torch.arange(count)

    def draw(self, space, leaf, step, like, mask=None, draw=0):
        name = {"nodes": "x", "edges": "adj"}[leaf]
        if self.kind == "s4":
            return self.arrays[f"s4_noise_{name}"][step, draw]
        return self.arrays[f"pc_noise_{('corr', 'pred')[draw]}_{name}"][step]


@pytest.fixture(scope="module", params=list(PUBLISHED))
def reference(request, shared):
    """A published model in float64, and the reference arrays of its data set."""
    place = shared / "data/graphs/gdss_checkpoints" / PUBLISHED[request.param]
    if not place.exists():
        pytest.skip(f"no published checkpoint {place}")
    with np.load(shared / "reference" / f"gdss_scores_{request.param}.npz") as stored:
        arrays = {
            key: torch.from_numpy(stored[key])
            for key in stored
            if np.issubdtype(stored[key].dtype, np.floating)
        }
    return GDSS.from_published(place).double().requires_grad_(False), arrays


def close(found, expected):
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_published_scores(reference):
    model, arrays = reference
    state = {"nodes": arrays["X_t"], "edges": arrays["A_t"]}
    condition = {"mask": arrays["flags"] > 0}
    score = model.denoiser()(state, 1 - arrays["t"], condition, to="score")
    close(score["nodes"], arrays["score_x"])
    close(score["edges"], arrays["score_adj"])


def test_published_losses(reference):
    model, arrays = reference
    data = {"nodes": arrays["X0"], "edges": arrays["A0"]}
    noise = {"nodes": arrays["z_x"], "edges": arrays["z_adj"]}
    losses = model.item_losses(data, arrays["flags"] > 0, noise, 1 - arrays["t"])
    close(losses["nodes"], arrays["loss_x"])
    close(losses["edges"], arrays["loss_adj"])
    close(losses["nodes"].mean(), arrays["repo_loss_x_mean"])
    close(losses["edges"].mean(), arrays["repo_loss_adj_mean"])


@pytest.mark.parametrize("kind", ["pc", "s4"])
def test_published_samples(reference, kind):
    model, arrays = reference
    if f"{kind}_flags" not in arrays:
        pytest.skip("there is no such trace of this data set")
    mask, steps = arrays[f"{kind}_flags"] > 0, len(arrays[f"{kind}_timesteps"])
    settings = float(arrays[f"{kind}_snr"]), float(arrays[f"{kind}_scale_eps"])
    # Predictor, corrector, snr and scale come with the checkpoint.
    assert settings == (model.config.snr, model.config.scale)
    sampler = model.sampler(GDSSRequest(steps=steps, sampler=kind, norm="batch"))
    start = {"nodes": arrays[f"{kind}_prior_x"], "edges": arrays[f"{kind}_prior_adj"]}
    noise = Replay(arrays, kind, len(mask))
    result = sampler(model.denoiser(), start=start, condition={"mask": mask}, noise=noise)
    close(result.state["nodes"], arrays[f"{kind}_out_x"])
    close(result.state["edges"], arrays[f"{kind}_out_adj"])
    assert result.nfe == (steps if kind == "s4" else 2 * steps)


def test_reference_graphs_are_what_collate_gives(reference):
    model, arrays = reference
    edges, nodes = arrays["A0"].numpy(), arrays["X0"].numpy()
    present = nodes.any(-1)
    classes = np.where(present, nodes.argmax(-1) if model.config.atoms else 0, -1)
    data = GDSSTraining(
        GraphTraining(classes, edges.astype(np.int8)), nodes.shape[-1], not model.config.atoms
    )
    batch = data.collate(torch.arange(len(data)))
    width = batch["mask"].shape[1]
    assert torch.equal(batch["nodes"].double(), arrays["X0"][:, :width])
    assert torch.equal(batch["edges"].double(), arrays["A0"][:, :width, :width])
    assert torch.equal(batch["mask"].double(), arrays["flags"][:, :width])


def test_lone_atoms_count_as_absent():
    molecules = Molecules.from_smiles(["C.CO", "N", "C#N"])
    data = GDSSTraining(GraphTraining(molecules.atoms, molecules.bonds), 4, False)
    batch = data.collate(torch.arange(3))
    assert batch["mask"].sum(1).tolist() == [2, 0, 2]
    assert torch.equal(batch["nodes"].sum(-1) > 0, batch["mask"])
    assert data.counts() == ([1, 0, 2, 0], 1)


def test_features_of_generic_graphs_are_degrees(tmp_path):
    import networkx

    graphs = Graphs.from_networkx([networkx.star_graph(n) for n in (3, 4, 5)] * 4)
    graphs.write(tmp_path / "stars.h5")
    options = {"graphs": str(tmp_path / "stars.h5"), "validation": 2}
    prepared = prepare(options)
    assert prepared.config["features"] == 6 and prepared.config["max_nodes"] == 6
    assert sum(prepared.config["sizes"]) == len(prepared.train) == 10 - 2
    batch = prepared.train.collate(torch.arange(3))
    degrees = batch["edges"].sum(-1).long()
    assert torch.equal(batch["nodes"].argmax(-1) * batch["mask"], degrees)
    assert prepare(options | {"features": 9}).config["features"] == 9
    with pytest.raises(ValueError, match="degree 5: give at least 6"):
        prepare(options | {"features": 5})


def test_each_network_follows_its_own_loss():
    model = GDSS(small())
    molecules = Molecules.from_smiles(["CCO", "C1CC1", "N#CC=O", "CF"])
    data = GDSSTraining(GraphTraining(molecules.atoms, molecules.bonds), 4, False)
    batch = data.collate(torch.arange(4))
    losses = model.losses(batch, 0, torch.Generator().manual_seed(0))
    losses["nodes"].backward(retain_graph=True)
    assert all(p.grad is None for p in model.edge_network.parameters())
    assert all(p.grad.any() for p in model.node_network.parameters())
    again = model.losses(batch, 0, torch.Generator().manual_seed(0))
    assert torch.equal(again["edges"], losses["edges"])


def test_training_lowers_both_losses():
    model = GDSS(small())
    molecules = Molecules.from_smiles(["CCO", "C1CC1", "N#CC=O", "CCF"] * 16)
    data = GDSSTraining(GraphTraining(molecules.atoms, molecules.bonds), 4, False)
    tables = {
        "recipe": {"name": "small", "model": "gdss"},
        "training": {"steps": 60, "batch_size": 64},
        "optimiser": {"name": "adam", "lr": 5e-3, "weight_decay": 1e-4, "clip": 1.0},
    }
    training = Optimisation(model, Recipe.from_tables(tables))
    batch = data.collate(torch.arange(64))

    def judged():
        with torch.no_grad():
            losses = [model.losses(batch, 0, torch.Generator().manual_seed(k)) for k in range(20)]
        return {name: np.mean([float(own[name]) for own in losses]) for name in losses[0]}

    before = judged()
    for step in range(60):
        training.step(batch, step)
    after = judged()
    assert after["nodes"] < 0.9 * before["nodes"] and after["edges"] < 0.9 * before["edges"]


@pytest.mark.parametrize("sampler", ["pc", "s4"])
def test_a_molecule_does_not_depend_on_its_batch(sampler):
    torch.manual_seed(3)
    model = GDSS(small()).double()
    request = dict(steps=4, sampler=sampler, progress=False, seed=7)
    together = model.sample(7, **request)
    apart = model.sample(7, batch_size=3, **request)
    assert np.array_equal(together.atoms, apart.atoms)
    assert np.array_equal(together.bonds, apart.bonds)
    assert together.attrs["nfe"] == (8 if sampler == "pc" else 4)
    other = model.sample(7, **request | {"seed": 8})
    assert not np.array_equal(together.bonds, other.bonds)


def test_generic_graphs_are_sampled_as_graphs():
    vp = Process("vp", 0.1, 1.0)
    model = GDSS(small(features=5, atoms=(), node_process=vp, edge_process=vp, predictor="euler"))
    graphs = model.sample(5, steps=3, progress=False)
    assert isinstance(graphs, Graphs) and len(graphs) == 5
    assert graphs.sizes.max() <= 4


def test_thresholds_of_molecules():
    nodes = np.zeros((1, 5, 4))
    nodes[0, 0, 1], nodes[0, 1, 2], nodes[0, 1, 3], nodes[0, 2, 0] = 0.51, 0.6, 0.9, 0.49
    nodes[0, 3, 3] = 1.2
    edges = np.zeros((1, 5, 5))
    for i, j, value in ((0, 1, 1.6), (0, 2, 3.0), (0, 3, 0.49), (1, 3, 2.6), (2, 3, 1.0)):
        edges[0, i, j] = edges[0, j, i] = value
    molecules = to_molecules(nodes, edges, ATOMS, {"nfe": 1})
    # Atom 2 is below the threshold and goes with its bonds; of two hot channels the first counts.
    assert molecules.atoms.tolist() == [[1, 2, 3, -1, -1]]
    assert molecules.bonds[0, :3, :3].tolist() == [[0, 2, 0], [2, 0, 3], [0, 3, 0]]
    assert not molecules.bonds[0, 3:].any() and molecules.attrs == {"nfe": 1}


def test_thresholds_of_graphs():
    edges = np.zeros((2, 4, 4))
    edges[0, 0, 2] = edges[0, 2, 0] = 0.5
    edges[0, 1, 2] = edges[0, 2, 1] = 0.49
    graphs = to_graphs(edges, np.array([4, 3]), {})
    assert graphs.sizes.tolist() == [2, 1] and graphs.edge_counts.tolist() == [1, 0]


def test_a_checkpoint_folder_goes_round(tmp_path):
    model = GDSS(small(node_network="attention", edge_process=Process("ve", 0.2, 0.9)))
    loaded = GDSS.load(model.save(tmp_path / "model"))
    assert loaded.config == model.config
    request = dict(steps=3, progress=False)
    assert np.array_equal(loaded.sample(4, **request).bonds, model.sample(4, **request).bonds)


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="features is 3, but there are 4 atoms"):
        small(features=3)
    with pytest.raises(ValueError, match="sizes must count"):
        small(max_nodes=3)
    with pytest.raises(ValueError, match="layers is 0"):
        small(layers=0)
    for fields, error in (
        ({"steps": 1}, ValueError),
        ({"size": 0}, ValueError),
        ({"sampler": "p c"}, ValueError),
        ({"norm": "items"}, ValueError),
        ({"snrs": 0.2}, TypeError),
        ({"snr": -1.0, "steps": 3}, ValueError),
    ):
        with pytest.raises(error):
            GDSS(small()).sample(1, progress=False, **fields)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_recipes_hold_the_published_settings(path, shared):
    recipe = Recipe.read(path)
    name = path.stem.removeprefix("gdss-faithful-")
    assert recipe.name == path.stem and recipe.model == "gdss"
    file = next(file for file in published.KNOWN.values() if file.data == name).file
    found = list((shared / "data/graphs/gdss_checkpoints").rglob(file))
    if not found:
        pytest.skip(f"no published checkpoint {file}")
    expected = GDSS.from_published(found[0]).config
    learnt = {"features": expected.features, "atoms": expected.atoms, "sizes": expected.sizes}
    from sci.fields import build

    assert build(GDSSConfig, {**learnt, **recipe.config}, "recipe") == expected
    if "features" in recipe.data:
        assert recipe.data["features"] == expected.features
    settings = published.contents(found[0])["model_config"]["train"]
    assert recipe.optimiser.lr == settings["lr"]
    assert recipe.optimiser.weight_decay == settings["weight_decay"]
    assert recipe.optimiser.clip == settings["grad_norm"]
    assert recipe.optimiser.schedule.gamma == settings["lr_decay"]
    epochs = recipe.training.steps / recipe.optimiser.schedule.every
    assert epochs == settings["num_epochs"]
    average = published.contents(found[0]).get("ema_adj")
    if average is not None:
        assert recipe.training.steps == average["num_updates"]


def test_there_is_a_recipe_for_every_published_data_set():
    assert {path.stem.removeprefix("gdss-faithful-") for path in RECIPES} == {
        file.data for file in published.KNOWN.values()
    }
