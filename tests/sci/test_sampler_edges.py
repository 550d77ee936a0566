"""Samplers at their edges: dtypes, empty batches, devices, ends, and what must be refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from analytic import gaussian, points
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser, Joined
from sci.noise import Noise
from sci.paths import CategoricalPath, GaussianPath, GeodesicPath, Interpolant
from sci.samplers import Multistep, OneStep, Resampled, TunableDiffusion, grids
from sci.schedules import VE, VP, CondOT, Cosine

BRIDGE = Denoiser(lambda x, t, c: x, Interpolant(noise=0.5), "velocity")


@pytest.mark.parametrize("per_item", [False, True])
@pytest.mark.parametrize("final", [None, "data"])
@pytest.mark.parametrize("name", ["dpmpp_2m", "ancestral", "abm", "midpoint", "dpmpp_2s"])
def test_leaves_keep_their_dtype_to_the_end(name: str, final: str | None, per_item: bool) -> None:
    times = np.linspace([0.05, 0.1], [0.9, 0.95], 6 if final else 7)
    times = times if per_item else times[:, 0]
    for own in (torch.bfloat16, torch.float32, torch.float64):
        for other in (torch.bfloat16, torch.float64):
            denoiser = Denoiser(lambda x, t, c, to=other: x.to(to), GaussianPath(CondOT()))
            sampler = samplers.preset(name, 6, final=final)
            state = sampler(denoiser, like=torch.zeros(2, 3, dtype=own), times=times).state
            assert state.dtype == own


@pytest.mark.parametrize("final", [None, "data"])
def test_adaptive_leaves_keep_their_dtype_and_may_be_none_at_all(final: str | None) -> None:
    denoiser = Denoiser(lambda x, t, c: x.double(), GaussianPath(CondOT()))
    sampler = samplers.adaptive(rtol=1e-2, atol=1e-2, final=final)
    assert sampler(denoiser, like=torch.zeros(2, 3)).state.dtype == torch.float32
    empty = sampler(denoiser, like=torch.zeros(0, 3))
    assert empty.state.shape == (0, 3) and empty.nfe == 0


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.abm(2, 4),
        samplers.ancestral(4),
        samplers.edm_heun(5, churn=1.0),
        TunableDiffusion(4, "noise", "heun"),
        samplers.PredictorCorrector(steps=25),
        samplers.S4(steps=25),
        Resampled(samplers.ddim(4), 2),
    ],
)
def test_a_batch_may_have_no_items(sampler) -> None:
    assert sampler(gaussian(VP()), like=torch.zeros(0, 3)).state.shape == (0, 3)


@pytest.mark.parametrize(
    "sampler",
    [
        samplers.unipc(3, 6),
        samplers.midpoint(6),
        samplers.edm_heun(7),
        TunableDiffusion(6, 0.0, "heun"),
    ],
)
def test_items_with_their_own_times_never_bring_the_device_to_the_host(sampler) -> None:
    """Tensors on "meta" have no values: whatever reads one on the host raises."""
    transitions = 6 if isinstance(sampler, Multistep) else 3
    times = np.linspace([0.05, 0.1, 0.2], [0.9, 0.8, 0.95], transitions + 1)
    plan = sampler.plan(GaussianPath(Cosine()), times)
    carry = plan.init(torch.zeros(3, 2, device="meta"), Noise(0, range(3)))
    for step in range(plan.steps):
        carry = plan.step(lambda x, t, c, to: torch.tanh(x) * t[:, None], carry)
        if step == 0:
            carry = carry.take(torch.tensor([2, 0, 1]), noise=False)
    assert carry.state.device.type == "meta"


def test_a_data_prediction_that_a_path_cannot_give_is_refused_before_the_run() -> None:
    for sampler in (samplers.midpoint(4, final="data"), samplers.adaptive(final="data")):
        with pytest.raises(ValueError, match=r"leaf 'state' cannot follow final='data'.*latent"):
            sampler(BRIDGE, like=torch.zeros(2, 3))


def test_gaussian_drifts_are_for_gaussian_paths() -> None:
    times = np.linspace(0.2, 0.9, 20)
    for sampler in (samplers.PredictorCorrector(steps=20), samplers.S4(steps=20)):
        with pytest.raises(ValueError, match="leaf 'state' cannot follow .* no score of Gaussian"):
            sampler.plan(BRIDGE.paths, times)
    with pytest.raises(ValueError, match="leaf 'state' cannot follow TunableDiffusion.*curved"):
        TunableDiffusion(4, 0.0).plan(GeodesicPath())


def test_refusals_name_the_times_of_the_item_that_fails() -> None:
    times = np.array([[0.1, 0.1], [0.5, 0.5], [0.9, 1.0]])
    with pytest.raises(ValueError, match="from t = 0.5 to 1: its coefficients"):
        samplers.dpmpp_2s(4).plan(GaussianPath(CondOT()), times)
    with pytest.raises(ValueError, match="t = 1"):
        TunableDiffusion(4, 1.0, "heun").plan(GaussianPath(CondOT()), times)


def test_noise_between_the_ends_of_a_transition_is_noise() -> None:
    bump = TunableDiffusion(1, lambda t: t * (1.0 - t))
    with pytest.raises(ValueError, match="score, or diffusion=0"):
        bump.plan(Interpolant())


def test_too_few_levels_are_refused() -> None:
    with pytest.raises(ValueError, match="8 steps has beta / steps > 1: take at least 20 steps"):
        samplers.PredictorCorrector(steps=8).plan(GaussianPath(VP()))
    samplers.PredictorCorrector(steps=20).plan(GaussianPath(VP()))
    samplers.PredictorCorrector(steps=8).plan(GaussianPath(VE(0.1, 10.0)))


def test_settings_may_be_arrays_and_must_be_numbers() -> None:
    assert Multistep(np.int64(3), order=np.array([1, 2, 1])).order == (1, 2, 1)
    for bad in (None, "1"):
        with pytest.raises(ValueError, match="stochasticity must not be negative"):
            Multistep(5, stochasticity=bad)
        with pytest.raises(ValueError, match="diffusion must be finite|unknown diffusion"):
            TunableDiffusion(5, bad)
    for make in (Multistep, OneStep, TunableDiffusion):
        with pytest.raises(ValueError, match="steps must be an integer >= 1, got True"):
            make(True)
    with pytest.raises(ValueError, match="churn must not be negative, got -1"):
        samplers.ancestral(5, churn=-1)
    with pytest.raises(ValueError, match="eta must not be negative, got -1"):
        samplers.sde_dpmpp_3m(5, eta=-1)
    with pytest.raises(ValueError, match="noise_scale must be finite"):
        Multistep(5, noise_scale=float("inf"))
    with pytest.raises(ValueError, match=r"table of quantiles must be \(m,\)"):
        grids.from_quantiles(np.array([[0.1, 0.2], [0.8, 0.9]]))


def test_times_of_a_call_are_refused_like_those_of_a_grid() -> None:
    with pytest.raises(ValueError, match=r"entry 0 is 0.9 and entry 1 is 0.5.*t = 1 - t'"):
        samplers.ddim(2)(gaussian(Cosine()), start=points(), times=[0.9, 0.5, 0.1])


def test_values_that_are_not_finite_at_an_end_say_so() -> None:
    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        return x / t

    denoiser = Denoiser(network, GaussianPath(CondOT()), "velocity")
    with pytest.raises(FloatingPointError, match="evaluated at t = 0, where alpha = 0"):
        samplers.euler(4)(denoiser, start=torch.ones(3))


def test_stretches_of_classes_stop_at_data_only_in_the_end() -> None:
    """Taken once, the stretches are the sampler: also where less than 1% is noise."""
    path = CategoricalPath(CondOT(), 2)
    law = torch.tensor([0.9, 0.1])

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        """The exact posterior of data with that law."""
        kept = t.view(-1, 1, 1) * torch.nn.functional.one_hot(x, 2)
        return (law * (kept + 0.5 * (1.0 - t.view(-1, 1, 1)))).log()

    denoiser = Denoiser(network, path, "logits")
    times, like = [0.0, 0.991, 0.994, 0.999], torch.zeros(4, 20_000, dtype=torch.int64)
    whole = samplers.ddim(3)(denoiser, like=like, times=times).state
    parts = Resampled(samplers.ddim(3), repeats=1)(denoiser, like=like, times=times).state
    assert torch.equal(whole, parts)


def test_both_networks_of_a_pair_are_recomputed_under_checkpointing() -> None:
    calls = {"velocity": 0, "latent": 0}

    def network(x: Tensor, t: Tensor, condition) -> dict[str, Tensor]:
        for name in calls:
            calls[name] += 1
        return {"velocity": torch.tanh(x), "latent": torch.sin(x)}

    start = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    grads = []
    for checkpoint in (False, True):
        calls.update(velocity=0, latent=0)
        sampler = TunableDiffusion(4, 0.1, grid=grids.uniform_time(0.1, 0.9))
        joined = Joined(network, Interpolant(noise=0.5))
        state = sampler(joined, start=start, checkpoint=checkpoint).state
        grads.append(torch.autograd.grad(state.sum(), start)[0])
        assert calls["velocity"] == (8 if checkpoint else 4)
    assert torch.equal(*grads)
