"""How ranks hand values to each other: the protocol, and the loopback that tests run on.

A transport never blocks and never waits: a run asks again, and stands aside in between, so that a
stopped rank can still be asked questions.
"""

from collections import defaultdict, deque
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from mlx_nb.engine.pytree import Tree, arrays_of, flatten, unflatten

SILENCE_S = 9.5
"""How long another rank may give no sign of life. A user is promised 10 s, and the report takes its way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A value that came from another rank."""

    value: Tree
    size_bytes: int
    seconds: float


class Transport(Protocol):
    """One rank's ends of the links to the other ranks.

    Attributes:
        rank: This rank.
        size: Ranks in all.
    """

    rank: int
    size: int

    def send(self, target: int, run_id: int, value: Tree) -> None:
        """Start sending; returns at once. The value is evaluated by then and copied if need be."""

    def poll(self, source: int, run_id: int) -> Arrival | None:
        """The next value of this run from `source`, if it has arrived whole.

        Raises:
            RankLostError: The peer's process is gone.
        """

    def abort(self, run_id: int, reason: str, *, interrupted: bool = False) -> None:
        """Tell every other rank that this run is given up, or was interrupted."""

    def check(self, run_id: int) -> None:
        """Look for signals; costs microseconds.

        Raises:
            RunInterruptedError: Another rank was interrupted.
            RunError: Another rank has given this run up.
        """

    def silent_s(self, source: int) -> float:
        """Seconds since `source` last gave a sign of life."""

    def begin(self, run_id: int) -> None:
        """This rank takes part in a run from here on: signs of life are sent until `end`."""

    def end(self, run_id: int) -> None:
        """This rank has left the run."""

    def forget(self, run_id: int) -> None:
        """Drain what a finished run left in flight."""


class LoopbackWorld:
    """Ranks in one process and one thread, for tests: mailboxes instead of a network."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.mail: dict[tuple[int, int, int], deque[tuple[str, list[mx.array]]]] = defaultdict(deque)
        self.aborted: dict[int, str] = {}

    def transports(self) -> list["Loopback"]:
        return [Loopback(self, rank) for rank in range(self.size)]


class Loopback:
    """One rank's end in a `LoopbackWorld`; values are flattened and rebuilt as over a real link."""

    def __init__(self, world: LoopbackWorld, rank: int) -> None:
        self.world = world
        self.rank = rank
        self.size = world.size

    def send(self, target: int, run_id: int, value: Tree) -> None:
        header, arrays = flatten(value)
        copies = [mx.array(array) for array in arrays]
        mx.eval(copies)
        self.world.mail[self.rank, target, run_id].append((header, copies))

    def poll(self, source: int, run_id: int) -> Arrival | None:
        box = self.world.mail[source, self.rank, run_id]
        if not box:
            return None
        header, arrays = box.popleft()
        value = unflatten(header, arrays)
        return Arrival(value=value, size_bytes=sum(a.nbytes for a in arrays_of(value)), seconds=0.0)

    def abort(self, run_id: int, reason: str, *, interrupted: bool = False) -> None:
        self.world.aborted[run_id] = reason

    def check(self, run_id: int) -> None:
        pass

    def silent_s(self, source: int) -> float:
        return 0.0

    def begin(self, run_id: int) -> None:
        pass

    def end(self, run_id: int) -> None:
        pass

    def forget(self, run_id: int) -> None:
        for key in [key for key in self.world.mail if key[1:] == (self.rank, run_id)]:
            del self.world.mail[key]
