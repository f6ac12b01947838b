"""From tokens to text, as they come: incomplete characters wait, and so does what may become a stop text."""

from collections.abc import Sequence
from typing import Any


class TextOut:
    """The text of one run.

    Args:
        detokenizer: mlx-lm's streaming detokenizer; None makes no text.
        stop: Texts that end the run; none of them, nor a part of one, is ever handed out.
    """

    def __init__(self, detokenizer: Any, stop: Sequence[str] = ()) -> None:
        self._detokenizer = detokenizer
        self._stop = tuple(stop)
        self._told = ""
        self._held = ""

    @property
    def text(self) -> str:
        """All text so far, with what is held back because it may become a stop text."""
        return self._told + self._held

    def add(self, token: int, finish: str) -> tuple[str, str]:
        """Take a token in.

        Args:
            token: Its id.
            finish: Why the run ends with it, or ""; with ``stop`` it is no text itself.

        Returns:
            The text that it adds, and why the run ends with it: ``stop`` if a stop text is complete.
        """
        if self._detokenizer is None:
            return "", finish
        if finish != "stop":
            self._detokenizer.add_token(token)
        if finish:
            self._detokenizer.finalize()
        self._held += self._detokenizer.last_segment
        places = [place for stop in self._stop if (place := self._held.find(stop)) >= 0]
        if places:
            more, self._held, finish = self._held[: min(places)], "", "stop"
        else:
            cut = len(self._held) if finish else len(self._held) - self._undecided()
            more, self._held = self._held[:cut], self._held[cut:]
        self._told += more
        return more, finish

    def _undecided(self) -> int:
        """How many characters at the end may be the beginning of a stop text."""
        lengths = (n for stop in self._stop for n in range(1, len(stop)) if self._held.endswith(stop[:n]))
        return max(lengths, default=0)
