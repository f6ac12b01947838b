"""The stepper's screen without a browser's help: as HTML without a script, and as plain text.

The HTML is what stays in a saved notebook. It has the class names, and so the style sheet, of
static/stepper.js; a test compares what the two show. GitHub, and JupyterLab for a notebook from
somebody else, drop every style: there the same words stay in order as text and tables, with images
of the layers and of the preview.
"""

from collections.abc import Iterable, Iterator
from itertools import zip_longest

from mlx_nb.shared.preview import preview_limit, unpack_preview
from mlx_nb.shared.text import format_number, format_table
from mlx_nb.shared.view_state import Lane, LayerCell, SourcePane, StepperState, TokenCell, Wire, empty_state
from mlx_nb.widgets.assets import sheet
from mlx_nb.widgets.markup import Markup, style, tag
from mlx_nb.widgets.png import SHOWN_WIDTH, data_uri, preview_height, preview_png, strip_png

MARKS = {"done": "✓", "current": "▸", "pending": "·"}
RESERVED = {253: "−Inf", 254: "+Inf", 255: "NaN"}


def with_limit(state: StepperState, preview: bytes) -> StepperState:
    """The state with the limit that the preview carries."""
    limit = preview_limit(preview)
    return state if limit is None else {**state, "preview_limit": format_number(limit)}


def stepper_html(state: StepperState, preview: bytes = b"") -> str:
    """The whole screen, self-contained."""
    state = with_limit({**empty_state(), **state}, preview)
    body = [
        _header(state),
        tag("div.mv-row.ms-tokens.mv-mono", *_tokens(state), role="group", aria_label="Tokens"),
        tag(
            f"table.mv-row.ms-lanes{'.dense' if len(state['lanes']) > 4 else ''}",
            tag("tbody", *_lanes(state["lanes"], state["wires"])),
        ),
        tag(
            "div.ms-panes",
            tag("div.ms-pane", *_value(state), _preview(state, preview)),
            tag("div.ms-pane.ms-right", *_code(state["source"])),
        ),
        tag("div.mv-sentence", state["sentence"]) if state["sentence"] else None,
        _folds(state),
        tag("div.mv-error.mv-mono", state["error"]) if state["error"] else None,
    ]
    label = f"Stepper: {state['model']}"
    return style(sheet("stepper")) + tag(
        "div.mlxnb-view.mlxnb-stepper", *body, role="group", aria_label=label
    )


def _header(state: StepperState) -> Markup:
    prompt = f"“{state['prompt']}”" if state["prompt"] else ""
    top = tag(
        "div.mv-top",
        tag("b.mv-model", state["model"]),
        " ",
        tag("span.mv-where", state["where"]),
        " ",
        tag(f"span.mv-pill.{state['status']}", state["status"]),
    )
    return tag("div.mv-header", tag("div.mv-what", top, tag("div.mv-prompt", prompt)))


# ---- tokens


def folds(tokens: list[TokenCell]) -> Iterator[range]:
    """What the strip hides: long runs of one kind keep their ends; once, where a part was not sent.

    stepper.js has the same rule.
    """
    unsent = next((i for i, token in enumerate(tokens) if token.get("more")), None)
    if unsent is not None:
        yield range(min(24, unsent), max(unsent + 1, len(tokens) - 24))
        return
    start = 0
    while start < len(tokens):
        kind = (tokens[start]["template"], tokens[start]["generated"])
        stop = start
        while stop < len(tokens) and (tokens[stop]["template"], tokens[stop]["generated"]) == kind:
            stop += 1
        most, head, tail = (4, 2, 0) if kind[0] else (64, 24, 24)
        if stop - start > most:
            yield range(start + head, stop - tail)
        start = stop


def _tokens(state: StepperState) -> Iterator[Markup | str]:
    tokens = state["tokens"]
    hidden = {fold.start: fold for fold in folds(tokens)}
    index = 0
    while index < len(tokens):
        fold = hidden.get(index, range(index, index + 1))
        cells = tokens[fold.start : fold.stop]
        in_pass = ".in" if any(cell["in_pass"] for cell in cells) else ""
        if index in hidden:
            more = sum(cell.get("more", 1) for cell in cells)
            yield tag(f"span.ms-more{in_pass}", f"… {more:,} more")
        else:
            kind = "t" if cells[0]["template"] else "g" if cells[0]["generated"] else "p"
            yield tag(f"span.ms-token.{kind}{in_pass}", cells[0]["text"])
        yield " "
        index = fold.stop
    if state["status"] not in ("finished", "failed", "closed", "ended"):
        yield tag("span.ms-token.next", "next")
        yield " "
    yield tag("span.ms-pass", state["pass_text"])


# ---- lanes


