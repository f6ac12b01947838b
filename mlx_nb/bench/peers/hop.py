"""A hop of ours against the same bytes through plain MPI, in turn, between the same two processes.

``mpirun -n 2 python -m mlx_nb.bench.peers.hop BYTES ROUNDS`` prints one JSON object: microseconds of one way for
``ping`` (a blocking Send and Recv of a numpy buffer) and for ``hop`` (an array through `MpiLink`, sent and
polled for as a run does). One way is half of there and back.
"""

import mlx_nb.engine  # isort: skip  (a fast BLAS before mlx)
import json
import statistics
import sys
import time
from collections.abc import Callable

import mlx.core as mx
import numpy as np
from mpi4py import MPI

from mlx_nb.engine.mpi_link import MpiLink
from mlx_nb.engine.patience import Patience

assert mlx_nb.engine
WARM_UP, EVERY, RUN_ID = 20, 100, 7


def main(size_bytes: int, rounds: int) -> None:
    """Play both, in turn, and print what they took."""
    comm = MPI.COMM_WORLD
    other = 1 - comm.rank
    link = MpiLink(comm.Dup())
    link.begin(RUN_ID)
    patience = Patience()
    memory = np.zeros(size_bytes, dtype=np.uint8)
    value = mx.zeros((size_bytes // 4,), dtype=mx.float32)
    mx.eval(value)

    def ping() -> None:
        if comm.rank == 0:
            comm.Send(memory, other)
            comm.Recv(memory, other)
        else:
            comm.Recv(memory, other)
            comm.Send(memory, other)

    def receive() -> None:
        begin = time.monotonic()
        while link.poll(other, RUN_ID) is None:
            if nap := patience.nap_s("hop", time.monotonic() - begin):
                time.sleep(nap)
        patience.learn("hop", time.monotonic() - begin)

    def hop() -> None:
        if comm.rank == 0:
            link.send(other, RUN_ID, value)
            receive()
        else:
            receive()
            link.send(other, RUN_ID, value)

    def one_way_us(play: Callable[[], None]) -> float:
        begin = time.perf_counter()
        for _ in range(EVERY):
            play()
        return (time.perf_counter() - begin) / EVERY / 2 * 1e6

    found: dict[str, list[float]] = {"ping": [], "hop": []}
    for number in range(WARM_UP // 10 + rounds):
        for name, play in (("ping", ping), ("hop", hop)):
            comm.Barrier()
            taken = one_way_us(play)
            if number >= WARM_UP // 10:
                found[name].append(taken)
    link.end(RUN_ID)
    link.close()
    if comm.rank == 0:
        print(json.dumps({name: statistics.median(taken) for name, taken in found.items()}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
