"""Schedules against their formulae, finite differences, and their own inverses."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from sci.schedules import (
    EDM,
    VE,
    VP,
    CondOT,
    Cosine,
    Custom,
    Exponential,
    KeepTable,
    Levels,
    OrnsteinUhlenbeck,
    Rectified,
    Schedule,
    SubVP,
    Tabulated,
)

ALL: list[Schedule] = [
    VP(),
    VP(0.1, 1.0),
    SubVP(),
    Cosine(),
    VE(0.1, 1.0),
    VE(0.01, 50.0),
    EDM(),
    CondOT(),
    Exponential(10.0),
    OrnsteinUhlenbeck(6.0, 0.2),
    OrnsteinUhlenbeck(lambda t: 4 + torch.cos(3 * t) + 2 * t**2),
    Levels(np.geomspace(10.0, 0.1, 6), np.linspace(0.2, 1.0, 6)),
    Custom(lambda t: t**2, lambda t: (1 - t) ** 2),
    Tabulated([0.0, 0.3, 0.6, 1.0], [-6.0, -1.0, 2.0, 5.0], [1.0, 1.2, 1.1, 1.0]),
]


def times_of(schedule: Schedule, count: int = 41) -> np.ndarray:
    low, high = schedule.span
    return np.linspace(max(low, 0.003), min(high, 0.997), count)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_log_snr_increases_and_is_inverted(schedule: Schedule) -> None:
    t = times_of(schedule)
    log_snr = schedule.log_snr(t)
    assert (np.diff(log_snr) > 0).all()
    assert np.allclose(log_snr, np.log(schedule.alpha(t) / schedule.sigma(t)), atol=1e-9)
    assert np.abs(schedule.time(log_snr) - t).max() < 1e-12
    assert math.isclose(schedule.time(float(log_snr[3])), t[3], abs_tol=1e-12)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_derivatives_match_finite_differences(schedule: Schedule) -> None:
    t = times_of(schedule) + 1e-3 / math.pi  # away from the kinks of tables
    t, step = t[:-1], 1e-6
    for value, slope in (
        (schedule.alpha, schedule.alpha_dot),
        (schedule.sigma, schedule.sigma_dot),
    ):
        expected = (value(t + step) - value(t - step)) / (2 * step)
        assert np.allclose(slope(t), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("schedule", ALL, ids=str)
def test_types_are_kept_and_values_agree(schedule: Schedule) -> None:
    t = times_of(schedule)
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "log_snr"):
        function = getattr(schedule, name)
        tensor = function(torch.from_numpy(t))
        assert tensor.dtype == torch.float64
        assert np.allclose(tensor.numpy(), function(t), rtol=1e-13, atol=1e-13)
        assert type(function(float(t[3]))) is float
        assert math.isclose(function(float(t[3])), function(t)[3], rel_tol=1e-13, abs_tol=1e-15)
        assert function(torch.tensor(t, dtype=torch.float32)).dtype == torch.float64


@pytest.mark.parametrize("schedule", [VP(), Cosine(), Tabulated([0, 1], [-3.0, 3.0])], ids=str)
def test_variance_is_preserved(schedule: Schedule) -> None:
    t = np.linspace(0, 1, 50)
    assert np.allclose(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, 1.0, atol=1e-14)


def test_published_closed_forms_on_the_reversed_clock() -> None:
    back = np.linspace(0.01, 1, 20)
    decay = np.exp(-0.25 * back**2 * (20 - 0.1) - 0.5 * back * 0.1)
    assert np.allclose(VP().alpha(1 - back), decay, rtol=1e-13)
    assert np.allclose(SubVP().sigma(1 - back), 1 - decay**2, rtol=1e-12)
    assert np.allclose(VE(0.2, 3.0).sigma(1 - back), 0.2 * 15**back, rtol=1e-13)
    grid = np.linspace(80 ** (1 / 7), 0.002 ** (1 / 7), 11) ** 7
    assert np.allclose(EDM().sigma(np.linspace(0, 1, 11)), grid, rtol=1e-12)
    assert Rectified is CondOT and CondOT().sigma(0.25) == 0.75


def test_small_noise_keeps_its_relative_precision() -> None:
    # 1 - alpha^2 would lose every digit here; to first order sigma^2 is beta_min s.
    tiny = 2.0**-40
    assert math.isclose(VP().sigma(1 - tiny), math.sqrt(0.1 * tiny), rel_tol=1e-9)
    assert math.isclose(Cosine().sigma(1 - tiny), math.pi / 2 * tiny, rel_tol=1e-12)
    assert math.isclose(CondOT().log_snr(1 - tiny), 40 * math.log(2), rel_tol=1e-12)


def test_ends_are_infinite_not_nan() -> None:
    for schedule in (Cosine(), CondOT()):
        assert schedule.log_snr(0.0) == -math.inf and schedule.log_snr(1.0) == math.inf
        assert schedule.time(-math.inf) == 0.0 and schedule.time(math.inf) == 1.0
    assert VP().log_snr(1.0) == math.inf and math.isfinite(VP().log_snr(0.0))
    assert VP().sigma_dot(1.0) == -math.inf


def test_what_sampling_starts_from() -> None:
    assert VE(0.1, 1.0).source_std == 1.0 and VE(0.01, 50.0).source_std == 50.0
    assert EDM().source_std == 80.0 and VP(0.1, 1.0).source_std == 1.0
    assert Levels([3.0, 1.0]).source_std == 3.0


def test_levels_are_hit_exactly() -> None:
    sigmas = [5.0, 2.0, 0.5]
    assert np.allclose(Levels(sigmas).sigma(np.array([0.0, 0.5, 1.0])), sigmas, rtol=1e-14)


def test_kinetic_optimal_path_with_full_energy_is_the_straight_line() -> None:
    schedule = Tabulated.kinetic_optimal(np.linspace(0, np.pi / 2, 513), np.ones(513))
    t = np.linspace(0, 1, 33)
    assert np.abs(schedule.alpha(t) - t).max() < 1e-6
    assert np.abs(schedule.sigma(t) - (1 - t)).max() < 1e-6


def test_kinetic_optimal_path_beats_the_named_ones() -> None:
    # Gaussian data of two independent directions with the variances 1/4 and 7/4.
    angles = np.linspace(0, np.pi / 2, 2049)
    snr = np.tan(angles) ** 2
    share = sum(0.5 * snr * v**2 / (snr * v + 1) for v in (0.25, 1.75))

    def energy(schedule: Schedule) -> float:
        t = np.linspace(0, 1, 20001)[1:-1]
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        slope, fall = schedule.alpha_dot(t), schedule.sigma_dot(t)
        lost = 1 - np.interp(np.arctan2(alpha, sigma), angles, share)
        return float(np.mean(slope**2 + fall**2 - lost * (slope - alpha * fall / sigma) ** 2))

    best = energy(Tabulated.kinetic_optimal(angles, share))
    assert best < energy(Cosine()) - 1e-3 and best < energy(CondOT()) - 1e-3


def test_kinetic_optimal_path_in_the_units_of_the_data() -> None:
    # The same data three times as large: alpha is a third at the same angle.
    angles = np.linspace(0, np.pi / 2, 513)
    share = 1 - np.cos(angles) ** 2 * (0.9 - 0.5 * np.sin(angles))
    t = np.linspace(0, 1, 41)[1:-1]

    def cost(schedule: Schedule, scale: float) -> float:
        alpha, sigma = scale * schedule.alpha(t), schedule.sigma(t)
        slope, fall = scale * schedule.alpha_dot(t), schedule.sigma_dot(t)
        lost = 1 - np.interp(np.arctan2(alpha, sigma), angles, share)
        return float(np.mean(slope**2 + fall**2 - lost * (slope - alpha * fall / sigma) ** 2))

    large = Tabulated.kinetic_optimal(angles, share, scale=3.0)
    assert math.isclose(large.alpha(1.0), 1.0) and math.isclose(large.sigma(0.0), 1.0)
    speed = np.sqrt(1 - (1 - share[:-1]) / np.cos(angles[:-1]) ** 2)
    whole = float(np.trapezoid(speed, angles[:-1]))
    for scale in (1.0, 3.0):
        best = cost(Tabulated.kinetic_optimal(angles, share, scale), scale)
        assert abs(best / (1 + scale**2 - 2 * scale * math.cos(whole)) - 1) < 0.02
        for other in (CondOT(), Cosine(), Tabulated.kinetic_optimal(angles, share, scale * 2)):
            assert best < cost(other, scale)
    straight = Tabulated.kinetic_optimal(angles, np.ones(513), scale=3.0)
    assert np.abs(straight.alpha(t) - t).max() < 1e-5
    for bad in ({"scale": 0.0}, {"energy": share[:-1]}, {"angles": angles[::-1]}):
        with pytest.raises(ValueError, match="kinetic_optimal"):
            Tabulated.kinetic_optimal(**{"angles": angles, "energy": share, **bad})


def test_ornstein_uhlenbeck_against_its_equations() -> None:
    schedule, t = OrnsteinUhlenbeck(lambda t: 3 + 2 * t, 0.4), np.linspace(0, 0.99, 12)
    decay = 3 * (1 - t) + 1 - t**2
    assert np.allclose(schedule.alpha(t), np.exp(-decay), rtol=1e-13)
    assert np.allclose(schedule.sigma(t), 0.4 * np.sqrt(1 - np.exp(-2 * decay)), rtol=1e-13)
    given = OrnsteinUhlenbeck(std=0.4, log_alpha=lambda t: -3 * (1 - t) - 1 + t**2)
    for name in ("alpha", "sigma", "alpha_dot", "sigma_dot"):
        assert np.allclose(getattr(given, name)(t), getattr(schedule, name)(t), rtol=1e-12)
    assert given.source_std == 0.4
    for options in ({}, {"theta": 1.0, "log_alpha": torch.log}):
        with pytest.raises(ValueError, match="either theta or log_alpha"):
            OrnsteinUhlenbeck(**options)
    for theta, std in ((-1.0, 1.0), (1.0, 0.0), (lambda t: t - 0.5, 1.0)):
        with pytest.raises(ValueError, match="positive"):
            OrnsteinUhlenbeck(theta, std)
    with pytest.raises(ValueError, match="increase to 0"):
        OrnsteinUhlenbeck(log_alpha=lambda t: t)


def test_exponential_leaves_its_share() -> None:
    schedule = Exponential(10.0)
    assert math.isclose(schedule.sigma(1.0), math.exp(-10))
    # The velocity is c (data - x): alpha' = c sigma and sigma' = - c sigma.
    t = np.linspace(0, 1, 9)
    assert np.allclose(schedule.alpha_dot(t), 10 * (1 - schedule.alpha(t)))
    with pytest.raises(ValueError, match="positive"):
        Exponential(0.0)


def test_gradients_flow_in_t() -> None:
    t = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for schedule in ALL:
        (slope,) = torch.autograd.grad(schedule.alpha(t).sum() + 0 * t.sum(), t)
        assert torch.allclose(slope, schedule.alpha_dot(t), rtol=1e-10)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="rates"):
        VP(0.0, 1.0)
    with pytest.raises(ValueError, match="sigma_min < sigma_max"):
        VE(1.0, 0.1)
    with pytest.raises(ValueError, match="rho"):
        EDM(rho=0.0)
    with pytest.raises(ValueError, match="increase"):
        Levels([1.0, 2.0])
    with pytest.raises(ValueError, match="positive"):
        Levels([1.0, 0.0])
    with pytest.raises(ValueError, match="increase"):
        Custom(lambda t: 1 - t, lambda t: t)
    with pytest.raises(ValueError, match="from 0 to 1"):
        Tabulated([0.0, 0.9], [-1.0, 1.0])


def test_tables_are_looked_up_on_the_device() -> None:
    # The meta device has no values: to bring any to the CPU fails.
    tables = [Levels([3.0, 1.0]), KeepTable([0.0, 0.3, 1.0]), ALL[-1]]
    t = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    for schedule in tables:
        for name in ("alpha", "sigma", "alpha_dot", "sigma_dot"):
            function = getattr(schedule, name)
            assert function(t.to("meta")).device.type == "meta"
            with torch.inference_mode():
                first = function(t.float())
            time = t.float().requires_grad_()
            assert torch.equal(function(time), first) and function(time).requires_grad
