"""KV caches that outlive their run: what a rank holds of them."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptState:
    """What one rank's kept KV caches hold.

    Attributes:
        tokens: The tokens that were fed; -1 where they are not known (a file of mlx-lm's does not tell).
        trimmable: Whether the last of them can be taken back.
    """

    tokens: tuple[int, ...]
    trimmable: bool


def reusable(states: Sequence[KeptState | None], tokens: Sequence[int]) -> int:
    """How many of a prompt's first tokens need not be fed again; at least its last one must.

    Ranks that were interrupted may have come unequally far: then all go back to the shortest.

    >>> state = KeptState(tokens=(5, 6, 7, 8), trimmable=True)
    >>> reusable([state, state], [5, 6, 9, 9])
    2
    """
    held = [state for state in states if state is not None]
    if not held or len(held) < len(states):
        return 0
    shortest = min((state.tokens for state in held), key=len)
    count = 0
    for one, other in zip(shortest, tokens[:-1], strict=False):
        if one not in (other, -1):
            break
        count += 1
    fits = all(state.trimmable or len(state.tokens) == count for state in held)
    return count if fits else 0
