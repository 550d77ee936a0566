"""Fitted samplers: better on items that the fit has not seen, and honest when stopped."""

from __future__ import annotations

import dataclasses
import math
import os
import signal
from typing import Any

import numpy as np
import pytest
import torch

from sci import samplers
from sci.denoiser import Denoiser
from sci.model import Problem
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import Multistep
from sci.schedules import VP, CondOT, Cosine
from sci.spaces import Symmetric
from sci.tuning import tune
from sci.tuning.minimise import descend, evolve
from sci.tuning.search import MEASURES, Search, _Chart, spelled
from sci.tuning.trajectories import FIRST_ITEM, Bench, batches


def mixture(schedule: Any, dimension: int = 2, seed: int = 1) -> Denoiser:
    """The exact denoiser of five narrow Gaussians with random means, widths and weights."""
    generator = np.random.default_rng(seed)
    means = torch.tensor(generator.normal(size=(5, dimension)))
    widths = torch.tensor(generator.uniform(0.1, 0.4, 5))
    logarithms = torch.tensor(np.log(generator.dirichlet(np.full(5, 3.0))))

    def network(x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        alpha, sigma = (f(t).to(x.dtype)[:, None] for f in (schedule.alpha, schedule.sigma))
        variance = (alpha * widths) ** 2 + sigma**2
        apart = x[:, None] - alpha[..., None] * means
        density = logarithms - 0.5 * (apart.square().sum(-1) / variance)
        share = (density - 0.5 * dimension * variance.log()).softmax(-1)
        centres = means + (alpha * widths**2 / variance)[..., None] * apart
        return (share[..., None] * centres).sum(1)

    return Denoiser(network, GaussianPath(schedule))


def problem_of(schedule: Any, items: int = 96, dimension: int = 2, **more: Any) -> Problem:
    like = torch.zeros(items, dimension, dtype=torch.float64)
    return Problem(mixture(schedule, dimension), like, **more)


def endpoint(denoiser: Denoiser, start: torch.Tensor, low: float, high: float) -> torch.Tensor:
    """The flow by classical Runge-Kutta steps in time, independent of the library's samplers."""
    clock = np.linspace(low, high, 601)
    x = start

    def slope(x: torch.Tensor, t: float) -> torch.Tensor:
        return denoiser(x, t, to="velocity")

    for a, b in zip(clock[:-1], clock[1:], strict=True):
        h, middle = b - a, 0.5 * (a + b)
        first = slope(x, a)
        second = slope(x + 0.5 * h * first, middle)
        third = slope(x + 0.5 * h * second, middle)
        x = x + h / 6 * (first + 2 * second + 2 * third + slope(x + h * third, b))
    return x


@pytest.mark.parametrize("nfe", [5, 8])
def test_the_fit_holds_on_fresh_items(nfe: int) -> None:
    """Against the flow by Runge-Kutta from noise that neither fit nor judgement has seen."""
    problem = problem_of(Cosine(), 192, sampler=samplers.default(nfe, exact=True))
    tuned = tune(problem, nfe, budget=160 * nfe, teacher=100)
    assert tuned.improved and not tuned.interrupted
    assert tuned.mean_error < tuned.default_mean_error
    denoiser, noise = problem.denoiser, Noise(77, range(100))
    like = torch.zeros(100, 2, dtype=torch.float64)
    start = denoiser.paths.source(noise, "state", like)
    with torch.no_grad():
        wanted = endpoint(denoiser, start, *denoiser.paths.span)

        def error(sampler: Multistep) -> float:
            samples = sampler(denoiser, start=start)
            assert samples.nfe == nfe
            return float((samples.state - wanted).norm(dim=1).mean())

        fitted = error(tuned.sampler())
        assert fitted < error(samplers.default(nfe)) / 5
        assert fitted < error(samplers.default(nfe, exact=True))


@pytest.mark.parametrize("schedule", [VP(), CondOT()], ids=["VP", "CondOT"])
def test_it_helps_on_other_paths(schedule: Any) -> None:
    tuned = tune(problem_of(schedule, 64, 10), 6, budget=600, teacher=60, measure="geometric")
    assert tuned.median_error < tuned.default_median_error / 4


def test_a_small_network() -> None:
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 3))

    def network(x: torch.Tensor, t: torch.Tensor, condition: Any) -> torch.Tensor:
        return 6 * layers(torch.cat([x, 8 * t[:, None] ** 4], 1))

    denoiser = Denoiser(network, GaussianPath(CondOT()), predicts="velocity")
    standing = samplers.ab(2, 6)
    tuned = tune(Problem(denoiser, torch.zeros(64, 3), None, standing), 6, budget=600, teacher=100)
    assert tuned.error < tuned.default_error / 3
    assert tuned.items == tuned.held_out == 32 and tuned.evaluations <= 600
    assert tuned.teacher_error < tuned.error / 5


