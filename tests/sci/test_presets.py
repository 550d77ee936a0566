"""The table of named samplers, and the grids: settings, aliases, bad input."""

from __future__ import annotations

import dataclasses
import inspect
import math

import numpy as np
import pytest
import torch
from analytic import exact_flow, gaussian, points, run

from sci import samplers
from sci.paths import GaussianPath
from sci.samplers import TABLE, Adaptive, Multistep, OneStep, grids, presets
from sci.samplers.table import ALIASES
from sci.schedules import VP, CondOT, Cosine

# --- the table ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TABLE)
def test_every_row_is_complete_and_makes_its_sampler(name: str) -> None:
    row = TABLE[name]
    assert row.reference.rstrip(")")[-4:].isdigit() and row.use and row.where
    assert set(row.convergence) == (set() if row.sampler is Adaptive else set(row.orders))
    for order in row.orders:
        sampler = row(order, steps=12)
        assert type(sampler) is row.sampler and sampler.steps == 12
        assert all(getattr(sampler, key) is not None for key in row.settings)
        assert samplers.preset(name, 12, order=order) == sampler
    assert samplers.preset(name) == row()
    assert samplers.preset(name, 12, final="data").final == "data"
    with pytest.raises(ValueError, match="expected an order of"):
        row(7)


@pytest.mark.parametrize("name", sorted(set(TABLE) | set(ALIASES)))
def test_every_name_runs_and_counts_its_evaluations(name: str) -> None:
    denoiser, x = gaussian(Cosine()), points()
    row = TABLE[ALIASES.get(name, name)]
    steps = 200 if row.sampler is Adaptive else 61
    sampler = samplers.preset(name, steps)
    with torch.no_grad():
        out = sampler(denoiser, start=x, seed=0)
    assert torch.isfinite(out.state).all()
    if row.sampler is not Adaptive:
        assert out.nfe == len(out.times) == steps
    if not row.stochastic:
        exact = exact_flow(Cosine(), x, 0.005, 0.995)
        assert float((out.state - exact).abs().max()) < 0.1


def test_every_name_has_a_documented_function() -> None:
    functions = {name for name in presets.__all__ if inspect.isfunction(getattr(presets, name))}
    assert set(TABLE) - {"deis_rhoab"} | {"ddpm", "plms", "default", "preset"} == functions
    for name in functions:
        assert getattr(samplers, name) is getattr(presets, name)
        text = inspect.getdoc(getattr(presets, name))
        if name not in ("ddpm", "plms", "default", "preset"):
            assert "References:" in text and "Arguments:" in text
            if name != "adaptive":
                assert "rder" in text.split("References:")[0]
    # Functions and rows are the same samplers.
    assert samplers.dpm_solver(3, 9) == samplers.preset("dpm_solver", 9, order=3)
    assert samplers.deis(3, 9, nodes="ratio") == samplers.preset("deis_rhoab", 9)
    assert samplers.lms(3, 9) == samplers.deis(3, 9, nodes="ratio")
    assert samplers.plms(4, 9) == samplers.ipndm(4, 9) == samplers.preset("plms", 9)
    assert samplers.ddpm(9) == samplers.ancestral(9) == samplers.preset("ddpm", 9)
    assert samplers.adaptive(rtol=1e-3, order=3) == Adaptive(rtol=1e-3, order=3)
    assert samplers.sde_dpmpp_2m(9, eta=0.25).stochasticity == 0.5
    assert samplers.edm_heun(9, 40.0).churn == 40.0


def test_kinds_of_samplers() -> None:
    assert isinstance(samplers.heun(4), OneStep) and isinstance(samplers.unipc(2, 4), Multistep)
    assert samplers.unipc(2).corrector == 2 and samplers.deis(2).corrector == 0
    assert samplers.deis(3).corrected_start and not samplers.deis(2).corrected_start
    by_step = samplers.preset("unipc", 3, order=[1, 2, 3])
    assert by_step.order == (1, 2, 3) == by_step.corrector
    assert samplers.default(10) == samplers.preset("default", 10)
    assert samplers.default(10, exact=True) == samplers.preset("default", 10, exact=True)
    assert samplers.default(2, exact=True).order == (2, 1)
    assert samplers.default(30, exact=True).order == 4
    assert samplers.default(10, exact=True, order=3, corrector=0).order == 3


def test_claims_of_order_are_met_once() -> None:
    """The finer tests are those of the engines; here every claim meets one path and two grids."""
    denoiser, x, span = gaussian(VP()), points(), (0.05, 0.95)
    exact = exact_flow(VP(), x, *span)
    for name, row in TABLE.items():
        for order, claim in row.convergence.items():
            if row.stochastic:
                continue
            errors, counts = [], (120, 240)
            for steps in counts:
                sampler = row(order, steps=steps, grid=grids.uniform_log_snr(*span), final=None)
                errors.append(float((run(sampler, denoiser, x) - exact).abs().max()))
            assert math.log2(errors[0] / errors[1]) > claim - 0.3, (name, order, errors)


def test_unknown_names_and_settings_are_refused_with_close_names() -> None:
    with pytest.raises(ValueError, match="unknown sampler 'unipcc': expected unipc"):
        samplers.preset("unipcc")
    with pytest.raises(ValueError, match="OneStep sampler has no setting 'stochasticity'"):
        samplers.preset("heun", 10, stochasticity=1.0)
    with pytest.raises(ValueError, match="Multistep.*'corector' .did you mean 'corrector'"):
        samplers.preset("unipc", 10, corector=1)
    with pytest.raises(ValueError, match="Adaptive sampler has no setting 'grid'"):
        samplers.adaptive(grid="karras")
    with pytest.raises(ValueError, match="nodes must be"):
        samplers.deis(nodes="log")
    with pytest.raises(ValueError, match="expected an order of"):
        samplers.preset("unipc", 3, order=[1, 2, 5])


