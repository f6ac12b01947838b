"""Spans of several ranks on one axis: shares, bubbles, export."""

import json
from pathlib import Path

import pytest

from mlx_nb.shared.timeline import COMPUTE, DECODE, PREFILL, SEND, WAIT, RankTimes, Span, Timeline


def span(kind: str, begin_s: float, end_s: float, *, index: int = 0, phase: str = PREFILL) -> Span:
    return Span(index=index, phase=phase, start=0, stop=64, kind=kind, begin_s=begin_s, end_s=end_s)


# Two chunks on two equal ranks: the ideal pipeline of GPipe's formula, bubbles (r-1)/(c+r-1) = 1/3.
PIPELINE = Timeline(
    [
        RankTimes(spans=(span(COMPUTE, 10, 11), span(COMPUTE, 11, 12, index=1), span(WAIT, 12, 13, index=1))),
        # The second rank's clock is 5 s behind, and says so.
        RankTimes(spans=(span(WAIT, 5, 6), span(COMPUTE, 6, 7), span(COMPUTE, 7, 8, index=1)), epoch_s=5.0),
    ]
)


def test_clocks_are_brought_together() -> None:
    assert PIPELINE.length() == 3.0
    assert [(s.rank, s.begin_s) for s in PIPELINE.spans if s.kind == WAIT] == [(1, 0.0), (0, 2.0)]


def test_bubbles_of_an_ideal_pipeline_are_those_of_the_formula() -> None:
    assert PIPELINE.busy() == pytest.approx([2 / 3, 2 / 3])
    assert PIPELINE.bubbles() == pytest.approx(100 / 3)


def test_phases_are_counted_apart() -> None:
    timeline = Timeline(
        [RankTimes(spans=(span(COMPUTE, 0, 2), span(SEND, 2, 3), span(COMPUTE, 3, 4, index=1, phase=DECODE)))]
    )

    assert timeline.total(0, COMPUTE, PREFILL) == 2
    assert timeline.total(0, SEND) == 1
    assert timeline.busy(PREFILL) == pytest.approx([2 / 3])
    assert timeline.busy(DECODE) == [1.0]


def test_it_prints_as_bars() -> None:
    head, first, second, *_ = repr(PIPELINE).splitlines()

    assert head == "Timeline · 3.0 s · bubbles 33 %"
    bar = first.split("  ", 1)[1]
    assert len(bar) == 64
    assert bar.startswith("█" * 40)
    assert bar.endswith("·" * 20)
    assert second.split("  ", 1)[1].startswith("·" * 20)


def test_nothing_prints_as_nothing() -> None:
    assert repr(Timeline([])) == "Timeline of nothing: the run has not computed anything."
    assert Timeline([]).bubbles() == 0.0


def test_the_trace_is_what_chrome_reads(tmp_path: Path) -> None:
    trace = json.loads(PIPELINE.save(tmp_path / "run.json").read_text())

    events = [event for event in trace["traceEvents"] if event["ph"] == "X"]
    assert len(events) == 6
    assert {event["pid"] for event in events} == {0, 1}
    first = next(event for event in events if event["name"] == "prefill 0:64" and event["pid"] == 0)
    assert (first["ts"], first["dur"], first["args"]["tokens"]) == (0.0, 1e6, [0, 64])
