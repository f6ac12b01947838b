"""From a debugger to what the stepper's view shows. Pure data in, pure data out; no rank is asked."""

from typing import TYPE_CHECKING

from mlx_nb.client.sentences import sentence_for
from mlx_nb.client.stepper_details import after_layers, break_rows, breaks_of_layers, kv_rows, module_rows
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.plan import Shard
from mlx_nb.shared.position import Position
from mlx_nb.shared.preview import preview_limit
from mlx_nb.shared.sites import short_spelling
from mlx_nb.shared.text import (
    as_token,
    first_words,
    format_count,
    format_duration,
    format_number,
    format_shape,
    format_size,
)
from mlx_nb.shared.view_state import (
    ArgumentRow,
    Lane,
    LayerBreaks,
    LayerCell,
    NumberCell,
    SourceLine,
    SourcePane,
    StepperState,
    TokenCell,
    Wire,
)

if TYPE_CHECKING:
    from mlx_nb.client.debugger import Debugger

_AROUND = 3
_MAX_ARGUMENTS = 5
# A strip of tokens is for reading; a prompt of thousands would travel with every stop.
_MOST_TOKENS, _HEAD_TOKENS = 240, 40


def stepper_state(dbg: "Debugger") -> StepperState:
    """The whole first screen for where a debugger stands."""
    position = dbg.position
    shown_path = short_spelling(position.site, dbg.pipe.shards[0].layer_paths)
    site, _, suffix = shown_path.rpartition(".")
    return StepperState(
        sequence=0,
        model=dbg.pipe.name,
        prompt=first_words(dbg.prompt, 60) if isinstance(dbg.prompt, str) else "",
        status=_status(dbg),
        where=_where(dbg),
        tokens=_tokens(dbg),
        pass_text="" if dbg.done or dbg.running else f"this pass: tokens {position.start}:{position.stop}",
        lanes=[_lane(dbg, rank) for rank in range(dbg.pipe.num_ranks)],
        wires=[_wire(dbg, rank) for rank in range(dbg.pipe.num_ranks - 1)],
        site=site if site and not dbg.done else "the end" if dbg.done else shown_path,
        suffix=f".{suffix}" if site and not dbg.done else "",
        site_note=_site_note(position),
        arguments=_arguments(position),
        numbers=_numbers(position),
        preview_label=_preview_label(position) if dbg.preview else "",
        preview_note=_preview_note(dbg),
        source=_source(position),
        sentence=_sentence(dbg),
        modules=module_rows(dbg),
        kv=kv_rows(dbg),
        breakpoints=break_rows(dbg),
        text="" if dbg.running else str(position),
        error="",
    )


def _status(dbg: "Debugger") -> str:
    if dbg.running:
        return "running"
    if dbg.done:
        return "finished"
    if dbg.closed and dbg.gen.state != "failed":
        return "ended" if dbg.lost else "closed"
    return "failed" if dbg.gen.state == "failed" else "stopped"


def _where(dbg: "Debugger") -> str:
    if dbg.running:
        return ""  # it has left the place that it last told
    return "done" if dbg.done else f"{dbg.position.phase} {dbg.position.start}:{dbg.position.stop}"


def _sentence(dbg: "Debugger") -> str:
    if dbg.running:
        return f"Running: {format_count(len(dbg.gen.token_ids), 'token')} so far."
    if dbg.lost and not dbg.done:
        return f"{dbg.lost} To begin again, press ↻ or type: %mlx_step restart"
    if dbg.closed and not dbg.done:
        return "This stepper was closed."
    if dbg.asked_to_stop and not dbg.done:
        return f"The run was {dbg.how_far}; Run goes on. {sentence_for(dbg)}"
    note = f"{dbg.note} " if dbg.note and dbg.position.index == 0 else ""
    return note + sentence_for(dbg)


