"""Work that is done again and again beside a running cell, so that a view stays true."""

import threading
import weakref
from collections.abc import Callable

EVERY_S = 0.1
"""A page gets at most so many updates: ten a second."""


class Ticker:
    """Calls a method of an object in a thread of its own until it is stopped, or the object is gone.

    Args:
        work: A bound method; it says how many seconds to wait before the next call.
        name: The thread's.
    """

    def __init__(self, work: Callable[[], float], name: str) -> None:
        self._work = weakref.WeakMethod(work)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._main, name=name, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it; a call under way may still end after this."""
        self._over.set()

    def _main(self) -> None:
        wait_s = EVERY_S
        while not self._over.wait(max(EVERY_S, wait_s)):
            work = self._work()
            if work is None:
                return
            wait_s = work()
            del work
