"""A plan as a page without a script: who holds which layers, what fills each rank's memory, where else it may be cut."""

from mlx_nb.shared.fit import RESERVE_BYTES
from mlx_nb.shared.plan import Plan, Shard
from mlx_nb.shared.text import format_size
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.view import still

HOLDS = "embed makes hidden states of token ids; norm and head make scores for the next token of the last hidden state"
KEYS = (
    ("weights", "weights"),
    ("kv", "KV caches"),
    ("rest", "all else: the runtime, activations, buffers"),
)


def plan_html(plan: Plan) -> str:
    """The whole page, self-contained."""
    ranks = f"{plan.num_ranks} rank{'s' if plan.num_ranks > 1 else ''}"
    note = " · ".join(filter(None, [f"{plan.num_layers} layers over {ranks}", plan.dtype, _context(plan)]))
    parts = [tag("div.mv-row", _cuts(plan)), tag("div.mv-row.mp-memory", _memory(plan), _legend(plan))]
    if plan.notes:
        parts.append(tag("div.mv-row.mp-notes", *(tag("div.mv-note", text) for text in plan.notes)))
    said = f"It is cut {plan.reason.replace('even: ', 'evenly: ', 1)}." if plan.reason else ""
    return still("plan", "Plan", plan.model, "plan", note, *parts, sentence=said)


def _context(plan: Plan) -> str:
    return f"KV caches at {plan.context:,} tokens" if plan.context else ""


def _cuts(plan: Plan) -> Markup:
    """Every layer as a cell in its rank's shade; between two of them whether a rank may begin there."""
    cuts = plan.legal_cuts
    cells = []
    for shard in plan.shards:
        for layer in shard.layers:
            edge, why = "", f"layer {layer} · rank {shard.rank}"
            if layer == shard.layers.start and layer:
                edge = ".cut"
                why += " · it begins here"
                why += f", and takes over {cuts.along[layer]}" if cuts and layer in cuts.along else ""
            elif cuts and layer in cuts.refused:
                edge, why = ".refused", f"{why} · no rank can begin here: {cuts.refused[layer]}"
            name = str(layer) if plan.num_layers <= 40 or layer % 5 == 0 else ""
            cells += [
                tag(f"span.mp-layer.r{shard.rank % 2}{edge}", name, title=why),
                " ",
            ]  # where styles are dropped
    legal = f"It may be cut {cuts}." if cuts else ""
    key = tag(
        "div.mv-legend",
        tag("span.mv-key", tag("i.mp-swatch.cut"), "a rank begins"),
        " ",
        tag("span.mv-key", tag("i.mp-swatch.refused"), "no rank can") if cuts and cuts.refused else None,
        " ",
        tag("span.mp-legal", legal),
    )
    strip = tag("div.mp-strip", *cells, role="img", aria_label=f"{plan.num_layers} layers. {legal}")
    return tag("div", strip, key)


def _memory(plan: Plan) -> Markup:
    most = max(max(shard.memory_bytes, _needed(plan, shard)) for shard in plan.shards) or 1
    known = any(shard.memory_bytes for shard in plan.shards)
    heads = ["rank", "host", "holds", "weights", *(["KV caches"] if plan.context else [])]
    heads += ["memory", "full"] if known else []
    rows = []
    for shard in plan.shards:
        holds = shard.describe()
        texts = [shard.host, holds, format_size(shard.weight_bytes) if shard.weight_bytes else "–"]
        texts += [format_size(shard.kv_bytes)] if plan.context else []
        if known:
            full = (
                f"{_needed(plan, shard) / shard.memory_bytes:.0%}".replace("%", " %")
                if shard.memory_bytes
                else ""
            )
            texts += [format_size(shard.memory_bytes) if shard.memory_bytes else "not known", full]
        cells = [
            tag("th", str(shard.rank), scope="row"),
            *(tag("td", text, title=HOLDS if text == holds else None) for text in texts),
        ]
        rows.append(tag("tr", *cells, tag("td.mp-room", _bar(plan, shard, most))))
    titles = [*(tag("th", name, scope="col") for name in heads), tag("th", "", scope="col")]
    return tag("table.mp-table", tag("thead", tag("tr", *titles)), tag("tbody", *rows))


def _needed(plan: Plan, shard: Shard) -> int:
    return shard.weight_bytes + shard.kv_bytes + (RESERVE_BYTES if plan.context else 0)


def _bar(plan: Plan, shard: Shard, most: int) -> Markup:
    """What fills a rank's memory, as long as its memory is large."""
    parts = [("weights", shard.weight_bytes), ("kv", shard.kv_bytes)]
    parts += [("rest", RESERVE_BYTES)] if plan.context else []
    room = shard.memory_bytes or _needed(plan, shard) or 1
    words = ", ".join(f"{name} {format_size(size)}" for name, size in parts if size)
    filled = (tag(f"i.{name}", style=f"width:{100 * size / room:.2f}%") for name, size in parts if size)
    return tag(
        "span.mp-bar",
        *filled,
        role="img",
        aria_label=words,
        title=words,
        style=f"width:{100 * room / most:.1f}%",
    )


def _legend(plan: Plan) -> Markup:
    shown = KEYS if plan.context else KEYS[:1]
    keys = (tag("span.mv-key", tag(f"i.mp-swatch.{name}"), f"{words} ") for name, words in shown)
    share = " · ranks on a host divide its memory" if plan.ranks_a_host > 1 else ""
    return tag("div.mv-legend", *keys, tag("span.mp-legal", f"per rank{share}"))