def _tokens(dbg: "Debugger") -> list[TokenCell]:
    position = dbg.position
    prompt = dbg.tokens()
    cells = [
        TokenCell(
            id=token.id, text=as_token(token.text), template=token.template, in_pass=False, generated=False
        )
        for token in prompt
    ]
    for token, text in zip(dbg.gen.token_ids, dbg.pieces(), strict=True):
        cells.append(TokenCell(id=token, text=as_token(text), template=False, in_pass=False, generated=True))
    if not dbg.done and not dbg.running:
        for cell in cells[position.start : position.stop]:
            cell["in_pass"] = True
    if len(cells) <= _MOST_TOKENS:
        return cells
    hidden = len(cells) - _MOST_TOKENS
    folded, tail = cells[_HEAD_TOKENS : _HEAD_TOKENS + hidden], cells[_HEAD_TOKENS + hidden :]
    more = TokenCell(
        id=-1,
        text="",
        template=False,
        in_pass=any(cell["in_pass"] for cell in folded),
        generated=False,
        more=hidden,
    )
    return [*cells[:_HEAD_TOKENS], more, *tail]


def _lane(dbg: "Debugger", rank: int) -> Lane:
    position, shard = dbg.position, dbg.pipe.plan.shards[rank]
    outcome = dbg.ranks.get(Rank(rank))
    breaks = breaks_of_layers(dbg)
    if dbg.running:
        return _running_lane(shard, outcome, breaks)
    here = outcome is not None and outcome.pass_index == position.index
    written = {row.layer for row in outcome.kv if row.written} if outcome and (here or dbg.done) else set()
    counted = {row.layer for row in outcome.kv} if outcome else set(shard.layers)
    stage = _stage_of_rank(dbg, rank)
    cells = []
    for layer in shard.layers:
        done = stage == "done" or (stage == "here" and _is_done(dbg, layer))
        current = stage == "here" and position.layer == layer and position.kind not in ("send", "recv", "end")
        kv = "written" if layer in written else "pending" if layer in counted or not outcome else "none"
        cells.append(
            LayerCell(
                layer=layer,
                state="current" if current else "done" if done else "pending",
                kv=kv,
                **breaks[layer],
            )
        )
    status = "finished" if dbg.done else "stopped" if stage == "here" else "waits"
    if _status(dbg) in ("closed", "ended"):
        status = _status(dbg)
    kv_line = next((line for line in position.ranks if line.rank == rank), None)
    edge = None if not shard.is_first else _edge(dbg, stage, before=True)
    head = None if not shard.is_last else _edge(dbg, stage, before=False)
    return Lane(
        rank=rank,
        host=shard.host,
        holds=shard.describe(),
        status=status,
        note=kv_line.text if kv_line else "",
        embed=edge,
        head=head,
        layers=cells,
    )


def _running_lane(shard: Shard, outcome: Outcome | None, breaks: list[LayerBreaks]) -> Lane:
    """A rank that moves: what its KV caches held when it last told, and nothing of where it is."""
    offsets = [row.offset for row in outcome.kv if row.offset >= 0] if outcome else []
    return Lane(
        rank=shard.rank,
        host=shard.host,
        holds=shard.describe(),
        status="running",
        note=f"{min(offsets)} written" if offsets else "",
        embed="pending" if shard.is_first else None,
        head="pending" if shard.is_last else None,
        layers=[
            LayerCell(layer=layer, state="pending", kv="none", **breaks[layer]) for layer in shard.layers
        ],
    )


def _stage_of_rank(dbg: "Debugger", rank: int) -> str:
    """Whether a rank's part of this pass is done, under way here, or still to come."""
    if dbg.done or rank < dbg.position.rank:
        return "done"
    return "here" if rank == dbg.position.rank else "pending"


def _is_done(dbg: "Debugger", layer: int) -> bool:
    position = dbg.position
    if position.kind == "send":
        return True
    if position.kind == "recv":
        return False
    if position.layer >= 0:
        return layer < position.layer
    return after_layers(dbg)


def _edge(dbg: "Debugger", stage: str, *, before: bool) -> str:
    if stage != "here":
        return stage
    position = dbg.position
    past = position.layer >= 0 or position.kind in ("send", "recv") or after_layers(dbg)
    if before:
        return "done" if past else "current"
    return "current" if position.layer < 0 and position.kind != "recv" and after_layers(dbg) else "pending"


