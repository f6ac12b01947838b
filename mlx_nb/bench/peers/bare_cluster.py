"""A bare ipyparallel MPI cluster: what starting one costs by itself, with the same flags as ours.

``python -m mlx_nb.bench.peers.bare_cluster RANKS`` prints the seconds from the call until every engine has said
its MPI rank, and stops the cluster.
"""

import sys
import tempfile
import time
from pathlib import Path

from traitlets.config import Config

from mlx_nb.client.launch import build
from mlx_nb.shared.spec import ClusterSpec


def main(ranks: int) -> None:
    """Start, ask, print, stop."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        cluster = build("bench-bare", ClusterSpec(ranks=ranks), Path(folder), Config())
        try:
            client = cluster.start_and_connect_sync()
            found = client[:].apply_sync(_rank)
            taken = time.perf_counter() - begin
        finally:
            cluster.stop_cluster_sync()
        assert sorted(found) == list(range(ranks)), found
    print(taken, flush=True)


def _rank() -> int:
    from mpi4py import MPI

    return int(MPI.COMM_WORLD.rank)


if __name__ == "__main__":
    main(int(sys.argv[1]))
