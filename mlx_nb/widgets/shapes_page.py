"""A model's sites as a page without a script: the modules as a tree, layers that are alike told once."""

import re
from itertools import groupby

from mlx_nb.shared.model_sizes import SiteRow, SiteTable
from mlx_nb.shared.text import format_size
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.view import still

HEADS = (
    ("module", "Its path; a site is that with .input or .output behind it"),
    ("class", "The class that runs"),
    ("returns", "B batch, L tokens of a pass, D hidden, H query heads, K KV heads, V vocabulary"),
    ("dtype", ""),
    ("parameters", "With all modules inside it"),
    ("bytes", "Of these, as they are stored"),
)
_LAYER = re.compile(r"^(.*\blayers|.*\bh|.*\bblocks)\.(\d+)(?:\.|$)")
MOST = 1500
"""So many rows are shown."""


def shapes_html(table: SiteTable) -> str:
    """The whole page, self-contained."""
    groups = _groups(list(table))
    alike = sum(len(rows) for _, rows in groups)
    told = f" · {alike} rows, since layers that are alike are told once" if alike < len(table) else ""
    bodies, shown = [], 0
    for name, rows in groups:
        if shown >= MOST:
            break
        bodies.append(
            tag("tbody", _title(name) if name else None, *(_row(row) for row in rows[: MOST - shown]))
        )
        shown += len(rows)
    more = f"{alike - MOST} more rows: sites[…] filters them." if alike > MOST else ""
    heads = (tag("th", name, scope="col", title=words or None) for name, words in HEADS)
    sites = tag("table.mw-table.mv-numbers", tag("thead", tag("tr", *heads)), *bodies)
    note = f"{len(table)} site{'' if len(table) == 1 else 's'}{told}"
    hint = more or ("" if len(table) else repr(table).split("\n")[-1].strip())
    return still(
        "shapes", "Shapes", table.model, "shapes", note, tag("div.mv-row.mw-scroll", sites), sentence=hint
    )


def _groups(rows: list[SiteRow]) -> list[tuple[str, list[SiteRow]]]:
    """What stands before and behind the layers, and layers that follow each other and are alike."""
    found: list[tuple[str, list[SiteRow]]] = []
    alike: list[int] = []
    for layer, group in groupby(rows, key=_layer_of):
        members = list(group)
        if layer < 0:
            found.append(("behind the layers" if found else "", members))
            alike = []
        elif alike and _shape_of(members) == _shape_of(found[-1][1]):
            alike.append(layer)
            found[-1] = (f"layers {alike[0]}–{alike[-1]}, alike", found[-1][1])
        else:
            alike = [layer]
            found.append((f"layer {layer}", members))
    return found


def _layer_of(row: SiteRow) -> int:
    found = _LAYER.match(row.site.removesuffix(".output"))
    return int(found[2]) if found else -1


def _shape_of(rows: list[SiteRow]) -> list[tuple[object, ...]]:
    return [
        (
            _LAYER.sub("", row.site),
            row.class_name,
            row.shape,
            row.dtype,
            row.calls,
            row.parameters,
            row.size_bytes,
        )
        for row in rows
    ]


def _title(name: str) -> Markup:
    return tag("tr.mw-group", tag("th", name, colspan=len(HEADS), scope="rowgroup"))


def _row(row: SiteRow) -> Markup:
    path = row.site.removesuffix(".output")
    stem, _, leaf = path.rpartition(".")
    calls = tag("small", f" ×{row.calls}", title=f"{row.calls} calls a pass") if row.calls > 1 else None
    texts = [row.class_name, row.shape, row.dtype]
    texts += [f"{row.parameters:,}", format_size(row.size_bytes)] if row.parameters else ["", ""]
    name = tag(
        "th", tag("span", f"{stem}." if stem else ""), leaf or "the model", calls, scope="row", title=row.site
    )
    return tag("tr", name, *(tag("td", text) for text in texts))
