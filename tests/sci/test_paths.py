"""Paths: conversions between all kinds, targets, sources."""

from __future__ import annotations

import itertools

import pytest
import torch

from sci.noise import Noise
from sci.paths import KINDS, GaussianPath
from sci.schedules import EDM, VE, VP, CondOT, Cosine
from sci.spaces import Symmetric

SCHEDULES = [VP(), Cosine(), VE(0.1, 5.0), EDM(0.01, 10.0), CondOT()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize(("kind", "to"), list(itertools.product(KINDS, KINDS)))
def test_true_targets_convert_into_each_other(schedule, kind: str, to: str) -> None:
    path = GaussianPath(schedule)
    data, noise = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 3, dtype=torch.float64)
    t = torch.linspace(0.05, 0.95, 5, dtype=torch.float64)
    x = path.corrupt(data, noise, t)
    given, wanted = path.target(kind, data, noise, t), path.target(to, data, noise, t)
    assert torch.allclose(path.convert(given, kind, to, x, t), wanted, rtol=1e-9, atol=1e-9)
    for row in range(5):
        single = path.convert(given[row], kind, to, x[row], float(t[row]))
        assert torch.allclose(single, wanted[row], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
def test_targets_against_their_definitions(schedule) -> None:
    path, t = GaussianPath(schedule), 0.37
    data, noise = torch.randn(4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    ahead, behind = path.corrupt(data, noise, t + 1e-6), path.corrupt(data, noise, t - 1e-6)
    velocity = path.target("velocity", data, noise, t)
    assert torch.allclose(velocity, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-6)
    assert torch.allclose(path.target("score", data, noise, t), -noise / sigma)
    angular = (alpha * noise - sigma * data) / (alpha**2 + sigma**2) ** 0.5
    assert torch.allclose(path.target("angular", data, noise, t), angular)
    assert torch.allclose(path.target("difference", data, noise, t), data - noise)


def test_difference_is_the_velocity_of_the_straight_line() -> None:
    path = GaussianPath(CondOT())
    data, noise = torch.randn(3, 2), torch.randn(3, 2)
    t = torch.rand(3)
    assert torch.allclose(
        path.target("velocity", data, noise, t), path.target("difference", data, noise, t)
    )


def test_coefficients_are_float64_before_they_meet_float32_data() -> None:
    path = GaussianPath(VP())
    data, noise = torch.randn(2, 3), torch.randn(2, 3)
    t = torch.tensor([0.25, 0.999])
    exact = path.corrupt(data.double(), noise.double(), t.double())
    x = path.corrupt(data, noise, t)
    assert x.dtype == torch.float32
    assert torch.allclose(x.double(), exact, atol=1e-6)
    back = path.convert(noise, "noise", "data", x, t)
    assert back.dtype == torch.float32 and torch.allclose(back, data, atol=1e-4)


def test_conversions_at_the_ends_that_exist() -> None:
    path = GaussianPath(CondOT())
    x, velocity = torch.randn(2, 3), torch.randn(2, 3)
    assert torch.allclose(path.convert(velocity, "velocity", "data", x, 0.0), x + velocity)
    assert torch.allclose(path.convert(velocity, "velocity", "data", x, 1.0), x)


def test_remembered_conversions_stay_bounded() -> None:
    path, x = GaussianPath(CondOT()), torch.zeros(1, 1)
    for step in range(5000):
        path.convert(x, "data", "noise", x, step / 5001)
    assert len(path._remembered) <= 4096


def test_unknown_kinds_list_close_ones() -> None:
    path, x = GaussianPath(CondOT()), torch.zeros(1, 1)
    with pytest.raises(ValueError, match="did you mean 'noise'"):
        path.convert(x, "nose", "data", x, 0.5)
    with pytest.raises(ValueError, match="logits"):
        path.target("logits", x, x, 0.5)


def test_bad_parts_are_refused() -> None:
    with pytest.raises(TypeError, match="Custom"):
        GaussianPath(lambda t: t)
    with pytest.raises(TypeError, match=r"sci\.spaces"):
        GaussianPath(CondOT(), "euclidean")
    with pytest.raises(ValueError, match="source_std"):
        GaussianPath(CondOT(), source_std=-1.0)


def test_source_is_scaled_noise_of_the_space() -> None:
    path = GaussianPath(VE(0.1, 3.0), Symmetric())
    mask = torch.tensor([[True, True, False]])
    noise = Noise(0, [5])
    start = path.source(noise, "edges", torch.zeros(1, 3, 3), mask)
    unit = noise.draw(Symmetric(), "edges", -1, torch.zeros(1, 3, 3), mask)
    assert torch.allclose(start, 3 * unit) and start[0, 0, 1] != 0
    assert start[0, :, 2].abs().sum() == 0
    halved = GaussianPath(VE(0.1, 3.0), source_std=0.5)
    assert halved.source_std == 0.5


def test_spans_are_the_schedules_unless_told() -> None:
    assert GaussianPath(VP()).span == VP().span
    assert GaussianPath(VP(), span=(0.2, 0.8)).span == (0.2, 0.8)
    for span in ((0.5, 0.5), (-0.1, 1.0), (0.0, 1.1), (0.8, 0.2)):
        with pytest.raises(ValueError, match="span"):
            GaussianPath(VP(), span=span)


def test_a_path_moves_to_another_schedule_with_its_space() -> None:
    path = GaussianPath(VE(0.1, 3.0), Symmetric(), source_std=2.0)
    path.coefficients("data", "noise", 0.5)
    other = path.rescheduled(CondOT(), (0.1, 0.9))
    assert other.space == Symmetric() and other.span == (0.1, 0.9) and other.source_std == 1.0
    assert other.coefficients("data", "noise", 0.5) == (-1.0, 2.0)
    assert path.source_std == 2.0 and path.span == (0.0, 1.0)
    assert path.rescheduled(VE(0.1, 7.0)).source_std == 7.0


def test_training_hooks_are_those_of_the_space() -> None:
    path, mask = GaussianPath(CondOT(), Symmetric()), torch.tensor([[True, True, True, False]])
    like = torch.zeros(1, 4, 4, dtype=torch.float64)
    generator = torch.Generator()
    noise = path.random(like, mask, generator.manual_seed(0))
    assert torch.equal(noise, Symmetric().random(like, mask, generator.manual_seed(0)))
    assert path.latent(like, mask, generator) is None
    full = torch.randn(1, 4, 4, dtype=torch.float64)
    assert torch.equal(path.project(full, mask), Symmetric().project(full, mask))
    # Three pairs are present, each counted once.
    gap = path.error(full, 0 * full, "data", mask)
    pairs = 0.5 * (full + full.transpose(1, 2))[0, [0, 0, 1], [1, 2, 2]]
    assert torch.allclose(gap, (pairs**2).mean())
    assert path.deviation(0.25) == 0.75


@pytest.mark.parametrize("t", [0.0, torch.zeros(2, dtype=torch.float64)])
def test_noise_and_score_give_each_other_where_the_state_is_noise(t) -> None:
    for schedule in (CondOT(), Cosine()):
        path, noise = GaussianPath(schedule), torch.randn(2, 3)
        score = path.convert(noise, "noise", "score", noise, t)
        assert torch.equal(score, -noise)
        assert torch.equal(path.convert(score, "score", "noise", noise, t), noise)
