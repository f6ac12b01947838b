"""What every rank did when, measured on real ranks; order is asserted, never speed."""

from collections.abc import Iterator
from itertools import pairwise

import pytest

from mlx_nb.client.live_view import live_views
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.timeline import COMPUTE, DECODE, PREFILL, SEND, WAIT, Span

CHUNKS = 6


def spans(found: list[Span], rank: int, kind: str, phase: str) -> list[Span]:
    return [span for span in found if (span.rank, span.kind, span.phase) == (rank, kind, phase)]


SLOW = """
import time
mlp = model.model.layers[20].mlp
plain = type(mlp)

class Slow(plain):
    def __call__(self, x):
        time.sleep(0.2)
        return super().__call__(x)

mlp.__class__ = Slow
"""


@pytest.fixture
def slow_rank_1(pipe2: Pipe) -> Iterator[Pipe]:
    """Rank 1 takes a fifth of a second longer for every pass, whatever else the machine does."""
    pipe2.cluster[1].execute(SLOW, block=True)
    yield pipe2
    pipe2.cluster[1].execute("mlp.__class__ = plain", block=True)


def test_chunks_are_in_flight_on_both_ranks_at_once(slow_rank_1: Pipe) -> None:
    ids = [(i * 7919) % 40000 + 100 for i in range(32 * CHUNKS)]

    timeline = slow_rank_1.generate(ids, max_tokens=3, prefill_step_size=32).timeline

    assert timeline is not None
    first = {s.index: s for s in spans(timeline.spans, 0, SEND, PREFILL)}
    begun = {}
    for span in spans(timeline.spans, 1, COMPUTE, PREFILL):
        begun[span.index] = span  # the last stretch of a chunk is the work; before it, it builds the graph
    assert sorted(first) == sorted(begun) == list(range(CHUNKS))
    for index in range(CHUNKS):
        assert begun[index].end_s > first[index].begin_s  # nobody finishes what has not been sent
    # A rank 0 that waited for rank 1 would never send a chunk before rank 1 is through with the one before.
    assert all(first[index + 1].begin_s < begun[index].end_s for index in range(1, CHUNKS - 1))


def test_spans_of_a_rank_follow_each_other_and_fill_the_run(pipe2: Pipe) -> None:
    generation = pipe2.generate("What is the capital of France?", max_tokens=6)
    timeline = generation.timeline
    assert timeline is not None

    for rank in range(2):
        mine = [span for span in timeline.spans if span.rank == rank]
        assert all(abs(a.end_s - b.begin_s) < 1e-5 for a, b in pairwise(mine))
        assert {span.index for span in mine} == set(range(len(generation.token_ids)))
    assert len(spans(timeline.spans, 0, SEND, DECODE)) == len(generation.token_ids) - 1
    assert spans(timeline.spans, 0, WAIT, DECODE)
    assert not spans(timeline.spans, 1, SEND, DECODE)  # the token is sent, but that is no hop


def test_a_stepped_run_has_no_timeline(pipe2: Pipe) -> None:
    with pipe2.debug("Why?", max_tokens=2) as dbg:
        dbg.run()
        assert dbg.done
        assert dbg.gen.timeline is None


def test_its_view_shows_the_last_run_and_becomes_a_picture(pipe2: Pipe) -> None:
    generation = pipe2.generate("What is the capital of France?", max_tokens=6)
    before = len(live_views)

    pipe2.show("timeline")
    pipe2.show("timeline", generation)

    assert len(live_views) == before + 2
    first, second = (one.view for one in live_views[before:])
    assert first.state["rows"] == second.state["rows"]
    assert len(first.spans) == 30 * len(generation.timeline.spans)
    assert [lane["holds"] for lane in first.state["lanes"]] == [
        "embed, layers 0–14",
        "layers 15–29, norm, head",
    ]
    assert "Paris" in first.html()
    assert first.text() == repr(generation.timeline)
    live_views[-1].freeze()
    live_views[-1].freeze()
    assert len(live_views) == before
    with pipe2.debug("Why?", max_tokens=2), pytest.raises(OptionError, match="has no timeline"):
        pipe2.show("timeline")
    with pytest.raises(OptionError, match="does not know zoom"):
        pipe2.show("timeline", zoom=3)
