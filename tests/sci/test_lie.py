"""Rotations under the multistep samplers: exactness, orders, and what they refuse."""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.integrate import solve_ivp
from torch import Tensor

from sci.denoiser import Denoiser
from sci.paths import GaussianPath
from sci.paths.geodesic import GeodesicPath
from sci.samplers import Multistep, OneStep
from sci.samplers.lie import follow
from sci.schedules import CondOT, Exponential
from sci.spaces import quaternions as quat
from sci.spaces.rotations import Rotations

SPACE = Rotations()
EULER = {"kind": "velocity", "order": 1}
RATES = [CondOT(), Exponential(10.0), Exponential(3.0)]
START, STOP = 0.05, 0.95


def skew(v: Tensor) -> Tensor:
    return torch.linalg.cross(torch.eye(3, dtype=v.dtype)[None], -v[:, None, :].expand(-1, 3, 3)).mT


def points(count: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SPACE.random(torch.zeros(count, 1, 4, dtype=torch.float64), generator=generator)


def gap(p: Tensor, q: Tensor) -> float:
    return float(quat.angle(p, q).max())


def target(t: float | Tensor) -> Tensor:
    """A known curve of rotations: what an analytic denoiser predicts as data, (B, 1, 4)."""
    t = torch.as_tensor(t, dtype=torch.float64)
    turn = torch.stack([0.9 * torch.sin(2 * t), 0.6 * t**2, 0.4 * torch.cos(3 * t)], -1)
    return quat.multiply(quat.exp(turn), quat.exp(0.3 * turn.roll(1, -1)))[..., None, :]


def moving(path: GeodesicPath) -> Denoiser:
    return Denoiser(lambda x, t, condition: target(t).expand_as(x), path)


@functools.lru_cache
def exact(schedule, start: float, stop: float) -> Tensor:
    """R' = R skew(speed log(R^T target)) on matrices, by a high-order solver, from `near()`."""
    matrices = quat.to_matrix(near()[:, 0])

    def slope(t: float, flat: np.ndarray) -> np.ndarray:
        matrix = torch.from_numpy(flat).view(-1, 3, 3)
        relative = matrix.mT @ quat.to_matrix(target(t))
        speed = schedule.alpha_dot(t) / schedule.sigma(t)
        return (matrix @ skew(speed * quat.log(quat.from_matrix(relative)))).flatten().numpy()

    first = matrices.flatten().numpy()
    run = solve_ivp(slope, (start, stop), first, method="DOP853", rtol=1e-10, atol=1e-11)
    return quat.from_matrix(torch.from_numpy(run.y[:, -1]).view(-1, 3, 3))[:, None]


def near(count: int = 6) -> Tensor:
    """Starting points whose way to the curve does not cross its cut locus."""
    generator = torch.Generator().manual_seed(1)
    turn = 0.8 * torch.randn(count, 1, 3, generator=generator, dtype=torch.float64).clamp(-1.5, 1.5)
    return quat.multiply(target(START).expand(count, 1, 4), quat.exp(turn))


def order_of(errors: list[float]) -> float:
    return float(-np.polyfit(np.log(2.0) * np.arange(3), np.log(errors), 1)[0])


def grid(steps: int, start: float = START, stop: float = STOP) -> np.ndarray:
    return np.linspace(start, stop, steps + 1)


def run(settings: dict, path: GeodesicPath, denoiser: Denoiser, x: Tensor, times: np.ndarray):
    sampler = Multistep(steps=len(times) - 1 + ("final" in settings), **settings)
    with torch.no_grad():
        return sampler(denoiser, start=x, times=times).state


@pytest.mark.parametrize("schedule", RATES, ids=str)
@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("variable", ["t", "log_snr", "S"])
def test_a_constant_prediction_is_integrated_exactly(schedule, order: int, variable: str) -> None:
    path, x, data = GeodesicPath(schedule), points(seed=1), points(seed=2)
    denoiser = Denoiser(lambda state, t, condition: data, path)
    settings = {"kind": "data", "order": order, "variable": variable}
    end = run(settings, path, denoiser, x, grid(5, 0.1, 0.7))
    share = 1 - schedule.sigma(0.7) / schedule.sigma(0.1)
    assert gap(end, quat.interpolate(x, data, share)) < 1e-7
    full = run(settings, path, denoiser, path.corrupt(data, x, 0.0), grid(5, 0.0, 1.0))
    assert gap(full, quat.interpolate(x, data, 1 - schedule.sigma(1.0))) < 1e-7


@pytest.mark.parametrize("schedule", RATES, ids=str)
@pytest.mark.parametrize(
    "settings, claim",
    [
        ({"kind": "data", "order": 1}, 1),
        (EULER, 1),
        ({"kind": "data", "order": 2, "variable": "t"}, 2),
        ({"kind": "data", "order": 2, "variable": "log_snr"}, 2),
        ({"kind": "data", "order": 2, "variable": "log_snr", "rule": "half"}, 2),
        ({"kind": "velocity", "order": 2, "variable": "t"}, 2),
    ],
    ids=lambda value: str(value).strip("{}").replace("'", ""),
)
def test_orders_on_moving_targets(schedule, settings: dict, claim: int) -> None:
    path, x = GeodesicPath(schedule), near()
    truth = exact(schedule, START, STOP)
    errors = [
        gap(run(settings, path, moving(path), x, grid(steps)), truth) for steps in (60, 120, 240)
    ]
    assert errors[-1] < (0.05 if claim == 1 else 5e-4)
    assert claim - 0.15 < order_of(errors) < claim + 0.5


def test_one_step_methods_have_order_two_on_rotations() -> None:
    schedule = Exponential(3.0)
    path, x, truth = GeodesicPath(schedule), near(), exact(schedule, START, STOP)
    for method, kind in (("midpoint", "velocity"), ("heun", "velocity"), ("exponential_2", "data")):
        errors = []
        for steps in (80, 160, 320):
            sampler = OneStep(steps=steps, method=method, kind=kind)
            end = sampler(moving(path), start=x, times=grid(steps // 2)).state
            errors.append(gap(end, truth))
        assert errors[-1] < 1e-4 and 1.85 < order_of(errors) < 2.5


@pytest.mark.parametrize("order", [1, 2])
def test_order_of_a_left_invariant_equation(order: int) -> None:
    """R' = R skew(w(t)) with w on a cone has the solution exp(a e_z t) exp((w - a e_z) t)."""
    rate, tilt = 5.0, torch.tensor([1.2, 0.0, 0.8], dtype=torch.float64)
    pole = torch.tensor([0.0, 0.0, rate], dtype=torch.float64)

    def velocity(x: Tensor, t: Tensor, condition) -> Tensor:
        turned = quat.rotate(quat.exp(-pole * t[:, None]), tilt)
        return turned[:, None, :].expand(*x.shape[:-1], 3)

    def solution(t: float) -> Tensor:
        return quat.multiply(quat.exp((tilt + pole) * t), quat.exp(-pole * t))

    # exp((w + p) t) exp(-p t) has the body velocity Ad(exp(p t)) (w + p) - p = exp(p t) w.
    path = GeodesicPath()
    denoiser = Denoiser(
        lambda x, t, condition: velocity(x, -t, condition), path, predicts="velocity"
    )
    x = points()
    errors = []
    for steps in (40, 80, 160):
        settings = {"kind": "velocity", "order": order, "variable": "t"}
        end = run(settings, path, denoiser, x, grid(steps, 0.0, 0.9))
        errors.append(gap(end, quat.multiply(x, solution(0.9))))
    assert order - 0.15 < order_of(errors) < order + 0.5


def test_small_rotations_move_like_points_of_a_line() -> None:
    """Tiny angles: the sampler of rotations is the linear sampler with the same settings."""
    size = 1e-6
    turns = torch.tensor([[0.3, -0.2, 0.9], [1.0, 0.5, -0.4]], dtype=torch.float64)[:, None]

    def curve(t: Tensor) -> Tensor:
        return torch.stack([torch.sin(3 * t), t**2, torch.cos(2 * t)], -1)[:, None, :]

    flat = Denoiser(lambda x, t, condition: curve(t), GaussianPath(CondOT()))
    path = GeodesicPath()
    curved = Denoiser(lambda x, t, condition: quat.exp(size * curve(t)), path)
    for variable in ("t", "log_snr", "S"):
        for rule in ("exact", "half"):
            for final in (None, "data"):
                times = np.array([0.0, 0.1, 0.3, 0.45, 0.7, 0.9])
                sampler = Multistep(
                    steps=5 + (final is not None),
                    order=2,
                    variable=variable,
                    rule=rule,
                    final=final,
                )
                line = sampler(flat, start=turns, times=times).state
                point = sampler(curved, start=quat.exp(size * turns), times=times).state
                assert torch.allclose(quat.log(point) / size, line, atol=1e-8)


def test_the_last_step_to_data_keeps_its_order() -> None:
    """At t = 1 the linear rate leaves only the prediction, which order 2 extrapolates."""
    path, x = GeodesicPath(), near()
    for order in (1, 2):
        settings = {"kind": "data", "order": order, "variable": "t"}
        errors = [
            gap(run(settings, path, moving(path), x, grid(n, 0.05, 1.0)), target(1.0))
            for n in (40, 80, 160)
        ]
        assert order - 0.15 < order_of(errors) < order + 0.5
    lowered = {"kind": "data", "order": 2, "variable": "t", "lower_final": True}
    end = run(lowered, path, moving(path), x, grid(20, 0.05, 1.0))
    assert gap(end, target(1 - 0.95 / 20)) < 1e-7


def test_a_leaf_may_be_sampled_at_another_rate_than_it_was_trained() -> None:
    trained, x, times = GeodesicPath(), near(), grid(12)
    wanted = GeodesicPath(Exponential(10.0))
    for kind in ("data", "velocity"):
        override = Multistep(
            steps=12, kind=kind, variable="t", leaves={"state": {"rate": Exponential(10.0)}}
        )
        plain = Multistep(steps=12, kind=kind, variable="t")
        found = override(moving(trained), start=x, times=times).state
        assert gap(found, plain(moving(wanted), start=x, times=times).state) < 1e-7
        # A network of velocities tells the data by its own rate.
        predicted = Denoiser(
            lambda state, t, condition: trained.convert(
                target(t).expand_as(state), "data", "velocity", state, t
            ),
            trained,
            predicts="velocity",
        )
        assert gap(override(predicted, start=x, times=times).state, found) < 1e-7
    named = Multistep(steps=4, kind="data", leaves={"state": {"rate": "exponential"}})
    assert gap(named(moving(trained), start=x, times=grid(4)).state, x) > 0.1


def test_settings_may_differ_by_step_and_by_item() -> None:
    path, x, times = GeodesicPath(), near(2), grid(4)
    mixed = Multistep(steps=4, kind=("data", "data", "velocity", "data"), order=2, variable="t")
    assert torch.isfinite(mixed(moving(path), start=x, times=times).state).all()
    rows = np.stack([times, 0.9 * times + 0.02], 1)
    for kind in ("data", "velocity"):
        sampler = Multistep(steps=4, kind=kind, variable="t")
        both = sampler(moving(path), start=x, times=rows).state
        for row in range(2):
            alone = sampler(moving(path), start=x[row : row + 1], times=rows[:, row]).state
            assert gap(both[row : row + 1], alone) < 1e-7


def test_uneven_steps_lower_the_order_when_asked() -> None:
    path, x = GeodesicPath(), near()
    times = np.array([0.1, 0.11, 0.5])
    limited = run({"order": 2, "variable": "t", "max_ratio": 3.0}, path, moving(path), x, times)
    first = run({"order": 1, "variable": "t"}, path, moving(path), x, times)
    second = run({"order": 2, "variable": "t"}, path, moving(path), x, times)
    assert torch.equal(limited, first) and gap(second, first) > 1e-3


def test_far_targets_do_not_mix_two_ways_around() -> None:
    """Data almost opposite to the state: small changes across the cut must not cancel the step."""
    path = GeodesicPath()
    axis = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)
    x = quat.exp(0 * axis)[None, None]

    def flicker(state: Tensor, t: Tensor, condition) -> Tensor:
        side = torch.where(t < 0.05, 1e-3, -1e-3)
        return quat.exp((math.pi + side)[:, None, None] * axis)

    end = run({"order": 2, "variable": "t"}, path, Denoiser(flicker, path), x, grid(2, 0.0, 0.2))
    assert math.isclose(float(quat.angle(x, end)), 0.2 * math.pi, rel_tol=0.02)


def test_masked_nodes_keep_the_identity_and_gradients_flow() -> None:
    path = GeodesicPath()
    mask = torch.tensor([[True, False]])
    shift = torch.tensor([0.2, 0.1, -0.3], dtype=torch.float64, requires_grad=True)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        out = quat.multiply(x, quat.exp(shift)).clone()
        out[:, 1] = math.nan
        return out

    denoiser = Denoiser(network, path, mask="mask")
    sampler = Multistep(steps=4, order=2, variable="t", grid="uniform_time", final="data")
    like = torch.zeros(1, 2, 4, dtype=torch.float64)
    state = sampler(denoiser, like=like, condition={"mask": mask}, seed=3).state
    assert state[0, 1].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert math.isclose(float(state[0, 0].detach().norm()), 1.0, rel_tol=1e-12)

    def loss() -> Tensor:
        end = sampler(denoiser, like=like, condition={"mask": mask}, seed=3).state
        return end[0, 0, 1] + 2 * end[0, 0, 3]

    (slope,) = torch.autograd.grad(loss(), shift)
    for place in range(3):
        with torch.no_grad():
            values = []
            for sign in (1, -1):
                shift[place] += sign * 1e-6
                values.append(float(loss()))
                shift[place] -= sign * 1e-6
        assert math.isclose(float(slope[place]), (values[0] - values[1]) / 2e-6, rel_tol=1e-5)


def test_follow_applies_rows_of_a_tableau() -> None:
    x, first, second = points(seed=1), points(seed=2), points(seed=3)
    v, w = SPACE.log(x, first), SPACE.log(x, second)
    half = follow(SPACE, "velocity", x, (0.5, 0.25), (v, w))
    assert gap(half, SPACE.exp(x, 0.5 * v + 0.25 * w)) < 1e-12
    assert gap(follow(SPACE, "data", x, (0.3,), (first,)), quat.interpolate(x, first, 0.3)) < 1e-7
    share = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64)
    each = follow(SPACE, "data", x, (share, -share / 4), (first, second))
    for row in range(6):
        weights = (float(share[row]), -float(share[row]) / 4)
        alone = follow(SPACE, "data", x[row], weights, (first[row], second[row]))
        assert gap(each[row], alone) < 1e-12


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"kind": "angular"}, ["kind='angular'", "'kind': 'data'"]),
        ({"order": 3}, ["order=3", "'order': 2"]),
        ({"corrector": 2}, ["corrector=2", "'corrector': 0"]),
        ({"stochasticity": 1.0}, ["stochasticity=1.0", "'stochasticity': 0.0"]),
        ({"compensation": 0.9}, ["compensation=0.9", "'compensation': None"]),
        (
            {"kind": "difference", "order": (1, 2, 3, 4), "corrector": 1},
            ["order=3", "{'kind': 'data', 'order': 2, 'corrector': 0}"],
        ),
    ],
)
def test_what_rotations_cannot_follow_is_said_with_the_way_out(settings: dict, words) -> None:
    paths = {"x": GaussianPath(CondOT()), "turns": GeodesicPath()}
    with pytest.raises(ValueError) as caught:
        Multistep(steps=4, grid="uniform_time", **settings).plan(paths)
    for word in ["leaf 'turns'", "leaves={'turns'", *words]:
        assert word in str(caught.value)


