"""What the statistics strip shows, as plain data: a number for each site and token, packed for the browser."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from mlx_nb.shared.statistics import STATISTICS, TokenStatistics
from mlx_nb.shared.text import as_token

MOST_COLUMNS = 480
"""So many columns travel; of more tokens several share one, which has the largest of their values."""

WORDS = {
    "rms": "root of the mean square of each token's vector: how long it is",
    "absmax": "largest magnitude in each token's vector: outlier channels",
    "std": "spread of each token's vector around its mean",
    "nonfinite": "how many of each token's values are NaN or infinite",
}


class RowState(TypedDict):
    """A site: what it is called, its whole name, its rank, its layer (-1: none)."""

    name: str
    site: str
    rank: int
    layer: int


class StatisticState(TypedDict):
    """A statistic: its name, what it means, and where it is largest in a sentence."""

    name: str
    words: str
    sentence: str


class StatsState(TypedDict):
    """Everything but the numbers.

    Column c stands for the tokens from ``start + c * each`` on, `each` of them. `tokens` has their texts where they
    are known. `chosen` is the statistic that is shown first. `text` is all in plain text.
    """

    title: str
    note: str
    rows: list[RowState]
    statistics: list[StatisticState]
    chosen: str
    start: int
    stop: int
    each: int
    tokens: list[str]
    text: str


def stats_state(
    found: TokenStatistics, site: str = "", chosen: str = "rms", tokens: Sequence[str] = ()
) -> tuple[StatsState, bytes]:
    """All that is shown, and the numbers: ``[STATISTICS, N, columns]`` float32."""
    sites, length = found.shape
    each = max(1, -(-length // MOST_COLUMNS))
    columns = -(-length // each)
    values = np.stack([found[name] for name in STATISTICS])
    values = np.pad(values, ((0, 0), (0, 0), (0, columns * each - length)), mode="edge")
    pooled = values.reshape(len(STATISTICS), sites, columns, each).max(axis=-1)  # NaN outweighs all
    shared = f", {each} tokens a column: the largest of theirs" if each > 1 else ""
    state = StatsState(
        title=found.model,
        note=f"{site or found.sites[0]} · {sites} × {length} tokens{shared}",
        rows=[
            RowState(name=name, site=whole, rank=rank, layer=layer)
            for name, whole, rank, layer in zip(
                found.rows, found.sites, found.ranks, found.layers, strict=True
            )
        ],
        statistics=[StatisticState(name=n, words=WORDS[n], sentence=found.sentence(n)) for n in STATISTICS],
        chosen=chosen,
        start=found.start,
        stop=found.start + length,
        each=each,
        tokens=[as_token(text) for text in tokens] if each == 1 else [],
        text=repr(found),
    )
    return state, np.ascontiguousarray(pooled, "<f4").tobytes()


def unpack_numbers(state: StatsState, packed: bytes) -> np.ndarray:
    """``[STATISTICS, N, columns]``."""
    return np.frombuffer(packed, "<f4").reshape(len(STATISTICS), max(1, len(state["rows"])), -1)


def shades(values: np.ndarray) -> np.ndarray:
    """0 to 1 for each value on a logarithmic scale between the least and the largest; NaN stays NaN. As in stats.js."""
    finite = values[np.isfinite(values) & (values > 0)]
    if not finite.size:
        return np.where(np.isfinite(values), 0.0, np.nan)
    low, high = np.log(finite.min()), np.log(finite.max())
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (np.log(values) - low) / (high - low) if high > low else np.ones_like(values)
    return np.where(values == 0, 0.0, np.clip(found, 0.0, 1.0))
