"""Known parts and bounds of the data prediction."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from sci import samplers
from sci.denoiser import Denoiser
from sci.guidance import Replacement, Thresholded
from sci.noise import Noise
from sci.paths import GaussianPath
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.paths.heavy_tailed import HeavyTailedPath
from sci.samplers import grids
from sci.schedules import VE, VP, CondOT, Cosine
from sci.spaces import Centred, Symmetric, quaternions


def random(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, dtype=torch.float64, generator=generator)


# --- replacement -------------------------------------------------------------------------------


def graph() -> Denoiser:
    paths = {
        "nodes": GaussianPath(VP()),
        "edges": GaussianPath(VE(0.1, 3.0), Symmetric()),
        "places": GaussianPath(Cosine(), Centred()),
    }

    def network(state, t, condition):
        heat = torch.tanh(state["edges"]).sum((2, 3))[..., None]
        return {
            "nodes": torch.tanh(
                0.2 * state["nodes"] + 0.1 * heat + state["nodes"].sum(1, keepdim=True)
            ),
            "edges": torch.tanh(state["edges"]) + (heat + heat.transpose(1, 2))[..., None],
            "places": state["places"] * torch.tanh(heat) + heat,
        }

    return Denoiser(network, paths, mask="mask")


def graph_shapes(batch: int = 2, nodes: int = 5) -> dict[str, Tensor]:
    return {
        "nodes": torch.zeros(batch, nodes, 3, dtype=torch.float64),
        "edges": torch.zeros(batch, nodes, nodes, 2, dtype=torch.float64),
        "places": torch.zeros(batch, nodes, 3, dtype=torch.float64),
    }


NODE_MASK = torch.tensor([[True] * 5, [True, True, True, True, False]])
MOTIF = torch.tensor([[True, True, True, False, False], [True, False, True, False, True]])
KNOWN = {
    "nodes": random(2, 5, 3, seed=3),
    "edges": Symmetric().project(random(2, 5, 5, 2, seed=4)),
    "places": random(2, 5, 3, seed=5),
}


@pytest.mark.parametrize("name", ["dpmpp_2m", "abm", "sde_dpmpp_2m", "ancestral"])
def test_a_scaffold_is_kept_to_the_bit(name: str) -> None:
    guided = Replacement(graph(), KNOWN, MOTIF)
    sampler = samplers.preset(name, 8, final="data", grid=grids.uniform_time(0.02, 0.98))
    with torch.no_grad():
        out = sampler(guided, like=graph_shapes(), condition={"mask": NODE_MASK}, seed=1).state
        plain = sampler(graph(), like=graph_shapes(), condition={"mask": NODE_MASK}, seed=1).state
    kept = MOTIF & NODE_MASK
    pairs = kept[:, :, None] & kept[:, None, :]
    assert torch.equal(out["nodes"][kept], KNOWN["nodes"][kept])
    assert torch.equal(out["edges"][pairs], KNOWN["edges"][pairs])
    assert torch.equal(out["edges"], out["edges"].transpose(1, 2))
    assert not out["nodes"][~NODE_MASK].any() and not out["edges"][1, 4].any()
    assert not torch.allclose(out["nodes"][~kept & NODE_MASK], plain["nodes"][~kept & NODE_MASK])
    assert out["places"].sum(1).abs().max() < 1e-12
    for row in range(2):
        motif = out["places"][row, kept[row]]
        given = KNOWN["places"][row, kept[row]]
        assert torch.allclose(motif - motif.mean(0), given - given.mean(0), atol=1e-12)


def test_finish_puts_the_known_part_into_other_samples() -> None:
    guided = Replacement(graph(), {"nodes": KNOWN["nodes"]}, MOTIF).given({"mask": NODE_MASK})
    sampler = samplers.dpmpp_2m(6, grid=grids.uniform_time(0.02, 0.9))
    with torch.no_grad():
        state = sampler(guided, like=graph_shapes()).state
    kept = MOTIF & NODE_MASK
    assert not torch.equal(state["nodes"][kept], KNOWN["nodes"][kept])
    done = guided.finish(state)
    assert torch.equal(done["nodes"][kept], KNOWN["nodes"][kept])
    assert torch.equal(done["nodes"][~kept], state["nodes"][~kept])
    assert torch.equal(done["edges"], state["edges"])


def test_the_known_part_follows_its_own_noise_from_the_start() -> None:
    """alpha known + sigma z at every time, z the noise of the start, on a schedule with data at 0."""
    schedule = VE(0.1, 3.0)
    plain = Denoiser(lambda x, t, c: torch.tanh(x), GaussianPath(schedule))
    known = torch.tensor([[2.5, float("nan"), -1.0]], dtype=torch.float64)
    guided = Replacement(plain, known)
    noise, like = Noise(0, range(2)), torch.zeros(2, 3, dtype=torch.float64)
    z = noise.draw(plain.paths.space, "state", -1, like)
    start = guided.start(noise, like)
    assert torch.allclose(start[:, [0, 2]], known[:, [0, 2]] + 3.0 * z[:, [0, 2]])
    assert torch.equal(start[:, 1], 3.0 * z[:, 1])
    for sampler in (samplers.dpmpp_2m(7), samplers.unipc(2, 7)):
        seen = []

        def watch(carry, sampler=sampler, seen=seen) -> None:
            times = sampler.plan(plain.paths).grid
            sigma = schedule.sigma(float(times[carry.step]))
            seen.append((carry.state - known - sigma * z)[:, [0, 2]].abs().max())

        sampler(guided, start=start, callback=watch)
        assert len(seen) == 7 and max(seen) < 1e-12


def test_the_start_has_the_noise_of_the_source_whatever_its_law() -> None:
    path = HeavyTailedPath(VE(0.1, 3.0), dimensions=4.0)
    plain = Denoiser(lambda x, t, c: 0 * x, path)
    known = torch.tensor([[2.5, math.nan]], dtype=torch.float64)
    noise, like = Noise(0, range(3)), torch.zeros(3, 2, dtype=torch.float64)
    source = path.source(noise, "state", like)
    start = Replacement(plain, known).start(noise, like)
    assert torch.allclose(start - source, torch.tensor([2.5, 0.0]).double().expand(3, 2))


def test_masks_by_entry_series_classes_and_rotations() -> None:
    series = torch.tensor([[[1.0, 2.0], [float("nan"), 4.0], [5.0, float("nan")]]]).double()
    plain = Denoiser(lambda x, t, c: 0 * x - 1, GaussianPath(Cosine()))
    out = Replacement(plain, series)(torch.zeros(2, 3, 2, dtype=torch.float64), 0.5)
    assert out[1].tolist() == [[1.0, 2.0], [-1.0, 4.0], [5.0, -1.0]]
    turns = quaternions.exp(random(1, 4, 3))
    unit = quaternions.exp(torch.zeros(2, 4, 3, dtype=torch.float64))
    paths = {"kind": CategoricalPath(CondOT(), 3, space=Symmetric()), "turn": GeodesicPath()}

    def network(state, t, condition):
        return {
            "kind": torch.full((2, 4, 4, 3), 1 / 3, dtype=torch.float64),
            "turn": unit,
        }

    state = {"kind": torch.zeros(2, 4, 4, dtype=torch.int64), "turn": unit}
    kinds = torch.tensor([[0, 2, 1, 0], [2, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 0]])[None]
    mask = torch.tensor([[True, True, False, True]])
    guided = Replacement(Denoiser(network, paths), {"kind": kinds, "turn": turns}, mask)
    data = guided(state, 0.5)
    assert torch.equal(data["turn"][:, [0, 1, 3]], turns[:, [0, 1, 3]].expand(2, -1, -1))
    assert torch.equal(data["turn"][:, 2], unit[:, 2])
    assert data["kind"][0, 0, 1].tolist() == [0, 0, 1] and data["kind"][1, 3, 1].tolist() == [
        1,
        0,
        0,
    ]
    assert torch.allclose(data["kind"][0, 2, 1], torch.full((3,), 1 / 3).double())
    done = guided.finish(state)
    assert done["kind"][0, 0, 1] == 2 and done["kind"][0, 0, 2] == 0
    with torch.no_grad():
        out = samplers.dpmpp_2m(6, final="data", leaves={"turn": {"order": 1}})(guided, like=state)
    assert torch.equal(out.state["kind"][:, 0, 1], torch.tensor([2, 2]))
    assert torch.equal(out.state["turn"][:, 0], turns[:, 0].expand(2, -1))


def test_known_values_and_masks_are_checked() -> None:
    plain = graph()
    with pytest.raises(ValueError, match="did you mean 'nodes'"):
        Replacement(plain, {"node": KNOWN["nodes"]}, MOTIF)
    with pytest.raises(TypeError, match="expected bool"):
        Replacement(plain, {"nodes": KNOWN["nodes"]}, MOTIF.float())
    with pytest.raises(ValueError, match="does not fit"):
        Replacement(plain, {"nodes": KNOWN["nodes"]}, MOTIF[:, :3])
    with pytest.raises(ValueError, match="not finite"):
        Replacement(plain, {"nodes": KNOWN["nodes"] * float("inf")}, MOTIF)
    with pytest.raises(ValueError, match="is symmetric"):
        Replacement(plain, {"edges": random(2, 5, 5, 2)}, MOTIF)
    lopsided = torch.zeros(2, 5, 5, dtype=torch.bool)
    lopsided[:, 0, 1] = True
    with pytest.raises(ValueError, match="is symmetric"):
        Replacement(plain, {"edges": KNOWN["edges"]}, lopsided)
    with pytest.raises(ValueError, match="no unit quaternions"):
        Replacement(Denoiser(lambda x, t, c: x, GeodesicPath()), torch.ones(1, 2, 4))
    wide = Replacement(plain, {"nodes": random(2, 5, 4)}, MOTIF)
    with pytest.raises(ValueError, match=r"leaf 'nodes' have shape \(2, 5, 4\): expected"):
        wide(graph_shapes(), 0.5, {"mask": NODE_MASK})
    with pytest.raises(ValueError, match="for 2 items and got a condition for 3"):
        Replacement(plain, KNOWN, MOTIF)(
            graph_shapes(3), 0.5, {"mask": torch.ones(3, 5, dtype=torch.bool)}
        )


# --- thresholding ------------------------------------------------------------------------------


def test_static_and_dynamic_thresholds() -> None:
    data = torch.linspace(-6, 6, 101, dtype=torch.float64).repeat(2, 1)
    data[1] *= 0.1
    plain = Denoiser(lambda x, t, c: data, GaussianPath(CondOT()))
    x = torch.zeros_like(data)
    assert torch.equal(Thresholded(plain, -1, 2)(x, 0.5), data.clamp(-1, 2))
    out = Thresholded(plain, -1, 1, quantile=0.9)(x, 0.5)
    reach = data[0].abs().quantile(0.9)
    assert torch.allclose(out[0], data[0].clamp(-reach, reach) / reach)
    assert torch.equal(out[1], data[1])
    shifted = Thresholded(plain, 0, 2, quantile=0.9)(x, 0.5)
    assert shifted.min() >= -1e-12 and shifted.max() <= 2 + 1e-12


def test_thresholds_by_leaf_look_at_present_entries_only() -> None:
    condition = {"mask": NODE_MASK}
    state = {name: 3 * value for name, value in KNOWN.items()}
    before = graph()(state, 0.5, condition)
    out = Thresholded(graph(), {"nodes": -0.5}, {"nodes": 0.5}, 0.8)(state, 0.5, condition)
    assert torch.equal(out["edges"], before["edges"])
    reach = before["nodes"][1, :4].abs().flatten().quantile(0.8)
    assert torch.allclose(out["nodes"][1], (before["nodes"][1] / reach).clamp(-1, 1) * 0.5)
    with pytest.raises(ValueError, match="give both the same"):
        Thresholded(graph(), {"nodes": -0.5}, 0.5)
    with pytest.raises(ValueError, match="low < high"):
        Thresholded(graph(), 0.5, 0.5)
    with pytest.raises(ValueError, match="quantile"):
        Thresholded(graph(), -0.5, 0.5, 1.5)


def test_noise_of_another_law_is_not_redrawn() -> None:
    plain = Denoiser(lambda x, t, c: 0 * x, HeavyTailedPath(VE(0.1, 3.0), dimensions=4.0))
    guided = Replacement(plain, torch.tensor([[2.5, math.nan]]))
    with pytest.raises(ValueError, match="leaf 'state' cannot draw its known part afresh"):
        guided.redraw(torch.zeros(3, 2), 0.5, Noise(0, range(3)), 0)


def test_settings_move_with_the_module() -> None:
    guided = Replacement(graph(), {"nodes": KNOWN["nodes"]}, MOTIF).float()
    assert guided.tensors["known nodes"].dtype == torch.float32
    assert guided.tensors["mask nodes"].dtype == torch.bool
    assert guided.to("meta").tensors["mask nodes"].device.type == "meta"


def test_no_items_have_no_thresholds() -> None:
    plain = Denoiser(lambda x, t, c: x, GaussianPath(CondOT()))
    for quantile in (None, 0.9):
        assert Thresholded(plain, quantile=quantile)(torch.zeros(0, 3), 0.5).shape == (0, 3)
