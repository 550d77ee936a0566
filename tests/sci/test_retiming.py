"""Changing a trained denoiser's clock: other schedules, annealed leaves, shifted times."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import MEAN, STD, column, exact_flow, gaussian, points, run
from torch import Tensor, nn

from sci import samplers
from sci.denoiser import Annealed, Denoiser, Rescheduled, TimeShift
from sci.denoiser.time_shift import variance
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import grids
from sci.schedules import EDM, VE, VP, CondOT, Cosine, Custom, Exponential, Tabulated
from sci.spaces import Centred, Symmetric, quaternions

TRAINED = [VP(), Cosine(), VE(0.01, 20.0), CondOT()]
NEW = [VP(0.1, 12.0), Cosine(), EDM(0.01, 30.0), CondOT()]
KINDS = ["data", "noise", "score", "velocity", "angular", "difference"]


def matched(outer: Rescheduled, times: np.ndarray) -> np.ndarray:
    """The trained times of the sampler's times, and so the grid on which both are the same."""
    return np.array([outer.trained_time(float(t)) for t in times])


@pytest.mark.parametrize("new", NEW, ids=str)
@pytest.mark.parametrize("trained", TRAINED, ids=str)
def test_ddim_on_matched_grids_agrees_exactly(trained, new) -> None:
    denoiser = gaussian(trained)
    outer = Rescheduled(denoiser, new)
    start, stop = outer.paths.span
    times = np.linspace(start + 0.05 * (stop - start), stop - 0.05 * (stop - start), 9)
    inner = matched(outer, times)
    assert (np.diff(inner) > 0).all()

    def radius(schedule, t: float) -> float:
        return float(np.hypot(schedule.alpha(t), schedule.sigma(t)))

    first, last = (radius(new, times[k]) / radius(trained, inner[k]) for k in (0, -1))
    x = points()
    ours = run(samplers.ddim(8), outer, x * first, times=times)
    theirs = run(samplers.ddim(8), denoiser, x, times=inner) * last
    assert torch.allclose(ours, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("new", [*NEW, Exponential(8.0)], ids=str)
@pytest.mark.parametrize("trained", TRAINED, ids=str)
def test_the_flow_is_the_same_curve(trained, new) -> None:
    """Whole runs with one seed, from the source on: the end is that of the trained flow."""
    denoiser = gaussian(trained)
    outer = Rescheduled(denoiser, new)
    start, stop = outer.paths.span
    like = points(16)
    fine = samplers.abm(2, 400)
    with torch.no_grad():
        ours = fine(outer, like=like, seed=5).state
    # The trained path at the same log-SNRs, in closed form.
    first, last = (outer.trained_time(t) for t in (start, stop))
    ratio = [
        np.hypot(new.alpha(a), new.sigma(a)) / np.hypot(trained.alpha(b), trained.sigma(b))
        for a, b in ((start, first), (stop, last))
    ]
    source = outer.paths.source(Noise(5, range(16)), "state", like)
    exact = exact_flow(trained, source / ratio[0], first, last) * ratio[1]
    assert torch.allclose(ours, exact, atol=2e-4)
    if abs(first - trained.span[0]) < 1e-9:
        unscaled = denoiser.paths.source(Noise(5, range(16)), "state", like)
        assert torch.allclose(source, unscaled * ratio[0], rtol=1e-9)


def test_every_kind_is_that_of_the_new_path() -> None:
    trained, new = VP(), CondOT()
    outer, exact = Rescheduled(gaussian(trained), new), gaussian(new)
    x = points()
    for t in (0.2, 0.5, 0.8):
        for kind in KINDS:
            expected = exact(x, t, to=kind)
            assert torch.allclose(outer(x, t, to=kind), expected, rtol=1e-9, atol=1e-9)
            several = torch.full((len(x),), t, dtype=torch.float64)
            assert torch.allclose(outer(x, several, to=kind), expected, rtol=1e-9, atol=1e-9)
    assert outer.evaluations == 1


def test_ends_of_the_new_schedule_are_finite() -> None:
    for kind in ("noise", "data", "velocity"):
        path = GaussianPath(VP())
        trained = Denoiser(lambda x, t, c: 0 * x + 0.5, path, kind)
        outer = Rescheduled(trained, CondOT())
        x = points()
        for t in (0.0, 1.0):
            assert torch.isfinite(outer(x, t, to="difference")).all()
        start, stop = outer.paths.span
        assert CondOT().log_snr(start) == pytest.approx(VP().log_snr(0.0), abs=1e-9)
        assert CondOT().log_snr(stop) == pytest.approx(VP().log_snr(0.999), abs=1e-9)


def test_leaves_that_share_a_clock_and_leaves_that_do_not() -> None:
    warp = Custom(
        lambda t: torch.sin(0.5 * torch.pi * t**2),
        lambda t: torch.cos(0.5 * torch.pi * t**2),
        span=(0.1, 0.99),
    )
    straight = Custom(lambda t: t**2, lambda t: 1 - t**2, span=(0.1, 0.99))
    alone = {"a": gaussian(Cosine()), "b": gaussian(CondOT())}
    both = Denoiser(
        lambda x, t, c: {name: alone[name].network(x[name], t, c) for name in x},
        {"a": GaussianPath(Cosine()), "b": GaussianPath(CondOT(), Symmetric())},
    )
    outer = Rescheduled(both, {"b": straight, "a": warp})
    assert outer.trained_time(0.5) == pytest.approx(0.25, abs=1e-12)
    assert outer.paths["b"].space == Symmetric()
    with pytest.raises(ValueError, match="leaf 'b'.*one time"):
        Rescheduled(both, CondOT())
    state = {"b": torch.randn(2, 3, 3).double(), "a": points(2)}
    state["b"] = Symmetric().project(state["b"])
    # The state may name its leaves in another order than the paths do.
    other = outer({"a": state["a"], "b": state["b"]}, 0.5, to="velocity")
    one = outer(state, 0.5, to="velocity")
    assert torch.equal(one["a"], other["a"]) and torch.equal(one["b"], other["b"])


def test_what_cannot_be_rescheduled_is_refused() -> None:
    noisy = Denoiser(lambda x, t, c: x, Interpolant(noise=0.3), "velocity")
    with pytest.raises(TypeError, match="data predictions"):
        Rescheduled(noisy, CondOT())
    low = Denoiser(lambda x, t, c: x, GaussianPath(VE(0.001, 0.01)))
    with pytest.raises(ValueError, match="overlap"):
        Rescheduled(low, VE(1.0, 10.0))
    with pytest.raises(ValueError, match=r"t must lie in \[0, 1\]"):
        Rescheduled(gaussian(VP()), CondOT())(points(), 1.5)
    bridge = Denoiser(lambda x, t, c: 0 * x + 1, Interpolant(), "velocity")
    outer = Rescheduled(bridge, Cosine())
    assert torch.isfinite(run(samplers.euler(5), outer, points())).all()


def test_gradients_flow_through_another_schedule() -> None:
    x = points().requires_grad_()
    outer = Rescheduled(gaussian(VP()), Cosine())
    (slope,) = torch.autograd.grad(samplers.ddim(6)(outer, start=x).state.sum(), x)
    assert (slope > 0).all()


def test_a_tabulated_path_samples() -> None:
    table = Tabulated.kinetic_optimal(np.linspace(0, np.pi / 2, 129), np.full(129, 0.9))
    trained = gaussian(VP())
    outer = Rescheduled(trained, table)
    fine = samplers.abm(2, 200)
    with torch.no_grad():
        out, reference = (fine(each, like=points(), seed=0).state for each in (outer, trained))
    stop = outer.paths.span[1]
    assert outer.trained_time(stop) == pytest.approx(VP().span[1], abs=1e-9)
    ratio = np.hypot(table.alpha(stop), table.sigma(stop))
    assert torch.allclose(out, reference * ratio, atol=1e-3)


def test_rotations_and_classes_move_with_the_rest() -> None:
    turns = torch.randn(3, 4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    data = quaternions.exp(turns)
    classes = nn.functional.one_hot(torch.tensor([0, 2, 1, 1]), 3).double().repeat(3, 1, 1)
    seen: list[float] = []

    def network(state, t: Tensor, condition):
        seen.append(float(t[0]))
        return {"frames": data, "points": 0 * state["points"] + 1.5, "kinds": classes}

    def paths(schedule) -> dict:
        return {
            "points": GaussianPath(schedule, span=(0.0, 0.999)),
            "frames": GeodesicPath(schedule),
            "kinds": CategoricalPath(schedule, classes=3),
        }

    trained = Denoiser(network, paths(CondOT()))
    outer = Rescheduled(trained, Exponential(6.0))
    state = {
        "points": torch.randn(3, 4, 2, dtype=torch.float64),
        "frames": quaternions.exp(0.3 * turns),
        "kinds": torch.tensor([[0, 1, 2, 0]] * 3),
    }
    t = 0.25
    share = 1 - np.exp(-1.5)
    kinds = {"points": "velocity", "frames": "velocity", "kinds": "data"}
    exact = Denoiser(network, paths(Exponential(6.0)))
    for time in (t, torch.full((3,), t, dtype=torch.float64)):
        found, expected = outer(state, time, to=kinds), exact(state, time, to=kinds)
        for name in found:
            assert torch.allclose(found[name], expected[name], atol=1e-9), name
        assert seen[-2] == pytest.approx(share, abs=1e-9)
    start, stop = outer.paths["frames"].span
    assert start == pytest.approx(0.0, abs=1e-12)
    assert stop == pytest.approx(-np.log(0.001) / 6 if np.exp(-6) < 0.001 else 1.0, abs=1e-9)
    with pytest.raises(ValueError, match="one time"):
        Rescheduled(trained, {"points": CondOT(), "frames": Exponential(6.0), "kinds": CondOT()})
    with pytest.raises(ValueError, match="alpha"):
        Rescheduled(trained, Cosine())
    ahead = Annealed(trained, {"frames": GeodesicPath("exponential")})
    found = ahead(state, t, to=kinds)
    assert seen[-1] == t
    angular = space_log(state["frames"], data)
    assert torch.allclose(found["frames"], 10 * angular, atol=1e-9)


def space_log(x: Tensor, y: Tensor) -> Tensor:
    """The turn from x to y, in the frame of x."""
    return quaternions.log(quaternions.multiply(quaternions.conjugate(x), y))


# --- annealing ---------------------------------------------------------------------------------


def test_an_annealed_leaf_follows_its_own_rate_under_the_same_time() -> None:
    seen: list[float] = []

    def network(state, t: Tensor, condition):
        seen.append(float(t[0]))
        return {"a": 0 * state["a"] + 2.0, "b": 0 * state["b"] - 1.0}

    paths = {"a": GaussianPath(CondOT()), "b": GaussianPath(CondOT())}
    annealed = Annealed(Denoiser(network, paths), {"a": 10.0})
    state = {"a": points(), "b": points()}
    velocity = annealed(state, 0.3, to="velocity")
    # The data are constant: x' = c (data - x) on the annealed leaf, (data - x) / (1 - t) beside it.
    assert torch.allclose(velocity["a"], 10 * (2.0 - points()))
    assert torch.allclose(velocity["b"], (-1.0 - points()) / 0.7)
    assert seen == [0.3] or seen == [pytest.approx(0.3)]
    out = run(samplers.ddim(7), annealed, state, times=np.linspace(0.0, 0.9, 8))
    share = np.exp(-9.0)
    assert torch.allclose(out["a"], 2 + (points() - 2) * share, atol=1e-12)
    assert torch.allclose(out["b"], -1 + (points() + 1) * 0.1, atol=1e-12)


def test_predictions_that_mean_the_same_everywhere_are_taken_at_their_word() -> None:
    x, t = points(), 0.4
    noisy = Denoiser(lambda x, t, c: 0 * x + 0.5, GaussianPath(CondOT()), "noise")
    annealed = Annealed(noisy, {"state": Exponential(3.0)})
    assert torch.allclose(annealed(x, t, to="noise"), torch.full_like(x, 0.5))
    flow = Denoiser(lambda x, t, c: 0 * x + 0.5, GaussianPath(CondOT()), "velocity")
    annealed = Annealed(flow, {"state": Exponential(3.0)})
    assert torch.allclose(annealed(x, t), x + 0.6 * 0.5)  # the trained data prediction


def test_annealed_names_its_leaves_and_rates() -> None:
    denoiser = gaussian(CondOT())
    with pytest.raises(KeyError, match="state"):
        Annealed(denoiser, {"stat": 10.0})
    with pytest.raises(TypeError, match="expected a schedule"):
        Annealed(denoiser, {"state": "fast"})
    with pytest.raises(TypeError, match="cannot replace"):
        Annealed(denoiser, {"state": GaussianPath(CondOT(), Centred())})
    with pytest.raises(ValueError, match="positive"):
        Annealed(denoiser, {"state": -1.0})
    same = Annealed(denoiser, {"state": GaussianPath(CondOT())})
    assert torch.equal(same(points(), 0.5), denoiser(points(), 0.5))


# --- time shift --------------------------------------------------------------------------------


def times_seen(path: GaussianPath, kind: str = "noise"):
    seen: list[Tensor] = []

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        seen.append(t.double())
        return 0 * x + 0.25

    return Denoiser(network, path, kind), seen


def test_the_shifted_time_is_the_nearest_in_variance() -> None:
    schedule = Cosine()
    denoiser, seen = times_seen(GaussianPath(schedule))
    shift = TimeShift(denoiser, window=0.05)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(6, 40, generator=generator, dtype=torch.float64)
    scales = torch.tensor([0.5, 0.6, 0.7, 0.72, 0.8, 0.9], dtype=torch.float64)[:, None]
    x = scales * (x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True) + 3.0
    out = shift(x, 0.5, to="noise")
    best = schedule.time(torch.log((1 - scales**2) ** 0.5 / scales)).squeeze(1)
    expected = best.clamp(0.45, 0.55)
    assert (seen[0] - expected).abs().max() <= 0.5e-3 + 1e-9
    assert torch.equal(shift.shifted(x, 0.5), seen[0])
    # The prediction is the network's; the conversion is at the sampler's time.
    assert torch.allclose(out, torch.full_like(x, 0.25))
    data = shift(x, 0.5)
    assert torch.allclose(data, (x - schedule.sigma(0.5) * 0.25) / schedule.alpha(0.5))


def test_no_shift_at_the_start_and_beyond_the_cutoff() -> None:
    denoiser, seen = times_seen(GaussianPath(Cosine()))
    shift = TimeShift(denoiser, window=0.1, cutoff=0.6)
    for t in (0.005, 0.7):
        shift(10 * points(), t)
        assert torch.allclose(seen[-1], torch.full((8,), t, dtype=torch.float64))
    mixed = torch.tensor([0.005, 0.5, 0.6, 0.61], dtype=torch.float64)
    shift(torch.zeros(4, 3, dtype=torch.float64), mixed)
    assert torch.allclose(seen[-1], mixed + torch.tensor([0, 0.1, 0.1, 0]))


def test_items_are_judged_alone_and_without_their_padding() -> None:
    path = GaussianPath(Cosine(), Symmetric())
    denoiser = Denoiser(lambda x, t, c: 0 * x, path, mask="mask")
    shift = TimeShift(denoiser, window=0.2, data_variance=0.1)
    small = path.space.random(torch.zeros(1, 5, 5).double(), None, torch.Generator().manual_seed(1))
    wide = torch.full((2, 9, 9), 7.0, dtype=torch.float64)
    wide[0, :5, :5] = small[0]
    mask = torch.zeros(2, 9, dtype=torch.bool)
    mask[0, :5] = mask[1] = True
    padded = shift.shifted(wide, 0.4, {"mask": mask})
    alone = shift.shifted(small, 0.4, {"mask": torch.ones(1, 5, dtype=torch.bool)})
    assert padded[0] == alone[0]


def test_variances_count_independent_elements() -> None:
    x = torch.randn(3, 4, 2, dtype=torch.float64)
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True, True, False, False]])
    path = GaussianPath(Cosine())
    for row, count in enumerate((4, 3, 2)):
        expected = x[row, :count].flatten().var()
        assert torch.allclose(variance(path, x, mask)[row], expected)
    edges = Symmetric().project(torch.randn(1, 5, 5, dtype=torch.float64))
    high, low = torch.tril_indices(5, 5, -1)
    expected = edges[0, high, low].var()
    assert torch.allclose(variance(GaussianPath(Cosine(), Symmetric()), edges)[0], expected)
    cloud = Centred().project(torch.randn(1, 5, 3, dtype=torch.float64))
    found = variance(GaussianPath(Cosine(), Centred()), cloud)[0]
    assert torch.allclose(found, (cloud**2).sum() / 12)


