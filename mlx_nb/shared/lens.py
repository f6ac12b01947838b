"""The logit lens: what the model would say if it ended after each layer."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.readout import Readout
from mlx_nb.shared.text import Table

EMBEDDING = "embed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Lens:
    """Hidden states of every layer at some positions, read by the model's own norm and head.

    Shapes:
        N: Rows: the embedding where it can be read, then every layer. P: Positions.

    Attributes:
        model: The model's name.
        rows: What each row is: ``embed``, ``0``, ``1`` …
        ranks: The rank that each row's hidden states come from.
        positions: The places in the sequence, rising.
        read: What was found at each position.
        fed: The id of the token at each position.
        texts: The text of every token id in it.
        head_rank: The rank whose norm and head read them.
    """

    model: str
    rows: tuple[str, ...]
    ranks: tuple[int, ...]
    positions: tuple[int, ...]
    read: tuple[Readout, ...]
    fed: tuple[int, ...]
    texts: Mapping[int, str]
    head_rank: int = 0

    @property
    def entropy_bits(self) -> np.ndarray:
        """``[N, P]``: 0 is certain."""
        return np.stack([one.entropy_bits for one in self.read], axis=1)

    @property
    def ids(self) -> np.ndarray:
        """``[N, P, k]``: the most probable tokens, the first first; -1 where the logits are not finite."""
        return np.stack([one.ids for one in self.read], axis=1)

    @property
    def probabilities(self) -> np.ndarray:
        """``[N, P, k]``, of `ids`."""
        return np.stack([one.probabilities for one in self.read], axis=1)

    def top(self, layer: int | str, token: int | None = None) -> list[tuple[str, float]]:
        """The most probable tokens after a layer, with their probabilities.

        Args:
            layer: Its number, or ``embed``; -1 is the last.
            token: A position; None is the last.

        Raises:
            OptionError: That was not read.
        """
        place = self.place_of(token)
        name = self.rows[-1] if layer == -1 else str(layer)
        if name not in self.rows:
            raise OptionError(
                f"There is no layer {layer} here.", f"It has: {self.rows[0]} to {self.rows[-1]}."
            )
        row, read = self.rows.index(name), self.read[place]
        return [
            (self.text_of(int(token)), float(chance))
            for token, chance in zip(read.ids[row], read.probabilities[row], strict=True)
        ]

    def appears(self, token: int | None = None) -> str:
        """The row from which on the model's answer is the most probable token; empty if it never is.

        Raises:
            OptionError: The position was not read.
        """
        found = self.appears_at(self.place_of(token))
        return self.rows[found] if found >= 0 else ""

    def appears_at(self, place: int) -> int:
        """As `appears`, for a place in `positions`, as a place in `rows`; -1 for never."""
        first = -1
        for row in reversed(range(len(self.rows))):
            if self.read[place].answer < 0 or int(self.read[place].answer_places[row]) > 0:
                break
            first = row
        return first

    def place_of(self, token: int | None) -> int:
        """Where a position is in `positions`; None is the last.

        Raises:
            OptionError: It was not read.
        """
        if token is None:
            return len(self.positions) - 1
        if token not in self.positions:
            raise OptionError(
                f"Token {token} was not read.",
                f"Read were {self.positions[0]}–{self.positions[-1]}: pipe.lens(…, tokens=[{token}])",
            )
        return self.positions.index(token)

    def text_of(self, token: int) -> str:
        """A token's text, as it is; ``NaN`` for -1."""
        return "NaN" if token < 0 else self.texts.get(token, f"<{token}>")

    def table(self, token: int | None = None) -> Table:
        """A row for each layer at one position, the head first: rank, entropy in bits, how probable the answer
        is and its place among all tokens, the three most probable tokens."""
        place = self.place_of(token)
        read = self.read[place]
        rows = [["layer", "rank", "bits", "answer", "place", "most probable", "", ""]]
        for at, name in enumerate(self.rows):
            best = [
                f"{self.text_of(int(i))!r} {p:.0%}"
                for i, p in zip(read.ids[at][:3], read.probabilities[at][:3], strict=True)
            ]
            rank = f"#{int(read.answer_places[at]) + 1:,}" if read.answer >= 0 else ""
            chance = f"{float(read.answer_probabilities[at]):.1%}" if read.answer >= 0 else ""
            rows.append(
                [name, str(self.ranks[at]), f"{float(read.entropy_bits[at]):.1f}", chance, rank, *best]
            )
        return Table(rows, right=(1, 2, 3, 4))

    def sentence(self, place: int) -> str:
        """What happens at one position, in words."""
        read = self.read[place]
        if read.answer < 0:
            return "The last layer's logits are not finite."
        at = self.appears_at(place)
        name = self.rows[at]
        where = "the embedding" if name == EMBEDDING else f"layer {name} (rank {self.ranks[at]})"
        return (
            f"After token {self.positions[place]} {self.text_of(self.fed[place])!r} the model says "
            f"{self.text_of(read.answer)!r} ({100 * float(read.answer_probabilities[-1]):.0f} %): the most probable from {where} on."
        )

    def __repr__(self) -> str:
        spans = [f"rank {rank}: {rows}" for rank, rows in self.spans()]
        what = f"{len(self.rows)} rows × {len(self.positions)} positions"
        place = len(self.positions) - 1
        return f"{' · '.join([f'Lens {self.model}', what, *spans])}\n{self.table()}\n {self.sentence(place)}"

    def spans(self) -> list[tuple[int, str]]:
        """Which rows come from each rank: ``(0, "embed–14")``."""
        found = []
        for rank in sorted(set(self.ranks)):
            names = [name for name, whose in zip(self.rows, self.ranks, strict=True) if whose == rank]
            found.append((rank, names[0] if len(names) == 1 else f"{names[0]}–{names[-1]}"))
        return found
