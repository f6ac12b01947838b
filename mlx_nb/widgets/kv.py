"""The KV cache's view: what every rank's layers hold, and the norms of one layer's keys or values.

view = KVView(state, norms=…)
view.on_ask(answer)     # "choose": a layer's buffer; "cost", "trim", "rewind": of so many tokens;
                        # "fork", "pause", "resume", "refresh"
"""

from typing import Any, ClassVar

import traitlets

from mlx_nb.widgets.markup import tag
from mlx_nb.widgets.view import View, still

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
        return kv_html(self.state)

    def text(self) -> str:
        return "\n".join(filter(None, [self.state["text"], self.state["error"]]))


def kv_html(state: dict[str, Any]) -> str:
    """The table without a script."""
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
    parts = headline, tag("div.mv-row", table)
    return still(
        "kv", "KV cache", state["model"], "KV cache", state["note"], *parts, sentence=state["sentence"]
    )
