"""Arrays in numbers, against numpy."""

import math

import numpy as np
import pytest

from mlx_nb.engine.kv import make_kv_cache
from mlx_nb.engine.summary import Sizes, describe_call, describe_tree, describe_values, summarize

import mlx.core as mx  # isort: skip
from mlx_lm.models.cache import KVCache  # isort: skip

SIZES = Sizes(hidden=64, heads=4, kv_heads=2, vocabulary=101)
NAN, INF = float("nan"), float("inf")


def test_the_numbers_are_numpys() -> None:
    values = np.random.default_rng(0).normal(size=(2, 3, 5)).astype(np.float32)

    found = summarize(mx.array(values))

    assert (found.min, found.max) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(), abs=1e-6)
    assert found.rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-5)
    assert found.min_at == np.unravel_index(values.argmin(), values.shape)
    assert found.max_at == np.unravel_index(values.argmax(), values.shape)
    assert (found.shape, found.dtype, found.size_bytes) == ((2, 3, 5), "float32", 120)
    assert (found.nan, found.inf) == (0, 0)


def test_nan_and_infinity_are_counted_and_left_out() -> None:
    found = summarize(mx.array([[NAN, -INF, 3.0], [INF, -2.0, NAN]]))

    assert (found.nan, found.inf) == (2, 2)
    assert (found.min, found.min_at, found.max, found.max_at) == (-2.0, (1, 1), 3.0, (0, 2))
    assert found.mean == 0.5
    assert "NaN 2" in str(found)
    assert "Inf 2" in str(found)


@pytest.mark.parametrize("array", [mx.array([NAN, INF]), mx.zeros((0, 4))], ids=["nothing finite", "empty"])
def test_nothing_finite_gives_nan(array: mx.array) -> None:
    found = summarize(array)

    assert all(math.isnan(value) for value in (found.min, found.mean, found.rms, found.max))


def test_bfloat16_is_summarised_in_float32() -> None:
    values = mx.full((1, 40000), 1.0, dtype=mx.bfloat16)

    found = summarize(values)

    assert (found.dtype, found.size_bytes) == ("bfloat16", 80000)
    assert (found.mean, found.rms) == (1.0, 1.0)
    assert mx.cumsum(values, axis=1)[0, -1].item() != 40000  # the control: bfloat16 cannot count so far


@pytest.mark.parametrize(
    ("dtype", "text"), [(mx.int32, "min 1  "), (mx.bool_, "min 1  "), (mx.uint32, "min 1  ")]
)
def test_integers_have_whole_extremes(dtype: mx.Dtype, text: str) -> None:
    assert text in str(summarize(mx.array([1, 1], dtype=dtype)))


def test_a_scalar_and_a_complex_array_have_numbers() -> None:
    assert summarize(mx.array(3.0)).max_at == ()
    assert summarize(mx.array([3 + 4j])).max == 5.0


@pytest.mark.parametrize(
    ("shape", "axes"),
    [
        ((1, 21, 64), ("B", "L", "D")),
        ((1, 21, 101), ("B", "L", "V")),
        ((1, 21, 96), ("B", "L", "")),
        ((1, 4, 21, 16), ("B", "H", "L", "")),
        ((1, 2, 21, 16), ("B", "K", "L", "")),
        ((1, 3, 21, 16), ("B",)),
        ((1, 21), ("B", "L")),
        ((21, 64), ()),
        ((64,), ()),
        ((), ()),
    ],
)
def test_axes_are_named_where_the_shape_is_certain(shape: tuple[int, ...], axes: tuple[str, ...]) -> None:
    assert SIZES.axes(shape, 21) == axes


def test_arguments_have_the_names_of_the_parameters() -> None:
    def call(self, x, mask=None, cache=None, **kwargs):  # type: ignore[no-untyped-def]
        """Stands for a module's own."""

    cache = KVCache()
    found = describe_call(
        call, None, (mx.zeros((1, 21, 64)), "causal"), {"cache": cache, "extra": 2}, SIZES, 21
    )

    assert [str(arg).split("  ")[0] for arg in found] == [
        "x",
        "mask='causal'",
        "cache=KVCache(offset=0)",
        "extra=2",
    ]
    assert found[0].summary is not None
    assert found[0].summary.axes == ("B", "L", "D")


def test_returned_trees_and_long_texts_are_told_apart() -> None:
    found = describe_tree((mx.zeros((1, 2)), None), SIZES, 2)
    assert [arg.name for arg in found] == ["out[0]", "out[1]"]
    (long,) = describe_values([("text", "x" * 500)], SIZES, 2)
    assert len(long.text) == 80


def test_a_list_of_kv_caches_is_counted() -> None:
    class Model:
        layers = (1, 2, 3)

    (found,) = describe_values([("cache", make_kv_cache(Model()))], SIZES, 2)  # type: ignore[arg-type]

    assert str(found) == "cache=3 KV caches"
