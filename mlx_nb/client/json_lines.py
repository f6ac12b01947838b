"""Programs of ours that run in a process of their own and say how far they are in JSON lines."""

import json
import signal
import subprocess
import sys
from collections.abc import Generator, Sequence
from contextlib import suppress
from typing import Any

LAST_WORD_S = 0.5


def follow(module: str, *arguments: str) -> Generator[dict[str, Any], None, None]:
    """Run ``python -m MODULE``; its events, one by one.

    The module goes by name: it may be of the engine's side, which this process never imports. When the caller
    leaves early, the program is interrupted and waited for; it cleans up behind itself.
    """
    command: Sequence[str] = [sys.executable, "-m", module, *arguments]
    # A session of its own: Ctrl-C in a terminal is ours to pass on, once.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, encoding="utf-8", start_new_session=True
    ) as process:
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                yield json.loads(line)
        finally:
            with suppress(subprocess.TimeoutExpired):
                process.wait(LAST_WORD_S)  # it may just have said its last word, and be about to end
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
