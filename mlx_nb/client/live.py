"""A text in a cell's output that changes while the kernel is free."""

import sys
import threading
import time
from collections.abc import Callable
from typing import Any

EVERY_S = 0.15


class LiveText:
    """Shows what a function says, again and again, wherever it was displayed.

    Args:
        text: What to show now.
    """

    def __init__(self, text: Callable[[], str]) -> None:
        self._text = text
        self._handles: list[Any] = []
        self._told = 0.0
        self._lock = threading.Lock()

    def show(self) -> None:
        """Show it in the running cell's output; in a terminal just once, as it is now."""
        shell = sys.modules.get("ipykernel.zmqshell")
        if shell is None or not shell.ZMQInteractiveShell.initialized():
            print(self._text())
            return
        from IPython.display import display

        with self._lock:
            self._handles.append(display(self._bundle(), raw=True, display_id=True))

    def refresh(self, *, last: bool = False) -> None:
        """Show what is true now, if it was not shown just before or is the last word."""
        with self._lock:
            if not self._handles or (not last and time.monotonic() - self._told < EVERY_S):
                return
            self._told = time.monotonic()
            for handle in self._handles:
                handle.update(self._bundle(), raw=True)

    def _bundle(self) -> dict[str, str]:
        return {"text/plain": self._text()}
