"""What every rank did when, over one run: computing, sending, waiting.

A *bubble* is time in which a rank does not compute while the run goes on: the price of a pipeline
(GPipe, Huang et al. 2019, section 2.3). With c chunks on r ranks of equal speed the least share of a
prefill is (r - 1) / (c + r - 1).
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlx_nb.shared.text import format_duration, format_table

COMPUTE, WAIT, SEND = "compute", "wait", "send"
KINDS = (COMPUTE, SEND, WAIT)
PREFILL, DECODE = "prefill", "decode"
_MARKS = {COMPUTE: "█", SEND: "↓", WAIT: "·"}
_WIDTH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """One stretch of one rank's time.

    Attributes:
        index: The pass, from 0.
        phase: ``prefill`` or ``decode``.
        start, stop: The tokens of the pass, half-open.
        kind: ``compute``, ``send`` or ``wait``.
        begin_s, end_s: Seconds, from the run's first span; on the rank itself, by its own clock.
        rank: Whose it is.
    """

    index: int
    phase: str
    start: int
    stop: int
    kind: str
    begin_s: float
    end_s: float
    rank: int = 0

    @property
    def seconds(self) -> float:
        return self.end_s - self.begin_s


@dataclass(frozen=True, slots=True, kw_only=True)
class RankTimes:
    """One rank's spans as it noted them.

    Attributes:
        spans: By its own monotonic clock.
        epoch_s: What to add to get seconds since 1970; across hosts as exact as their clocks agree.
    """

    spans: tuple[Span, ...] = ()
    epoch_s: float = 0.0


class Timeline:
    """All ranks' spans on one axis; prints as bars.

    Attributes:
        spans: In the order in which they began.
        num_ranks: How many ranks took part.
    """

    def __init__(self, ranks: Sequence[RankTimes]) -> None:
        zero = min((r.epoch_s + span.begin_s for r in ranks for span in r.spans), default=0.0)
        self.num_ranks = len(ranks)
        self.spans = sorted(
            (
                replace(
                    span,
                    rank=rank,
                    begin_s=times.epoch_s + span.begin_s - zero,
                    end_s=times.epoch_s + span.end_s - zero,
                )
                for rank, times in enumerate(ranks)
                for span in times.spans
            ),
            key=lambda span: (span.begin_s, span.rank),
        )

    def total(self, rank: int, kind: str, phase: str | None = None) -> float:
        """Seconds that a rank spent on something, in a phase or in all."""
        return sum(s.seconds for s in self._of(phase) if s.rank == rank and s.kind == kind)

    def length(self, phase: str | None = None) -> float:
        """Seconds from the first span to the end of the last, over all ranks."""
        spans = self._of(phase)
        return max((s.end_s for s in spans), default=0.0) - min((s.begin_s for s in spans), default=0.0)

    def busy(self, phase: str | None = None) -> list[float]:
        """The share of the time in which each rank computed, from 0 to 1."""
        length = self.length(phase)
        return [
            self.total(rank, COMPUTE, phase) / length if length else 0.0 for rank in range(self.num_ranks)
        ]

    def bubbles(self, phase: str | None = None) -> float:
        """The share of all ranks' time in which they did not compute, in percent."""
        busy = self.busy(phase)
        return 100 * (1 - sum(busy) / len(busy)) if busy else 0.0

    def rows(self) -> list[list[str]]:
        """A row for each rank and phase: rank, phase, passes, seconds of each kind, and the share computed."""
        rows = []
        for phase in (PREFILL, DECODE):
            if not self._of(phase):
                continue
            busy = self.busy(phase)
            for rank in range(self.num_ranks):
                passes = {s.index for s in self._of(phase) if s.rank == rank}
                times = [format_duration(self.total(rank, kind, phase)) for kind in KINDS]
                rows.append([str(rank), phase, str(len(passes)), *times, f"{busy[rank]:.0%}"])
        return rows

    def table(self) -> str:
        """Seconds per rank and phase: computing, sending, waiting, and the share computed."""
        return format_table([["rank", "phase", "passes", *KINDS, "busy"], *self.rows()], right=range(2, 7))

    def chrome_trace(self) -> dict[str, Any]:
        """The spans as ``chrome://tracing`` and Perfetto read them (Trace Event Format, complete events)."""
        names = [
            {"ph": "M", "name": "process_name", "pid": rank, "tid": 0, "args": {"name": f"rank {rank}"}}
            for rank in range(self.num_ranks)
        ]
        events = [
            {
                "ph": "X",
                "name": span.kind if span.kind != COMPUTE else f"{span.phase} {span.start}:{span.stop}",
                "cat": span.kind,
                "pid": span.rank,
                "tid": 0,
                "ts": span.begin_s * 1e6,
                "dur": span.seconds * 1e6,
                "args": {"pass": span.index, "phase": span.phase, "tokens": [span.start, span.stop]},
            }
            for span in self.spans
        ]
        return {"traceEvents": [*names, *events], "displayTimeUnit": "ms"}

    def save(self, path: str | Path) -> Path:
        """Write `chrome_trace` as JSON; open it at ui.perfetto.dev or chrome://tracing."""
        target = Path(path)
        target.write_text(json.dumps(self.chrome_trace()))
        return target

    def _of(self, phase: str | None) -> list[Span]:
        return [span for span in self.spans if phase in (None, span.phase)]

    def _bar(self, rank: int) -> str:
        """What a rank did for most of each of the bar's cells."""
        length = self.length() or 1.0
        share = [dict.fromkeys(KINDS, 0.0) for _ in range(_WIDTH)]
        for span in self.spans:
            if span.rank == rank:
                _spread(share, span, length)
        return "".join(
            _MARKS[max(cell, key=lambda kind: cell[kind])] if any(cell.values()) else " " for cell in share
        )

    def __repr__(self) -> str:
        if not self.spans:
            return "Timeline of nothing: the run has not computed anything."
        head = f"Timeline · {format_duration(self.length())} · bubbles {self.bubbles():.0f} %"
        bars = [f" rank {rank}  {self._bar(rank)}" for rank in range(self.num_ranks)]
        legend = f"         {_MARKS[COMPUTE]} computes  {_MARKS[SEND]} sends  {_MARKS[WAIT]} waits"
        return "\n".join([head, *bars, legend, self.table()])


def _spread(share: list[dict[str, float]], span: Span, length: float) -> None:
    """Add a span to the cells that it covers."""
    first = int(span.begin_s / length * _WIDTH)
    for cell in _covered(first, int(span.end_s / length * _WIDTH)):
        begin, end = cell * length / _WIDTH, (cell + 1) * length / _WIDTH
        share[cell][span.kind] += max(0.0, min(end, span.end_s) - max(begin, span.begin_s))


def _covered(first: int, last: int) -> Iterable[int]:
    return range(max(0, first), min(last, _WIDTH - 1) + 1)
