"""Classifier-free guidance."""

from __future__ import annotations

import math

import pytest
import torch
from mixtures import SCHEDULES, exact_data, labelled, log_density, random
from torch import Tensor, nn

from sci import samplers
from sci.denoiser import Denoiser
from sci.guidance import ClassifierFree
from sci.paths import GaussianPath
from sci.paths.categorical import CategoricalPath
from sci.paths.geodesic import GeodesicPath
from sci.schedules import VP, CondOT, Cosine, Schedule
from sci.spaces import quaternions


def guided_mixture(schedule: Schedule, scale, **options) -> ClassifierFree:
    return ClassifierFree(labelled(schedule), scale, {"label": -1}, **options)


# --- classifier-free ---------------------------------------------------------------------------


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("scale", [0.0, 0.6, 1.0, 3.0])
def test_classifier_free_guidance_combines_the_scores_of_the_mixture(schedule, scale) -> None:
    labels = torch.tensor([0, 1, 2, 1])
    guided = guided_mixture(schedule, scale)
    for t in (0.1, 0.5, 0.9):
        x = random(4, 2).requires_grad_()
        whole = torch.autograd.grad(log_density(schedule, x, t).sum(), x)[0]
        parts = torch.stack([log_density(schedule, x, t, int(label)) for label in labels])
        own = torch.autograd.grad(parts.diagonal().sum(), x)[0]
        score = whole + scale * (own - whole)
        x = x.detach()
        out = guided(x, t, {"label": labels})
        assert torch.allclose(out, exact_data(schedule, x, t, score), rtol=1e-8, atol=1e-8)
        assert torch.allclose(guided(x, t, {"label": labels}, to="score"), score, atol=1e-7)


def test_scales_zero_and_one_are_exact_and_cost_one_evaluation() -> None:
    plain, x = labelled(Cosine()), random(4, 2)
    condition = {"label": torch.tensor([0, 1, 2, 1])}
    blank = {"label": torch.full((4,), -1)}
    assert torch.equal(guided_mixture(Cosine(), 1.0)(x, 0.4, condition), plain(x, 0.4, condition))
    assert torch.equal(guided_mixture(Cosine(), 0.0)(x, 0.4, condition), plain(x, 0.4, blank))
    assert [guided_mixture(Cosine(), scale).evaluations for scale in (0, 1, 1.5)] == [1, 1, 2]
    tensor = guided_mixture(Cosine(), torch.tensor([1.0, 0.0, 1.0, 0.0]).double())
    assert tensor.evaluations == 2
    out = tensor(x, 0.4, condition)
    assert torch.allclose(out[[0, 2]], plain(x, 0.4, condition)[[0, 2]], atol=1e-14)
    assert torch.allclose(out[[1, 3]], plain(x, 0.4, blank)[[1, 3]], atol=1e-14)


def test_one_call_for_both_equals_two_calls() -> None:
    calls = []
    inner = labelled(VP())
    network = inner.network
    inner.network = lambda x, t, c: (calls.append(len(x)), network(x, t, c))[1]
    x, condition = random(5, 2), {"label": torch.tensor([0, 1, 2, 1, 0])}
    times = torch.linspace(0.1, 0.9, 5, dtype=torch.float64)
    together = ClassifierFree(inner, 2.5, {"label": -1})
    apart = ClassifierFree(inner, 2.5, {"label": -1}, batched=False)
    for t in (0.3, times):
        calls.clear()
        one = together(x, t, condition)
        assert calls == [10]
        two = apart(x, t, condition)
        assert calls == [10, 5, 5] and torch.allclose(one, two, rtol=1e-12, atol=1e-12)
    rows = [together(x[k : k + 1], float(times[k]), {"label": condition["label"][k : k + 1]})
            for k in range(5)]  # fmt: skip
    assert torch.allclose(together(x, times, condition), torch.cat(rows), atol=1e-12)


