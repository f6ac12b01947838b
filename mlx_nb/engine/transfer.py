"""Arrays on their way to the notebook: copies in numpy, refused when they are too large to be meant."""

import mlx.core as mx
import numpy as np

from mlx_nb.shared import capture
from mlx_nb.shared.errors import TransferTooLargeError
from mlx_nb.shared.text import format_size

MAX_TRANSFER_BYTES = capture.MAX_TRANSFER_BYTES


def as_numpy(array: mx.array) -> np.ndarray:
    """A copy of an array; bfloat16, which numpy has not, comes as the equal float32.

    Raises:
        TransferTooLargeError: It is over 64 MiB; the message names a slice that is not.
    """
    if array.nbytes > MAX_TRANSFER_BYTES:
        rows = max(1, array.shape[-2] * MAX_TRANSFER_BYTES // array.nbytes) if array.ndim > 1 else 1024
        raise TransferTooLargeError(
            f"The array {list(array.shape)} is {format_size(array.nbytes)}; at most 64 MiB travel at once.",
            f"Ask for a slice: [..., :{rows}, :]",
        )
    if array.dtype == mx.bfloat16:
        array = array.astype(mx.float32)
    return np.array(array, copy=True)
