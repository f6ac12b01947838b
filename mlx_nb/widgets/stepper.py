"""The stepper's view: draws a `StepperState`, and hands the user's strides to whoever runs them.

    view = StepperView(state=state, preview=preview)
    view.on_action(run_stride)          # run_stride("into") … and then:
    view.show(new_state, new_preview)

The view knows nothing of clusters and models. One stride is under way at a time: from the press of a
button until the callback is done, further strides are dropped, here and in the browser.
"""

import difflib
import threading
import traceback
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import anywidget
import traitlets

from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.view_state import StepperState, empty_state
from mlx_nb.widgets.stepper_static import stepper_html, stepper_text, with_limit

STATIC = Path(__file__).parent / "static"

STRIDES = ("into", "over", "out", "layer", "rank", "token", "run", "restart", "close")

WIDGET_MIME = "application/vnd.jupyter.widget-view+json"

OnAction = Callable[[str], Future[Any] | None]


class StepperView(anywidget.AnyWidget):
    """The first screen of the stepper.

    Attributes:
        state: What is shown. Assign through `show`, which keeps state and preview together.
        preview: The image of `mlx_nb.shared.preview`, or empty.
        busy: The stride under way, or empty. Set it while a cell runs a stride that no button asked for.
        can_interrupt: Whether Stop is offered while a stride is under way; `on_interrupt` sets it.
    """

    _esm = STATIC / "stepper.js"
    _css = STATIC / "stepper.css"

    state = traitlets.Dict().tag(sync=True)
    preview = traitlets.Bytes(b"").tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)
    can_interrupt = traitlets.Bool(False).tag(sync=True)

    def __init__(self, state: StepperState | None = None, preview: bytes = b"", **traits: Any) -> None:
        for name in traits:
            self._check_name(name)
        self._sequence = 0
        self._action: OnAction | None = None
        self._interrupt: Callable[[], None] | None = None
        self._under_way = threading.Lock()
        self._showing = threading.RLock()
        super().__init__(state=with_limit(state or empty_state(), preview), preview=preview, **traits)
        self.on_msg(self._on_message)

    # ---- for the client ---------------------------------------------------------------------------

    def on_action(self, callback: OnAction) -> None:
        """Run `callback(stride)` for every stride that the user asks for.

        It either runs the stride and calls `show`, or returns a `concurrent.futures.Future` of the work
        and `show` is called from there: the view is busy until the future is done. What it raises, or
        the future holds, appears in the pane under the view.
        """
        self._action = callback

    def on_interrupt(self, callback: Callable[[], None]) -> None:
        """Offer Stop while a stride is under way. `callback` may run on another thread."""
        self._interrupt = callback
        self.can_interrupt = True

    def show(self, state: StepperState, preview: bytes = b"") -> bool:
        """Draw a state; False if a later one is drawn already. From any thread."""
        with self._showing:
            if 0 < state.get("sequence", 0) < self._sequence:
                return False
            with self.hold_sync():  # one message, so that no state is ever drawn with another's preview
                self.state = with_limit(state, preview)
                self.preview = preview
        return True

    def fail(self, error: BaseException | str) -> None:
        """Put an error into the pane under the view; the next `show` takes it away."""
        with self._showing:
            self.state = {**self.state, "error": describe_error(error)}

    def picture(self) -> dict[str, str]:
        """What is on the screen as a MIME bundle without a widget: what stays in a saved notebook.

        For ``handle.update(view.picture(), raw=True)``, with the handle of
        ``display(view, display_id=True)``.
        """
        return {"text/html": stepper_html(self._state, self.preview), "text/plain": repr(self)}

    # ---- the wire -----------------------------------------------------------------------------------

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        kind, stride = content.get("kind"), content.get("stride")
        if kind == "interrupt":
            self._run_interrupt()
        elif kind == "stride" and stride in STRIDES:
            self._run_stride(str(stride), content.get("id"))
        else:
            self.fail(f"The view sent a message that is not known here: {content!r}")

    def _run_stride(self, stride: str, action_id: Any) -> None:
        def finish(work: Future[Any] | None = None) -> None:
            if work is not None and not work.cancelled() and (error := work.exception()):
                self.fail(error)
            self.busy = ""
            self._under_way.release()
            self._answer(action_id)

        if not self._under_way.acquire(blocking=False):
            self._answer(action_id)
            return
        work = None
        try:
            self.busy = stride
            work = self._action(stride) if self._action else None
            if self._action is None:
                self.fail(f"Nothing runs the strides of this view, so {stride!r} did nothing.")
        except Exception as error:  # noqa: BLE001,RUF100 - whatever it is, it belongs in the pane
            self.fail(error)
        finally:  # also when a KeyboardInterrupt passes through
            if isinstance(work, Future):
                work.add_done_callback(finish)
            else:
                finish()

    def _run_interrupt(self) -> None:
        try:
            if self._interrupt:
                self._interrupt()
        except Exception as error:  # noqa: BLE001,RUF100 - as above
            self.fail(error)

    def _answer(self, action_id: Any) -> None:
        self.send({"kind": "answered", "id": action_id})

    # ---- checks and text ------------------------------------------------------------------------------

    @property
    def _state(self) -> StepperState:
        return self.state

    @traitlets.validate("state")
    def _complete_state(self, proposal: dict[str, Any]) -> dict[str, Any]:
        """Fill in what is missing, refuse what is unknown, number what has no number."""
        given: Mapping[str, Any] = proposal["value"]
        blank = empty_state()
        for key in given:
            if key not in blank:
                raise traitlets.TraitError(f"A stepper's state has no {key!r}.{_nearest(key, list(blank))}")
        state: dict[str, Any] = {**blank, **given}
        state["sequence"] = state["sequence"] or self._sequence + 1
        self._sequence = max(self._sequence, state["sequence"])
        return state

    def _check_name(self, name: str) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            public = [trait for trait in type(self).class_trait_names() if not trait.startswith("_")]
            raise AttributeError(f"StepperView has no trait {name!r}.{_nearest(name, public)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_name(name)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return stepper_text(self._state)

    def _repr_mimebundle_(self, **_kwargs: Any) -> dict[str, Any]:
        widget = {"version_major": 2, "version_minor": 0, "model_id": self.model_id}
        return {"text/plain": repr(self), WIDGET_MIME: widget}


def describe_error(error: BaseException | str) -> str:
    """An error as the pane shows it: our own in their two sentences, any other with its traceback."""
    if isinstance(error, str | MlxNbError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
