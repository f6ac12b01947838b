"""A small picture of an array: pooled by extreme value on the rank, so that no outlier is lost on the way."""

import mlx.core as mx
import numpy as np

from mlx_nb.shared.preview import colour_indices, colour_limit, pack_preview, pool_extreme

ROWS, COLUMNS = 48, 192


def picture_of(array: mx.array) -> bytes:
    """A picture of at most 48 by 192 cells, packed as `shared/preview.py` says; empty for integers."""
    if array.size == 0 or not mx.issubdtype(array.dtype, mx.floating):
        return b""
    small = pool_extreme(as_rows(array), ROWS, COLUMNS)
    rows, columns = small.shape
    # Colours end below an outlier, or one of 1204 would leave everything else white; it still shows, saturated.
    limit = colour_limit(small)
    return pack_preview(columns, rows, colour_indices(small, limit).tobytes(), limit)


def as_rows(array: mx.array) -> np.ndarray:
    """An array as a picture wants it: tokens down, everything else across, float32.

    ``[B, H, L, d]`` becomes ``[L, H·d]`` of the first batch row; ``[B, L, D]`` becomes ``[L, D]``.
    """
    if array.ndim == 0:
        array = array.reshape(1, 1)
    if array.ndim >= 4:
        array = array[0].swapaxes(0, 1).reshape(array.shape[2], -1)
    elif array.ndim == 3:
        array = array[0]
    elif array.ndim == 1:
        array = array[None]
    return np.array(array.astype(mx.float32), copy=True)
