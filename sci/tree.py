"""States, conditions and carries as trees of tensors.

A molecule has atoms and bonds, a protein has positions and rotations: a state is a tree whose
leaves are tensors. Containers are tuples (named ones too), lists, dicts and dataclasses; `None`
is a container without leaves. The order of the leaves is the order of writing (insertion order
for dicts), and every leaf has a dotted name, such as `"nodes"` or `"frames.rotation"`; the name
of a bare tensor is `""`.

A tree of other things (paths, names of kinds) has the same shape; `spread` lays one along a
structure.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Structure",
    "batch_size",
    "cast",
    "concat",
    "flatten",
    "index",
    "leaves",
    "map",
    "spread",
    "to",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Structure:
    """The shape of a tree without its leaves.

    Arguments:
        build: what makes the container from its children: `None` for a leaf, a type otherwise.
        keys: the names of the children, in order.
        children: their structures.
    """

    build: Any
    keys: tuple[Any, ...] = ()
    children: tuple[Structure, ...] = ()

    @property
    def names(self) -> list[str]:
        """Dotted names of the leaves, in order; `[""]` for a bare leaf."""
        if self.build is None:
            return [""]
        return [
            f"{key}.{name}" if name else str(key)
            for key, child in zip(self.keys, self.children, strict=True)
            for name in child.names
        ]

    def unflatten(self, leaves: Sequence[Any]) -> Any:
        """Rebuild the tree.

        Arguments:
            leaves: the leaves in the order of `names`.

        Returns:
            The tree.

        Raises:
            ValueError: when the number of leaves is not that of the structure.
        """
        if self.build is None:
            if len(leaves) != 1:
                raise ValueError(f"expected one leaf, got {len(leaves)}")
            return leaves[0]
        if self.build is dict and len(leaves) == len(self.keys) and self._flat():
            return dict(zip(self.keys, leaves, strict=True))
        position = 0

        def rebuild(structure: Structure) -> Any:
            nonlocal position
            if structure.build is None:
                position += 1
                return leaves[position - 1]
            children = [rebuild(child) for child in structure.children]
            if structure.build is type(None):
                return None
            if structure.build is dict:
                return dict(zip(structure.keys, children, strict=True))
            if structure.build in (tuple, list):
                return structure.build(children)
            return structure.build(**dict(zip(structure.keys, children, strict=True)))

        if len(leaves) != len(self.names):
            raise ValueError(
                f"expected {len(self.names)} leaves ({', '.join(self.names)}), got {len(leaves)}"
            )
        return rebuild(self)

    def _flat(self) -> bool:
        return all(child.build is None for child in self.children)


_LEAF = Structure(None)


def _children(tree: Any) -> tuple[Any, tuple[Any, ...], Sequence[Any]] | None:
    """Constructor, keys and children of a container; `None` when `tree` is no container."""
    if tree is None:
        return type(None), (), ()
    kind = type(tree)
    if isinstance(tree, dict):
        return dict, tuple(tree), tuple(tree.values())
    if isinstance(tree, tuple) and hasattr(tree, "_fields"):
        return kind, tuple(tree._fields), tree
    if isinstance(tree, (tuple, list)):
        return (tuple if isinstance(tree, tuple) else list), tuple(range(len(tree))), tree
    if dataclasses.is_dataclass(tree) and not isinstance(tree, type):
        keys = tuple(field.name for field in dataclasses.fields(tree) if field.init)
        return kind, keys, tuple(getattr(tree, key) for key in keys)
    return None


def flatten(tree: Any, leaf: type | tuple[type, ...] = Tensor) -> tuple[list[Any], Structure]:
    """Take a tree apart.

    Arguments:
        tree: a leaf or a container of trees.
        leaf: the type of the leaves; tensors unless told.

    Returns:
        The leaves in order, and the structure that puts them back.

    Raises:
        TypeError: when something in the tree is neither a container nor a leaf.
    """
    if isinstance(tree, leaf):
        return [tree], _LEAF
    if type(tree) is dict:
        found = list(tree.values())
        if found and all(isinstance(value, leaf) for value in found):
            return found, _flat_dict(tuple(tree))
    found = []
    return found, _structure(tree, leaf, found, "")


@functools.lru_cache(maxsize=256)
def _flat_dict(keys: tuple[Any, ...]) -> Structure:
    """The structure of a dict of leaves: the commonest one, asked for at every evaluation."""
    return Structure(dict, keys, (_LEAF,) * len(keys))


def _structure(tree: Any, leaf: Any, found: list[Any], where: str) -> Structure:
    if isinstance(tree, leaf):
        found.append(tree)
        return _LEAF
    parts = _children(tree)
    if parts is None:
        names = leaf.__name__ if isinstance(leaf, type) else " or ".join(t.__name__ for t in leaf)
        raise TypeError(
            f"{where or 'the tree'} is a {type(tree).__name__}: expected a {names}, "
            "or a tuple, list, dict or dataclass of them"
        )
    build, keys, children = parts
    return Structure(
        build,
        keys,
        tuple(
            _structure(child, leaf, found, f"{where}.{key}" if where else str(key))
            for key, child in zip(keys, children, strict=True)
        ),
    )


def leaves(tree: Any) -> list[Tensor]:
    """The tensors of a tree, in order."""
    return flatten(tree)[0]


def spread(
    value: Any, structure: Structure, leaf: type | tuple[type, ...], what: str = "the tree"
) -> list[Any]:
    """Lay a tree of settings along the leaves of a structure; a bare setting serves every leaf.

    Arguments:
        value: a setting, or a tree of settings with the same names as `structure`.
        structure: of the state.
        leaf: the type of a setting.
        what: how errors call it.

    Returns:
        One setting a leaf, in the order of `structure.names`.

    Raises:
        ValueError: when the names differ.
        TypeError: when something is neither a container nor a setting.
    """
    names = structure.names
    if isinstance(value, leaf):
        return [value] * len(names)
    found, given = flatten(value, leaf)
    by_name = dict(zip(given.names, found, strict=True))
    if set(by_name) != set(names):
        raise ValueError(
            f"{what} has the leaves {sorted(by_name)}, the state has {sorted(names)}: "
            "give both the same names"
        )
    return [by_name[name] for name in names]


def map(function: Callable[..., Any], tree: Any, *rest: Any) -> Any:
    """Apply a function to every leaf, or to the leaves of several trees of the same structure.

    Arguments:
        function: called with one leaf of each tree.
        tree: the tree whose structure is kept.
        rest: further trees with the same leaf names.

    Returns:
        The tree of results.

    Raises:
        ValueError: when the structures differ.
    """
    found, structure = flatten(tree)
    others = []
    for other in rest:
        more, given = flatten(other)
        if given.names != structure.names:
            raise ValueError(f"trees differ: leaves {structure.names} against {given.names}")
        others.append(more)
    return structure.unflatten([function(*group) for group in zip(found, *others, strict=True)])


def index(tree: Any, rows: Any) -> Any:
    """Index the first axis of every leaf: `leaf[rows]`."""
    return map(lambda leaf: leaf[rows], tree)


def concat(trees: Sequence[Any]) -> Any:
    """Join trees of the same structure along the first axis.

    Raises:
        ValueError: when the sequence is empty or the structures differ.
    """
    if not trees:
        raise ValueError("concat needs at least one tree, got none")
    return map(lambda *group: torch.cat(group), trees[0], *trees[1:])


def batch_size(tree: Any) -> int:
    """The common size of the first axis.

    Raises:
        ValueError: when there are no leaves, a leaf has no axis, or the leaves disagree.
    """
    found, structure = flatten(tree)
    if not found:
        raise ValueError("a tree without tensors has no batch size")
    sizes = {}
    for name, leaf in zip(structure.names, found, strict=True):
        if leaf.dim() == 0:
            raise ValueError(f"leaf '{name or 'state'}' is a scalar: expected a batch axis first")
        sizes[name or "state"] = leaf.shape[0]
    if len(set(sizes.values())) > 1:
        raise ValueError(f"leaves disagree on the batch size: {sizes}")
    return next(iter(sizes.values()))


def to(tree: Any, device: Any = None, dtype: torch.dtype | None = None) -> Any:
    """Move the leaves to a device and cast the floating ones.

    Arguments:
        tree: the tree.
        device: as in `Tensor.to`; kept when None.
        dtype: for floating leaves only (masks and class ids keep theirs); kept when None.
    """

    def move(leaf: Tensor) -> Tensor:
        return leaf.to(device=device, dtype=dtype if leaf.is_floating_point() else None)

    return map(move, tree)


def cast(tree: Any, dtype: torch.dtype) -> Any:
    """Cast the floating leaves; see `to`."""
    return to(tree, dtype=dtype)
