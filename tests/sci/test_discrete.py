"""Classes under the multistep samplers: exact laws for every kernel, alone and beside other leaves."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import Multistep
from sci.schedules import CondOT, Cosine, OffsetCosine
from sci.spaces import Symmetric
from sci.spaces import quaternions as quat

LAW = torch.tensor([0.15, 0.6, 0.25])
KERNELS = ["uniform", "marginal", "absorbing"]
MASK = torch.tensor([[True, True, False], [True, True, True]])


def path_of(kernel: str, schedule=None, space=None) -> CategoricalPath:
    marginal = [0.3, 0.3, 0.4] if kernel == "marginal" else None
    return CategoricalPath(CondOT() if schedule is None else schedule, 3, kernel, marginal, space)


def likelihood(path: CategoricalPath, x: Tensor, t: Tensor) -> Tensor:
    """q(x_t | data) for every class of the data, (B, ..., classes)."""
    keep = path.keep(t).to(torch.float32).view((-1,) + (1,) * x.dim())
    same = torch.nn.functional.one_hot(x, path.states).float()[..., :3]
    return keep * same + (1 - keep) * path.law.float()[x][..., None]


def independent(path: CategoricalPath, law: Tensor = LAW) -> Denoiser:
    """The exact denoiser of elements that are drawn from a law each."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        chance = law * likelihood(path, x, t)
        return chance / chance.sum(-1, keepdim=True)

    return Denoiser(network, path)


def joint_law(sites: int) -> tuple[Tensor, Tensor]:
    """All configurations of some sites with strongly coupled probabilities."""
    table = torch.tensor(list(itertools.product(range(3), repeat=sites)))
    alike = (table[:, 1:] == table[:, :-1]).float().sum(1)
    weight = torch.exp(1.5 * alike + 0.4 * table[:, 0])
    return table, weight / weight.sum()


def coupled(path: CategoricalPath, sites: int) -> Denoiser:
    """The exact denoiser of the joint law: marginals of the posterior over configurations."""
    table, law = joint_law(sites)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        chance = likelihood(path, x, t)
        logs = law.log() + sum(chance[:, i, table[:, i]].log() for i in range(sites))
        weights = logs.softmax(-1)
        one_hot = torch.nn.functional.one_hot(table, 3).float()
        return torch.einsum("bc,csk->bsk", weights, one_hot)

    return Denoiser(network, path)


def run(denoiser: Denoiser, shape: tuple[int, ...], steps: int, seed: int = 0, **settings):
    leaves = settings.pop("leaves", None)
    sampler = Multistep(
        steps=steps,
        order=1,
        grid="uniform_time",
        leaves={"state": leaves} if leaves else None,
        **settings,
    )
    with torch.no_grad():
        return sampler(denoiser, like=torch.zeros(shape, dtype=torch.int64), seed=seed).state


def shares(x: Tensor, classes: int = 3) -> Tensor:
    return torch.nn.functional.one_hot(x.flatten(), classes).float().mean(0)


