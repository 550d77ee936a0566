"""Langevin samplers: published traces replayed to 1e-12, and what the formulae imply."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths import GaussianPath, Interpolant
from sci.samplers import S4, PredictorCorrector
from sci.schedules import VE, VP, CondOT, Cosine, Levels, Schedule, SubVP
from sci.spaces import Symmetric

LEAVES = {"nodes": "x", "edges": "adj"}
SETS = ("qm9", "community_small", "zinc250k")


class Recorded:
    """Noise that was stored: by leaf, step and draw."""

    def __init__(self, values: dict[tuple[str, int], np.ndarray]):
        self.values = values

    def draw(self, space, leaf, step, like, mask=None, draw=0) -> Tensor:
        return torch.from_numpy(self.values[leaf, draw][step])


def paths_of(arrays) -> dict[str, GaussianPath]:
    def schedule(name: str) -> Schedule:
        low, high = arrays[f"sde_{name}_min_max"].tolist()
        return (VP if str(arrays[f"sde_{name}_type"]) == "VP" else VE)(low, high)

    return {
        "nodes": GaussianPath(schedule("x")),
        "edges": GaussianPath(schedule("adj"), Symmetric()),
    }


def published_std(schedule: Schedule, back: float) -> float:
    """By what a stored network output is divided to become a score.

    The public code takes sqrt(1 - exp(.)) without expm1, which is off by 1e-11 at the last time.
    """
    if isinstance(schedule, VE):
        return 1.0
    low, high = schedule.beta_min, schedule.beta_max
    return -math.sqrt(1.0 - math.exp(2.0 * (-0.25 * back**2 * (high - low) - 0.5 * back * low)))


def replayed(arrays, paths, prefix: str, keys: list[str]):
    """A denoiser that returns the stored network outputs in order, as scores."""
    calls: list[float] = []

    def denoiser(state, t, condition, to):
        assert to == "score"
        place = len(calls)
        calls.append(t)
        step, stage = divmod(place, len(keys))
        scores = {}
        for leaf, name in LEAVES.items():
            net = torch.from_numpy(arrays[keys[stage].format(name)][step])
            back = arrays[f"{prefix}_timesteps"][step]
            scores[leaf] = net / published_std(paths[leaf].schedule, back)
        return scores

    return denoiser, calls


def start_of(arrays, prefix: str) -> dict[str, Tensor]:
    flags = torch.from_numpy(arrays[f"{prefix}_flags"])
    both = flags[:, :, None] * flags[:, None, :]
    return {
        "nodes": torch.from_numpy(arrays[f"{prefix}_prior_x"]) * flags[:, :, None],
        "edges": torch.from_numpy(arrays[f"{prefix}_prior_adj"]) * both,
    }


@pytest.mark.parametrize("name", SETS)
def test_published_predictor_corrector_is_replayed(name: str, shared: Path) -> None:
    with np.load(shared / "reference" / f"gdss_scores_{name}.npz") as stored:
        arrays = dict(stored)
    paths = paths_of(arrays)
    steps = len(arrays["pc_timesteps"])
    sampler = PredictorCorrector(
        predictor="euler" if name == "community_small" else "reverse",
        snr=float(arrays["pc_snr"]),
        scale=float(arrays["pc_scale_eps"]),
        norm="batch",
        steps=steps,
    )
    plan = sampler.plan(paths)
    assert np.allclose(plan.times, 1.0 - arrays["pc_timesteps"], rtol=0, atol=1e-15)
    denoiser, calls = replayed(arrays, paths, "pc", ["pc_net_corr_{}", "pc_net_pred_{}"])
    noise = Recorded(
        {
            (leaf, draw): arrays[f"pc_noise_{stage}_{short}"]
            for leaf, short in LEAVES.items()
            for draw, stage in enumerate(["corr", "pred"])
        }
    )
    carry = plan.init(start_of(arrays, "pc"), noise)
    for step in range(steps):
        carry = plan.step(denoiser, carry)
        kind = "state" if step + 1 < steps else "mean"
        for leaf, short in LEAVES.items():
            expected = torch.from_numpy(arrays[f"pc_{kind}_pred_{short}"][step])
            assert torch.allclose(carry.state[leaf], expected, rtol=1e-12, atol=1e-12)
    for leaf, short in LEAVES.items():
        expected = torch.from_numpy(arrays[f"pc_out_{short}"])
        assert torch.allclose(carry.state[leaf], expected, rtol=1e-12, atol=1e-12)
    assert carry.nfe == len(calls) == 2 * steps


def test_published_splitting_is_replayed(shared: Path) -> None:
    with np.load(shared / "reference" / "gdss_scores_qm9.npz") as stored:
        arrays = dict(stored)
    paths = paths_of(arrays)
    steps = len(arrays["s4_timesteps"])
    snr, scale = float(arrays["s4_snr"]), float(arrays["s4_scale_eps"])
    plan = S4(snr=snr, scale=scale, norm="batch", steps=steps).plan(paths)
    denoiser, calls = replayed(arrays, paths, "s4", ["s4_net_{}"])
    noise = Recorded(
        {
            (leaf, draw): arrays[f"s4_noise_{short}"][:, draw]
            for leaf, short in LEAVES.items()
            for draw in range(3)
        }
    )
    carry = plan.init(start_of(arrays, "s4"), noise)
    while carry.step < plan.steps:
        carry = plan.step(denoiser, carry)
    for leaf, short in LEAVES.items():
        expected = torch.from_numpy(arrays[f"s4_out_{short}"])
        assert torch.allclose(carry.state[leaf], expected, rtol=1e-12, atol=1e-12)
    assert carry.nfe == len(calls) == steps


def gaussian(schedule: Schedule, mean: float = 0.5, std: float = 0.6) -> Denoiser:
    """The exact score of N(mean, std^2) data."""
    path = GaussianPath(schedule)

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return -(x - alpha * mean) / (alpha**2 * std**2 + sigma**2)

    return Denoiser(network, path, predicts="score")


@pytest.mark.parametrize("schedule", [VP(0.1, 10.0), VE(0.01, 10.0), SubVP(0.1, 10.0)])
@pytest.mark.parametrize("predictor", ["reverse", "euler"])
def test_predictors_sample_a_gaussian(schedule: Schedule, predictor: str) -> None:
    sampler = PredictorCorrector(predictor=predictor, corrector=None, steps=300)
    out = sampler(gaussian(schedule), like=torch.zeros(4000, 1, dtype=torch.float64), seed=1)
    assert out.nfe == 300
    assert abs(out.state.mean().item() - 0.5) < 0.05
    assert abs(out.state.std().item() - 0.6) < 0.05


@pytest.mark.parametrize("schedule", [VP(0.1, 10.0), VE(0.01, 10.0)])
def test_samplers_with_corrector_at_temperature_one_keep_the_spread(schedule: Schedule) -> None:
    # Wide items: the step size follows |score|, which must be about the same for all of them.
    like = torch.zeros(100, 256, dtype=torch.float64)
    for sampler in (
        PredictorCorrector(snr=0.1, scale=1.0, steps=200),
        S4(snr=0.1, scale=1.0, steps=200),
    ):
        out = sampler(gaussian(schedule), like=like, seed=2).state
        assert abs(out.mean().item() - 0.5) < 0.06
        assert abs(out.std().item() - 0.6) < 0.06


@pytest.mark.parametrize("sampler", [PredictorCorrector(steps=4), S4(steps=4)])
def test_item_norm_does_not_see_batch_mates_and_batch_norm_does(sampler) -> None:
    denoiser = gaussian(VE(0.1, 1.0))
    like = torch.zeros(5, 3, dtype=torch.float64)
    whole = sampler(denoiser, like=like, noise=Noise(3, range(5))).state
    part = sampler(denoiser, like=like[:2], noise=Noise(3, [1, 4])).state
    assert torch.equal(whole[[1, 4]], part)
    mixed = dataclasses.replace(sampler, norm="batch")
    whole = mixed(denoiser, like=like, noise=Noise(3, range(5))).state
    part = mixed(denoiser, like=like[:2], noise=Noise(3, [1, 4])).state
    assert not torch.allclose(whole[[1, 4]], part)


def test_one_node_has_no_pairs_and_stays_finite() -> None:
    path = GaussianPath(VE(0.1, 1.0), Symmetric())
    mask = torch.tensor([[True, False, False], [True, True, True]])
    denoiser = Denoiser(lambda x, t, c: -x, path, predicts="score", mask="mask")
    out = S4(steps=5)(denoiser, like=torch.zeros(2, 3, 3), condition={"mask": mask}).state
    assert torch.equal(out[0], torch.zeros(3, 3))
    assert torch.isfinite(out).all() and out[1].abs().sum() > 0
    assert torch.equal(out, out.transpose(1, 2))


def test_corrector_step_size_is_the_published_one() -> None:
    path = GaussianPath(VE(0.1, 1.0))
    plan = PredictorCorrector(snr=0.3, scale=0.5, steps=3).plan(path)
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    carry = plan.init(x, Noise(0, [0]))
    score = torch.tensor([[3.0, 4.0]], dtype=torch.float64)
    z = carry.noise.draw(path.space, "state", 0, x)
    size = 2 * (0.3 * z.norm() / 5.0) ** 2
    expected = x + size * score + 0.5 * torch.sqrt(2 * size) * z
    assert torch.allclose(plan.kick(carry, 0, x, score, None), expected, atol=1e-14)


def test_other_schedules_use_exact_transitions() -> None:
    levels = np.geomspace(2.0, 0.1, 11)
    like = torch.zeros(3000, 1, dtype=torch.float64)
    sampler = PredictorCorrector(corrector=None, steps=200)
    out = sampler(gaussian(Levels(levels)), like=like, times=np.linspace(0, 1, 200)).state
    # Sampling starts from N(0, 4), the path from N(0.5, 4.36): what remains of the mismatch.
    assert abs(out.std().item() - 0.6) < 0.05
    plan = PredictorCorrector(steps=50).plan(GaussianPath(Cosine()), np.linspace(0.01, 0.99, 50))
    level = plan.levels[0][10]
    t, later = plan.times[10], plan.times[11]
    alpha = np.sin(np.pi * np.array([t, later]) / 2)
    assert math.isclose(level.shrink, alpha[0] / alpha[1], rel_tol=1e-12)
    assert math.isclose(level.gain, 1 - level.shrink**2, rel_tol=1e-9)


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="predictor"):
        PredictorCorrector(predictor="heun")
    with pytest.raises(ValueError, match="norm"):
        S4(norm="graph")
    with pytest.raises(ValueError, match="snr"):
        S4(snr=0.0)
    with pytest.raises(ValueError, match="steps"):
        PredictorCorrector(steps=1)
    with pytest.raises(ValueError, match="leaf 'b'.*no score"):
        S4(steps=3).plan({"a": GaussianPath(VE(0.1, 1.0)), "b": Interpolant()})
    with pytest.raises(ValueError, match="needs 5 times"):
        S4(steps=5).plan(GaussianPath(VE(0.1, 1.0)), [0.0, 0.5, 0.9])
    with pytest.raises(ValueError, match="drift"):
        S4(steps=5).plan(GaussianPath(CondOT()))
