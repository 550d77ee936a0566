"""Going back and forth: laws, addresses of the noise, cost, and what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from analytic import STD, gaussian, points
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.guidance import ClassifierFree, Replacement
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import OneStep, grids
from sci.samplers.resampling import Resampled
from sci.schedules import VE, VP, CondOT, Cosine
from sci.spaces import Symmetric

INSIDE = grids.uniform_time(0.05, 0.95)


class Recorder:
    """Streams that note every address that is asked of them."""

    def __init__(self, noise: Noise):
        self.noise, self.items, self.seen = noise, noise.items, []

    def draw(self, space, leaf, step, like, mask=None, draw=0) -> Tensor:
        self.seen.append((leaf, step, draw))
        return self.noise.draw(space, leaf, step, like, mask, draw)

    def uniform(self, elements, leaf, step, draw=0) -> Tensor:
        self.seen.append((leaf, step, draw))
        return self.noise.uniform(elements, leaf, step, draw)


class Unit:
    """Item 0 has no noise; item k + 1 has one unit of noise at the k-th address."""

    def __init__(self, addresses: list):
        self.addresses = {address: place for place, address in enumerate(addresses)}
        self.items = torch.arange(len(addresses) + 1)

    def draw(self, space, leaf, step, like, mask=None, draw=0) -> Tensor:
        out = torch.zeros_like(like)
        out[self.addresses[leaf, step, draw] + 1] = 1.0
        return out


def addresses(sampler, denoiser, start: Tensor) -> list:
    recorder = Recorder(Noise(0, range(len(start))))
    with torch.no_grad():
        sampler(denoiser, start=start, noise=recorder)
    return recorder.seen


# --- laws --------------------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VP(), VE(0.1, 10.0)])
def test_the_way_back_turns_the_law_at_one_time_into_that_at_another(schedule) -> None:
    """Var x_s = r^2 Var x_t + spread^2, for data of any variance; also from t = 1 and to s = 0."""
    for s, t in ((0.1, 0.3), (0.5, 0.95), (0.0, 0.4), (0.2, 1.0), (0.0, 1.0)):
        plan = Resampled(samplers.ddim(1), 2).plan(GaussianPath(schedule), [s, t])
        ratio, spread = plan._actions[1].back[0]
        for data in (0.0, 0.5, 4.0):
            late = schedule.alpha(t) ** 2 * data + schedule.sigma(t) ** 2
            early = schedule.alpha(s) ** 2 * data + schedule.sigma(s) ** 2
            assert math.isclose(ratio**2 * late + spread**2, early, rel_tol=1e-10)
        assert math.isclose(ratio * schedule.alpha(t), schedule.alpha(s), abs_tol=1e-12)


@pytest.mark.parametrize(("name", "order"), [("ddim", 1), ("dpmpp_2m", 2), ("heun", 2)])
def test_an_exact_denoiser_keeps_its_law(name: str, order: int) -> None:
    """All is linear in the start and the noise, so the variance is a sum of squares; what differs
    from the exact one is the steps' own error, which vanishes with their order."""
    denoiser, schedule = gaussian(Cosine(), mean=0.0), Cosine()

    def variance(t: float) -> float:
        return (schedule.alpha(t) * STD) ** 2 + schedule.sigma(t) ** 2

    errors = []
    for transitions in (12, 24, 48):
        if name == "heun":
            sampler = OneStep(2 * transitions, "heun", grid=INSIDE)
        else:
            sampler = samplers.preset(name, transitions, grid=INSIDE, corrected_start=order > 1)
        resampled = Resampled(sampler, repeats=3, jump=4)
        found = addresses(resampled, denoiser, points(1))
        assert len(found) == 2 * transitions // 4
        start = torch.zeros(len(found) + 1, 1, dtype=torch.float64)
        start[0] = math.sqrt(variance(0.05))
        with torch.no_grad():
            out = resampled(denoiser, start=start, noise=Unit(found)).state
        errors.append(abs(float((out**2).sum()) / variance(0.95) - 1))
    slope = -np.polyfit(np.log([12, 24, 48]), np.log(errors), 1)[0]
    assert slope > order - 0.25 and errors[-1] < 0.08, errors