@pytest.mark.parametrize("stochasticity", [0.0, 0.5, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("kernel", KERNELS)
def test_independent_elements_are_exact_at_any_number_of_steps(
    kernel: str, stochasticity: float
) -> None:
    denoiser = independent(path_of(kernel, Cosine()))
    for steps in (1, 4):
        state = run(denoiser, (20000, 2), steps, leaves={"stochasticity": stochasticity})
        assert state.dtype == torch.int64
        # Four standard deviations of 40,000 draws.
        assert float((shares(state) - LAW).abs().max()) < 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_coupled_elements_converge_to_their_joint_law(kernel: str) -> None:
    sites, count = 3, 12000
    denoiser = coupled(path_of(kernel), sites)
    law = joint_law(sites)[1]
    distances = []
    for steps in (1, 60):
        state = run(denoiser, (count, sites), steps)
        code = (state * torch.tensor([9, 3, 1])).sum(1)
        found = torch.bincount(code, minlength=27).float() / count
        distances.append(0.5 * float((found - law).abs().sum()))
    # The mean distance of a sample of the exact law.
    noise = 0.4 * float((law * (1 - law) / count).sqrt().sum())
    assert distances[0] > 0.3 and distances[1] < 1.5 * noise


def test_the_last_prediction_is_drawn_or_its_mode() -> None:
    denoiser = independent(path_of("absorbing"))
    like = torch.zeros(20000, 1, dtype=torch.int64)
    times = np.array([0.0, 0.3, 0.6])

    def ended(choice: str) -> Tensor:
        sampler = Multistep(steps=3, final="data", leaves={"state": {"choice": choice}})
        return sampler(denoiser, like=like, times=times).state

    assert float((shares(ended("draw")) - LAW).abs().max()) < 0.015
    # Six in ten were known by t = 0.6; all others take the likeliest class.
    expected = 0.6 * LAW + 0.4 * torch.tensor([0.0, 1.0, 0.0])
    assert float((shares(ended("mode")) - expected).abs().max()) < 0.015


def test_a_run_that_stops_just_short_of_data_ends_at_data() -> None:
    path = path_of("absorbing")
    like = torch.zeros(4000, 5, dtype=torch.int64)
    sampler = Multistep(steps=5, order=1)
    near = sampler(independent(path), like=like, times=np.linspace(0, 0.995, 6)).state
    assert int(near.max()) == 2
    early = sampler(independent(path), like=like, times=np.linspace(0, 0.7, 6)).state
    assert math.isclose(float((early == 3).float().mean()), 0.3, abs_tol=0.02)


def test_temperature_sharpens_what_is_predicted() -> None:
    denoiser = independent(path_of("absorbing"))
    half = run(denoiser, (20000, 1), 3, leaves={"temperature": 0.5})
    assert float((shares(half) - LAW**2 / (LAW**2).sum()).abs().max()) < 0.015
    assert run(denoiser, (50, 2), 3, leaves={"temperature": 1e-4}).unique().tolist() == [1]


@pytest.mark.parametrize("kernel", KERNELS)
def test_items_do_not_depend_on_their_batch(kernel: str) -> None:
    denoiser = coupled(path_of(kernel), 3)
    sampler = Multistep(steps=6, order=1, grid="uniform_time")
    like = torch.zeros(5, 3, dtype=torch.int64)
    whole = sampler(denoiser, like=like, noise=Noise(3, range(5))).state
    part = sampler(denoiser, like=like[:2], noise=Noise(3, [4, 1])).state
    assert torch.equal(part, whole[[4, 1]])


def test_times_may_differ_by_item_and_carries_may_be_taken() -> None:
    denoiser = coupled(path_of("marginal"), 3)
    like = torch.zeros(2, 3, dtype=torch.int64)
    rows = np.stack([np.linspace(0, 1, 5), np.linspace(0, 1, 5) ** 2], 1)
    sampler = Multistep(steps=4, order=1, final=None)
    both = sampler(denoiser, like=like, times=rows).state
    for row in range(2):
        noise = Noise(0, [row])
        alone = sampler(denoiser, like=like[:1], times=rows[:, row], noise=noise).state
        assert torch.equal(both[row : row + 1], alone)
    plan = sampler.plan(denoiser.paths, rows)
    carry = plan.init(denoiser.paths.source(Noise(0, range(2)), "state", like), Noise(0, range(2)))
    carry = plan.step(denoiser, carry).take([1])
    while carry.step < plan.steps:
        carry = plan.step(denoiser, carry)
    assert torch.equal(carry.state, both[1:])


@pytest.mark.parametrize("kernel", KERNELS)
def test_pairs_of_a_graph_stay_symmetric_and_masked(kernel: str) -> None:
    path = path_of(kernel, OffsetCosine(), Symmetric())

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        lopsided = torch.zeros(*x.shape, 3)
        lopsided[:, 0, :, 1] = 4.0
        return lopsided

    denoiser = Denoiser(network, path, predicts="logits", mask="mask")
    for final in (None, "data"):
        sampler = Multistep(steps=5, order=1, grid="uniform_time", final=final)
        like = torch.zeros(2, 3, 3, dtype=torch.int64)
        state = sampler(denoiser, like=like, condition={"mask": MASK}).state
        assert torch.equal(state, state.transpose(1, 2)) and state[0, 2].tolist() == [0, 0, 0]
        assert not state.diagonal(dim1=1, dim2=2).any() and int(state.max()) <= 2


def test_what_is_known_at_the_start_stays_under_the_absorbing_kernel() -> None:
    path = path_of("absorbing")
    start = torch.tensor([[3, 2, 3], [0, 3, 3]])
    state = Multistep(steps=4, order=1, grid="uniform_time")(independent(path), start=start).state
    known = start < 3
    assert torch.equal(state[known], start[known]) and int(state.max()) <= 2


def test_settings_of_other_leaves_do_not_matter() -> None:
    denoiser = coupled(path_of("uniform"), 3)
    like = torch.zeros(4, 3, dtype=torch.int64)
    times = np.linspace(0, 1, 7)
    plain = Multistep(steps=6, order=1)(denoiser, like=like, times=times).state
    for settings in (
        {"kind": "angular", "order": 3, "corrector": 3, "corrected_start": True},
        {"kind": "data", "order": 2, "stochasticity": 1.0, "lower_final": True},
    ):
        sampler = Multistep(steps=6, **settings)
        assert torch.equal(sampler(denoiser, like=like, times=times).state, plain)


def test_a_network_that_gives_nan_is_named() -> None:
    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        out = torch.zeros(*x.shape, 3)
        out[1] = torch.where(t[1] > 0.5, math.nan, 0.0)
        return out

    denoiser = Denoiser(network, path_of("uniform"), predicts="logits")
    with pytest.raises(FloatingPointError, match=r"leaf 'state' of item 1 .* after step 3 of 4"):
        run(denoiser, (3, 2), 4)


@pytest.mark.parametrize(
    "options, words",
    [
        ({"stochasticity": -1.0}, "stochasticity must be at least 0"),
        ({"temperature": 0.0}, "temperature must be at least"),
        ({"choice": "max"}, "'draw' or 'mode'"),
        ({"stochasticty": 1.0}, "did you mean 'stochasticity'"),
    ],
)
def test_wrong_options_are_refused(options: dict, words: str) -> None:
    with pytest.raises(ValueError, match=f"leaf 'state'.*{words}"):
        run(independent(path_of("uniform")), (2, 2), 4, leaves=options)


# A joint law of a class, a number and a rotation: component c has probability SHARE[c], the class
# c, a number from N(CENTRE[c], STD^2) and the rotation TURN[c].
SHARE = torch.tensor([0.5, 0.3, 0.2])
CENTRE, STD = torch.tensor([-1.0, 0.3, 1.5]), 0.3
TURN = quat.exp(torch.tensor([[0.0, 0.0, 0.0], [1.2, 0.0, 0.4], [0.0, -1.9, 0.3]]))


def mixed(paths: dict) -> Denoiser:
    """The exact denoiser: all leaves tell which component an item is of."""

    def network(state: dict, t: Tensor, condition) -> dict:
        number, turn, label = state["number"], state["turn"], state["label"]
        schedule = paths["number"].schedule
        alpha, sigma = (f(t).float()[:, None] for f in (schedule.alpha, schedule.sigma))
        variance = (alpha * STD) ** 2 + sigma**2
        logs = -0.5 * (number - alpha * CENTRE) ** 2 / variance
        logs = logs + likelihood(paths["label"], label, t)[:, 0].log()
        # A uniform rotation has the angle a with density 1 - cos a; the path shrinks it by sigma.
        left = paths["turn"].schedule.sigma(t).float()[:, None]
        gaps = paths["turn"].space.log(turn, TURN[None])
        angle = gaps.norm(dim=-1).clamp(min=1e-4)
        whole = angle / left
        inside = (1 - whole.cos()) / (1 - angle.cos())
        logs = logs + torch.where(whole < math.pi, inside, 0.0).clamp(min=1e-12).log()
        weight = (SHARE.log() + logs).softmax(-1)
        gain = alpha * STD**2 / variance
        centres = CENTRE + gain * (number - alpha * CENTRE)
        speed = paths["turn"].speed(t).float()[:, None, None]
        return {
            "number": (weight * centres).sum(1, keepdim=True),
            "turn": speed * (weight[..., None] * gaps).sum(1, keepdim=True),
            "label": weight[:, None],
        }

    return Denoiser(network, paths, {"number": "data", "turn": "velocity", "label": "data"})


@pytest.mark.parametrize("kernel", KERNELS)
def test_numbers_rotations_and_classes_share_one_clock(kernel: str) -> None:
    paths = {
        "number": GaussianPath(Cosine()),
        "turn": GeodesicPath(),
        "label": path_of(kernel),
    }
    count = 6000
    like = {
        "number": torch.zeros(count, 1),
        "turn": torch.zeros(count, 1, 4),
        "label": torch.zeros(count, 1, dtype=torch.int64),
    }
    sampler = Multistep(
        steps=100,
        kind="angular",
        variable="t",
        order=2,
        grid="uniform_time",
        leaves={"turn": {"kind": "velocity"}},
    )
    with torch.no_grad():
        state = sampler(mixed(paths), like=like, seed=1).state
    label = state["label"][:, 0]
    # Five standard deviations, and what a hundred steps leave.
    assert float((shares(label) - SHARE).abs().max()) < 0.03
    for which in range(3):
        rows = label == which
        number, turn = state["number"][rows, 0], state["turn"][rows, 0]
        here = quat.angle(turn, TURN[which]) < 0.1
        assert float(here.float().mean()) > 0.97
        middle = number[(number - CENTRE[which]).abs() < 0.9]
        assert len(middle) > 0.97 * len(number)
        assert math.isclose(float(middle.mean()), float(CENTRE[which]), abs_tol=0.05)
        assert math.isclose(float(middle.std()), STD, abs_tol=0.03)
