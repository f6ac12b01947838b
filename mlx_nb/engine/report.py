"""A stop becomes a `Position`: numbers and text that travel, while the arrays stay here."""

from typing import TYPE_CHECKING

from mlx_nb.engine.source import source_of_call, source_of_frame
from mlx_nb.engine.stop import Stop, size_of
from mlx_nb.engine.summary import describe_attention, describe_call, describe_tree, describe_values
from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.position import RECV, SEND, Argument, Frame, Hop, Position

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run


def position_of(run: "Run", stop: Stop) -> Position:
    """Where a run stands, in numbers. Evaluates the values at the stop, and only those."""
    now, stage, event = run.current, run.stage, stop.event
    assert now is not None  # a stop is always inside a pass
    repeated = event.module in stage.repeated
    between = event.kind in (SEND, RECV)
    site = event.site
    if repeated and not between:
        site = f"{event.module}#{event.call}.{event.kind}"
    stack = stop.stack or ((Frame(path="", class_name=type(stage.model).__name__),) if between else ())
    source = None
    if stop.frame is not None:
        source = source_of_frame(stop.frame)
    elif not between and stop.module is not None:
        source = source_of_call(type(stop.module))
    return Position(
        phase=now.phase,
        index=now.index,
        start=now.start,
        stop=now.stop,
        rank=Rank(stage.rank),
        site=site,
        kind=event.kind,
        module="" if between else event.module,
        layer=LayerIndex(stage.layer_inside(event.module)),
        depth=event.depth,
        call=event.call,
        repeated=repeated,
        args=_arguments(run, stop),
        stack=stack,
        source=source,
        kv=run.kv_offsets(),
        hop=_hop(run, stop),
        about=" ".join(part for part in (stop.about, _told(stop)) if part),
        tick=event.tick,
    )


def _arguments(run: "Run", stop: Stop) -> tuple[Argument, ...]:
    now, sizes, event = run.current, run.stage.sizes, stop.event
    assert now is not None
    length = now.stop - now.start
    if stop.call is not None:
        given = describe_call(stop.call, stop.module, stop.args, stop.kwargs, sizes, length)
        return given + describe_values(list(stop.extra), sizes, length)
    if stop.attention is not None:
        return describe_attention(event.kind, stop.value, stop.attention.shown())
    return describe_tree(stop.value, sizes, length)


def _told(stop: Stop) -> str:
    return stop.attention.told(stop.event.kind) if stop.attention else ""


def _hop(run: "Run", stop: Stop) -> Hop | None:
    rank, size = run.stage.rank, size_of(stop.value) if stop.event.kind in (SEND, RECV) else 0
    if stop.event.kind == SEND:
        return Hop(source=Rank(rank), target=Rank(rank + 1), size_bytes=size)
    if stop.event.kind == RECV:
        seconds = stop.arrival.seconds if stop.arrival else 0.0
        return Hop(source=Rank(rank - 1), target=Rank(rank), size_bytes=size, seconds=seconds)
    return None