def test_classes_go_back_by_the_forward_kernel() -> None:
    """n = 40,000 elements; four standard errors."""
    path = CategoricalPath(CondOT(), 3, kernel="marginal", marginal=[0.2, 0.3, 0.5])
    x = torch.full((1, 40_000), 1)
    plan = Resampled(samplers.dpmpp_2m(2), 2).plan(path, [0.3, 0.6, 0.9])
    carry = plan.init(x, Noise(0, [0]))
    (back,) = plan._return(Denoiser(lambda x, t, c: x, path), carry, [(0.5, None)])
    shares = torch.bincount(back[0], minlength=3) / 40_000
    expected = torch.tensor([0.1, 0.65, 0.25])
    assert (shares - expected).abs().max() < 4 * 0.5 / math.sqrt(40_000)
    assert math.isclose(plan._actions[1].back[0][0], 0.5)


# --- what it is for ----------------------------------------------------------------------------


def test_repeats_bring_a_gap_to_its_conditional_mean() -> None:
    """Correlation 0.95 with a known neighbour at 1.5: the mean of the gap without noise."""
    schedule = Cosine()
    covariance = torch.tensor([[1.0, 0.95], [0.95, 1.0]], dtype=torch.float64)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = (a.to(x)[:, None, None] for a in (schedule.alpha(t), schedule.sigma(t)))
        blurred = alpha**2 * covariance + sigma**2 * torch.eye(2, dtype=torch.float64)
        return (alpha * covariance @ torch.linalg.inv(blurred) @ x[..., None]).squeeze(-1)

    plain = Denoiser(network, GaussianPath(schedule))
    guided = Replacement(plain, torch.tensor([[1.5, math.nan]], dtype=torch.float64))
    start = torch.zeros(1, 2, dtype=torch.float64)
    errors = []
    for repeats in (1, 3, 10):
        sampler = Resampled(samplers.ddim(30, final="data", grid=INSIDE), repeats)
        silent = Unit(addresses(sampler, guided, start))
        with torch.no_grad():
            out = sampler(guided, start=start.expand(len(silent.items), 2), noise=silent).state
        assert out[0, 0] == 1.5
        errors.append(abs(float(out[0, 1]) - 0.95 * 1.5))
    assert errors[2] < 0.5 * errors[1] < 0.5 * errors[0], errors


def graph() -> tuple[Denoiser, dict[str, Tensor], Tensor, dict[str, Tensor]]:
    paths = {
        "kinds": CategoricalPath(CondOT(), 3, kernel="absorbing"),
        "edges": GaussianPath(Cosine(), Symmetric()),
    }

    def network(state, t: Tensor, condition):
        heat = torch.tanh(state["edges"]).sum(2)
        logits = torch.stack([heat, -heat, 0 * heat], -1)
        return {
            "kinds": logits.softmax(-1),
            "edges": torch.tanh(state["edges"] + heat[:, :, None] + heat[:, None]),
        }

    like = {
        "kinds": torch.zeros(3, 5, dtype=torch.int64),
        "edges": torch.zeros(3, 5, 5, dtype=torch.float64),
    }
    edges = torch.zeros(3, 5, 5, dtype=torch.float64)
    edges[:, 0, 1] = edges[:, 1, 0] = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    known = {"kinds": torch.tensor([[2, 1, 0, 0, 0]]).expand(3, 5), "edges": edges}
    mask = torch.tensor([[True, True, False, False, False]])
    return Denoiser(network, paths, mask="mask"), like, mask, known


