"""Ctrl-C on a rank: a flag that a run looks at, instead of an exception anywhere.

A KeyboardInterrupt in the middle of an MPI call or of a model's code would leave half-done state. The
signal only sets a flag; a run looks at it between layers, chunks and polls.
"""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any, TypeVar

# Functions under which somebody's own code runs, who answers for a KeyboardInterrupt in it: ipyparallel's for
# a call, IPython's for a cell of ``%%px``. Anywhere else in the kernel it ends the request without an answer.
_CALL, _CELL = "do_apply", "run_code"

T = TypeVar("T")


def interruptible(function: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call a function that Ctrl-C may break off anywhere."""
    return function(*args, **kwargs)


class Interrupt:
    """Whether this rank has been asked to stop what it does.

    Attributes:
        requested: To end it.
        pause: To let a free run stand still, so that it can go on later.
    """

    def __init__(self) -> None:
        self.requested = self.pause = False
        self._listening = False

    @contextmanager
    def listening(self) -> Iterator["Interrupt"]:
        """Take SIGINT while inside; it belongs to whoever had it before, afterwards. May be nested."""
        if self._listening or threading.current_thread() is not threading.main_thread():
            yield self
            return

        def handle(_signal: int, _frame: FrameType | None) -> None:
            self.requested = True

        before = signal.signal(signal.SIGINT, handle)
        self._listening = True
        try:
            yield self
        finally:
            self._listening = self.requested = self.pause = False
            signal.signal(signal.SIGINT, before)


ON_THIS_RANK = Interrupt()


def shelter(kernel: Any, border: Callable[..., Any]) -> None:
    """Keep Ctrl-C away from the kernel's own machinery, and from what a call does before it listens.

    ipykernel lets SIGINT raise from the moment a request is taken up until it is answered. In the moments
    before and after the call itself that loses the answer, and the notebook would wait for it in vain
    (seen once in some fifty interrupts of a stepped run, whose calls are short).

    Args:
        kernel: The kernel that this process runs.
        border: Our own calls all go through it; in them Ctrl-C raises under `interruptible` alone.
    """
    if threading.current_thread() is not threading.main_thread():
        return

    def handle(_signal: int, frame: FrameType | None) -> None:
        if frame is not None:
            ON_THIS_RANK.requested = (
                True  # for a call of ours that has not begun to listen; forgotten with the call
            )
            if _may_raise(frame, border.__code__):
                raise KeyboardInterrupt

    def pause(_signal: int, _frame: FrameType | None) -> None:
        ON_THIS_RANK.pause = True

    signal.signal(signal.SIGINT, handle)
    signal.signal(signal.SIGUSR2, pause)  # which would end the process by default
    kernel.pre_handler_hook = kernel.post_handler_hook = lambda: None


def _may_raise(innermost: FrameType, border: CodeType) -> bool:
    """Whether somebody answers for an exception raised here."""
    frame: FrameType | None = innermost
    while frame is not None:
        code, caller = frame.f_code, frame.f_back
        if code is border:
            return False
        if code is interruptible.__code__ or code.co_name == _CELL:
            return True
        # ipyparallel runs a call as text of its own; before that it unpacks it, which nobody answers for.
        if code.co_filename == "<string>" and caller and caller.f_code.co_name == _CALL:
            return True
        frame = caller
    return False
