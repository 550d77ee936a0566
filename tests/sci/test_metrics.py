"""Distances against closed forms and other implementations; floors."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sci import metrics


def draws(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape)


def test_mmd_against_its_double_sum() -> None:
    x, y = draws(7, 2), draws(5, 2, seed=1) + 1

    def kernel(a: np.ndarray, b: np.ndarray) -> float:
        return float(np.exp(-((a - b) ** 2).sum() / (2 * 0.7**2)))

    def mean(a: np.ndarray, b: np.ndarray, same: bool) -> float:
        values = [
            kernel(p, q) for i, p in enumerate(a) for j, q in enumerate(b) if not same or i != j
        ]
        return float(np.mean(values))

    cross = mean(x, y, False)
    biased = mean(x, x, False) + mean(y, y, False) - 2 * cross
    unbiased = mean(x, x, True) + mean(y, y, True) - 2 * cross
    assert metrics.mmd(x, y, metrics.gaussian(0.7)) == pytest.approx(biased, abs=1e-14)
    assert metrics.mmd(x, y, metrics.gaussian(0.7), unbiased=True) == pytest.approx(
        unbiased, abs=1e-14
    )


def test_mmd_of_gaussians_approaches_its_closed_form() -> None:
    """For N(0, 1) and N(m, 1) and a Gaussian kernel, MMD² = 2 h / sqrt(h² + 2) (1 - exp(-m² / (2 (h² + 2))))."""
    x, y = draws(4000, 1), draws(4000, 1, seed=1) + 1.5
    width, shift = 0.8, 1.5
    scale = width / np.sqrt(width**2 + 2)
    expected = 2 * scale * (1 - np.exp(-(shift**2) / (2 * (width**2 + 2))))
    got = metrics.mmd(x, y, metrics.gaussian(width), unbiased=True)
    assert got == pytest.approx(expected, rel=0.05)


def test_blocks_of_rows_do_not_change_the_sum(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = draws(50, 3), draws(41, 3, seed=1)
    whole = metrics.mmd(x, y, metrics.laplacian(1.0))
    monkeypatch.setattr(metrics, "_ROWS", 7)
    assert metrics.mmd(x, y, metrics.laplacian(1.0)) == pytest.approx(whole, abs=1e-14)


def test_linear_kernel_is_the_distance_of_means() -> None:
    x, y = draws(30, 4), draws(20, 4, seed=1)
    expected = np.square(x.mean(0) - y.mean(0)).sum()
    assert metrics.mmd(x, y, metrics.linear()) == pytest.approx(expected)
    cubic = metrics.polynomial(3)(x[:1], y[:1])[0, 0]
    assert cubic == pytest.approx((x[0] @ y[0] / 4 + 1) ** 3)


def test_histogram_transport_is_the_earth_movers_distance() -> None:
    generator = np.random.default_rng(0)
    a, b = generator.dirichlet(np.ones(9), 3), generator.dirichlet(np.ones(9), 4)
    got = metrics.histogram_transport(a, b)
    bins = np.arange(9)
    for i in range(3):
        for j in range(4):
            assert got[i, j] == pytest.approx(stats.wasserstein_distance(bins, bins, a[i], b[j]))


@pytest.mark.parametrize(("n", "m"), [(20, 20), (13, 31), (1, 5)])
def test_distances_on_a_line_against_scipy(n: int, m: int) -> None:
    x, y = draws(n), draws(m, seed=1) + 0.3
    assert metrics.wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y))
    assert metrics.energy(x, y) == pytest.approx(stats.energy_distance(x, y) ** 2)


def test_second_order_on_a_line_against_repeated_points() -> None:
    x, y = draws(4), draws(6, seed=1)
    repeated = np.sqrt(np.mean((np.sort(np.repeat(x, 3)) - np.sort(np.repeat(y, 2))) ** 2))
    assert metrics.wasserstein(x, y, 2) == pytest.approx(repeated)


def test_wasserstein_in_the_plane_is_the_best_assignment() -> None:
    from itertools import permutations

    x, y = draws(5, 2), draws(5, 2, seed=1)
    for order in (1, 2):
        costs = [
            np.mean(np.linalg.norm(x - y[list(p)], axis=1) ** order) ** (1 / order)
            for p in permutations(range(5))
        ]
        assert metrics.wasserstein(x, y, order) == pytest.approx(min(costs))
    moved = metrics.wasserstein(x, x[::-1] + np.array([3.0, 4.0]), 2)
    assert moved == pytest.approx(5.0)


def test_frechet_against_the_closed_form_and_the_matrix_root() -> None:
    from scipy.linalg import sqrtm

    mean, other = np.array([1.0, 0.0]), np.array([0.0, 2.0])
    got = metrics.frechet_gaussians(mean, np.diag([4.0, 1.0]), other, np.diag([1.0, 9.0]))
    assert got == pytest.approx(5 + (2 - 1) ** 2 + (1 - 3) ** 2)
    x, y = draws(50, 4), draws(60, 4, seed=1) @ draws(4, 4, seed=2)
    c, d = np.cov(x.T), np.cov(y.T)
    root = np.trace(sqrtm(c @ d)).real
    expected = np.square(x.mean(0) - y.mean(0)).sum() + np.trace(c) + np.trace(d) - 2 * root
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-6)


def test_frechet_of_singular_covariances() -> None:
    x = np.repeat(draws(30, 1), 3, axis=1)
    assert metrics.frechet(x, x) == pytest.approx(0, abs=1e-7)
    assert metrics.frechet(x, x + 1) == pytest.approx(3.0)
    assert metrics.frechet(draws(9), draws(9) * 2) == pytest.approx(
        np.var(draws(9), ddof=1) + np.mean(draws(9)) ** 2
    )


@given(st.integers(2, 8), st.integers(2, 8), st.integers(1, 3), st.integers(0, 99))
def test_distances_are_symmetric_and_vanish_on_equal_samples(
    n: int, m: int, d: int, seed: int
) -> None:
    x, y = draws(n, d, seed=seed), draws(m, d, seed=seed + 100)
    kinds = [metrics.energy, metrics.frechet, lambda a, b: metrics.mmd(a, b, metrics.gaussian(1.0))]
    for distance in kinds:
        assert distance(x, y) == pytest.approx(distance(y, x), abs=1e-9)
        assert distance(x, x) == pytest.approx(0, abs=1e-7)
        assert distance(x, y) > -1e-12


def test_floor_is_seeded_and_falls_with_n() -> None:
    real = draws(2000, 2)
    levels = [metrics.floor(metrics.frechet, real, n) for n in (20, 100, 500)]
    means = [mean for mean, _ in levels]
    assert means[0] > 3 * means[1] > 6 * means[2] > 0 and all(spread > 0 for _, spread in levels)
    assert metrics.floor(metrics.frechet, real, 100) == levels[1]
    assert metrics.floor(metrics.frechet, real, 100, seed=1) != levels[1]


def test_floor_compares_disjoint_items_or_a_reference() -> None:
    def shared(a: list[int], b: list[int]) -> float:
        assert len(a) == 40 and isinstance(a, list)
        return float(len(set(a) & set(b)))

    assert metrics.floor(shared, list(range(100)), 40)[0] == 0
    assert metrics.floor(shared, list(range(60)), 40)[0] == 0  # by halves, with replacement
    assert metrics.floor(shared, list(range(100)), 40, reference=list(range(100)))[0] == 40
    with pytest.raises(ValueError, match="repeats 1"):
        metrics.floor(shared, list(range(100)), 40, repeats=1)


def test_spread_is_the_standard_error_of_a_mean() -> None:
    x = draws(400)
    got = metrics.spread(lambda a, b: float(a.mean()), x, None, repeats=300)
    assert got == pytest.approx(x.std() / 20, rel=0.15)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.spread(lambda a, b: 0.0, x, None, repeats=1)


def test_median_distance() -> None:
    assert metrics.median_distance([0.0, 1.0, 3.0]) == 2.0


def test_bad_samples_are_refused() -> None:
    good = draws(5, 2)
    for bad, message in (
        (draws(5, 3), "same space"),
        (draws(2, 2, 2), "expected"),
        (np.array([[np.nan, 0.0]]), "NaN"),
        (np.zeros((0, 2)), "n at least 1"),
    ):
        with pytest.raises(ValueError, match=message):
            metrics.energy(good, bad)
    with pytest.raises(ValueError, match="n at least 2"):
        metrics.frechet(good, good[:1])
    with pytest.raises(ValueError, match="one size"):
        metrics.wasserstein(good, good[:3])
    with pytest.raises(ValueError, match="order is 3"):
        metrics.wasserstein(good, good, 3)
    with pytest.raises(ValueError, match="bandwidth is 0"):
        metrics.gaussian(0)
    with pytest.raises(ValueError, match="degree"):
        metrics.polynomial(0)
    with pytest.raises(ValueError, match="do not fit"):
        metrics.frechet_gaussians([0, 0], np.eye(3), [0, 0], np.eye(3))
