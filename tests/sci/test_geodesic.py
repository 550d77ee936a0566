"""The path of rotations: closed forms, conversions, the loss, and the stored reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from sci.denoiser import Denoiser
from sci.noise import Noise
from sci.paths.geodesic import GeodesicPath
from sci.schedules import VP, CondOT, Cosine, Exponential
from sci.spaces import Euclidean
from sci.spaces import quaternions as quat
from sci.spaces.rotations import Rotations

PATHS = [GeodesicPath(), GeodesicPath("exponential"), GeodesicPath(Exponential(3.0))]
RATES = [lambda t: t, lambda t: 1 - math.exp(-10 * t), lambda t: 1 - math.exp(-3 * t)]
MASK = torch.tensor([[True, True, False], [True, True, True]])


def ends(batch: int = 2, nodes: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    like = torch.zeros(batch, nodes, 4, dtype=torch.float64)
    space = Rotations()
    return space.random(like, generator=generator), space.random(like, generator=generator)


def same(p: Tensor, q: Tensor, tolerance: float = 1e-12) -> bool:
    return float((1 - (p * q).sum(-1).abs()).abs().max()) < tolerance


@pytest.mark.parametrize(
    ("path", "rate"), list(zip(PATHS, RATES, strict=True)), ids=[str(path) for path in PATHS]
)
def test_the_state_has_gone_the_rate_of_the_way(path: GeodesicPath, rate) -> None:
    source, data = ends()
    whole = quat.angle(source, data)
    for t in (0.0, 0.2, 0.7, 1.0):
        x = path.corrupt(data, source, t)
        assert torch.allclose(quat.angle(source, x), rate(t) * whole, atol=1e-7)
        assert torch.allclose(quat.angle(x, data), (1 - rate(t)) * whole, atol=1e-7)
    each = torch.tensor([0.2, 0.7], dtype=torch.float64)
    x = path.corrupt(data, source, each)
    for row, t in enumerate(each.tolist()):
        assert torch.equal(x[row], path.corrupt(data, source, t)[row])


@pytest.mark.parametrize("path", PATHS, ids=str)
def test_the_velocity_is_the_derivative_of_the_path(path: GeodesicPath) -> None:
    source, data = ends()
    t, step = 0.4, 1e-5
    x = path.corrupt(data, source, t)
    later, before = (path.corrupt(data, source, t + h) for h in (step, -step))
    slope = (Rotations().log(x, later) - Rotations().log(x, before)) / (2 * step)
    velocity = path.target("velocity", data, source, t)
    assert torch.allclose(velocity, slope, atol=1e-7)
    assert torch.allclose(path.convert(data, "data", "velocity", x, t), velocity, atol=1e-10)
    assert same(path.convert(velocity, "velocity", "data", x, t), data)
    each = torch.full((2,), t, dtype=torch.float64)
    assert torch.allclose(path.convert(data, "data", "velocity", x, each), velocity, atol=1e-10)
    assert same(path.convert(velocity, "velocity", "data", x, each), data)
    assert torch.equal(path.target("data", data, source, t), data)
    assert path.convert(data, "data", "data", x, t) is data


def test_the_velocity_target_is_finite_at_data() -> None:
    source, data = ends()
    path = GeodesicPath()
    assert torch.allclose(path.target("velocity", data, source, 1.0), Rotations().log(source, data))
    assert path.span[1] < 1 and GeodesicPath(span=(0.01, 0.99)).span == (0.01, 0.99)


def test_another_rate_keeps_the_rest() -> None:
    path = GeodesicPath(span=(0.01, 0.99))
    other = path.with_rate("exponential")
    assert isinstance(other, GeodesicPath) and other.span == path.span
    assert math.isclose(other.speed(0.3), 10.0) and math.isclose(path.speed(0.3), 1 / 0.7)
    assert isinstance(path.schedule, CondOT)


def test_errors_are_squared_angles_per_degree_of_freedom() -> None:
    path, (p, q) = GeodesicPath(), ends()
    squares = quat.angle(p, q) ** 2
    assert torch.allclose(path.error(p, q, "data"), squares.sum(1) / 9)
    counts = 3 * MASK.sum(1)
    assert torch.allclose(path.error(p, q, "data", MASK), (squares * MASK).sum(1) / counts)
    assert torch.allclose(path.error(-p, q, "data"), path.error(p, q, "data"))
    v, w = torch.randn(2, 2, 3, 3, dtype=torch.float64).unbind()
    expected = ((v - w) ** 2).sum(-1)
    assert torch.allclose(path.error(v, w, "velocity", MASK), (expected * MASK).sum(1) / counts)
    assert path.error(p, q, "data", torch.zeros(2, 3, dtype=torch.bool)).tolist() == [0.0, 0.0]


def test_projection_knows_states_from_velocities() -> None:
    path = GeodesicPath()
    assert path.project(torch.ones(2, 3, 4), MASK)[0, 2].tolist() == [1.0, 0.0, 0.0, 0.0]
    assert path.project(torch.ones(2, 3, 3), MASK)[0, 2].tolist() == [0.0, 0.0, 0.0]
    with pytest.raises(ValueError, match=r"\(2, 3, 5\).*\(\.\.\., 4\)"):
        path.project(torch.ones(2, 3, 5))


@pytest.mark.parametrize("kind", ["data", "velocity"])
def test_a_denoiser_trains_on_rotations(kind: str) -> None:
    path, (_, data) = GeodesicPath(), ends()
    weight = torch.zeros(data.shape[-2:] if kind == "data" else (3, 3), dtype=torch.float64)
    weight.requires_grad_()

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        return x + weight if kind == "data" else weight.expand(len(x), 3, 3)

    denoiser = Denoiser(network, path, predicts=kind, mask="mask")
    generator = torch.Generator().manual_seed(1)
    loss = denoiser.loss(data, {"mask": MASK}, generator)
    (slope,) = torch.autograd.grad(loss, weight)
    assert torch.isfinite(loss) and float(slope.abs().max()) > 0 and torch.isfinite(slope).all()
    # By hand, for given noise and times.
    source = path.random(data, MASK, torch.Generator().manual_seed(2))
    t = torch.tensor([0.3, 0.6], dtype=torch.float64)
    loss = denoiser.loss(data, {"mask": MASK}, t=t, source=source)
    turn = Rotations().log(source, path.project(data, MASK))
    size = (turn**2).sum(-1) * MASK
    if kind == "data":
        size = size * (1 - t[:, None]) ** 2
    assert torch.allclose(loss, (size.sum(1) / (3 * MASK.sum(1))).mean())


def test_sampling_starts_from_uniform_rotations() -> None:
    like = torch.zeros(2, 3, 4)
    start = GeodesicPath().source(Noise(0, range(2)), "r", like, MASK)
    assert torch.equal(start, Noise(0, range(2)).draw(Rotations(), "r", -1, like, MASK))


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(ValueError, match="did you mean 'exponential'"):
        GeodesicPath("exponental")
    with pytest.raises(TypeError, match="rate is a float"):
        GeodesicPath(3.0)
    with pytest.raises(ValueError, match="alpha \\+ sigma = 1"):
        GeodesicPath(Cosine())
    with pytest.raises(ValueError, match="is no rate"):
        GeodesicPath().with_rate(VP())
    with pytest.raises(TypeError, match="expected sci.spaces.Rotations"):
        GeodesicPath(space=Euclidean())
    with pytest.raises(ValueError, match="span"):
        GeodesicPath(span=(0.5, 0.2))
    data = ends()[1]
    for call in (
        lambda: GeodesicPath().convert(data, "data", "noise", data, 0.5),
        lambda: GeodesicPath().target("score", data, data, 0.5),
    ):
        with pytest.raises(ValueError, match="expected one of data, velocity"):
            call()
    with pytest.raises(ValueError, match="no linear coefficients"):
        GeodesicPath().coefficients("data", "velocity", 0.5)


def test_the_stored_interpolation_is_reproduced(shared: Path) -> None:
    stored = np.load(shared / "reference" / "reqflow_quaternion.npz")

    def get(name: str) -> Tensor:
        return torch.from_numpy(stored[name])

    clear = (math.pi - get("relative_angle") > 1e-5) & (get("corrupt_mask") > 0)
    noise, data = get("quat0")[None], get("quat1")[None]
    found = GeodesicPath().corrupt(data, noise, float(get("corrupt_t")))
    assert same(found[0][clear], get("corrupt_quat")[clear], 1e-13)
    fast = GeodesicPath(Exponential(10.0))
    for t, kappa in zip(get("kappa_t").tolist(), get("kappa_exp").tolist(), strict=True):
        assert math.isclose(fast.schedule.alpha(t), kappa, abs_tol=1e-12)


def test_conversions_at_the_very_end() -> None:
    path, (x, data) = GeodesicPath(), ends()
    assert path.speed(1.0) == math.inf
    for t in (1.0, torch.ones(2, dtype=torch.float64)):
        assert torch.isinf(path.convert(data, "data", "velocity", x, t)).all()
        assert same(path.convert(torch.ones(2, 3, 3).double(), "velocity", "data", x, t), x)
