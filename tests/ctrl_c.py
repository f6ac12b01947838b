"""Ctrl-C in the middle of a test, and never after it."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ctrl_c(after_s: float, *, start: bool = True) -> Iterator[threading.Timer]:
    """Press Ctrl-C after so many seconds, or so long after somebody starts the timer that this yields.

    A press that comes late must not hit pytest itself, which would end all tests: it is taken back at the end of
    the block, and one that fell through is a failure of this test alone.
    """
    timer = threading.Timer(after_s, os.kill, (os.getpid(), signal.SIGINT))
    try:
        if start:
            timer.start()
        yield timer
        timer.cancel()
        if timer.ident is not None:
            timer.join()
    except KeyboardInterrupt:
        raise AssertionError("Ctrl-C was not taken by what ran, or came after it.") from None
    finally:
        timer.cancel()
