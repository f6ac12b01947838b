"""The pipes that are loaded on this rank, and the calls that the notebook may make on them.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine import events, prompt_cache
from mlx_nb.engine.capacity import capacity
from mlx_nb.engine.captures import Key
from mlx_nb.engine.drive import Driver
from mlx_nb.engine.inspect_frame import evaluate_in_frame, locals_of_frame
from mlx_nb.engine.interrupt import ON_THIS_RANK
from mlx_nb.engine.kept import KeptKV, keep
from mlx_nb.engine.memory import release
from mlx_nb.engine.mpi_link import MpiLink
from mlx_nb.engine.obtain import obtain_stage
from mlx_nb.engine.picture import picture_of
from mlx_nb.engine.report import position_of
from mlx_nb.engine.run import Run
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.stop import replace_first
from mlx_nb.engine.transfer import as_numpy
from mlx_nb.shared.breaks import Break
from mlx_nb.shared.capture import Index, SiteRecord
from mlx_nb.shared.errors import NoModelError, RunError
from mlx_nb.shared.kept import KeptState
from mlx_nb.shared.kv_report import KVReport
from mlx_nb.shared.loaded import LoadedShard
from mlx_nb.shared.outcome import Outcome, Past
from mlx_nb.shared.patches import PatchSpec
from mlx_nb.shared.position import Argument, Position, Summary
from mlx_nb.shared.request import Prompt, RunRequest
from mlx_nb.shared.strides import Stride, came_past
from mlx_nb.shared.tokens import PromptTokens

PIPES: dict[str, Stage] = {}
DRIVER = Driver(ON_THIS_RANK)
_link: MpiLink | None = None

PROGRESS_EVERY_S = 0.1


def link() -> MpiLink:
    """This rank's links; made by the first load, on all ranks together (duplicating is collective)."""
    global _link
    if _link is None:
        _link = MpiLink()
    return _link


def connect() -> None:
    """Make this rank's links. Called on all ranks together, before a model is loaded over some of them."""
    link()


