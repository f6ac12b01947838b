"""What a rank says of itself when nobody needs it: its device, its memory, what its KV caches take."""

import os
import platform
import sys
from typing import Any

import psutil

from mlx_nb.shared.vitals import Vitals


def vitals() -> Vitals:
    """This rank's machine and memory. Evaluates nothing, and does not load MLX where no model has."""
    memory = psutil.virtual_memory()
    return Vitals(
        device=_device(),
        memory_bytes=psutil.Process().memory_info().rss,
        kv_bytes=_kv_bytes(),
        free_bytes=memory.available,
        total_bytes=memory.total,
    )


def _device() -> str:
    """The chip where MLX is loaded and says so, else what MLX would take here."""
    mx: Any = sys.modules.get("mlx.core")
    on_metal = sys.platform == "darwin" and platform.machine() == "arm64"
    if mx is not None:
        on_metal = mx.default_device() == mx.Device(mx.gpu)
    if not on_metal:
        return f"CPU, {os.cpu_count()} cores"
    name = mx.device_info().get("device_name", "") if mx is not None else ""
    return f"{name or 'Apple silicon'} (Metal)"


def _kv_bytes() -> int:
    pipes: Any = sys.modules.get("mlx_nb.engine.pipes")
    if pipes is None:
        return 0
    from mlx_nb.engine.kv import state_arrays

    held: dict[int, int] = {}
    for stage in pipes.PIPES.values():
        for kv in [stage.last_kv, *(run.kv for run in stage.runs.values())]:
            held |= {id(array): array.nbytes for entry in kv or () for array in state_arrays(entry)}
    return sum(held.values())
