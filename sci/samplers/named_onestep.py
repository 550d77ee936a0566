r"""Named one-step samplers, one function a name; the settings are in `sci.samplers.table`.

In the formulae the step goes from s to t, h = lambda_t - lambda_s is its length in log-SNR,
rho = sigma / alpha, D and e are the predictions of data and noise, and an index counts the steps
back.
"""

from __future__ import annotations

from typing import Any

from sci.samplers.adaptive import Adaptive
from sci.samplers.onestep import OneStep
from sci.samplers.table import row

__all__ = [
    "adaptive",
    "dpm_solver",
    "dpmpp_2s",
    "dpmpp_3s",
    "edm_heun",
    "heun",
    "midpoint",
    "rk4",
]


def dpm_solver(order: int = 2, steps: int = 20, **changes: Any) -> OneStep:
    """DPM-Solver-1, -2 and -3, singlestep: stages inside each transition, in the kind noise.

        -1    x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) e_s
        -2    the same with e at log-SNR lambda_s + h / 2, reached by -1
        -3    stages at h / 3 and 2 h / 3; with q = (e^h - 1) / h - 1
              x_t = (alpha_t / alpha_s) x_s - sigma_t (e^h - 1) e_s - (3 / 2) sigma_t q (e_2 - e_s)

    Order p takes p evaluations a transition and converges with order p; a remainder of steps is a
    transition of that lower order. Use it to compare with published numbers.

    Arguments:
        order: 1, 2 or 3.
        steps: network evaluations an item.
        changes: fields of `OneStep`.

    References:
        | DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in around 10 steps
        | (Lu et al., 2022)
    """
    return row("dpm_solver")(steps=steps, order=order, **changes)


def dpmpp_2s(steps: int = 20, **changes: Any) -> OneStep:
    """DPM-Solver++(2S), singlestep, in the kind data. Order 2.

        x_m = (sigma_m / sigma_s) x_s - alpha_m (e^(-h / 2) - 1) D(x_s),   lambda_m = lambda_s + h / 2
        x_t = (sigma_t / sigma_s) x_s - alpha_t (e^-h - 1) D(x_m)

    Two evaluations a transition, and no past: use it where the state is edited or resampled on the
    way.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `OneStep`.

    References:
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
    """
    return row("dpmpp_2s")(steps=steps, **changes)


def dpmpp_3s(steps: int = 30, **changes: Any) -> OneStep:
    """DPM-Solver++(3S), singlestep, in the kind data. Order 3.

    Stages at h / 3 and 2 h / 3 as in `dpm_solver`; the last point is the exact integral of the line
    through the predictions at 0 and 2 h / 3. From 30 evaluations on.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `OneStep`.

    References:
        | DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models
        | (Lu et al., 2022)
    """
    return row("dpmpp_3s")(steps=steps, **changes)


def heun(steps: int = 20, **changes: Any) -> OneStep:
    """Heun's method on the velocity. Order 2, two evaluations a transition.

        x_t = x_s + (t - s) (v(x_s, s) + v(x_s + (t - s) v(x_s, s), t)) / 2

    It evaluates at the end of the grid; where sigma vanishes there, `midpoint` is better unless the
    network predicts the velocity.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `OneStep`.

    References:
        | Solving ordinary differential equations I: nonstiff problems (Hairer, Norsett, Wanner, 1993)
    """
    return row("heun")(steps=steps, **changes)


def midpoint(steps: int = 20, **changes: Any) -> OneStep:
    """The midpoint method on the velocity. Order 2, two evaluations a transition.

        x_t = x_s + (t - s) v(x_s + (t - s) v(x_s, s) / 2, (s + t) / 2)

    Arguments:
        steps: network evaluations an item.
        changes: fields of `OneStep`.

    References:
        | Flow matching for generative modeling (Lipman et al., 2023)
    """
    return row("midpoint")(steps=steps, **changes)


def rk4(steps: int = 40, **changes: Any) -> OneStep:
    """The classical Runge-Kutta method on the velocity. Order 4, four evaluations a transition.

        x_t = x_s + (t - s) (v_1 + 2 v_2 + 2 v_3 + v_4) / 6

    with v_1 at s, v_2 and v_3 in the middle, v_4 at t. Three, two or one remaining evaluations are a
    last transition of that order. It evaluates at the end of the grid, see `heun`.

    Arguments:
        steps: network evaluations an item.
        changes: fields of `OneStep`.

    References:
        | Solving ordinary differential equations I: nonstiff problems (Hairer, Norsett, Wanner, 1993)
    """
    return row("rk4")(steps=steps, **changes)


def edm_heun(steps: int = 35, churn: float = 0.0, **changes: Any) -> OneStep:
    """The Heun sampler of EDM, on any schedule, with its churn. Order 2 in rho = sigma / alpha.

        rho^ = rho_s (1 + min(churn / n, sqrt(2) - 1)),  y^ = x_s / alpha_s + sqrt(rho^^2 - rho_s^2) z
        y_t = y^ + (rho_t - rho^) (e(y^, rho^) + e(y_e, rho_t)) / 2,  y_e = y^ + (rho_t - rho^) e(y^, rho^)

    n transitions of two evaluations on the grid "karras", then the data prediction, which is the
    Euler step to no noise: n = (steps - 1) / 2 for odd steps; with an even number the last
    transition is an Euler step too.

    Arguments:
        steps: network evaluations an item; 35 in the paper for small images.
        churn: S_churn; 0 is the flow. `churn_range` holds S_tmin and S_tmax, `churn_noise` S_noise.
        changes: fields of `OneStep`.

    References:
        | Elucidating the design space of diffusion-based generative models (Karras et al., 2022)
    """
    return row("edm_heun")(steps=steps, **{"churn": churn, **changes})


def adaptive(rtol: float = 1e-4, atol: float = 1e-4, **changes: Any) -> Adaptive:
    """Steps chosen by an embedded error, one step size an item: Dormand-Prince 5(4), or
    Bogacki-Shampine 3(2) with order=3.

    Use it for references, and where the error must be known and not the cost.

    Arguments:
        rtol: relative tolerance of a step.
        atol: absolute tolerance of a step, in units of the data at the end.
        changes: fields of `Adaptive`; steps is the most evaluations that an item may take.

    References:
        | A family of embedded Runge-Kutta formulae (Dormand, Prince, 1980)
        | A 3(2) pair of Runge-Kutta formulas (Bogacki, Shampine, 1989)
    """
    return row("adaptive")(**{"rtol": rtol, "atol": atol, **changes})
