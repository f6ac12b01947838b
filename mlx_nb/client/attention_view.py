"""Showing attention: the view, and who answers when another head or layer is chosen."""

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.capture import Capture
from mlx_nb.client.live_view import LiveView, link
from mlx_nb.client.trace import Trace
from mlx_nb.shared.attention import PATTERN, is_attention
from mlx_nb.shared.errors import MlxNbError, OptionError, PromptError, SiteError
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.tensor import Face, Window, WindowWish

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.client.tracing import LiveTrace
    from mlx_nb.widgets.attention_state import Heads, LayerState

ONE_PASS = 512
"""A prompt of so many tokens is fed in one pass, so that all its tokens are seen; of a longer one the last chunk is."""

NOT_OBSERVABLE = "not observable: it does not call mlx-lm's shared attention function"


class _Fed:
    """A prompt that is fed once for each layer that is looked at: only that layer's attention is recorded.

    Attributes:
        layers: What can be chosen.
    """

    def __init__(self, pipe: "Pipe", prompt: Any, options: dict[str, Any]) -> None:
        self._pipe = pipe
        self._ids = pipe.encode(prompt, raw=bool(options.pop("raw", False)))
        self._options = {"prefill_step_size": ONE_PASS, **options}
        self._traces: dict[int, LiveTrace] = {}
        self.model = pipe.name
        first = pipe.shards[0]
        calls = [path for path in first.places if is_attention(path)]
        self.layers: list[LayerState] = [
            {
                "layer": layer,
                "rank": int(pipe.plan.rank_of(layer)),  # type: ignore[arg-type]
                "why": "" if any(call.startswith(f"{path}.") for call in calls) else NOT_OBSERVABLE,
            }
            for layer, path in enumerate(first.layer_paths)
        ]

    def capture(self, layer: int) -> Capture:
        """The pattern of a layer over the pass with the most tokens. Raises SiteError: it is not observable."""
        first = self._pipe.shards[0]
        site = resolve_site(f"{first.layer_paths[layer]}.{PATTERN}", first.places, first.layer_paths)
        if layer not in self._traces:
            before = self._pipe.last
            self._traces[layer] = self._pipe.trace(self._ids, site, **self._options)
            self._pipe.last = before
        return largest_pass(self._traces[layer], site)

    def drop(self) -> None:
        for trace in self._traces.values():
            trace.drop()


class _Recorded:
    """Patterns that a trace has."""

    def __init__(self, trace: Trace) -> None:
        self.model = trace.info.model
        self._trace = trace
        found = {r.layer: r for r in trace.records() if r.site.endswith(f".{PATTERN}") and r.layer >= 0}
        if not found:
            raise OptionError(
                f"The trace has recorded no attention (sites={', '.join(trace.info.sites)}).",
                'Type: pipe.trace("…", sites="layers.*.pattern")',
            )
        self._sites = {layer: record.site for layer, record in found.items()}
        self.layers: list[LayerState] = [
            {"layer": layer, "rank": int(record.rank), "why": ""} for layer, record in sorted(found.items())
        ]

    def capture(self, layer: int) -> Capture:
        if layer not in self._sites:
            raise OptionError(
                f"The trace has not recorded the attention of layer {layer}.",
                f"It has: {', '.join(map(str, sorted(self._sites)))}.",
            )
        return largest_pass(self._trace, self._sites[layer])

    def drop(self) -> None:
        """The trace is the user's."""


class _One:
    """A value that is looked at for itself."""

    def __init__(self, capture: Capture) -> None:
        first = capture.records[0]
        if not is_pattern(capture):
            raise OptionError(f"{first.label} is no attention pattern.", 'Type: trace["layers.3.pattern", 0]')
        self.model = capture.model
        self._capture = capture
        self.layers: list[LayerState] = [{"layer": first.layer, "rank": int(first.rank), "why": ""}]

    def capture(self, layer: int) -> Capture:
        return self._capture

    def drop(self) -> None:
        """The trace is the user's."""


def is_pattern(capture: Capture) -> bool:
    """Whether a capture is the attention pattern of one place."""
    return (
        len(capture.records) == 1 and not capture.stacked and capture.records[0].site.endswith(f".{PATTERN}")
    )


def largest_pass(trace: Trace, site: str) -> Capture:
    """The pattern at a site over the pass that has the most tokens, the last of several."""
    last = trace.runs[-1]
    record = next(one for one in trace.records() if one.run == last and one.site == site)
    passes = sorted(record.passes, key=lambda one: (one.stop - one.start, one.start))
    return trace.at(record.label, token=passes[-1].start)


