"""Ranks on this machine: what `%mlx_cluster start` does without a profile, spelled out.

Two ways to use it:

    %mlx_cluster start --profile local                      in a notebook
    ipcluster start --profile-dir profiles/profile_local    in a terminal, without mlx_nb

Copy the directory to ~/.ipython/profile_NAME to make a profile of your own: `--profile NAME` finds it.
"""

import os
import sys
from pathlib import Path

c = get_config()  # noqa: F821 - ipyparallel provides it

# How many ranks. A rank is one process with one part of the model's layers.
c.Cluster.n = 2

# Ranks are started by MPI, so that they can send each other hidden states; ipyparallel's
# engine runs inside each rank and takes the notebook's calls.
c.Cluster.engine_launcher_class = "mpi"

# The mpiexec of this Python's own environment, by its whole path: it need not be on PATH.
c.MPIEngineSetLauncher.mpi_cmd = [str(Path(sys.prefix) / "bin" / "mpiexec")]

c.MPIEngineSetLauncher.mpi_args = [
    # A rank that dies leaves the others alive, and what they hold can still be looked at.
    "--with-ft",
    "ulfm",
    # Do not tie a rank to a core: MLX has threads of its own.
    "--bind-to",
    "none",
    # More ranks than cores are allowed. Slow, and good for learning.
    "--oversubscribe",
    # A rank that waits for a message gives its core to the others.
    "--mca",
    "mpi_yield_when_idle",
    "1",
]

environment = {}
if os.geteuid() == 0:
    # In a container one is often root, and mpirun asks whether that is really meant.
    environment["OMPI_ALLOW_RUN_AS_ROOT"] = "1"
    environment["OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] = "1"
# Ranks on one machine share its cores: one thread each for the matrix products, unless you set more.
for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
    environment[name] = os.environ.get(name, "1")
c.MPIEngineSetLauncher.environment = environment

# The controller hands the notebook's calls to the engines. It listens on this machine only.
c.Cluster.controller_ip = "127.0.0.1"
c.LocalControllerLauncher.controller_args = [
    # Look four times a second who is there. The default, every 3 s, makes the start 4 s slower.
    "--HeartMonitor.period=250",
    # Give a silent engine 30 s before it is taken for dead.
    "--HeartMonitor.max_heartmonitor_misses=120",
    # Two processes instead of nine.
    "--IPController.use_threads=True",
]

c.MPIEngineSetLauncher.engine_args = [
    "--IPEngine.timeout=30",
    # Let the controller sleep for an hour, as a laptop does at lunch: by default the engines leave after 37 s.
    "--IPEngine.max_heartbeat_misses=4800",
]

# Engines need no head start for the controller: they are given its address.
c.Cluster.delay = 0

# How many seconds a start may take.
c.Cluster.engine_timeout = 60