def group(layers: list[LayerCell]) -> Iterator[tuple[int, int, str, str]]:
    """First layer, last layer, state and KV of each cell; many are drawn in groups, as in stepper.js."""
    size = -(-len(layers) // 40) if len(layers) > 48 else 1
    for start in range(0, len(layers), size):
        part = layers[start : start + size]
        states = [layer["state"] for layer in part]
        kinds = {layer["kv"] for layer in part}
        state = "current" if "current" in states else states[0] if len(set(states)) == 1 else "part"
        yield part[0]["layer"], part[-1]["layer"], state, part[0]["kv"] if len(kinds) == 1 else "part"


def _break_class(layers: list[LayerCell], first: int, last: int) -> str:
    """How a cell shows breakpoints: at a layer of it, or inside one."""
    held = [layer for layer in layers if first <= layer["layer"] <= last]
    if any(layer.get("breakpoint") for layer in held):
        return ".brk"
    return ".brk-in" if any(layer.get("within") for layer in held) else ""


def _layers(first: int, last: int) -> str:
    return f"layer {first}" if first == last else f"layers {first}–{last}"


def describe_lane(lane: Lane) -> str:
    """The lane in words, for a screen reader: runs of layers that read the same."""
    parts = [f"embedding {lane['embed']}"] if lane["embed"] else []
    layers = lane["layers"]
    start = 0
    while start < len(layers):
        stop = start
        alike = layers[start]["state"], layers[start]["kv"]
        while stop < len(layers) and (layers[stop]["state"], layers[stop]["kv"]) == alike:
            stop += 1
        cache = "" if alike[1] == "none" else f", KV {alike[1]}"
        parts.append(f"{_layers(layers[start]['layer'], layers[stop - 1]['layer'])} {alike[0]}{cache}")
        start = stop
    return "; ".join(parts + ([f"head {lane['head']}"] if lane["head"] else []))


def _lanes(lanes: list[Lane], wires: list[Wire]) -> Iterator[Markup]:
    by_source = {wire["source"]: wire for wire in wires}
    for lane, following in zip_longest(lanes, lanes[1:]):
        yield _lane(lane)
        wire = by_source.get(lane["rank"])
        if wire and following:
            ends = [len(list(group(each["layers"]))) or 1 for each in (lane, following)]
            load = tag("span.ms-load.mv-mono", wire["text"]) if wire["text"] else None
            style = f"--ms-from:{ends[0]};--ms-to:{ends[1]}"
            track = tag("td.ms-track", tag("i.ms-arrow", "↓"), " ", load, style=style)
            yield tag(f"tr.ms-wire.{wire['state']}", tag("td"), track)


def _lane(lane: Lane) -> Markup:
    groups = list(group(lane["layers"]))
    cells = [
        tag(
            f"span.ms-cell.{state}.kv-{kv}{_break_class(lane['layers'], first, last)}",
            str(first) if state == "current" and len(groups) <= 18 and first == last else "",
            title=f"{_layers(first, last)}: {state}" + ("" if kv == "none" else f" · KV {kv}"),
        )
        for first, last, state, kv in groups
    ]
    strip = strip_png([(state, kv) for _, _, state, kv in groups])
    cells.insert(0, tag("span.ms-plain", " ", tag("img", src=data_uri(strip), alt=""), " "))
    if lane["embed"]:
        cells.insert(
            0, tag(f"span.ms-cell.ms-end.{lane['embed']}", "emb", title=f"embedding: {lane['embed']}")
        )
    if lane["head"]:
        head = tag(f"span.ms-cell.ms-end.{lane['head']}", "head", title=f"head: {lane['head']}")
        cells += [Markup(" "), head]
    gaps = "" if len(groups) <= 24 else ".snug" if len(groups) <= 36 else ".tight"
    return tag(
        "tr.ms-lane",
        tag(
            "td.ms-name",
            tag("div.ms-who", tag("b", f"rank {lane['rank']}"), " ", tag("span.ms-host", lane["host"])),
            tag("div.ms-holds", lane["holds"]),
        ),
        tag(f"td.ms-cells{gaps}", *cells, role="img", aria_label=describe_lane(lane)),
        tag(f"td.ms-status.{lane['status']}", tag("span", lane["status"]), tag("div", lane["note"])),
    )


# ---- value, code, folded details


def _value(state: StepperState) -> Iterator[Markup]:
    site = tag("b", state["site"], tag("span", state["suffix"]))
    yield tag("div.mv-site.mv-mono", site, role="heading", aria_level=3)
    if state["site_note"]:
        yield tag("div.mv-note", state["site_note"])
    rows = []
    for row in state["arguments"]:
        name = tag("th", row["name"], scope="row")
        if row["dtype"] or row["size"]:
            rows.append(
                tag("tr", name, tag("td", row["shape"]), tag("td", row["dtype"]), tag("td", row["size"]))
            )
        else:
            rows.append(tag("tr", name, tag("td", tag("span.ms-repr", row["shape"]), colspan=3)))
    if rows:
        yield tag("table.ms-arguments.mv-mono", tag("tbody", *rows))
    if state["numbers"]:
        heads = (tag("th", cell["name"], scope="col") for cell in state["numbers"])
        values = (tag("td.alarm" if _alarming(**cell) else "td", cell["value"]) for cell in state["numbers"])
        yield tag("table.mv-numbers", tag("thead", tag("tr", *heads)), tag("tbody", tag("tr", *values)))


def _alarming(name: str, value: str) -> bool:
    if name.lower() in ("nan", "inf"):
        return value != "0"
    return "nan" in value.lower() or "inf" in value.lower()


def _preview(state: StepperState, preview: bytes) -> Markup | None:
    png = preview_png(preview)
    if not png:
        return None
    _, rows, cells = unpack_preview(preview)
    height = preview_height(rows)
    label = state["preview_label"] or "Preview of the value"
    # The attributes serve where styles are stripped.
    image = tag(
        "img.ms-canvas",
        src=data_uri(png),
        alt=label,
        width=SHOWN_WIDTH,
        height=height,
        style=f"height:{height}px",
    )
    legend: list[str] = []
    if limit := state.get("preview_limit"):
        legend += [tag("span", f"−{limit}"), " ", tag("i.mv-scale"), " ", tag("span", f"+{limit}")]
    if note := state.get("preview_note"):
        legend += [" ", tag("span.mv-clipped", note)]
    for index, name in RESERVED.items():
        if index in cells:
            legend += [" ", tag("span.mv-key", tag(f"i.mv-hatch.h{index}"), " ", tag("span", name))]
    return tag(
        "figure.ms-preview", Markup(image.removesuffix("</img>")), tag("figcaption.mv-legend", *legend)
    )


def _code(source: SourcePane | None) -> Iterator[Markup]:
    if source is None:
        yield tag("div.mv-note", "No line of the model's own code here.")
        return
    title = tag("b", source["title"])
    yield tag("div.mv-title", title, " ", tag("span", source["file"]), role="heading", aria_level=3)
    crumbs = (Markup(tag("span", name)) for name in source["breadcrumb"])
    yield tag("div.ms-crumbs.mv-mono", Markup(" › ".join(crumbs)))
    texts = [line["text"] for line in source["lines"] if line["text"].strip()]
    indent = min((len(text) - len(text.lstrip()) for text in texts), default=0)
    lines = (
        tag(
            "span.ms-line.current" if line["current"] else "span.ms-line",
            tag("span.ms-number", str(line["number"])),
            " ",
            tag("span.ms-code", line["text"][indent:]),
            "\n",
        )
        for line in source["lines"]
    )
    yield tag("pre.ms-source.mv-mono", tag("code", *lines))


def _folds(state: StepperState) -> Markup | None:
    kv = [
        _row("td", [str(row["rank"]), row["layers"], row["class_name"], row["offset"], row["state"]])
        for row in state["kv"]
    ]
    kv_heads = _row("th", ["rank", "layers", "class", "offset", "state"])
    breaks = [
        _row(
            "td",
            [
                str(row["number"]),
                row["site"],
                row["condition"],
                str(row["hits"]),
                "on" if row["enabled"] else "off",
            ],
        )
        for row in state["breakpoints"]
    ]
    break_heads = _row("th", ["id", "site", "condition", "hits", "on"])
    tables = {
        "Module tree": state["modules"] and _modules(state),
        "KV cache": kv and tag("table.ms-kv.mv-mono", tag("thead", kv_heads), tag("tbody", *kv)),
        f"Breakpoints ({len(breaks)})": breaks
        and tag("table.ms-breaks.mv-mono", tag("thead", break_heads), tag("tbody", *breaks)),
    }
    found = [
        tag("details.mv-fold", tag("summary", title), tag("div.mv-fold-body", table))
        for title, table in tables.items()
        if isinstance(table, Markup)
    ]
    return tag("div.mv-folds", *found) if found else None


def _modules(state: StepperState) -> Markup:
    rows = [
        tag(
            f"tr.{row['state']}",
            tag("td", "●" if row.get("breakpoint") else ""),
            tag("td", MARKS.get(row["state"], "·"), title=row["state"]),
            tag("td", "\u00a0\u00a0" * row["depth"] + row["path"]),  # without styles it is indented too
            tag("td", row["class_name"]),
            tag("td", row.get("shape", "")),
        )
        for row in state["modules"]
    ]
    heads = _row("th", ["", "", "module", "class", "returned"])
    return tag("table.ms-modules.mv-mono", tag("thead", heads), tag("tbody", *rows))


def _row(cell: str, texts: Iterable[str]) -> Markup:
    return tag("tr", *(tag(cell, text, scope="col" if cell == "th" else None) for text in texts))


# ---- plain text


def stepper_text(state: StepperState) -> str:
    """The screen as plain text: `state["text"]` where the maker gave one, else what the fields say."""
    state = {**empty_state(), **state}
    if state["text"]:
        return "\n".join(filter(None, [state["text"], state["error"]]))
    top = " · ".join(filter(None, [f"Stepper {state['model']}".strip(), state["where"], state["status"]]))
    lanes = [[f"rank {n['rank']}", n["host"], n["holds"], n["status"], n["note"]] for n in state["lanes"]]
    values = [[a["name"], a["shape"], a["dtype"], a["size"]] for a in state["arguments"]]
    parts = [
        top,
        format_table(lanes),
        state["site"] + state["suffix"],
        format_table(values),
        " " + "  ".join(f"{n['name']} {n['value']}" for n in state["numbers"]) if state["numbers"] else "",
        state["sentence"],
        state["error"],
    ]
    return "\n".join(filter(None, parts))