def test_ways_to_say_no_condition() -> None:
    seen = []

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        seen.append(condition)
        return 0 * x

    plain = Denoiser(network, GaussianPath(CondOT()), mask="mask")
    x, mask = random(2, 3), torch.ones(2, 3, dtype=torch.bool)
    condition = {"mask": mask, "dose": torch.tensor([[1.0, 2.0], [3.0, 4.0]]), "kind": mask[:, 0]}
    for null in ("dose", ["dose"], {"dose": 0.0}, {"dose": torch.zeros(2)}):
        seen.clear()
        ClassifierFree(plain, 2.0, null, batched=False)(x, 0.5, condition)
        assert torch.equal(seen[0]["dose"], condition["dose"]) and not seen[1]["dose"].any()
        assert torch.equal(seen[1]["mask"], mask) and torch.equal(
            seen[1]["kind"], condition["kind"]
        )
    seen.clear()
    bare = Denoiser(network, GaussianPath(CondOT()))
    doubled = ClassifierFree(bare, 2.0, lambda label: label + 10)
    doubled(x, 0.5, torch.tensor([1.0, 2.0]))
    assert seen.pop().tolist() == [1.0, 11.0, 2.0, 12.0]
    ClassifierFree(bare, 2.0, torch.tensor(-1.0))(x, 0.5, torch.tensor([1.0, 2.0]))
    assert seen.pop().tolist() == [1.0, -1.0, 2.0, -1.0]
    ClassifierFree(bare, 2.0, None)(x, 0.5, torch.tensor([1.0, 2.0]))
    assert seen[0].tolist() == [1.0, 2.0] and seen[1] is None


def test_encoding_happens_once_a_run_for_both_conditions() -> None:
    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.encoded = 0

        def encode(self, condition):
            self.encoded += 1
            return 10.0 * condition["label"]

        def forward(self, x, t, encoding):
            return x + encoding[:, None]

    plain = Denoiser(Network(), GaussianPath(Cosine()))
    guided = ClassifierFree(plain, 2.0, "label")
    condition = {"label": torch.tensor([1.0, 2.0, 3.0]).double()}
    x = random(3, 1)
    samplers.ddim(5)(guided, start=x, condition=condition)
    assert plain.network.encoded == 2
    assert torch.allclose(guided.given(condition)(x, 0.5), x + 20 * condition["label"][:, None])


def test_interval_schedule_and_scale_by_item() -> None:
    x, condition = random(3, 2), {"label": torch.tensor([0, 1, 2])}
    plain = labelled(Cosine())(x, 0.5, condition)
    strong = guided_mixture(Cosine(), 3.0)(x, 0.5, condition)
    limited = guided_mixture(Cosine(), 3.0, interval=(0.4, 0.7))
    assert torch.equal(limited(x, 0.5, condition), strong)
    outside = labelled(Cosine())(x, 0.8, condition)
    assert torch.allclose(limited(x, 0.8, condition), outside, atol=1e-14)
    times = torch.tensor([0.5, 0.8, 0.2], dtype=torch.float64)
    mixed = limited(x, times, condition)
    assert torch.allclose(mixed[0], strong[0], atol=1e-12)
    assert torch.allclose(mixed[1:], labelled(Cosine())(x, times, condition)[1:], atol=1e-12)
    ramp = guided_mixture(Cosine(), lambda t: 1 + 4 * t)
    assert torch.allclose(ramp(x, 0.5, condition), strong, atol=1e-14)
    assert torch.allclose(
        ramp(x, torch.full((3,), 0.5, dtype=torch.float64), condition), strong, atol=1e-14
    )
    own = guided_mixture(Cosine(), torch.tensor([1.0, 3.0, 2.0], dtype=torch.float64))
    out = own(x, 0.5, condition)
    assert torch.allclose(out[0], plain[0], atol=1e-14) and torch.equal(out[1], strong[1])


def test_rescaling_brings_the_length_back() -> None:
    x, condition = random(3, 2), {"label": torch.tensor([0, 1, 2])}
    plain, strong = labelled(VP())(x, 0.5, condition), guided_mixture(VP(), 4.0)(x, 0.5, condition)
    full = guided_mixture(VP(), 4.0, rescale=1.0)(x, 0.5, condition)
    assert torch.allclose(full.norm(dim=1), plain.norm(dim=1))
    assert torch.allclose(
        full / full.norm(dim=1, keepdim=True), torch.nn.functional.normalize(strong)
    )
    half = guided_mixture(VP(), 4.0, rescale=0.5)(x, 0.5, condition)
    assert torch.allclose(half, 0.5 * (full + strong))


