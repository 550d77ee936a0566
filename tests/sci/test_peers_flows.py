"""Named samplers against azula, k-diffusion, torchdiffeq and flow_matching, on the same exact scores to 1e-10."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import types
from typing import Any

import numpy as np
import pytest
import torch
from peers import EXPLODING, TIMES, Given, Mixture, close, levels, ours
from torch import Tensor

from sci import samplers
from sci.samplers import Multistep
from sci.schedules import CondOT, Custom

# What the peers themselves are warned of.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(params=[2, 10], ids=["2-D", "10-D"])
def mixture(request) -> Mixture:
    return Mixture(request.param)


# --- azula --------------------------------------------------------------------------------------


def of_azula(mixture: Mixture, schedule: str, name: str, **settings: Any) -> tuple[Tensor, Any]:
    """Its samples, and its schedule as one of ours."""
    pytest.importorskip("azula", reason="the peer of this test is not installed")
    import azula.denoise
    import azula.noise
    import azula.sample

    law = getattr(azula.noise, f"{schedule}Schedule")()

    class Exact(azula.denoise.Denoiser):
        def forward(self, x_t: Tensor, t: Tensor, **_: Any) -> Any:
            alpha, sigma = map(float, law(t))
            return azula.denoise.DiracPosterior(mixture.data(x_t, alpha, sigma))

    denoiser = Exact()
    denoiser.schedule = law
    made = {"start": 0.9, "stop": 0.2, "steps": 7, "silent": True, "dtype": torch.float64}
    theirs = getattr(azula.sample, f"{name}Sampler")(denoiser, **made, **settings)
    path = Custom(lambda t: law(1 - t)[0], lambda t: law(1 - t)[1], span=(0.1, 0.8))
    return theirs(mixture.start), path


@pytest.mark.parametrize("schedule", ["VP", "Cosine", "Rectified"])
@pytest.mark.parametrize(
    ("name", "order", "kind", "variable"),
    [
        ("Euler", 1, "data", "log_snr"),
        ("zAB", 2, "noise", "S"),
        ("zAB", 3, "noise", "S"),
        ("vAB", 2, "difference", "S"),
        ("vAB", 3, "difference", "S"),
        ("zEAB", 2, "noise", "log_snr"),
        ("zEAB", 3, "noise", "log_snr"),
        ("xEAB", 2, "data", "log_snr"),
        ("xEAB", 3, "data", "log_snr"),
    ],
)
def test_azula(mixture, schedule: str, name: str, order: int, kind: str, variable: str) -> None:
    settings = {} if name == "Euler" else {"order": order}
    theirs, path = of_azula(mixture, schedule, name, **settings)
    times = np.linspace(0.1, 0.8, 8)
    sampler = Multistep(7, kind, variable, order, grid=times)
    assert close(ours(mixture, path, sampler, mixture.start), theirs)


# --- k-diffusion --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def k_diffusion() -> Any:
    """Its module of samplers; the package as a whole wants image libraries that sampling does not."""
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None:
        pytest.skip("the peer of this test is not installed")
    before = dict(sys.modules)
    sys.modules["k_diffusion"] = importlib.util.module_from_spec(spec)
    images = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
    try:
        sys.modules.update({name: types.ModuleType(name) for name in images})
        vars(sys.modules[images[1]])["functional"] = sys.modules[images[2]]
        yield importlib.import_module("k_diffusion.sampling")
    finally:
        for name in (*images, "k_diffusion", "k_diffusion.sampling", "k_diffusion.utils"):
            sys.modules.pop(name, None)
            if name in before:
                sys.modules[name] = before[name]


def of_k_diffusion(k_diffusion, mixture: Mixture, name: str, **settings: Any) -> Tensor:
    sigmas = torch.from_numpy(levels(EXPLODING)[2])
    solve = getattr(k_diffusion, f"sample_{name}")

    def model(x: Tensor, sigma: Tensor) -> Tensor:
        return mixture.data(x, 1.0, float(sigma[0]))

    return solve(model, mixture.start * sigmas[0], sigmas, disable=True, **settings)


@pytest.mark.parametrize(
    ("name", "sampler"),
    [
        ("euler", samplers.ddim(8, grid=TIMES)),
        ("heun", samplers.heun(16, kind="noise", grid=TIMES)),
        ("dpm_2", samplers.dpm_solver(2, 16, grid=TIMES)),
        ("lms", samplers.lms(4, 8, grid=TIMES, corrected_start=False)),
        ("dpmpp_2m", samplers.dpmpp_2m(8, grid=TIMES)),
    ],
)
def test_k_diffusion(k_diffusion, mixture: Mixture, name: str, sampler: Any) -> None:
    theirs = of_k_diffusion(k_diffusion, mixture, name)
    start = mixture.start * levels(EXPLODING)[2][0]
    assert close(ours(mixture, EXPLODING, sampler, start), theirs)


@pytest.mark.parametrize(
    ("name", "eta", "settings"),
    [
        ("euler_ancestral", 1.0, {}),
        ("dpmpp_2m_sde", 1.0, {"solver_type": "midpoint"}),
        ("dpmpp_2m_sde", 1.0, {"solver_type": "heun"}),
        ("dpmpp_2m_sde", 0.5, {"solver_type": "heun"}),
    ],
)
def test_k_diffusion_with_noise(k_diffusion, mixture, name, eta, settings) -> None:
    draws = torch.randn(8, *mixture.start.shape, dtype=torch.float64)
    given = iter(draws)
    theirs = of_k_diffusion(
        k_diffusion, mixture, name, eta=eta, noise_sampler=lambda a, b: next(given), **settings
    )
    if name == "euler_ancestral":
        sampler = samplers.ancestral(8, grid=TIMES)
    else:
        rule = "half" if settings["solver_type"] == "midpoint" else "exact"
        sampler = samplers.sde_dpmpp_2m(8, eta=eta, rule=rule, grid=TIMES)
    start = mixture.start * levels(EXPLODING)[2][0]
    assert close(ours(mixture, EXPLODING, sampler, start, noise=Given(draws)), theirs)


def test_k_diffusion_3m_lacks_the_factor_two_as_well(k_diffusion, mixture: Mixture) -> None:
    theirs = of_k_diffusion(k_diffusion, mixture, "dpmpp_3m_sde", eta=0.0)
    start = mixture.start * levels(EXPLODING)[2][0]
    sampler = Multistep(8, "data", "log_snr", 3, grid=TIMES)
    assert not close(ours(mixture, EXPLODING, sampler, start), theirs, 1e-3)
    # Up to order 2, which is its second step, the two are one.
    sigmas = torch.from_numpy(levels(EXPLODING)[2][:3])
    theirs = k_diffusion.sample_dpmpp_3m_sde(
        lambda x, sigma: mixture.data(x, 1.0, float(sigma[0])), start, sigmas, disable=True, eta=0.0
    )
    sampler = Multistep(2, "data", "log_snr", 2, grid=TIMES[:3])
    assert close(ours(mixture, EXPLODING, sampler, start), theirs)


# --- torchdiffeq, flow_matching -----------------------------------------------------------------


def velocity(mixture: Mixture, x: Tensor, t: Tensor) -> Tensor:
    time = float(t)
    return mixture.data(x, time, 1 - time) - mixture.noise(x, time, 1 - time)


@pytest.mark.parametrize(
    ("name", "method", "stages"),
    [("euler", "euler", 1), ("midpoint", "midpoint", 2), ("heun2", "heun", 2), ("rk4", "rk4", 4)],
)
def test_torchdiffeq(mixture: Mixture, name: str, method: str, stages: int) -> None:
    torchdiffeq = pytest.importorskip("torchdiffeq", reason="the peer is not installed")
    times = torch.from_numpy(TIMES)
    theirs = torchdiffeq.odeint(
        lambda t, x: velocity(mixture, x, t), mixture.start, times, method=name
    )[-1]
    sampler = samplers.OneStep(8 * stages, method, grid=TIMES)
    same = close(ours(mixture, CondOT(), sampler, mixture.start), theirs)
    # Their rk4 is Kutta's 3/8 rule, ours the classical one: both have order 4.
    assert same == (name != "rk4")


def test_flow_matching(mixture: Mixture) -> None:
    solver = pytest.importorskip("flow_matching.solver", reason="the peer is not installed")
    model = solver.ODESolver(lambda x, t: velocity(mixture, x, t))
    for method, sampler in (
        ("euler", samplers.euler(8, grid=TIMES)),
        ("midpoint", samplers.midpoint(16, grid=TIMES)),
    ):
        theirs = model.sample(
            mixture.start, step_size=None, method=method, time_grid=torch.from_numpy(TIMES)
        )
        assert close(ours(mixture, CondOT(), sampler, mixture.start), theirs)
