"""Arrays that users hand in, as numpy: mlx's too, without importing mlx here."""

import sys
from typing import Any

import numpy as np

from mlx_nb.shared.errors import OptionError, TransferTooLargeError
from mlx_nb.shared.text import format_size

MAX_TRANSFER_BYTES = 64 * 2**20


def plain_array(value: Any) -> np.ndarray:
    """A numpy array of whatever is an array: numpy's, mlx's (bfloat16 as the equal float32), a capture, numbers.

    Raises:
        OptionError: It is no array of numbers.
        TransferTooLargeError: It is over 64 MiB.
    """
    mlx = sys.modules.get("mlx.core")
    if mlx is not None and isinstance(value, mlx.array):
        value = value.astype(mlx.float32) if value.dtype == mlx.bfloat16 else value
    elif hasattr(value, "numpy") and callable(value.numpy):
        value = value.numpy()
    found = np.array(value)
    if found.dtype.name == "bfloat16":  # ml_dtypes'
        found = found.astype(np.float32)
    if found.dtype == np.float64:
        found = found.astype(np.float32)
    if found.dtype.kind not in "fiub":
        raise OptionError(
            f"A {type(value).__name__} is no array of numbers.", "Type: dbg.value = x, an array"
        )
    if found.nbytes > MAX_TRANSFER_BYTES:
        raise TransferTooLargeError(
            f"The array is {format_size(found.nbytes)}; at most 64 MiB travel at once.",
            "Change a part of it on the rank: pipe.patch(site, function)",
        )
    return found
