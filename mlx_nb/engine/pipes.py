"""The pipes that are loaded on this rank, and the calls that the notebook may make on them.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

import time
from collections.abc import Callable, Sequence
from typing import Any

from mlx_nb.engine import events
from mlx_nb.engine.capacity import capacity
from mlx_nb.engine.drive import Driver
from mlx_nb.engine.interrupt import ON_THIS_RANK
from mlx_nb.engine.memory import release
from mlx_nb.engine.mpi_link import MpiLink
from mlx_nb.engine.obtain import obtain_stage
from mlx_nb.engine.run import Run
from mlx_nb.engine.stage import Stage
from mlx_nb.shared.code_file import CodeFile
from mlx_nb.shared.errors import NoModelError, RunError
from mlx_nb.shared.loaded import LoadedShard
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.request import Prompt, RunRequest
from mlx_nb.shared.tokens import PromptTokens

PIPES: dict[str, Stage] = {}
_PREPARED: dict[str, Stage] = {}
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
    code: CodeFile | None = None,
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
        code=code,
        publish=events.publish,
    )
    PIPES[pipe_id] = stage
    offer(stage)
    return stage.loaded()


def prepare_reload(pipe_id: str, code: CodeFile) -> LoadedShard:
    """Build a pipe's share with other code, beside the one that runs; only new weights are read. On all ranks."""
    old = stage_of(pipe_id)
    drop_reload(pipe_id)
    stage = Stage(
        old.name,
        old.folder,
        old.transport,
        size=old.size,
        split=[len(shard.layers) for shard in old.shards],
        dtype=old.dtype_wish,
        adapter_path=str(old.adapter.folder) if old.adapter else None,
        trust_remote_code=True,
        publish=events.publish,
        code=code,
        known=old,
    )
    _PREPARED[pipe_id] = stage
    return stage.loaded()


def commit_reload(pipe_id: str) -> None:
    """Let the share that was prepared take its pipe's place; what traces have recorded stays."""
    old, new = stage_of(pipe_id), _PREPARED.pop(pipe_id)
    old.close()
    new.captures = old.captures
    PIPES[pipe_id] = new
    offer(new)
    del old
    release()


def drop_reload(pipe_id: str) -> None:
    """Forget what was prepared: another rank could not."""
    if _PREPARED.pop(pipe_id, None) is not None:
        release()


def unload(pipe_id: str) -> int:
    """Forget a pipe; MLX's memory in use afterwards, in bytes."""
    stage = PIPES.pop(pipe_id, None)
    _PREPARED.pop(pipe_id, None)
    if stage is not None:
        stage.close()
        offer(next(reversed(PIPES.values()), None))  # the one loaded last of those that stay
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


def finish(pipe_id: str, run_id: int, paused_s: float = 0.0) -> Outcome | None:
    """Let a stepped run, or one that was paused, go freely to its end; None where it has ended already.

    Called on all ranks. `paused_s` is how long it stood still, because the user wanted so.
    """
    stage = stage_of(pipe_id)
    if run_id not in stage.runs:
        return None
    stage.run(run_id).leave_out(paused_s)
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
        offer(stage, run.kv)
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
    offer(stage, run.kv)
    if outcome.kind != "more":  # paused: it goes on with `finish`
        stage.close_run(run.request.run_id)
    return outcome


def close_run(pipe_id: str, run_id: int) -> None:
    """Leave a run, wherever it stands."""
    if pipe_id in PIPES:
        PIPES[pipe_id].close_run(run_id)


def stage_of(pipe_id: str) -> Stage:
    """A loaded pipe's share.

    Raises:
        NoModelError: It has been unloaded, or the cluster was restarted since.
    """
    if pipe_id not in PIPES:
        raise NoModelError("This pipe's model is no longer loaded on the ranks.", "Type: %mlx_load smollm2")
    return PIPES[pipe_id]


def offer(stage: Stage | None, kv: list[Any] | None = None) -> None:
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
        prepare_reload,
        commit_reload,
        drop_reload,
        unload,
        loaded,
        encode,
        tokens,
        pieces,
        generate,
        open_run,
        advance,
        finish,
        close_run,
        capacity,
        connect,
    )
}
