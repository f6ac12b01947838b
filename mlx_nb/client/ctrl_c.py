"""Ctrl-C in the notebook, where an exception in the middle would lose what the ranks are doing."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


def _is_ours() -> bool:
    """Whether Ctrl-C raises in this thread: Python tells the main thread of signals, and no other."""
    here = threading.current_thread() is threading.main_thread()
    return here and callable(signal.getsignal(signal.SIGINT))


@contextmanager
def held_back() -> Iterator[None]:
    """A Ctrl-C inside counts at the end: for what must be done whole or not at all, and is done at once."""
    if not _is_ours():
        yield
        return
    pressed = False

    def note(_signal: int, _frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True

    before = signal.signal(signal.SIGINT, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if pressed:
            signal.raise_signal(signal.SIGINT)


@contextmanager
def asks(stop: Callable[[], None]) -> Iterator[None]:
    """The first Ctrl-C inside calls `stop`, in a thread of its own, and raises nothing; the next ones raise.

    The end waits for `stop`: what it asks of the ranks one after another must not strike the call that comes next.
    """
    if not _is_ours():
        yield
        return
    asking: threading.Thread | None = None

    def ask(_signal: int, _frame: FrameType | None) -> None:
        nonlocal asking
        signal.signal(signal.SIGINT, before)
        # Not here: the main thread may hold, half way through, just what `stop` needs.
        asking = threading.Thread(target=stop, name="mlx_nb Ctrl-C", daemon=True)
        asking.start()

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if asking is not None:
            asking.join()
