"""The calls on a run that is stepped: move it, look at where it stands, go back, change what it does.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.inspect_frame import evaluate_in_frame, locals_of_frame
from mlx_nb.engine.picture import picture_of
from mlx_nb.engine.pipes import DRIVER, PIPES, offer, stage_of
from mlx_nb.engine.report import position_of
from mlx_nb.engine.run import Run
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.stop import replace_first
from mlx_nb.engine.transfer import as_numpy
from mlx_nb.shared.breaks import Break
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.outcome import Outcome, Past
from mlx_nb.shared.patches import PatchSpec
from mlx_nb.shared.position import Argument, Position
from mlx_nb.shared.request import RunRequest
from mlx_nb.shared.strides import Stride, came_past


def step(
    pipe_id: str, run_id: int, stride: Stride, breaks: Sequence[Break] = (), *, preview: bool = False
) -> Outcome:
    """Move a stepped run on, on this rank only."""
    with DRIVER.interrupt.listening():
        return _step(stage_of(pipe_id), run_id, stride, breaks, preview=preview)


def _step(stage: Stage, run_id: int, stride: Stride, breaks: Sequence[Break], *, preview: bool) -> Outcome:
    run = stage.run(run_id)
    try:
        outcome = DRIVER.step(run, stride, breaks, preview=preview)
    except RunError:
        stage.lay_out(run_id)
        raise
    except Exception:
        stage.close_run(run_id)
        raise
    offer(stage, run.kv)
    if outcome.kind == "finished":
        stage.close_run(run_id)
    return outcome


def lay_out(pipe_id: str, run_id: int) -> None:
    """Keep a run as it lies, since it has failed on another rank. Called on all ranks."""
    stage_of(pipe_id).lay_out(run_id)


def post_mortem(pipe_id: str) -> tuple[RunRequest, Outcome] | None:
    """The run that failed last and still lies here: what was asked for, and where this rank stands in it."""
    stage = stage_of(pipe_id)
    run = stage.laid_out
    if run is None:
        return None
    offer(stage, run.kv)
    return run.request, DRIVER.account(run)


def past(pipe_id: str, run_id: int) -> Past:
    """Which passes of a run this rank could begin again, and what remembering them costs."""
    stage = stage_of(pipe_id)
    run = stage.runs.get(run_id, stage.last_run)
    if run is None or run.request.run_id != run_id:
        return Past()
    history = run.history
    return Past(
        known=True,
        passes=tuple(sorted(history.snapshots)),
        size_bytes=history.size_bytes,
        budget_bytes=history.budget_bytes,
    )


def ticks(pipe_id: str, run_id: int, index: int, stride: Stride) -> list[tuple[int, int]] | None:
    """The stops of a pass on this rank at which a stride backwards would end, each with the pass's first token.

    None if the pass was not kept.
    """
    stage = stage_of(pipe_id)
    run = stage.runs.get(run_id, stage.last_run)
    if run is None or run.request.run_id != run_id or index not in run.log:
        return None
    return [(event.tick, event.start) for event in run.log[index] if came_past(stride, event)]


def rewind(
    pipe_id: str, run_id: int, new_id: int, index: int, place: tuple[int, int, int], keep: bool = False
) -> Outcome:
    """Stand before a pass again, under another id; what is there by then. Called on all ranks."""
    return _so_far(stage_of(pipe_id).rewind(run_id, new_id, index, place, keep=keep))


def trim(
    pipe_id: str, run_id: int, new_id: int, index: int, fed: int, generated: Sequence[int], count: int
) -> Outcome:
    """A run without the last tokens that it was fed, under another id; what is left."""
    return _so_far(stage_of(pipe_id).trim(run_id, new_id, index, fed, generated, count))


def _so_far(run: Run) -> Outcome:
    """Tokens, text and KV caches of a run that stands between two passes."""
    tokens = tuple(run.tokens[len(run.request.tokens) :])
    return Outcome(kind="more", kv=run.kv_offsets(), token_ids=tokens, text=run.text)


def set_value(pipe_id: str, run_id: int, array: np.ndarray) -> Position:
    """Let a run that stands go on with another first array; where it stands, anew.

    Raises:
        RunError: It does not stand at an array.
    """
    run = stage_of(pipe_id).run(run_id)
    before = run.value()
    if before is None or run.stop is None:
        raise RunError("There is no array where the run stands.", "Type: dbg.args")
    changed = mx.array(array).astype(before.dtype)
    replace_first(run.stop, changed)
    run.edits[run.place_of(run.stop.event)] = changed
    return position_of(run, run.stop)


def force_token(pipe_id: str, run_id: int, place: tuple[int, int, int], token: int | None) -> None:
    """Take a token in place of the next sampled one, as of a place in the run; None samples it. For the last rank."""
    run = stage_of(pipe_id).run(run_id)
    run.forced = {at: one for at, one in run.forced.items() if at[0] < place[0]}
    if token is not None:
        run.forced[place] = token


def forced_token(pipe_id: str, run_id: int, place: tuple[int, int, int]) -> int | None:
    """What `force_token` has set for the pass of a place."""
    run = stage_of(pipe_id).run(run_id)
    return next((token for at, token in run.forced.items() if at[0] == place[0]), None)


def patch(pipe_id: str, spec: PatchSpec) -> None:
    """Change values in every run of this pipe. Called on all ranks."""
    stage_of(pipe_id).patches.add(spec)


def unpatch(pipe_id: str, number: int) -> None:
    """End a patch. Called on all ranks."""
    if pipe_id in PIPES:
        PIPES[pipe_id].patches.remove(number)


def value(pipe_id: str, run_id: int, index: tuple[Any, ...] = ()) -> np.ndarray:
    """A copy of the first array where a run stands, or of a slice of it.

    Raises:
        RunError: The run does not stand at an array.
        TransferTooLargeError: The slice is over 64 MiB.
    """
    run = stage_of(pipe_id).run(run_id)
    array = run.value()
    if array is None:
        raise RunError("There is no array where the run stands.", "Type: dbg.args")
    return as_numpy(array[index] if index else array)


def preview(pipe_id: str, run_id: int) -> bytes:
    """A small picture of the first array where a run stands, packed as `shared/preview.py` says."""
    array = stage_of(pipe_id).run(run_id).value()
    return picture_of(array) if array is not None else b""


def evaluate(pipe_id: str, run_id: int, expression: str) -> Argument:
    """Evaluate an expression in the model's own frame, where a run stands.

    Raises:
        RunError: There is no frame here, or the expression raises.
    """
    run = stage_of(pipe_id).run(run_id)
    return evaluate_in_frame(run, expression)


def frame_locals(pipe_id: str, run_id: int) -> tuple[Argument, ...]:
    """The local names of the model's own frame, where a run stands."""
    return locals_of_frame(stage_of(pipe_id).run(run_id))


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        step,
        lay_out,
        post_mortem,
        past,
        ticks,
        rewind,
        trim,
        set_value,
        force_token,
        forced_token,
        patch,
        unpatch,
        value,
        preview,
        evaluate,
        frame_locals,
    )
}
