"""What the view of a comparison shows, as plain data: a row for each site, and the difference at one of them."""

from collections.abc import Mapping, Sequence
from math import log10
from typing import TypedDict

import numpy as np

from mlx_nb.shared.diff_report import DiffReport, DiffRow
from mlx_nb.shared.preview import make_preview, unpack_preview
from mlx_nb.shared.text import format_number

GAP_ROWS, GAP_COLUMNS = 96, 384
"""So many cells of a difference travel."""

LEAST = 1e-8
"""A relative distance of this and less has no bar; 1 and more has the longest."""


class RowState(TypedDict):
    """A site: its numbers as text, the lengths of its bars from 0 to 1, and whether one can look inside."""

    site: str
    rank: str
    layer: int
    opens: bool
    verdict: str
    texts: list[str]
    free: float
    forced: float
    allowed: float


class GapState(TypedDict):
    """The difference at a site: its shape, the largest magnitude and where it is, the picture's cells."""

    site: str
    words: str
    height: int
    width: int


class DiffState(TypedDict):
    """Everything but the picture. `inside` has the rows of layers that were looked into, by their number."""

    title: str
    note: str
    ok: bool
    heads: list[str]
    rows: list[RowState]
    inside: dict[str, list[RowState]]
    told: list[str]
    gap: GapState
    sentence: str
    text: str


NO_GAP = GapState(site="", words="", height=0, width=0)
HEADS = ["max", "mean", "relative", "forced"]


def diff_state(
    report: DiffReport,
    inside: Mapping[int, Sequence[DiffRow]],
    gap: tuple[str, np.ndarray] | None = None,
) -> tuple[DiffState, bytes]:
    """All that is shown, and the difference as `shared.preview` packs it."""
    opens = report.closer is not None
    packed, found = b"", NO_GAP
    if gap is not None:
        site, values = gap
        packed = make_preview(values, GAP_ROWS, GAP_COLUMNS)
        width, height, _ = unpack_preview(packed)
        found = GapState(site=site, words=_largest(values), height=height, width=width)
    bad = sum(row.verdict != "same" for row in report.rows)
    state = DiffState(
        title=report.model,
        note=f"against {report.other} · {report.tokens} tokens · "
        + ("all the same" if report.ok else f"{bad} of {len(report.rows)} sites differ"),
        ok=report.ok,
        heads=HEADS,
        rows=[row_state(row, opens=opens) for row in report.rows],
        inside={str(layer): [row_state(row, opens=False) for row in rows] for layer, rows in inside.items()},
        told=[*report.lines(), *report.notes],
        gap=found,
        sentence="A bar is the relative distance of free runs, from 1e-8 to 1; the mark is that of the forced run, the line "
        "is what is let pass.",
        text=str(report),
    )
    return state, packed


def row_state(row: DiffRow, *, opens: bool) -> RowState:
    """One site."""
    free, forced = row.free, row.forced
    shapes = " and ".join(str(list(shape)) for shape in row.shapes or ())
    numbers = [_number(n) for n in (free.max, free.mean, free.relative)] if free else [shapes, "", ""]
    ranks = str(row.rank) if row.rank == row.other_rank else f"{row.rank} / {row.other_rank}"
    holes = f"{free.holes} NaN or Inf" if free and free.holes else ""
    return RowState(
        site=row.site,
        rank=ranks,
        layer=row.layer,
        opens=opens and row.layer >= 0,
        verdict="" if row.verdict == "same" else " · ".join(filter(None, [row.verdict, holes])),
        texts=[*numbers, _number(forced.relative) if forced else ""],
        free=_length(free.relative) if free else 1.0,
        forced=_length(forced.relative) if forced else -1.0,
        allowed=_length(row.tolerance),
    )


def _number(value: float) -> str:
    return format_number(value).replace("-", "−")


def _length(relative: float) -> float:
    """0 to 1 on a logarithmic scale.

    >>> _length(1e-4), _length(0.0), _length(7.0), _length(float("nan"))
    (0.5, 0.0, 1.0, 1.0)
    """
    if not relative < 1:
        return 1.0
    return max(0.0, 1 - log10(relative) / log10(LEAST)) if relative > LEAST else 0.0


def _largest(values: np.ndarray) -> str:
    shape = "×".join(map(str, values.shape))
    broken = int((~np.isfinite(values)).sum())
    finite = np.where(np.isfinite(values), np.abs(values), 0.0)
    if not values.size:
        return shape
    at = np.unravel_index(int(finite.argmax()), values.shape)
    lost = f" · {broken} NaN or Inf" if broken else ""
    return f"{shape} · largest {_number(float(values[at]))} at [{','.join(map(str, map(int, at)))}]{lost}"
