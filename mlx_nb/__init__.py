"""Step through distributed LLM inference in Jupyter: MLX models over MPI ranks, with a debugger's strides.

Importing this package is cheap: names load what they need when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mlx_nb.client.cluster import Cluster
    from mlx_nb.client.current import current
    from mlx_nb.client.doctor import doctor
    from mlx_nb.client.planning import plan, sites
    from mlx_nb.client.reference import reference
    from mlx_nb.client.trace_file import open_trace
    from mlx_nb.shared.errors import MlxNbError, RunFinished
    from mlx_nb.shared.faults import faults

__all__ = [
    "Cluster",
    "MlxNbError",
    "RunFinished",
    "__version__",
    "current",
    "doctor",
    "faults",
    "open_trace",
    "plan",
    "reference",
    "sites",
]

_HOME = {
    "Cluster": "mlx_nb.client.cluster",
    "current": "mlx_nb.client.current",
    "doctor": "mlx_nb.client.doctor",
    "faults": "mlx_nb.shared.faults",
    "open_trace": "mlx_nb.client.trace_file",
    "plan": "mlx_nb.client.planning",
    "reference": "mlx_nb.client.reference",
    "sites": "mlx_nb.client.planning",
    "MlxNbError": "mlx_nb.shared.errors",
    "RunFinished": "mlx_nb.shared.errors",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        return import_module("importlib.metadata").version("mlx-nb")  # takes longer than all the rest
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mlx_nb' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def load_ipython_extension(ipython: Any) -> None:
    """Called by ``%load_ext mlx_nb``."""
    import_module("mlx_nb.client.magics").load_ipython_extension(ipython)


def unload_ipython_extension(ipython: Any) -> None:
    """Called by ``%unload_ext mlx_nb``."""
    import_module("mlx_nb.client.magics").unload_ipython_extension(ipython)
