"""Values of one run that the modules of another are given, so that errors do not add up."""

import secrets
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np

from mlx_nb.client.capture import Capture
from mlx_nb.client.trace import Trace
from mlx_nb.shared.ids import Rank

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

AT_ONCE_BYTES = 32 * 1024 * 1024

Spans = list[tuple[int, int]]
Given = tuple[str, int, np.ndarray]
"""A site, the first token of a pass, and the value there."""


@contextmanager
def given(pipe: "Pipe", theirs: Trace, sites: Collection[str], spans: Spans) -> Iterator[str]:
    """Lay values on the ranks under a name, which `Pipe.trace` takes.

    Args:
        pipe: Whose modules get them.
        theirs: Where the values are from.
        sites: Which of its sites.
        spans: The passes of the pipe's run, as half-open spans of tokens.
    """
    name = secrets.token_hex(4)
    remote = pipe.cluster.remote
    waiting: dict[Rank, list[Given]] = defaultdict(list)
    try:
        for capture in theirs.joinable():
            record = capture.records[0]
            if record.site not in sites or record.call or not record.dtype.startswith(("float", "bfloat")):
                continue
            for rank in _ranks_of(pipe, record.layer):
                waiting[rank] += _by_pass(capture, spans)
                if sum(value.nbytes for *_, value in waiting[rank]) > AT_ONCE_BYTES:
                    remote.call(rank, "give_values", pipe.pipe_id, name, waiting.pop(rank))
        for rank, values in waiting.items():
            remote.call(rank, "give_values", pipe.pipe_id, name, values)
        yield name
    finally:
        if not remote.ended:
            pipe.call_all("drop_values", name)


def _ranks_of(pipe: "Pipe", layer: int) -> list[Rank]:
    """Who has a layer; what lies beside the layers is on the first rank or on the last."""
    found = [Rank(shard.rank) for shard in pipe.shards if shard.layers[0] <= layer < shard.layers[1]]
    return found or [Rank(rank) for rank in sorted({0, pipe.num_ranks - 1})]


def _by_pass(capture: Capture, spans: Spans) -> list[Given]:
    """A capture's values for the passes of another run; none where its tokens cannot be told apart."""
    first, last = capture.tokens
    if capture.shape[capture.axis] != last - first:
        return []
    before = [slice(None)] * capture.axis
    return [
        (capture.records[0].site, start, capture[(*before, slice(start - first, stop - first))])
        for start, stop in spans
        if first <= start and stop <= last
    ]
