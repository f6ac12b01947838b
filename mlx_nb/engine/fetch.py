"""``python -m mlx_nb.engine.fetch NAME``: get a model, and say how far in one JSON object per line.

A short-lived process, so that the notebook kernel and the console can fetch without importing mlx.
Lines on stdout: ``{"kind": "progress", "stage", "done", "total"}`` (bytes), then one of
``{"kind": "done", "path"}`` (exit 0) and ``{"kind": "error", "problem", "fix"}`` (exit 1).
"""

import json
import os
import signal
import sys
import time
import traceback
from types import FrameType
from typing import Any

from mlx_nb.engine.resolve import resolve_model
from mlx_nb.shared.errors import MlxNbError

PROGRESS_EVERY_S = 0.1


def main(arguments: list[str]) -> int:
    """Fetch the one model named; the exit code."""
    if len(arguments) != 1:
        return _fail("fetch takes one model.", "Type: python -m mlx_nb.engine.fetch smollm2")
    # So that what was begun is cleaned up when the parent gives up, as with Ctrl-C.
    signal.signal(signal.SIGTERM, _interrupt)
    reporter = _Reporter()
    try:
        path = resolve_model(arguments[0], reporter)
        reporter.flush()
    except MlxNbError as error:
        return _fail(error.problem, error.fix)
    except KeyboardInterrupt:
        return _fail("The fetch was interrupted.", "Nothing is broken; load again to go on.")
    except BrokenPipeError:
        # The parent is gone. Python would complain again when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:  # noqa: BLE001 - the parent reads lines, not tracebacks
        traceback.print_exc()
        return _fail(
            f"{arguments[0]} could not be fetched: {type(error).__name__}: {error}.",
            "The traceback above this line shows where.",
        )
    _say({"kind": "done", "path": str(path)})
    return 0


class _Reporter:
    """Prints progress, at most ten lines a second; a stage's first and last report always count."""

    def __init__(self) -> None:
        self._stage = ""
        self._told_at = 0.0
        self._held: dict[str, Any] | None = None

    def __call__(self, stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        line = {"kind": "progress", "stage": stage, "done": done, "total": total}
        if stage == self._stage and now - self._told_at < PROGRESS_EVERY_S:
            self._held = line
            return
        if stage != self._stage:
            self.flush()
        self._held, self._stage, self._told_at = None, stage, now
        _say(line)

    def flush(self) -> None:
        """Print the report that was held back, if any."""
        if self._held:
            _say(self._held)
            self._held = None


def _fail(problem: str, fix: str) -> int:
    _say({"kind": "error", "problem": problem, "fix": fix})
    return 1


def _say(line: dict[str, Any]) -> None:
    print(json.dumps(line), flush=True)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
