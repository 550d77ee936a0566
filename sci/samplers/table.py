"""The table of named samplers.

A name stands for settings of one of three engines: `Multistep`, which keeps past predictions and
takes one evaluation a step; `OneStep`, which keeps none; `Adaptive`, which chooses its steps. Each
row also says which order of convergence it reaches, under which conditions, who published it, and
when to use it. `sci.samplers.presets` has one function a name.
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Mapping
from typing import Any

from sci.samplers.adaptive import Adaptive
from sci.samplers.engine import Multistep
from sci.samplers.onestep import OneStep

__all__ = ["ALIASES", "TABLE", "Preset", "row"]

_EVENLY = "one leaf or several, any schedules, grids refined evenly between ends inside (0, 1)"


@dataclasses.dataclass(frozen=True)
class Preset:
    """A row of the table.

    Arguments:
        sampler: `Multistep`, `OneStep` or `Adaptive`.
        orders: which orders there are; the first one unless told.
        settings: fields of the sampler.
        reference: title (authors, year).
        use: when to use it.
        convergence: order of the method -> order with which the error falls with the number of
            steps: of the path for flows, of the variance of a Gaussian for stochastic samplers.
        where: under which conditions.
        corrected: whether a corrector of the same order belongs to it.
        methods: order -> `method` of a `OneStep`.
        started: whether orders above 2 get `corrected_start`, without which the first steps, which
            have no past, hold the whole at order 2 (3 with a corrector).
    """

    sampler: type
    orders: tuple[int, ...]
    settings: Mapping[str, Any]
    reference: str
    use: str
    convergence: Mapping[int, float]
    where: str = _EVENLY
    corrected: bool = False
    methods: Mapping[int, str] = dataclasses.field(default_factory=dict)
    started: bool = False

    @property
    def stochastic(self) -> bool:
        """Whether noise is added on the way."""
        return bool(self.settings.get("stochasticity"))

    def __call__(self, order: Any = None, **changes: Any) -> Any:
        """The sampler.

        Arguments:
            order: one of `orders`, or one for each step of a `Multistep`.
            changes: fields of the sampler, such as steps and grid.

        Raises:
            ValueError: for an order that the method does not have, or a setting that its sampler
                does not have; lists close names.
        """
        chosen = self.orders[0] if order is None else order
        each: tuple[Any, ...] = (chosen,)
        if isinstance(chosen, (list, tuple)) and self.sampler is Multistep:
            each = tuple(chosen)
        if not each or any(one not in self.orders for one in each):
            raise ValueError(f"expected an order of {sorted(self.orders)}, got order={order!r}")
        allowed = [field.name for field in dataclasses.fields(self.sampler)]
        for name in changes:
            if name not in allowed:
                close = difflib.get_close_matches(name, allowed, n=3)
                hint = f" (did you mean {' or '.join(map(repr, close))}?)" if close else ""
                raise ValueError(
                    f"a {self.sampler.__name__} sampler has no setting '{name}'{hint}: expected "
                    f"order or one of {', '.join(allowed)}"
                )
        settings = {**self.settings}
        if self.methods:
            settings["method"] = self.methods[chosen]
        elif "order" in allowed:
            settings["order"] = chosen
        if self.corrected:
            settings["corrector"] = chosen
        if self.started:
            settings["corrected_start"] = max(each) > 2
        return self.sampler(**{**settings, **changes})


_DPM = (
    "DPM-Solver: a fast ODE solver for diffusion probabilistic model sampling in around 10 steps "
    "(Lu et al., 2022)"
)
_DPMPP = (
    "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models "
    "(Lu et al., 2022)"
)
_SEEDS = "SEEDS: exponential SDE solvers for fast high-quality sampling (Gonzalez et al., 2023)"
_DEIS = "Fast sampling of diffusion models with exponential integrator (Zhang, Chen, 2023)"
_EDM = "Elucidating the design space of diffusion-based generative models (Karras et al., 2022)"
_FLOW = "Flow matching for generative modeling (Lipman et al., 2023)"
_UNIPC = "UniPC: a unified predictor-corrector framework (Zhao et al., 2023)"
_NOISE_END = f"{_EVENLY}; alpha must not vanish at the start"
_MULTIPLES = "; numbers of steps that are multiples of the order"
_VELOCITY = {"kind": "velocity", "grid": "uniform_time"}
_NO_END = (
    "The network is evaluated at the end: where sigma vanishes there, it should predict velocity."
)

TABLE: dict[str, Preset] = {
    "ddim": Preset(
        Multistep,
        (1,),
        {"kind": "data"},
        "Denoising diffusion implicit models (Song, Meng, Ermon, 2021)",
        "as a baseline, for latents that must be inverted, and where robustness beats accuracy",
        {1: 1.0},
    ),
    "ancestral": Preset(
        Multistep,
        (1,),
        {"kind": "data", "stochasticity": 1.0},
        "Denoising diffusion probabilistic models (Ho, Jain, Abbeel, 2020)",
        "with a hundred steps or more, where the noise repairs errors of the network",
        {1: 1.0},
    ),
    "dpm_solver": Preset(
        OneStep,
        (2, 1, 3),
        {"kind": "noise", "rule": "half", "grid": "uniform_log_snr"},
        _DPM,
        "to compare with published numbers; without guidance and from 15 evaluations on",
        {1: 1.0, 2: 2.0, 3: 3.0},
        _NOISE_END + _MULTIPLES,
        methods={1: "exponential_1", 2: "exponential_2", 3: "exponential_3"},
    ),
    "dpm_2m": Preset(
        Multistep,
        (2,),
        {"kind": "noise", "rule": "half"},
        _DPM,
        "to compare with published numbers; dpmpp_2m is steadier under guidance",
        {2: 2.0},
        _NOISE_END,
    ),
    "dpmpp_2s": Preset(
        OneStep,
        (2,),
        {"kind": "data", "rule": "half", "grid": "uniform_log_snr"},
        _DPMPP,
        "where past predictions must not be kept: states that are edited or resampled on the way",
        {2: 2.0},
        _EVENLY + _MULTIPLES,
        methods={2: "exponential_2"},
    ),
    "dpmpp_3s": Preset(
        OneStep,
        (3,),
        {"kind": "data", "rule": "half", "grid": "uniform_log_snr"},
        _DPMPP,
        "as dpmpp_2s, from 30 evaluations on",
        {3: 3.0},
        _EVENLY + _MULTIPLES,
        methods={3: "exponential_3"},
    ),
    "dpmpp_2m": Preset(
        Multistep,
        (2,),
        {"kind": "data", "rule": "half"},
        _DPMPP,
        "with guided or thresholded networks at 10 to 30 evaluations",
        {2: 2.0},
    ),
    # Published code halves the quadratic term and has order 2; this has order 3.
    "dpmpp_3m": Preset(
        Multistep,
        (3,),
        {"kind": "data"},
        _DPMPP,
        "as dpmpp_2m, from 20 evaluations on and on grids with nearly equal steps in log-SNR",
        {3: 3.0},
        started=True,
    ),
    "sde_dpmpp_2m": Preset(
        Multistep,
        (2,),
        {"kind": "data", "rule": "half", "stochasticity": 1.0},
        _DPMPP,
        "where ancestral sampling is wanted in a quarter of its steps",
        {2: 2.0},
    ),
    "sde_dpmpp_3m": Preset(
        Multistep,
        (3,),
        {"kind": "data", "stochasticity": 1.0},
        _SEEDS,
        "as sde_dpmpp_2m, from 30 steps on: the order in law is the same, the error smaller",
        {3: 2.0},
    ),
    "deis": Preset(
        Multistep,
        (3, 1, 2, 4),
        {"kind": "noise", "variable": "t"},
        _DEIS,
        "with networks that predict noise, unguided, at 10 to 20 evaluations; its own grid is "
        "sci.samplers.grids.power(exponent=2)",
        {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0},
        _NOISE_END,
        started=True,
    ),
    "deis_rhoab": Preset(
        Multistep,
        (3, 1, 2, 4),
        {"kind": "noise", "variable": "S"},
        _DEIS,
        "as deis, on grids that are even in a power of sigma / alpha",
        {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0},
        _NOISE_END,
        started=True,
    ),
    "lms": Preset(
        Multistep,
        (4, 1, 2, 3),
        {"kind": "noise", "variable": "S"},
        _EDM,
        "on the grid 'karras' with 20 evaluations or more; the same formula as deis_rhoab",
        {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0},
        _NOISE_END,
        started=True,
    ),
    "ipndm": Preset(
        Multistep,
        (4, 1, 2, 3),
        {"kind": "noise", "rule": "fixed"},
        "Pseudo numerical methods for diffusion models on manifolds (Liu et al., 2022)",
        "to compare with published numbers; deis has the weights that unequal steps need",
        {1: 1.0, 2: 2.0, 3: 2.0, 4: 2.0},
        _NOISE_END + "; higher orders only where the steps in sigma / alpha are equal",
    ),
    "unipc": Preset(
        Multistep,
        (3, 1, 2, 4),
        {"kind": "data", "rule": "half"},
        _UNIPC,
        "with guided networks at 5 to 10 evaluations; kind='noise' for unguided ones",
        {1: 2.0, 2: 3.0, 3: 3.0, 4: 3.0},
        _EVENLY + "; as published: with corrected_start=True orders 3 and 4 reach 4",
        corrected=True,
    ),
    "euler": Preset(
        Multistep,
        (1,),
        {"variable": "t", **_VELOCITY},
        _FLOW,
        "with rectified flows, whose paths are straight",
        {1: 1.0},
        "one leaf or several, any schedules with finite velocity, any ends, even grids",
    ),
    "ab": Preset(
        Multistep,
        (2, 1, 3, 4),
        {"variable": "t", **_VELOCITY},
        _FLOW,
        "with flow matching networks at 5 to 20 evaluations",
        {1: 1.0, 2: 2.0, 3: 3.0, 4: 4.0},
        "one leaf or several, any schedules with finite velocity, any ends, even grids",
        started=True,
    ),
    "abm": Preset(
        Multistep,
        (3, 1, 2, 4),
        {"kind": "angular", "variable": "S", "grid": "uniform_angle"},
        _UNIPC,
        "with exact or very good scores; the best there at any number of evaluations",
        {1: 2.0, 2: 3.0, 3: 4.0, 4: 4.0},
        "one leaf or several, any schedules, any ends, even grids",
        corrected=True,
        started=True,
    ),
    "heun": Preset(
        OneStep,
        (2,),
        _VELOCITY,
        _FLOW,
        f"with flow matching networks, to compare with published numbers. {_NO_END}",
        {2: 2.0},
        _EVENLY + _MULTIPLES,
        methods={2: "heun"},
    ),
    "midpoint": Preset(
        OneStep,
        (2,),
        _VELOCITY,
        _FLOW,
        "with flow matching networks, where past predictions must not be kept; never evaluated at "
        "the end",
        {2: 2.0},
        _EVENLY + _MULTIPLES,
        methods={2: "midpoint"},
    ),
    "rk4": Preset(
        OneStep,
        (4,),
        _VELOCITY,
        _FLOW,
        f"for references, from 40 evaluations on. {_NO_END}",
        {4: 4.0},
        _EVENLY + _MULTIPLES,
        methods={4: "rk4"},
    ),
    "edm_heun": Preset(
        OneStep,
        (2,),
        {"kind": "noise", "grid": "karras", "final": "data"},
        _EDM,
        "to compare with published numbers of EDM, odd numbers of evaluations; with churn where the "
        "noise repairs errors of the network",
        {2: 2.0},
        _NOISE_END + _MULTIPLES + "; without churn, and final=None: the last data prediction "
        "leaves out the noise at the end of the grid",
        methods={2: "heun"},
    ),
    "adaptive": Preset(
        Adaptive,
        (5, 3),
        {},
        "A family of embedded Runge-Kutta formulae (Dormand, Prince, 1980)",
        "for references, and where the error must be known and not the cost",
        {},
        "the error follows the tolerance",
    ),
}

ALIASES = {"ddpm": "ancestral", "deis_tab": "deis", "plms": "ipndm"}


def row(name: str) -> Preset:
    """A row by its name or alias.

    Raises:
        ValueError: for an unknown name; lists close ones.
    """
    found = TABLE.get(ALIASES.get(name, name))
    if found is None:
        names = sorted({*TABLE, *ALIASES, "default"})
        close = difflib.get_close_matches(str(name), names, n=3) or names
        raise ValueError(f"unknown sampler '{name}': expected {' or '.join(close)}")
    return found
