"""Ctrl-C on a rank: a flag that a run looks at, instead of an exception anywhere.

A KeyboardInterrupt in the middle of an MPI call or of a model's code would leave half-done state. The
signal only sets a flag; a run looks at it between layers, chunks and polls.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupt:
    """Whether this rank has been asked to stop what it does."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def listening(self) -> Iterator["Interrupt"]:
        """Take SIGINT while inside; it belongs to whoever had it before, afterwards."""
        self.requested = False
        if threading.current_thread() is not threading.main_thread():
            yield self
            return

        def handle(_signal: int, _frame: FrameType | None) -> None:
            self.requested = True

        before = signal.signal(signal.SIGINT, handle)
        try:
            yield self
        finally:
            signal.signal(signal.SIGINT, before)
