"""How long to sleep between two looks for a message: shorter the nearer it is expected.

A look costs some 20 µs, so looking every 50 µs takes a fifth of a core from whoever computes on the
same machine; looking every millisecond makes each hop half a millisecond late. In steady state every
hop of a phase takes about as long as the one before, so the last waits say when to look closely.
"""

from dataclasses import dataclass, field

SPIN_S = 0.0005
SHORTEST_S, LONGEST_S = 0.00005, 0.001
_SHARPNESS = 8
_MEMORY = 0.5


@dataclass(slots=True)
class Patience:
    """Remembers how long waits took, by what was waited for.

    Attributes:
        expected_s: A moving mean of past waits, in seconds.
    """

    expected_s: dict[str, float] = field(default_factory=dict)

    def nap_s(self, what: str, waited_s: float) -> float:
        """Seconds to sleep after having waited so long; 0 for a look at once.

        A message that is early is noticed a longest nap late at worst, one that comes when it is expected
        a shortest.
        """
        expected = self.expected_s.get(what, 0.0)
        if waited_s < SPIN_S or abs(waited_s - expected) < SHORTEST_S:
            return 0.0
        distance = abs(expected - waited_s) / _SHARPNESS
        return min(max(distance, SHORTEST_S), LONGEST_S)

    def learn(self, what: str, waited_s: float) -> None:
        """A wait is over."""
        before = self.expected_s.get(what)
        self.expected_s[what] = waited_s if before is None else before + _MEMORY * (waited_s - before)
