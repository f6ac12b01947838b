"""A big array as a small picture: pooled by extreme value, one colour index a cell.

Cropping or averaging would hide the one outlier that a user looks for, so a cell shows the value
with the largest magnitude of those it stands for. A preview travels as an 8-byte header (width and
height, little-endian uint32) and one uint8 a cell, row by row: 0 to 252 run from -limit over 126
(zero) to +limit; the last three are reserved, so that NaN and Inf are never just a colour. The limit
itself may follow, as a little-endian float32.
"""

import struct

import numpy as np

ZERO = 126
"""The index of the value 0; a finite value is at most this far from it."""
NEGATIVE_INFINITY, POSITIVE_INFINITY, NAN = 253, 254, 255

HEADER, TRAILER = struct.Struct("<II"), struct.Struct("<f")

MAX_ROWS, MAX_COLUMNS = 48, 192
"""As many cells as the view has room for at its narrowest, so that it never has to drop one."""


def pack_preview(width: int, height: int, indices: bytes, limit: float | None = None) -> bytes:
    """The header, the indices, and the value where the colours end, as one buffer.

    >>> pack_preview(2, 1, bytes([0, 252])).hex()
    '020000000100000000fc'
    """
    if len(indices) != width * height:
        raise ValueError(f"A {width} x {height} preview has {width * height} cells, not {len(indices)}.")
    return HEADER.pack(width, height) + indices + (b"" if limit is None else TRAILER.pack(limit))


def unpack_preview(preview: bytes) -> tuple[int, int, bytes]:
    """Width, height and indices; ``(0, 0, b"")`` for no preview."""
    if not preview:
        return 0, 0, b""
    width, height = HEADER.unpack_from(preview)
    return width, height, preview[HEADER.size : HEADER.size + width * height]


def preview_limit(preview: bytes) -> float | None:
    """The value where the colours end, if the preview says so.

    >>> preview_limit(pack_preview(1, 1, b"a", 4.5)), preview_limit(pack_preview(1, 1, b"a"))
    (4.5, None)
    """
    width, height, _ = unpack_preview(preview)
    rest = preview[HEADER.size + width * height :]
    return float(TRAILER.unpack(rest)[0]) if rest else None


def as_rows(array: np.ndarray) -> np.ndarray:
    """Any array in two dimensions: the last axis across, all the others down."""
    if array.ndim == 2:
        return array
    return array.reshape(-1, array.shape[-1] if array.ndim else 1)


def pool_extreme(array2d: np.ndarray, max_rows: int, max_cols: int) -> np.ndarray:
    """The array in at most `max_rows` x `max_cols` cells, each with its value of largest magnitude.

    The sign is kept. A cell with a NaN is NaN; else a cell with an infinity is infinite.

    Shapes:
        array2d: ``[rows, columns]``, any real dtype.
        returns: float32 (float64 for float64 and wide integers).

    >>> pool_extreme(np.array([[1.0, -3.0, 2.0, 0.5]], np.float32), 1, 2).tolist()
    [[-3.0, 2.0]]
    """
    if array2d.ndim != 2:
        raise ValueError(f"pool_extreme takes two dimensions; this array has shape {list(array2d.shape)}.")
    wide = array2d.dtype.itemsize > 4 or array2d.dtype in (np.int32, np.uint32)
    rows, columns = array2d.shape
    if rows <= max_rows and columns <= max_cols:
        return array2d.astype(np.float64 if wide else np.float32)
    pooled = pool_at(array2d, _starts(rows, max_rows), _starts(columns, max_cols))
    return pooled.astype(np.float64) if wide else pooled.astype(np.float32)


def _starts(length: int, most: int) -> np.ndarray:
    return np.arange(min(length, most)) * length // min(length, most)


def pool_at(array2d: np.ndarray, row_starts: np.ndarray, column_starts: np.ndarray) -> np.ndarray:
    """As `pool_extreme`, in cells that begin at these rows and columns; the array's own dtype, or a wider one."""
    with np.errstate(invalid="ignore"):
        greatest = _reduce(np.maximum, array2d, row_starts, column_starts)
        least = _reduce(np.minimum, array2d, row_starts, column_starts)
        if not np.issubdtype(array2d.dtype, np.floating):  # the least of its integers has no opposite
            greatest, least = greatest.astype(np.float64), least.astype(np.float64)
        # A NaN wins: it compares false, and both reductions carry it.
        return np.where(greatest >= -least, greatest, least)


def _reduce(
    ufunc: np.ufunc, array: np.ndarray, row_starts: np.ndarray, column_starts: np.ndarray
) -> np.ndarray:
    for axis, starts in ((0, row_starts), (1, column_starts)):
        if array.shape[axis] > len(starts):
            array = ufunc.reduceat(array, starts, axis=axis)
    return array


def colour_limit(array2d: np.ndarray) -> float:
    """The value where the colours should end: the 99th percentile of the finite magnitudes.

    Activations have outliers a thousand times their rms; with the maximum as the limit all else would
    be blank. What lies beyond has the strongest colour.
    """
    finite = np.abs(array2d[np.isfinite(array2d)].astype(np.float64))
    if finite.size == 0:
        return 0.0
    return float(np.percentile(finite, 99)) or float(finite.max())


def colour_indices(array2d: np.ndarray, limit: float | None = None) -> np.ndarray:
    """One uint8 a cell, over a range symmetric about zero.

    Args:
        array2d: ``[rows, columns]``, as pooled.
        limit: Where the colours end; None for the greatest finite magnitude.

    >>> colour_indices(np.array([[-2.0, 0.0, 1.0, np.nan, np.inf, -np.inf]])).tolist()
    [[0, 126, 189, 255, 254, 253]]
    """
    values = array2d.astype(np.float64)
    finite = np.isfinite(values)
    if limit is None:
        limit = float(np.abs(values[finite]).max(initial=0.0))
    scaled = np.clip(np.where(finite, values, 0.0) / (limit or 1.0), -1.0, 1.0)
    indices = np.rint(ZERO + ZERO * scaled).astype(np.uint8)
    indices[np.isnan(values)] = NAN
    indices[values == np.inf] = POSITIVE_INFINITY
    indices[values == -np.inf] = NEGATIVE_INFINITY
    return indices


def make_preview(array: np.ndarray, max_rows: int = MAX_ROWS, max_cols: int = MAX_COLUMNS) -> bytes:
    """The packed preview of any array, with `colour_limit` as the limit; empty for an empty array."""
    if array.size == 0:
        return b""
    pooled = pool_extreme(as_rows(array), max_rows, max_cols)
    limit = colour_limit(pooled)
    height, width = pooled.shape
    return pack_preview(width, height, colour_indices(pooled, limit).tobytes(), limit)
