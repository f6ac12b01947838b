"""Attention without a script: a picture of every head, the chosen one large, and what the last tokens look at."""

import numpy as np

from mlx_nb.widgets.attention_state import (
    AttentionState,
    name_cell,
    strongest,
    unpack_small,
    unpack_values,
)
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.png import data_uri, palette_png
from mlx_nb.widgets.view import still

LAST_ROWS = 6
BROKEN = 255
INK = (64, 130, 235)
"""Between the blue of light and that of dark: one file for both."""
LARGE = 440
_INKS = np.array([(*INK, at) for at in range(255)] + [(255, 225, 77, 255)], np.uint8)


def attention_html(state: AttentionState, small: bytes, values: bytes) -> str:
    """The whole view, self-contained."""
    parts: list[Markup | None] = []
    if state["heads"] and values:
        large = unpack_values(state, values)
        heads = [_small(place, head) for place, head in enumerate(unpack_small(state, small) / 255.0)]
        heads[state["head"]] = tag(
            "div.ma-head.chosen", *_inside(state["head"], unpack_small(state, small)[state["head"]] / 255.0)
        )
        words = f"head {state['head']}: rows ask, columns are looked at"
        picture = tag(
            "img.ma-large", src=data_uri(shares_png(large, max(1, LARGE // max(large.shape)))), alt=words
        )
        side = tag("div.ma-side", tag("div.mv-title", f"head {state['head']}"), _table(state, large))
        parts = [tag("div.mv-row.ma-heads", *heads), tag("div.ma-panes", tag("div.ma-plot", picture), side)]
    where = f"attention · layer {state['layer']} · rank {state['rank']}"
    return still(
        "attention", "Attention", state["title"], where, _note(state), *parts, sentence=state["sentence"]
    )


def _note(state: AttentionState) -> str:
    if not state["distance"]:
        return state["note"]
    return f"{state['note']} · computed again, off by {state['distance']} at most"


def _inside(place: int, shares: np.ndarray) -> tuple[Markup, Markup]:
    return tag("img", src=data_uri(shares_png(shares, 2)), alt=f"head {place}"), tag("span", str(place))


def _small(place: int, shares: np.ndarray) -> Markup:
    return tag("div.ma-head", *_inside(place, shares))


def _table(state: AttentionState, values: np.ndarray) -> Markup:
    rows = []
    for row in range(max(0, len(values) - LAST_ROWS), len(values)):
        found = "; ".join(
            f"{name_cell(state['columns'], column, state['tokens'])} {100 * share:.0f} %"
            for column, share in strongest(state, values, row, 2)
        )
        asking = name_cell(state["rows"], row, state["tokens"])
        rows.append(tag("tr", tag("th", asking, scope="row"), tag("td", found)))
    head = tag("tr", tag("th", "token", scope="col"), tag("th", "looks most at", scope="col"))
    return tag("table.mv-numbers", tag("thead", head), tag("tbody", *rows))


def shares_png(shares: np.ndarray, times: int) -> bytes:
    """Shares as a picture, each so many pixels wide and high; a root makes small ones visible, as in attention.js."""
    with np.errstate(invalid="ignore"):
        indices = np.rint(np.sqrt(np.clip(np.nan_to_num(shares), 0, 1)) * 254)
    indices = np.where(np.isfinite(shares), indices, BROKEN).astype(np.uint8)
    return palette_png(indices.repeat(times, axis=0).repeat(times, axis=1), _INKS)
