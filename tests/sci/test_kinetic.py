"""The kinetic-optimal path from a measured table."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from sci import kinetic, samplers
from sci.denoiser import Denoiser, Rescheduled
from sci.paths import GaussianPath, Interpolant
from sci.schedules import VP, CondOT, Cosine, Schedule
from sci.spaces import Symmetric

MEANS = torch.tensor([[1.0, 0.0], [-0.8, 0.5], [0.0, -1.2]], dtype=torch.float64)
WIDTH = 0.2


def mixture(schedule: Schedule) -> Denoiser:
    """The exact denoiser of three equal Gaussians in the plane."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = (f(t)[:, None, None] for f in (schedule.alpha, schedule.sigma))
        variance = (alpha * WIDTH) ** 2 + sigma**2
        gap = x[:, None] - alpha * MEANS
        share = torch.softmax(-(gap**2).sum(-1) / (2 * variance[..., 0]), 1)[..., None]
        return (share * (MEANS + alpha * WIDTH**2 / variance * gap)).sum(1)

    return Denoiser(network, GaussianPath(schedule))


def sample(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    which = torch.randint(3, (count,), generator=generator)
    return MEANS[which] + WIDTH * torch.randn(count, 2, generator=generator, dtype=torch.float64)


def linear(schedule: Schedule, variances: Tensor) -> Denoiser:
    """The exact denoiser of independent centred Gaussians."""

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        return alpha * variances / (alpha**2 * variances + sigma**2) * x

    return Denoiser(network, GaussianPath(schedule))


@pytest.mark.parametrize("schedule", [CondOT(), Cosine(), VP()], ids=str)
def test_the_measured_table_of_a_gaussian_is_the_closed_form(schedule: Schedule) -> None:
    variances = torch.tensor([0.1, 1.0, 3.0], dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    data = variances**0.5 * torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    table = kinetic.measure(linear(schedule, variances), data, angles=33, seed=1)
    assert abs(table.scale**2 - 4.1 / 3) < 0.1 and table.items == 4000
    snr = (np.tan(table.angles[1:-1]) / table.scale) ** 2
    kept = sum(snr * v**2 / (snr * v + 1) for v in variances.tolist()) / 4.1
    # The data at hand have not quite the variances of their law: a few standard errors.
    gap = np.abs(table.energy[1:-1] - kept) / np.where(
        np.isnan(table.spread[1:-1]), np.nanmax(table.spread), table.spread[1:-1]
    )
    assert np.nanmax(table.spread) < 0.02
    assert (gap < 4.5).all(), gap
    assert table.energy[-1] == 1.0 and 0 <= table.energy[0] < 0.02


def energy_of(schedule: Schedule, count: int = 2000, steps: int = 100) -> float:
    """E |dx/dt|^2 of the flow per dimension, by its definition."""
    denoiser, data = mixture(schedule), sample(count, 7)
    noise = torch.randn(count, 2, generator=torch.Generator().manual_seed(8), dtype=torch.float64)
    total = 0.0
    for t in (np.arange(steps) + 0.5) / steps:
        x = denoiser.paths.corrupt(data, noise, float(t))
        total += float((denoiser(x, float(t), to="velocity") ** 2).mean()) / steps
    return total


def test_the_optimal_path_costs_less_than_the_named_ones() -> None:
    table = kinetic.measure(mixture(VP()), sample(3000, 0))
    best = energy_of(table.schedule())
    assert best < energy_of(Cosine()) - 0.05
    assert best < energy_of(CondOT()) - 0.2
    # 1 + m^2 - 2 m cos Phi, with the whole warped angle by quadrature.
    squared = np.cos(table.angles) ** 2
    speed = np.sqrt(np.clip(1 - (1 - table.energy[:-1]) / squared[:-1], 1e-3, 1))
    whole = np.trapezoid(speed, table.angles[:-1])
    predicted = 1 + table.scale**2 - 2 * table.scale * np.cos(whole)
    assert abs(best / predicted - 1) < 0.05


def test_sampling_on_the_optimal_path() -> None:
    denoiser, like = mixture(VP()), torch.zeros(512, 2, dtype=torch.float64)
    schedule = kinetic.optimal(denoiser, sample(1000, 0))
    outer = Rescheduled(denoiser, schedule)
    assert schedule.alpha(1.0) == pytest.approx(1.0) and schedule.sigma(1.0) < 1e-12
    assert schedule.alpha(0.0) == pytest.approx(0.0) and schedule.sigma(0.0) == pytest.approx(1.0)
    straight = Rescheduled(denoiser, CondOT())
    with torch.no_grad():
        exact = samplers.abm(3, 400)(denoiser, like=like, seed=0).state
        errors = []
        for other in (outer, straight):
            found = samplers.euler(10)(other, like=like, seed=0).state
            alpha = other.paths.schedule.alpha(other.paths.span[1])
            errors.append(float(((found / alpha - exact) ** 2).sum(1).sqrt().median()))
    assert errors[0] < errors[1] and errors[0] < 0.1, errors


def test_tables_count_what_is_present_and_pool_leaves() -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(300, 6, generator=generator) < 0.7
    mask[:, :2] = True
    edges = Symmetric().random(torch.zeros(300, 6, 6).double(), mask, generator)
    paths = {"edges": GaussianPath(CondOT(), Symmetric())}

    def network(state, t: Tensor, condition):
        alpha, sigma = (f(t)[:, None, None] for f in (CondOT().alpha, CondOT().sigma))
        return {"edges": alpha / (alpha**2 + sigma**2) * state["edges"]}

    denoiser = Denoiser(network, paths, mask="mask")
    clean = kinetic.measure(denoiser, {"edges": edges}, {"mask": mask}, angles=9)
    dirty = edges.masked_fill(~mask[:, :, None], 50.0)
    again = kinetic.measure(denoiser, {"edges": dirty}, {"mask": mask}, angles=9, batch=300)
    assert np.array_equal(clean.energy, again.energy)
    assert abs(clean.scale - 1) < 0.05
    assert np.abs(clean.energy - np.sin(clean.angles) ** 2).max() < 0.05
    nodes = torch.randn(300, 6, 1, generator=generator, dtype=torch.float64)
    both = Denoiser(
        lambda x, t, c: {"nodes": 0 * x["nodes"], **network({"edges": x["edges"]}, t, c)},
        {"nodes": GaussianPath(CondOT()), **paths},
        mask="mask",
    )
    data = {"nodes": nodes, "edges": edges}
    pooled = kinetic.measure(both, data, {"mask": mask}, angles=9)
    alone = kinetic.measure(both, data, {"mask": mask}, leaf="nodes", angles=9)
    assert (alone.energy[1:-1] < 0.2).all() and (pooled.energy[1:-1] < clean.energy[1:-1]).all()


def test_measuring_is_a_function_of_its_seed() -> None:
    data = sample(200, 0)
    one, two, other = (kinetic.measure(mixture(VP()), data, seed=s, angles=9) for s in (1, 1, 2))
    assert np.array_equal(one.energy, two.energy) and not np.array_equal(one.energy, other.energy)


def test_bad_input_is_named() -> None:
    denoiser = mixture(VP())
    with pytest.raises(ValueError, match="five or more"):
        kinetic.measure(denoiser, sample(10, 0), angles=3)
    with pytest.raises(ValueError, match="mean square"):
        kinetic.measure(denoiser, torch.zeros(5, 2))
    with pytest.raises(KeyError, match="state"):
        kinetic.measure(denoiser, sample(10, 0), leaf="edges")
    paths = {"a": GaussianPath(VP()), "b": GaussianPath(CondOT())}
    two = Denoiser(lambda x, t, c: x, paths)
    broken = Denoiser(lambda x, t, c: x * float("nan"), GaussianPath(VP()))
    with pytest.raises(FloatingPointError, match="not finite at t = "):
        kinetic.measure(broken, sample(5, 0))
    noisy = Denoiser(lambda x, t, c: x, Interpolant(noise=0.1), "velocity")
    with pytest.raises(TypeError, match="not linear"):
        kinetic.measure(noisy, sample(5, 0))
    with pytest.raises(ValueError, match="different schedules"):
        kinetic.measure(two, {"a": sample(5, 0), "b": sample(5, 1)})