@pytest.mark.parametrize("final", ["data", None])
def test_scaffolds_are_kept_to_the_bit_and_streams_are_used_once(final: str | None) -> None:
    plain, like, mask, known = graph()
    present = torch.tensor([[True] * 5, [True] * 5, [True, True, True, False, False]])
    guided = Replacement(plain, known, mask)
    sampler = Resampled(
        samplers.ancestral(7, final=final, grid=INSIDE), repeats=3, jump=2, within=(0.0, 0.7)
    )
    recorder = Recorder(Noise(0, range(3)))
    with torch.no_grad():
        out = sampler(guided, like=like, condition={"mask": present}, noise=recorder)
    assert len(recorder.seen) == len(set(recorder.seen))
    assert {draw for _, step, draw in recorder.seen if step >= 0} == {0, 101, 102}
    assert out.nfe == sampler.steps
    assert out.state["kinds"][:, :2].tolist() == [[2, 1]] * 3
    assert torch.equal(out.state["edges"][:, 0, 1], known["edges"][:, 0, 1])
    assert torch.equal(out.state["edges"], out.state["edges"].transpose(1, 2))
    assert not out.state["edges"][2, 3:].any() and not out.state["kinds"][2, 3:].any()


def test_the_known_part_is_drawn_afresh_at_each_level() -> None:
    schedule = Cosine()
    plain = Denoiser(lambda x, t, c: torch.tanh(x), GaussianPath(schedule))
    guided = Replacement(plain, torch.tensor([[2.0, math.nan]], dtype=torch.float64))
    noise = Noise(5, range(4))
    sampler = Resampled(samplers.ddim(4, grid=INSIDE), repeats=2)
    plan = sampler.plan(plain.paths)
    carry = plan.init(torch.zeros(4, 2, dtype=torch.float64), noise, guided.encode(None))
    seen = []

    def spy(state, t, condition=None, to="data"):
        seen.append((state, t))
        return guided(state, t, condition, to=to)

    spy.redraw, spy.finish, spy.mask_of = guided.redraw, guided.finish, guided.mask_of
    with torch.no_grad():
        for _ in range(plan.steps):
            carry = plan.step(spy, carry)
    for step, (state, t) in enumerate(seen):
        z = noise.draw(plain.paths.space, "state", step, state, None, 102)
        expected = schedule.alpha(t) * 2.0 + schedule.sigma(t) * z[:, 0]
        assert torch.allclose(state[:, 0], expected, atol=1e-12)


# --- cost, settings, batches -------------------------------------------------------------------


def test_one_pass_is_the_sampler_itself() -> None:
    denoiser, x = gaussian(Cosine()), points()
    for sampler in (
        samplers.ancestral(6, grid=INSIDE),
        samplers.ddim(6, final="data", grid=INSIDE),
        OneStep(7, "heun", grid=INSIDE),
    ):
        with torch.no_grad():
            one = sampler(denoiser, start=x, seed=3)
            two = Resampled(sampler, repeats=1)(denoiser, start=x, seed=3)
        assert torch.allclose(one.state, two.state, rtol=1e-13, atol=1e-13)
        assert one.nfe == two.nfe and np.allclose(one.times, two.times)
    whole = samplers.unipc(3, 8, grid=INSIDE)
    with torch.no_grad():
        one = whole(denoiser, start=x).state
        two = Resampled(whole, repeats=1, jump=8)(denoiser, start=x).state
    assert torch.equal(one, two)


def test_steps_are_the_evaluations_an_item() -> None:
    denoiser, x = gaussian(Cosine()), points()
    calls = []
    inner = denoiser.network
    denoiser.network = lambda *a: (calls.append(1), inner(*a))[1]
    for sampler, count in (
        (Resampled(samplers.dpmpp_2m(10, grid=INSIDE), 3, 4), 30),
        (Resampled(samplers.default(10, grid=INSIDE), 3, 2), 28),
        (Resampled(samplers.ddim(10, grid=INSIDE), 4, 1, (0.0, 0.5)), 25),
        (Resampled(OneStep(9, "heun", grid=INSIDE), 2, 2), 18),
        (Resampled(OneStep(10, "rk4", grid=INSIDE), 2, 1), 20),
    ):
        calls.clear()
        out = sampler(denoiser, start=x)
        assert (sampler.steps, out.nfe, len(calls), len(out.times)) == (count,) * 4
        assert torch.isfinite(out.state).all()


