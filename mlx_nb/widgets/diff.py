"""The view of a comparison: how far two models are apart at every site, closer where one looks.

state, gap = diff_state(report, inside, (site, difference))
view = DiffView(state, gap=gap)
view.on_ask(answer)     # "inside" {layer}, "gap" {site}
"""

from typing import Any, ClassVar, cast

import traitlets

from mlx_nb.widgets.diff_state import NO_GAP, DiffState, RowState
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.png import data_uri, preview_png
from mlx_nb.widgets.view import View, still


class DiffView(View):
    """A comparison.

    Attributes:
        gap: The difference at one site, as `shared.preview` packs it.
    """

    name = "diff"
    blank: ClassVar[dict[str, Any]] = {
        "title": "",
        "note": "",
        "ok": True,
        "heads": [],
        "rows": [],
        "inside": {},
        "told": [],
        "gap": dict(NO_GAP),
        "sentence": "",
        "text": "",
    }

    gap = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return diff_html(cast(DiffState, self.state), self.gap)

    def text(self) -> str:
        return str(self.state["text"])


def diff_html(state: DiffState, gap: bytes) -> str:
    """The whole view, self-contained."""
    rows: list[Markup] = []
    done: set[int] = set()
    for row in state["rows"]:
        rows.append(_row(row, ""))
        layer = row["layer"]
        if layer not in done and row["site"].endswith(".output"):
            rows += [_row(one, ".within") for one in state["inside"].get(str(layer), [])]
            done.add(layer)
    heads = [tag("th", name, scope="col") for name in ("site", "rank", *state["heads"], "", "")]
    table = tag("table.md-table.mv-numbers", tag("thead", tag("tr", *heads)), tag("tbody", *rows))
    told = [tag("div.mv-row.md-told", *(tag("div", line) for line in state["told"]))] if state["told"] else []
    picture = []
    if gap:
        image = tag("img.md-gap", src=data_uri(preview_png(gap)), alt=f"Difference at {state['gap']['site']}")
        words = tag("div.mv-note", state["gap"]["words"])
        picture = [tag("div.mv-row", tag("div.mv-title", state["gap"]["site"]), image, words)]
    mark = "the same" if state["ok"] else "they differ"
    parts = [*told, tag("div.mv-row.md-scroll", table), *picture]
    return still("diff", "Diff", state["title"], mark, state["note"], *parts, sentence=state["sentence"])


def _row(row: RowState, kind: str) -> Markup:
    marks = [tag("i.free", style=f"width:{100 * row['free']:.1f}%")]
    marks += [tag("i.allowed", style=f"left:{100 * row['allowed']:.1f}%")]
    marks += [tag("i.forced", style=f"left:{100 * row['forced']:.1f}%")] if row["forced"] >= 0 else []
    bad = ".differs" if row["verdict"] else ""
    cells = [tag("th", row["site"], scope="row"), *(tag("td", text) for text in (row["rank"], *row["texts"]))]
    bar = tag("td.md-bars", tag("span.md-bar", *marks))
    return tag(f"tr{kind}{bad}", *cells, bar, tag("td.md-verdict", row["verdict"]))
