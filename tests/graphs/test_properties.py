"""The surrogate of properties: its formulae, its symmetries, that it learns, and that it steers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rdkit import Chem
from rdkit.Chem import QED, Crippen

import sci
from sci.graphs import load
from sci.graphs.descriptors import measure
from sci.graphs.mended import MendedGDSS, MendedGDSSConfig
from sci.graphs.molecules import Molecules
from sci.graphs.properties import PropertySurrogate, PropertySurrogateConfig

ATOMS = ("C", "N", "O", "F")
SMALL = {"depth": 2, "node_width": 24, "pair_width": 16, "triangle_width": 4}


def surrogate(**changes) -> PropertySurrogate:
    torch.manual_seed(0)
    config = {
        "atoms": ATOMS,
        "properties": ("logp", "qed"),
        "means": (0.3, 0.45),
        "stds": (1.2, 0.1),
        **SMALL,
        **changes,
    }
    model = PropertySurrogate(PropertySurrogateConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def soft(batch: int, nodes: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    atoms = torch.randn(batch, nodes, 4, generator=generator, dtype=torch.float64).softmax(-1)
    bonds = torch.randn(batch, nodes, nodes, 4, generator=generator, dtype=torch.float64)
    return atoms, (bonds + bonds.transpose(1, 2)).softmax(-1)


def test_measured_properties_are_those_of_rdkit():
    texts = ["CCO", "c1ccncc1C", "OC(=O)C#N"]
    found = measure(Molecules.from_smiles(texts), ["qed", "logp", "rings"])
    for row, text in zip(found, texts, strict=True):
        mol = Chem.MolFromSmiles(text)
        expected = [QED.qed(mol), Crippen.MolLogP(mol), mol.GetRingInfo().NumRings()]
        np.testing.assert_allclose(row, expected)


def test_measured_properties_of_what_is_no_molecule():
    bonds = np.zeros((1, 3, 3), dtype=int)
    bonds[0, 0, 1:] = bonds[0, 1:, 0] = 3  # a carbon with six bonds
    assert np.isnan(measure(Molecules(np.zeros((1, 3), dtype=int), bonds))).all()
    with pytest.raises(ValueError, match="logp"):
        measure(Molecules.from_smiles(["C"]), ["logP"])


def test_the_likelihood_is_a_normal_law_in_standardised_units():
    model = surrogate()
    nodes, edges = (leaf.float() for leaf in soft(3, 5))
    mask = torch.ones(3, 5, dtype=torch.bool)
    mean, log_std = model(nodes, edges, mask)
    expected = torch.zeros(3)
    for name, value in {"qed": 0.6, "logp": -1.0}.items():
        k = ("logp", "qed").index(name)
        target = (value - (0.3, 0.45)[k]) / (1.2, 0.1)[k]
        law = torch.distributions.Normal(mean[:, k], (log_std[:, k].exp() ** 2 + 0.2**2).sqrt())
        expected = expected + law.log_prob(torch.tensor(target)) + 0.5 * np.log(2 * np.pi)
    found = model.log_likelihood(nodes, edges, mask, {"qed": 0.6, "logp": -1.0}, std=0.2)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_order_and_padding_change_nothing():
    model = surrogate().double()
    nodes, edges = soft(2, 5)
    mask = torch.ones(2, 5, dtype=torch.bool)
    plain = model(nodes, edges, mask)
    order = torch.tensor([2, 0, 4, 1, 3])
    moved = model(nodes[:, order], edges[:, order][:, :, order], mask)
    wide_nodes = torch.full((2, 7, 4), 9.0, dtype=torch.float64)
    wide_edges = torch.full((2, 7, 7, 4), 9.0, dtype=torch.float64)
    wide_nodes[:, :5], wide_edges[:, :5, :5] = nodes, edges
    padded = model(wide_nodes, wide_edges, torch.arange(7).expand(2, 7) < 5)
    for found in (moved, padded):
        for a, b in zip(found, plain, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-6)


def test_gradients_against_differences():
    model = surrogate().double()
    nodes, edges = soft(1, 4)
    mask = torch.ones(1, 4, dtype=torch.bool)

    def value(shift: torch.Tensor) -> torch.Tensor:
        pairs = shift[None, 4:, None].expand(1, 4, 4)
        bonds = edges + torch.stack([pairs, -pairs, 0 * pairs, 0 * pairs], -1)
        atoms = nodes + torch.stack([shift[:4], -shift[:4], 0 * shift[:4], 0 * shift[:4]], -1)
        return model.log_likelihood(atoms, bonds, mask, {"logp": 1.0}, std=0.3).sum()

    at = torch.zeros(8, dtype=torch.float64, requires_grad=True)
    slope = torch.autograd.grad(value(at), at)[0].detach()
    step = 1e-3  # the head answers in float32
    for k in range(8):
        e = torch.zeros(8, dtype=torch.float64)
        e[k] = step
        difference = (value(e) - value(-e)).detach() / (2 * step)
        assert float(slope[k]) == pytest.approx(float(difference), rel=0.02, abs=2e-3)


def tiny_generator(folder) -> str:
    torch.manual_seed(1)
    config = MendedGDSSConfig(
        node_frequencies=(0.7, 0.1, 0.15, 0.05),
        edge_frequencies=(0.7, 0.2, 0.07, 0.03),
        sizes=(0, 0, 1, 2, 4, 8, 16),
        atoms=ATOMS,
        depth=1,
        node_width=16,
        pair_width=16,
        triangle_width=4,
        time_width=8,
    )
    return str(MendedGDSS(config).save(folder))


@pytest.mark.parametrize("with_generator", [False, True])
def test_the_loss_reaches_every_parameter_and_no_generator_is_kept(tmp_path, with_generator):
    (tmp_path / "mine.smi").write_text("\n".join(["CCO", "C1CC1N", "C#N", "FC=O"] * 5))
    prepared = PropertySurrogate.prepare({"molecules": str(tmp_path / "mine.smi")})
    changes = {**prepared.config, "denoiser": ""}
    if with_generator:
        # The same elements in the same order, as the generator has them.
        assert prepared.config["atoms"] == ATOMS
        changes["denoiser"] = tiny_generator(tmp_path / "generator")
    model = surrogate(**changes)
    batch = prepared.train.collate(torch.arange(len(prepared.train)))
    losses = model.losses(batch, 0, torch.Generator().manual_seed(0))
    again = model.losses(batch, 0, torch.Generator().manual_seed(0))
    assert torch.equal(losses["loss"], again["loss"])
    losses["loss"].backward()
    unreached = {n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()}
    # The answer is read off the nodes: what the last block says to the pairs goes nowhere.
    assert {name.rpartition(".")[0] for name in unreached} == {
        "blocks.1.pair_out",
        "blocks.1.triangle_in",
    }
    assert not any("_denoiser" in key for key in model.state_dict())


def test_it_learns_and_survives_a_round_trip(tmp_path):
    texts = ["CCCC", "CCO", "OCCO", "NCCN", "CC(=O)N", "C1CC1", "CCF", "OCO", "CCCN", "C#CC"]
    (tmp_path / "mine.smi").write_text("\n".join(texts * 6))
    prepared = PropertySurrogate.prepare({"molecules": str(tmp_path / "mine.smi")})
    model = surrogate(**prepared.config)
    batch = prepared.train.collate(torch.arange(len(prepared.train)))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
    generator = torch.Generator().manual_seed(0)
    for step in range(150):
        optimiser.zero_grad()
        model.losses(batch, step, generator)["loss"].backward()
        optimiser.step()
    molecules = Molecules.from_smiles(texts)
    again = PropertySurrogate.load(model.save(tmp_path / "model"))
    truth = measure(molecules)
    error = np.abs(again.predict(molecules, batch_size=3) - truth)
    assert (error.mean(0) < 0.6 * truth.std(0)).all()


def test_fine_tuning_keeps_the_standardisation(tmp_path):
    (tmp_path / "mine.smi").write_text("\n".join(["CCO", "CCCO", "C1CC1O", "CC(C)O"] * 5))
    origin = surrogate().config
    prepared = PropertySurrogate.prepare({"molecules": str(tmp_path / "mine.smi")}, origin)
    assert prepared.config == {} and prepared.train.targets.shape[1] == 2
    found = prepared.train.targets * torch.tensor(origin.stds) + torch.tensor(origin.means)
    assert float(found[:, 0].min()) == pytest.approx(
        Crippen.MolLogP(Chem.MolFromSmiles("CCO")), abs=1e-4
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"properties": ("logp", "qde")}, "qed"),
        ({"means": (0.0,)}, "one entry for each"),
        ({"stds": (0.0, 1.0)}, "positive"),
        ({"clean_share": 1.5}, "clean_share"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        surrogate(**changes)


def test_bad_molecules():
    model = surrogate(max_nodes=3)
    with pytest.raises(ValueError, match="elements C O"):
        model.predict(Molecules.from_smiles(["CO"], sci.graphs.Vocabulary(("C", "O"))))
    with pytest.raises(ValueError, match="4 heavy atoms"):
        model.predict(Molecules.from_smiles(["CCCC"]))
    with pytest.raises(ValueError, match="logp"):
        model.column("logP")


def test_the_shipped_surrogate_knows_test_molecules():
    model = sci.load("properties-qm9")
    molecules = load.molecules("qm9").test[::40]
    molecules = molecules[molecules.sizes > 4]  # of smaller ones there are too few to learn from
    truth = measure(molecules)
    error = model.predict(molecules) - truth
    r2 = 1 - (error**2).mean(0) / truth.var(0)
    assert dict(zip(model.config.properties, r2 > (0.99, 0.97, 0.99, 0.99, 0.99), strict=True)) == {
        name: True for name in model.config.properties
    }


def test_targets_move_the_molecules():
    model = sci.load("gdss-qm9")
    means = []
    for target in (-1.0, 1.5):
        molecules = model.sample(48, seed=5, progress=False, targets={"logp": target})
        assert molecules.valid.mean() > 0.8 and molecules.attrs["nfe"] == 40
        means.append(np.nanmean(measure(molecules, ["logp"])))
    assert means[0] < -0.6 and means[1] > 1.0


def test_targets_of_the_command_line():
    request = MendedGDSS.request(**{"targets.logp": 1.5, "targets.qed": 0.5})
    assert request.targets == {"logp": 1.5, "qed": 0.5} and request.guided
    assert request == MendedGDSS.request(targets={"logp": 1.5, "qed": 0.5})
    assert not MendedGDSS.request().guided


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"targets": {"logP": 1.0}}, "logp"),
        ({"targets": {"logp": float("inf")}}, "finite"),
        ({"targets": {"logp": "high"}}, "expected a number"),
        ({"targets": {"logp": 1.0}, "guidance": -1.0}, "guidance"),
        ({"targets": {"logp": 1.0}, "surrogate": "gdss-qm9"}, "model of properties"),
    ],
)
def test_bad_targets(fields, message):
    with pytest.raises(ValueError, match=message):
        sci.load("gdss-qm9").sample(2, progress=False, **fields)


def test_targets_of_graphs_without_elements():
    with pytest.raises(ValueError, match="this model none"):
        sci.load("gdss-ego-small").sample(2, progress=False, targets={"logp": 1.0})
