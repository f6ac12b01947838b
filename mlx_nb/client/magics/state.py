"""What the magics work on: the current set, or an error that says what to type first."""

from typing import TYPE_CHECKING

from mlx_nb.client.current import current
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


def need_debugger() -> "Debugger":
    """The open stepper.

    Raises:
        NoClusterError, NoModelError: There is no cluster or no model.
        RunFinished: Nothing is being stepped.
    """
    need_pipe()
    if current.dbg is None:
        raise RunFinished(
            "Nothing is being stepped.", "Begin with a cell: %%mlx_step, and the prompt below it."
        )
    return current.dbg
