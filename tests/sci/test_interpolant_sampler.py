"""Flows with tunable diffusion: exact laws of Gaussians, orders, the flow as a special case."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import MEAN, STD, column, exact_flow, gaussian, points, run
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser, Joined
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.samplers import grids
from sci.samplers.interpolant import TunableDiffusion
from sci.schedules import VE, VP, CondOT, Cosine

SOURCE, DATA = (-0.4, 1.3), (0.9, 0.5)  # means and standard deviations of two populations
SPAN = (0.1, 0.8)


class Impulses:
    """Noise that is 1 for one item at one draw: the law of a linear sampler, without sampling."""

    def __init__(self, draws: int):
        self.items, self.draws = torch.arange(draws * 100), draws

    def draw(self, space, leaf, step: int, like: Tensor, mask=None, draw: int = 0) -> Tensor:
        out = torch.zeros_like(like)
        # The first two items get none: they show the map of the state.
        row = 2 + self.draws * step + draw
        if row < len(out):
            out[row] = 1.0
        return out


def law(sampler: TunableDiffusion, denoiser, mean: float, variance: float) -> tuple[float, float]:
    """Mean and variance at the end of a sampler that is linear in the state and in the noise."""
    impulses = Impulses(2)
    count = 2 + 2 * sampler.steps
    impulses.items = torch.arange(count)
    start = torch.zeros(count, 1, dtype=torch.float64)
    start[1] = 1.0
    with torch.no_grad():
        out = sampler(denoiser, start=start, noise=impulses).state.squeeze(1)
    slope = float(out[1] - out[0])
    kicks = out[2:] - out[0]
    return float(out[0]) + slope * mean, slope**2 * variance + float((kicks**2).sum())


def bridge(noise: float) -> tuple[Joined, Interpolant]:
    """The exact velocity and score between two independent Gaussian populations."""
    path = Interpolant(noise=noise, span=SPAN)

    def network(x: Tensor, t: Tensor, condition) -> dict[str, Tensor]:
        time = column(t, x)
        middle = time * DATA[0] + (1 - time) * SOURCE[0]
        spread = time**2 * DATA[1] ** 2 + (1 - time) ** 2 * SOURCE[1] ** 2
        spread = spread + 2 * noise**2 * time * (1 - time)
        growth = 2 * time * DATA[1] ** 2 - 2 * (1 - time) * SOURCE[1] ** 2
        growth = growth + 2 * noise**2 * (1 - 2 * time)
        velocity = DATA[0] - SOURCE[0] + 0.5 * growth / spread * (x - middle)
        return {"velocity": velocity, "score": -(x - middle) / spread}

    return Joined(network, path), path


def between(noise: float, t: float) -> tuple[float, float]:
    variance = t**2 * DATA[1] ** 2 + (1 - t) ** 2 * SOURCE[1] ** 2 + 2 * noise**2 * t * (1 - t)
    return t * DATA[0] + (1 - t) * SOURCE[0], variance


def order_of(errors: list[float], counts: tuple[int, ...]) -> float:
    return -np.polyfit(np.log(counts), np.log(errors), 1)[0]


DIFFUSIONS = [0.0, 0.7, 1.5, lambda t: 2 * t * (1 - t), "noise"]


@pytest.mark.parametrize("diffusion", DIFFUSIONS, ids=["0", "0.7", "1.5", "bump", "noise"])
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_moments_between_two_gaussians_for_any_diffusion(diffusion, method, order) -> None:
    denoiser, _ = bridge(0.6)
    start, stop = between(0.6, SPAN[0]), between(0.6, SPAN[1])
    counts = (40, 80, 160)
    errors = []
    for steps in counts:
        found = law(TunableDiffusion(steps, diffusion, method), denoiser, *start)
        errors.append(sum(abs(a - b) for a, b in zip(found, stop, strict=True)))
    assert errors[-1] < (0.01 if order == 1 else 5e-4), errors
    assert order_of(errors, counts) > order - 0.15, errors


@pytest.mark.parametrize("diffusion", [0.0, 0.5, "noise", "reverse"])
@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VP(0.1, 5.0)], ids=str)
@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("heun", 2), ("midpoint", 2)])
def test_moments_on_gaussian_paths(diffusion, schedule, method, order) -> None:
    denoiser = gaussian(schedule)

    def at(t: float) -> tuple[float, float]:
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        return alpha * MEAN, (alpha * STD) ** 2 + sigma**2

    counts = (80, 160, 320)
    errors = []
    for steps in counts:
        sampler = TunableDiffusion(steps, diffusion, method, grids.uniform_time(0.2, 0.8))
        found = law(sampler, denoiser, *at(0.2))
        errors.append(sum(abs(a - b) for a, b in zip(found, at(0.8), strict=True)))
    assert errors[-1] < (0.01 if order == 1 else 3e-5), errors
    assert order_of(errors, counts) > order - 0.15, errors


def test_real_noise_has_the_moments_too() -> None:
    denoiser, _ = bridge(0.6)
    mean, variance = between(0.6, SPAN[0])
    count = 40000
    generator = torch.Generator().manual_seed(0)
    start = mean + variance**0.5 * torch.randn(count, 1, generator=generator, dtype=torch.float64)
    out = run(TunableDiffusion(60, 1.0, "heun"), denoiser, start, seed=3)
    mean, variance = between(0.6, SPAN[1])
    assert abs(float(out.mean()) - mean) < 4 * (variance / count) ** 0.5
    assert abs(float(out.var()) / variance - 1) < 4 * (2 / count) ** 0.5


def test_without_diffusion_it_is_the_flow() -> None:
    schedule = CondOT()
    denoiser, x, grid = gaussian(schedule), points(), grids.uniform_time(0.1, 0.9)
    euler = run(samplers.euler(12, grid=grid), denoiser, x)
    ours = run(TunableDiffusion(12, 0.0, grid=grid), denoiser, x)
    assert torch.allclose(ours, euler, atol=1e-13)
    exact = exact_flow(schedule, x, 0.1, 0.9)
    for method in ("heun", "midpoint"):
        errors = [
            float((run(TunableDiffusion(n, 0.0, method, grid), denoiser, x) - exact).abs().max())
            for n in (40, 80, 160)
        ]
        assert order_of(errors, (40, 80, 160)) > 1.9


def test_reverse_diffusion_is_the_reverse_sde() -> None:
    # dx = (f x - g^2 score) ds backwards in s = 1 - t, with f = -beta / 2 and g^2 = beta.
    schedule, t = VP(0.1, 5.0), 0.4
    denoiser, x = gaussian(schedule), points()
    beta = 0.1 + (1 - t) * 4.9
    score = denoiser(x, t, to="score")
    drift = 0.5 * beta * x + beta * score
    sampler = TunableDiffusion(1, "reverse", grid=[t, t + 0.01])
    impulses = Impulses(2)
    impulses.items = torch.arange(len(x))
    out = sampler(denoiser, start=x, noise=impulses).state
    assert torch.allclose(out[0], x[0] + 0.01 * drift[0], atol=1e-12)
    noise = float(out[2] - x[2] - 0.01 * drift[2])
    later = 0.1 + (1 - t - 0.01) * 4.9
    assert abs(noise**2 - 0.01 * 0.5 * (beta + later)) < 1e-12


def test_an_odd_evaluation_is_an_euler_step() -> None:
    denoiser, x = gaussian(Cosine()), points()
    sampler = TunableDiffusion(5, 0.0, "heun", grids.uniform_time(0.1, 0.9))
    assert sampler.transitions == ["heun", "heun", "euler"]
    samples = sampler(denoiser, start=x)
    assert samples.nfe == 5 and len(samples.times) == 5
    times = [0.1, 0.1 + 0.8 / 3, 0.1 + 1.6 / 3]
    middle = run(TunableDiffusion(4, 0.0, "heun", times), denoiser, x)
    last = run(TunableDiffusion(1, 0.0, grid=[times[2], 0.9]), denoiser, middle)
    assert torch.allclose(samples.state, last, atol=1e-12)


def test_leaves_have_their_own_diffusion_and_items_their_own_times() -> None:
    alone = gaussian(Cosine())
    both = Denoiser(
        lambda x, t, c: {name: alone.network(x[name], t, c) for name in x},
        {"a": GaussianPath(Cosine()), "b": GaussianPath(Cosine())},
    )
    grid = grids.uniform_time(0.1, 0.9)
    sampler = TunableDiffusion(10, {"b": 0.7}, grid=grid)
    out = run(sampler, both, {"a": points(), "b": points()})
    assert torch.allclose(out["a"], run(TunableDiffusion(10, 0.0, grid=grid), alone, points()))
    assert not torch.allclose(out["a"], out["b"])
    shared = TunableDiffusion(10, 0.7, "midpoint", grid)
    times = np.repeat(np.linspace(0.1, 0.9, 6)[:, None], 8, 1)
    one, two = run(shared, alone, points()), run(shared, alone, points(), times=times)
    assert torch.allclose(one, two, atol=1e-12)
    with pytest.raises(ValueError, match="unknown leaf 'c'"):
        TunableDiffusion(4, {"c": 1.0}).plan(both.paths)


def test_the_noise_of_an_item_does_not_depend_on_its_batch() -> None:
    denoiser = gaussian(CondOT())
    sampler = TunableDiffusion(9, 1.0, "heun", grids.uniform_time(0.1, 0.9))
    whole = run(sampler, denoiser, points(), noise=Noise(0, range(8)))
    part = run(sampler, denoiser, points()[3:5], noise=Noise(0, [3, 4]))
    assert torch.allclose(whole[3:5], part, atol=1e-14)


def test_gradients_flow() -> None:
    denoiser, _ = bridge(0.5)
    x = points().requires_grad_()
    out = TunableDiffusion(6, 0.8, "heun")(denoiser, start=x, seed=1).state
    (slope,) = torch.autograd.grad(out.sum(), x)
    assert (slope > 0).all()


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(ValueError, match="did you mean 'heun'"):
        TunableDiffusion(4, method="huen")
    with pytest.raises(ValueError, match="did you mean 'reverse'"):
        TunableDiffusion(4, "revers")
    for diffusion in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="not negative"):
            TunableDiffusion(4, diffusion)
    with pytest.raises(ValueError, match="expected >= 0"):
        TunableDiffusion(4, lambda t: t - 0.5).plan(GaussianPath(Cosine()))
    with pytest.raises(ValueError, match="score, or diffusion=0"):
        TunableDiffusion(4, 1.0).plan(Interpolant())
    TunableDiffusion(4, 0.0).plan(Interpolant())
    with pytest.raises(ValueError, match="not finite at t = 0"):
        TunableDiffusion(4, "reverse").plan(GaussianPath(CondOT()))
    with pytest.raises(ValueError, match="Gaussian paths only"):
        TunableDiffusion(4, "reverse").plan(Interpolant(noise=0.1))
    with pytest.raises(ValueError, match="not finite"):
        TunableDiffusion(4, 1.0, "heun").plan(GaussianPath(CondOT()))
    TunableDiffusion(4, "noise", "heun").plan(GaussianPath(CondOT()))
    velocity = Denoiser(lambda x, t, c: x, Interpolant(noise=0.5), "velocity")
    with pytest.raises(ValueError, match=r"sci\.Joined"):
        TunableDiffusion(4, 1.0)(velocity, like=points())
    assert torch.isfinite(run(TunableDiffusion(4, 0.0), velocity, points())).all()
    with pytest.raises(ValueError, match="expected 3 times, got 5"):
        TunableDiffusion(4, 0.0, "heun").plan(GaussianPath(VE(0.1, 1.0)), [0.1, 0.2, 0.3, 0.4, 0.5])
