"""What all views share: a state that is drawn, questions from the page and their answers, the picture that stays.

    class MyView(View):
        name = "my"                       # static/my.js, static/my.css
        blank = {"rows": [], "note": ""}  # every key that a state may have
        def html(self) -> str: ...        # the same screen without a script
        def text(self) -> str: ...

    view = MyView(state)
    view.on_ask(answer)                   # answer("rows", {"from": 3}) -> Answer, None, or a Future of these
    view.show(new_state)

A view knows nothing of clusters and models. static/view.js is its other half.
"""

import difflib
import threading
import traceback
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, ClassVar

import anywidget
import traitlets

from mlx_nb.shared.errors import MlxNbError
from mlx_nb.widgets.assets import script, sheet
from mlx_nb.widgets.markup import Markup, style, tag


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back to the page for a question.

    Attributes:
        content: Plain data.
        buffers: Arrays as bytes, after it.
    """

    content: Mapping[str, Any] = field(default_factory=dict)
    buffers: Sequence[bytes] = ()


OnAsk = Callable[[str, dict[str, Any]], "Answer | Future[Answer | None] | None"]
OnPlace = Callable[[dict[str, Any]], None]


class View(anywidget.AnyWidget):
    """A view. Subclasses set `name` and `blank`, and draw themselves without a script.

    Attributes:
        state: What is shown; besides the keys of `blank` it has ``sequence`` and ``error``. Assign through `show`.
        place: Where the linked views look: any of site, rank, layer, token, head. The page follows it, and
            tells when the user picks another (`on_place`).
    """

    name: ClassVar[str] = ""
    blank: ClassVar[Mapping[str, Any]] = {}

    state = traitlets.Dict().tag(sync=True)
    place = traitlets.Dict().tag(sync=True)

    def __init_subclass__(cls, **kwargs: Any) -> None:
        if "name" in vars(
            cls
        ):  # anywidget makes a subclass for each instance, which has the traits of these names
            cls._esm, cls._css = script(cls.name), sheet(cls.name)
        super().__init_subclass__(**kwargs)

    def __init__(self, state: Mapping[str, Any] | None = None, **traits: Any) -> None:
        for name in traits:
            self._check_name(name)
        self._sequence = 0
        self._ask: OnAsk | None = None
        self._pick: OnPlace | None = None
        self._showing = threading.RLock()
        super().__init__(state=dict(state or self.blank), **traits)
        self.on_msg(self._on_message)

    # ---- for the client ---------------------------------------------------------------------------

    def on_ask(self, callback: OnAsk) -> None:
        """Let `callback(what, details)` answer the page. What it raises goes into the pane under the view.

        It may be called on any thread; a `Future` keeps the kernel free while the answer is fetched.
        """
        self._ask = callback

    def on_place(self, callback: OnPlace) -> None:
        """Run `callback(place)` when the user picks a place for all linked views."""
        self._pick = callback

    def show(self, state: Mapping[str, Any], **traits: Any) -> bool:
        """Draw a state, and traits that belong to it; False if a later one is drawn already. From any thread."""
        with self._showing:
            if 0 < state.get("sequence", 0) < self._sequence:
                return False
            with self.hold_sync():  # one message, so that no state is ever drawn with another's buffer
                self.state = dict(state)
                for name, value in traits.items():
                    setattr(self, name, value)
        return True

    def fail(self, error: BaseException | str) -> None:
        """Put an error into the pane under the view; the next `show` takes it away."""
        with self._showing:
            self.state = {**self.state, "error": describe_error(error)}

    def picture(self) -> dict[str, str]:
        """What is on the screen as a MIME bundle without a widget: what stays in a saved notebook.

        For ``handle.update(view.picture(), raw=True)``, with the handle of ``display(view, display_id=True)``.
        """
        return {"text/html": self.html(), "text/plain": self.text()}

    def html(self) -> str:
        """The screen without a script; `self_contained` puts the style sheet before it."""
        raise NotImplementedError

    def text(self) -> str:
        """The screen in plain text."""
        raise NotImplementedError

    # ---- the wire -----------------------------------------------------------------------------------

    def open(self) -> None:
        """Tell the page that there is a widget, and let what the page says come where the page sends it.

        JupyterLab sends it to a subshell, which hears it while a cell runs. ipykernel 7.4 hands it to the shell that
        published last instead. A view is drawn from threads, which count as the main shell: Pause would wait there
        for the end of the very cell that it shall pause.
        """
        super().open()
        if hasattr(self.comm, "_reply_subshell_for"):
            self.comm._reply_subshell_for = lambda _data, asked: asked

    def _on_message(self, _widget: Any, content: dict[str, Any], _buffers: Any) -> None:
        kind = content.get("kind")
        if kind == "ask":
            self._run_ask(str(content.get("what")), content.get("id"), dict(content.get("details") or {}))
        elif kind == "place":
            if self._pick:
                self._pick(dict(content.get("place") or {}))
        else:
            self.fail(f"The view sent a message that is not known here: {content!r}")

    def _run_ask(self, what: str, ask_id: Any, details: dict[str, Any]) -> None:
        def finish(work: "Future[Answer | None]") -> None:
            if work.cancelled():
                self._answer(ask_id, Answer({"stale": True}))
            elif error := work.exception():
                self.fail(error)
                self._answer(ask_id, Answer({"failed": True}))
            else:
                self._answer(ask_id, work.result())

        try:
            if self._ask is None:
                raise LookupError(
                    f"Nothing answers the questions of this view, so {what!r} was not answered."
                )
            found = self._ask(what, details)
        except Exception as error:  # noqa: BLE001,RUF100 - whatever it is, it belongs in the pane
            self.fail(error)
            self._answer(ask_id, Answer({"failed": True}))
            return
        if isinstance(found, Future):
            found.add_done_callback(finish)
        else:
            self._answer(ask_id, found)

    def _answer(self, ask_id: Any, answer: Answer | None) -> None:
        answer = answer or Answer()
        self.send({**answer.content, "kind": "answer", "id": ask_id}, buffers=list(answer.buffers))

    # ---- checks and text ------------------------------------------------------------------------------

    @traitlets.validate("state")
    def _complete_state(self, proposal: dict[str, Any]) -> dict[str, Any]:
        """Fill in what is missing, refuse what is unknown, number what has no number."""
        given: Mapping[str, Any] = proposal["value"]
        blank = {"sequence": 0, "error": "", **self.blank}
        for key in given:
            if key not in blank:
                raise traitlets.TraitError(
                    f"The state of a {type(self).__name__} has no {key!r}.{nearest(key, list(blank))}"
                )
        state: dict[str, Any] = {**blank, **given}
        state["sequence"] = state["sequence"] or self._sequence + 1
        self._sequence = max(self._sequence, state["sequence"])
        return state

    def _check_name(self, name: str) -> None:
        if not name.startswith("_") and not hasattr(type(self), name):
            public = [trait for trait in type(self).class_trait_names() if not trait.startswith("_")]
            raise AttributeError(f"{type(self).__name__} has no trait {name!r}.{nearest(name, public)}")

    def __setattr__(self, name: str, value: Any) -> None:
        self._check_name(name)
        super().__setattr__(name, value)

    def __repr__(self) -> str:
        return self.text()

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """anywidget's, with its metadata, by which Colab finds what draws it; but the text in full."""
        bundle, metadata = super()._repr_mimebundle_(**kwargs)
        return {**bundle, "text/plain": self.text()}, metadata


