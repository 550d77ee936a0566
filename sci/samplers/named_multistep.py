r"""Named multistep samplers, one function a name; the settings are in `sci.samplers.table`.

In the formulae the step goes from s to t, h = lambda_t - lambda_s is its length in log-SNR,
rho = sigma / alpha, D and e are the predictions of data and noise, and an index counts the steps
back.
"""

from __future__ import annotations

import math
from typing import Any

from sci.samplers.engine import Multistep
from sci.samplers.table import row

__all__ = [
    "ab",
    "abm",
    "ancestral",
    "ddim",
    "ddpm",
    "deis",
    "dpm_2m",
    "dpmpp_2m",
    "dpmpp_3m",
    "euler",
    "ipndm",
    "lms",
    "plms",
    "sde_dpmpp_2m",
    "sde_dpmpp_3m",
    "unipc",
]


def ddim(steps: int = 50, **changes: Any) -> Multistep:
    """DDIM without noise: the exact flow for a constant data prediction. Order 1.

        x_t = alpha_t D + sigma_t e

    The same in the kinds data, noise and difference, and the same as DPM-Solver-1 and as Euler's
    method in rho. Use it as a baseline, and where robustness beats accuracy.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | Denoising diffusion implicit models (Song, Meng, Ermon, 2021)
    """
    return row("ddim")(steps=steps, **changes)


def ancestral(steps: int = 100, churn: float = 1.0, **changes: Any) -> Multistep:
    """Stochastic DDIM; ancestral sampling (DDPM) at churn 1. Order 1 in law.

        x_t = alpha_t D + sigma_t (r e + sqrt(1 - r^2) z),   r = e^(-churn h)

    Use it with a hundred steps or more, where the noise repairs errors of the network.

    Arguments:
        steps: network evaluations an item.
        churn: 0 is DDIM, 1 ancestral sampling (DDPM), inf renews all noise; tau = sqrt(churn).
        changes: fields of `Multistep`.

    References:
        | Denoising diffusion probabilistic models (Ho, Jain, Abbeel, 2020)
        | Denoising diffusion implicit models (Song, Meng, Ermon, 2021)
    """
    return row("ancestral")(steps=steps, **{"stochasticity": _tau("churn", churn), **changes})


def ddpm(steps: int = 100, **changes: Any) -> Multistep:
    """Ancestral sampling: `ancestral` with churn 1.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `Multistep`.
    """
    return ancestral(steps, **changes)


def dpm_2m(steps: int = 20, **changes: Any) -> Multistep:
    """DPM-Solver, multistep, in the kind noise. Order 2.

        x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) (e_0 + (h / 2 h_1) (e_0 - e_1))

    with h_1 the length of the step before. Use dpmpp_2m under guidance.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in around 10 steps
        | (Lu et al., 2022)
    """
    return row("dpm_2m")(steps=steps, **changes)


def dpmpp_2m(steps: int = 20, **changes: Any) -> Multistep:
    """DPM-Solver++(2M), multistep, in the kind data. Order 2.

        x_t = (sigma_t / sigma_s) x_s - alpha_t (e^-h - 1) (D_0 + (h / 2 h_1) (D_0 - D_1))

    with h_1 the length of the step before. Use it with guided or thresholded networks at 10 to 30
    evaluations.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
    """
    return row("dpmpp_2m")(steps=steps, **changes)


def dpmpp_3m(steps: int = 20, **changes: Any) -> Multistep:
    """The multistep method of order 3 in the kind data that DPM-Solver++(3M) means to be.

        x_t = (sigma_t / sigma_s) x_s + alpha_t int_(lambda_s)^(lambda_t) e^(lambda - lambda_t) Q d(lambda)

    with Q the quadratic polynomial in lambda through D_0, D_1, D_2. Published code multiplies the
    divided difference, which is half the second derivative, as if it were the whole: it lacks a
    factor 2 and has order 2. Use it from 20 evaluations on.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
    """
    return row("dpmpp_3m")(steps=steps, **changes)


def sde_dpmpp_2m(steps: int = 20, eta: float = 1.0, **changes: Any) -> Multistep:
    """SDE-DPM-Solver++(2M). Order 2 in law, 1 on the path.

        x_t = (sigma_t / sigma_s) e^(-eta h) x_s - alpha_t (e^(-(1 + eta) h) - 1) D
              + sigma_t sqrt(1 - e^(-2 eta h)) z,    D = D_0 + (h / 2 h_1) (D_0 - D_1)

    Use it where ancestral sampling is wanted in a quarter of its steps.

    Arguments:
        steps: network evaluations an item.
        eta: tau^2, from 0 (the flow) over 1 (the reverse SDE) to more noise.
        changes: fields of `Multistep`.

    References:
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
    """
    return row("sde_dpmpp_2m")(steps=steps, **{"stochasticity": _tau("eta", eta), **changes})


def sde_dpmpp_3m(steps: int = 30, eta: float = 1.0, **changes: Any) -> Multistep:
    """The stochastic multistep method with three nodes in the kind data. Order 2 in law.

    As `sde_dpmpp_2m`, with the exact integral of the quadratic polynomial through D_0, D_1, D_2 in
    place of D. The third node makes the error smaller, not its order in law.

    Arguments:
        steps: network evaluations an item.
        eta: tau^2, from 0 (the flow) over 1 (the reverse SDE) to more noise.
        changes: fields of `Multistep`.

    References:
        | SEEDS: exponential SDE solvers for fast high-quality sampling (Gonzalez et al., 2023)
        | SA-Solver: stochastic Adams solver for fast sampling of diffusion models
        | (Xue et al., 2023)
    """
    return row("sde_dpmpp_3m")(steps=steps, **{"stochasticity": _tau("eta", eta), **changes})