def test_unknown_rates_are_refused() -> None:
    sampler = Multistep(steps=4, leaves={"state": {"rate": "linea"}}, grid="uniform_time")
    with pytest.raises(ValueError, match="did you mean 'linear'"):
        sampler.plan(GeodesicPath())


def test_published_euler_steps_are_reproduced(shared: Path) -> None:
    """The Euler step of the protein flow is the velocity kind at order 1, for both rates."""
    stored = np.load(shared / "reference" / "reqflow_quaternion.npz")
    angle = torch.from_numpy(stored["relative_angle"])
    clear = math.pi - angle > 1e-5
    x, data = (torch.from_numpy(stored[name])[clear][:, None] for name in ("quat0", "quat1"))
    for row, (t, step) in enumerate(stored["euler_t_dt"]):
        for name, schedule in (("linear", CondOT()), ("exp", Exponential(10.0))):
            path = GeodesicPath(schedule)
            denoiser = Denoiser(lambda state, time, condition: data, path)
            share = step / (1 - t) if name == "linear" else 10 * step
            if share > 1:
                continue
            end = run(EULER, path, denoiser, x, np.array([t, t + step]))
            published = torch.from_numpy(stored[f"euler_quat_{name}"][row])[clear][:, None]
            assert float((1 - (end * published).sum(-1).abs()).max()) < 1e-13
