"""The preview keeps what a user looks for: the outlier, its sign, NaN and Inf."""

import numpy as np
import pytest

from mlx_nb.shared import preview as pv


def noise(rows: int, columns: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=(rows, columns)).astype(np.float32)


@pytest.mark.parametrize("planted", [1e4, -1e4, np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [(0, 0), (777, 333), (1023, 575)])
def test_a_planted_outlier_survives_pooling_with_its_sign(planted, at):
    array = noise(1024, 576)
    array[at] = planted

    pooled = pv.pool_extreme(array, 48, 192)

    assert pooled.shape == (48, 192)
    assert np.isin(planted, pooled) if planted == planted else np.isnan(pooled).sum() == 1


def test_averaging_would_have_hidden_it():
    array = noise(1024, 576)
    array[777, 333] = -60.0

    averaged = array.reshape(32, 32, 192, 3).mean(axis=(1, 3))

    assert np.abs(averaged).max() < 3
    assert pv.pool_extreme(array, 32, 192).min() == -60.0


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (48, 192), (49, 193), (7, 1000), (95, 383)])
def test_every_value_falls_into_exactly_one_cell(shape):
    array = np.arange(1, shape[0] * shape[1] + 1, dtype=np.float64).reshape(shape)

    pooled = pv.pool_extreme(array, 48, 192)

    assert pooled.shape == (min(shape[0], 48), min(shape[1], 192))
    assert pooled.max() == array.max()
    assert len(np.unique(pooled)) == pooled.size


def test_nan_beats_infinity_and_the_greater_magnitude_beats_the_sign():
    assert np.isnan(pv.pool_extreme(np.array([[np.nan, np.inf]]), 1, 1))
    assert pv.pool_extreme(np.array([[-np.inf, 5.0]]), 1, 1) == -np.inf
    assert pv.pool_extreme(np.array([[-5.0, 4.0]]), 1, 1) == -5.0
    assert pv.pool_extreme(np.array([[-5.0, 5.0]]), 1, 1) == 5.0


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int32, np.int64, np.bool_, np.float16, np.float64])
def test_other_dtypes_pool_without_overflow(dtype):
    array = np.zeros((4, 4), dtype)
    array[1, 2] = np.iinfo(dtype).min if np.issubdtype(dtype, np.signedinteger) else 1

    pooled = pv.pool_extreme(array, 2, 2)

    assert pooled[0, 1] == float(array[1, 2])


def test_pooling_refuses_other_dimensions():
    with pytest.raises(ValueError, match=r"two dimensions.*\[2, 3, 4\]"):
        pv.pool_extreme(np.zeros((2, 3, 4)), 1, 1)


def test_colours_are_symmetric_about_zero_and_saturate_at_the_limit():
    assert pv.colour_indices(np.array([[-1.0, -0.5, 0.0, 0.5, 1.0]])).tolist() == [[0, 63, 126, 189, 252]]
    assert pv.colour_indices(np.array([[-9.0, 0.0, 9.0]]), limit=1.0).tolist() == [[0, 126, 252]]
    assert pv.colour_indices(np.array([[0.0, 3.0]])).tolist() == [[126, 252]]
    assert pv.colour_indices(np.zeros((2, 2))).tolist() == [[126, 126], [126, 126]]


def test_nan_and_infinities_never_share_an_index_with_a_number():
    array = noise(64, 64)
    array[0, :3] = np.nan, np.inf, -np.inf

    indices = pv.colour_indices(array)

    assert indices[0, :3].tolist() == [pv.NAN, pv.POSITIVE_INFINITY, pv.NEGATIVE_INFINITY]
    assert indices.ravel()[3:].max() <= 2 * pv.ZERO
    assert (pv.colour_indices(np.full((1, 2), np.nan)) == pv.NAN).all()


def test_one_outlier_does_not_blank_the_rest():
    array = noise(48, 192)
    array[5, 5] = 1204.0

    limited = pv.colour_indices(array, pv.colour_limit(array))
    control = pv.colour_indices(array)

    assert limited[5, 5] == control[5, 5] == 2 * pv.ZERO
    assert np.abs(limited.astype(int) - pv.ZERO).mean() > 20
    assert np.abs(control.astype(int) - pv.ZERO).mean() < 2


def test_a_preview_unpacks_to_what_was_packed():
    packed = pv.make_preview(noise(333, 64).reshape(1, 9, 37, 64))

    width, height, indices = pv.unpack_preview(packed)

    assert (width, height, len(indices)) == (64, 48, 64 * 48)
    assert pv.preview_limit(packed) == pytest.approx(
        pv.colour_limit(pv.pool_extreme(noise(333, 64), 48, 192))
    )
    assert len(packed) < 64 * 1024


@pytest.mark.parametrize(
    ("shape", "size"), [((0, 4), (0, 0)), ((), (1, 1)), ((5,), (5, 1)), ((2, 3, 4), (4, 6))]
)
def test_any_shape_has_a_preview(shape, size):
    packed = pv.make_preview(np.ones(shape, np.float32))

    assert pv.unpack_preview(packed)[:2] == size


def test_a_preview_of_the_wrong_length_is_refused():
    with pytest.raises(ValueError, match="6 cells, not 5"):
        pv.pack_preview(3, 2, bytes(5))
