"""The calls of the tensor view: windows of a big array and its numbers, read where it lies.

Every function here is called by name through `engine/calls.py`, on one rank.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.captures import Key
from mlx_nb.engine.pipes import stage_of
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.tensor import Details, DetailsWish, Window, WindowWish
from mlx_nb.shared.tensor_reading import Grid, read

Wish = WindowWish | DetailsWish


def look_at_capture(pipe_id: str, key: Key, starts: Sequence[int], axis: int, wish: Wish) -> Window | Details:
    """Look at passes of a recorded value that follow each other. Raises TraceError as `CaptureStore.slice`."""
    return look(stage_of(pipe_id).captures.arrays(key, starts), axis, wish)


def look_at_kv(pipe_id: str, place: int, name: str, wish: Wish) -> Window | Details:
    """Look at the valid part of a buffer of the KV caches that were reported last. Raises RunError: there is none."""
    return look([stage_of(pipe_id).kv_array(place, name)], 0, wish)


def look_at_value(pipe_id: str, run_id: int, wish: Wish) -> Window | Details:
    """Look at the first array where a run stands. Raises RunError: it stands at none."""
    array = stage_of(pipe_id).run(run_id).value()
    if array is None:
        raise RunError("There is no array where the run stands.", "Go on to one: dbg.into()")
    return look([array], 0, wish)


def look(pieces: Sequence[mx.array], axis: int, wish: Wish) -> Window | Details:
    """Look at arrays that follow each other along an axis."""
    return read(Grid(pieces, axis, wish.face, as_float32), wish)


def as_float32(array: mx.array) -> np.ndarray:
    """Any array as float32; of complex numbers their magnitude."""
    if mx.issubdtype(array.dtype, mx.complexfloating):
        array = mx.abs(array)
    return np.array(array.astype(mx.float32), copy=False)


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (look_at_capture, look_at_kv, look_at_value)
}