def test_classes_combine_log_probabilities_and_rotations_turn() -> None:
    given = torch.tensor([[[0.7, 0.2, 0.1]]], dtype=torch.float64)
    blank = torch.tensor([[[0.3, 0.3, 0.4]]], dtype=torch.float64)
    turns = torch.tensor([[[0.1, 0.2, -0.3]]], dtype=torch.float64)
    unit = quaternions.exp(torch.zeros_like(turns))

    def network(state, t, condition):
        on = condition[:, None, None]
        return {
            "kind": torch.where(on > 0, given, blank),
            "turn": quaternions.exp(on * turns),
        }

    paths = {"kind": CategoricalPath(CondOT(), 3), "turn": GeodesicPath()}
    plain = Denoiser(network, paths)
    state = {"kind": torch.zeros(1, 1, dtype=torch.int64), "turn": unit}
    one = torch.ones(1, dtype=torch.float64)
    out = ClassifierFree(plain, 2.0, torch.tensor(0.0))(state, 0.5, one)
    expected = given**2 / blank
    assert torch.allclose(out["kind"], expected / expected.sum(), atol=1e-12)
    assert torch.allclose(quaternions.log(out["turn"]), 2 * turns, atol=1e-9)


# --- mistakes ----------------------------------------------------------------------------------


def test_wrong_arguments_are_named() -> None:
    plain, x = labelled(CondOT()), random(2, 2)
    condition = {"label": torch.tensor([0, 1])}
    with pytest.raises(TypeError, match=r"expected a sci.Denoiser"):
        ClassifierFree(lambda x: x, 2.0)
    with pytest.raises(TypeError, match="scale is a str"):
        ClassifierFree(plain, "strong")
    with pytest.raises(ValueError, match=r"shape \(batch,\)"):
        ClassifierFree(plain, torch.ones(2, 2))
    with pytest.raises(ValueError, match="finite"):
        ClassifierFree(plain, math.nan)
    with pytest.raises(ValueError, match="rescale"):
        ClassifierFree(plain, rescale=2.0)
    with pytest.raises(ValueError, match="interval"):
        ClassifierFree(plain, interval=(0.7, 0.2))
    with pytest.raises(TypeError, match="null is a int"):
        ClassifierFree(plain, null=3)
    with pytest.raises(KeyError, match="did you mean 'label'"):
        ClassifierFree(plain, null="labels")(x, 0.5, condition)
    with pytest.raises(ValueError, match="does not broadcast"):
        ClassifierFree(plain, null={"label": torch.zeros(3)})(x, 0.5, condition)
    with pytest.raises(ValueError, match="got no condition"):
        ClassifierFree(plain, null="label")(x, 0.5)
    with pytest.raises(ValueError, match="scale for 3 items and got a condition for 2"):
        ClassifierFree(plain, torch.ones(3), null="label")(x, 0.5, condition)


def test_no_condition_at_all_leaves_the_mask() -> None:
    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        return 0 * x + (1.0 if condition is None else 2.0)

    plain = Denoiser(network, GaussianPath(CondOT()), mask="mask")
    guided = ClassifierFree(plain, 3.0, None)
    condition = {"mask": torch.tensor([[True, False], [True, True]])}
    assert guided(torch.zeros(2, 2), 0.5, condition).tolist() == [[4.0, 0.0], [4.0, 4.0]]
    twice = ClassifierFree(ClassifierFree(plain, 3.0, "mask"), 3.0, None)
    with pytest.raises(ValueError, match="replaced by None already"):
        twice(torch.zeros(2, 2), 0.5, condition)


def test_classes_in_the_padding_stay_empty() -> None:
    path = CategoricalPath(CondOT(), 3)
    logits = torch.tensor([2.0, 1.0, 0.0])

    def network(x: Tensor, t: Tensor, condition) -> Tensor:
        return (condition["on"][:, None, None] * logits).softmax(-1).expand(*x.shape, 3)

    plain = Denoiser(network, path, mask="mask")
    condition = {"mask": torch.tensor([[True, False]]), "on": torch.ones(1)}
    out = ClassifierFree(plain, 2.0, "on")(torch.zeros(1, 2, dtype=torch.int64), 0.5, condition)
    assert torch.allclose(out[0, 0], (2 * logits).softmax(-1)) and not out[0, 1].any()
