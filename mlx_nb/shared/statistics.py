"""Each token's vector in a few numbers, at one site after another: where a run grows, saturates or breaks."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.text import format_number, format_table

STATISTICS = ("rms", "absmax", "std", "nonfinite")
"""The root of the mean square, the largest magnitude, the spread, and how many are NaN or infinite."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStatistics:
    """One number for each site and token, of several kinds.

    Shapes:
        N: Sites. L: Tokens.

    Attributes:
        model: The model's name.
        rows: What each site is called: ``3`` for a layer's own, else its short spelling.
        sites, ranks, layers: Of each row; a layer of -1 is none.
        start: The position of the first token.
        values: For each of `STATISTICS` ``[N, L]`` float32; the first three over the finite elements, NaN if there is none.
    """

    model: str
    rows: tuple[str, ...]
    sites: tuple[str, ...]
    ranks: tuple[int, ...]
    layers: tuple[int, ...]
    start: int
    values: dict[str, np.ndarray]

    def __getitem__(self, name: str) -> np.ndarray:
        """One of `STATISTICS`, ``[N, L]``.

        Raises:
            OptionError: There is no such statistic.
        """
        return self.values[check_statistic(name)]

    @property
    def shape(self) -> tuple[int, int]:
        """Sites, tokens."""
        sites, tokens = self.values["rms"].shape
        return sites, tokens

    def largest(self, name: str) -> tuple[int, int] | None:
        """The row and column of the largest finite value; None if there is none."""
        values = np.where(np.isfinite(self[name]), self[name], -1.0)
        if not values.size or values.max() < 0:
            return None
        row, column = np.unravel_index(int(values.argmax()), values.shape)
        return int(row), int(column)

    def sentence(self, name: str) -> str:
        """Where a statistic is largest, and whether anything is not finite."""
        found = self.largest(name)
        broken = int((self["nonfinite"] > 0).sum())
        text = ""
        if found is not None:
            row, column = found
            text = f"{name} is largest, {format_number(float(self[name][row, column]))}, at token {self.start + column} of {self.sites[row]}."
        if broken:
            text += f" {broken} of {self['nonfinite'].size} vectors have NaN or Inf."
        return text.strip()

    def __repr__(self) -> str:
        sites, tokens = self.shape
        rows = [
            [
                "site",
                "rank",
                *(f"{name} median" for name in STATISTICS[:2]),
                "absmax most",
                "at token",
                "NaN, Inf",
            ]
        ]
        for row in range(sites):
            most = self["absmax"][row]
            at = int(np.nanargmax(most)) if np.isfinite(most).any() else -1
            numbers = [format_number(_median(self[name][row])) for name in STATISTICS[:2]]
            top = [format_number(float(most[at])), str(self.start + at)] if at >= 0 else ["", ""]
            rows.append(
                [self.rows[row], str(self.ranks[row]), *numbers, *top, str(int(self["nonfinite"][row].sum()))]
            )
        head = f"Statistics {self.model} · {sites} sites × {tokens} tokens"
        return f"{head}\n{format_table(rows, right=range(1, 7))}\n {self.sentence('absmax')}"


def _median(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if finite.size else float("nan")


def check_statistic(name: str) -> str:
    """The name of a statistic.

    Raises:
        OptionError: It is none.
    """
    if name not in STATISTICS:
        raise OptionError(f"There is no statistic {name!r}.", f"Type one of: {', '.join(STATISTICS)}.")
    return name


def numpy_statistics(parts: Sequence[np.ndarray], axis: int) -> np.ndarray:
    """``[STATISTICS, L]`` of passes that follow each other along `axis`; the engine does the same with MLX."""
    found = []
    for part in parts:
        rows = np.moveaxis(part.astype(np.float32), axis, 0).reshape(part.shape[axis], -1)
        finite = np.isfinite(rows)
        count = finite.sum(axis=1)
        kept = np.where(finite, rows, 0).astype(np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            mean, square = kept.sum(axis=1) / count, (kept**2).sum(axis=1) / count
            std = np.sqrt(np.where(finite, (kept - mean[:, None]) ** 2, 0).sum(axis=1) / count)
        largest = np.where(count > 0, np.abs(kept).max(axis=1, initial=0), np.nan)
        found.append(np.stack([np.sqrt(square), largest, std, rows.shape[1] - count]).astype(np.float32))
    return np.concatenate(found, axis=1)
