"""The tensor's view without a script: its picture, its numbers, its outliers; and as plain text."""

from collections.abc import Iterator, Mapping, Sequence
from math import log1p
from typing import Any

import numpy as np

from mlx_nb.shared.preview import colour_indices, colour_limit, pack_preview, pool_extreme
from mlx_nb.shared.tensor import Window
from mlx_nb.shared.text import format_number, format_shape
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.png import SHOWN_WIDTH, data_uri, preview_png
from mlx_nb.widgets.view import self_contained

ROWS, COLUMNS = 96, 256
"""The most cells of the picture that stays: some 20 KiB in the notebook's file."""

RESERVED = {253: "−Inf", 254: "+Inf", 255: "NaN"}
State = Mapping[str, Any]


def tensor_html(state: State, overview: bytes) -> str:
    """The whole view, self-contained."""
    top = tag(
        "div.mv-top",
        tag("b.mv-model", state["site"], tag("span", state["suffix"])),
        " ",
        tag("span.mv-where", state["note"]),
    )
    details = [
        tag("div.mt-pane", *_numbers(state["numbers"]), _histogram(state)),
        tag("div.mt-pane", _outliers(state["outliers"])),
    ]
    body = [
        tag("div.mv-header", tag("div.mv-what", top, tag("div.mv-prompt", said(state)))),
        tag("div.mv-row", *_picture(state, overview)),
        tag("div.mt-panes", *details),
        tag("div.mv-sentence", state["sentence"]) if state["sentence"] else None,
        tag("div.mv-error.mv-mono", state["error"]) if state.get("error") else None,
    ]
    label = f"Tensor: {state['site']}{state['suffix']}"
    return self_contained("tensor", tag("div.mlxnb-view.mlxnb-tensor", *body, role="group", aria_label=label))


def said(state: State) -> str:
    """Shape, dtype and size: ``[B 1, L 37, D 576] float32 · 83 KiB · tokens 0:37``."""
    shape = f"{format_shape(state['shape'], state['letters'])} {state['dtype']}"
    return " · ".join(filter(None, [shape, state["size"], state["tokens"]]))


def axes_said(state: State) -> str:
    """What runs down and what across: ``rows L tokens 37 · columns D hidden 576 · B 0 of 1``."""
    parts = []
    for kind in ("rows", "columns"):
        if state[kind] >= 0:
            parts.append(f"{kind}: {state['names'][state[kind]]}, {state['shape'][state[kind]]}")
    for axis, length in enumerate(state["shape"]):
        if axis not in (state["rows"], state["columns"]) and length > 1:
            parts.append(f"{state['names'][axis]} {state['index'][axis]} of {length}")
    return " · ".join(parts)


def _picture(state: State, overview: bytes) -> Iterator[Markup]:
    yield tag("div.mv-note", axes_said(state))
    cells = _cells(state, overview)
    if not cells.size:
        yield tag("div.mv-note", "The array is empty.")
        return
    small = pool_extreme(cells, ROWS, COLUMNS)
    limit = colour_limit(small)
    height, width = small.shape
    indices = colour_indices(small, limit)
    png = preview_png(pack_preview(width, height, indices.tobytes()))
    label = f"{state['site']}{state['suffix']}: {state['height']} rows by {state['width']} columns, pooled by extreme value"
    shown = max(24, min(300, state["height"] * 14))
    image = tag(
        "img.mt-picture",
        src=data_uri(png),
        alt=label,
        width=SHOWN_WIDTH,
        height=shown,
        style=f"height:{shown}px",
    )
    said_limit = format_number(limit)
    legend = [tag("span", f"−{said_limit}"), " ", tag("i.mv-scale"), " ", tag("span", f"+{said_limit}")]
    for index, name in RESERVED.items():
        if (indices == index).any():
            legend += [" ", tag("span.mv-key", tag(f"i.mv-hatch.h{index}"), " ", tag("span", name))]
    yield tag("figure.mt-figure", image, tag("figcaption.mv-legend", *legend))


def _cells(state: State, overview: bytes) -> np.ndarray:
    found = state["overview"]
    if not found["height"] * found["width"]:
        return np.zeros((0, 0), np.float32)
    span = (0, state["height"]), (0, state["width"])
    return Window(rows=span[0], columns=span[1], cells=overview, **found).values()


def _numbers(numbers: Sequence[Mapping[str, str]]) -> Iterator[Markup]:
    if numbers:
        heads = (tag("th", cell["name"], scope="col") for cell in numbers)
        cells = (tag("td.alarm" if _alarming(**cell) else "td", cell["value"]) for cell in numbers)
        yield tag("table.mv-numbers", tag("thead", tag("tr", *heads)), tag("tbody", tag("tr", *cells)))


def _alarming(name: str, value: str) -> bool:
    return name in ("NaN", "Inf") and value != "0"


def _histogram(state: State) -> Markup | None:
    """As in static/tensor.js: a bar for each power of two, negative ones to the left, heights as logarithms."""
    octaves = state["octaves"]
    if not octaves:
        return None
    counts = [(e, "negative", n) for e, n, _ in reversed(octaves)]
    counts += [(None, "zero", state["zeros"])] + [(e, "positive", p) for e, _, p in octaves]
    most = log1p(max(count for *_, count in counts)) or 1.0
    step, tall = 8, 56
    colours = {"negative": "#1f5fd0", "zero": "#808a94", "positive": "#d9480f"}
    bars = []
    for place, (_exponent, kind, count) in enumerate(counts):
        high = tall * log1p(count) / most
        bars.append(
            tag(
                f"rect.{kind}",
                x=place * step,
                y=f"{tall - high:.1f}",
                width=step - 1,
                height=f"{high:.1f}",
                fill=colours[kind],
            )
        )
    width = len(counts) * step
    drawn = tag(
        "svg.mt-histogram", *bars, viewBox=f"0 0 {width} {tall}", width=width, height=tall, role="img",
        aria_label="Histogram: a bar for each power of two, heights as logarithms",
    )  # fmt: skip
    largest = format_number(2.0 ** (octaves[-1][0] + 1))
    ends = tag(
        "figcaption.mv-legend.mt-ends",
        tag("span", f"−{largest}"),
        " ",
        tag("span", "0"),
        " ",
        tag("span", f"+{largest}"),
    )
    return tag("figure.mt-figure", drawn, ends)


def _outliers(outliers: Sequence[Mapping[str, Any]]) -> Markup | None:
    if not outliers:
        return None
    rows = (tag("tr", tag("td", one["value"]), tag("td", one["where"])) for one in outliers)
    heads = tag("tr", tag("th", "largest", scope="col"), tag("th", "at", scope="col"))
    return tag("table.mt-outliers.mv-mono", tag("thead", heads), tag("tbody", *rows))


def tensor_text(state: State) -> str:
    """The view as plain text."""
    lines = [state["text"] or f"Tensor {state['site']}{state['suffix']}\n {said(state)}"]
    if state["outliers"]:
        largest = ", ".join(f"{one['value']} at {one['where']}" for one in state["outliers"][:3])
        lines.append(f" largest {largest}")
    return "\n".join([*lines, *filter(None, [state.get("error", "")])])
