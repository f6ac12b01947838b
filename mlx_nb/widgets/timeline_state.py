"""What the timeline's view shows, as plain data: spans packed for the browser, numbers and sentences to read.

A span travels as 30 bytes, so that a run of thousands of tokens fits into one message; a longer one is
first sent pooled, and a window of it span by span when the user zooms in.
"""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from mlx_nb.shared.text import format_count, format_duration
from mlx_nb.shared.timeline import COMPUTE, DECODE, KINDS, PREFILL, Span, Timeline

MOST_SPANS = 12_000
"""So many travel at once: 352 KiB."""

POOLED_CELLS = 1024
"""A pooled rank has about so many cells; the screen has fewer pixels."""

SPAN_DTYPE = np.dtype(
    [
        ("begin_s", "<f8"),
        ("seconds", "<f8"),
        ("index", "<u4"),
        ("start", "<u4"),
        ("stop", "<u4"),
        ("rank", "u1"),
        ("kind", "u1"),  # a place in KINDS; 16 more for a decode pass
    ]
)
DECODE_BIT = 16


class LaneState(TypedDict):
    """One rank's lane: who it is, and the share of the whole run in which it computed (``41 %``)."""

    rank: int
    host: str
    holds: str
    busy: str


class PhaseState(TypedDict):
    """A phase, and the seconds from the run's begin to the phase's first and last span."""

    name: str
    begin_s: float
    end_s: float


class TimelineState(TypedDict):
    """Everything but the spans.

    `note` says what was run. `rows` has texts: rank, phase, passes, one for each of `KINDS`, and the share
    computed. `pooled` is true if the spans that go with it stand for many each. `text` is the whole in plain text.
    """

    title: str
    note: str
    summary: str
    length_s: float
    lanes: list[LaneState]
    phases: list[PhaseState]
    rows: list[list[str]]
    sentence: str
    pooled: bool
    text: str


def timeline_state(
    timeline: Timeline,
    title: str = "",
    note: str = "",
    hosts: Sequence[str] = (),
    holds: Sequence[str] = (),
) -> TimelineState:
    """All that is shown of a timeline but its spans.

    Args:
        timeline: Which.
        title: The model's name.
        note: What was run.
        hosts, holds: Of every rank, where it is and what it holds.
    """
    length = timeline.length()
    busy = timeline.busy()
    return TimelineState(
        title=title or "Timeline",
        note=note,
        length_s=length,
        summary=f"{format_duration(length)} · bubbles {timeline.bubbles():.0f} %" if timeline.spans else "",
        lanes=[
            LaneState(
                rank=rank,
                host=hosts[rank] if rank < len(hosts) else "",
                holds=holds[rank] if rank < len(holds) else "",
                busy=f"{busy[rank]:.0%}".replace("%", " %"),
            )
            for rank in range(timeline.num_ranks)
        ],
        phases=_phases(timeline),
        rows=[[*row[:-1], row[-1].replace("%", " %")] for row in timeline.rows()],
        sentence=" ".join(sentences(timeline)),
        pooled=len(timeline.spans) > MOST_SPANS,
        text=repr(timeline),
    )


def _phases(timeline: Timeline) -> list[PhaseState]:
    """Decode begins where rank 0 takes up its first generated token: only there the phases do not overlap."""
    length = timeline.length()
    decode = [s.begin_s for s in timeline.spans if s.phase == DECODE and s.kind == COMPUTE and s.rank == 0]
    cut = min(decode, default=length)
    phases = [
        PhaseState(name=PREFILL, begin_s=0.0, end_s=cut),
        PhaseState(name=DECODE, begin_s=cut, end_s=length),
    ]
    return [phase for phase in phases if phase["end_s"] > phase["begin_s"]]


