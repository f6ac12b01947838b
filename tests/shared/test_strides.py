"""Where each stride stops, on a pass that is written down."""

import pytest

from mlx_nb.shared.strides import NAMES, Event, Stride, advance


def two_ranks(start: int, stop: int) -> list[Event]:
    """One pass of a model with two layers, one on each rank."""

    def event(kind: str, module: str, depth: int, rank: int, **more: object) -> Event:
        return Event(kind=kind, module=module, depth=depth, rank=rank, start=start, stop=stop, **more)  # type: ignore[arg-type]

    def whole(index: int, rank: int) -> list[Event]:
        path = f"layers.{index}"
        inside = [
            event(kind, f"{path}.rope", 2, rank, call=call) for call in (1, 2) for kind in ("input", "output")
        ]
        return [
            event("input", path, 1, rank, layer=index),
            *inside,
            event("output", path, 1, rank, layer=index),
        ]

    return [
        event("input", "", 0, 0),
        event("input", "embed", 1, 0, begins_pass=True),
        event("output", "embed", 1, 0),
        *whole(0, 0),
        event("send", "layers.0", 1, 0),
        event("recv", "layers.0", 1, 1),
        *whole(1, 1),
        event("output", "", 0, 1),
    ]


EVENTS = two_ranks(0, 5) + two_ranks(5, 6) + two_ranks(6, 7)
BEGIN = 1


def stop(name: str, at: int = BEGIN, **more: object) -> int | None:
    """The index of the event where a stride from event `at` stops."""
    here = EVENTS[at]
    stride = Stride(
        name=name,
        kind=here.kind,
        module=here.module,
        call=here.call,
        depth=here.depth,
        **more,  # type: ignore[arg-type]
    )
    for index in range(at + 1, len(EVENTS)):
        halt, stride = advance(stride, EVENTS[index])
        if halt:
            return index
    return None


def shown(index: int | None) -> str:
    if index is None:
        return "end"
    event = EVENTS[index]
    return f"{event.start} r{event.rank} {event.site}" + (f"#{event.call}" if "rope" in event.module else "")


def find(site: str, call: int = 1, start: int = 0) -> int:
    return next(i for i, e in enumerate(EVENTS) if (e.site, e.call, e.start) == (site, call, start))


@pytest.mark.parametrize(
    ("stride", "begin", "wanted"),
    [
        ("into", ("embed.input",), "0 r0 embed.output"),
        ("into", ("layers.0.output",), "0 r0 send"),
        ("into", ("send",), "0 r1 recv"),
        ("over", ("embed.input",), "0 r0 embed.output"),
        ("over", ("embed.output",), "0 r0 layers.0.input"),
        ("over", ("layers.0.input",), "0 r0 layers.0.output"),
        ("over", ("layers.0.output",), "0 r0 send"),
        ("over", ("send",), "0 r1 recv"),
        ("over", ("recv",), "0 r1 layers.1.input"),
        ("over", ("layers.0.rope.input", 1), "0 r0 layers.0.rope.output#1"),
        ("over", ("layers.0.rope.output", 1), "0 r0 layers.0.rope.input#2"),
        ("over", ("layers.0.rope.output", 2), "0 r0 layers.0.output"),
        ("over", ("logits",), "5 r0 input"),
        ("out", ("layers.0.rope.input", 2), "0 r0 layers.0.output"),
        ("out", ("layers.0.output",), "0 r1 logits"),
        ("out", ("logits",), "5 r0 embed.input"),
        ("layer", ("embed.input",), "0 r0 layers.0.output"),
        ("layer", ("layers.0.output",), "0 r1 layers.1.output"),
        ("layer", ("layers.1.output",), "5 r0 layers.0.output"),
        ("rank", ("embed.input",), "0 r1 recv"),
        ("rank", ("recv",), "5 r1 recv"),
        ("token", ("layers.0.input",), "5 r0 embed.input"),
        ("run", ("embed.input",), "end"),
        ("cont", ("embed.input",), "end"),
    ],
)
def test_a_stride_stops(stride: str, begin: tuple[str, int] | tuple[str], wanted: str) -> None:
    assert shown(stop(stride, find(*begin))) == wanted


@pytest.mark.parametrize(
    ("count", "wanted"), [(1, "0 r0 layers.0.output"), (2, "0 r1 layers.1.output"), (3, "5 r0 layers.0.output"), (9, "end")]
)  # fmt: skip
def test_a_count_passes_over_stops(count: int, wanted: str) -> None:
    assert shown(stop("layer", count=count)) == wanted


def test_what_is_left_of_a_stride_travels() -> None:
    halt, left = advance(Stride(name="layer", count=3), EVENTS[find("layers.0.output")])

    assert not halt
    assert left.count == 2
    assert advance(left, EVENTS[0]) == (False, left)


@pytest.mark.parametrize(
    ("target", "wanted"),
    [
        ({"site": "layers.1.rope.output"}, "0 r1 layers.1.rope.output#1"),
        ({"site": "layers.*.*.output"}, "0 r0 layers.0.rope.output#1"),
        ({"site": "recv"}, "0 r1 recv"),
        ({"site": "logits"}, "0 r1 logits"),
        ({"layer": 1}, "0 r1 layers.1.input"),
        ({"rank": 1}, "0 r1 recv"),
        ({"token": 6}, "6 r0 input"),
        ({"token": 3, "rank": 1}, "0 r1 recv"),
        ({"site": "recv", "token": 6}, "6 r1 recv"),
        ({"layer": 7}, "end"),
    ],
)
def test_until_stops_where_all_its_wishes_meet(target: dict[str, object], wanted: str) -> None:
    assert shown(stop("until", **target)) == wanted


def test_on_one_rank_a_rank_stride_goes_to_the_next_pass() -> None:
    alone = [event for event in EVENTS if event.kind not in ("send", "recv")]
    stride = Stride(name="rank", num_ranks=1)

    assert [event.start for event in alone if advance(stride, event)[0]] == [0, 5, 6]


def test_every_name_is_known() -> None:
    for name in NAMES:
        advance(Stride(name=name), EVENTS[0])
    assert advance(Stride(name="no such"), EVENTS[0]) == (False, Stride(name="no such"))
