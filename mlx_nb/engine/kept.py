"""KV caches that outlive their run: a chat goes on with them, and so does a run on a saved prompt cache."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_nb.engine.kv import KVEntry, offset_of
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.kept import KeptState

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run


@dataclass(slots=True, kw_only=True)
class KeptKV:
    """A whole model's KV cache list on one rank, other ranks' entries as ghosts.

    Attributes:
        entries: The list.
        tokens: What was fed, and perhaps some after it.
        own: The entries' places that hold data on this rank.
        whole: Whether every token but the last was fed for certain: the run came to its end.
    """

    entries: list[KVEntry]
    tokens: list[int]
    own: set[int]
    whole: bool

    def state(self) -> KeptState:
        """What it holds."""
        offsets = [offset for place in self.own if (offset := offset_of(self.entries[place])) >= 0]
        # States without positions (SSM) count nothing: only a run that came to its end tells what they have seen.
        count = min(offsets, default=len(self.tokens) - 1 if self.whole else 0)
        same = len(set(offsets)) <= 1 and (bool(offsets) or self.whole)
        trimmable = all(entry.is_trimmable() for entry in self.entries)
        counted = all(offset_of(entry) >= 0 for entry in self.entries)
        if not trimmable and not (same and (counted or self.whole)):
            count = 0
        return KeptState(tokens=tuple(self.tokens[:count]), trimmable=trimmable)

    def cut_to(self, count: int) -> list[KVEntry]:
        """Its entries, of which only the first `count` tokens are left.

        Raises:
            RunError: An entry cannot be cut back.
        """
        for entry in self.entries:
            if (excess := offset_of(entry) - count) <= 0:
                continue
            if not entry.is_trimmable() or entry.trim(excess) != excess:
                raise RunError(
                    f"A {type(entry).__name__} cannot be cut back to {count} tokens.", "Feed the prompt anew."
                )
        return self.entries


def keep(run: "Run") -> KeptKV:
    """What a run that has ended leaves behind."""
    return KeptKV(entries=run.kv, tokens=run.tokens, own=run.owned, whole=run.state == "finished")
