"""The timeline without a script: a picture of each lane, and the numbers as a table.

Where the page drops style sheets the pictures and the table stay in order.
"""

import numpy as np

from mlx_nb.shared.timeline import COMPUTE, KINDS, SEND, WAIT
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.png import BLUE, ORANGE, data_uri, palette_png
from mlx_nb.widgets.timeline_state import DECODE_BIT, LaneState, TimelineState, unpack_spans
from mlx_nb.widgets.view import still

PIXELS = 720
TALL, LINE = 13, 1
"""A lane's picture is so many pixels high, and the line of a wait in it; the page draws it twice as large."""

NOTHING, WORK, NEXT_WORK, SENDING, WAITING = range(5)
_INKS = np.array(
    [(0, 0, 0, 0), (*BLUE, 255), (90, 142, 230, 255), (*ORANGE, 255), (128, 138, 148, 255)], np.uint8
)
TICKS = 6
HEADS = ("rank", "phase", "passes", *KINDS, "busy")


def timeline_html(state: TimelineState, spans: bytes) -> str:
    """The whole view, self-contained."""
    lanes = tag("div.mv-row", _lanes(state, spans), _legend())
    numbers = tag("div.mv-row.mt-numbers", _table(state))
    said, head = state["sentence"], (state["title"], state["summary"], state["note"])
    return still("timeline", "Timeline", *head, lanes, numbers, sentence=said)


def _lanes(state: TimelineState, spans: bytes) -> Markup:
    factor, unit = (1, "s") if state["length_s"] >= 1 else (1000, "ms")
    times = (f"{state['length_s'] * factor * at / (TICKS - 1):.2f}" for at in range(TICKS))
    ends = [tag("span", f"{time} {unit}", " ") for time in times]
    ticks = tag("tr.mt-ticks", tag("td"), tag("td", tag("div.mt-ends", *ends)), tag("td"))
    lanes = [_lane(lane, lane_png(state, spans, lane["rank"])) for lane in state["lanes"]]
    return tag("table.mt-static", tag("tbody", ticks, *lanes))


def _lane(lane: LaneState, png: bytes) -> Markup:
    who = tag("div.mt-who", tag("b", f"rank {lane['rank']}"), " ", tag("span", lane["host"]))
    picture = tag(
        "img",
        src=data_uri(png),
        alt=f"rank {lane['rank']} computes {lane['busy']} of the time",
        width=PIXELS,
        height=26,
    )
    share = tag("td.mt-busy", tag("b", lane["busy"]), " ", tag("span", "busy"))
    return tag(
        "tr.mt-lane", tag("td", who, tag("div.mt-holds", lane["holds"])), tag("td.mt-bar", picture), share
    )


def lane_png(state: TimelineState, spans: bytes, rank: int) -> bytes:
    """One rank's time from left to right: blue computes, orange sends, a thin line waits."""
    found = unpack_spans(spans)
    found = found[found["rank"] == rank]
    scale = PIXELS / (state["length_s"] or 1.0)
    shares = np.zeros((3, PIXELS))
    inks = np.full(PIXELS, WORK)
    for span in found:
        kind = int(span["kind"]) & (DECODE_BIT - 1)
        left, right = span["begin_s"] * scale, (span["begin_s"] + span["seconds"]) * scale
        columns = np.arange(max(0, int(left)), min(PIXELS, int(np.ceil(right))))
        shares[kind, columns] += np.minimum(columns + 1, right) - np.maximum(columns, left)
        if KINDS[kind] == COMPUTE:
            inks[columns] = NEXT_WORK if int(span["index"]) % 2 else WORK
    most = shares.argmax(axis=0)
    some = shares.max(axis=0) > 0
    pixels = np.zeros((TALL, PIXELS), np.uint8)
    full = {COMPUTE: inks, SEND: np.full(PIXELS, SENDING)}
    for name, ink in full.items():
        here = some & (most == KINDS.index(name))
        pixels[:, here] = ink[here]
    pixels[TALL // 2 : TALL // 2 + LINE, some & (most == KINDS.index(WAIT))] = WAITING
    return palette_png(pixels, _INKS)


def _legend() -> Markup:
    words = {"compute": "computes", "send": "sends", "wait": "waits"}
    keys = [tag("span.mv-key", tag(f"i.mt-swatch.{kind}"), word, " ") for kind, word in words.items()]
    return tag("div.mv-legend", *keys)


def _table(state: TimelineState) -> Markup:
    head = tag("thead", tag("tr", *(tag("th", name, scope="col") for name in HEADS)))
    rows = (
        tag("tr", tag("th", row[0], scope="row"), *(tag("td", cell) for cell in row[1:]))
        for row in state["rows"]
    )
    return tag("table.mt-table", head, tag("tbody", *rows))
