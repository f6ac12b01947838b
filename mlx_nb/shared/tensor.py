"""A big array looked at through a window: which two of its axes are seen, and what travels of them.

An array of 64 MiB never travels. What does is a window of it with at most so many cells, each with the value of
largest magnitude of those it stands for (`shared/preview.py`), and the whole in numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

OVERVIEW_ROWS, OVERVIEW_COLUMNS = 256, 512
"""The most cells of the first look at an array: 256 KiB."""

WINDOW_BYTES = 384 * 1024
"""The most that one window takes on its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Face:
    """The two axes of an array that are seen, and a place on every other.

    Attributes:
        rows, columns: The axes that run down and across; -1 where an array has too few.
        index: A place for each axis; those of the two axes themselves do not count.
    """

    rows: int
    columns: int
    index: tuple[int, ...]

    def size(self, shape: Sequence[int]) -> tuple[int, int]:
        """How many rows and columns an array of this shape has."""
        return (
            shape[self.rows] if self.rows >= 0 else 1,
            shape[self.columns] if self.columns >= 0 else 1,
        )

    def place(self, row: int, column: int) -> tuple[int, ...]:
        """The index into the array of a cell.

        >>> Face(rows=1, columns=2, index=(0, 0, 0)).place(17, 138)
        (0, 17, 138)
        """
        found = list(self.index)
        for axis, at in ((self.rows, row), (self.columns, column)):
            if axis >= 0:
                found[axis] = at
        return tuple(found)


def first_face(shape: Sequence[int], axes: Sequence[str] = ()) -> Face:
    """Tokens down, the last axis across; the first place of all others.

    >>> first_face((1, 9, 37, 64), ("B", "H", "L", "")), first_face((5,))
    (Face(rows=2, columns=3, index=(0, 0, 0, 0)), Face(rows=-1, columns=0, index=(0,)))
    """
    last = len(shape) - 1
    letters = list(axes)
    named = [letters.index(letter) for letter in ("L", "S") if letter in letters]
    rows = next((axis for axis in named if axis != last), last - 1)
    return Face(rows=max(rows, -1), columns=last, index=(0,) * len(shape))


def checked_face(face: Face, shape: Sequence[int]) -> Face:
    """A face that an array of this shape has: two axes, each place inside its axis."""
    axes = range(len(shape))
    if face.columns not in axes or face.rows == face.columns or (face.rows not in axes and len(shape) > 1):
        return first_face(shape)
    index = tuple(
        min(max(int(at), 0), max(length - 1, 0))
        for at, length in zip((*face.index, *[0] * len(shape)), shape, strict=False)
    )
    return Face(rows=face.rows if face.rows in axes else -1, columns=face.columns, index=index)


@dataclass(frozen=True, slots=True, kw_only=True)
class WindowWish:
    """A part of a face, to be seen in at most so many cells.

    Attributes:
        face: Of which face.
        rows, columns: From where to where, half-open.
        height, width: The most cells.
    """

    face: Face
    rows: tuple[int, int]
    columns: tuple[int, int]
    height: int
    width: int


@dataclass(frozen=True, slots=True, kw_only=True)
class DetailsWish:
    """A whole face in numbers."""

    face: Face


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """A part of a face in cells, row by row.

    Attributes:
        rows, columns: From where to where, half-open.
        height, width: Cells; as many as rows and columns where it is exact.
        exact: Whether a cell is one value, in float32; else it stands for several, in bfloat16.
        cells: Little-endian.
    """

    rows: tuple[int, int]
    columns: tuple[int, int]
    height: int
    width: int
    exact: bool
    cells: bytes

    def values(self) -> np.ndarray:
        """The cells, ``[height, width]`` float32."""
        if self.exact:
            return np.frombuffer(self.cells, "<f4").reshape(self.height, self.width)
        return from_halves(np.frombuffer(self.cells, "<u2")).reshape(self.height, self.width)


@dataclass(frozen=True, slots=True, kw_only=True)
class Details:
    """A whole face in numbers.

    Attributes:
        min, mean, rms, max: Over the finite values; NaN where there is none.
        nan, inf: How many are NaN, and infinite.
        zeros: How many are 0, or too small for a normal float32.
        rows, columns: The largest finite magnitude of each row and column, float32; of several, where they are many.
        octaves: Of each power of two, rising: its exponent, how many negative values lie from there to the next, and
            how many positive ones.
        outliers: Row, column and value of the first NaN and infinities, and then of the largest magnitudes.
    """

    min: float
    mean: float
    rms: float
    max: float
    nan: int
    inf: int
    zeros: int
    rows: bytes
    columns: bytes
    octaves: tuple[tuple[int, int, int], ...]
    outliers: tuple[tuple[int, int, float], ...]


def to_halves(values: np.ndarray) -> np.ndarray:
    """float32 as bfloat16's bits, rounded; what is finite stays so.

    >>> from_halves(to_halves(np.array([1.0, -3.0e38, np.nan, -np.inf], np.float32))).tolist()
    [1.0, -3.00405527047391e+38, nan, -inf]
    """
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    cut = bits >> 16
    with np.errstate(invalid="ignore"):
        overflow = np.isfinite(values) & ((rounded & 0x7F80) == 0x7F80)
    found = np.where(np.isnan(values), 0x7FC0, np.where(overflow | np.isinf(values), cut, rounded))
    return found.astype("<u2")


def from_halves(bits: np.ndarray) -> np.ndarray:
    """The inverse of `to_halves`."""
    return (bits.astype(np.uint32) << 16).view(np.float32)
