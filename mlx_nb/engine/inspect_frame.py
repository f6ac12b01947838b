"""Questions to the model's own frame where a pass stands still: values come back as summaries."""

from types import FrameType
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nb.engine.source import calling_frame
from mlx_nb.engine.summary import bound_arguments, describe_values
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.position import Argument

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run


def evaluate_in_frame(run: "Run", expression: str) -> Argument:
    """Evaluate an expression as the model's code would at the line where it stands.

    Raises:
        RunError: There is no frame here, or the expression raises.
    """
    scope, names = _scope(run)
    try:
        value = eval(expression, scope, names)
    except Exception as error:  # the user's expression may raise anything
        raise RunError(
            f"Rank {run.stage.rank}: {expression} raises {type(error).__name__}: {error}.",
            f"Names here: {', '.join(list(names)[:12])}.",
        ) from error
    return describe_values([(expression, value)], run.stage.sizes, _length(run))[0]


def locals_of_frame(run: "Run") -> tuple[Argument, ...]:
    """The local names of the frame, arrays as summaries."""
    named = [(name, value) for name, value in _frame(run).f_locals.items() if name != "self"]
    return describe_values(named, run.stage.sizes, _length(run))


def _scope(run: "Run") -> tuple[dict[str, Any], dict[str, Any]]:
    """The model's frame; on a rank whose part of the pass is over, or has not begun, the run itself."""
    if run.stop is None and _waiting_frame(run) is None:
        return {"mx": mx}, {"model": run.stage.model, "cache": run.kv, "tokens": run.tokens}
    frame = _frame(run)
    return frame.f_globals, _names(run, frame)


def _waiting_frame(run: "Run") -> FrameType | None:
    """Where the model's code waits for another rank."""
    waits = run.greenlet.gr_frame
    return calling_frame(waits) if waits is not None else None


def _names(run: "Run", frame: FrameType) -> dict[str, Any]:
    """The frame's own names, and what the stop shows (its arguments, or ``out``) where they leave room."""
    stop = run.stop
    shown: dict[str, Any] = {}
    if stop is not None and stop.call is not None:
        shown = dict(bound_arguments(stop.call, stop.module, stop.args, stop.kwargs))
    elif stop is not None and stop.attention is not None:
        shown = {"out": stop.value, stop.event.kind: stop.value, **dict(stop.attention.shown())}
    elif stop is not None:
        shown = {"out": stop.value}
    return {**shown, **frame.f_locals}


def _frame(run: "Run") -> FrameType:
    frame = run.stop.frame if run.stop else None
    if run.stop is None:
        frame = _waiting_frame(run)
    if frame is None:
        raise RunError(
            "The run stands between modules, where no code of the model waits.", "Type: dbg.into()"
        )
    return frame


def _length(run: "Run") -> int:
    return run.current.stop - run.current.start if run.current else 0
