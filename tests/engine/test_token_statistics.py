"""Each token's numbers on the rank: against numpy, with NaN, Inf, and values whose squares overflow."""

import mlx.core as mx
import numpy as np
import pytest

from mlx_nb.engine.summary import token_statistics
from mlx_nb.shared.statistics import STATISTICS, numpy_statistics


@pytest.mark.parametrize(("shape", "axis"), [((1, 7, 40), 1), ((2, 3, 7, 5), 2), ((7,), 0)])
def test_they_are_those_of_numpy(shape: tuple[int, ...], axis: int) -> None:
    values = np.random.default_rng(1).normal(3, 2, shape).astype(np.float32)
    found = token_statistics(mx.array(values), axis)
    rows = np.moveaxis(values, axis, 0).reshape(7, -1).astype(np.float64)

    expected = [np.sqrt((rows**2).mean(1)), np.abs(rows).max(1), rows.std(1), np.zeros(7)]
    assert found.shape == (len(STATISTICS), 7)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(numpy_statistics([values], axis), expected, rtol=1e-5, atol=1e-6)
    assert not np.allclose(found, np.roll(expected, 1, axis=1))  # the control: another token's


def test_what_is_not_finite_is_counted_and_left_out() -> None:
    values = np.ones((1, 4, 6), np.float32)
    values[0, 1, :2] = np.nan, -np.inf
    values[0, 2] = np.nan
    values[0, 3] = 2e38  # its square is infinite in float32
    for found in (token_statistics(mx.array(values), 1), numpy_statistics([values], 1)):
        assert found[3].tolist() == [0, 2, 6, 0]
        assert found[:2, 1].tolist() == [1, 1]
        assert np.isnan(found[:3, 2]).all()
        np.testing.assert_allclose(found[:3, 3], [2e38, 2e38, 0], rtol=1e-6)
