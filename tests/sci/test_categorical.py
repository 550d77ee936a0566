"""The discrete path: posteriors against products of matrices, losses, and the stored reference."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths.categorical import CategoricalPath
from sci.schedules import VE, VP, CondOT, Cosine, KeepTable, OffsetCosine
from sci.spaces import Centred, Symmetric

MARGINAL = [0.5, 0.2, 0.3]
MASK = torch.tensor([[True, True, False], [True, True, True]])


def paths(schedule=None) -> list[CategoricalPath]:
    schedule = CondOT() if schedule is None else schedule
    return [
        CategoricalPath(schedule, 3),
        CategoricalPath(schedule, 3, "marginal", MARGINAL),
        CategoricalPath(schedule, 3, "absorbing"),
    ]


KERNELS = [path.kernel for path in paths()]


def transition(path: CategoricalPath, keep: float) -> Tensor:
    """The matrix of q(to | from) at a keep probability."""
    eye = torch.eye(path.states, dtype=torch.float64)
    return keep * eye + (1 - keep) * path.law[None, :]


def one_hot(x: Tensor, states: int) -> Tensor:
    return torch.nn.functional.one_hot(x, states).double()


@pytest.mark.parametrize("path", paths(Cosine()), ids=KERNELS)
def test_noised_classes_follow_the_kernel(path: CategoricalPath) -> None:
    data = torch.arange(3)[None]
    for t in (0.1, 0.6, 1.0):
        matrix = transition(path, float(path.schedule.alpha(t)))
        assert torch.allclose(path.probabilities(data, t)[0], matrix[:3], atol=1e-14)
        many = data.expand(60000, 3)
        x = path.corrupt(many, path.random(many, generator=torch.Generator().manual_seed(0)), t)
        share = one_hot(x, path.states).mean(0)
        assert float((share - matrix[:3]).abs().max()) < 0.01


@pytest.mark.parametrize("path", paths(Cosine()), ids=KERNELS)
def test_posteriors_are_those_of_bayes(path: CategoricalPath) -> None:
    t, s = 0.3, 0.55
    now, then = float(path.keep(t)), float(path.keep(s))
    back = transition(path, now / then)
    for x, data in itertools.product(range(path.states), range(3)):
        joint = transition(path, then)[data] * back[:, x]
        if float(joint.sum()) == 0:
            continue
        found = path.posterior(torch.tensor([[x]]), torch.tensor([[data]]), t, s)[0, 0]
        assert torch.allclose(found, joint / joint.sum(), atol=1e-13)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("path", paths(Cosine()), ids=KERNELS)
def test_every_step_of_the_family_has_the_same_marginals(path: CategoricalPath, eta: float) -> None:
    t, s = 0.3, 0.55
    for data in range(3):
        before = path.probabilities(torch.tensor([data]), t)[0]
        states = torch.arange(path.states)
        exact = one_hot(torch.full((path.states,), data), 3)
        steps = path.posterior(states, exact, t, s, eta)
        possible = before > 0
        after = (before[:, None] * steps)[possible].sum(0)
        assert torch.allclose(after, path.probabilities(torch.tensor([data]), s)[0], atol=1e-13)


@pytest.mark.parametrize("path", paths(), ids=KERNELS)
def test_the_predicted_step_averages_the_posteriors(path: CategoricalPath) -> None:
    data = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    for t, s in ((0.3, 0.55), (0.0, 0.2), (0.7, 1.0), (0.0, 1.0)):
        for x in range(path.states):
            found = path.posterior(torch.tensor([x]), data[None], t, s)[0]
            assert math.isclose(float(found.sum()), 1.0, abs_tol=1e-12)
            if path.kernel == "absorbing" and x < 3:
                assert torch.equal(found, one_hot(torch.tensor(x), 4))
                continue
            each = torch.stack(
                [path.posterior(torch.tensor([x]), torch.tensor([d]), t, s)[0] for d in range(3)]
            )
            assert torch.allclose(found, data @ each, atol=1e-13)
    last = path.posterior(torch.tensor([path.states - 1]), data[None], 0.7, 1.0)[0]
    assert torch.allclose(last[:3], data, atol=1e-13)


def test_times_may_differ_by_item() -> None:
    for path in paths(Cosine()):
        x = torch.tensor([[0, 1], [2, 2]])
        data = torch.softmax(torch.randn(2, 2, 3, dtype=torch.float64), -1)
        t, s = torch.tensor([0.2, 0.5]).double(), torch.tensor([0.4, 0.9]).double()
        whole = path.posterior(x, data, t, s)
        for row in range(2):
            alone = path.posterior(
                x[row : row + 1], data[row : row + 1], float(t[row]), float(s[row])
            )
            assert torch.allclose(whole[row], alone[0], atol=1e-14)
        uniforms = path.random(x, generator=torch.Generator().manual_seed(0))
        noised = path.corrupt(x, uniforms, t)
        assert torch.equal(noised[1], path.corrupt(x, uniforms, 0.5)[1])


def test_draws_follow_the_probabilities_and_flag_what_is_not_finite() -> None:
    path = CategoricalPath(CondOT(), 4)
    law = torch.tensor([0.1, 0.0, 0.6, 0.3])
    uniforms = torch.rand(50000, generator=torch.Generator().manual_seed(0))
    found = path.draw(law.expand(50000, 4), uniforms)
    assert float((one_hot(found, 4).mean(0) - law).abs().max()) < 0.01
    assert torch.equal(found, path.draw(7.0 * law, uniforms))
    assert path.draw(law, torch.tensor([1.0 - 2**-24])).tolist() == [3]
    assert path.draw(torch.tensor([[0.5, math.nan, 0.1, 0.1]]), torch.tensor([0.2])).tolist() == [
        -1
    ]


def test_pairs_are_drawn_once_and_the_padding_is_class_zero() -> None:
    path = CategoricalPath(CondOT(), 3, "marginal", MARGINAL, Symmetric())
    like = torch.zeros(2, 3, 3, dtype=torch.int64)
    start = path.source(Noise(0, range(2)), "edges", like, MASK)
    assert start.dtype == torch.int64 and torch.equal(start, start.transpose(1, 2))
    assert not start.diagonal(dim1=1, dim2=2).any() and not start[0, 2].any()
    alone = path.source(Noise(0, [0]), "edges", like[:1, :2, :2])
    assert torch.equal(start[:1, :2, :2], alone)
    x = path.corrupt(start, path.random(start, MASK), 0.5)
    assert torch.equal(x, x.transpose(1, 2)) and not x[0, 2].any()
    lopsided = torch.tensor([[[1, 2, 1], [0, 1, 2], [0, 0, 1]]])
    assert path.project(lopsided).tolist() == [[[0, 2, 1], [2, 0, 2], [1, 2, 0]]]
    logits = path.project(torch.randn(2, 3, 3, 3), MASK)
    assert torch.equal(logits, logits.transpose(1, 2)) and not logits[0, 2].any()
    nodes = CategoricalPath(CondOT(), 3, "absorbing")
    assert nodes.source(Noise(0, range(2)), "n", like[:, 0], MASK).tolist() == [
        [3, 3, 0],
        [3, 3, 3],
    ]
    assert nodes.project(torch.full((2, 3), 2), MASK).tolist() == [[2, 2, 0], [2, 2, 2]]


def test_sources_follow_the_law() -> None:
    path = CategoricalPath(CondOT(), 3, "marginal", MARGINAL)
    start = path.source(Noise(0, range(30000)), "n", torch.zeros(30000, 1, dtype=torch.int64))
    share = one_hot(start, 3).mean((0, 1))
    assert float((share - torch.tensor(MARGINAL)).abs().max()) < 0.01


def test_losses_count_present_elements_once() -> None:
    logits = torch.randn(2, 3, 3, 3, dtype=torch.float64)
    path = CategoricalPath(CondOT(), 3, space=Symmetric())
    logits = path.project(logits)
    data = path.project(torch.randint(0, 3, (2, 3, 3)))
    expected = []
    for row, pairs in enumerate([[(0, 1)], [(0, 1), (0, 2), (1, 2)]]):
        logs = logits[row].log_softmax(-1)
        expected.append(-sum(logs[i, j, data[row, i, j]] for i, j in pairs))
    found = path.cross_entropy(logits, "logits", data, MASK)
    assert torch.allclose(found, torch.stack(expected))
    assert torch.allclose(path.cross_entropy(logits.softmax(-1), "data", data, MASK), found)
    error = path.error(logits, data, "logits", MASK)
    assert torch.allclose(error, found / torch.tensor([1.0, 3.0]))
    assert torch.allclose(path.divergence(logits, "logits", data, data, 0.5, 1.0, MASK), found)


@pytest.mark.parametrize("path", paths(Cosine()), ids=KERNELS)
def test_the_bound_holds_and_is_tight_for_a_sure_network(path: CategoricalPath) -> None:
    """Over any grid the bound is at least -log p(data), with equality for one element and the
    exact denoiser of independent data."""
    law = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
    grid = [0.0, 0.3, 0.6, 0.9, 1.0]
    data = torch.tensor([1])
    bound = path.source_divergence(data)
    for t, s in itertools.pairwise(grid):
        reach = path.probabilities(data, t)[0]
        for x in range(path.states):
            if reach[x] == 0:
                continue
            chance = law * path.probabilities(torch.arange(3), t)[:, x]
            exact = (chance / chance.sum())[None]
            bound = bound + reach[x] * path.divergence(exact, "data", data, torch.tensor([x]), t, s)
    assert math.isclose(float(bound), -math.log(0.5), rel_tol=1e-9)


def test_the_divergence_is_that_of_two_posteriors() -> None:
    for path in paths(Cosine()):
        x, data = torch.tensor([[0, 2, path.states - 1]]), torch.tensor([[0, 2, 0]])
        logits = torch.randn(1, 3, 3, dtype=torch.float64, requires_grad=True)
        exact = path.posterior(x, data, 0.3, 0.5)
        model = path.posterior(x, logits.softmax(-1), 0.3, 0.5)
        terms = torch.where(exact > 0, exact * (exact / model).log(), 0.0).sum(-1)
        found = path.divergence(logits, "logits", data, x, 0.3, 0.5)
        assert torch.allclose(found, terms.sum(1))
        (slope,) = torch.autograd.grad(found.sum(), logits)
        assert torch.isfinite(slope).all() and float(slope.abs().max()) > 0


def test_losses_of_extreme_logits_have_gradients() -> None:
    path = CategoricalPath(CondOT(), 3, "absorbing")
    logits = torch.tensor([[[200.0, -200.0, 0.0]]], requires_grad=True)
    data, x = torch.tensor([[1]]), torch.tensor([[3]])
    for loss in (
        path.cross_entropy(logits, "logits", data),
        path.divergence(logits, "logits", data, x, 0.4, 1.0),
        path.divergence(logits, "logits", data, x, 0.4, 0.5),
    ):
        (slope,) = torch.autograd.grad(loss.sum(), logits)
        assert torch.isfinite(loss).all() and torch.isfinite(slope).all()
    assert float(path.cross_entropy(logits, "logits", data).detach()) == 400.0


def test_kinds_convert_both_ways() -> None:
    path = CategoricalPath(CondOT(), 3)
    logits = torch.randn(2, 4, 3)
    x = torch.zeros(2, 4, dtype=torch.int64)
    data = path.convert(logits, "logits", "data", x, 0.5)
    assert torch.allclose(data.sum(-1), torch.ones(2, 4))
    back = path.convert(data, "data", "logits", x, 0.5)
    assert torch.allclose(back, logits.log_softmax(-1), atol=1e-5)
    assert torch.isfinite(path.convert(torch.eye(3), "data", "logits", x, 0.5)).all()


def test_a_denoiser_trains_on_classes() -> None:
    path = CategoricalPath(CondOT(), 3)
    bias = torch.zeros(3, requires_grad=True)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        assert x.dtype == torch.int64 and t.dtype == torch.float32
        return bias.expand(*x.shape, 3)

    denoiser = Denoiser(network, path, predicts="logits", mask="mask")
    data = torch.tensor([[0, 1, 2], [1, 1, 0]])
    loss = denoiser.loss(data, {"mask": MASK}, torch.Generator().manual_seed(0))
    assert math.isclose(loss.item(), math.log(3), rel_tol=1e-6)
    (slope,) = torch.autograd.grad(loss, bias)
    counts = one_hot(data[0, :2], 3).mean(0) / 2 + one_hot(data[1], 3).mean(0) / 2
    assert torch.allclose(slope.double(), 1 / 3 - counts, atol=1e-6)


def test_tables_and_cosines_are_schedules() -> None:
    table = KeepTable([0.0, 0.2, 1.0])
    assert math.isclose(table.alpha(0.25), 0.1) and math.isclose(table.alpha(0.75), 0.6)
    assert math.isclose(table.alpha_dot(0.6), 1.6) and math.isclose(table.sigma(0.25), 0.9)
    times = torch.tensor([0.25, 0.75, 1.0], dtype=torch.float64)
    assert torch.allclose(table.alpha(times), torch.tensor([0.1, 0.6, 1.0]).double())
    assert isinstance(CategoricalPath([0.0, 0.2, 1.0], 2).schedule, KeepTable)
    cosine, step = OffsetCosine(), 1e-6
    for t in (0.1, 0.5, 0.9):
        slope = (cosine.alpha(t + step) - cosine.alpha(t - step)) / (2 * step)
        assert math.isclose(cosine.alpha_dot(t), slope, rel_tol=1e-6)
        assert math.isclose(cosine.time(cosine.log_snr(t)), t, abs_tol=1e-9)
    assert cosine.alpha(0.0) == 1e-10 and cosine.alpha(1.0) == 1 - 1e-10


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="did you mean 'absorbing'"):
        CategoricalPath(CondOT(), 3, "absorbin")
    with pytest.raises(ValueError, match="needs `marginal`"):
        CategoricalPath(CondOT(), 3, "marginal")
    with pytest.raises(ValueError, match="takes no `marginal`"):
        CategoricalPath(CondOT(), 3, "uniform", MARGINAL)
    with pytest.raises(ValueError, match="sum of 1.5"):
        CategoricalPath(CondOT(), 3, "marginal", [0.5, 0.5, 0.5])
    with pytest.raises(ValueError, match=r"shape \(2,\): expected \(3,\)"):
        CategoricalPath(CondOT(), 3, "marginal", [0.5, 0.5])
    with pytest.raises(ValueError, match="no keep probabilities"):
        CategoricalPath(VE(), 3)
    with pytest.raises(ValueError, match="must increase"):
        CategoricalPath([1.0, 0.5, 0.0], 3)
    with pytest.raises(ValueError, match="two or more levels"):
        KeepTable([1.0])
    with pytest.raises(ValueError, match="offset > 0"):
        OffsetCosine(0.0)
    with pytest.raises(ValueError, match="integer >= 2"):
        CategoricalPath(CondOT(), 1)
    with pytest.raises(TypeError, match="Symmetric"):
        CategoricalPath(CondOT(), 3, space=Centred())
    path, x = CategoricalPath(VP(), 3), torch.zeros(1, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match="expected uniforms"):
        path.corrupt(x, x, 0.5)
    with pytest.raises(ValueError, match="did you mean 'logits'"):
        path.convert(torch.zeros(1, 2, 3), "logit", "data", x, 0.5)
    with pytest.raises(ValueError, match="towards data"):
        path.posterior(x, x, 0.5, 0.4)
    with pytest.raises(ValueError, match="no linear coefficients"):
        path.coefficients("logits", "data", 0.5)


@pytest.mark.parametrize("kernel", ["uniform", "marginal"])
def test_the_stored_reference_is_reproduced(shared: Path, kernel: str) -> None:
    stored = np.load(shared / "reference" / "pard_diffusion.npz")

    def get(name: str) -> Tensor:
        return torch.from_numpy(stored[name])

    last = int(get("num_steps"))
    table = get(f"alphabar_cosine_T{last}").flip(0).numpy()
    marginal = get("marginal") if kernel == "marginal" else None
    path = CategoricalPath(table, int(get("num_classes")), kernel, marginal)
    x, data, logits = get("x_t"), get("x_0"), get("logits")

    def clock(step: Tensor) -> Tensor:
        return 1.0 - step.double() / last

    def close(found: Tensor, name: str) -> bool:
        return torch.allclose(found, get(f"{name}_{kernel}"), atol=1e-9, rtol=1e-9)

    t, model = get("t"), logits.softmax(-1)
    assert close(path.probabilities(data, clock(t)), "q_xt_given_x0")
    for now, then, exact, mean in (
        (get("t_posterior"), get("t_posterior") - 1, "q_xs_given_xt_x0", "p_xs_given_xt"),
        (get("t_jump"), get("s_jump"), "q_jump", "p_jump"),
    ):
        times = clock(now), clock(then)
        assert close(path.posterior(x, one_hot(data, path.classes), *times), exact)
        assert close(path.posterior(x, model, *times), mean)
    prior = torch.stack([path.source_divergence(column) for column in data.unbind(1)], 1)
    assert close(prior, "prior_kl")
    entropy = path.cross_entropy(logits, "logits", data)
    assert close(entropy, "ce")
    # The stored table stops at 1 - 1e-10, where its last step is the cross-entropy.
    terms = path.divergence(logits, "logits", data, x, clock(t), clock(t - 1))
    bound = terms + prior.sum(1) / last
    assert close(bound, "vlb")
    assert close(bound + 0.1 * entropy, "total_lambda0.1")


def test_the_stored_cosine_tables_are_reproduced(shared: Path) -> None:
    stored = np.load(shared / "reference" / "pard_diffusion.npz")
    for count in (20, 40, 50, 500):
        times = np.linspace(1.0, 0.0, count + 1)
        found = OffsetCosine().alpha(times)
        # The stored tables divide by h(0) in single precision.
        assert np.allclose(found, stored[f"alphabar_cosine_T{count}"], rtol=0, atol=5e-8)


def test_the_padding_holds_no_probabilities_whatever_the_network_predicts() -> None:
    x = torch.zeros(2, 3, dtype=torch.int64)
    for kind in ("data", "logits"):
        path = CategoricalPath(CondOT(), 3)
        denoiser = Denoiser(lambda x, t, c: torch.ones(2, 3, 3) / 3, path, kind, mask="mask")
        for to in ("data", "logits"):
            found = denoiser(x, 0.5, {"mask": MASK}, to=to)
            assert not found[~MASK].any() and found[MASK].any()
