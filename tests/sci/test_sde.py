"""Equations on physical time: closed forms, orders, drivers, errors."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.schedules import VE, VP, Cosine
from sci.sde import Brownian, Steps, forward, simulate
from sci.spaces import Symmetric


def test_ordinary_equation_converges_with_order_one_on_grids_per_series() -> None:
    start = torch.tensor([[1.0], [2.0]], dtype=torch.float64)
    times = np.array([[0.0, 0.5, 2.0], [1.0, 1.1, 1.3]])
    exact = start[:, None, :] * torch.from_numpy(np.exp(-(times - times[:, :1])))[:, :, None]
    errors = []
    for substeps in (50, 100):
        out = simulate(lambda x, time: -x, None, start, times, substeps=substeps)
        assert out.shape == (2, 3, 1)
        errors.append(float((out - exact).abs().max()))
    assert 1.9 < errors[0] / errors[1] < 2.1 and errors[1] < 5e-3


def test_time_reaches_the_drift() -> None:
    start = torch.zeros(2, 1, dtype=torch.float64)
    times = np.array([[0.0, 1.0], [1.0, 2.0]])
    out = simulate(lambda x, time: time[:, None], None, start, times, substeps=200)
    assert torch.allclose(out[:, -1, 0], torch.tensor([0.5, 1.5]).double(), atol=5e-3)


def test_ornstein_uhlenbeck_moments() -> None:
    count, rate, spread = 8000, 1.5, 0.8
    start = torch.full((count, 1), 2.0, dtype=torch.float64)
    noise = Noise(0, range(count))
    times = np.linspace(0, 1.2, 5)
    out = simulate(lambda x, time: -rate * x, spread, start, times, noise, substeps=40)[:, :, 0]
    for frame, time in enumerate(times):
        mean = 2 * math.exp(-rate * time)
        variance = spread**2 / (2 * rate) * (1 - math.exp(-2 * rate * time))
        assert abs(float(out[:, frame].mean()) - mean) < 0.03
        assert abs(float(out[:, frame].var()) - variance) < 0.01


def test_strong_order_on_one_brownian_path() -> None:
    """dx = a x dt + b x dW has the solution exp((a - b^2 / 2) t + b W); order 1/2."""
    rate, spread, count = 0.5, 0.7, 400
    start = torch.ones(count, 1, dtype=torch.float64)
    path = Brownian(Noise(1, range(count)), 0.0, 1.0, depth=12)
    zero, one = torch.zeros(count, dtype=torch.float64), torch.ones(count, dtype=torch.float64)
    final = path.increment("state", 0, zero, one, start)
    exact = torch.exp(torch.tensor(rate - spread**2 / 2) + spread * final)
    errors = []
    for steps in (8, 32, 128):
        out = simulate(
            lambda x, time: rate * x,
            lambda x, time: spread * x,
            start,
            np.linspace(0, 1, steps + 1),
            path,
        )
        errors.append(float((out[:, -1] - exact).abs().mean()))
    slope = -np.polyfit(np.log([8, 32, 128]), np.log(errors), 1)[0]
    assert 0.4 < slope < 0.65, errors


def test_brownian_paths_do_not_depend_on_the_grid_and_have_the_right_law() -> None:
    count = 6000
    noise, like = Noise(2, range(count)), torch.zeros(count, 1, dtype=torch.float64)

    def visit(times) -> torch.Tensor:
        path = Brownian(noise, 0.0, 2.0, depth=10)
        stops = torch.tensor(times, dtype=torch.float64)[:, None].expand(-1, count)
        steps = [
            path.increment("x", k, stops[k], stops[k + 1], like) for k in range(len(times) - 1)
        ]
        return torch.cat(steps, 1)

    fine = visit([0.0, 0.25, 0.5, 1.0, 1.75, 2.0])
    coarse = visit([0.0, 1.0, 2.0])
    assert torch.allclose(fine[:, :3].sum(1), coarse[:, 0], atol=1e-6)
    assert torch.allclose(fine[:, 3:].sum(1), coarse[:, 1], atol=1e-6)
    covariance = torch.cov(fine.T)
    assert torch.allclose(
        covariance, torch.diag(torch.tensor([0.25, 0.25, 0.5, 0.75, 0.25]).double()), atol=0.04
    )


def test_brownian_paths_refuse_what_they_cannot_address() -> None:
    path, like = Brownian(Noise(0, [0, 1]), 0.0, 1.0, depth=4), torch.zeros(2, 1)
    half = torch.tensor([0.5, 0.5])
    with pytest.raises(ValueError, match="more depth"):
        path.increment("x", 0, half, half + 1e-3, like)
    with pytest.raises(ValueError, match="outside"):
        path.increment("x", 0, half, half + 1, like)
    with pytest.raises(ValueError, match="one grid"):
        path.increment("x", 0, torch.tensor([0.0, 0.1]), half, like)
    with pytest.raises(ValueError, match="start < stop"):
        Brownian(Noise(0, [0]), 1.0, 1.0)
    with pytest.raises(ValueError, match="depth"):
        Brownian(Noise(0, [0]), 0.0, 1.0, depth=40)


@pytest.mark.parametrize("schedule", [VP(0.1, 5.0), VE(0.1, 2.0), Cosine()], ids=str)
def test_noising_equation_has_the_marginals_of_its_path(schedule) -> None:
    count, last = 6000, 0.9
    drift, diffusion = forward(GaussianPath(schedule))
    data = torch.full((count, 1), 1.5, dtype=torch.float64)
    # VE does not start from zero noise: its path has sigma_min at the data.
    begin = data + schedule.sigma(1.0) * Noise(9, range(count)).normal(1, "b", 0).double()
    out = simulate(
        drift, diffusion, begin, [1e-9, 0.5, last], Noise(0, range(count)), substeps=150
    )[:, :, 0]
    for frame, s in ((1, 0.5), (2, last)):
        assert abs(float(out[:, frame].mean()) - 1.5 * schedule.alpha(1 - s)) < 0.06
        assert abs(float(out[:, frame].std()) / schedule.sigma(1 - s) - 1) < 0.04
    with pytest.raises(ValueError, match="no noising equation"):
        forward(Interpolant())


def test_trees_and_spaces() -> None:
    mask = torch.tensor([[True, True, False], [True, True, True]])
    start = {"nodes": torch.zeros(2, 3, 1), "edges": torch.zeros(2, 3, 3)}
    driver = Steps(Noise(0, range(2)), {"edges": Symmetric()}, mask)
    out = simulate(
        lambda state, time: {name: -leaf for name, leaf in state.items()},
        lambda state, time: {name: torch.ones_like(leaf) for name, leaf in state.items()},
        start,
        [0.0, 0.5, 1.0],
        driver,
    )
    assert out["nodes"].shape == (2, 3, 3, 1) and out["edges"].shape == (2, 3, 3, 3)
    assert torch.equal(out["edges"], out["edges"].transpose(2, 3))
    assert out["edges"][0, :, 2].abs().sum() == 0 and out["nodes"][0, :, 2].abs().sum() == 0
    alone = simulate(
        lambda state, time: {name: -leaf for name, leaf in state.items()},
        1.0,
        {name: leaf[1:] for name, leaf in start.items()},
        [0.0, 0.5, 1.0],
        Steps(Noise(0, [1]), {"edges": Symmetric()}, mask[1:]),
    )
    assert torch.equal(alone["edges"], out["edges"][1:])


def test_gradients_reach_drift_and_diffusion() -> None:
    noise, start = Noise(0, range(3)), torch.ones(3, 1, dtype=torch.float64)

    def outcome(rate, spread):
        return simulate(
            lambda x, t: -rate * x, lambda x, t: spread * x, start, np.linspace(0, 1, 6), noise
        ).sum()

    rate = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    spread = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    slopes = torch.autograd.grad(outcome(rate, spread), (rate, spread))
    with torch.no_grad():
        for place in range(2):
            ahead, behind = [rate.clone(), spread.clone()], [rate.clone(), spread.clone()]
            ahead[place] += 1e-6
            behind[place] -= 1e-6
            expected = (outcome(*ahead) - outcome(*behind)) / 2e-6
            assert torch.allclose(slopes[place], expected, rtol=1e-6)


def test_mistakes_are_named() -> None:
    x = torch.ones(2, 1)

    def still(x, time):
        return 0 * x

    with pytest.raises(ValueError, match="increase"):
        simulate(still, None, x, [0.0, 0.0])
    with pytest.raises(ValueError, match=r"\(2, T\)"):
        simulate(still, None, x, np.zeros((3, 4)))
    with pytest.raises(ValueError, match="needs `noise`"):
        simulate(still, 1.0, x, [0.0, 1.0])
    with pytest.raises(ValueError, match="substeps"):
        simulate(still, None, x, [0.0, 1.0], substeps=0)
    with pytest.raises(FloatingPointError, match=r"item 8 \(row 1\) is not finite at time 0.5"):
        simulate(
            lambda x, t: torch.where(torch.tensor([[False], [True]]), x / 0.0, x),
            0.1,
            x,
            [0.0, 0.5, 1.0],
            Noise(0, [7, 8]),
        )
