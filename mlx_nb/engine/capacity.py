"""What this machine may give to a model."""

import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence

import mlx.core as mx
import psutil

from mlx_nb.shared.mac_memory import working_set

Ask = Callable[[Sequence[str]], str]

# The name changed with macOS 14.
_WIRED_LIMITS = ("iogpu.wired_limit_mb", "debug.iogpu.wired_limit")


def capacity() -> tuple[str, int, bool]:
    """This machine's host name, the bytes that a model may take here, and whether it computes on Metal.

    On Metal that is the wired limit if somebody has set one, else the working set that Metal recommends; on a
    CPU it is the machine's memory.
    """
    on_metal = mx.default_device() == mx.Device(mx.gpu)
    memory = psutil.virtual_memory().total
    if on_metal:
        memory = metal_memory(memory, mx.device_info())
    return platform.node().split(".")[0], memory, on_metal


def metal_memory(memory_bytes: int, device_info: Mapping[str, object], ask: Ask | None = None) -> int:
    """Bytes that a model may take on this Mac.

    Args:
        memory_bytes: Its memory.
        device_info: As `mx.device_info` gives it.
        ask: Runs a command and returns what it prints; "" where it fails.
    """
    recommended = device_info.get("max_recommended_working_set_size", 0)
    return working_set(
        memory_bytes,
        recommended_bytes=recommended if isinstance(recommended, int) else 0,
        wired_limit_mb=read_wired_limit(ask or _run),
    )


def read_wired_limit(ask: Ask) -> int:
    """The wired limit in MiB that somebody has set; 0 if it is the system's own."""
    for name in _WIRED_LIMITS:
        text = ask(["/usr/sbin/sysctl", "-n", name]).strip()
        if text.isdigit() and int(text) > 0:
            # The older one counts bytes.
            return int(text) // 2**20 if name.startswith("debug") else int(text)
    return 0


def _run(command: Sequence[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""
