"""The lens without a script: the table of the most probable tokens, and the last position's answer in a sentence."""

from collections.abc import Iterator

import numpy as np

from mlx_nb.widgets.lens_state import LensState, unpack_cells
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.view import still


def lens_html(state: LensState, cells: bytes) -> str:
    """The whole view, self-contained."""
    columns = state["columns"]
    table = tag("table.ml-grid", _head(state), tag("tbody", *_rows(state, cells)))
    said = columns[-1]["sentence"] if columns else ""
    grid = tag("div.mv-row.ml-scroll", table)
    return still("lens", "Logit lens", state["title"], "logit lens", state["note"], grid, sentence=said)


def _head(state: LensState) -> Markup:
    tokens = (
        tag("th", column["text"], scope="col", title=f"token {column['position']}")
        for column in state["columns"]
    )
    return tag("thead", tag("tr", tag("th.ml-corner", "after layer", colspan=2), *tokens))


def _rows(state: LensState, cells: bytes) -> Iterator[Markup]:
    if not cells:
        return
    table = unpack_cells(state, cells)
    ranks = [row["rank"] for row in state["rows"]]
    for at, row in enumerate(state["rows"]):
        first = at == 0 or ranks[at - 1] != row["rank"]
        rank = tag("th.ml-rank", f"rank {row['rank']}", rowspan=ranks.count(row["rank"]), scope="rowgroup")
        found = (_cell(state, at, place, table[at, place]) for place in range(len(state["columns"])))
        name = tag("th.ml-layer", row["name"], scope="row")
        yield tag("tr.first" if first and at else "tr", rank if first else None, name, *found)


def _cell(state: LensState, row: int, column: int, cell: np.void) -> Markup:
    chance = float(cell["probabilities"][0])
    text = state["texts"][int(cell["tokens"][0])]
    appears = state["columns"][column]["appears"]
    answer = ".answer" if 0 <= appears <= row else ""
    title = f"{text} {chance:.0%}; {float(cell['entropy_bits']):.1f} bits"
    return tag(f"td.ml-cell.p{shade(chance)}{answer}", text, title=title)


def shade(chance: float) -> int:
    """0 to 8: how strongly a cell is coloured, as in lens.js."""
    return 0 if chance != chance else min(8, int(chance * 9))
