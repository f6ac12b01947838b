"""A layer's whole return value crosses unchanged, or is refused."""

from typing import Any, NamedTuple

import pytest

from mlx_nb.engine.pytree import arrays_of, flatten, like, unflatten
from mlx_nb.shared.errors import ModelError

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip


class Pair(NamedTuple):
    first: Any
    second: Any


class Holder:
    """Keeps its state in attributes, as kimi's residual blocks do."""

    def __init__(self, held: Any) -> None:
        self.held = held


def trees() -> list[Any]:
    a, b = mx.arange(6).reshape(2, 3), mx.array([1.5, 2.5], dtype=mx.bfloat16)
    return [
        a,
        (a, b),
        [a, None, (b,)],
        {"h": a, "more": {"v": [b, 1, 2.5, "text", True, None]}},
        (a, (), [], {}),
        {1: a},
        Pair(a, [b]),
        None,
    ]


def same(one: Any, other: Any) -> bool:
    if isinstance(one, mx.array):
        return one.dtype == other.dtype and one.shape == other.shape and bool(mx.array_equal(one, other))
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(x, y) for x, y in zip(one, other, strict=True))
    if isinstance(one, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("tree", trees(), ids=lambda tree: type(tree).__name__)
def test_a_tree_comes_back_as_it_was(tree: Any) -> None:
    header, arrays = flatten(tree)

    assert isinstance(header, str)
    assert same(unflatten(header, arrays), tree)
    assert same(tree, tree)
    assert not same((tree,), [tree])  # the control: a tuple is no list


def test_an_object_crosses_as_its_attributes() -> None:
    header, arrays = flatten([Holder((mx.array([1, 2]), 3))])

    (found,) = unflatten(header, arrays)

    assert type(found) is Holder
    assert found.held[0].tolist() == [1, 2]
    assert found.held[1] == 3


def test_an_object_of_an_unknown_class_is_named() -> None:
    header, arrays = flatten(Holder(1))

    with pytest.raises(ModelError, match=r"sent a \S+\.Nobody, which this rank does not know"):
        unflatten(header.replace("Holder", "Nobody"), arrays)


def test_arrays_keep_their_order() -> None:
    a, b, c = mx.array(1), mx.array(2), mx.array(3)

    assert [int(array.item()) for array in arrays_of({"x": (a, [b]), "y": c})] == [1, 2, 3]


def test_like_has_the_shapes_and_comes_from_nowhere() -> None:
    tree = (mx.ones((2, 3), dtype=mx.float16), [mx.array([7])], None)

    zeros = like(tree)

    assert [(a.shape, a.dtype) for a in arrays_of(zeros)] == [(a.shape, a.dtype) for a in arrays_of(tree)]
    assert all(not mx.any(array).item() for array in arrays_of(zeros))
    assert zeros[2] is None


@pytest.mark.parametrize(
    "value", [{1, 2}, object(), nn.Linear(2, 2), lambda: None], ids=lambda v: type(v).__name__
)
def test_what_cannot_cross_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match=f"returned a {type(value).__name__}, which cannot cross"):
        flatten((mx.array(1), value))
