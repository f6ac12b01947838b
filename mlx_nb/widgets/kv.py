"""The KV cache's view: what every rank's layers hold, and the norms of one layer's keys or values.

view = KVView(state, norms=…)
view.on_ask(answer)     # "choose": a layer's buffer; "cost", "trim", "rewind": of so many tokens;
                        # "fork", "pause", "resume", "refresh"
"""

from typing import Any, ClassVar

import numpy as np
import traitlets

from mlx_nb.shared.text import format_number
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.png import ORANGE, data_uri, palette_png
from mlx_nb.widgets.view import View, still

_INKS = np.array([(*ORANGE, at) for at in range(255)] + [(255, 225, 77, 255)], np.uint8)
_BROKEN = 255
_WIDE, _ROW = 720, 16
"""About how wide the picture of the norms is, and how high a head's row in it: where styles are dropped, too."""

HEADS = ("rank", "layers", "class", "offset", "capacity", "used/held", "")


class KVView(View):
    """KV caches.

    Attributes:
        state: See `blank`.
        norms: Of the chosen buffer, the length of each head's vector at each position: ``[heads, positions]`` float32.
    """

    name = "kv"
    blank: ClassVar[dict[str, Any]] = {
        "model": "",
        "note": "",
        "headline": "",  # how the offsets disagree
        "rows": [],  # layers of a rank that read the same: the columns of the table, and what the bar is drawn from
        "chosen": {"layer": -1, "buffer": "", "heads": 0, "positions": [], "names": [], "ring": False},
        "trim": {"most": 0, "why": ""},  # so many tokens can be cut off; or why none
        "rewind": {"can": False, "why": ""},  # whether a run stands that can go back and fork
        "run": {"status": "", "pause": False, "resume": False},  # what goes on
        "sentence": "",
        "text": "",
    }

    norms = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return kv_html(self.state, self.norms)

    def text(self) -> str:
        return "\n".join(filter(None, [self.state["text"], self.state["error"]]))


def kv_html(state: dict[str, Any], norms: bytes = b"") -> str:
    """The table and the norms without a script."""
    rows = []
    for row in state["rows"]:
        texts = [
            row["rank"],
            row["layers"],
            row["class"],
            row["offset"],
            row["room"],
            row["size"],
            row["detail"],
        ]
        rows.append(tag("tr", *(tag("td", str(text)) for text in texts)))
    table = tag(
        "table.mk-table",
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in HEADS))),
        tag("tbody", *rows),
    )
    headline = tag("div.mk-headline", state["headline"]) if state["headline"] else None
    parts = headline, tag("div.mv-row", table), _norms(state["chosen"], norms)
    return still(
        "kv", "KV cache", state["model"], "KV cache", state["note"], *parts, sentence=state["sentence"]
    )


def _norms(chosen: dict[str, Any], packed: bytes) -> Markup | None:
    """The norms of the chosen buffer as a picture, in the order of the positions, with their range."""
    heads, places = chosen["heads"], chosen["positions"]
    if not heads or not places or len(packed) != 4 * heads * len(places):
        return None
    values = np.frombuffer(packed, "<f4").reshape(heads, len(places))[:, np.argsort(places)]
    finite = values[np.isfinite(values)]
    least, most = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    words = f"norms of the {chosen['buffer']} of layer {chosen['layer']}: a row for each head, positions {min(places)} to {max(places)} across"
    return tag(
        "div.mv-row.mk-norms",
        tag("b", f"layer {chosen['layer']}"),
        f" {chosen['buffer']}",
        tag("img.mk-canvas", src=data_uri(norms_png(values, least, most)), alt=words),
        tag("div.mv-legend", f"{format_number(least)} to {format_number(most)} · {words}"),
    )


def norms_png(values: np.ndarray, least: float, most: float) -> bytes:
    """``[heads, positions]`` as a picture: the longer the stronger, what is not finite yellow."""
    bottom = 0.9 * least  # as in static/kv.js: even the least is seen
    with np.errstate(invalid="ignore"):
        shares = np.clip((values - bottom) / ((most - bottom) or 1), 0, 1)
    pixels = np.where(np.isfinite(values), np.rint(np.nan_to_num(shares) * 254), _BROKEN).astype(np.uint8)
    column = max(1, _WIDE // values.shape[1])
    return palette_png(np.kron(pixels, np.ones((_ROW, column), np.uint8)), _INKS)
