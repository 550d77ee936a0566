"""Trees of tensors."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sci import tree


@dataclasses.dataclass
class Frames:
    position: Tensor
    rotation: Tensor | None = None


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def leaf(*shape: int) -> Tensor:
    return torch.randn(*shape) if shape else torch.randn(2)


TREES = st.recursive(
    st.builds(leaf),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3)
        | st.builds(Frames, inner, st.none())
        | st.builds(Pair, inner, inner)
    ),
    max_leaves=8,
)


@given(TREES)
def test_flatten_and_unflatten_round_trip(value) -> None:
    leaves, structure = tree.flatten(value)
    again = structure.unflatten(leaves)
    assert type(again) is type(value)
    found, same = tree.flatten(again)
    assert same == structure and hash(same) == hash(structure)
    assert all(a is b for a, b in zip(leaves, found, strict=True))
    assert len(structure.names) == len(leaves) == len(set(structure.names))


def test_names_are_dotted_and_in_order() -> None:
    state = {"nodes": leaf(), "frames": Frames(leaf(), None), "rest": (leaf(), [leaf()])}
    _, structure = tree.flatten(state)
    assert structure.names == ["nodes", "frames.position", "rest.0", "rest.1.0"]
    assert tree.flatten(leaf())[1].names == [""]
    assert tree.flatten(None)[0] == []


def test_map_runs_over_several_trees_and_checks_their_names() -> None:
    one, two = {"a": torch.ones(2), "b": torch.ones(3)}, {"b": torch.ones(3), "a": torch.ones(2)}
    assert tree.map(torch.add, one, one)["b"].tolist() == [2.0, 2.0, 2.0]
    with pytest.raises(ValueError, match="trees differ"):
        tree.map(torch.add, one, two)


def test_foreign_leaves_are_named() -> None:
    with pytest.raises(TypeError, match=r"a\.1 is a str"):
        tree.flatten({"a": (torch.ones(1), "x")})


def test_unflatten_counts_its_leaves() -> None:
    _, structure = tree.flatten({"a": leaf(), "b": {"c": leaf()}})
    with pytest.raises(ValueError, match="expected 2 leaves"):
        structure.unflatten([leaf()])


def test_index_concat_and_batch_size() -> None:
    state = {"a": torch.arange(4), "b": torch.arange(8).view(4, 2)}
    parts = [tree.index(state, [0]), tree.index(state, slice(1, 4))]
    joined = tree.concat(parts)
    assert all(torch.equal(joined[key], state[key]) for key in state)
    assert tree.batch_size(state) == 4
    with pytest.raises(ValueError, match="disagree"):
        tree.batch_size({"a": torch.ones(2), "b": torch.ones(3)})
    with pytest.raises(ValueError, match="scalar"):
        tree.batch_size(torch.tensor(1.0))
    with pytest.raises(ValueError, match="without tensors"):
        tree.batch_size(None)
    with pytest.raises(ValueError, match="at least one"):
        tree.concat([])


def test_cast_leaves_masks_and_class_ids_alone() -> None:
    state = {"x": torch.ones(2), "mask": torch.ones(2, dtype=torch.bool), "ids": torch.arange(2)}
    cast = tree.cast(state, torch.float64)
    assert [cast[key].dtype for key in state] == [torch.float64, torch.bool, torch.int64]


def test_spread_lays_settings_by_name() -> None:
    _, structure = tree.flatten({"a": leaf(), "b": leaf()})
    assert tree.spread("data", structure, str) == ["data", "data"]
    assert tree.spread({"b": "noise", "a": "data"}, structure, str) == ["data", "noise"]
    with pytest.raises(ValueError, match="kinds has the leaves"):
        tree.spread({"a": "data"}, structure, str, "kinds")
