"""The IPython extension: magics that call the same API as a script would."""

from typing import Any

from mlx_nb.client.displays import install_displays, remove_displays
from mlx_nb.client.magics.bench import BenchMagics
from mlx_nb.client.magics.breaks import BreakMagics
from mlx_nb.client.magics.chat import ChatMagics
from mlx_nb.client.magics.check import CheckMagics
from mlx_nb.client.magics.cluster import ClusterMagics
from mlx_nb.client.magics.completion import install_completion, remove_completion
from mlx_nb.client.magics.diff import DiffMagics
from mlx_nb.client.magics.doctor import DoctorMagics
from mlx_nb.client.magics.model import ModelMagics
from mlx_nb.client.magics.patches import PatchMagics
from mlx_nb.client.magics.step import StepMagics
from mlx_nb.client.magics.traces import TraceMagics
from mlx_nb.client.magics.trailing import rescue_question_marks

MAGICS = (
    ChatMagics,
    CheckMagics,
    ClusterMagics,
    ModelMagics,
    StepMagics,
    BreakMagics,
    TraceMagics,
    DiffMagics,
    PatchMagics,
    BenchMagics,
    DoctorMagics,
)


def load_ipython_extension(ip: Any) -> None:
    """Register everything on a shell; a second time does nothing."""
    if rescue_question_marks in ip.input_transformers_cleanup:
        return
    ip.register_magics(*MAGICS)
    ip.input_transformers_cleanup.append(rescue_question_marks)
    install_completion(ip)
    install_displays(ip)


def unload_ipython_extension(ip: Any) -> None:
    """Take everything away again; the cluster, if one runs, stays."""
    if rescue_question_marks in ip.input_transformers_cleanup:
        ip.input_transformers_cleanup.remove(rescue_question_marks)
    remove_completion(ip)
    remove_displays(ip)
    for kind in ("line", "cell"):
        table = ip.magics_manager.magics[kind]
        for name in [name for name in table if name.startswith("mlx_")]:
            del table[name]
