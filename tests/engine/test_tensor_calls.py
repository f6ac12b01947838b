"""Big arrays looked at in windows: what is seen of them, how much travels, and that nothing is lost on the way."""

import pickle
import time

import mlx.core as mx
import numpy as np
import pytest

from mlx_nb.engine.tensor_calls import look
from mlx_nb.shared.tensor import (
    OVERVIEW_COLUMNS,
    OVERVIEW_ROWS,
    DetailsWish,
    Face,
    WindowWish,
    checked_face,
    first_face,
)

FLAT = Face(rows=0, columns=1, index=(0, 0))
NOISE = np.random.default_rng(0)


def window(array, rows=None, columns=None, height=OVERVIEW_ROWS, width=OVERVIEW_COLUMNS, face=None, axis=0):
    pieces = array if isinstance(array, list) else [array]
    face = face or first_face(pieces[0].shape)
    whole = list(pieces[0].shape)
    if whole:
        whole[axis] = sum(piece.shape[axis] for piece in pieces)
    size = face.size(whole)
    wish = WindowWish(
        face=face, rows=rows or (0, size[0]), columns=columns or (0, size[1]), height=height, width=width
    )
    return look(pieces, axis, wish)


def details(array, face=None):
    return look([array], 0, DetailsWish(face=face or first_face(array.shape)))


def test_an_outlier_in_the_middle_of_64_mib_is_seen_at_once_and_little_is_sent():
    values = NOISE.standard_normal((4096, 8192), np.float32)
    values[2047, 4095] = -1204.0
    array = mx.array(values).astype(mx.bfloat16)
    mx.eval(array)
    assert array.nbytes == 64 * 2**20

    began = time.perf_counter()
    first = window(array)
    first_s = time.perf_counter() - began
    finer = window(array, height=4096, width=8192)  # a view may ask for whatever it likes
    found = details(array)
    details_s = time.perf_counter() - began - first_s
    sent = sum(len(pickle.dumps(one)) for one in (first, finer, found))
    print(f"first look {first_s:.2f} s, the rest {details_s:.2f} s, {sent / 1024:.0f} KiB")

    assert first.values()[2047 * 256 // 4096, 4095 * 512 // 8192] == pytest.approx(-1204, rel=0.01)
    assert (np.abs(first.values()) > 100).sum() == 1
    assert (np.abs(finer.values()) > 100).sum() == 1
    assert found.outliers[0] == (2047, 4095, -1200.0)  # as bfloat16 has it
    assert sent <= 0.75 * 2**20
    assert max(len(one.cells) for one in (first, finer)) <= 384 * 1024
    # The control: a picture that crops or averages loses it.
    averaged = values.reshape(256, 16, 512, 16).mean(axis=(1, 3))
    assert np.abs(averaged).max() < 100


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16, mx.int32, mx.uint8, mx.bool_])
def test_a_small_window_is_exact_in_any_dtype(dtype):
    array = mx.array(NOISE.integers(0, 2, (300, 700)) * 1.0).astype(dtype)
    expected = np.array(array.astype(mx.float32))

    found = window(array, rows=(40, 140), columns=(600, 700))

    assert found.exact
    assert (found.values() == expected[40:140, 600:700]).all()


def test_every_cell_is_the_value_of_largest_magnitude_behind_it():
    values = NOISE.standard_normal((97, 1013)).astype(np.float32)
    found = window(mx.array(values), rows=(3, 97), columns=(10, 1013), height=7, width=50)
    for i in range(7):
        for j in range(50):
            rows = slice(3 + i * 94 // 7, 3 + (i + 1) * 94 // 7)
            columns = slice(10 + j * 1003 // 50, 10 + (j + 1) * 1003 // 50)
            block = values[rows, columns].ravel()
            assert found.values()[i, j] == pytest.approx(block[np.abs(block).argmax()], rel=0.01)


def test_nan_and_infinities_stay_what_they_are():
    values = np.zeros((500, 2000), np.float32)
    values[3, 4], values[250, 1000], values[499, 1999] = np.nan, np.inf, -np.inf

    cells = window(mx.array(values)).values()
    found = details(mx.array(values))

    assert np.isnan(cells).sum() == 1
    assert (cells == np.inf).sum() == (cells == -np.inf).sum() == 1
    assert (found.nan, found.inf, found.zeros) == (1, 2, 500 * 2000 - 3)
    assert [one[:2] for one in found.outliers] == [(3, 4), (250, 1000), (499, 1999)]
    assert found.max == 0


def test_any_two_axes_of_any_pieces():
    values = NOISE.standard_normal((2, 3, 40, 16)).astype(np.float32)
    pieces = [mx.array(values[:, :, a:b]) for a, b in ((0, 25), (25, 39), (39, 40))]
    shape = values.shape

    def seen(rows, columns, *index):
        face = Face(rows=rows, columns=columns, index=index)
        return window(pieces, face=face, axis=2).values()

    assert (seen(2, 3, 1, 2, 0, 0) == values[1, 2]).all()
    assert (seen(3, 2, 1, 2, 0, 0) == values[1, 2].T).all()
    assert (seen(0, 1, 0, 0, 38, 5) == values[:, :, 38, 5]).all()
    assert (seen(1, 2, 0, 0, 0, 7) == values[0, :, :, 7]).all()
    assert first_face(shape, ("B", "H", "L", "")) == Face(rows=2, columns=3, index=(0, 0, 0, 0))
    assert Face(rows=1, columns=2, index=(0, 0, 0, 7)).place(2, 9) == (0, 2, 9, 7)


@pytest.mark.parametrize("shape", [(), (5,), (1, 1, 8), (0, 4), (3, 0)])
def test_few_axes_and_empty_arrays_have_a_face_too(shape):
    array = mx.ones(shape)
    size = first_face(shape).size(shape)

    found = window(array)
    numbers = details(array)

    assert found.values().shape == size
    assert len(np.frombuffer(numbers.columns, "<f4")) == size[1]
    assert (numbers.max == 1) == (array.size > 0)


def test_a_face_that_an_array_has_not_becomes_one_that_it_has():
    assert checked_face(Face(rows=7, columns=9, index=()), (4, 5, 6)) == first_face((4, 5, 6))
    assert checked_face(Face(rows=0, columns=2, index=(9, -3, 0)), (4, 5, 6)).index == (3, 0, 0)


def test_the_numbers_are_those_of_the_whole_face():
    values = NOISE.standard_normal((700, 9000)).astype(np.float32) * 3  # two blocks
    found = details(mx.array(values))

    assert (found.min, found.max) == (values.min(), values.max())
    assert found.mean == pytest.approx(values.mean(dtype=np.float64), abs=1e-6)
    assert found.rms == pytest.approx(np.sqrt(np.square(values, dtype=np.float64).mean()))
    assert (np.frombuffer(found.rows, "<f4") == np.abs(values).max(axis=1)).all()
    columns = np.abs(values).max(axis=0)
    assert np.frombuffer(found.columns, "<f4").max() == columns.max()
    ranked = np.argsort(-np.abs(values), axis=None)[:8]
    assert [one[0] * 9000 + one[1] for one in found.outliers] == ranked.tolist()
    assert sum(low + high for _, low, high in found.octaves) + found.zeros == values.size
    by_hand = [((values >= 2.0**e) & (values < 2.0 ** (e + 1))).sum() for e, _, _ in found.octaves[1:]]
    assert [high for _, _, high in found.octaves[1:]] == by_hand
