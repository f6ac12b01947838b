"""The stops of one pass on one rank, as rows that cost little to write: most are never asked for."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from mlx_nb.shared.strides import Event

Row = tuple[str, str, int, int, int, bool, int]
"""An event's kind, module, depth, call, layer, whether it begins the pass, and its tick."""


@dataclass(slots=True)
class PassLog:
    """What came by in a pass.

    Attributes:
        rank: The rank.
        start, stop: The tokens of the pass.
        rows: In the order in which they came.
    """

    rank: int = 0
    start: int = 0
    stop: int = 0
    rows: list[Row] = field(default_factory=list)

    def event(self, place: int) -> Event:
        """One of the rows."""
        kind, module, depth, call, layer, begins_pass, tick = self.rows[place]
        return Event(
            kind=kind,
            module=module,
            depth=depth,
            call=call,
            layer=layer,
            begins_pass=begins_pass,
            rank=self.rank,
            start=self.start,
            stop=self.stop,
            tick=tick,
        )

    def __iter__(self) -> Iterator[Event]:
        return (self.event(place) for place in range(len(self.rows)))
