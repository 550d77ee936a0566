"""PFGM++: the noise law, its flow, and its Gaussian limit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import gaussian, points, run
from scipy import stats
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser, Rescheduled
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.paths.heavy_tailed import HeavyTailedPath
from sci.samplers import grids
from sci.schedules import EDM, VE, CondOT, Cosine
from sci.spaces import Centred, Euclidean, Space, Symmetric

COUNT = 6000


def squared_radius(dimensions: float, freedom: float):
    """R^2 for sigma = 1: D b / (1 - b) with b ~ Beta(N / 2, D / 2), as a frozen law."""
    return stats.betaprime(freedom / 2, dimensions / 2, scale=dimensions)


def shape_of(space: Space) -> tuple[int, ...]:
    return (COUNT, 4, 4) if isinstance(space, Symmetric) else (COUNT, 4, 3)


@pytest.mark.parametrize("space", [Euclidean(), Symmetric(), Centred()], ids=str)
@pytest.mark.parametrize("dimensions", [1.0, 3.5, 128.0])
def test_radius_and_direction_follow_their_laws(space: Space, dimensions: float) -> None:
    path = HeavyTailedPath(VE(0.1, 7.0), dimensions, space)
    like = torch.zeros(shape_of(space), dtype=torch.float64)
    mask = torch.tensor([[True, True, True, False]]).repeat(COUNT, 1)
    freedom = float(space.dimension(like, mask)[0])
    assert freedom == {"Euclidean": 9, "Symmetric": 3, "Centred": 6}[type(space).__name__]
    trained = path.random(like, mask, torch.Generator().manual_seed(0))
    start = path.source(Noise(0, range(COUNT)), "x", like, mask) / 7.0
    for noise in (trained, start):
        assert torch.allclose(space.project(noise, mask), noise, atol=1e-6 * noise.abs().max())
        radius = space.inner(noise, noise, mask)
        law = squared_radius(dimensions, freedom)
        assert stats.kstest(radius.numpy(), law.cdf).pvalue > 1e-3
        # The direction is that of a normal: the share of one coordinate has a beta law.
        if isinstance(space, Euclidean):
            share = (noise[:, 0, 0] ** 2 / radius).numpy()
            assert stats.kstest(share, stats.beta(0.5, (freedom - 1) / 2).cdf).pvalue > 1e-3
            correlation = np.corrcoef(np.abs(share), np.log(radius.numpy()))[0, 1]
            assert abs(correlation) < 4 / COUNT**0.5


def test_many_dimensions_are_gaussian() -> None:
    like, generator = torch.zeros(500, 5, dtype=torch.float64), torch.Generator()
    normal = GaussianPath(EDM()).random(like, None, generator.manual_seed(3))
    infinite = HeavyTailedPath(EDM(), float("inf")).random(like, None, generator.manual_seed(3))
    assert torch.equal(normal, infinite)
    large = HeavyTailedPath(EDM(), 1e8).random(like, None, generator.manual_seed(3))
    assert torch.allclose(large, normal, rtol=1e-3)
    noise = Noise(0, range(500))
    assert torch.equal(
        HeavyTailedPath(EDM(), float("inf")).source(noise, "x", like),
        GaussianPath(EDM()).source(noise, "x", like),
    )
    assert torch.allclose(
        HeavyTailedPath(EDM(), 1e8).source(noise, "x", like),
        GaussianPath(EDM()).source(noise, "x", like),
        rtol=1e-3,
    )


def test_sources_do_not_depend_on_padding_or_batch_mates() -> None:
    path = HeavyTailedPath(EDM(), 2.0, Symmetric())
    small = path.source(Noise(4, [7]), "edges", torch.zeros(1, 3, 3))
    mask = torch.tensor([[True] * 5, [True, True, True, False, False]])
    large = path.source(Noise(4, [1, 7]), "edges", torch.zeros(2, 5, 5), mask)
    assert torch.equal(large[1, :3, :3], small[0]) and large[1, 3:].abs().sum() == 0


def point_mass(path: HeavyTailedPath) -> Denoiser:
    return Denoiser(lambda x, t, c: torch.full_like(x, 0.7), path)


@pytest.mark.parametrize("schedule", [VE(0.01, 20.0), CondOT(), Cosine()], ids=str)
def test_the_flow_of_a_point_mass_keeps_the_law(schedule) -> None:
    path = HeavyTailedPath(schedule, 3.0)
    like = torch.zeros(64, 2, dtype=torch.float64)
    start = path.source(Noise(0, range(64)), "state", like)
    with torch.no_grad():
        grid = grids.uniform_log_snr(None, 0.9)
        out = samplers.dpmpp_2m(40, grid=grid)(point_mass(path), like=like, seed=0).state
    first = grid(path, 40)[0]
    # (x - alpha data) / sigma is constant along the flow.
    before = (start - schedule.alpha(first) * 0.7) / schedule.sigma(first)
    after = (out - schedule.alpha(0.9) * 0.7) / schedule.sigma(0.9)
    assert torch.allclose(before, after, rtol=1e-8, atol=1e-8)


def two_points(path: HeavyTailedPath, shares: tuple[float, float], dimension: int) -> Denoiser:
    """The exact denoiser of two points: Student densities in place of Gaussian ones."""
    ends = torch.tensor([-1.0, 1.0], dtype=torch.float64)[:, None].repeat(1, dimension)
    weights = torch.tensor(shares, dtype=torch.float64).log()

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha = path.schedule.alpha(t)[:, None, None]
        ratio = path.schedule.sigma(t)[:, None] ** 2 * path.dimensions
        gap = ((x[:, None] - alpha * ends) ** 2).sum(-1)
        power = -0.5 * (dimension + path.dimensions)
        return torch.softmax(weights + power * torch.log(gap + ratio), 1) @ ends

    return Denoiser(network, path)


@pytest.mark.parametrize("dimensions", [1.0, 4.0])
@pytest.mark.parametrize("dimension", [1, 3])
def test_the_flow_of_two_points_keeps_the_law(dimension: int, dimensions: float) -> None:
    path = HeavyTailedPath(VE(0.02, 200.0), dimensions)
    denoiser = two_points(path, (0.3, 0.7), dimension)
    like = torch.zeros(2000, dimension, dtype=torch.float64)
    for stop in (0.75, 1.0):
        sampler = samplers.abm(3, 80, grid=grids.uniform_log_snr(0.0, stop))
        with torch.no_grad():
            out = sampler(denoiser, like=like, seed=1).state
        # The law at that time: one of the two points, and noise of the path.
        generator = torch.Generator().manual_seed(5)
        sign = (torch.rand(20000, 1, generator=generator) < 0.7).double() * 2 - 1
        many = torch.zeros(20000, dimension, dtype=torch.float64)
        sigma = path.schedule.sigma(stop)
        expected = sign + sigma * path.random(many, None, generator)
        assert stats.ks_2samp(out[:, 0].numpy(), expected[:, 0].numpy()).pvalue > 1e-3
        assert stats.ks_2samp(
            out.norm(dim=1).numpy(), expected.norm(dim=1).numpy()
        ).pvalue > 1e-3  # fmt: skip
    assert abs(float((out[:, 0] > 0).double().mean()) - 0.7) < 4 * (0.21 / 2000) ** 0.5


def test_losses_train_under_the_law() -> None:
    path = HeavyTailedPath(CondOT(), 5.0)
    data = torch.full((4000, 3), 0.7, dtype=torch.float64)
    assert point_mass(path).loss(data, generator=torch.Generator().manual_seed(0)) < 1e-20
    zero = Denoiser(lambda x, t, c: 0 * x, path, "noise")
    found = float(zero.loss(data, generator=torch.Generator().manual_seed(0)))
    assert abs(found - 5 / 3) < 0.2  # the variance of a Student law with 5 degrees of freedom


def test_it_has_no_score_and_changes_its_schedule() -> None:
    path = HeavyTailedPath(EDM(), 8.0)
    with pytest.raises(ValueError, match="score"):
        path.convert(points(), "data", "score", points(), 0.5)
    outer = Rescheduled(point_mass(path), CondOT())
    assert isinstance(outer.paths, HeavyTailedPath) and outer.paths.dimensions == 8.0
    out = run(samplers.ddim(6), outer, points())
    assert torch.isfinite(out).all()
    exact = gaussian(CondOT())
    assert exact.paths.heads - outer.paths.heads == {"score"}
    for dimensions in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="dimensions must be positive"):
            HeavyTailedPath(EDM(), dimensions)