def deis(order: int = 3, steps: int = 10, nodes: str = "time", **changes: Any) -> Multistep:
    """DEIS: the noise prediction is a polynomial, integrated exactly. Order p.

        x_t = (alpha_t / alpha_s) x_s + alpha_t sum_j e_j int_(rho_s)^(rho_t) l_j(w) d(rho)

    with l_j the Lagrange polynomials in w = t (tAB) or w = rho (rhoAB); order p is the AB(p - 1) of
    the paper. Use it with networks that predict noise, unguided, at 10 to 20 evaluations. The
    paper's grid is `grids.power(exponent=2)`.

    Arguments:
        order: 1 to 4.
        steps: network evaluations an item.
        nodes: "time" (tAB) or "ratio" (rhoAB).
        changes: fields of `Multistep`; corrected_start=False for the start as published.

    Raises:
        ValueError: for other nodes.

    References:
        | Fast sampling of diffusion models with exponential integrator (Zhang, Chen, 2023)
    """
    if nodes not in ("time", "ratio"):
        raise ValueError(f"nodes must be 'time' (tAB) or 'ratio' (rhoAB), got {nodes!r}")
    name = "deis" if nodes == "time" else "deis_rhoab"
    return row(name)(steps=steps, order=order, **changes)


def lms(order: int = 4, steps: int = 20, **changes: Any) -> Multistep:
    """Linear multistep in rho: Adams-Bashforth with exact weights on unequal steps. Order p.

    The formula of `deis` with w = rho. Use it on the grid "karras".

    Arguments:
        order: 1 to 4.
        steps: network evaluations an item.
        changes: fields of `Multistep`; corrected_start=False for the start as published.

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    """
    return row("lms")(steps=steps, order=order, **changes)


def ipndm(order: int = 4, steps: int = 20, **changes: Any) -> Multistep:
    """PNDM without its warm-up (iPNDM, PLMS): DDIM with Adams-Bashforth's constants.

        x_t = DDIM step with e = (55 e_0 - 59 e_1 + 37 e_2 - 9 e_3) / 24

    The constants belong to equal steps in rho; on other grids the order is 2. Use it to compare
    with published numbers; `deis` has the weights that unequal steps need.

    Arguments:
        order: 1 to 4.
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | Pseudo numerical methods for diffusion models on manifolds (Liu et al., 2022)
    """
    return row("ipndm")(steps=steps, order=order, **changes)


def plms(order: int = 4, steps: int = 20, **changes: Any) -> Multistep:
    """The other name of `ipndm`."""
    return ipndm(order, steps, **changes)


def unipc(order: int = 3, steps: int = 10, **changes: Any) -> Multistep:
    """UniPC-p with B_2(h): exponential Adams-Bashforth-Moulton, without further evaluations.

        predictor    x_t = (sigma_t / sigma_s) x_s + alpha_t int e^(lambda - lambda_t) Q d(lambda)
        corrector    the same with D at the predicted point as one more node

    Order p + 1 inside, min(p + 1, 3) with the published start, p + 1 up to 4 with
    corrected_start=True. B(h) cancels but for the two shortcuts with the constant 1/2, the rule
    "half". Use it with guided networks at 5 to 10 evaluations, kind="noise" for unguided ones.

    Arguments:
        order: 1 to 4.
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | UniPC: a unified predictor-corrector framework (Zhao et al., 2023)
    """
    return row("unipc")(steps=steps, order=order, **changes)


def euler(steps: int = 50, **changes: Any) -> Multistep:
    """Euler's method on the velocity: x_t = x_s + (t - s) v. Order 1.

    Use it with rectified flows, whose paths are straight.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | Flow straight and fast: learning to generate and transfer data with rectified flow
        | (Liu et al., 2023)
    """
    return row("euler")(steps=steps, **changes)


def ab(order: int = 2, steps: int = 20, **changes: Any) -> Multistep:
    """Adams-Bashforth on the velocity, with exact weights on unequal steps. Order p.

        x_t = x_s + sum_j v_j int_s^t l_j(t') dt'

    Use it with flow matching networks at 5 to 20 evaluations.

    Arguments:
        order: 1 to 4.
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | Flow matching for generative modeling (Lipman et al., 2023)
    """
    return row("ab")(steps=steps, order=order, **changes)


def abm(order: int = 3, steps: int = 10, **changes: Any) -> Multistep:
    """Adams-Bashforth-Moulton in the angle, on v-predictions. Order p + 1, at most 4.

        d(x / c) = v d(angle),    c = sqrt(alpha^2 + sigma^2),    angle = atan2(sigma, alpha)

    The corrector takes the prediction at the predicted point, so it costs no evaluation. Nothing is
    infinite at either end. Use it with exact or very good scores.

    Arguments:
        order: 1 to 4.
        steps: network evaluations an item.
        changes: fields of `Multistep`.

    References:
        | UniPC: a unified predictor-corrector framework (Zhao et al., 2023)
    """
    return row("abm")(steps=steps, order=order, **changes)


def _tau(name: str, square: float) -> float:
    """tau, from tau^2."""
    if not square >= 0:
        raise ValueError(f"{name} must not be negative, got {square}")
    return math.sqrt(square)
