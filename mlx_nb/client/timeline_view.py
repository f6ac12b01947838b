"""Showing a timeline: the view, and who answers it when a part of a long run is looked at."""

from typing import TYPE_CHECKING, Any

from mlx_nb.client.current import current
from mlx_nb.client.live_view import LiveView
from mlx_nb.client.ticker import Ticker
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.text import first_words
from mlx_nb.shared.timeline import Timeline

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.widgets.timeline_state import TimelineState
    from mlx_nb.widgets.view import Answer

LOOK_S = 0.2

MOST_SAVED = 17_000
"""So many spans fit into one answer to the page: 500 KiB."""


def show_timeline(timeline: Timeline | None, pipe: "Pipe | None" = None) -> LiveView:
    """Show when every rank computed, sent and waited.

    Args:
        timeline: Which; None takes that of the pipe's last run, and then of every later one.
        pipe: Whose run it was, where that is known: its ranks' hosts and layers stand beside their lanes.

    Raises:
        OptionError: There is nothing to show.
    """
    from mlx_nb.widgets.timeline import TimelineView

    last, asked = pipe.last if pipe is not None else None, timeline
    timeline = timeline or (last.timeline if last is not None else None)
    if timeline is None or not timeline.spans:
        why = (
            "Nothing has run yet."
            if last is None
            else "The last run has no timeline: it was stepped, or has not ended."
        )
        raise OptionError(why, "Type: %mlx_generate What is the capital of France?")
    if asked is None and pipe is not None:
        return LastTimeline(pipe, timeline).live
    state, packed = _drawn(timeline, pipe)
    view = TimelineView(state, spans=packed)
    return LiveView(view, {"window": lambda details: window(timeline, details)})


class LastTimeline:
    """The timeline of a pipe's last run, whichever that is by now: ranks tell theirs when a run has ended.

    Attributes:
        live: Its view.
    """

    def __init__(self, pipe: "Pipe", timeline: Timeline) -> None:
        from mlx_nb.widgets.timeline import TimelineView

        self._pipe, self._timeline = pipe, timeline
        state, packed = _drawn(timeline, pipe)
        self._ticker = Ticker(self._tick, "mlx_nb timeline view")
        asks = {"window": lambda details: window(self._timeline, details)}
        self.live = LiveView(TimelineView(state, spans=packed), asks, self._ticker.stop)

    def _tick(self) -> float:
        found = getattr(self._pipe.last, "timeline", None)
        if found is not None and found is not self._timeline and found.spans:
            self._timeline = found
            state, packed = _drawn(found, self._pipe)
            self.live.view.show(state, spans=packed)
        return LOOK_S


def _drawn(timeline: Timeline, pipe: "Pipe | None") -> "tuple[TimelineState, bytes]":
    """What the view shows of a timeline, and its spans packed; beside the lanes stand hosts and layers, where known."""
    from mlx_nb.widgets.timeline_state import pack_spans, timeline_state

    title = note = ""
    hosts: list[str] = []
    holds: list[str] = []
    last = pipe.last if pipe is not None else None
    if pipe is not None and timeline.num_ranks == pipe.num_ranks:
        title = pipe.name
        hosts = [shard.host for shard in pipe.plan.shards]
        holds = [shard.describe() for shard in pipe.plan.shards]
        if last is not None and last.timeline is timeline:
            said = f": “{first_words(last.text, 60)}”" if last.text else ""
            note = f"{len(last.prompt_ids)} tokens of prompt, {len(last.token_ids)} generated{said}"
    return timeline_state(timeline, title, note, hosts, holds), pack_spans(timeline)[0]


def window(timeline: Timeline, details: dict[str, Any]) -> "Answer":
    """The spans of a part of the run, for the page.

    Raises:
        OptionError: The page wants all of them, and they are too many.
    """
    from mlx_nb.widgets.timeline_state import pack_spans
    from mlx_nb.widgets.view import Answer

    begin_s, end_s = float(details["begin_s"]), float(details["end_s"])
    if details.get("whole"):
        if len(timeline.spans) > MOST_SAVED:
            raise OptionError(
                f"{len(timeline.spans):,} spans are too many for this page.",
                'In a cell, type: pipe.last.timeline.save("timeline.json")',
            )
        packed, pooled = pack_spans(timeline, begin_s, end_s, MOST_SAVED)
    else:
        packed, pooled = pack_spans(timeline, begin_s, end_s)
    return Answer({"begin_s": begin_s, "end_s": end_s, "pooled": pooled}, [packed])


def timeline_of(thing: Any) -> Timeline | None:
    """The timeline that was meant: one, or a run that has one; None for nothing.

    Raises:
        OptionError: It is neither.
    """
    if not thing:
        return None
    found = getattr(thing, "timeline", thing)
    if not isinstance(found, Timeline):
        what = repr(thing) if isinstance(thing, str) else f"A {type(thing).__name__}"
        raise OptionError(
            f"{what} has no timeline.", 'Type: %mlx_show timeline, or pipe.show("timeline", gen)'
        )
    return found


def display_timeline(timeline: Timeline) -> None:
    """A timeline as the last line of a cell."""
    pipe = current.pipe
    mine = pipe is not None and pipe.last is not None and pipe.last.timeline is timeline
    show_timeline(timeline, pipe if mine else None)
