r"""Distances between two sets of samples, in float64, and their floors.

| distance | formula |
|---|---|
| :func:`mmd` | :math:`E k(x, x') + E k(y, y') - 2 E k(x, y)` |
| :func:`energy` | :math:`2 E |x - y| - E |x - x'| - E |y - y'|` |
| :func:`wasserstein` | :math:`(\min_\pi E_\pi |x - y|^p)^{1/p}` |
| :func:`frechet` | :math:`|m_x - m_y|^2 + \mathrm{tr}(C_x + C_y - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2})` |

None of them is 0 between two finite draws of one law. :func:`floor` gives the level that real data reach against
real data at the same number of samples; a model's figure means something beside it only.

References:
    | A kernel two-sample test (Gretton, Borgwardt, Rasch, Schölkopf, Smola, 2012)
    | Energy statistics: a class of statistics based on distances (Székely, Rizzo, 2013)
    | GANs trained by a two time-scale update rule converge to a local Nash equilibrium (Heusel et al., 2017)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = [
    "Kernel",
    "energy",
    "euclidean",
    "floor",
    "frechet",
    "frechet_gaussians",
    "gaussian",
    "histogram_transport",
    "laplacian",
    "linear",
    "median_distance",
    "mmd",
    "polynomial",
    "spread",
    "wasserstein",
]

Array = NDArray[np.float64]
Kernel = Callable[[Array, Array], Array]
_ROWS = 1024


def euclidean(first: Array, second: Array) -> Array:
    """Pairwise Euclidean distances, shape (n, m), of points (n, d) and (m, d)."""
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(first, second))


def histogram_transport(first: Array, second: Array) -> Array:
    r"""Pairwise transport distances between histograms on a line of bins at distance 1.

    In one dimension the earth mover's distance is the area between the cumulative sums,
    :math:`\sum_b |F_b - G_b|`.

    Arguments:
        first, second: Histograms (n, bins) and (m, bins), each row with the same total mass.

    Returns:
        Distances in bins, shape (n, m).
    """
    from scipy.spatial.distance import cdist

    return np.asarray(cdist(np.cumsum(first, 1), np.cumsum(second, 1), "cityblock"))


def gaussian(bandwidth: float, distance: Kernel = euclidean) -> Kernel:
    r"""The kernel :math:`\exp(-d(x, y)^2 / (2 h^2))`.

    Arguments:
        bandwidth: h, above 0, in the units of the distance.
        distance: Pairwise distances d; :func:`histogram_transport` serves histograms.
    """
    bandwidth = _positive("bandwidth", bandwidth)
    return lambda first, second: np.exp(-np.square(distance(first, second)) / (2 * bandwidth**2))


def laplacian(bandwidth: float, distance: Kernel = euclidean) -> Kernel:
    r"""The kernel :math:`\exp(-d(x, y) / h)`; arguments as of :func:`gaussian`."""
    bandwidth = _positive("bandwidth", bandwidth)
    return lambda first, second: np.exp(-distance(first, second) / bandwidth)


def linear() -> Kernel:
    r"""The kernel :math:`x \cdot y`: its MMD is the distance of the means."""
    return lambda first, second: first @ second.T


def polynomial(degree: int = 3, offset: float = 1.0) -> Kernel:
    r"""The kernel :math:`(x \cdot y / d + c)^p` of the kernel inception distance.

    Arguments:
        degree: p, at least 1.
        offset: c.
    """
    if degree < 1:
        raise ValueError(f"degree is {degree}; expected at least 1")
    return lambda first, second: (first @ second.T / first.shape[1] + offset) ** degree


def median_distance(points: ArrayLike, most: int = 2000) -> float:
    """The median distance between different points: a common bandwidth.

    Arguments:
        points: Shape (n, d) or (n,), n at least 2.
        most: Only the first ``most`` points are looked at.
    """
    from scipy.spatial.distance import pdist

    return float(np.median(pdist(_points("points", points, 2)[:most])))


def mmd(first: ArrayLike, second: ArrayLike, kernel: Kernel, unbiased: bool = False) -> float:
    """The squared maximum mean discrepancy (no square root is taken).

    Arguments:
        first, second: Samples (n, d) and (m, d); (n,) is read as (n, 1).
        kernel: A positive definite kernel, called on blocks of rows.
        unbiased: Leaves the pairs (x, x) out (the U-statistic, which may be negative).

    Returns:
        The squared discrepancy. With a bounded kernel the biased one shrinks like 1/n on equal laws.

    Raises:
        ValueError: For samples that do not fit together, are too few, or are not finite.
    """
    x, y = _pair(first, second, 2 if unbiased else 1)
    own = _self_mean(x, kernel, unbiased) + _self_mean(y, kernel, unbiased)
    return own - 2 * _sum(x, y, kernel) / (len(x) * len(y))


def energy(first: ArrayLike, second: ArrayLike, unbiased: bool = False) -> float:
    """The energy distance; not its square root.

    Arguments:
        first, second: Samples (n, d) and (m, d); (n,) is read as (n, 1).
        unbiased: Leaves the pairs (x, x) out.

    Raises:
        ValueError: As :func:`mmd`.
    """
    return mmd(first, second, lambda a, b: -euclidean(a, b), unbiased)


def wasserstein(first: ArrayLike, second: ArrayLike, order: int = 1) -> float:
    """The Wasserstein distance of order 1 or 2 between two samples.

    On a line it is the distance of the quantile functions. In more dimensions it is an assignment problem
    (cubic in n; 2,000 points take about a second), for which both samples must be of the same size.

    Arguments:
        first, second: Samples (n, d) and (m, d); (n,) is read as (n, 1).
        order: 1 or 2.

    Raises:
        ValueError: For another order, or samples of different sizes in more than one dimension.
    """
    if order not in (1, 2):
        raise ValueError(f"order is {order}; expected 1 or 2")
    x, y = _pair(first, second, 1)
    if x.shape[1] == 1:
        return _wasserstein_line(np.sort(x[:, 0]), np.sort(y[:, 0]), order)
    if len(x) != len(y):
        raise ValueError(
            f"samples of {len(x)} and {len(y)} points: in more than one dimension both must be of one size; "
            "draw a subset of the larger"
        )
    from scipy.optimize import linear_sum_assignment

    cost = euclidean(x, y) ** order
    rows, columns = linear_sum_assignment(cost)
    return float(cost[rows, columns].mean() ** (1 / order))


def frechet(first: ArrayLike, second: ArrayLike) -> float:
    """The Fréchet distance (squared 2-Wasserstein) of the Gaussians fitted to two samples.

    Arguments:
        first, second: Samples (n, d) and (m, d), n and m at least 2. Covariances are divided by n - 1.

    Returns:
        The distance. It is biased upwards by about d²/n: compare at equal n, beside the floor.

    Raises:
        ValueError: As :func:`mmd`.
    """
    x, y = _pair(first, second, 2)
    return frechet_gaussians(x.mean(0), np.cov(x.T, ddof=1), y.mean(0), np.cov(y.T, ddof=1))


def frechet_gaussians(
    mean: ArrayLike, covariance: ArrayLike, other_mean: ArrayLike, other_covariance: ArrayLike
) -> float:
    """The squared 2-Wasserstein distance of two Gaussians, by symmetric eigendecompositions.

    Arguments:
        mean, other_mean: Shape (d,).
        covariance, other_covariance: Shape (d, d), symmetric and positive semi-definite; they may be singular.

    Raises:
        ValueError: If the shapes do not fit together.
    """
    a, b = np.atleast_1d(np.asarray(mean, float)), np.atleast_1d(np.asarray(other_mean, float))
    c, d = (
        np.atleast_2d(np.asarray(covariance, float)),
        np.atleast_2d(np.asarray(other_covariance, float)),
    )
    if not (a.shape == b.shape and c.shape == d.shape == (len(a), len(a))):
        raise ValueError(
            f"means {a.shape}, {b.shape} and covariances {c.shape}, {d.shape} do not fit together"
        )
    # tr (C^1/2 D C^1/2)^1/2 is the sum of the singular values of C^1/2 D^1/2, which loses no digits to a root.
    cross = np.linalg.svd(_root(c) @ _root(d), compute_uv=False).sum()
    return float(max(np.square(a - b).sum() + np.trace(c) + np.trace(d) - 2 * cross, 0.0))


def floor(
    metric: Callable[[Any, Any], float],
    real: Any,
    n: int,
    reference: Any = None,
    repeats: int = 10,
    seed: int = 0,
) -> tuple[float, float]:
    """What the metric gives for real data against real data, with n samples in the model's place.

    Arguments:
        metric: Of (n samples, reference samples).
        real: Real data: an array, a sequence, or anything indexed by an integer array.
        n: How many of them stand in the model's place.
        reference: What they are compared with; None takes n others of ``real``, disjoint in every draw.
        repeats: Draws, at least 2.
        seed: Of the draws.

    Returns:
        Mean and standard deviation of the metric over the draws. Draws are without replacement where there
        are enough items, else with replacement (each side within its own half, if there is no reference).

    Raises:
        ValueError: If there are too few items, or fewer than 2 draws.
    """
    size, need = len(real), n if reference is not None else 2 * n
    if n < 1 or repeats < 2 or size < 2:
        raise ValueError(
            f"floor: n is {n}, repeats {repeats}, {size} items; expected at least 1, 2 and 2"
        )
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(repeats):
        order = generator.permutation(size)
        if size >= need:
            mine, others = order[:n], order[n : 2 * n]
        else:
            cut = size if reference is not None else size // 2
            mine = generator.choice(order[:cut], n)
            others = generator.choice(order[cut:], n) if reference is None else order
        values.append(
            metric(_take(real, mine), _take(real, others) if reference is None else reference)
        )
    return float(np.mean(values)), float(np.std(values, ddof=1))


def spread(
    metric: Callable[[Any, Any], float], first: Any, second: Any, repeats: int = 20, seed: int = 0
) -> float:
    """The bootstrap standard deviation of a metric: ``first`` is drawn again with replacement.

    Arguments:
        metric: Of (samples, reference).
        first: Samples.
        second: The reference, kept as it is.
        repeats: Draws, at least 2.
        seed: Of the draws.

    Raises:
        ValueError: For fewer than 2 draws.
    """
    if repeats < 2:
        raise ValueError(f"repeats is {repeats}; expected at least 2")
    generator = np.random.default_rng(seed)
    draws = (generator.integers(0, len(first), len(first)) for _ in range(repeats))
    return float(np.std([metric(_take(first, draw), second) for draw in draws], ddof=1))


def _root(covariance: Array) -> Array:
    """The symmetric square root; eigenvalues at the level of rounding are zeros."""
    values, vectors = np.linalg.eigh(covariance)
    least = len(values) * np.finfo(np.float64).eps * np.abs(values).max()
    return np.asarray(vectors * np.sqrt(np.where(values > least, values, 0.0)) @ vectors.T)


def _take(data: Any, rows: NDArray[np.int64]) -> Any:
    if isinstance(data, Sequence):
        return [data[row] for row in rows]
    return data[rows]


def _sum(first: Array, second: Array, kernel: Kernel) -> float:
    """The sum over all pairs, in blocks of rows, so that memory stays linear in n."""
    starts = range(0, len(first), _ROWS)
    return float(sum(kernel(first[start : start + _ROWS], second).sum() for start in starts))


def _self_mean(points: Array, kernel: Kernel, unbiased: bool) -> float:
    n = len(points)
    total = _sum(points, points, kernel)
    if not unbiased:
        return total / n**2
    return (total - sum(float(kernel(p[None], p[None])[0, 0]) for p in points)) / (n * (n - 1))


def _wasserstein_line(x: Array, y: Array, order: int) -> float:
    """The L^p distance of two quantile functions, which are steps at multiples of 1/n and 1/m."""
    edges = np.union1d(np.arange(1, len(x) + 1) / len(x), np.arange(1, len(y) + 1) / len(y))
    widths = np.diff(edges, prepend=0.0)
    middles = edges - widths / 2
    gaps = np.abs(x[(middles * len(x)).astype(int)] - y[(middles * len(y)).astype(int)])
    return float((widths @ gaps**order) ** (1 / order))


def _pair(first: ArrayLike, second: ArrayLike, least: int) -> tuple[Array, Array]:
    x, y = _points("the first sample", first, least), _points("the second sample", second, least)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"samples of shapes {x.shape} and {y.shape} do not live in the same space")
    return x, y


def _points(what: str, values: ArrayLike, least: int) -> Array:
    points = np.asarray(values, dtype=np.float64)
    points = points[:, None] if points.ndim == 1 else points
    if points.ndim != 2 or len(points) < least:
        raise ValueError(
            f"{what} has shape {points.shape}; expected (n, d) with n at least {least}"
        )
    if not np.isfinite(points).all():
        raise ValueError(f"{what} holds NaN or infinite values")
    return points


def _positive(name: str, value: float) -> float:
    if not value > 0:
        raise ValueError(f"{name} is {value}; expected a number above 0")
    return float(value)
