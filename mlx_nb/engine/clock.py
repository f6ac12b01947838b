"""When a rank computes, waits and sends in one run: three kinds of spans, noted as they end."""

import time
from array import array

from mlx_nb.shared.timeline import COMPUTE, KINDS, WAIT, RankTimes, Span


class Clock:
    """Notes what one rank does; costs two readings of the clock a span.

    A token has three or four spans, and a run thousands of tokens: they are kept as bare numbers, 21 bytes each.
    """

    def __init__(self) -> None:
        self._passes: list[tuple[int, str, int, int]] = []
        self._of_pass, self._kinds = array("i"), array("b")
        self._begin_s, self._end_s = array("d"), array("d")
        self._kind = ""
        self._paused = ""
        self._pass: tuple[int, str, int, int] = (-1, "", 0, 0)
        self._since = 0.0

    def begin_pass(self, index: int, phase: str, start: int, stop: int) -> None:
        """A pass begins, and with it a span of computing."""
        self._close(COMPUTE)
        self._pass = (index, phase, start, stop)

    def turn(self, kind: str) -> None:
        """From here on the rank does something else; nothing ("") is not noted. Waiting goes on as waiting."""
        if not kind == self._kind == WAIT:
            self._close(kind)

    def pause(self) -> None:
        """Note nothing until `resume`: the run stands still."""
        self._paused = self._kind
        self._close("")

    def resume(self) -> None:
        """Go on with what was under way at `pause`."""
        if self._paused:
            self._close(self._paused)
        self._paused = ""

    def _close(self, kind: str) -> None:
        """Note the span under way, and begin another."""
        now = time.monotonic()
        if self._kind:
            if not self._passes or self._passes[-1] is not self._pass:
                self._passes.append(self._pass)
            self._of_pass.append(len(self._passes) - 1)
            self._kinds.append(KINDS.index(self._kind))
            self._begin_s.append(self._since)
            self._end_s.append(now)
        self._kind, self._since = kind, now

    def times(self) -> RankTimes:
        """What was noted, on the clock that all hosts share."""
        spans = []
        noted = zip(self._of_pass, self._kinds, self._begin_s, self._end_s, strict=True)
        for place, kind, begin_s, end_s in noted:
            index, phase, start, stop = self._passes[place]
            spans.append(
                Span(
                    index=index,
                    phase=phase,
                    start=start,
                    stop=stop,
                    kind=KINDS[kind],
                    begin_s=begin_s,
                    end_s=end_s,
                )
            )
        return RankTimes(spans=tuple(spans), epoch_s=time.time() - time.monotonic())