def test_errors_are_what_they_say() -> None:
    """Two leaves, one symmetric, both masked: against sums over the independent elements by hand."""
    mask = torch.arange(4) < torch.tensor([[4], [3], [2], [4], [3], [4]])
    paths = {
        "nodes": GaussianPath(Cosine()),
        "edges": GaussianPath(VP(), Symmetric()),
    }

    def network(state: Any, t: Any, condition: Any) -> Any:
        return {"nodes": state["nodes"].tanh(), "edges": 3 * state["edges"].sin()}

    denoiser = Denoiser(network, paths, mask="mask")
    like = {
        "nodes": torch.zeros(6, 4, 2, dtype=torch.float64),
        "edges": torch.zeros(6, 4, 4, dtype=torch.float64),
    }
    standing = samplers.default(4)
    fitted, held = batches(Problem(denoiser, like, {"mask": mask}), seed=5)
    assert [batch.items for batch in (*fitted, *held)] == [3, 3]
    times = np.linspace(0.1, 0.9, 4)
    standing = dataclasses.replace(standing, grid=times.tolist())
    bench = Bench(fitted, standing, times, 60)
    residuals = bench.residuals(spelled(standing, times))
    assert residuals is not None

    fine = bench.fine[0].sampler
    noise, kept = Noise(5, range(FIRST_ITEM, FIRST_ITEM + 3)), mask[:3]
    first = {name: leaf[:3] for name, leaf in like.items()}
    given = {"like": first, "condition": {"mask": kept}, "noise": noise}
    wanted, found = (sampler(denoiser, **given).state for sampler in (fine, standing))
    shares = []
    for name in ("nodes", "edges"):

        def values(state: Any, item: int, count: int, name: str = name) -> torch.Tensor:
            x = state[name][item][:count]
            if name == "nodes":
                return x.flatten()
            rows, columns = torch.triu_indices(count, count, 1)
            return x[rows, columns]

        counts = kept.sum(1).tolist()
        pairs = [(k, (k - 1) % 3, min(counts[k], counts[(k - 1) % 3])) for k in range(3)]
        apart = [(values(wanted, a, n) - values(wanted, b, n)) for a, b, n in pairs]
        spread = sum(float(d.square().sum()) for d in apart) / (2 * sum(len(d) for d in apart))
        shares.append(
            [
                float((values(found, k, n) - values(wanted, k, n)).square().mean()) / spread
                for k, n in enumerate(counts)
            ]
        )
    np.testing.assert_allclose((residuals**2).sum(1), np.mean(shares, 0), rtol=1e-9)


def test_measures() -> None:
    errors = np.array([1.0, 2.0, 3.0, 1e6])
    assert MEASURES["square"](errors)[0] == errors.mean()
    distance = MEASURES["distance"](errors)[0]
    assert math.isclose(distance, np.sqrt(errors).mean() ** 2, rel_tol=1e-3)
    assert MEASURES["median"](errors)[0] == 2.5
    geometric, weights = MEASURES["geometric"](errors)
    assert math.isclose(geometric, np.prod(errors) ** 0.25, rel_tol=0.02)
    assert weights[0] > 1e5 * weights[-1]  # an item in another mode does not lead the fit


def test_the_result_is_a_function_of_the_seed() -> None:
    problem, options = problem_of(CondOT(), 24), {"budget": 400, "teacher": 40}
    runs = [tune(problem, 5, seed=seed, **options) for seed in (3, 3, 4)]
    assert runs[0] == runs[1]
    assert runs[0].default_error != runs[2].default_error and runs[0].times != runs[2].times


def test_several_batches_are_one_problem() -> None:
    whole = problem_of(Cosine(), 40)
    parts = [dataclasses.replace(whole, like=whole.like[:10])] * 4
    one, four = (tune(p, 5, budget=100, teacher=40) for p in (whole, parts))
    assert four.items == one.items == four.held_out == 20
    # Neighbours within a batch give the unit of the errors; the items are the same.
    units = one.default_error / four.default_error
    assert 0.9 < units < 1.1
    np.testing.assert_allclose(
        one.default_median_error / four.default_median_error, units, rtol=1e-9
    )


class Interrupting:
    """A denoiser that Ctrl-C hits at some call, as an exception or as the signal."""

    def __init__(self, denoiser: Denoiser, at: int, by_signal: bool = False) -> None:
        self.denoiser, self.left, self.by_signal = denoiser, at, by_signal

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        self.left -= 1
        if self.left == 0 and self.by_signal:
            os.kill(os.getpid(), signal.SIGINT)
        elif self.left == 0:
            raise KeyboardInterrupt
        return self.denoiser(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.denoiser, name)