def load(
    pipe_id: str,
    name: str,
    *,
    split: str | Sequence[int] = "even",
    dtype: str | None = None,
    ranks: int | None = None,
    adapter_path: str | None = None,
    trust_remote_code: bool = False,
) -> LoadedShard:
    """Load this rank's share of a model under a pipe's name; over the first `ranks` ranks, or over all."""
    last = 0.0

    def progress(stage: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last > PROGRESS_EVERY_S or done >= total:
            last = now
            events.publish({"kind": "progress", "stage": stage, "done": done, "total": total})

    transport = link()
    stage = obtain_stage(
        name,
        transport,
        progress,
        size=ranks,
        split=split,
        dtype=dtype,
        adapter_path=adapter_path,
        trust_remote_code=trust_remote_code,
        publish=events.publish,
    )
    PIPES[pipe_id] = stage
    _offer(stage)
    return stage.loaded()


def unload(pipe_id: str) -> int:
    """Forget a pipe; MLX's memory in use afterwards, in bytes."""
    stage = PIPES.pop(pipe_id, None)
    if stage is not None:
        stage.close()
        _offer(next(reversed(PIPES.values()), None))  # the one loaded last of those that stay
    del stage
    return release()


def loaded() -> dict[str, LoadedShard]:
    """The pipes on this rank, by their ids: what an attaching notebook asks."""
    return {pipe_id: stage.loaded() for pipe_id, stage in PIPES.items()}


def encode(pipe_id: str, prompt: Prompt, *, raw: bool = False) -> list[int]:
    """Token ids of a prompt."""
    return stage_of(pipe_id).prompter.encode(prompt, raw=raw)


def tokens(pipe_id: str, prompt: Prompt, *, raw: bool = False) -> PromptTokens:
    """The tokens of a prompt with their text."""
    return stage_of(pipe_id).prompter.tokens(prompt, raw=raw)


def pieces(pipe_id: str, ids: Sequence[int]) -> list[str]:
    """The text of single tokens."""
    return [stage_of(pipe_id).prompter.piece(token) for token in ids]


def generate(pipe_id: str, request: RunRequest) -> Outcome:
    """Take part in a free run from start to end. Called on all ranks together."""
    stage = stage_of(pipe_id)
    with DRIVER.interrupt.listening():
        return _to_end(stage, _opened(stage, request))


def _opened(stage: Stage, request: RunRequest) -> Run:
    """Take part in a run; a rank that cannot tells the others, which would wait for it."""
    try:
        return stage.open_run(request)
    except Exception as error:
        stage.transport.abort(request.run_id, f"Rank {stage.rank} cannot take part: {error}")
        raise


def open_run(pipe_id: str, request: RunRequest) -> None:
    """Take part in a run that will be stepped; nothing is computed yet. Called on all ranks."""
    stage_of(pipe_id).open_run(request)


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
    _offer(stage, run.kv)
    if outcome.kind == "finished":
        stage.close_run(run_id)
    return outcome


def finish(pipe_id: str, run_id: int) -> Outcome | None:
    """Let a stepped run go freely to its end; None where it has ended already. Called on all ranks."""
    stage = stage_of(pipe_id)
    if run_id not in stage.runs:
        return None
    with DRIVER.interrupt.listening():
        return _to_end(stage, stage.run(run_id))


def advance(pipe_id: str, run_id: int, seconds: float, paused_s: float = 0.0) -> Outcome:
    """Let an open run go on for a while, on this rank; others may ask this rank between two whiles.

    Args:
        pipe_id, run_id: Which.
        seconds: How long.
        paused_s: How long it stood still before, because the user wanted so.
    """
    stage = stage_of(pipe_id)
    run = stage.run(run_id)
    run.leave_out(paused_s)
    try:
        with DRIVER.interrupt.listening():
            outcome = DRIVER.run_for(run, seconds)
    except Exception:
        stage.close_run(run_id)
        raise
    if outcome.kind != "more":
        _offer(stage, run.kv)
        stage.close_run(run_id)
    return outcome


def _to_end(stage: Stage, run: Run) -> Outcome:
    try:
        outcome = DRIVER.run_to_end(run)
    except RunError:
        stage.lay_out(run.request.run_id)
        raise
    except BaseException:
        stage.close_run(run.request.run_id)
        raise
    _offer(stage, run.kv)
    stage.close_run(run.request.run_id)
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
    _offer(stage, run.kv)
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
) -> tuple[tuple[int, ...], str]:
    """Stand before a pass again, under another id; the tokens by then, and their text. Called on all ranks."""
    run = stage_of(pipe_id).rewind(run_id, new_id, index, place, keep=keep)
    return tuple(run.tokens[len(run.request.tokens) :]), run.text


def trim(
    pipe_id: str, run_id: int, new_id: int, index: int, fed: int, generated: Sequence[int], count: int
) -> tuple[tuple[int, ...], str]:
    """A run without the last tokens that it was fed, under another id; the tokens left, and their text."""
    run = stage_of(pipe_id).trim(run_id, new_id, index, fed, generated, count)
    return tuple(run.tokens[len(run.request.tokens) :]), run.text


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


def close_run(pipe_id: str, run_id: int) -> None:
    """Leave a run, wherever it stands."""
    if pipe_id in PIPES:
        PIPES[pipe_id].close_run(run_id)


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


def kv_report(pipe_id: str, run_id: int | None = None) -> KVReport:
    """What the KV caches of this rank's layers hold: of a run that stands, or at the end of the last one."""
    return stage_of(pipe_id).kv_report(run_id)


def kv_slice(pipe_id: str, place: int, name: str, index: tuple[Any, ...]) -> np.ndarray:
    """A copy of a slice of one buffer's valid part.

    Raises:
        RunError: There is no such buffer.
        TransferTooLargeError: It is over 64 MiB.
    """
    return stage_of(pipe_id).kv_slice(place, name, index)


