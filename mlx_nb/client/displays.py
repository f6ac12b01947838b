"""Objects of `shared/` as the last line of a cell: in a notebook they open their view, elsewhere they print.

`shared/` knows no widgets, so the shell is told here which class has which view.
"""

from collections.abc import Callable
from typing import Any

from mlx_nb.client.capture import Capture
from mlx_nb.client.kv import KVBufferHandle
from mlx_nb.client.lens_view import show_lens
from mlx_nb.client.stats_view import display_statistics
from mlx_nb.client.tensor_view import display_tensor
from mlx_nb.client.timeline_view import display_timeline
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.lens import Lens
from mlx_nb.shared.statistics import TokenStatistics
from mlx_nb.shared.timeline import Timeline

DISPLAYS: dict[type, Callable[[Any], object]] = {
    Timeline: display_timeline,
    Lens: show_lens,
    Capture: display_tensor,
    KVBufferHandle: display_tensor,
    TokenStatistics: display_statistics,
}


def install_displays(ip: Any) -> None:
    """Let a shell open views; one without a browser behind it goes on printing."""
    if getattr(ip, "kernel", None) is None:
        return
    for kind, show in DISPLAYS.items():
        ip.display_formatter.ipython_display_formatter.for_type(kind, _shown(show))


def remove_displays(ip: Any) -> None:
    """Take it away again."""
    for kind in DISPLAYS:
        ip.display_formatter.ipython_display_formatter.type_printers.pop(kind, None)


def _shown(show: Callable[[Any], object]) -> Callable[[Any], None]:
    def call(thing: Any) -> None:
        try:
            show(thing)
        except MlxNbError:  # nothing to see: it prints what it is
            print(repr(thing))

    return call
