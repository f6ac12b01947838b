"""The functions that the notebook may call on a rank, by name: the other side of `client/remote.py`.

A call returns plain data or a `Failure`; no exception of the engine's own classes crosses the border.
"""

import os
import platform
import socket
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from typing import Any

import psutil

from mlx_nb.engine import events
from mlx_nb.engine.interrupt import ON_THIS_RANK, interruptible, shelter
from mlx_nb.engine.vitals import vitals
from mlx_nb.shared.errors import MlxNbError, RunError
from mlx_nb.shared.failure import Failure
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.spec import Hello


def world() -> tuple[Rank, int]:
    """This process's place in the MPI world: its rank, and how many there are."""
    from mpi4py import MPI  # starts MPI, which a plan or a shape table without a cluster does not need

    return Rank(MPI.COMM_WORLD.rank), MPI.COMM_WORLD.size


def hello() -> Hello:
    """Who this rank is; touches neither MLX nor the other ranks, so it answers at once."""
    rank, size = world()
    if kernel := events.running_kernel():
        shelter(kernel, run)
    process = psutil.Process()
    versions = {name: metadata.version(name) for name in ("mlx-nb", "mlx", "mlx-lm")}
    return Hello(
        rank=rank,
        world_size=size,
        pid=os.getpid(),
        created_s=process.create_time(),
        host=socket.gethostname(),
        versions={"python": platform.python_version(), **versions},
        memory_bytes=process.memory_info().rss,
    )


def ping() -> float:
    """The rank's clock, in seconds since the epoch."""
    return time.time()


def memory() -> int:
    """Resident bytes of this rank's process."""
    return psutil.Process().memory_info().rss


CALLS: dict[str, Callable[..., Any]] = {"hello": hello, "ping": ping, "memory": memory, "vitals": vitals}

LISTENING = frozenset({"generate", "step", "finish", "advance"})
"""Calls that look at Ctrl-C themselves, and answer with how far they came."""


def run(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a function of the table; what it raises comes back as a `Failure`."""
    events.restart_numbers()
    ON_THIS_RANK.requested = ON_THIS_RANK.pause = False  # it was about a call before this one
    try:
        function = CALLS.get(name) or pipe_call(name)
        if function is None:
            raise RunError(
                f"The ranks know no call '{name}'.",
                "The ranks and this notebook run different versions of mlx_nb? Type: %mlx_cluster restart",
            )
        if name in LISTENING:
            return function(*args, **kwargs)
        return interruptible(function, *args, **kwargs)
    except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - this is the border
        return as_failure(name, error)


def pipe_call(name: str) -> Callable[..., Any] | None:
    """A call on a loaded model; imported late, so that a rank says hello before MLX is loaded."""
    from mlx_nb.engine import check_calls, kv_calls, pipes, step_calls, tensor_calls, trace_calls

    for module in (pipes, step_calls, kv_calls, trace_calls, tensor_calls, check_calls):
        if name in module.CALLS:
            return module.CALLS[name]
    return None


def as_failure(name: str, error: BaseException) -> Failure:
    """What a call raised, as plain data; its traceback goes into this rank's log as well."""
    rank = world()[0]
    text = "".join(traceback.format_exception(error))
    log(f"{name} failed on rank {rank}\n{text}")
    if isinstance(error, MlxNbError):
        return Failure(error=error, rank=rank, traceback=text)
    if isinstance(error, KeyboardInterrupt):
        ours = RunError(f"Rank {rank} was interrupted in {name}.", "Run the cell again to repeat it.")
    else:
        last = traceback.format_exception_only(error)[-1].strip()
        ours = RunError(f"Rank {rank} failed in {name}: {last}", "To see where, type: %mlx_cluster logs")
    return Failure(error=ours, rank=rank, traceback=text)


def log(text: str) -> None:
    """Write into this rank's log file: stderr is the notebook's, the kernel's log is not."""
    kernel = events.running_kernel()
    if kernel:
        kernel.log.error(text)
    else:
        print(text, file=sys.stderr)
