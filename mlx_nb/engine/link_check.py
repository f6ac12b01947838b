"""``mpirun -n 2 … python -m mlx_nb.engine.link_check``: what the link between two ranks is really like.

Rank 0 prints one JSON line: latency, bandwidth, the interfaces that carried the bytes, every dtype's
round trip, and where each rank may run.
"""

import mlx_nb.engine  # isort: skip  (a fast BLAS before mlx)
import json
import os
import socket
import statistics
import time
from typing import Any

import mlx.core as mx
import numpy as np
import psutil
from mpi4py import MPI

from mlx_nb.engine import blas
from mlx_nb.engine.mpi_link import MpiLink

assert mlx_nb.engine
PINGS, LARGE_BYTES, LARGE_TIMES, RUN_ID = 200, 8 * 2**20, 8, 11
DTYPES = (
    *("bool_", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64"),
    *("float16", "bfloat16", "float32", "complex64"),
)


def main() -> None:
    """Measure, and let rank 0 print."""
    comm = MPI.COMM_WORLD
    before = _carried()
    latency_s = _ping(comm, np.zeros(8, dtype=np.uint8), PINGS)
    large_s = _ping(comm, np.zeros(LARGE_BYTES, dtype=np.uint8), LARGE_TIMES)
    after = _carried()
    mine = {
        "rank": comm.rank,
        "host": socket.gethostname().split(".")[0],
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "all_cores": os.cpu_count(),
        "carried": {name: after[name] - before.get(name, 0) for name in after},
        "blas": blas.note,
        "mpi": MPI.Get_library_version().split(",")[0],
    }
    wrong = _round_trip(comm)
    everyone = comm.gather(mine, root=0)
    if comm.rank == 0:
        found: dict[str, Any] = {
            "latency_us": latency_s * 1e6,
            "bandwidth_bytes_s": LARGE_BYTES / large_s,
            "wrong_dtypes": wrong,
            "ranks": everyone,
        }
        print(json.dumps(found), flush=True)


def _ping(comm: Any, memory: np.ndarray, times: int) -> float:
    """Seconds one way: the median of half the time there and back."""
    taken = []
    for number in range(times + 2):
        begin = time.perf_counter()
        if comm.rank == 0:
            comm.Send(memory, 1)
            comm.Recv(memory, 1)
        elif comm.rank == 1:
            comm.Recv(memory, 0)
            comm.Send(memory, 0)
        if number >= 2:
            taken.append((time.perf_counter() - begin) / 2)
    return statistics.median(taken)


def _round_trip(comm: Any) -> list[str]:
    """The dtypes that do not come back bit for bit, over the very link that a run uses."""
    link = MpiLink(comm.Dup())
    link.begin(RUN_ID)
    wrong = []
    for name in DTYPES:
        bits = np.arange(64, dtype=np.uint8) * 37
        value = mx.array(bits % 2 if name == "bool_" else bits).view(getattr(mx, name))
        if comm.rank == 0:
            link.send(1, RUN_ID, value)
            back = _receive(link, 1)
            same = back.dtype == value.dtype and mx.array_equal(back.view(mx.uint8), value.view(mx.uint8))
            if not same:
                wrong.append(name)
        elif comm.rank == 1:
            link.send(0, RUN_ID, _receive(link, 0))
    comm.Barrier()
    link.end(RUN_ID)
    link.close()
    return wrong


def _receive(link: MpiLink, source: int) -> mx.array:
    while (arrival := link.poll(source, RUN_ID)) is None:
        time.sleep(0.0005)
    found: mx.array = arrival.value
    return found


def _carried() -> dict[str, int]:
    """Bytes that each interface has carried so far."""
    counters = psutil.net_io_counters(pernic=True)
    return {name: counter.bytes_sent + counter.bytes_recv for name, counter in counters.items()}


if __name__ == "__main__":
    main()