def _wire(dbg: "Debugger", rank: int) -> Wire:
    if dbg.running:
        return Wire(source=rank, text="", state="idle")
    crossed = dbg.hops().get(Rank(rank))
    if crossed is None or crossed.hop is None:
        state = "crossed" if dbg.done or rank < dbg.position.rank else "idle"
        return Wire(source=rank, text="", state=state)
    summary = crossed.summary
    shape = f"{format_shape(summary.shape)} {summary.dtype} · " if summary else ""
    time = f" · {format_duration(crossed.hop.seconds)}" if crossed.hop.seconds else ""
    text = f"{shape}{format_size(crossed.hop.size_bytes)}{time}"
    return Wire(source=rank, text=text, state="sending" if crossed.kind == "send" else "crossed")


def _site_note(position: Position) -> str:
    if position.kind == "end":
        return ""  # the sentence below says it
    if position.hop:
        return f"rank {position.hop.source} → rank {position.hop.target}"
    classes = " › ".join(frame.class_name for frame in position.stack[-2:])
    return f"rank {position.rank} · {classes}"


def _arguments(position: Position) -> list[ArgumentRow]:
    rows = []
    for arg in position.args[:_MAX_ARGUMENTS]:
        if arg.summary:
            shape = format_shape(arg.summary.shape, arg.summary.axes)
            size = format_size(arg.summary.size_bytes)
            rows.append(ArgumentRow(name=arg.name, shape=shape, dtype=arg.summary.dtype, size=size))
        else:
            rows.append(ArgumentRow(name=arg.name, shape=arg.text, dtype="", size=""))
    return rows


def _numbers(position: Position) -> list[NumberCell]:
    summary = position.summary
    if summary is None:
        return []
    whole = "int" in summary.dtype or summary.dtype == "bool"
    named = {"min": summary.min, "max": summary.max}
    if not whole:  # the mean of token ids says nothing
        named = {"min": summary.min, "mean": summary.mean, "rms": summary.rms, "max": summary.max}
    cells = [
        NumberCell(name=name, value=_number(value, whole=whole and name in ("min", "max")))
        for name, value in named.items()
    ]
    cells.append(NumberCell(name="NaN", value=str(summary.nan)))
    if summary.inf:
        cells.append(NumberCell(name="Inf", value=str(summary.inf)))
    return cells


def _preview_label(position: Position) -> str:
    summary = position.summary
    shape = summary.shape_text if summary else ""
    return f"{position.site}, {shape}: tokens down, channels across"


def _preview_note(dbg: "Debugger") -> str:
    """Whether there are values beyond those where the colours end (`shared.preview.colour_limit`)."""
    summary, limit = dbg.position.summary, preview_limit(dbg.preview)
    if summary is None or not limit:
        return ""
    beyond = max(abs(summary.min), abs(summary.max)) > limit * 1.001  # the limit travels as float32
    return "colours clipped at the 99th percentile" if beyond else ""


def _source(position: Position) -> SourcePane | None:
    source = position.source
    if source is None:
        return None
    lines = [
        SourceLine(number=number, text=text, current=source.line <= number <= source.last_line)
        for number, text in enumerate(source.lines, source.first)
        if source.line - _AROUND <= number <= source.last_line + _AROUND
    ]
    # The outer modules by their class, as the code names them; the inner ones by their place.
    crumbs: list[str] = []
    for frame in position.stack:
        name = frame.path.rpartition(".")[2]
        crumbs.append(
            f"{frame.class_name} {name}" if name.isdigit() else frame.class_name if len(crumbs) < 2 else name
        )
    return SourcePane(title=source.function, file=source.file, breadcrumb=crumbs, lines=lines)


def _number(value: float, *, whole: bool) -> str:
    """A statistic with a true minus; the extremes of integers have no decimals."""
    text = f"{value:.0f}" if whole and value == value else format_number(value)
    return text.replace("-", "−")
