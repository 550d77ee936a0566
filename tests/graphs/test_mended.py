"""The mended GDSS: its formulae, its symmetries, and that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sci import samplers
from sci.graphs.dense import Graphs
from sci.graphs.mended import MendedGDSS, MendedGDSSConfig
from sci.graphs.mended_network import (
    JointNetwork,
    Layout,
    TriangleProduct,
    log_posterior,
)
from sci.graphs.molecules import Molecules
from sci.graphs.pairs import pair_index, to_dense, to_pairs
from sci.graphs.training_data import GraphTraining, split
from sci.noise import Noise

SMALL = {"depth": 2, "node_width": 32, "pair_width": 24, "triangle_width": 4, "time_width": 16}


def molecule_model(**changes) -> MendedGDSS:
    torch.manual_seed(0)
    config = {
        "node_frequencies": (0.7, 0.1, 0.15, 0.05),
        "edge_frequencies": (0.7, 0.2, 0.07, 0.03),
        "sizes": (0, 0, 1, 2, 4, 8, 16),
        "atoms": ("C", "N", "O", "F"),
        **SMALL,
        **changes,
    }
    model = MendedGDSS(MendedGDSSConfig(**config))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return model.eval()


def random_state(batch: int, nodes: int, seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    pairs = torch.randn(nodes * (nodes - 1) // 2, batch, 4, generator=generator)
    return {
        "nodes": torch.randn(batch, nodes, 4, generator=generator),
        "edges": to_dense(pairs, nodes),
    }


def test_pairs_and_back():
    state = random_state(3, 6)
    pairs = to_pairs(state["edges"])
    assert torch.equal(to_dense(pairs, 6), state["edges"])
    smaller, larger = pair_index(6)
    assert torch.equal(pairs[4], state["edges"][:, smaller[4], larger[4]])
    assert [int(i) for i in larger * (larger - 1) // 2 + smaller] == list(range(15))


def test_triangle_product_and_its_gradient():
    graph = Layout(torch.ones(2, 5, dtype=torch.bool), torch.float64)
    pairs = torch.randn(10, 2, 3, dtype=torch.float64, requires_grad=True)
    dense = to_dense(pairs, 5)
    expected = to_pairs(torch.einsum("bikc,bjkc->bijc", dense, dense))
    found = TriangleProduct.apply(pairs, graph.dense, graph.upper)
    torch.testing.assert_close(found, expected)
    torch.autograd.gradcheck(
        lambda value: TriangleProduct.apply(value, graph.dense, graph.upper), pairs
    )


def test_log_posterior_is_bayes_rule():
    law = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    noised = torch.randn(4, 2, 3, dtype=torch.float64)
    alpha, sigma = torch.tensor([0.4, 0.7]).double(), torch.tensor([0.9, 0.7]).double()
    found = log_posterior(noised, law, alpha, sigma)
    for item in range(2):
        centres = alpha[item] * (torch.eye(3).double() - law)
        square = (noised[:, item, None] - centres).square().sum(-1)
        joint = law.log() - square / (2 * sigma[item] ** 2)
        torch.testing.assert_close(found[:, item], joint.log_softmax(-1))


def test_the_network_starts_from_the_entrywise_posterior():
    network = JointNetwork(4, 4, max_nodes=6, depth=1)
    graph = Layout(torch.ones(2, 5, dtype=torch.bool), torch.float32)
    nodes, pairs = torch.randn(5, 2, 4), torch.randn(10, 2, 4)
    priors = nodes.log_softmax(-1), pairs.log_softmax(-1)
    logits = network(nodes, pairs, *priors, torch.rand(2), graph)
    assert torch.equal(logits[0], priors[0]) and torch.equal(logits[1], priors[1])


def test_equivariance_under_permutations():
    model, state = molecule_model().double(), random_state(3, 6)
    state = {name: leaf.double() for name, leaf in state.items()}
    condition = {"mask": torch.ones(3, 6, dtype=torch.bool)}
    t = torch.tensor([0.2, 0.5, 0.8]).double()
    order = torch.tensor([3, 1, 5, 0, 2, 4])
    moved = {
        "nodes": state["nodes"][:, order],
        "edges": state["edges"][:, order][:, :, order],
    }
    found, plain = (model.predict(s, t, condition) for s in (moved, state))
    torch.testing.assert_close(found["nodes"], plain["nodes"][:, order], rtol=0, atol=1e-10)
    torch.testing.assert_close(
        found["edges"], plain["edges"][:, order][:, :, order], rtol=0, atol=1e-10
    )


def test_padding_changes_nothing():
    model, state = molecule_model(), random_state(2, 4)
    t = torch.tensor([0.3, 0.6])
    plain = model.predict(state, t, {"mask": torch.ones(2, 4, dtype=torch.bool)})
    padded = {
        "nodes": torch.full((2, 6, 4), 9.0),
        "edges": to_dense(torch.full((15, 2, 4), 9.0), 6),
    }
    padded["nodes"][:, :4], padded["edges"][:, :4, :4] = state["nodes"], state["edges"]
    mask = torch.arange(6).expand(2, 6) < 4
    found = model.predict(padded, t, {"mask": mask})
    torch.testing.assert_close(found["nodes"][:, :4], plain["nodes"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(found["edges"][:, :4, :4], plain["edges"], rtol=1e-5, atol=1e-5)


def test_loss_is_the_cross_entropy_and_reaches_every_parameter():
    model = molecule_model()
    molecules = Molecules.from_smiles(["CCO", "C1CC1N", "C#N", "FC=O"])
    data = GraphTraining(molecules.atoms, molecules.bonds)
    batch = data.collate(torch.arange(4))
    losses = model.losses(batch, 0, torch.Generator().manual_seed(0))
    assert losses["loss"].item() == pytest.approx(
        losses["nodes"].item() + losses["edges"].item(), rel=1e-6
    )
    losses["loss"].backward()
    unreached = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert unreached == []


def test_loss_ignores_padding():
    model = molecule_model()
    molecules = Molecules.from_smiles(["CCO", "C1CC1"])
    wide = molecules._pad(6)
    batches = [
        GraphTraining(molecules.atoms, molecules.bonds),
        GraphTraining(*wide),
    ]
    small, large = (data.collate(torch.arange(2)) for data in batches)
    assert torch.equal(small["nodes"], large["nodes"])
    assert torch.equal(small["pairs"], large["pairs"])
    losses = [model.losses(b, 0, torch.Generator().manual_seed(1))["loss"] for b in (small, large)]
    assert torch.equal(*losses)


def test_training_times_fill_their_strata():
    model = molecule_model(focus=(0.4, 0.8), focus_share=0.75, span=(0.1, 0.9))
    times = model.training_times(4000, torch.Generator().manual_seed(0)).numpy()
    assert times.min() >= 0.1 and times.max() <= 0.9
    assert np.mean((times > 0.4) & (times < 0.8)) == pytest.approx(0.75, abs=1e-3)
    assert np.mean(times < 0.4) == pytest.approx(0.25 * 0.3 / 0.4, abs=1e-3)


def test_items_do_not_depend_on_batches():
    model = molecule_model()
    whole = model.sample(9, seed=3, steps=4, progress=False)
    pieces = model.sample(9, seed=3, steps=4, batch_size=2, progress=False)
    longer = model.sample(12, seed=3, steps=4, progress=False)
    assert np.array_equal(whole.sizes, pieces.sizes)
    assert np.array_equal(whole.sizes, longer.sizes[:9])
    same = (whole.atoms == pieces._pad(whole.max_atoms)[0]).all(1)
    assert same.mean() > 0.99
    assert whole.attrs["nfe"] == 4


def test_size_and_sampler_can_be_asked_for():
    model = molecule_model()
    molecules = model.sample(4, size=5, sampler="ddim", steps=3, progress=False)
    assert molecules.sizes.tolist() == [5, 5, 5, 5]
    graphs = MendedGDSS(
        MendedGDSSConfig(
            node_frequencies=(1.0,), edge_frequencies=(0.6, 0.4), sizes=(0, 0, 0, 1, 1), **SMALL
        )
    ).sample(5, steps=3, stochasticity=1.0, progress=False)
    assert isinstance(graphs, Graphs) and len(graphs) == 5 and set(graphs.sizes) <= {3, 4}


def test_problem_is_what_generate_samples():
    model = molecule_model()
    request = model.request(steps=3)
    problem = model.problem(request, range(4), Noise(2, range(4)))
    assert problem.sampler.steps == 3 and problem.condition["mask"].shape[0] == 4
    with torch.no_grad():
        result = problem.sampler(
            problem.denoiser,
            like=problem.like,
            condition=problem.condition,
            noise=Noise(2, range(4)),
        )
        data = model.generate(request, range(4), Noise(2, range(4)))
    atoms = (result.state["nodes"] + model.node_law).argmax(-1).numpy()
    assert np.array_equal(np.where(data.mask, atoms, -1), data.atoms)


def test_samplers_visit_quantiles_of_the_law_of_times():
    model = molecule_model()
    plan = model.sampler(model.request(steps=7)).plan(model.paths)
    np.testing.assert_allclose(plan.times, model.times(np.linspace(0, 1, 7)), atol=1e-12)


@pytest.mark.parametrize("name", ["heun", "rk4", "dpm_solver", "unipc", "sde_dpmpp_2m"])
def test_presets_take_as_many_evaluations_as_asked(name):
    molecules = molecule_model().sample(3, sampler=name, steps=9, progress=False)
    assert molecules.attrs["nfe"] == 9 and molecules.attrs["sampler"] == name


def test_the_adaptive_sampler_keeps_to_the_span():
    molecules = molecule_model().sample(3, sampler="adaptive", steps=500, progress=False)
    assert 10 < molecules.attrs["nfe"] <= 500


def test_tuned_samplers_are_preferred_where_there_are_some():
    model = molecule_model()

    class Fitted:
        def sampler(self):
            return samplers.ddim(
                4, grid=samplers.grids.from_times([0.1, 0.3, 0.5, 0.8]), final="data"
            )

    model.tuned = {4: Fitted()}
    fitted, plain = (model.sampler(model.request(steps=4, sampler=s)) for s in ("tuned", "untuned"))
    assert fitted.order == 1 and plain.order == 3
    assert model.sampler(model.request(steps=4)).order == 1
    assert model.sampler(model.request(steps=5)).order == 3
    assert model.sampler(model.request(steps=4, stochasticity=0.5)).order == 2
    assert model.sampler(model.request(steps=4, scaffold="CC")).order == 2
    assert model.sample(2, steps=4, progress=False).attrs["sampler"] == "tuned"
    for fields in ({"steps": 5}, {"steps": 4, "stochasticity": 0.0}):
        with pytest.raises(ValueError, match=r"there is one for 4\)"):
            model.sampler(model.request(sampler="tuned", **fields))
    model.tuned = {}
    with pytest.raises(ValueError, match="sci tune"):
        model.sampler(model.request(sampler="tuned"))


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"steps": 1}, ValueError, "steps is 1"),
        ({"size": 99}, ValueError, "at most 6 nodes"),
        ({"size": 0}, ValueError, "size is 0"),
        ({"stochasticity": -1.0}, ValueError, "stochasticity is -1"),
        ({"sampler": "dpmp_2m"}, ValueError, "dpmpp_2m"),
        ({"stepz": 3}, TypeError, "steps"),
    ],
)
def test_bad_requests(fields, error, message):
    with pytest.raises(error, match=message):
        molecule_model().sample(2, progress=False, **fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"node_frequencies": (0.5, 0.4)}, "sum to 1"),
        ({"sizes": (5,)}, "at least one graph"),
        ({"focus": (0.9, 0.5)}, "must lie in"),
        ({"focus_share": 2.0}, "focus_share"),
    ],
)
def test_bad_configurations(changes, message):
    with pytest.raises(ValueError, match=message):
        molecule_model(**changes)


def test_bad_data_tables():
    with pytest.raises(ValueError, match="must name one data set"):
        split({})
    with pytest.raises(KeyError, match="molecules"):
        split({"molecule": "qm9"})


def test_it_learns_and_survives_a_round_trip(tmp_path):
    molecules = Molecules.from_smiles(["CC(=O)N", "C1CC1O"] * 30)
    data = GraphTraining(molecules.atoms, molecules.bonds)
    torch.manual_seed(0)
    model = MendedGDSS(
        MendedGDSSConfig(
            node_frequencies=(0.6, 0.1, 0.2, 0.1),
            edge_frequencies=(0.5, 0.3, 0.1, 0.1),
            sizes=(0, 0, 0, 0, 60),
            atoms=("C", "N", "O", "F"),
            **SMALL | {"node_width": 48, "pair_width": 48},
        )
    )
    known = set(molecules.smiles)
    before = np.mean([text in known for text in model.sample(60, progress=False).smiles])
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-2, betas=(0.9, 0.99))
    rate = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 400)
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        loss = model.losses(data.collate(torch.arange(60)), step, generator)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        rate.step()
    generated = model.sample(60, seed=0, progress=False)
    after = np.mean([text in known for text in generated.smiles])
    assert before < 0.1 and after > 0.5
    assert known <= set(generated.smiles)
    again = MendedGDSS.load(model.save(tmp_path / "model"))
    assert again.sample(60, seed=0, progress=False).smiles == generated.smiles


def test_fine_tuning_keeps_the_elements_and_learns_the_sizes(tmp_path):
    origin = molecule_model().config
    (tmp_path / "mine.smi").write_text("\n".join(["CCO", "CCCO", "C1CC1O", "CC(C)O"] * 5))
    options = {"molecules": str(tmp_path / "mine.smi"), "validation": 0.2}
    prepared = MendedGDSS.prepare(options, origin)
    assert set(prepared.config) == {"sizes"} and len(prepared.config["sizes"]) == len(origin.sizes)
    total = len(prepared.train) + len(prepared.validation)
    assert len(prepared.validation) == int(0.2 * total)
    classes = prepared.train.nodes
    assert set(classes[classes >= 0].tolist()) == {0, 2}  # carbon and oxygen among C, N, O, F
    fresh = MendedGDSS.prepare(options)
    assert fresh.config["atoms"] == ("C", "O")
    (tmp_path / "large.smi").write_text("\n".join(["CCCCCCCCO"] * 20))
    with pytest.raises(ValueError, match="graphs of 9 nodes, but .* at most 6"):
        MendedGDSS.prepare({"molecules": str(tmp_path / "large.smi")}, origin)
    (tmp_path / "sulphur.smi").write_text("\n".join(["CCS"] * 20))
    with pytest.raises(ValueError, match="S"):
        MendedGDSS.prepare({"molecules": str(tmp_path / "sulphur.smi")}, origin)