# --- grids -------------------------------------------------------------------------------------


def test_powers_are_equal_steps_in_their_variable() -> None:
    path = GaussianPath(VP())
    for exponent in (0.5, 1.0, 2.0, 7.0):
        in_time = grids.power(exponent=exponent)(path, 9)
        in_ratio = grids.power(exponent=exponent, variable="ratio")(path, 9)
        for times, variable in (
            (in_time, 1 - in_time),
            (in_ratio, np.exp(-path.schedule.log_snr(in_ratio))),
        ):
            steps = np.diff(variable ** (1 / exponent))
            assert np.allclose(steps[1:-1], steps[1], rtol=1e-6) and (np.diff(times) > 0).all()
            assert (times[0], times[-1]) == path.span
    assert np.array_equal(in_ratio, grids.karras()(path, 9))
    # The quadratic grid of DEIS in its own clock.
    theirs = np.linspace(math.sqrt(1e-3), 1, 10)[::-1] ** 2
    assert np.allclose(1 - grids.power()(path, 9), theirs, atol=1e-12)
    assert np.allclose(grids.find("power")(path, 9), grids.power()(path, 9))


def test_graded_angles() -> None:
    path = GaussianPath(Cosine())
    times = grids.graded_angle(0.0, 1.0, early=1.5, late=2.0)(path, 8)
    share = np.linspace(0, 1, 9)
    assert np.allclose(times, 1 - (1 - share**1.5) ** 2, atol=1e-12)
    even = grids.graded_angle(early=1.0, late=1.0)(path, 8)
    assert np.allclose(even, grids.uniform_angle()(path, 8))


def test_quantiles_give_any_number_of_steps() -> None:
    path = GaussianPath(CondOT())
    by_law = grids.from_quantiles(lambda share: 0.1 + 0.8 * share**2)
    for steps in (1, 4, 9):
        expected = 0.1 + 0.8 * np.linspace(0, 1, steps + 1) ** 2
        assert np.allclose(by_law(path, steps), expected, atol=1e-14)
    table = grids.from_quantiles([0.1, 0.2, 0.8])
    assert np.allclose(table(path, 4), [0.1, 0.15, 0.2, 0.5, 0.8])
    assert table == grids.from_quantiles((0.1, 0.2, 0.8)) and hash(table)
    denoiser, x = gaussian(CondOT()), points()
    for name in ("dpmpp_2m", "rk4", "edm_heun", "unipc"):
        for steps in (5, 8):
            out = samplers.preset(name, steps, grid=by_law, final="data")(denoiser, start=x)
            assert out.nfe == steps and out.times[0] == 0.1 and math.isclose(out.times[-1], 0.9)


def test_grids_of_times_may_differ_by_item() -> None:
    denoiser, x = gaussian(Cosine()), points(2)
    times = np.array([[0.1, 0.2], [0.5, 0.4], [0.9, 0.8]])
    for given in (times, torch.tensor(times), times.tolist()):
        out = run(samplers.ddim(2, grid=given), denoiser, x)
        assert torch.equal(out, run(samplers.ddim(2), denoiser, x, times=times))
    assert samplers.ddim(2, grid=times) == samplers.ddim(2, grid=times.tolist())


def test_grids_that_do_not_increase_are_refused() -> None:
    path = GaussianPath(CondOT())
    with pytest.raises(ValueError, match=r"entry 1 is 0.5 and entry 2 is 0.4; time runs from the"):
        samplers.ddim(2, grid=[0.1, 0.5, 0.4])
    with pytest.raises(ValueError, match="the times must increase.*entry 0 is 0.9"):
        grids.from_times(np.array([[0.1, 0.9], [0.5, 0.4]]))
    with pytest.raises(ValueError, match="entry 1 is 1.5, expected times in"):
        grids.from_times([0.1, 1.5])
    with pytest.raises(ValueError, match="entry 1 is nan"):
        grids.from_times([0.1, float("nan")])
    with pytest.raises(ValueError, match="two or more times"):
        grids.from_times([0.1])
    with pytest.raises(ValueError, match="law's quantiles must increase.*counts down needs"):
        grids.from_quantiles(lambda share: 1 - share)(path, 4)
    with pytest.raises(ValueError, match="table of quantiles must increase"):
        grids.from_quantiles([0.0, 0.5, 0.5])
    with pytest.raises(ValueError, match="at least one step"):
        grids.from_quantiles([0.0, 1.0])(path, 0)
    with pytest.raises(ValueError, match="exponent must be positive"):
        grids.power(exponent=0.0)
    with pytest.raises(ValueError, match="'time' or 'ratio'"):
        grids.power(variable="sigma")
    with pytest.raises(ValueError, match="rho must be positive"):
        grids.karras(rho=-1.0)
    with pytest.raises(ValueError, match="late must be positive"):
        grids.graded_angle(late=0.0)
    with pytest.raises(TypeError, match="grid is a float"):
        samplers.ddim(2, grid=0.5)
    for grid in (grids.power, grids.karras, grids.graded_angle):
        assert dataclasses.is_dataclass(grid) and grids.find(grid) == grid()
