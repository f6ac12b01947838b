"""Long work shows what it does: one line that is taken away again when the work is done."""

import sys
import threading
from types import TracebackType
from typing import Any, Self, TextIO

from tqdm.std import tqdm

_BYTES = ("download", "unpack", "convert", "write")


class ProgressLine:
    """A progress bar that follows whatever stage is under way; may be told from any thread."""

    def __init__(self, *, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: tqdm | None = None
        self._stage = ""
        self._lock = threading.Lock()

    def tell(self, stage: str, done: int = 0, total: int = 0) -> None:
        """A stage, how much of it is done, and how much there is (0 if unknown)."""
        if self._quiet:
            return
        with self._lock:
            if _into_a_file():
                if stage != self._stage:  # a bar that is drawn again and again would fill it
                    self._stage = stage
                    print(stage, file=_stream(), flush=True)
                return
            if self._bar is None or stage != self._stage:
                self._end()
                self._stage = stage
                self._bar = self._begin(stage, total)
            if total and self._bar.total != total:
                self._bar.total = total
            self._bar.n = done
            self._bar.refresh()

    def on_event(self, rank: int, event: dict[str, Any]) -> None:
        """A rank's progress event; rank 0 speaks for all, since they do the same."""
        if event.get("kind") == "progress" and rank == 0:
            self.tell(event["stage"], event["done"], event["total"])

    def _begin(self, stage: str, total: int) -> tqdm:
        unit = {"unit": "B", "unit_scale": True, "unit_divisor": 1024} if stage in _BYTES else {}
        form = "{desc}: {n_fmt}/{total_fmt} {bar:24}" if total else "{desc}"
        return tqdm(
            desc=stage, total=total or None, leave=False, file=_stream(), bar_format=form, ascii=" ━", **unit
        )

    def _end(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Take the line away; it may be told something again."""
        with self._lock:
            self._end()


def _in_notebook() -> bool:
    shell = sys.modules.get("ipykernel.zmqshell")
    return shell is not None and bool(shell.ZMQInteractiveShell.initialized())


def _into_a_file() -> bool:
    return not _in_notebook() and not _stream().isatty()


def _stream() -> TextIO:
    """Stderr in a terminal; a notebook paints that red, even once the line has been taken away."""
    return sys.stdout if _in_notebook() else sys.stderr
