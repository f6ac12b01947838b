"""Showing a tensor: the view, and who answers it when a part is looked at closely, or from another side."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from math import isfinite
from typing import TYPE_CHECKING, Any

from mlx_nb.client.current import current
from mlx_nb.client.live_view import LiveView
from mlx_nb.client.tensors import Tensor, of_capture, of_kv, of_value
from mlx_nb.shared.errors import MlxNbError, OptionError, RunError
from mlx_nb.shared.tensor import (
    OVERVIEW_COLUMNS,
    OVERVIEW_ROWS,
    Details,
    DetailsWish,
    Face,
    Window,
    WindowWish,
    checked_face,
    first_face,
)
from mlx_nb.shared.text import format_number

if TYPE_CHECKING:
    from mlx_nb.client.debugger import Debugger
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.widgets.view import Answer

MOST_LABELS = 400
"""So many rows or columns are named by their tokens; of more no name could be read."""


class LiveTensor:
    """A tensor's view on the page.

    Args:
        tensor: What is looked at.
        sentence: What is to be said of it.
        dbg: The stepper that it follows.
        close: Called when it becomes a picture.
    """

    def __init__(
        self,
        tensor: Tensor,
        sentence: str = "",
        dbg: "Debugger | None" = None,
        close: Callable[[], None] = lambda: None,
    ) -> None:
        from mlx_nb.widgets.tensor import TensorView

        self.tensor, self._sentence, self._dbg = tensor, sentence, dbg
        self._end = close
        self._face = first_face(tensor.shape, tensor.letters)
        self._version = 0
        self._texts: dict[tuple[str, int], str] = {}
        state, overview = self._first_look()
        self.view = TensorView(state, overview=overview)
        asks = {"window": self._window, "face": self._turn}
        self.live = LiveView(self.view, asks, close=self._close)
        self.live.later(self._add_details)
        if dbg is not None:
            dbg.listeners.append(self._moved)

    # ---- what is shown ------------------------------------------------------------------------------

    def _first_look(self) -> tuple[dict[str, Any], bytes]:
        """The whole face in few cells."""
        self._version += 1
        tensor, face = self.tensor, self._face
        height, width = face.size(tensor.shape)
        wish = WindowWish(
            face=face, rows=(0, height), columns=(0, width), height=OVERVIEW_ROWS, width=OVERVIEW_COLUMNS
        )
        found = self._look(wish)
        state = {
            "model": tensor.model,
            "site": tensor.site,
            "suffix": tensor.suffix,
            "note": tensor.note,
            "tokens": _span(tensor),
            "shape": list(tensor.shape),
            "letters": list(tensor.letters),
            "names": tensor.names,
            "fixed": tensor.fixed,
            "dtype": tensor.dtype,
            "size": tensor.size,
            "rows": face.rows,
            "columns": face.columns,
            "index": list(face.index),
            "height": height,
            "width": width,
            "row_first": self._first_token(face.rows),
            "column_first": self._first_token(face.columns),
            "overview": {"height": found.height, "width": found.width, "exact": found.exact},
            "version": self._version,
            "place": {name: value for name, value in tensor.place.items() if value != -1},
            "sentence": self._sentence,
            "text": tensor.text,
        }
        return state, found.cells

    def _look(self, wish: WindowWish) -> Window:
        found = self.tensor.look(wish)
        assert isinstance(found, Window)
        return found

    def _add_details(self) -> None:
        """The numbers of the face that is shown; a big one takes a second."""
        version, state = self._version, self.view.state
        if state["maxima"]["rows"] or not state["height"] * state["width"]:
            return
        found = self.tensor.look(DetailsWish(face=self._face))
        assert isinstance(found, Details)
        if version != self._version:
            return
        state = {
            **self.view.state,
            "sequence": 0,
            "error": "",
            "maxima": {"rows": len(found.rows) // 4, "columns": len(found.columns) // 4},
            "numbers": _numbers(found, self.tensor.dtype),
            "octaves": [list(one) for one in found.octaves],
            "zeros": found.zeros,
            "outliers": [self._outlier(*one) for one in found.outliers],
        }
        self.view.show(state, maxima=found.rows + found.columns)

    def _outlier(self, row: int, column: int, value: float) -> dict[str, Any]:
        index = self._face.place(row, column)
        where = f"[{','.join(map(str, index))}]"
        names = self._labels(self._face.rows, row, row + 1)
        if names and names[0]:
            where += f" {names[0]}"
        return {
            "row": row,
            "column": column,
            "value": _value(value),
            "where": where,
        }

    def _first_token(self, axis: int) -> int:
        found = self.tensor.positions.get(axis)
        if not found or list(found) != list(range(found[0], found[0] + len(found))):
            return -1
        return int(found[0])

    def _labels(self, axis: int, start: int, stop: int) -> list[str]:
        """The tokens of some rows or columns; none where they are too many, or not known."""
        tensor = self.tensor
        if not 0 < stop - start <= MOST_LABELS or axis < 0:
            return []
        with suppress(MlxNbError):  # a name is a favour: a rank that is gone has said so elsewhere
            if axis in tensor.positions:
                return self._named("token", tensor.positions[axis][start:stop], tensor.texts)
            if tensor.letters[axis] == "V":
                return self._named("entry", range(start, stop), tensor.entries)
        return []

    def _named(self, kind: str, numbers: Sequence[int], ask: Any) -> list[str]:
        unknown = [number for number in numbers if (kind, number) not in self._texts]
        if unknown:
            for number, text in zip(unknown, ask(unknown), strict=False):
                self._texts[kind, number] = text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")
        return [self._texts.get((kind, number), "") for number in numbers]

    # ---- the page's questions -------------------------------------------------------------------------

    def _window(self, details: dict[str, Any]) -> "Answer":
        from mlx_nb.widgets.view import Answer

        if details.get("version") != self._version:
            return Answer({"stale": True})
        (top, bottom), (left, right) = details["rows"], details["columns"]
        found = self._look(
            WindowWish(
                face=self._face,
                rows=(int(top), int(bottom)),
                columns=(int(left), int(right)),
                height=int(details["height"]),
                width=int(details["width"]),
            )
        )
        content = {
            "version": self._version,
            "rows": list(found.rows),
            "columns": list(found.columns),
            "height": found.height,
            "width": found.width,
            "exact": found.exact,
            "row_labels": self._labels(self._face.rows, *found.rows),
            "column_labels": self._labels(self._face.columns, *found.columns),
        }
        return Answer(content, [found.cells])

    def _turn(self, details: dict[str, Any]) -> None:
        """Look at the array from another side."""
        wanted = Face(
            rows=int(details["rows"]),
            columns=int(details["columns"]),
            index=tuple(int(at) for at in details["index"]),
        )
        face = checked_face(wanted, self.tensor.shape)
        if min(face.rows if face.rows >= 0 else face.columns, face.columns) < self.tensor.fixed:
            raise OptionError(
                "The values of several sites lie apart, so that axis cannot be shown.",
                "Pick one of them with its number.",
            )
        self._face = face
        self._renew()

    def _renew(self) -> None:
        state, overview = self._first_look()
        self.view.show(state, overview=overview, maxima=b"")
        self.live.later(self._add_details)

    # ---- following the stepper --------------------------------------------------------------------------

    def _moved(self, dbg: "Debugger") -> None:
        if not dbg.running:
            self.live.later(lambda: self._follow(dbg))

    def _follow(self, dbg: "Debugger") -> None:
        before = self.tensor
        try:
            self.tensor = of_value(dbg)
        except RunError:
            return  # between the ranks, or at the end: what was seen last stays
        if self.tensor.shape != before.shape or self.tensor.letters != before.letters:
            self._face = first_face(self.tensor.shape, self.tensor.letters)
        self._renew()

    def _close(self) -> None:
        if self._dbg is not None and self._moved in self._dbg.listeners:
            self._dbg.listeners.remove(self._moved)
        with suppress(MlxNbError):  # the ranks may be gone
            self._end()


def _span(tensor: Tensor) -> str:
    axis = next((axis for axis, letter in enumerate(tensor.letters) if letter in ("L", "S")), -1)
    found = tensor.positions.get(axis)
    return f"tokens {found[0]}:{found[-1] + 1}" if found else ""


def _value(value: float) -> str:
    if isfinite(value):
        return format_number(value).replace("-", "−")
    return "NaN" if value != value else "+Inf" if value > 0 else "−Inf"


def _numbers(found: Details, dtype: str) -> list[dict[str, str]]:
    whole = "int" in dtype or dtype == "bool"
    named = {"min": found.min, "mean": found.mean, "rms": found.rms, "max": found.max}
    cells = [
        {"name": name, "value": (f"{v:.0f}" if whole and v == v else format_number(v)).replace("-", "−")}
        for name, v in named.items()
        if not whole or name in ("min", "max")
    ]
    counts = {"zero": found.zeros, "NaN": found.nan, "Inf": found.inf}
    return cells + [{"name": name, "value": f"{count:,}"} for name, count in counts.items()]


# ---- opening one ------------------------------------------------------------------------------------------


def show_tensor(pipe: "Pipe | None", what: Any = "") -> LiveTensor:
    """Show an array of any rank.

    Args:
        pipe: Where sites are looked for.
        what: A value of a trace, a KV buffer (``kv[17].keys``), a stepper, a site; or nothing: where the run stands.

    Raises:
        SiteError: The model has no such site.
        OptionError: There is nothing to show.
    """
    from mlx_nb.client.capture import Capture
    from mlx_nb.client.debugger import Debugger
    from mlx_nb.client.kv import KVBufferHandle

    if isinstance(what, Capture):
        return LiveTensor(of_capture(what))
    if isinstance(what, KVBufferHandle):
        return LiveTensor(of_kv(what))
    if isinstance(what, Debugger) or not what:
        dbg = what or current.dbg
        if dbg is None:
            raise OptionError(
                "A tensor needs a site, as nothing is being stepped.",
                "Type: %mlx_show tensor layers.3.resid_post",
            )
        return LiveTensor(of_value(dbg), "It follows the stepper.", dbg)
    if pipe is None or not isinstance(what, str):
        raise OptionError(
            f"A {type(what).__name__} cannot be shown as a tensor.",
            'Give a site, or trace["…"], or kv[3].keys.',
        )
    return _show_site(pipe, what)


def display_tensor(what: Any) -> LiveTensor:
    """As `show_tensor`, of a value that says itself where it is."""
    return show_tensor(None, what)


def _show_site(pipe: "Pipe", site: str) -> LiveTensor:
    """The last run's value at a site: its tokens are fed again, and recorded."""
    last = pipe.last[0] if isinstance(pipe.last, list) else pipe.last
    if last is None:
        raise OptionError("Nothing has run yet.", 'Run a prompt first: pipe.generate("…")')
    fed = [*last.prompt_ids, *last.token_ids[:-1]]
    before = pipe.last
    trace = pipe.trace(fed, sites=site)
    pipe.last = before
    return LiveTensor(
        of_capture(trace[site]),
        f"Recorded now: the {len(fed)} tokens of the last run were fed again.",
        close=trace.drop,
    )