def kv_trim(pipe_id: str, count: int) -> None:
    """Cut the last tokens off every entry of the last run, ghosts included."""
    for entry in stage_of(pipe_id).last_kv:
        entry.trim(count)


def kept_state(pipe_id: str, name: str) -> KeptState | None:
    """What this rank's KV caches of that name hold, or those of the last run (""); None if there are none."""
    kept = _kept(pipe_id, name)
    return kept.state() if kept is not None else None


def _kept(pipe_id: str, name: str) -> KeptKV | None:
    stage = stage_of(pipe_id)
    if name:
        return stage.kept.get(name)
    run = stage.last_run
    return keep(run) if run is not None and run.state != "failed" else None


def save_prompt_cache(pipe_id: str, run_id: int, name: str, count: int, path: str) -> int:
    """Write KV caches into one file on rank 0's host. Called on all ranks together; bytes written, on rank 0."""
    kept = _kept(pipe_id, name)
    if kept is None:
        raise RunError("There is no run whose KV caches could be saved.", "Generate first: pipe.generate(…)")
    return prompt_cache.save(stage_of(pipe_id), kept, count, Path(path), run_id)


def load_prompt_cache(pipe_id: str, run_id: int, name: str, path: str) -> None:
    """Read a file on rank 0's host into KV caches of that name. Called on all ranks together."""
    stage = stage_of(pipe_id)
    stage.kept[name] = prompt_cache.load(stage, Path(path), run_id)


def drop_kept(pipe_id: str, name: str) -> None:
    """Forget KV caches that were kept."""
    stage_of(pipe_id).kept.pop(name, None)


def captures(pipe_id: str, trace_id: str) -> list[SiteRecord]:
    """What a trace has recorded on this rank."""
    return stage_of(pipe_id).captures.records(trace_id)


def capture_slices(pipe_id: str, wanted: Sequence[tuple[Key, Sequence[int], int, Index]]) -> list[np.ndarray]:
    """Slices of recorded values; bfloat16 as bits. Raises as `CaptureStore.slice`."""
    store = stage_of(pipe_id).captures
    return [store.slice(*one) for one in wanted]


def capture_summaries(pipe_id: str, wanted: Sequence[tuple[Key, Sequence[int], int]]) -> list[Summary]:
    """Recorded values in numbers. Raises as `CaptureStore.summary`."""
    store = stage_of(pipe_id).captures
    return [store.summary(*one) for one in wanted]


def drop_trace(pipe_id: str, trace_id: str) -> None:
    """Forget what a trace has recorded."""
    stage_of(pipe_id).captures.forget(trace_id)


def stage_of(pipe_id: str) -> Stage:
    """A loaded pipe's share.

    Raises:
        NoModelError: It has been unloaded, or the cluster was restarted since.
    """
    if pipe_id not in PIPES:
        raise NoModelError("This pipe's model is no longer loaded on the ranks.", "Type: %mlx_load smollm2")
    return PIPES[pipe_id]


def _offer(stage: Stage | None, kv: list[Any] | None = None) -> None:
    """Set `stage`, `model`, `kv_cache` and `comm` for ``%%px``, which runs in the kernel's own namespace."""
    kernel = events.running_kernel()
    if kernel is None:
        return
    from mpi4py import MPI

    names: dict[str, Any] = {"stage": stage, "model": stage.model if stage else None, "comm": MPI.COMM_WORLD}
    names["kv_cache"] = kv if kv is not None else []
    kernel.shell.user_ns.update(names)


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        load,
        unload,
        loaded,
        encode,
        tokens,
        pieces,
        generate,
        open_run,
        advance,
        step,
        finish,
        close_run,
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
        evaluate,
        frame_locals,
        preview,
        capacity,
        connect,
        kv_report,
        kv_slice,
        kv_trim,
        captures,
        capture_slices,
        capture_summaries,
        drop_trace,
        kept_state,
        drop_kept,
        save_prompt_cache,
        load_prompt_cache,
    )
}
