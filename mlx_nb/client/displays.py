"""Objects as the last line of a cell: in a notebook they open their view or are a page, elsewhere they print.

`shared/` knows no widgets, so the shell is told here which class has which. A page has no script and needs no kernel.
"""

from collections.abc import Callable
from typing import Any

from mlx_nb.client.attention_view import display_attention, is_pattern
from mlx_nb.client.capture import Capture
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.cluster_view import show_cluster
from mlx_nb.client.diff_view import display_diff
from mlx_nb.client.kv import KVBufferHandle, KVCaches
from mlx_nb.client.kv_view import LiveKV
from mlx_nb.client.lens_view import show_lens
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.stats_view import display_statistics
from mlx_nb.client.tensor_view import display_tensor
from mlx_nb.client.timeline_view import display_timeline
from mlx_nb.shared.diff_report import DiffReport
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.lens import Lens
from mlx_nb.shared.model_sizes import SiteTable
from mlx_nb.shared.plan import Plan
from mlx_nb.shared.statistics import TokenStatistics
from mlx_nb.shared.timeline import Timeline
from mlx_nb.shared.tokens import PromptTokens


def display_capture(capture: Capture) -> object:
    """A value of a trace: what attention looks at in the view for that, any other as a tensor."""
    return (display_attention if is_pattern(capture) else display_tensor)(capture)


DISPLAYS: dict[type, Callable[[Any], object]] = {
    Timeline: display_timeline,
    Lens: show_lens,
    Capture: display_capture,
    KVBufferHandle: display_tensor,
    KVCaches: lambda kv: LiveKV(kv.pipe, kv),
    TokenStatistics: display_statistics,
    DiffReport: display_diff,
    Cluster: show_cluster,
}


def _plan_page(plan: Plan) -> str:
    from mlx_nb.widgets.plan_page import plan_html  # with anywidget, which takes half a second to import

    return plan_html(plan)


def _shapes_page(table: SiteTable) -> str:
    from mlx_nb.widgets.shapes_page import shapes_html

    return shapes_html(table)


def _tokens_page(tokens: PromptTokens) -> str:
    from mlx_nb.widgets.tokens_page import tokens_html

    return tokens_html(tokens)


PAGES: dict[type, Callable[[Any], str | None]] = {
    Plan: _plan_page,
    SiteTable: _shapes_page,
    PromptTokens: _tokens_page,
    Pipe: lambda pipe: _plan_page(pipe.plan) if pipe.loaded else None,
}


def install_displays(ip: Any) -> None:
    """Let a shell open views; one without a browser behind it goes on printing."""
    if getattr(ip, "kernel", None) is None:
        return
    for kind, show in DISPLAYS.items():
        ip.display_formatter.ipython_display_formatter.for_type(kind, _shown(show, ip))
    for kind, page in PAGES.items():
        ip.display_formatter.formatters["text/html"].for_type(kind, page)


def remove_displays(ip: Any) -> None:
    """Take it away again."""
    for kind in DISPLAYS:
        ip.display_formatter.ipython_display_formatter.type_printers.pop(kind, None)
    for kind in PAGES:
        ip.display_formatter.formatters["text/html"].type_printers.pop(kind, None)


def _shown(show: Callable[[Any], object], ip: Any) -> Callable[[Any], None]:
    def call(thing: Any) -> None:
        if isinstance(thing, Cluster) and _by_magic(ip):
            print(repr(thing))
            return
        try:
            show(thing)
        except MlxNbError:  # nothing to see: it prints what it is
            print(repr(thing))

    return call


def _by_magic(ip: Any) -> bool:
    """Whether a magic answers here, such as `%mlx_cluster start`: that prints, in every cell of every notebook."""
    lines = ip.history_manager.input_hist_raw[-1].strip().splitlines()
    return bool(lines) and lines[-1].lstrip().startswith("%")
