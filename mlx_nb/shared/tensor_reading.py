"""Reading a face of an array block by block: windows of it, and the whole in numbers.

On the ranks for MLX's arrays, in the notebook for those in a trace's file. A face of 33 million values takes 16 MiB
at a time, whatever its dtype.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from mlx_nb.shared.preview import pool_at
from mlx_nb.shared.tensor import WINDOW_BYTES, Details, DetailsWish, Face, Window, WindowWish, to_halves

BLOCK = 4 * 1024 * 1024
"""Values that are looked at together."""

MOST_MAXIMA = 2048
MOST_OUTLIERS, MOST_BAD = 8, 4
OCTAVES = 24
"""Powers of two below the largest value that are counted apart; what is smaller goes with the last."""

ToNumpy = Callable[[Any], np.ndarray]


class Grid:
    """A face of an array that lies in pieces one behind the other.

    Args:
        pieces: numpy's or MLX's arrays.
        axis: The axis along which they follow each other.
        face: What is seen.
        to_numpy: A piece of a piece, as float32.

    Attributes:
        shape: Rows and columns.
    """

    def __init__(self, pieces: Sequence[Any], axis: int, face: Face, to_numpy: ToNumpy) -> None:
        self._pieces, self._axis, self._face, self._to_numpy = pieces, axis, face, to_numpy
        whole = list(pieces[0].shape)
        if whole:
            whole[axis] = sum(piece.shape[axis] for piece in pieces)
        self.shape = face.size(whole)

    def take(self, rows: tuple[int, int], columns: tuple[int, int]) -> np.ndarray:
        """A part of it, ``[rows, columns]`` float32."""
        face, begin = self._face, 0
        parts = []
        for piece in self._pieces:
            index = []
            for axis, length in enumerate(piece.shape):
                first = face.index[axis]
                low, high = (
                    rows if axis == face.rows else columns if axis == face.columns else (first, first + 1)
                )
                shift = begin if axis == self._axis else 0
                index.append(slice(max(low - shift, 0), max(min(high - shift, length), 0)))
            if all(one.start < one.stop for one in index):
                parts.append(self._to_numpy(piece[tuple(index)] if index else piece))
            begin += piece.shape[self._axis] if piece.shape else 0
        shape = (rows[1] - rows[0], columns[1] - columns[0])
        if not parts:
            return np.zeros(shape, np.float32)
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=self._axis)
        if face.rows > face.columns >= 0:
            return np.moveaxis(whole, face.columns, -1).reshape(shape)
        return whole.reshape(shape)


def read(grid: Grid, wish: WindowWish | DetailsWish) -> Window | Details:
    """What was asked for."""
    return window(grid, wish) if isinstance(wish, WindowWish) else details(grid)


def window(grid: Grid, wish: WindowWish) -> Window:
    """A part of a face in cells: one for each value where they are few enough."""
    rows, columns = (
        (min(max(low, 0), length), min(max(high, low, 0), length))
        for (low, high), length in zip((wish.rows, wish.columns), grid.shape, strict=True)
    )
    num_rows, num_columns = rows[1] - rows[0], columns[1] - columns[0]
    height, width = min(num_rows, max(1, wish.height)), min(num_columns, max(1, wish.width))
    exact = (height, width) == (num_rows, num_columns) and height * width * 4 <= WINDOW_BYTES
    if not exact and height * width * 2 > WINDOW_BYTES:
        shrink = (WINDOW_BYTES / 2 / (height * width)) ** 0.5
        height = max(1, min(int(height * shrink), height))
        width = max(1, min(WINDOW_BYTES // 2 // height, width))
    cells = (
        grid.take(rows, columns)
        if exact
        else _pooled(grid, rows, columns, height, width)
        if height * width
        else np.zeros((height, width), np.float32)
    )
    packed = np.ascontiguousarray(cells, "<f4") if exact else to_halves(cells)
    return Window(rows=rows, columns=columns, height=height, width=width, exact=exact, cells=packed.tobytes())


def _pooled(
    grid: Grid, rows: tuple[int, int], columns: tuple[int, int], height: int, width: int
) -> np.ndarray:
    row_starts = _starts(rows[1] - rows[0], height)
    column_starts = _starts(columns[1] - columns[0], width)
    ends = np.append(row_starts, rows[1] - rows[0])
    done = []
    first = 0
    while first < height:
        last = first + 1
        while last < height and (ends[last + 1] - ends[first]) * (columns[1] - columns[0]) <= BLOCK:
            last += 1
        block = grid.take((rows[0] + int(ends[first]), rows[0] + int(ends[last])), columns)
        done.append(pool_at(block, row_starts[first:last] - ends[first], column_starts))
        first = last
    return np.concatenate(done)


def _starts(length: int, cells: int) -> np.ndarray:
    return np.arange(cells) * length // cells


def details(grid: Grid) -> Details:
    """A whole face in numbers, in two goes: the second only over the rows with the largest values."""
    height, width = grid.shape
    row_maxima = np.zeros(height, np.float32)
    column_maxima = np.zeros(width, np.float32)
    counts = np.zeros(1024, np.int64)
    total = squares = 0.0
    least, most, number, nan = np.inf, -np.inf, 0, 0
    bad: list[tuple[int, int, float]] = []
    for first, block in _blocks(grid):
        finite = np.isfinite(block)
        clean = bool(finite.all())
        if not clean:
            if len(bad) < MOST_BAD:
                for row, column in np.argwhere(~finite)[: MOST_BAD - len(bad)]:
                    bad.append((first + int(row), int(column), float(block[row, column])))
            nan += int(np.isnan(block).sum())
        # The sign, the exponent and half a bit more of a float32 are its power of two.
        bits = np.ascontiguousarray(block, np.float32).view(np.uint32) >> 22
        counts += np.bincount(bits.ravel(), minlength=1024)
        kept = block if clean else np.where(finite, block, np.float32(0))
        sizes = np.abs(kept)
        row_maxima[first : first + len(block)] = sizes.max(axis=1, initial=0)
        np.maximum(column_maxima, sizes.max(axis=0, initial=0), out=column_maxima)
        here = int(finite.sum()) if not clean else block.size
        if here:
            number += here
            least = min(least, float(block.min() if clean else block[finite].min()))
            most = max(most, float(block.max() if clean else block[finite].max()))
            total += float(kept.sum(dtype=np.float64))
            squares += float(np.square(kept, dtype=np.float64).sum())
    octaves, zeros = _octaves(counts)
    none = float("nan")
    return Details(
        min=least if number else none,
        mean=total / number if number else none,
        rms=(squares / number) ** 0.5 if number else none,
        max=most if number else none,
        nan=nan,
        inf=height * width - number - nan,
        zeros=zeros,
        rows=_few(row_maxima),
        columns=_few(column_maxima),
        octaves=octaves,
        outliers=(*bad, *_largest(grid, row_maxima)),
    )


def _blocks(grid: Grid) -> Iterator[tuple[int, np.ndarray]]:
    height, width = grid.shape
    step = max(1, BLOCK // max(1, width))
    for first in range(0, height if width else 0, step):
        yield first, grid.take((first, min(first + step, height)), (0, width))


def _few(maxima: np.ndarray) -> bytes:
    if len(maxima) > MOST_MAXIMA:
        maxima = np.maximum.reduceat(maxima, _starts(len(maxima), MOST_MAXIMA))
    return maxima.astype("<f4").tobytes()


def _octaves(counts: np.ndarray) -> tuple[tuple[tuple[int, int, int], ...], int]:
    """Counts by sign, exponent and half an octave, as octaves; and how many were zero."""
    by_exponent = counts.reshape(2, 256, 2).sum(axis=2)
    zeros = int(by_exponent[:, 0].sum())
    used = [exponent for exponent in range(1, 255) if by_exponent[:, exponent].any()]
    if not used:
        return (), zeros
    low = max(used[0], used[-1] - OCTAVES + 1)
    by_exponent[:, low] += by_exponent[:, 1:low].sum(axis=1)
    rows = [(e - 127, int(by_exponent[1, e]), int(by_exponent[0, e])) for e in range(low, used[-1] + 1)]
    return tuple(rows), zeros


def _largest(grid: Grid, row_maxima: np.ndarray) -> list[tuple[int, int, float]]:
    """The largest magnitudes: the so many largest lie in the so many rows with the largest maxima."""
    rows = np.argsort(-row_maxima, kind="stable")[:MOST_OUTLIERS]
    found: list[tuple[int, int, float]] = []
    for row in rows:
        values = grid.take((int(row), int(row) + 1), (0, grid.shape[1]))[0]
        sizes = np.where(np.isfinite(values), np.abs(values), 0)
        most = min(MOST_OUTLIERS, len(sizes))
        for column in np.argpartition(-sizes, most - 1)[:most] if most else ():
            if sizes[column]:
                found.append((int(row), int(column), float(values[column])))
    found.sort(key=lambda one: -abs(one[2]))
    return found[:MOST_OUTLIERS]
