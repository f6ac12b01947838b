"""The calls on KV caches: what they hold, and those that are kept for later runs or in files.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine import prompt_cache
from mlx_nb.engine.kept import KeptKV, keep
from mlx_nb.engine.pipes import stage_of
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.kept import KeptState
from mlx_nb.shared.kv_report import KVReport


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


def kv_norms(pipe_id: str, place: int, name: str) -> np.ndarray:
    """The length of each head's vector at each valid position of the first batch row, in the order of memory.

    Shapes:
        returned: ``[heads, positions]`` float32.

    Raises:
        RunError: There is no such buffer, or it has no heads and positions.
    """
    array = stage_of(pipe_id).kv_array(place, name)
    if array.ndim != 4:
        raise RunError(f"{name} has no heads and positions.", "Type: pipe.kv_cache()")
    return np.array(mx.linalg.norm(array[0].astype(mx.float32), axis=-1))


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


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        kv_report,
        kv_slice,
        kv_norms,
        kv_trim,
        kept_state,
        save_prompt_cache,
        load_prompt_cache,
        drop_kept,
    )
}
