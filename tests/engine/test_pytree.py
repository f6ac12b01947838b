"""A layer's whole return value crosses unchanged, or is refused."""

from typing import Any, NamedTuple

import pytest

from mlx_nb.engine.pytree import arrays_of, flatten, like, unflatten
from mlx_nb.shared.errors import ModelError

import mlx.core as mx  # isort: skip


class Pair(NamedTuple):
    first: int
    second: int


def trees() -> list[Any]:
    a, b = mx.arange(6).reshape(2, 3), mx.array([1.5, 2.5], dtype=mx.bfloat16)
    return [
        a,
        (a, b),
        [a, None, (b,)],
        {"h": a, "more": {"v": [b, 1, 2.5, "text", True, None]}},
        (a, (), [], {}),
        {1: a},
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
    "value", [Pair(1, 2), {1, 2}, object(), lambda: None], ids=lambda v: type(v).__name__
)
def test_what_cannot_cross_is_refused(value: Any) -> None:
    with pytest.raises(ModelError, match=f"returned a {type(value).__name__}, which cannot cross"):
        flatten((mx.array(1), value))
