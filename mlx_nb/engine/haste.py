"""Values that a pass has made and that are looked at later, many at once.

To compute and look at each value by itself costs a wait, and a pass has hundreds. So where nothing but NaN or Inf can
stop a run, its values are gathered and looked at together; if one is bad, the pass is run again from its start
(`Run`), this time looking at each value as it comes: it stands at the very first bad one, with everything as it was.
"""

import math
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.breaking import has_nonfinite
from mlx_nb.engine.pytree import arrays_in

AT_ONCE_BYTES = 8 * 2**20
"""What is held back before it is looked at: a decoded token's values are far less, a layer's of a chunk about that."""


class LookAgain(BaseException):
    """Among the values looked at together is a bad one: the way back to the start of the pass, past any `except`."""


class Gathered:
    """Values that nobody has looked at."""

    def __init__(self) -> None:
        self._arrays: list[mx.array] = []
        self._last: mx.array | None = None
        self._size_bytes = 0

    def __bool__(self) -> bool:
        return bool(self._arrays)

    def add(self, value: Any) -> None:
        """A module has returned.

        Raises:
            LookAgain: It was time to look, and something is NaN or Inf.
        """
        for array in [value] if isinstance(value, mx.array) else arrays_in(value):
            if array is self._last:
                continue  # a block returns what its last part returned
            self._last = array
            # A handle of its own, and no operation: models change theirs in place.
            self._arrays.append(array.astype(array.dtype))
            self._size_bytes += array.nbytes
        if self._size_bytes > AT_ONCE_BYTES:
            self.look()

    def look(self, also: Sequence[mx.array] = ()) -> None:
        """Compute everything, and look at it.

        Args:
            also: What is needed next: computed in the same go.

        Raises:
            LookAgain: Something is NaN or Inf.
        """
        arrays = self._arrays
        if not arrays:
            return
        self.clear()
        mx.eval(arrays, list(also))
        if not _all_finite(arrays):
            raise LookAgain

    def clear(self) -> None:
        """Hold nothing."""
        self._arrays, self._last, self._size_bytes = [], None, 0


def _all_finite(arrays: Sequence[mx.array]) -> bool:
    total = 0.0
    with np.errstate(all="ignore"):
        for array in arrays:
            if array.dtype == mx.float32:
                flat = np.array(array, copy=False).ravel()
                total += float(np.dot(flat, flat))
            elif has_nonfinite(array):
                return False
    # Squares of large numbers overflow too: then each element counts.
    return math.isfinite(total) or not any(has_nonfinite(array) for array in arrays)