def test_a_shift_can_mend_a_wrong_noise_level() -> None:
    """A state with too much noise: the shifted denoiser is nearer to the truth."""
    schedule = VE(0.05, 5.0)
    exact = gaussian(schedule, 0.0, 0.2)
    generator = torch.Generator().manual_seed(0)
    data = 0.2 * torch.randn(64, 400, generator=generator, dtype=torch.float64)
    noise = torch.randn(64, 400, generator=generator, dtype=torch.float64)
    x = data + schedule.sigma(0.45) * noise  # the sampler believes that t = 0.5
    shift = TimeShift(exact, window=0.1, data_variance=0.04)

    def error(found: Tensor) -> float:
        return float(((found - data) ** 2).mean())

    assert error(shift(x, 0.5, to="data")) < error(exact(x, 0.5))
    assert (shift.shifted(x, 0.5) - 0.45).abs().mean() < 0.01


def test_bad_windows_are_refused() -> None:
    for options in ({"window": 0.0}, {"window": 2.0}, {"window": 1e-4}):
        with pytest.raises(ValueError, match="window"):
            TimeShift(gaussian(VP()), **options)
    with pytest.raises(ValueError, match="cutoff"):
        TimeShift(gaussian(VP()), 0.1, cutoff=2.0)


def test_moments_survive_the_change_of_clock() -> None:
    """Gaussian data, sampled on another schedule: the spread of the samples is that of the data."""
    outer = Rescheduled(gaussian(VP()), CondOT())
    sampler = samplers.abm(2, 40, grid=grids.uniform_angle())
    with torch.no_grad():
        out = sampler(outer, like=torch.zeros(20000, 1, dtype=torch.float64), seed=2).state
    stop = outer.paths.span[1]
    spread = float(np.hypot(CondOT().alpha(stop) * STD, CondOT().sigma(stop)))
    assert abs(float(out.mean()) - CondOT().alpha(stop) * MEAN) < 5 * STD / 20000**0.5 + 1e-3
    assert abs(float(out.std()) / spread - 1) < 0.02
    assert column(torch.zeros(2), out[:2]).shape == (2, 1)


