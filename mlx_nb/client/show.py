"""Opening a view by its name, and the stepper's own."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from IPython.display import display

from mlx_nb.client.idle_interrupt import idle_loop, listen_during
from mlx_nb.client.live_view import close_views, forget, link, register
from mlx_nb.client.stepper_state import stepper_state
from mlx_nb.shared.errors import OptionError

if TYPE_CHECKING:
    from mlx_nb.client.cluster import Cluster
    from mlx_nb.client.debugger import Debugger
    from mlx_nb.client.pipe import Pipe

__all__ = ["VIEWS", "LiveStepper", "close_views", "show_stepper", "show_view"]


class LiveStepper:
    """A stepper's view on the page, and what keeps it true."""

    def __init__(self, dbg: "Debugger") -> None:
        from mlx_nb.widgets.stepper import StepperView  # anywidget takes half a second to import

        self.dbg = dbg
        self._loop = idle_loop()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlx_nb stepper")
        dbg.wants_preview = True
        dbg.refresh_preview()
        self.view: StepperView = StepperView(state=stepper_state(dbg), preview=dbg.preview)
        self.view.on_action(self._act)
        self.view.on_interrupt(dbg.interrupt)
        self.view.on_ask(self._set_breakpoint)
        dbg.pipe.breakpoints.listeners.append(self._breaks_changed)
        dbg.listeners.append(self._changed)
        self._handle = display(self.view, display_id=True)
        register(self)

    def _act(self, stride: str) -> "Future[Any] | None":
        """A button or a key; errors go into the view's own pane. A stride runs in a thread of its own.

        JupyterLab may bring a view's messages to a subshell: a stride that ran there would keep Stop waiting
        behind itself. Interrupt Kernel is heard all the same.
        """
        if stride != "close":
            work = self._thread.submit(getattr(self.dbg, stride))
            if self._loop is not None:
                listen_during(work, self.dbg.interrupt, self._loop)
            return work
        self.dbg.close()
        self.freeze()
        return None

    def _set_breakpoint(self, _what: str, details: dict[str, Any]) -> None:
        """A click at a layer or a module, or in the list: the page names a breakpoint's number, or a site for a new one."""
        breakpoints = self.dbg.pipe.breakpoints
        if (number := details.get("number")) is None:
            self.dbg.pipe.break_at(details.get("site"), when=details.get("when") or None)
        elif (enabled := details.get("enabled")) is None:
            breakpoints.delete(number, missing_ok=True)
        else:
            breakpoints.change(number, enabled=bool(enabled))

    def _breaks_changed(self) -> None:
        self.view.show(stepper_state(self.dbg), self.dbg.preview)

    def _changed(self, dbg: "Debugger") -> None:
        self.view.show(stepper_state(dbg), dbg.preview)
        if not dbg.running and not dbg.done:
            here = dbg.position
            place = {"rank": here.rank, "site": here.site, "token": here.stop - 1, "layer": here.layer}
            link.go({name: value for name, value in place.items() if value not in (-1, "")})

    def freeze(self) -> None:
        """Put the picture in the widget's place."""
        if self._changed in self.dbg.listeners:
            self.dbg.listeners.remove(self._changed)
        if self._breaks_changed in self.dbg.pipe.breakpoints.listeners:
            self.dbg.pipe.breakpoints.listeners.remove(self._breaks_changed)
        forget(self)
        self._thread.shutdown(wait=False)
        if self._handle is not None:
            self._handle.update(self.view.picture(), raw=True)
        self.view.close()


def show_stepper(dbg: "Debugger") -> LiveStepper:
    """Show the stepper's first screen."""
    return LiveStepper(dbg)


def show_view(
    pipe: "Pipe | None", view: str, argument: Any = "", *, cluster: "Cluster | None" = None, **wishes: Any
) -> Any:
    """Show a view by its name.

    Args:
        pipe: What it shows.
        view: One of `VIEWS`.
        argument: What the view is about, where it is about something: a prompt, a site, a timeline.
        cluster: For the view of that name, where no model is loaded.
        **wishes: What the view can be asked besides.

    Raises:
        OptionError: There is no such view, or it has nothing to show.
    """
    if view == "cluster" and cluster is not None:
        return _show_cluster(cluster)
    if pipe is None or view not in VIEWS:
        raise OptionError(f"There is no view '{view}'.", f"Type one of: {', '.join(VIEWS)}.")
    try:
        return _OPEN[view](pipe, argument, **wishes)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise OptionError(
            f"The view '{view}' does not know {', '.join(wishes)}.", f'Type: pipe.show("{view}")'
        ) from error


def _show_step(_pipe: "Pipe", _argument: str) -> Any:
    from mlx_nb.client.current import current

    if current.dbg is None:
        raise OptionError(
            "Nothing is being stepped.", "Begin with a cell: %%mlx_step, and the prompt below it."
        )
    return show_stepper(current.dbg)


def _show_tokens(pipe: "Pipe", prompt: Any, **wishes: Any) -> Any:
    if not prompt:
        raise OptionError("The view 'tokens' needs a prompt.", "Type: %mlx_show tokens What is MPI")
    return display(pipe.tokens(prompt, **wishes))


def _show_shapes(pipe: "Pipe", site: str) -> Any:
    table = pipe.sites()
    return display(table[site] if site else table)


def _show_timeline(pipe: "Pipe", timeline: Any) -> Any:
    from mlx_nb.client.timeline_view import show_timeline, timeline_of

    return show_timeline(timeline_of(timeline), pipe)


def _show_lens(pipe: "Pipe", prompt: Any, **wishes: Any) -> Any:
    from mlx_nb.client.lens_view import lens_of, show_lens

    return show_lens(lens_of(pipe, prompt, wishes))


def _show_cluster(cluster: "Cluster") -> Any:
    from mlx_nb.client.cluster_view import show_cluster

    return show_cluster(cluster)


def _show_kv(pipe: "Pipe") -> Any:
    from mlx_nb.client.kv_view import LiveKV

    return LiveKV(pipe)


def _show_tensor(pipe: "Pipe", what: Any, site: str = "") -> Any:
    from mlx_nb.client.tensor_view import show_tensor

    return show_tensor(pipe, site or what)


def _show_stats(pipe: "Pipe", prompt: Any, **wishes: Any) -> Any:
    from mlx_nb.client.stats_view import show_stats

    return show_stats(pipe, prompt, **wishes)


def _show_attention(pipe: "Pipe", prompt: Any, **wishes: Any) -> Any:
    from mlx_nb.client.attention_view import show_attention

    return show_attention(pipe, prompt, **wishes)


def _show_diff(pipe: "Pipe", thing: Any, **wishes: Any) -> Any:
    from mlx_nb.client.diff_view import show_diff

    return show_diff(pipe, thing, **wishes)


_OPEN: dict[str, Callable[..., Any]] = {
    "step": _show_step,
    "plan": lambda pipe, _: display(pipe.plan),
    "kv": lambda pipe, _: _show_kv(pipe),
    "shapes": _show_shapes,
    "tokens": _show_tokens,
    "cluster": lambda pipe, _: _show_cluster(pipe.cluster),
    "timeline": _show_timeline,
    "lens": _show_lens,
    "tensor": _show_tensor,
    "stats": _show_stats,
    "attention": _show_attention,
    "diff": _show_diff,
}
VIEWS = tuple(_OPEN)