def self_contained(name: str, body: Markup) -> str:
    """A view's static picture with its style sheet."""
    return style(sheet(name)) + body


def still(
    name: str, label: str, title: str, where: str, note: str, *parts: Markup | None, sentence: str = ""
) -> str:
    """A view's static picture in the frame that static/view.js draws, self-contained.

    Args:
        name: The view's.
        label: What it is, for screen readers.
        title, where, note: The header: the model, a word beside it, the line below.
        *parts: The view's own.
        sentence: The foot.
    """
    top = tag("div.mv-top", tag("b.mv-model", title), " ", tag("span.mv-where", where))
    header = tag("div.mv-header", tag("div.mv-what", top, tag("div.mv-prompt", note)))
    foot = tag("div.mv-sentence", sentence) if sentence else None
    view = f"div.mlxnb-view.mlxnb-{name}"
    return self_contained(name, tag(view, header, *parts, foot, role="group", aria_label=f"{label}: {title}"))


def describe_error(error: BaseException | str) -> str:
    """An error as the pane shows it: our own in their two sentences, any other with its traceback."""
    if isinstance(error, str | MlxNbError):
        return str(error)
    return "".join(traceback.format_exception(error)).rstrip()


def nearest(name: str, known: list[str]) -> str:
    """`` Did you mean 'state'?``, or nothing."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" Did you mean {close[0]!r}?" if close else ""
