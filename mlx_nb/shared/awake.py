"""A clock for patience: it stands still while its process does.

A laptop that slept, or a process that was stopped, finds that minutes have passed, in which it asked nobody for a
sign of life. Whoever then counts those minutes as another's silence gives up on ranks that were frozen with it.
"""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

LONGEST_S = 2.0
"""The most that may lie between two looks at the clock; what is more was no waiting."""


@dataclass(slots=True)
class AwakeClock:
    """Seconds that its process was awake, for who looks at it more often than every `LONGEST_S`.

    Looked at less often it goes slow, which makes its owner more patient and never less. Safe to share between threads.

    Attributes:
        clock: What it reads, in seconds.
    """

    clock: Callable[[], float] = time.monotonic
    _seen_s: float | None = None
    _awake_s: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __call__(self) -> float:
        """Seconds awake since it was first looked at."""
        with self._lock:
            now_s = self.clock()
            if self._seen_s is not None:
                self._awake_s += min(now_s - self._seen_s, LONGEST_S)
            self._seen_s = now_s
            return self._awake_s