def test_control_c_keeps_the_best_so_far() -> None:
    problem = problem_of(Cosine(), 32)
    # Two benches of 40 and 20 evaluations come first.
    interrupting = Interrupting(problem.denoiser, 120 + 300)
    stopped = tune(dataclasses.replace(problem, denoiser=interrupting), 5, budget=2000, teacher=40)
    assert stopped.interrupted and 295 <= stopped.evaluations <= 300
    assert stopped.improved and stopped.error < stopped.default_error
    # The signal lets a trial finish, and leaves the handler as it was.
    handler = signal.getsignal(signal.SIGINT)
    interrupting = Interrupting(problem.denoiser, 120 + 297, by_signal=True)
    calm = tune(dataclasses.replace(problem, denoiser=interrupting), 5, budget=2000, teacher=40)
    assert calm.interrupted and calm.evaluations == 300
    assert signal.getsignal(signal.SIGINT) is handler
    with pytest.raises(KeyboardInterrupt):
        tune(dataclasses.replace(problem, denoiser=Interrupting(problem.denoiser, 50)), 5)


def test_what_stood_before_stays_where_nothing_is_better() -> None:
    standing = samplers.unipc(2, 6)
    tuned = tune(problem_of(Cosine(), 32, sampler=standing), 6, budget=6, teacher=40)
    assert not tuned.improved and tuned.error == tuned.default_error and tuned.evaluations == 6
    problem = problem_of(Cosine(), 8)
    with torch.no_grad():
        states = [s(problem.denoiser, like=problem.like).state for s in (standing, tuned.sampler())]
    torch.testing.assert_close(states[0], states[1], rtol=0, atol=1e-12)


def test_compensation_matches_runs_with_it() -> None:
    """A trial of a step is the run's own state there, and a quadratic of the ratio."""
    problem = problem_of(Cosine(), 16)
    standing = samplers.dpmpp_2m(6, grid="uniform_angle")
    times = np.asarray(standing.grid(problem.denoiser.paths, 6))
    fitted, _ = batches(problem, 0)
    bench = Bench(fitted, standing, times, 100)
    bench.scales = [1.0]
    sampler = spelled(standing, times)
    ratios = [1.0, 1.0, 0.7, 1.4, 0.5, 0.9]
    walk = bench.walk(times)
    for _ in range(4):
        walk.go(dataclasses.replace(sampler, compensation=tuple(ratios)))
    tried = []
    for ratio in (0.0, 0.5, 1.0, 1.7):
        changed = dataclasses.replace(sampler, compensation=(*ratios[:4], ratio, 0.9))
        tried.append(walk.trial(changed))
    quadratic = sum(
        weight * trial for weight, trial in zip(*lagrange((0.0, 0.5, 1.0), 1.7, tried), strict=True)
    )
    np.testing.assert_allclose(quadratic, tried[3], atol=1e-12)
    states: list[torch.Tensor] = []
    compensated = dataclasses.replace(sampler, compensation=(*ratios[:4], 1.7, 0.9))
    with torch.no_grad():
        compensated(
            problem.denoiser,
            start=fitted[0].start,
            callback=lambda carry: states.append(carry.leaves[0]),
        )
    apart = (states[4] - bench.at(times[5])[0][0]).numpy() / math.sqrt(2)
    np.testing.assert_allclose(tried[3], apart, atol=1e-12)


def lagrange(nodes: Any, at: float, values: list[Any]) -> tuple[list[float], list[Any]]:
    weights = [math.prod((at - b) / (a - b) for b in nodes if b != a) for a in nodes]
    return weights, values[: len(nodes)]


def test_ratios_alone_help_a_sampler_that_needs_them() -> None:
    problem = problem_of(Cosine(), 64)
    standing = samplers.ddim(8, grid="uniform_angle")
    times = np.asarray(standing.grid(problem.denoiser.paths, 8))
    bench = Bench(batches(problem, 0)[0], standing, times, 100)
    search = Search(
        bench, spelled(standing, times), "square", 100, np.random.default_rng(0), lambda *_: None
    )
    before = search.error(search.start)
    assert search.compensate() and search.value < 0.5 * before
    assert search.spent == 24  # two runs and one walk


def test_vectors_are_grids() -> None:
    problem = problem_of(VP(), 8)
    for standing in (samplers.default(6), samplers.default(6, exact=True)):
        transitions = 6 - (standing.final is not None)
        times = np.asarray(standing.grid(problem.denoiser.paths, transitions))
        bench = Bench(batches(problem, 0)[0], standing, times, 20)
        chart = _Chart(bench, spelled(standing, times), ratios=True)
        same = chart(np.zeros(chart.size))
        assert same is not None
        np.testing.assert_allclose(same.grid.times, times, atol=1e-6)
        generator = np.random.default_rng(0)
        for _ in range(50):
            sampler = chart(generator.normal(size=chart.size))
            assert sampler is not None
            found = np.array(sampler.grid.times)
            assert (np.diff(found) > 0).all() and found[0] >= times[0] and found[-1] <= times[-1]
            if standing.final is None:
                assert found[-1] == times[-1]  # else noise is left


