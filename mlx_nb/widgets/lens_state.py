"""What the lens's view shows, as plain data: a cell for each layer and position, packed for the browser."""

from typing import TypedDict

import numpy as np

from mlx_nb.shared.lens import Lens
from mlx_nb.shared.text import as_token

MOST_TOP = 10
"""So many tokens of each cell travel."""

MOST_POSITIONS = 64
"""So many columns are drawn; with 64 layers and ten tokens each a message of 380 KiB."""


class RowState(TypedDict):
    """A layer: its name (``embed``, ``0``), and the rank that it is on."""

    name: str
    rank: int


class ColumnState(TypedDict):
    """A position: its place in the sequence, its token, what the model answers there, from which row on that is
    the most probable token (-1: the logits are not finite), and all that in a sentence."""

    position: int
    text: str
    answer: str
    appears: int
    sentence: str


class LensState(TypedDict):
    """Everything but the cells.

    `top` tokens are listed in each cell; their numbers there are places in `texts`. `text` is all in plain text.
    """

    title: str
    note: str
    head_rank: int
    rows: list[RowState]
    columns: list[ColumnState]
    texts: list[str]
    top: int
    text: str


def cell_dtype(top: int) -> np.dtype:
    """One cell: entropy, the answer's probability and place there, the most probable tokens and how probable they are."""
    return np.dtype(
        [
            ("entropy_bits", "<f4"),
            ("answer", "<f4"),
            ("place", "<i4"),
            ("tokens", "<i4", (top,)),
            ("probabilities", "<f4", (top,)),
        ]
    )


def lens_state(lens: Lens) -> tuple[LensState, bytes]:
    """All that is shown, and its cells: row by row, `cell_dtype` each; of many positions the last ones."""
    shown = range(max(0, len(lens.positions) - MOST_POSITIONS), len(lens.positions))
    top = min(MOST_TOP, lens.ids.shape[-1])
    ids = lens.ids[:, shown.start :, :top]
    known = sorted({int(token) for token in ids.ravel()})
    cells = np.zeros(ids.shape[:2], cell_dtype(top))
    cells["entropy_bits"] = lens.entropy_bits[:, shown.start :]
    cells["tokens"] = np.searchsorted(np.array(known), ids)
    cells["probabilities"] = lens.probabilities[:, shown.start :, :top]
    for at, place in enumerate(shown):
        cells["answer"][:, at] = lens.read[place].answer_probabilities
        cells["place"][:, at] = lens.read[place].answer_places
    hidden = f"; the last {len(shown)} of {len(lens.positions)} are shown" if shown.start else ""
    state = LensState(
        title=lens.model,
        note=f"{len(lens.rows)} rows × {len(lens.positions)} positions{hidden} · read by the norm and head of rank {lens.head_rank}",
        head_rank=lens.head_rank,
        rows=[RowState(name=name, rank=rank) for name, rank in zip(lens.rows, lens.ranks, strict=True)],
        columns=[
            ColumnState(
                position=lens.positions[place],
                text=as_token(lens.text_of(lens.fed[place])),
                answer=as_token(lens.text_of(lens.read[place].answer)),
                appears=lens.appears_at(place),
                sentence=lens.sentence(place),
            )
            for place in shown
        ],
        texts=[as_token(lens.text_of(token)) for token in known],
        top=top,
        text=repr(lens),
    )
    return state, cells.tobytes()


def unpack_cells(state: LensState, packed: bytes) -> np.ndarray:
    """Packed cells as a structured array, ``[rows, columns]``."""
    return np.frombuffer(packed, cell_dtype(state["top"])).reshape(-1, max(1, len(state["columns"])))
