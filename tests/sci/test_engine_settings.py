"""Settings of the multistep engine: by step, by leaf, dynamic compensation, ratios, refusals."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch
from analytic import IDS, SPANS, coupled, exact_flow, gaussian, mixture, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.samplers import Multistep, grids
from sci.samplers.empirical import EmpiricalStatistics
from sci.schedules import VE, CondOT, Cosine
from sci.tree import flatten

GRID = grids.uniform_log_snr(0.05, 0.95)


def both() -> tuple[Denoiser, dict[str, Tensor]]:
    """Two leaves on different schedules with correlated data, and a start."""
    denoiser = coupled({"a": Cosine(), "b": VE(0.2, 5.0)})
    return denoiser, {"a": points(), "b": 3 * points().flip(0)}


# --- settings by step --------------------------------------------------------------------------


@pytest.mark.parametrize("corrector", [0, 2])
@pytest.mark.parametrize("kind", ["data", "noise", "difference", "angular", "velocity"])
def test_a_constant_list_equals_the_setting(kind: str, corrector: int) -> None:
    denoiser, x = mixture(Cosine()), torch.randn(8, 2, dtype=torch.float64)
    plain = Multistep(9, kind, order=3, corrector=corrector, grid=GRID)
    listed = Multistep(9, [kind] * 9, order=[3] * 9, corrector=[corrector] * 9, grid=GRID)
    assert torch.equal(run(plain, denoiser, x), run(listed, denoiser, x))


def test_orders_by_step_are_those_of_the_weights() -> None:
    plan = Multistep(6, order=(1, 2, 1, 3, 4, 2), grid=GRID).plan(GaussianPath(Cosine()))
    assert [len(plan.coefficients(step)[1]) for step in range(6)] == [1, 2, 1, 3, 4, 2]


def hand_stepped(schedule, denoiser, x: Tensor, kinds: list[str], times: np.ndarray) -> Tensor:
    """Order 2 in log-SNR, each step in its own kind, from remembered data and states."""
    alpha, sigma, log_snr = schedule.alpha(times), schedule.sigma(times), schedule.log_snr(times)
    remembered: list[tuple[Tensor, Tensor]] = []
    for k, kind in enumerate(kinds):
        remembered.append((denoiser(x, float(times[k])), x))
        h = log_snr[k + 1] - log_snr[k]
        back = log_snr[k] - log_snr[k - 1] if k else 1.0

        def of(j: int, kind: str = kind) -> Tensor:
            data, state = remembered[j]
            return data if kind == "data" else (state - alpha[j] * data) / sigma[j]

        slope = (of(k) - of(k - 1)) / back if k else 0.0 * x
        if kind == "data":  # sigma_t int_s^t e^lambda (P + slope (lambda - lambda_s)) d(lambda)
            flat, ramp = alpha[k + 1] * -math.expm1(-h), alpha[k + 1] * (h + math.expm1(-h))
            x = sigma[k + 1] / sigma[k] * x + flat * of(k) + ramp * slope
        else:
            flat, ramp = -sigma[k + 1] * math.expm1(h), -sigma[k + 1] * (math.expm1(h) - h)
            x = alpha[k + 1] / alpha[k] * x + flat * of(k) + ramp * slope
    return x


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
def test_mixed_kinds_convert_the_old_predictions(schedule, span) -> None:
    denoiser = mixture(schedule)
    x = torch.randn(8, 2, dtype=torch.float64)
    kinds = ["data", "noise", "noise", "data", "data", "noise", "data"]
    times = np.linspace(*span, 8) ** 1.1
    expected = hand_stepped(schedule, denoiser, x, kinds, times)
    got = run(Multistep(7, kinds, order=2, grid=times), denoiser, x)
    assert torch.allclose(got, expected, rtol=1e-11, atol=1e-11)


def test_mixed_kinds_with_correctors_converge_with_their_order() -> None:
    denoiser, x = mixture(Cosine()), torch.linspace(-1, 1, 16, dtype=torch.float64).view(8, 2)
    truth = run(samplers.abm(3, 2000, grid=GRID), denoiser, x)
    counts, errors = (60, 120, 240), []
    for steps in counts:
        kinds = [("data", "angular", "noise", "difference")[k * 4 // steps] for k in range(steps)]
        sampler = Multistep(steps, kinds, order=2, corrector=2, grid=GRID)
        errors.append(float((run(sampler, denoiser, x) - truth).abs().mean()))
    assert -np.polyfit(np.log(counts), np.log(errors), 1)[0] > 2.85, errors


def test_mixed_kinds_keep_states_only_where_kinds_mix() -> None:
    denoiser, x = gaussian(Cosine()), points(3)
    lengths = {}
    for name, kind in (("same", ["data"] * 6), ("mixed", ["data", "noise"] * 3)):
        plan = Multistep(6, kind, order=3, grid=GRID).plan(denoiser.paths)
        carry = plan.init(x, Noise(0, range(3)))
        lengths[name] = []
        while carry.step < 6:
            carry = plan.step(denoiser, carry)
            lengths[name].append(len(carry.history[0]))
    assert lengths == {"same": [1, 2, 2, 2, 2, 0], "mixed": [2, 4, 4, 4, 4, 0]}


def test_stochasticity_by_step_changes_to_the_flow() -> None:
    denoiser, x = gaussian(Cosine()), points()
    times = np.linspace(0.1, 0.9, 9)
    sampler = Multistep(8, order=1, stochasticity=[1.0] * 4 + [0.0] * 4, grid=times)
    got = run(sampler, denoiser, x, noise=Noise(2, range(8)))
    plan = samplers.ancestral(4).plan(denoiser.paths, times[:5])
    carry = plan.init(x, Noise(2, range(8)))
    for _ in range(4):
        carry = plan.step(denoiser, carry)
    expected = run(samplers.ddim(4), denoiser, carry.state, times=times[4:])
    assert torch.allclose(got, expected, rtol=1e-13, atol=1e-13)


def test_settings_survive_json_and_are_hashable() -> None:
    sampler = Multistep(4, ["data"] * 4, order=[1, 2, 3, 2], compensation=[None, None, 0.9, 1.1])
    fields = dataclasses.asdict(sampler)
    fields.pop("grid")
    again = Multistep(**json.loads(json.dumps(fields)))
    assert again == sampler and hash(again) == hash(sampler)


# --- settings by leaf --------------------------------------------------------------------------


def test_overrides_give_each_leaf_its_own_settings() -> None:
    schedules = {"a": Cosine(), "b": VE(0.2, 5.0)}
    alone = {name: gaussian(schedule) for name, schedule in schedules.items()}
    joint = Denoiser(
        lambda x, t, c: {name: alone[name].network(x[name], t, c) for name in x},
        {name: GaussianPath(schedule) for name, schedule in schedules.items()},
    )
    grid = grids.uniform_time(0.05, 0.95)
    other = {"kind": "noise", "order": 3, "corrector": 1, "stochasticity": 0.5}
    sampler = Multistep(9, grid=grid, leaves={"b": other})
    out = run(sampler, joint, {"a": points(), "b": points()})
    assert torch.allclose(out["a"], run(Multistep(9, grid=grid), alone["a"], points()), atol=1e-14)
    plan = Multistep(9, grid=grid, **other).plan(alone["b"].paths)
    carry = plan.init(points(), Noise(0, range(8)))
    plan.steppers[0].name = plan.names[0] = "b"
    plan._moves = [(plan.steppers[0].advance, plan.paths[0], "b")]
    while carry.step < 9:
        carry = plan.step(alone["b"], carry)
    assert torch.allclose(out["b"], carry.state, rtol=1e-12, atol=1e-12)


def test_overrides_that_cannot_be_are_refused() -> None:
    denoiser, start = both()
    for leaves, message in (
        ({"c": {"order": 1}}, "leaf 'c'.*the state has a, b"),
        ({"nodes": {"order": 1}}, "settings are given for a leaf 'nodes'"),
        ({"a": {"ordr": 1}}, "did you mean 'order'"),
        ({"a": {"steps": 4}}, "no setting 'steps'"),
        ({"a": {"order": 7}}, "leaf 'a': order must be"),
        ({"a": {"order": [1, 2]}}, "leaf 'a': order has 2 entries"),
    ):
        with pytest.raises(ValueError, match=message):
            Multistep(5, leaves=leaves)(denoiser, start=start)


# --- dynamic compensation ----------------------------------------------------------------------


def compensated(schedule, denoiser, x: Tensor, times: np.ndarray, ratios: list) -> Tensor:
    """DPM-Solver++(2M) whose newest entry is replaced in the buffer, and stays so."""
    sigma, alpha, log_snr = schedule.sigma(times), schedule.alpha(times), schedule.log_snr(times)
    buffer: list[Tensor] = []
    for k in range(len(times) - 1):
        buffer.append(denoiser(x, float(times[k])))
        if k >= 2 and ratios[k] is not None:
            place = ratios[k] * times[k] + (1 - ratios[k]) * times[k - 1]
            nodes = times[k - 2 : k + 1]
            edited = 0.0 * x
            for i in range(3):
                share = np.prod(
                    [(place - nodes[j]) / (nodes[i] - nodes[j]) for j in {0, 1, 2} - {i}]
                )
                edited = edited + share * buffer[k - 2 + i]
            buffer[k] = edited
        h, mixed = log_snr[k + 1] - log_snr[k], buffer[k]
        if k:
            mixed = mixed + (buffer[k] - buffer[k - 1]) * h / (log_snr[k] - log_snr[k - 1]) / 2
        x = sigma[k + 1] / sigma[k] * x - alpha[k + 1] * math.expm1(-h) * mixed
    return x


@pytest.mark.parametrize(("schedule", "span"), SPANS, ids=IDS)
def test_compensation_edits_the_history_and_the_edit_stays(schedule, span) -> None:
    denoiser, x = gaussian(schedule), points()
    times = np.linspace(*span, 9)
    ratios = [None, 0.5, 0.9, None, 1.2, 0.7, 1.0, 1.05, None]
    sampler = samplers.dpmpp_2m(8, compensation=ratios[:8], grid=times)
    expected = compensated(schedule, denoiser, x, times, ratios)
    assert torch.allclose(run(sampler, denoiser, x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("corrector", [0, 3])
@pytest.mark.parametrize("kind", ["data", ["data", "noise"] * 4])
def test_compensation_of_one_changes_nothing(kind, corrector: int) -> None:
    denoiser, x = mixture(Cosine()), torch.randn(8, 2, dtype=torch.float64)
    plain = Multistep(8, kind, order=3, corrector=corrector, grid=GRID)
    edited = dataclasses.replace(plain, compensation=1.0)
    assert torch.allclose(run(plain, denoiser, x), run(edited, denoiser, x), atol=1e-12)
    half = run(dataclasses.replace(plain, compensation=0.5), denoiser, x)
    assert not torch.allclose(half, run(plain, denoiser, x), atol=1e-4)


def test_the_corrector_takes_the_edited_entry_and_the_plain_new_one() -> None:
    """Two steps by hand: UniPC-1 whose third entry is edited before it is extrapolated."""
    schedule, times, ratio = Cosine(), np.linspace(0.2, 0.8, 5), 0.8
    denoiser, x = gaussian(schedule), points()
    sigma, alpha, log_snr = schedule.sigma(times), schedule.alpha(times), schedule.log_snr(times)
    buffer: list[Tensor] = []
    base = predicted = x
    for k in range(4):
        new = denoiser(predicted, float(times[k]))
        if k:
            h = log_snr[k] - log_snr[k - 1]
            mixed = (buffer[k - 1] + new) / 2
            base = sigma[k] / sigma[k - 1] * base - alpha[k] * math.expm1(-h) * mixed
        buffer.append(new)
        if k == 2:
            place = ratio * times[2] + (1 - ratio) * times[1]
            shares = [
                np.prod([(place - times[j]) / (times[i] - times[j]) for j in {0, 1, 2} - {i}])
                for i in range(3)
            ]
            buffer[2] = sum(share * entry for share, entry in zip(shares, buffer, strict=True))
        h = log_snr[k + 1] - log_snr[k]
        predicted = sigma[k + 1] / sigma[k] * base - alpha[k + 1] * math.expm1(-h) * buffer[k]
    sampler = samplers.unipc(1, 4, compensation=[None, None, ratio, None], grid=times)
    assert torch.allclose(run(sampler, denoiser, x), predicted, rtol=1e-12, atol=1e-12)


# --- unequal steps -----------------------------------------------------------------------------


def test_the_order_falls_where_neighbouring_steps_differ() -> None:
    times = [0.1, 0.2, 0.3, 0.4, 0.8, 0.82, 0.84, 0.86, 0.88]
    settings = {"kind": "velocity", "variable": "t", "order": 3, "grid": times}
    plan = Multistep(8, **settings, max_ratio=3.0).plan(GaussianPath(Cosine()))
    assert [len(plan.coefficients(k)[1]) for k in range(8)] == [1, 2, 3, 1, 1, 2, 3, 3]
    free = Multistep(8, **settings).plan(GaussianPath(Cosine()))
    assert [len(free.coefficients(k)[1]) for k in range(8)] == [1, 2, 3, 3, 3, 3, 3, 3]


def test_a_limited_ratio_tames_high_orders_on_very_unequal_steps() -> None:
    denoiser, x = mixture(Cosine()), torch.randn(64, 2, dtype=torch.float64)
    grid = grids.uniform_angle(0.005, 0.995)
    truth = run(samplers.abm(3, 600, grid=grid), denoiser, x)
    wild, tame = (
        float(
            (run(Multistep(10, order=3, grid=grid, max_ratio=ratio), denoiser, x) - truth)
            .abs()
            .max()
        )
        for ratio in (None, 1.5)
    )
    assert tame < 0.3 * wild


def test_items_with_other_times_never_change_an_item() -> None:
    """One item starts where log-SNR is infinite, another has very unequal steps."""
    denoiser, x = gaussian(CondOT()), points(3)
    times = np.stack(
        [np.linspace(0.0, 0.9, 9), np.linspace(0.1, 0.9, 9), np.linspace(0.1, 0.95, 9) ** 3], 1
    )
    sampler = Multistep(8, "data", order=3, corrector=2, max_ratio=1.3, corrected_start=True)
    whole = run(sampler, denoiser, x, times=times)
    for row in range(3):
        alone = run(sampler, denoiser, x[row : row + 1], times=times[:, row], noise=Noise(0, [row]))
        assert torch.allclose(whole[row : row + 1], alone, rtol=1e-12, atol=1e-12)


# --- the start ---------------------------------------------------------------------------------


def test_a_corrected_start_makes_the_first_points_those_of_higher_formulae() -> None:
    """The last formula of the start has three nodes, so it integrates quadratics exactly."""
    path = GaussianPath(CondOT())
    denoiser = Denoiser(lambda x, t, c: (3 * t**2 - t)[:, None] + 0 * x, path, "velocity")
    x = torch.zeros(1, 1, dtype=torch.float64)
    for steps in (4, 5, 6, 9):
        settings = {"kind": "velocity", "variable": "t", "order": 4, "grid": "uniform_time"}
        plain, started = (
            float(run(Multistep(steps, **settings, corrected_start=flag), denoiser, x))
            for flag in (False, True)
        )
        assert abs(started - 0.5) < 1e-13 and abs(plain - 0.5) > 1e-3


def test_a_corrected_start_needs_steps_that_are_nearly_even() -> None:
    denoiser, x = gaussian(Cosine()), points()
    times = [0.1, 0.15, 0.6, 0.8, 0.9]
    one, two = (
        run(Multistep(4, "velocity", "t", 4, grid=times, corrected_start=flag), denoiser, x)
        for flag in (False, True)
    )
    assert torch.equal(one, two)


# --- edits by a callback -----------------------------------------------------------------------


def test_edits_of_the_state_survive_a_corrector() -> None:
    denoiser, x = gaussian(Cosine()), points()
    shift = 0.3

    def callback(carry):
        return carry.with_state(carry.state + shift) if carry.step == 4 else None

    times = np.linspace(0.1, 0.9, 9)
    constant = Denoiser(lambda s, t, c: 0 * s + 1.0, denoiser.paths)
    for name in ("unipc", "abm", "dpmpp_3m"):
        sampler = samplers.preset(name, 8, grid=times)
        with torch.no_grad():
            plain = sampler(constant, start=x).state
            moved = sampler(constant, start=x, callback=callback).state
        left = moved - plain
        assert (left > 0).all() and torch.allclose(left, left[:1].expand_as(left), atol=1e-12)


def test_edits_of_the_history_are_seen() -> None:
    denoiser, x = gaussian(Cosine()), points()

    def forget(carry):
        return dataclasses.replace(
            carry, history=tuple(tuple(0 * past for past in leaf) for leaf in carry.history)
        )

    sampler = Multistep(6, order=2, grid=GRID)
    with torch.no_grad():
        plain, edited = (sampler(denoiser, start=x, callback=c).state for c in (None, forget))
    assert not torch.allclose(plain, edited, atol=1e-3)


# --- refusals ----------------------------------------------------------------------------------


def test_more_order_than_steps_is_refused() -> None:
    for options in ({"order": 3}, {"order": [1, 3]}, {"order": 4, "final": "data"}):
        with pytest.raises(ValueError, match=r"order=\d needs at least \d evaluations.*steps=2"):
            Multistep(2, **options)
    with pytest.raises(ValueError, match="at least 3 evaluations, the times give 2"):
        Multistep(5, order=3).plan(GaussianPath(Cosine()), [0.1, 0.5, 0.9])


def test_lists_of_another_length_are_refused() -> None:
    with pytest.raises(ValueError, match="order has 3 entries.*the 4 evaluations"):
        Multistep(4, order=[1, 2, 2])
    listed = Multistep(4, kind=["data"] * 4)
    with pytest.raises(ValueError, match="kind has 4 entries, the times give 2 evaluations"):
        listed.plan(GaussianPath(Cosine()), [0.1, 0.5, 0.9])


def test_settings_out_of_range_are_refused_at_any_step() -> None:
    for options, message in (
        ({"kind": ["data", "data", "nois", "data"]}, "did you mean 'noise'"),
        ({"order": [1, 2, 0, 2]}, "order must be"),
        ({"stochasticity": [0.0, 0.0, -1.0, 0.0]}, "must not be negative"),
        ({"kind": ["data", "angular"] * 2, "stochasticity": 1.0}, "not for 'angular'"),
        ({"stochasticity": [0.0, math.inf] * 2}, "infinite stochasticity"),
        ({"compensation": [None, None, math.nan, None]}, "compensation must be finite"),
        ({"max_ratio": 0.5}, "max_ratio"),
    ):
        with pytest.raises(ValueError, match=message):
            Multistep(4, **options)


def test_what_a_path_cannot_give_is_refused_when_planned() -> None:
    bridge = Interpolant(noise=0.3)
    velocity = Multistep(4, "velocity", "t")
    assert velocity.plan(bridge).steps == 4
    with pytest.raises(ValueError, match="leaf 'state' cannot follow final='data'"):
        dataclasses.replace(velocity, final="data").plan(bridge)
    with pytest.raises(ValueError, match="cannot follow kind='noise'"):
        Multistep(4, ["velocity", "noise"] * 2, "t").plan(bridge)
    with pytest.raises(ValueError, match=r"leaf 'b' cannot follow stochasticity.*no score.*'b'"):
        samplers.ancestral(3).plan({"a": GaussianPath(Cosine()), "b": Interpolant()})


def test_vanishing_sigma_is_named_with_its_time() -> None:
    path = GaussianPath(Cosine())
    with pytest.raises(ValueError, match="kind='noise' from t = 0 to .*alpha or sigma vanishes"):
        Multistep(5, "noise", grid=grids.uniform_time(0, 0.9)).plan(path)
    statistics = EmpiricalStatistics([0.0], [0.0], [0.0])
    with pytest.raises(ValueError, match="leaf 'state'.* from t = 0.4 to 1: .*vanishes"):
        Multistep(3, statistics, grid=[0.1, 0.2, 0.4, 1.0]).plan(path)


def test_exact_flows_with_sigma_zero_at_the_end() -> None:
    """The kinds that can end there do, at any order."""
    denoiser, x = gaussian(CondOT()), points()
    exact = exact_flow(CondOT(), x, 0.02, 1.0)
    for kind, variable in (("data", "t"), ("difference", "S"), ("angular", "S"), ("velocity", "t")):
        sampler = Multistep(60, kind, variable, 3, 1, grid=grids.uniform_time(0.02, 1.0))
        assert torch.allclose(run(sampler, denoiser, x), exact, atol=5e-3), kind


def test_names_of_leaves_follow_the_tree() -> None:
    paths = {"inner": (GaussianPath(Cosine()), GaussianPath(VE())), "outer": GaussianPath(CondOT())}
    plan = Multistep(3, leaves={"inner.1": {"order": 1}}).plan(paths)
    assert plan.names == flatten(paths, GaussianPath)[1].names == ["inner.0", "inner.1", "outer"]
    assert [stepper.settings.order for stepper in plan.steppers] == [2, 1, 2]
