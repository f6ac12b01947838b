"""The calls on what traces have recorded.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.captures import Key
from mlx_nb.engine.pipes import PIPES, stage_of
from mlx_nb.engine.readout import read_out
from mlx_nb.shared.capture import Index, SiteRecord
from mlx_nb.shared.position import Summary
from mlx_nb.shared.readout import Readout


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


def capture_token_statistics(
    pipe_id: str, wanted: Sequence[tuple[Key, Sequence[int], int]]
) -> list[np.ndarray]:
    """Each token of recorded values in numbers. Raises as `CaptureStore.token_statistics`."""
    store = stage_of(pipe_id).captures
    return [store.token_statistics(*one) for one in wanted]


def drop_trace(pipe_id: str, trace_id: str) -> None:
    """Forget what a trace has recorded."""
    stage_of(pipe_id).captures.forget(trace_id)


def give_values(pipe_id: str, name: str, values: Sequence[tuple[str, int, np.ndarray]]) -> None:
    """Lay values under a name, for a traced run that is to go on with them: site, first token, array."""
    held = stage_of(pipe_id).captures.given.setdefault(name, {})
    held.update({(site, start): mx.array(value) for site, start, value in values})


def drop_values(pipe_id: str, name: str) -> None:
    """Forget the values under a name."""
    if pipe_id in PIPES:
        PIPES[pipe_id].captures.given.pop(name, None)


def read_states(pipe_id: str, hidden: Sequence[np.ndarray], top: int) -> list[Readout]:
    """What the norm and head make of hidden states; on the last rank alone. As `readout.read_out`."""
    return read_out(stage_of(pipe_id), hidden, top)


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function
    for function in (
        captures,
        capture_slices,
        capture_summaries,
        capture_token_statistics,
        drop_trace,
        give_values,
        drop_values,
        read_states,
    )
}
