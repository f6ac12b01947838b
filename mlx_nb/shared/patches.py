"""Changes to values at sites, as plain data: they travel to the ranks and into files."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.strides import Event

HOW = ("replace", "add", "scale")
FUNCTION = "function"

TokenWish = int | slice | range | tuple[int, ...] | list[int] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchSpec:
    """A change to the first array at a site.

    Attributes:
        number: Its id, counted from 1.
        site: As the user wrote it.
        pattern: A glob over sites as `Event.site` spells them.
        how: One of `HOW`, or ``function``.
        value: What it is replaced by, or what is added or multiplied; it broadcasts. None for a function.
        function: A function of the array, as cloudpickle packs it; it runs on the rank.
        tokens: Positions in the sequence; None for all. Half-open (start, stop) if `between`.
        between: Whether `tokens` is a start and a stop (-1: to the end).
    """

    number: int
    site: str
    pattern: str
    how: str = "replace"
    value: np.ndarray | None = None
    function: bytes = b""
    tokens: tuple[int, ...] | None = None
    between: bool = False

    def covers(self, event: Event) -> bool:
        """Whether it changes something at an event."""
        return event.at(self.pattern) and bool(self.tokens is None or self.positions(event))

    def positions(self, event: Event) -> list[int]:
        """The tokens of a pass that it changes, counted within the pass."""
        here = range(event.start, event.stop)
        if self.tokens is None:
            return list(range(len(here)))
        if self.between:
            start, stop = self.tokens
            return [token - event.start for token in here if start <= token and (stop < 0 or token < stop)]
        return [token - event.start for token in self.tokens if token in here]

    @property
    def tokens_text(self) -> str:
        """How a table shows its tokens."""
        if self.tokens is None:
            return "all"
        if self.between:
            return f"{self.tokens[0]}:{self.tokens[1] if self.tokens[1] >= 0 else ''}"
        return ",".join(map(str, self.tokens))


def parse_tokens(wish: TokenWish) -> tuple[tuple[int, ...] | None, bool]:
    """Tokens as `PatchSpec` has them.

    >>> parse_tokens(slice(3, None)), parse_tokens(5)
    (((3, -1), True), ((5,), False))

    Raises:
        OptionError: They are no positions.
    """
    if wish is None:
        return None, False
    if not _are_places(wish):
        raise OptionError(
            f"{wish!r:.60} names no tokens.", "Type: tokens=5, tokens=[5, 7], or tokens=slice(3, 7)"
        )
    if isinstance(wish, slice):
        if wish.step not in (None, 1) or (wish.start or 0) < 0 or (wish.stop is not None and wish.stop < 0):
            raise OptionError(f"{wish} is no span of tokens.", "Type: tokens=slice(3, 7), counted from 0")
        return (wish.start or 0, -1 if wish.stop is None else wish.stop), True
    places = tuple(int(token) for token in (wish if isinstance(wish, Iterable) else (wish,)))
    if any(token < 0 for token in places):
        raise OptionError(
            "Tokens are counted from 0, prompt included.", "Type: tokens=5, or tokens=slice(3, 7)"
        )
    return places, False


def _are_places(wish: object) -> bool:
    """Whether all of it are whole numbers; numpy's as well."""
    if isinstance(wish, slice):
        items = [one for one in (wish.start, wish.stop, wish.step) if one is not None]
    else:
        items = list(wish) if isinstance(wish, Iterable) else [wish]
    return all(hasattr(one, "__index__") and not isinstance(one, bool) for one in items)
