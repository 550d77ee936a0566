r"""Two minimisers over real vectors: an evolution strategy, and damped least squares.

:func:`evolve` needs only values of the objective. It draws a population from a normal law, moves
the mean to the better half of it and adapts covariance and step size (CMA-ES):

    y_k = C^(1/2) z_k,  theta_k = m + s y_k,        m <- m + s sum_k w_k y_(k),
    C <- (1 - c_1 - c_mu) C + c_1 p p^T + c_mu sum_k w_k y_(k) y_(k)^T,
    s <- s exp((c_s / d_s) (|p_s| / E|z| - 1)),

where (k) counts from the best, and p, p_s are decaying sums of the moves of the mean.

:func:`descend` knows that the objective is made of residuals r_i(theta), one vector an item. It
takes their differences along every coordinate and solves, with a weight an item in V,

    (J^T V J + damping diag(J^T V J)) d = -J^T V r.

A step is kept when the objective falls; the damping then falls too, and rises otherwise. Near a
smooth minimum this needs far fewer evaluations.

Both end early when a function that they are given raises: what is best so far is its caller's to keep.

References:
    | The CMA evolution strategy: a tutorial (Hansen, 2016)
    | An algorithm for least-squares estimation of nonlinear parameters (Marquardt, 1963)
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

__all__ = ["descend", "evolve"]

# Tried in turn at every step, as factors on the damping.
_DAMPINGS = (1e-2, 1.0, 1e2)
_DIFFERENCE = 1e-3
_LONGEST = 1.0


def evolve(
    objective: Callable[[np.ndarray], float],
    start: np.ndarray,
    scale: float,
    generator: np.random.Generator,
) -> np.ndarray:
    """Minimise by an evolution strategy, until its step size is below 1e-4 of `scale`.

    Arguments:
        objective: of a vector (D,); inf where it is not defined.
        start: (D,) the first mean.
        scale: the first standard deviation of every coordinate, > 0.
        generator: the randomness.

    Returns:
        The last mean, (D,).
    """
    size = len(start)
    count = 4 + int(3 * math.log(size))
    parents = count // 2
    weights = math.log(parents + 0.5) - np.log(np.arange(1, parents + 1))
    weights /= weights.sum()
    mass = 1 / (weights**2).sum()
    rate_path = (4 + mass / size) / (size + 4 + 2 * mass / size)
    rate_step = (mass + 2) / (size + mass + 5)
    rate_one = 2 / ((size + 1.3) ** 2 + mass)
    rate_mu = min(1 - rate_one, 2 * (mass - 2 + 1 / mass) / ((size + 2) ** 2 + mass))
    damp = 1 + 2 * max(0.0, math.sqrt((mass - 1) / (size + 1)) - 1) + rate_step
    expected = math.sqrt(size) * (1 - 1 / (4 * size) + 1 / (21 * size**2))
    mean, step, generation = start.astype(float), scale, 0
    covariance, path, path_step = np.eye(size), np.zeros(size), np.zeros(size)
    while step > 1e-4 * scale:
        generation += 1
        values, vectors = np.linalg.eigh(covariance)
        spread = np.sqrt(np.maximum(values, 1e-20))
        moves = generator.standard_normal((count, size)) * spread @ vectors.T
        found = np.array([objective(mean + step * move) for move in moves])
        moves = moves[np.argsort(found, kind="stable")[:parents]]
        move = weights @ moves
        mean = mean + step * move
        white = vectors @ ((vectors.T @ move) / spread)
        path_step = (1 - rate_step) * path_step
        path_step += math.sqrt(rate_step * (2 - rate_step) * mass) * white
        length = float(np.linalg.norm(path_step)) / expected
        settled = math.sqrt(1 - (1 - rate_step) ** (2 * generation))
        # While the step size still grows, the path waits, lest the covariance run away.
        calm = float(length / settled < 1.4 + 2 / (size + 1))
        path = (1 - rate_path) * path
        path += calm * math.sqrt(rate_path * (2 - rate_path) * mass) * move
        lost = (1 - calm) * rate_path * (2 - rate_path)
        covariance = (
            (1 - rate_one - rate_mu + rate_one * lost) * covariance
            + rate_one * np.outer(path, path)
            + rate_mu * (moves.T * weights) @ moves
        )
        step *= math.exp(rate_step / damp * (length - 1))
    return mean


def descend(
    residuals: Callable[[np.ndarray], np.ndarray | None],
    weigh: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    iterations: int = 50,
) -> np.ndarray:
    """Minimise by damped least squares, until no step helps by more than a part in 1e4.

    Arguments:
        residuals: of a vector (D,): (items, m), or None where they are not defined.
        weigh: of residuals: the objective, and the weight of each item, (items,).
        start: (D,).
        iterations: at most.

    Returns:
        The best vector, (D,); `start` when its residuals are not defined.
    """
    best, damping = start.astype(float), 1.0
    here = residuals(best)
    if here is None:
        return best
    value, weights = weigh(here)
    for _ in range(iterations):
        root = np.sqrt(weights)[:, None]
        columns = []
        for place in range(len(best)):
            moved = best.copy()
            moved[place] += _DIFFERENCE
            there = residuals(moved)
            columns.append(np.zeros_like(here) if there is None else (there - here) / _DIFFERENCE)
        slope = np.stack([(root * column).ravel() for column in columns], 1)
        gradient, curvature = slope.T @ (root * here).ravel(), slope.T @ slope
        if not curvature.any():
            break
        diagonal = np.diag(np.diag(curvature) + 1e-12 * np.trace(curvature))
        before = value
        for factor in _DAMPINGS:
            move = -np.linalg.solve(curvature + damping * factor * diagonal, gradient)
            there = residuals(trial := best + np.clip(move, -_LONGEST, _LONGEST))
            found, weighed = (np.inf, weights) if there is None else weigh(there)
            if there is not None and found < value:
                best, here, value, weights = trial, there, found, weighed
                damping = max(damping * factor, 1e-9)
                break
        if value > before * (1 - 1e-4):
            break
    return best
