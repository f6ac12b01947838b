"""What the magics work on: the current set, or an error that says what to type first."""

from typing import TYPE_CHECKING, Any

from mlx_nb.client.current import current
from mlx_nb.client.records import list_records
from mlx_nb.shared.errors import NoClusterError, NoModelError, RunFinished

if TYPE_CHECKING:
    from mlx_nb.client.cluster import Cluster
    from mlx_nb.client.debugger import Debugger
    from mlx_nb.client.pipe import Pipe


def need_cluster() -> "Cluster":
    """The running cluster.

    Raises:
        NoClusterError: There is none.
    """
    if current.cluster is None:
        kept = [record.name for record in list_records() if record.started_s and not record.client.alive]
        if kept:
            raise NoClusterError(
                f"No cluster is running in this notebook, but {kept[0]} was kept.",
                f"Type: %mlx_cluster attach {kept[0]}",
            )
        raise NoClusterError("No cluster is running.", "Type: %mlx_cluster start --ranks 2")
    return current.cluster


def need_pipe() -> "Pipe":
    """The loaded pipe.

    Raises:
        NoClusterError, NoModelError: There is none.
    """
    need_cluster()
    if current.pipe is None:
        raise NoModelError("No model is loaded.", "Type: %mlx_load smollm2")
    return current.pipe


def need_debugger(*, lost: bool = False) -> "Debugger":
    """The open stepper.

    Args:
        lost: Also one whose run ended with a restart of the cluster: it can begin again.

    Raises:
        NoClusterError, NoModelError: There is no cluster or no model.
        RunFinished: Nothing is being stepped.
    """
    need_pipe()
    if current.dbg is None and current.lost_dbg is not None:
        if lost:
            return current.lost_dbg
        raise RunFinished(
            current.lost_dbg.lost,
            "Begin again: %mlx_step restart, or a cell with %%mlx_step and a prompt below it.",
        )
    if current.dbg is None:
        raise RunFinished(
            "Nothing is being stepped.", "Begin with a cell: %%mlx_step, and the prompt below it."
        )
    return current.dbg


def offer(shell: Any, name: str, value: object) -> None:
    """Put an object under the name that messages use for it, unless the user has that name for something else."""
    mine = shell.user_ns.get(name)
    if mine is None or isinstance(mine, type(value)) or isinstance(value, type(mine)):
        shell.user_ns[name] = value
