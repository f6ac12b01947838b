"""The statistics strip without a script: a picture of each rank's rows, and where each statistic is largest."""

import numpy as np

from mlx_nb.shared.statistics import STATISTICS
from mlx_nb.shared.text import format_number
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.png import BLUE, data_uri, palette_png
from mlx_nb.widgets.stats_state import StatsState, shades, unpack_numbers
from mlx_nb.widgets.view import still

WIDE = 720
BROKEN = 255
_INKS = np.array(
    [(*BLUE, 16 + at * 239 // 250) for at in range(251)] + [(0, 0, 0, 0)] * 4 + [(255, 212, 0, 255)], np.uint8
)


def stats_html(state: StatsState, numbers: bytes) -> str:
    """The whole view, self-contained."""
    chosen = next((each for each in state["statistics"] if each["name"] == state["chosen"]), None)
    said = chosen["sentence"] if chosen else ""
    strips = tag("div.mv-row", _strips(state, numbers))
    return still("stats", "Statistics", state["title"], state["chosen"], state["note"], strips, sentence=said)


def _strips(state: StatsState, numbers: bytes) -> Markup | None:
    if not state["rows"] or not numbers:
        return None
    values = unpack_numbers(state, numbers)[STATISTICS.index(state["chosen"])]
    finite = values[np.isfinite(values)]
    span = (
        f"{format_number(float(finite.min()))} to {format_number(float(finite.max()))}, on a logarithmic scale"
        if finite.size
        else ""
    )
    ranks = np.array([row["rank"] for row in state["rows"]])
    rows = []
    for rank in sorted(set(ranks.tolist())):
        here = np.flatnonzero(ranks == rank)
        names = [state["rows"][at]["name"] for at in here]
        png = strip_png(shades(values)[here])
        picture = tag(
            "img",
            src=data_uri(png),
            alt=f"rank {rank}: {state['chosen']} by row and token",
            width=WIDE,
            height=len(here) * 10,
        )
        name = tag("div.mq-names", f"{names[0]}–{names[-1]}" if len(names) > 1 else names[0])
        rows.append(tag("tr", tag("td", tag("b", f"rank {rank}"), name), tag("td.mq-bar", picture)))
    ends = tag(
        "tr",
        tag("td"),
        tag(
            "td.mq-ends",
            tag("span", f"token {state['start']}"),
            " ",
            tag("span", span),
            " ",
            tag("span", str(state["stop"] - 1)),
        ),
    )
    return tag("table.mq-static", tag("tbody", *rows, ends))


def strip_png(found: np.ndarray) -> bytes:
    """Rows of shades as a picture: ten pixels a row; what is not finite is yellow."""
    indices = np.where(np.isnan(found), BROKEN, np.nan_to_num(found) * 250).astype(np.uint8)
    times = max(1, WIDE // max(1, indices.shape[1]))
    return palette_png(indices.repeat(10, axis=0).repeat(times, axis=1), _INKS)
