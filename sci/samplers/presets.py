r"""Named samplers: what a recipe, a command line or a notebook asks for.

    samples = sci.samplers.dpmpp_2m(20)(denoiser, like=data, seed=0)
    samples = sci.samplers.preset("dpmpp_2m", 20, grid="karras")(denoiser, like=data, seed=0)

Every function takes the number of network evaluations, and any setting of its sampler by keyword.
`TABLE` has the settings, the orders of convergence, the references, and when to use which.
"""

from __future__ import annotations

from typing import Any

from sci.samplers import grids
from sci.samplers.engine import Multistep
from sci.samplers.named_multistep import (
    ab,
    abm,
    ancestral,
    ddim,
    ddpm,
    deis,
    dpm_2m,
    dpmpp_2m,
    dpmpp_3m,
    euler,
    ipndm,
    lms,
    plms,
    sde_dpmpp_2m,
    sde_dpmpp_3m,
    unipc,
)
from sci.samplers.named_onestep import (
    adaptive,
    dpm_solver,
    dpmpp_2s,
    dpmpp_3s,
    edm_heun,
    heun,
    midpoint,
    rk4,
)
from sci.samplers.table import TABLE, Preset, row

__all__ = [
    "TABLE",
    "Preset",
    "ab",
    "abm",
    "adaptive",
    "ancestral",
    "ddim",
    "ddpm",
    "default",
    "deis",
    "dpm_2m",
    "dpm_solver",
    "dpmpp_2m",
    "dpmpp_2s",
    "dpmpp_3m",
    "dpmpp_3s",
    "edm_heun",
    "euler",
    "heun",
    "ipndm",
    "lms",
    "midpoint",
    "plms",
    "preset",
    "rk4",
    "sde_dpmpp_2m",
    "sde_dpmpp_3m",
    "unipc",
]


def preset(name: str, steps: int | None = None, **changes: Any) -> Any:
    """A sampler by its name, for recipes and command lines.

    Arguments:
        name: a key of `TABLE`, an alias (ddpm, plms, deis_tab), or "default".
        steps: network evaluations an item, the most of them for "adaptive"; the sampler's own
            default when None.
        changes: `order` and any field of the sampler.

    Returns:
        A `Multistep`, `OneStep` or `Adaptive` sampler.

    Raises:
        ValueError: for an unknown name or setting; lists close ones.

    Example:
        >>> preset("unipc", 8, order=2).corrector
        2
    """
    if steps is not None:
        changes["steps"] = steps
    return default(**changes) if name == "default" else row(name)(**changes)


def default(steps: int = 20, exact: bool = False, **changes: Any) -> Multistep:
    """Our recommendation.

    Trained networks: order 3 with a corrector in the kind data (UniPC), steps equal in the angle,
    falling order at the end, and the data prediction as the last evaluation. Exact scores
    (analytic, teachers): order 4 with a corrector in the angle, on steps that are graded towards
    the data and end at sigma = 0; up to 20 steps the last one has order 1.

    Arguments:
        steps: network evaluations an item.
        exact: whether the score is exact and smooth.
        changes: fields of `Multistep`.
    """
    if exact:
        # The last step leaps to sigma = 0: there a high order pays only when steps are short.
        order = min(4, steps)
        orders = order if steps > 20 else (order,) * (steps - 1) + (1,)
        settings = {
            "order": orders,
            "corrector": order,
            "corrected_start": False,
            "grid": grids.graded_angle(stop=1.0),
        }
        return preset("abm", steps, **{**settings, **changes})
    trained = {"grid": "uniform_angle", "final": "data", "lower_final": True}
    return preset("unipc", steps, **{"order": min(3, steps), **trained, **changes})
