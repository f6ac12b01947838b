"""When a rank computes, waits and sends in one run: three kinds of spans, noted as they end."""

import time

from mlx_nb.shared.timeline import COMPUTE, WAIT, RankTimes, Span


class Clock:
    """Notes what one rank does; costs two readings of the clock a span.

    Attributes:
        spans: What has been noted, in order; the one under way is not among them.
    """

    def __init__(self) -> None:
        self.spans: list[Span] = []
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
            index, phase, start, stop = self._pass
            self.spans.append(
                Span(
                    index=index,
                    phase=phase,
                    start=start,
                    stop=stop,
                    kind=self._kind,
                    begin_s=self._since,
                    end_s=now,
                )
            )
        self._kind, self._since = kind, now

    def times(self) -> RankTimes:
        """What was noted, on the clock that all hosts share."""
        return RankTimes(spans=tuple(self.spans), epoch_s=time.time() - time.monotonic())
