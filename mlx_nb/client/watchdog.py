"""Ends a cluster whose kernel is gone: ``python -m mlx_nb.client.watchdog RECORD``.

A kernel that is killed cannot clean up, and would leave mpirun, the controller, the ranks and their nannies.
This process is in a session of its own, holds nothing of its parent, and knows the kernel by pid and creation
time.
"""

import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

from mlx_nb.client import records
from mlx_nb.client.processes import CLUSTER_VARIABLE, ProcessId, end, identify

LOOK_S = 0.5
"""How often it looks; the cluster outlives its kernel by this much."""


def start(record: records.Record) -> ProcessId:
    """Start the watchdog of a cluster, detached from this process."""
    process = subprocess.Popen(
        [sys.executable, "-m", "mlx_nb.client.watchdog", str(record.path)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
        cwd="/",
        env={**os.environ, CLUSTER_VARIABLE: record.name},
    )
    process.returncode = 0  # it outlives us on purpose, which is no ResourceWarning
    return identify(process.pid, "watchdog")


def watch(path: Path) -> None:
    """Return when the cluster has ended, by our hand or another's."""
    gone_s: float | None = None
    while True:
        record = records.read(path)
        if record is None:
            return  # it was stopped in order
        if record.client.alive:
            gone_s = None  # somebody may have attached to a kept cluster
        elif gone_s is None:
            gone_s = time.time()
            if record.spec.keep_s and record.started_s:
                _note_keep(path, gone_s + record.spec.keep_s)
        if gone_s is not None and (not record.alive() or time.time() >= gone_s + record.spec.keep_s):
            end(record.name, record.processes, spare=[os.getpid()])
            record.remove()
            return
        time.sleep(LOOK_S)


def _note_keep(path: Path, until_s: float) -> None:
    """For whoever lists clusters; unless somebody has attached in this moment."""
    records.update(
        path, lambda record: record if record.client.alive else replace(record, kept_until_s=until_s)
    )


if __name__ == "__main__":
    watch(Path(sys.argv[1]))