def test_items_of_one_element_are_not_shifted() -> None:
    denoiser = Denoiser(lambda x, t, c: 0 * x, GaussianPath(Cosine()), mask="mask")
    shift = TimeShift(denoiser, window=0.1)
    mask = torch.tensor([[True, False, False], [True, True, True]])
    x = torch.tensor([[1.0, float("nan"), float("nan")], [0.1, 0.2, 0.3]], dtype=torch.float64)
    found = shift.shifted(x, 0.5, {"mask": mask})
    assert found[0] == 0.5 and found[1] == 0.6


def test_an_annealed_leaf_of_classes_keeps_its_law() -> None:
    path = CategoricalPath(CondOT(), classes=3)
    trained = Denoiser(lambda x, t, c: torch.full((*x.shape, 3), 1 / 3), path)
    faster = CategoricalPath(Exponential(6.0), classes=3)
    x = torch.zeros(1, 2, dtype=torch.int64)
    assert torch.allclose(Annealed(trained, {"state": faster})(x, 0.5), torch.tensor(1 / 3))
    for other in (
        CategoricalPath(CondOT(), 3, "marginal", [0.5, 0.2, 0.3]),
        CategoricalPath(CondOT(), 3, "absorbing"),
    ):
        with pytest.raises(TypeError, match="cannot replace"):
            Annealed(trained, {"state": other})
