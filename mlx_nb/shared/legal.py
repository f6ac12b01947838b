"""Which cuts a model allows, as plain data, and how a split keeps to them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_nb.shared.errors import PlanError
from mlx_nb.shared.text import format_numbers


@dataclass(frozen=True, slots=True, kw_only=True)
class LegalCuts:
    """Where a model may be cut.

    Attributes:
        num_layers: Layers in the whole model; a cut before layer i has i from 1 to num_layers - 1.
        legal: The layers that a rank may begin with, besides layer 0, rising.
        refused: Why each of the others is none, as a sentence.
        along: What the hop at a legal cut carries besides the hidden state, as words; not there if nothing.
    """

    num_layers: int
    legal: tuple[int, ...]
    refused: dict[int, str] = field(default_factory=dict)
    along: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Where the model may be cut, as words.

        >>> print(LegalCuts(num_layers=30, legal=tuple(range(1, 30))))
        before any layer from 1 to 29
        >>> print(LegalCuts(num_layers=6, legal=(1, 2, 4), refused={3: "…", 5: "…"}, along={4: "K/V of 2 KV caches"}))
        before layers 1–2, 4, not before 3, 5; with K/V of 2 KV caches before 4
        """
        if not self.legal:
            return "nowhere"
        if not self.refused:
            last = self.num_layers - 1
            where = f"before any layer from 1 to {last}" if last > 1 else "before layer 1"
        else:
            plural = "s" if len(self.legal) > 1 else ""
            where = f"before layer{plural} {format_numbers(self.legal)}, not before {format_numbers(sorted(self.refused))}"
        for words in dict.fromkeys(self.along[cut] for cut in sorted(self.along)):
            cuts = [cut for cut in sorted(self.along) if self.along[cut] == words]
            where += f"; with {words} before {format_numbers(cuts)}"
        return where

    def near(self, cut: int, count: int = 2) -> list[int]:
        """The legal cuts nearest to one that is not, rising."""
        return sorted(sorted(self.legal, key=lambda other: (abs(other - cut), other))[:count])


def choose_counts(cuts: LegalCuts, counts: Sequence[int], *, even: bool, model: str) -> tuple[list[int], str]:
    """Layers per rank at legal cuts.

    An even split is moved to the nearest legal cuts; one that was asked for is taken or refused.

    Args:
        cuts: Where the model may be cut.
        counts: Layers per rank, rank 0 first; they cover the model.
        even: Whether they were worked out and not asked for.
        model: The model's name, for errors.

    Returns:
        The layers per rank, and what to say about them ("" if they are as they were).

    Raises:
        PlanError: A cut that was asked for is not legal, or there are too few legal ones.
    """
    wanted = [sum(counts[: rank + 1]) for rank in range(len(counts) - 1)]
    illegal = [cut for cut in wanted if cut in cuts.refused]
    if not illegal:
        return list(counts), ""
    why, most = cuts.refused[illegal[0]], len(cuts.legal) + 1
    if most < len(counts):
        raise PlanError(
            f"{model} cannot be divided over {len(counts)} ranks. {why}",
            f"Load it on {most} rank{'s' if most > 1 else ''}: %mlx_load {model} --ranks {most}",
        )
    moved = _nearest(wanted, cuts.legal)
    better = [stop - start for start, stop in zip([0, *moved], [*moved, cuts.num_layers], strict=True)]
    shown = ",".join(map(str, better))
    if not even:
        near = ", ".join(map(str, cuts.near(illegal[0])))
        raise PlanError(f"{why} Legal cuts near: {near}.", f"Type: %mlx_load {model} --split {shown}")
    return better, f"moved to the nearest legal cuts, {shown}. {why}"


def _nearest(wanted: Sequence[int], legal: Sequence[int]) -> list[int]:
    """For each wanted cut a legal one, rising, so that together they move as little as can be."""
    best: dict[int, tuple[int, list[int]]] = {-1: (0, [])}
    for cut in wanted:
        reached: dict[int, tuple[int, list[int]]] = {}
        for place, option in enumerate(legal):
            before = [(cost, way) for last, (cost, way) in best.items() if last < place]
            if before:
                cost, way = min(before)
                reached[place] = (cost + abs(option - cut), [*way, option])
        best = reached
    return min(best.values())[1]
