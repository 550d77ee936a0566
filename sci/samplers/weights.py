r"""The coefficients of linear multistep methods on a path.

With the expectations data and noise given x_t, the probability flow is
dx = data d(alpha) + noise d(sigma). Divided by a suitable scale c it becomes an integral of one
prediction P over one increasing or decreasing function S, for each kind of prediction:

    d(x / c) = P dS

    kind         c                          S                           P
    data         sigma                      alpha / sigma = e^lambda    data
    noise        alpha                      sigma / alpha = e^-lambda   noise
    difference   alpha + sigma              alpha / (alpha + sigma)     data - noise
    angular      sqrt(alpha^2 + sigma^2)    atan2(sigma, alpha)         the v of v-prediction
    velocity     1                          t                           dx/dt

P is known at the nodes and is replaced by its Lagrange polynomial in a variable w, one of
lambda ("log_snr"), S ("S") and t ("t"):

    x_t = (c_t / c_s) x_s + sum_j W_j P_j,    W_j = c_t int_s^t l_j(w) dS.

A predictor has the nodes s and before, a corrector also t. Rules: "exact" integrates; "half"
differs for two nodes, where the weight of the node that is not s is (c_t int dS) / (2 r) with r
its distance from s in units of the step (the midpoint forms of DPM-Solver++ and UniPC); "fixed"
has the constants of Adams' methods on equal steps.

Noise is added in the kinds data and noise, with h = lambda_t - lambda_s and strength tau:

    data     c_t / c_s -> e^(-tau^2 h) c_t / c_s,  dS -> (1 + tau^2) e^(-tau^2 (lambda_t -
    lambda)) dS,
             standard deviation sigma_t sqrt(1 - e^(-2 tau^2 h))
    noise    dS -> (1 + tau^2) dS,  standard deviation tau sigma_t sqrt(e^(2 h) - 1)

tau = 0 is the flow, tau = 1 the reverse SDE (ancestral sampling). At order 1 in the kind data
this is stochastic DDIM x_t = alpha_t data + sigma_t (r noise + sqrt(1 - r^2) z) with r = (alpha_s
sigma_t / (alpha_t sigma_s))^g and g = tau^2: g = 0 DDIM, g = 1 ancestral, g = 2 more churn, g =
inf full renewal of the noise.

References:
    | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
    | (Lu et al., 2022)
    | Fast sampling of diffusion models with exponential integrator (Zhang, Chen, 2023)
    | UniPC: a unified predictor-corrector framework (Zhao et al., 2023)
    | SA-Solver: stochastic Adams solver for fast sampling of diffusion models (Xue et al., 2023)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from sci.paths import Path
from sci.samplers.coordinates import Coordinate

__all__ = ["ENGINE_KINDS", "Coefficients", "coefficients", "usable"]

ENGINE_KINDS = ("data", "noise", "difference", "angular", "velocity")
_POINTS, _MASSES = np.polynomial.legendre.leggauss(40)
_BASHFORTH = (
    (1,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
_MOULTON = (
    (1 / 2, 1 / 2),
    (5 / 12, 8 / 12, -1 / 12),
    (9 / 24, 19 / 24, -5 / 24, 1 / 24),
    (251 / 720, 646 / 720, -264 / 720, 106 / 720, -19 / 720),
)


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """x_t = scale x_s + sum_j weights_j P_j + noise z + bias, each an array (B,).

    Arguments:
        scale: of the state.
        weights: of the predictions, in the order of the nodes.
        noise: the standard deviation of what is added.
        bias: a constant that is added, or None.
    """

    scale: np.ndarray
    weights: list[np.ndarray]
    noise: np.ndarray
    bias: np.ndarray | None = None


def usable(
    path: Path,
    kind: Any,
    variable: str,
    nodes: list[np.ndarray],
    start: np.ndarray,
    stop: np.ndarray,
    max_ratio: float | None = None,
) -> np.ndarray:
    """How many of the nodes a step may use, (B,) int: those before the first that does not serve.

    A node does not serve where the variable is infinite, or where two neighbouring steps differ by
    more than the ratio. There are none at all when the integral over the step cannot be taken.

    Arguments:
        path: of the leaf.
        kind: of the predictions.
        variable: "log_snr", "S" or "t".
        nodes: times, each (B,), the newest first; a corrector has `stop` before `start`.
        start: (B,) where the step begins.
        stop: (B,) where it ends.
        max_ratio: >= 1, or None for no limit.
    """
    with np.errstate(all="ignore"):
        variable = _named(kind, variable)
        places = np.stack([_variable(path, kind, variable, node) for node in nodes])
        target = _variable(path, kind, variable, stop)
        serves = np.isfinite(places)
        if max_ratio is not None:
            chain = places if nodes[0] is stop else np.concatenate([target[None], places])
            lengths = np.abs(np.diff(chain, axis=0))
            ratios = lengths[:-1] / lengths[1:]
            alike = (ratios <= max_ratio) & (ratios >= 1.0 / max_ratio)
            serves[len(serves) - len(alike) :] &= alike
        count = np.cumprod(serves, axis=0).sum(0)
        possible = np.isfinite(target)
        if not _bounded(kind, variable):
            possible &= np.isfinite(_first_order(path, kind, 0.0, start, stop)[1])
            base = "S" if variable == "S" else "log_snr"
            for end in (start, stop):
                possible &= np.isfinite(_variable(path, kind, base, end))
    return np.where(possible, count, 0)


def coefficients(
    path: Path,
    kind: Any,
    variable: str,
    rule: str,
    tau: float,
    nodes: list[np.ndarray],
    stop: np.ndarray,
    corrector: bool = False,
    start: np.ndarray | None = None,
) -> Coefficients:
    """The coefficients of one step.

    Arguments:
        path: of the leaf.
        kind: of the predictions, one of `ENGINE_KINDS` or an `EmpiricalStatistics`.
        variable: "log_snr", "S" or "t".
        rule: "exact", "half" or "fixed".
        tau: the strength of the noise, >= 0.
        nodes: times, each (B,), at which the variable is finite unless there is one node only.
        stop: (B,) the time t that the step goes to.
        corrector: whether the first node is `stop`.
        start: (B,) the time s that the step begins at; when None the first node, of a corrector
            the second one.

    Returns:
        The coefficients, float64.
    """
    if start is None:
        start = nodes[1] if corrector else nodes[0]
    with np.errstate(all="ignore"):
        variable = _named(kind, variable)
        scale, total, noise = _first_order(path, kind, tau, start, stop)
        if not isinstance(kind, str):
            weights, bias = kind.weights(path, variable, nodes, start, stop)
            return Coefficients(scale, weights, noise, bias)
        if len(nodes) == 1:
            return Coefficients(scale, [total], noise)
        places = [_variable(path, kind, variable, node) for node in nodes]
        if rule == "fixed":
            table = _MOULTON[len(nodes) - 2] if corrector else _BASHFORTH[len(nodes) - 1]
            weights = [constant * total for constant in table]
        elif rule == "half" and len(nodes) == 2:
            target = _variable(path, kind, variable, stop)
            here, other = (places[1], places[0]) if corrector else places
            outer = 0.5 * total * (target - here) / (other - here)
            weights = [outer, total - outer] if corrector else [total - outer, outer]
        else:
            weights = _integrate(path, kind, variable, tau, start, stop, places)
    return Coefficients(scale, weights, noise)


def _named(kind: Any, variable: str) -> str:
    """S is t for the velocity."""
    return "S" if kind == "velocity" and variable == "t" else variable


def _bounded(kind: Any, variable: str) -> bool:
    """Whether dS is finite on the whole interval [0, 1]."""
    return variable == "t" and kind in ("difference", "angular")


def _first_order(
    path: Path, kind: Any, tau: float, start: np.ndarray, stop: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """c_t / c_s, c_t int dS and the noise, in forms that hold at vanishing alpha_s or sigma_t."""
    none = np.zeros_like(stop)
    if not isinstance(kind, str):
        return kind.scale(path, start, stop), none, none
    if kind == "velocity":
        return none + 1.0, stop - start, none
    schedule = path.schedule
    alphas, sigmas = schedule.alpha(start), schedule.sigma(start)
    alpha, sigma = schedule.alpha(stop), schedule.sigma(stop)
    if kind == "difference":
        scale = (alpha + sigma) / (alphas + sigmas)
        return scale, (alpha * sigmas - sigma * alphas) / (alphas + sigmas), none
    if kind == "angular":
        scale = np.hypot(alpha, sigma) / np.hypot(alphas, sigmas)
        turn = np.arctan2(sigma, alpha) - np.arctan2(sigmas, alphas)
        return scale, np.hypot(alpha, sigma) * turn, none
    step = schedule.log_snr(stop) - schedule.log_snr(start)
    square = tau * tau
    if kind == "data":
        decay = np.exp(-square * step) if square else none + 1.0
        total = -alpha * np.expm1(-(1.0 + square) * step)
        kick = sigma * np.sqrt(-np.expm1(-2.0 * square * step)) if square else none
        return sigma / sigmas * decay, total, kick
    direct = sigma - alpha / alphas * sigmas
    total = (1.0 + square) * np.where(np.isfinite(step), -sigma * np.expm1(step), direct)
    kick = tau * sigma * np.sqrt(np.expm1(2.0 * step)) if square else none
    return alpha / alphas, total, kick


def _variable(path: Path, kind: Any, variable: str, t: np.ndarray) -> np.ndarray:
    """w(t)."""
    if variable == "t" or kind == "velocity" and variable == "S":
        return t
    log_snr = path.schedule.log_snr(t)
    return log_snr if variable == "log_snr" else _integral(kind, log_snr)


def _integral(kind: str, log_snr: np.ndarray) -> np.ndarray:
    """S as a function of lambda."""
    if kind == "data":
        return np.exp(log_snr)
    if kind == "noise":
        return np.exp(-log_snr)
    if kind == "difference":
        return 1.0 / (1.0 + np.exp(-log_snr))
    return np.arctan(np.exp(-log_snr))


def _integrate(
    path: Path,
    kind: str,
    variable: str,
    tau: float,
    start: np.ndarray,
    stop: np.ndarray,
    places: list[np.ndarray],
) -> list[np.ndarray]:
    """W_j by Gauss-Legendre quadrature, in the variable in which the integrand is smoothest."""
    ends = path.schedule.log_snr(start), path.schedule.log_snr(stop)
    if variable == "S" and not tau:
        at, mass = _quadrature(_variable(path, kind, "S", start), _variable(path, kind, "S", stop))
        density = mass * Coordinate(path, kind).scale(stop)
        where = at
    elif np.isfinite(ends[0]).all() and np.isfinite(ends[1]).all():
        log_snr, mass = _quadrature(*ends)
        density = mass * _density(path, kind, tau, log_snr, ends[1], stop)
        if variable == "t":
            where = path.schedule.time(log_snr)
        else:
            where = log_snr if variable == "log_snr" else _integral(kind, log_snr)
    else:
        where, mass = _quadrature(start, stop)
        leaf = Coordinate(path, kind)
        density = mass * leaf.slope(where) * leaf.scale(stop)
    weights = []
    for this, place in enumerate(places):
        basis = np.ones_like(where)
        for other, apart in enumerate(places):
            if other != this:
                basis = basis * (where - apart) / (place - apart)
        weights.append((density * basis).sum(0))
    return weights


def _quadrature(low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points and masses on [low, high], each (40, B)."""
    half = 0.5 * (high - low)
    return low + half * (_POINTS[:, None] + 1.0), half * _MASSES[:, None]


def _density(
    path: Path,
    kind: str,
    tau: float,
    log_snr: np.ndarray,
    last: np.ndarray,
    stop: np.ndarray,
) -> np.ndarray:
    """c_t dS/dlambda, with the change that noise of strength tau makes."""
    gain = 1.0 + tau * tau
    if kind == "data":
        return gain * path.schedule.alpha(stop) * np.exp(-gain * (last - log_snr))
    if kind == "noise":
        return -gain * path.schedule.sigma(stop) * np.exp(last - log_snr)
    if kind == "difference":
        return 0.25 * Coordinate(path, kind).scale(stop) / np.cosh(0.5 * log_snr) ** 2
    if kind == "angular":
        return -0.5 * Coordinate(path, kind).scale(stop) / np.cosh(log_snr)
    t = path.schedule.time(log_snr)
    schedule = path.schedule
    rise = schedule.alpha_dot(t) / schedule.alpha(t) - schedule.sigma_dot(t) / schedule.sigma(t)
    return 1.0 / rise