def test_the_evolution_strategy_finds_a_long_valley() -> None:
    generator = np.random.default_rng(0)
    turn, _ = np.linalg.qr(generator.normal(size=(6, 6)))
    stretch = np.logspace(0, 3, 6)

    def objective(x: np.ndarray) -> float:
        return float(((turn @ (x - 1.5)) ** 2 * stretch).sum())

    found = evolve(objective, np.zeros(6), 0.3, generator)
    np.testing.assert_allclose(found, 1.5, atol=1e-2)


def test_least_squares_walks_down_a_curved_valley() -> None:
    def residuals(x: np.ndarray) -> np.ndarray:
        return np.array([[10 * (x[1] - x[0] ** 2)], [1 - x[0]]])

    def weigh(found: np.ndarray) -> tuple[float, np.ndarray]:
        return float((found**2).sum()), np.ones(2)

    found = descend(residuals, weigh, np.array([-1.2, 1.0]), iterations=200)
    np.testing.assert_allclose(found, 1.0, atol=1e-3)
    start = np.array([-1.2, 1.0])
    assert (descend(lambda x: None, weigh, start) == start).all()


def test_noise_is_left_out_and_said() -> None:
    problem = problem_of(Cosine(), 16, sampler=samplers.sde_dpmpp_2m(4))
    with pytest.warns(UserWarning, match="adds noise"):
        tuned = tune(problem, 4, budget=4, teacher=40)
    plain = tune(dataclasses.replace(problem, sampler=samplers.dpmpp_2m(4)), 4, 4, 40)
    assert tuned.default_error == plain.default_error


def test_rotations_keep_settings_of_their_own() -> None:
    """Points and rotations: the points may take what rotations cannot."""
    paths = {"points": GaussianPath(CondOT()), "turns": GeodesicPath(span=(0.0, 0.95))}

    def network(state: Any, t: Any, condition: Any) -> Any:
        wanted = torch.nn.functional.pad(state["points"].tanh(), (1, 0), value=0.5)
        return {
            "points": (2 * state["points"]).tanh() + 0.3 * state["turns"][..., 1:],
            "turns": wanted / wanted.norm(dim=-1, keepdim=True),
        }

    like = {
        "points": torch.zeros(16, 3, 3, dtype=torch.float64),
        "turns": torch.zeros(16, 3, 4, dtype=torch.float64),
    }
    standing = Multistep(5, "velocity", "t", grid="uniform_time")
    problem = Problem(Denoiser(network, paths), like, None, standing)
    tuned = tune(problem, 5, budget=400, teacher=100)
    assert tuned.error < 0.7 * tuned.default_error
    assert tuned.leaves is not None and tuned.leaves["turns"]["kind"] == "velocity"
    turns = tuned.sampler()(problem.denoiser, like=like, seed=3).state["turns"]
    torch.testing.assert_close(turns.norm(dim=-1), torch.ones(16, 3, dtype=torch.float64))


def test_refusals() -> None:
    problem = problem_of(Cosine(), 16)
    for words, settings in (
        ("nfe is 1", {"nfe": 1}),
        ("nfe is True", {"nfe": True}),
        ("budget is 3", {"nfe": 5, "budget": 3}),
        ("teacher is 9", {"nfe": 5, "teacher": 9}),
        ("did you mean 'median'", {"nfe": 5, "measure": "medium"}),
    ):
        with pytest.raises(ValueError, match=words):
            tune(problem, **settings)
    with pytest.raises(ValueError, match="takes 8 steps, nfe is 5"):
        tune(dataclasses.replace(problem, sampler=samplers.ddim(8)), 5)
    with pytest.raises(TypeError, match="PredictorCorrector.*Multistep"):
        tune(dataclasses.replace(problem, sampler=samplers.PredictorCorrector(steps=5)), 5)
    with pytest.raises(ValueError, match="3 items; expected at least 4"):
        tune(dataclasses.replace(problem, like=problem.like[:3]), 5)
    classes = torch.zeros(16, 2, dtype=torch.int64)
    with pytest.raises(TypeError, match="leaf 'state' is discrete"):
        tune(dataclasses.replace(problem, like=classes), 5)
    holes = Denoiser(lambda x, t, _: x * math.nan, GaussianPath(Cosine()))
    with pytest.raises(FloatingPointError, match="fine trajectory is not finite"):
        tune(Problem(holes, torch.zeros(8, 1)), 4)


def test_a_coarse_teacher_is_said() -> None:
    with pytest.warns(UserWarning, match="take a finer teacher"):
        tune(problem_of(Cosine(), 32, 2), 8, budget=800, teacher=16)
