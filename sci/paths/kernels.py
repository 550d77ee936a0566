"""Kernels of discrete diffusion: classes that are kept or replaced, and the laws of their steps.

At path time t an element keeps its class with probability a(t), which grows from 0 at the source
to 1 at data, and is drawn afresh from a law m otherwise:

    q(x_t | data) = a_t [x_t = data] + (1 - a_t) m(x_t)

with m uniform, the marginal of the data, or a state of its own ("absorbing"). For s later than t,
r = a_t / a_s is the keep probability from s back to t, and by Bayes

    q(x_s | x_t, data) = (r [x_s = x_t] + (1 - r) m(x_t)) (a_s [x_s = data] + (1 - a_s) m(x_s))
                         / q(x_t | data).

Averaged over predicted probabilities p(data), with w(d) = p(d) / q(x_t | d) and W = sum w, this is

    p(x_s | x_t) = (r [x_s = x_t] + (1 - r) m(x_t)) (a_s w(x_s) + (1 - a_s) m(x_s) W)

which costs as much as p itself. At a_s = 1 it is p. The posterior belongs to a family of steps with
the same marginals q(x_t | data), by stochasticity eta:

    eta = 0      keep x_t with probability (1 - a_s) / (1 - a_t), else take data: fewest jumps
    eta < 1      the mixture of that with the posterior, which has probability eta
    eta > 1      the posterior at the keep probability a' = a_s^(1 / eta), noised back to a_s
    eta = inf    take data and noise it to s

References:
    | Structured denoising diffusion models in discrete state-spaces (Austin et al., 2021)
    | Argmax flows and multinomial diffusion (Hoogeboom et al., 2021)
    | Denoising diffusion implicit models (Song, Meng, Ermon, 2021)
    | Improving and unifying discrete-time and continuous-time discrete denoising diffusion
    | (Zhao et al., 2024)
    | Discrete flow matching (Gat et al., 2024)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sci.paths.linear import check_kind

__all__ = ["KERNELS", "draw", "law", "posterior"]

KERNELS = ("absorbing", "marginal", "uniform")


def law(
    kernel: str, classes: int, marginal: Sequence[float] | np.ndarray | Tensor | None = None
) -> Tensor:
    """The law m that replaced classes are drawn from.

    Arguments:
        kernel: "uniform", "marginal" or "absorbing".
        classes: how many classes the data has.
        marginal: (classes,) probabilities, for the kernel "marginal" alone.

    Returns:
        (states,) float64; one state more than classes for the absorbing kernel.

    Raises:
        ValueError: for an unknown kernel, or a marginal that is no probability law.
    """
    check_kind(kernel, KERNELS, "unknown kernel")
    if (marginal is None) == (kernel == "marginal"):
        verb = "needs" if marginal is None else "takes no"
        raise ValueError(f"kernel='{kernel}' {verb} `marginal`, the probabilities of the classes")
    if kernel == "uniform":
        return torch.full((classes,), 1.0 / classes, dtype=torch.float64)
    if kernel == "absorbing":
        return torch.nn.functional.one_hot(torch.tensor(classes), classes + 1).double()
    found = torch.as_tensor(marginal, dtype=torch.float64).detach().cpu()
    if found.shape != (classes,):
        raise ValueError(f"marginal has shape {tuple(found.shape)}: expected ({classes},)")
    if not (bool((found >= 0).all()) and abs(float(found.sum()) - 1.0) < 1e-4):
        raise ValueError(
            f"marginal must hold probabilities that sum to 1, got a sum of {float(found.sum()):.6g}"
        )
    return found / found.sum()


def draw(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Classes by the inverse of the cumulative sum.

    Arguments:
        probabilities: (B, ..., C), or (C,) for all; they need not sum to 1.
        uniforms: (B, ...) in [0, 1); 0 gives class 0.

    Returns:
        (B, ...) int64; -1 where a probability is not finite.

    Example:
        >>> import torch
        >>> draw(torch.tensor([0.2, 0.0, 0.8]), torch.tensor([0.1, 0.3])).tolist()
        [0, 2]
    """
    total = probabilities.to(uniforms.dtype).cumsum(-1)
    found = (total < uniforms[..., None] * total[..., -1:]).sum(-1)
    # Comparisons with NaN are false, which would be class 0 without a word.
    return torch.where(torch.isfinite(total[..., -1]), found, -1)


def posterior(
    x: Tensor,
    data: Tensor,
    law: Tensor,
    now: Tensor | float,
    then: Tensor | float,
    stochasticity: float = 1.0,
) -> Tensor:
    """The law of x_s given x_t and p(data); see the module.

    Where the state can only be the data itself (an element that the absorbing kernel has left), it
    is taken for the data, whatever the prediction.

    Arguments:
        x: (B, ...) int64 states at time t.
        data: (B, ..., states) probabilities, float32 or float64.
        law: (states,) m.
        now: a_t, a float or a tensor that broadcasts against data.
        then: a_s, larger.
        stochasticity: eta >= 0.

    Returns:
        (B, ..., states) probabilities.
    """
    law = law.to(data)
    here = torch.nn.functional.one_hot(x, data.shape[-1]).to(data)
    seen = law[x][..., None]
    known = (1.0 - now) * seen <= 0
    data = torch.where(known, here, data)
    if stochasticity > 1:
        later = then ** (1.0 / stochasticity)
        ratio = then / later
        exact = torch.where(known, here, _bayes(here, data, seen, law, now, later))
        return ratio * exact + (1.0 - ratio) * law
    if stochasticity > 0:
        exact = torch.where(known, here, _bayes(here, data, seen, law, now, then))
        if stochasticity == 1:
            return exact
    stay = (1.0 - then) / (1.0 - now)
    flow = torch.where(known, here, stay * here + (1.0 - stay) * data)
    return flow if stochasticity == 0 else stochasticity * exact + (1.0 - stochasticity) * flow


def _bayes(here: Tensor, data: Tensor, seen: Tensor, law: Tensor, now: Any, then: Any) -> Tensor:
    """p(x_s | x_t); here is the one-hot x_t and seen is m(x_t)."""
    ratio = now / then
    chance = now * here + (1.0 - now) * seen
    weights = data / chance.clamp(min=torch.finfo(data.dtype).tiny)
    total = weights.sum(-1, keepdim=True)
    return (ratio * here + (1.0 - ratio) * seen) * (then * weights + (1.0 - then) * law * total)
