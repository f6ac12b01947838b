"""The stepper's view: draws a `StepperState`, and hands the user's strides to whoever runs them.

    view = StepperView(state=state, preview=preview)
    view.on_action(run_stride)          # run_stride("into") … and then:
    view.show(new_state, new_preview)

The view knows nothing of clusters and models. One stride is under way at a time: from the press of a
button until the callback is done, further strides are dropped, here and in the browser.
"""

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, cast

import traitlets

from mlx_nb.shared.view_state import StepperState, empty_state
from mlx_nb.widgets.stepper_static import stepper_html, stepper_text, with_limit
from mlx_nb.widgets.view import View

STRIDES = ("into", "over", "out", "layer", "rank", "token", "run", "back", "restart", "close")

OnAction = Callable[[str], Future[Any] | None]


class StepperView(View):
    """The first screen of the stepper.

    Attributes:
        state: What is shown. Assign through `show`, which keeps state and preview together.
        preview: The image of `mlx_nb.shared.preview`, or empty.
        busy: The stride under way, or empty. Set it while a cell runs a stride that no button asked for.
        can_interrupt: Whether Stop is offered while a stride is under way; `on_interrupt` sets it.
    """

    name = "stepper"
    blank = cast("dict[str, Any]", empty_state())

    preview = traitlets.Bytes(b"").tag(sync=True)
    busy = traitlets.Unicode("").tag(sync=True)
    can_interrupt = traitlets.Bool(False).tag(sync=True)

    def __init__(self, state: StepperState | None = None, preview: bytes = b"", **traits: Any) -> None:
        self._action: OnAction | None = None
        self._interrupt: Callable[[], None] | None = None
        self._under_way = threading.Lock()
        super().__init__(with_limit(state or empty_state(), preview), preview=preview, **traits)

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

    def show(self, state: StepperState, preview: bytes = b"") -> bool:  # type: ignore[override]
        """Draw a state; False if a later one is drawn already. From any thread."""
        return super().show(with_limit(state, preview), preview=preview)

    def html(self) -> str:
        return stepper_html(self._state, self.preview)

    def text(self) -> str:
        return stepper_text(self._state)

    # ---- the wire -----------------------------------------------------------------------------------

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        kind, stride = content.get("kind"), content.get("stride")
        if kind == "interrupt":
            self._run_interrupt()
        elif kind == "stride" and stride in STRIDES:
            self._run_stride(str(stride), content.get("id"))
        else:
            super()._on_message(_widget, content, _buffers)

    def _run_stride(self, stride: str, action_id: Any) -> None:
        def finish(work: Future[Any] | None = None) -> None:
            if work is not None and not work.cancelled() and (error := work.exception()):
                self.fail(error)
            self.busy = ""
            self._under_way.release()
            self._answered(action_id)

        if not self._under_way.acquire(blocking=False):
            self._answered(action_id)
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

    def _answered(self, action_id: Any) -> None:
        self.send({"kind": "answered", "id": action_id})

    @property
    def _state(self) -> StepperState:
        return cast(StepperState, self.state)