def test_settings_by_step_follow_their_steps() -> None:
    sampler = samplers.Multistep(6, kind=["data", "data", "noise"] * 2, order=[1, 2, 3, 3, 2, 1])
    plan = Resampled(sampler, repeats=2, jump=2).plan(
        GaussianPath(Cosine()), np.linspace(0.1, 0.9, 7)
    )
    kinds = [action.plan.steppers[0].wants(action.step) for action in plan._actions]
    assert kinds == ["data", "data"] * 2 + ["noise", "data"] * 2 + ["data", "noise"] * 2


def test_items_alone_taken_and_with_their_own_times() -> None:
    plain, like, mask, known = graph()
    guided = Replacement(plain, known, mask)
    present = torch.tensor([[True] * 5, [True] * 5, [True, True, True, False, False]])
    sampler = Resampled(samplers.ancestral(4), repeats=2)
    times = np.stack([np.linspace(0.05 * k, 0.95, 5) for k in (1, 2, 3)], 1)
    with torch.no_grad():
        state = guided.start(Noise(0, range(3)), like, {"mask": present})
        whole = sampler(
            guided, start=state, condition={"mask": present}, noise=Noise(0, range(3)), times=times
        ).state
        alone = sampler(
            Replacement(plain, {name: leaf[1:2] for name, leaf in known.items()}, mask),
            start={name: leaf[1:2] for name, leaf in state.items()},
            condition={"mask": present[1:2]},
            noise=Noise(0, [1]),
            times=times[:, 1],
        ).state
        plan = sampler.plan(guided.paths, times)
        carry = plan.init(state, Noise(0, range(3)), guided.encode({"mask": present}))
        for _ in range(3):
            carry = plan.step(guided, carry)
        part = carry.take([2, 1])
        while part.step < plan.steps:
            part = plan.step(guided, part)
    for name in whole:
        assert torch.allclose(alone[name], whole[name][1:2], atol=1e-10)
        assert torch.allclose(part.state[name], whole[name][[2, 1]], atol=1e-10)


def test_gradients_flow_and_wrappers_around_pass_it_on() -> None:
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    plain = Denoiser(
        lambda x, t, c: torch.tanh(weight * x + c["shift"][:, None]), GaussianPath(Cosine())
    )
    known = torch.tensor([[0.5, math.nan]], dtype=torch.float64)
    guided = ClassifierFree(Replacement(plain, known), 2.0, "shift")
    sampler = Resampled(samplers.ddim(3, grid=INSIDE), 2)
    condition = {"shift": torch.ones(2, dtype=torch.float64)}

    def outcome() -> Tensor:
        return sampler(guided, start=points(4).view(2, 2), condition=condition).state

    out = outcome()
    assert out[:, 0].tolist() == [0.5, 0.5]
    slope = torch.autograd.grad((out**2).sum(), weight)[0]
    with torch.no_grad():
        step = 1e-6
        weight += step
        high = (outcome() ** 2).sum()
        weight -= 2 * step
        low = (outcome() ** 2).sum()
    assert math.isclose(float(slope), float(high - low) / (2 * step), rel_tol=1e-5)


def test_mistakes_are_named() -> None:
    with pytest.raises(TypeError, match="Multistep or OneStep sampler, got PredictorCorrector"):
        Resampled(samplers.PredictorCorrector())
    with pytest.raises(ValueError, match="repeats"):
        Resampled(samplers.ddim(3), 0)
    with pytest.raises(ValueError, match="jump"):
        Resampled(samplers.ddim(3), jump=1.5)
    with pytest.raises(ValueError, match="within"):
        Resampled(samplers.ddim(3), within=(0.5, 0.5))
    paths = {"a": GaussianPath(Cosine()), "turn": GeodesicPath()}
    with pytest.raises(ValueError, match="leaf 'turn' cannot go back"):
        Resampled(samplers.dpmpp_2m(4)).plan(paths)