def sentences(timeline: Timeline) -> list[str]:
    """What the picture shows, in words: for each phase how the ranks shared the time."""
    found = []
    chunks = len({s.index for s in timeline.spans if s.phase == PREFILL})
    ranks = timeline.num_ranks
    if chunks:
        length = timeline.length(PREFILL)
        work = sum(timeline.total(rank, COMPUTE, PREFILL) for rank in range(ranks))
        text = f"Prefill: {format_count(chunks, 'chunk')} in {format_duration(length)}"
        if ranks > 1 and work > length:
            text += f"; one rank after the other would take {format_duration(work)}"
        elif ranks > 1 and chunks == 1:
            text += "; with a single chunk one rank waits while another computes"
        found.append(f"{text}.")
    passes = len({s.index for s in timeline.spans if s.phase == DECODE})
    if passes:
        length = timeline.length(DECODE)
        text = f"Decode: {format_duration(length / passes)} a token over {format_count(passes, 'token')}"
        if ranks > 1:
            shares = [
                f"rank {rank} {share:.0%}".replace("%", "\u00a0%")
                for rank, share in enumerate(timeline.busy(DECODE))
            ]
            text += f". A token goes through one rank after the other, so they take turns: {', '.join(shares)} of the time"
        found.append(f"{text}.")
    return found


def pack_spans(
    timeline: Timeline, begin_s: float = 0.0, end_s: float = float("inf"), most: int = MOST_SPANS
) -> tuple[bytes, bool]:
    """The spans that touch a window, and whether they had to be pooled.

    Pooled, each cell of the window holds up to one span of each kind and rank, one after another: their
    lengths are right, their order in the cell is not.
    """
    spans = [s for s in timeline.spans if s.end_s >= begin_s and s.begin_s <= end_s]
    if len(spans) <= most:
        return _pack(spans).tobytes(), False
    cells = max(1, min(POOLED_CELLS, most // (3 * timeline.num_ranks)))
    begin_s, end_s = max(begin_s, 0.0), min(end_s, timeline.length())
    return _pack(_pool(spans, begin_s, end_s, cells)).tobytes(), True


def unpack_spans(packed: bytes) -> np.ndarray:
    """Packed spans as a structured array, ``[spans]`` of `SPAN_DTYPE`."""
    return np.frombuffer(packed, SPAN_DTYPE)


def _pack(spans: list[Span]) -> np.ndarray:
    found = np.zeros(len(spans), SPAN_DTYPE)
    for place, span in enumerate(spans):
        kind = KINDS.index(span.kind) + (DECODE_BIT if span.phase == DECODE else 0)
        found[place] = (span.begin_s, span.seconds, span.index, span.start, span.stop, span.rank, kind)
    return found


def _pool(spans: list[Span], begin_s: float, end_s: float, cells: int) -> list[Span]:
    """For each cell, rank and kind one span as long as all of theirs that lie in it."""
    width = (end_s - begin_s) / cells
    sums: dict[tuple[int, int, str], tuple[float, Span, Span]] = {}
    for span in spans:
        first = max(0, int((span.begin_s - begin_s) / width))
        for cell in range(first, min(cells - 1, int((span.end_s - begin_s) / width)) + 1):
            left = begin_s + cell * width
            inside = max(0.0, min(span.end_s, left + width) - max(span.begin_s, left))
            seconds, earliest, _ = sums.get((cell, span.rank, span.kind), (0.0, span, span))
            sums[cell, span.rank, span.kind] = (seconds + inside, earliest, span)
    found = []
    filled: dict[tuple[int, int], float] = {}
    for (cell, rank, kind), (seconds, first_one, last_one) in sorted(
        sums.items(), key=lambda item: (item[0][0], item[0][1], KINDS.index(item[0][2]))
    ):
        at = begin_s + cell * width + filled.get((cell, rank), 0.0)
        filled[cell, rank] = filled.get((cell, rank), 0.0) + seconds
        found.append(
            Span(
                index=first_one.index,
                phase=first_one.phase,
                start=first_one.start,
                stop=last_one.stop,
                kind=kind,
                begin_s=at,
                end_s=at + seconds,
                rank=rank,
            )
        )
    return found
