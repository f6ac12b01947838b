"""Views in a notebook: a live widget, which becomes a picture when it is frozen.

A saved notebook that is opened without a kernel cannot draw a widget. The picture that takes its place can be
drawn, by GitHub too.
"""

import itertools
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from IPython.display import display

if TYPE_CHECKING:
    from mlx_nb.widgets.view import Answer, View

Ask = Callable[[dict[str, Any]], "Answer | None"]


class Frozen(Protocol):
    """What `close_views` turns into pictures."""

    def freeze(self) -> None: ...


live_views: list[Frozen] = []
"""Those not frozen yet, oldest first."""


def register(view: Frozen) -> None:
    """Let `close_views` know a view."""
    live_views.append(view)


def forget(view: Frozen) -> None:
    """A view is a picture now."""
    if view in live_views:
        live_views.remove(view)


def close_views() -> int:
    """Turn every live view into its picture; how many there were."""
    views = list(live_views)
    for view in views:
        view.freeze()
    return len(views)


class PlaceLink:
    """One place that all live views look at: any of site, rank, layer, token, head."""

    def __init__(self) -> None:
        self.place: dict[str, Any] = {}
        self._followers: list[Callable[[dict[str, Any]], None]] = []

    def follow(self, callback: Callable[[dict[str, Any]], None]) -> None:
        self._followers.append(callback)

    def leave(self, callback: Callable[[dict[str, Any]], None]) -> None:
        if callback in self._followers:
            self._followers.remove(callback)

    def go(self, place: Mapping[str, Any]) -> None:
        """Let all views look there; a view shows what of it concerns it."""
        self.place = dict(place)
        for callback in list(self._followers):
            callback(self.place)


link = PlaceLink()


class LiveView:
    """A view on the page, and who answers it.

    Args:
        view: The widget.
        asks: Who answers which question. They run one after another in a thread of their own, since they may
            call ranks; a question that a later one of the same name has overtaken is not answered.
        close: Called when the view becomes a picture.
    """

    def __init__(
        self, view: "View", asks: Mapping[str, Ask] | None = None, close: Callable[[], None] = lambda: None
    ) -> None:
        self.view = view
        self._asks = dict(asks or {})
        self._close = close
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"mlx_nb {view.name}")
        self._numbers = itertools.count()
        self._newest: dict[str, int] = {}
        self._lock = threading.Lock()
        view.on_ask(self._ask)
        view.on_place(link.go)
        link.follow(self._follow)
        self._handle = display(view, display_id=True)
        register(self)

    def _ask(self, what: str, details: dict[str, Any]) -> "Future[Answer | None]":
        with self._lock:
            number = self._newest[what] = next(self._numbers)
        return self._thread.submit(self._answer, what, details, number)

    def _answer(self, what: str, details: dict[str, Any], number: int) -> "Answer | None":
        from mlx_nb.widgets.view import Answer

        if self._newest[what] != number:
            return Answer({"stale": True})
        return self._asks[what](details)

    def later(self, work: Callable[[], None]) -> None:
        """Do something behind the questions that wait, in their thread; an error goes into the view's pane."""

        def run() -> None:
            try:
                work()
            except Exception as error:  # noqa: BLE001,RUF100 - whatever it is, it belongs in the pane
                self.view.fail(error)

        self._thread.submit(run)

    def _follow(self, place: dict[str, Any]) -> None:
        self.view.place = place

    def freeze(self) -> None:
        """Put the picture in the widget's place."""
        forget(self)
        link.leave(self._follow)
        self._thread.shutdown(wait=False, cancel_futures=True)
        self._close()
        if self._handle is not None:
            self._handle.update(self.view.picture(), raw=True)
        self.view.close()
