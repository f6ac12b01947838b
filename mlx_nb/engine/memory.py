"""Giving memory back to the system, not only to this process's allocators."""

import ctypes
import gc
import sys

import mlx.core as mx


def release() -> int:
    """Give back what nothing uses any more; MLX's memory in use afterwards, in bytes.

    Modules, hooks and runs point at each other, so Python has to look for them. And on Linux MLX's buffers on
    a CPU come from malloc: glibc keeps freed ones of up to 32 MiB, which is most of a model's tensors.
    """
    gc.collect()
    mx.clear_cache()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's; musl has none
        if trim is not None:
            trim(0)
    return mx.get_active_memory()
