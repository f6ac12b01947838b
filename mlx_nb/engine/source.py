"""The model's own code where a pass stands: read from the paused frames, never guessed."""

import inspect
import linecache
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from mlx_nb.shared.position import Source

# Frames of the package itself (hooks, stubs, runs) stand between the model's frames and are not shown.
_OWN = str(Path(__file__).resolve().parent)
AROUND = 3


def is_own_frame(frame: FrameType) -> bool:
    """Whether a frame is of this package's engine: a hook, a stub, a run."""
    return frame.f_code.co_filename.startswith(_OWN)


def calling_frame(start: FrameType | None = None) -> FrameType | None:
    """The nearest frame outside this package's engine: the model's code that makes the call."""
    frame: FrameType | None = start or sys._getframe(1)
    while frame is not None and is_own_frame(frame):
        frame = frame.f_back
    return frame


def source_of_frame(frame: FrameType) -> Source | None:
    """The lines around the call that a frame stands at."""
    code = frame.f_code
    line, last = frame.f_lineno, frame.f_lineno
    positions = list(code.co_positions())
    if 0 <= frame.f_lasti // 2 < len(positions):
        start, end, _, _ = positions[frame.f_lasti // 2]
        line, last = start or line, end or last
    return _around(code.co_filename, code.co_qualname, line, last, frame.f_globals)


def source_of_call(cls: type) -> Source | None:
    """The first line of a class's ``__call__``, for a module that no model code calls (the model itself)."""
    # A hooked class's call is ours; the model's is that of the class below it.
    own = next(c for c in cls.__mro__ if "__call__" in vars(c) and not _is_ours(c.__call__))
    call = own.__call__
    try:
        _, line = inspect.getsourcelines(call)
    except (OSError, TypeError):
        return None
    return _around(call.__code__.co_filename, call.__qualname__, line, line, call.__globals__)


def _is_ours(call: Any) -> bool:
    return str(getattr(call, "__module__", "")).startswith("mlx_nb.engine")


def _around(path: str, function: str, line: int, last: int, scope: dict[str, Any]) -> Source | None:
    lines = linecache.getlines(path, scope)
    if not lines:
        return None
    first = max(1, line - AROUND)
    stop = min(len(lines), max(last, line) + AROUND)
    # The function's name without the locals it was made in.
    name = function.split("<locals>.")[-1]
    shown = tuple(text.rstrip("\n") for text in lines[first - 1 : stop])
    return Source(path=path, function=name, line=line, last_line=last, first=first, lines=shown)
