"""Interrupt Kernel while no cell runs.

An idle kernel ignores the signal, though a stride that a button began may be under way in a thread beside it.
"""

import asyncio
import signal
import threading
from collections.abc import Callable
from concurrent.futures import Future
from types import FrameType
from typing import Any

RETRY_S = 0.1

_under_way: dict[Future[Any], Callable[[], None]] = {}


def idle_loop() -> asyncio.AbstractEventLoop | None:
    """The loop on which the kernel waits for its next cell, asked from a cell; None where there is none."""
    if threading.current_thread() is not threading.main_thread():
        return None
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def listen_during(work: "Future[Any]", stop: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
    """Let Interrupt Kernel call `stop`, in a thread of its own, until `work` is done. From any thread."""
    _under_way[work] = stop
    work.add_done_callback(lambda one: _under_way.pop(one, None))
    loop.call_soon_threadsafe(_listen, loop)


def _listen(loop: asyncio.AbstractEventLoop) -> None:
    """Take the place of the handler that ignores; once there it stays, and ignores when nothing is under way.

    While a cell runs, or the press of the button is still looked at, ipykernel has another handler in place,
    and puts the old one back at the end.
    """
    here = signal.getsignal(signal.SIGINT)
    if not _under_way or here is _stop_all:
        return
    if here is signal.SIG_IGN:
        signal.signal(signal.SIGINT, _stop_all)
    else:
        loop.call_later(RETRY_S, _listen, loop)


def _stop_all(_signal: int, _frame: FrameType | None) -> None:
    for stop in list(_under_way.values()):
        threading.Thread(target=stop, name="mlx_nb Interrupt Kernel", daemon=True).start()
