"""What the attention view shows, as plain data: all heads of a layer in few cells, one of them in full."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np

from mlx_nb.shared.text import as_token

MOST_CELLS = 256
"""So many rows and columns of the chosen head travel; of more tokens several share a cell, which has their largest share."""

THUMBNAIL = 32
"""As many of a head that is small."""


class LayerState(TypedDict):
    """A layer: its number, its rank, and why its attention cannot be seen ("" where it can)."""

    layer: int
    rank: int
    why: str


class SpanState(TypedDict):
    """An axis: its first position (-1: slots of a ring, in no order), how many there are, in so many cells."""

    first: int
    count: int
    cells: int


class AttentionState(TypedDict):
    """Everything but the shares.

    Rows are the tokens that ask (queries), columns those that are looked at (keys). `tokens` has the texts of all
    tokens from 0 on. `distance` says how far what was computed again is from what the model made.
    """

    title: str
    note: str
    layers: list[LayerState]
    layer: int
    rank: int
    heads: int
    head: int
    rows: SpanState
    columns: SpanState
    small: list[int]
    tokens: list[str]
    distance: str
    sentence: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Heads:
    """The attention of one layer over one pass.

    Shapes:
        small: ``[H, h, w]``, pooled by the largest.
        values: ``[h, w]`` of the chosen head, pooled so where there are more than `MOST_CELLS`.

    Attributes:
        rows, columns: The first position of each axis and how many there are; first -1 for slots in no order.
        error: The reconstruction error; None if it is not known.
    """

    layer: int
    rank: int
    head: int
    rows: tuple[int, int]
    columns: tuple[int, int]
    small: np.ndarray
    values: np.ndarray
    error: float | None = None


def attention_state(
    found: Heads, *, title: str, note: str, layers: Sequence[LayerState], tokens: Sequence[str], text: str
) -> tuple[AttentionState, bytes, bytes]:
    """All that is shown, the small heads as uint8 (share x 255), and the chosen one as float32."""
    height, width = found.values.shape
    error = found.error
    state = AttentionState(
        title=title,
        note=note,
        layers=list(layers),
        layer=found.layer,
        rank=found.rank,
        heads=len(found.small),
        head=found.head,
        rows=SpanState(first=found.rows[0], count=found.rows[1], cells=height),
        columns=SpanState(first=found.columns[0], count=found.columns[1], cells=width),
        small=list(found.small.shape[1:]),
        tokens=[as_token(one) for one in tokens],
        distance="" if error is None else f"{error:.1e}".replace("e-0", "e−").replace("e-", "e−"),
        sentence=sentence(found, [as_token(one) for one in tokens]),
        text=text,
    )
    return state, np.rint(found.small * 255).astype(np.uint8).tobytes(), found.values.astype("<f4").tobytes()


def sentence(found: Heads, tokens: Sequence[str]) -> str:
    """Where a head looks, on average over the tokens that ask; of pooled shares nothing can be said."""
    values, (first_row, rows), (first, columns) = found.values, found.rows, found.columns
    if values.shape != (rows, columns) or first != 0 or not np.isfinite(values).all() or rows < 2:
        return ""
    places = np.arange(first_row, first_row + rows)
    places = places[places < columns]
    own = np.arange(len(places))
    parts = [
        (float(values[:, 0].mean()), f"to token 0{f' {tokens[0]}' if tokens else ''}"),
        (float(values[own, places].mean()), "to the asking token itself"),
        (float(values[own[places > 0], places[places > 0] - 1].mean()), "to the token before it"),
    ]
    told = ", ".join(
        f"{share:.0%} {where}".replace("%", "\u00a0%") for share, where in sorted(parts, reverse=True)
    )
    return f"Head {found.head} of layer {found.layer} gives, on average, {told}."


def unpack_small(state: AttentionState, packed: bytes) -> np.ndarray:
    """``[H, h, w]`` uint8."""
    return np.frombuffer(packed, np.uint8).reshape(state["heads"], *state["small"])


def unpack_values(state: AttentionState, packed: bytes) -> np.ndarray:
    """``[h, w]`` float32."""
    return np.frombuffer(packed, "<f4").reshape(state["rows"]["cells"], state["columns"]["cells"])


def strongest(state: AttentionState, values: np.ndarray, row: int, count: int = 8) -> list[tuple[int, float]]:
    """The columns with the largest shares of a row, and these."""
    line = np.nan_to_num(values[row], nan=-1.0)
    order = np.argsort(-line, kind="stable")[:count]
    return [(int(column), float(values[row, column])) for column in order if line[column] > 0]


def name_cell(span: SpanState, cell: int, tokens: Sequence[str]) -> str:
    """The tokens that a cell stands for.

    >>> name_cell({"first": 4, "count": 8, "cells": 4}, 1, []), name_cell({"first": 0, "count": 2, "cells": 2}, 1, ["a", "b"])
    ('6–7', '1 b')
    """
    start = span["first"] + cell * span["count"] // span["cells"]
    stop = span["first"] + (cell + 1) * span["count"] // span["cells"]
    if span["first"] < 0:
        return f"slot {start + 1}" if stop - start == 1 else f"slots {start + 1}–{stop}"
    if stop - start > 1:
        return f"{start}–{stop - 1}"
    return f"{start} {tokens[start]}" if start < len(tokens) else str(start)