class LiveAttention:
    """An attention view on the page."""

    def __init__(self, source: "_Fed | _Recorded | _One", layer: int, head: int) -> None:
        from mlx_nb.widgets.attention import AttentionView

        self._source = source
        self._layer, self._head = layer, head
        self._small: tuple[int, np.ndarray] | None = None
        self._texts: list[str] = []
        state, small, values = self._state()
        self.view = AttentionView(state, small=small, values=values)
        asks: dict[str, Callable[[dict[str, Any]], None]] = {"head": self._choose, "layer": self._choose}
        self.live = LiveView(self.view, asks, close=self._close)

    def _choose(self, details: dict[str, Any]) -> None:
        before = self._layer, self._head
        self._layer = int(details.get("layer", self._layer))
        self._head = int(details.get("head", self._head))
        try:
            state, small, values = self._state()
        except MlxNbError:
            self._layer, self._head = before
            raise
        self.view.show(state, small=small, values=values)

    def _state(self) -> tuple[dict[str, Any], bytes, bytes]:
        from mlx_nb.widgets.attention_state import attention_state

        capture = self._source.capture(self._layer)
        found = self._look(capture)
        count = sum(found.rows)
        if len(self._texts) < min(count, len(capture.fed)):
            with suppress(MlxNbError):  # a name is a favour
                self._texts = capture.source.texts(list(capture.fed[:count]))
        asking = f"tokens {found.rows[0]}–{count - 1}" if found.rows[1] > 1 else f"token {found.rows[0]}"
        parts = [f"{capture.shape[1]} heads", f"{asking} look at {found.columns[1]}"]
        if found.columns[0] < 0:
            parts.append("columns are slots of a ring")
        if found.values.shape != (found.rows[1], found.columns[1]):
            parts.append("a cell stands for several tokens and has the largest of their shares")
        state, small, values = attention_state(
            found,
            title=self._source.model,
            note=" · ".join(parts),
            layers=self._source.layers,
            tokens=self._texts,
            text=repr(capture),
        )
        return dict(state), small, values

    def _look(self, capture: Capture) -> "Heads":
        """The heads in few cells, the chosen one in many; pooled on the rank that has them."""
        from mlx_nb.widgets.attention_state import MOST_CELLS, THUMBNAIL, Heads

        record = capture.records[0]
        _, heads, length, cached = capture.shape
        if not 0 <= self._head < heads:
            raise OptionError(f"There is no head {self._head}.", f"The heads are 0–{heads - 1}.")

        def pooled(head: int, most: int) -> np.ndarray:
            face = Face(rows=2, columns=3, index=(0, head, 0, 0))
            wish = WindowWish(face=face, rows=(0, length), columns=(0, cached), height=most, width=most)
            window = capture.source.look(record, capture.axis, wish)
            assert isinstance(window, Window)
            return window.values()

        if self._small is None or self._small[0] != self._layer:
            self._small = self._layer, np.stack([pooled(head, THUMBNAIL) for head in range(heads)])
        start, stop = capture.tokens
        return Heads(
            layer=record.layer,
            rank=int(record.rank),
            head=self._head,
            rows=(start, length),
            columns=(0 if cached == stop else -1, cached),
            small=self._small[1],
            values=pooled(self._head, MOST_CELLS),
            error=capture.reconstruction_error,
        )

    def _close(self) -> None:
        with suppress(MlxNbError):  # the ranks may be gone
            self._source.drop()


def show_attention(
    pipe: "Pipe", thing: Any = "", layer: int | None = None, head: int = 0, **options: Any
) -> LiveAttention:
    """Show the attention of one layer, head by head.

    Args:
        pipe: Whose ranks compute it.
        thing: A prompt, or a trace that has recorded ``layers.*.pattern``, or one value of it; nothing for the
            tokens of the last run.
        layer: Which; the first that can be seen, if none is named.
        head: The one that is shown large.
        **options: As `Pipe.trace`.

    Raises:
        PromptError: There is no prompt, and nothing has run.
        SiteError: The layer's attention is not observable.
        OptionError: There is no such layer or head.
    """
    source: _Fed | _Recorded | _One
    if isinstance(thing, Trace):
        source = _Recorded(thing)
    elif isinstance(thing, Capture):
        source = _One(thing)
    else:
        if isinstance(thing, str) and not thing:
            last = pipe.last[0] if isinstance(pipe.last, list) else pipe.last
            if last is None:
                raise PromptError(
                    "The view 'attention' needs a prompt.",
                    "Type: %mlx_show attention What is the capital of France?",
                )
            thing = [*last.prompt_ids, *last.token_ids[:-1]]  # the last token was sampled, not fed
        source = _Fed(pipe, thing, options)
    return LiveAttention(source, _chosen_layer(source.layers, layer), head)


def display_attention(capture: Capture) -> LiveAttention:
    """Show an attention pattern that a trace has."""
    source = _One(capture)
    return LiveAttention(source, source.layers[0]["layer"], 0)


def _chosen_layer(layers: "list[LayerState]", wanted: int | None) -> int:
    """The layer asked for; or the one that the linked views look at, or the first that can be seen."""
    seen = [one["layer"] for one in layers if not one["why"]]
    if wanted is not None:
        if wanted not in [one["layer"] for one in layers]:
            last = layers[-1]["layer"]
            raise OptionError(
                f"There is no layer {wanted} to look at.",
                f"Type a layer from {layers[0]['layer']} to {last}.",
            )
        return wanted
    if not seen:
        raise SiteError(
            "Attention is not observable in this model: nothing in it calls mlx-lm's shared scaled_dot_product_attention.",
            "Type: pipe.sites() for what there is.",
        )
    linked = link.place.get("layer")
    return linked if linked in seen else seen[0]
