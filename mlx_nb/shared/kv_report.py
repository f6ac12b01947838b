"""What the KV caches of a run hold, rank by rank and layer by layer: numbers only, the arrays stay there."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import groupby

from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.text import format_share, format_table

_WORD_BITS = 32  # quantised numbers are packed into words of so many
_MOST_NAMED = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class KVBuffer:
    """One array of a KV cache entry.

    Attributes:
        name: ``keys``, ``values``, or what the class calls it (``state 0``, ``keys.scales``).
        shape: As it is read: the valid positions, in ``[B, K, S, …]`` where it has positions.
        held_shape: As it is allocated.
        dtype: Its dtype.
        used_bytes, held_bytes: Bytes of the valid part, and of all of it.
    """

    name: str
    shape: tuple[int, ...]
    held_shape: tuple[int, ...]
    dtype: str
    used_bytes: int
    held_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class KVEntryReport:
    """The KV cache entry of one layer.

    Attributes:
        rank, layer: Whose.
        place: Its place in the model's list of entries; -1 for a layer that only reads another's.
        class_name: mlx-lm's class; a tree prints its parts: ``CacheList(KVCache, ArraysCache)``.
        offset: Tokens that have gone through it; -1 for a class that counts none (SSM and conv states).
        capacity: Positions that fit before it grows or turns; 0 where there are none.
        rows: Tokens of each row of a batch; empty for one row.
        pending: Tokens of the run that it has not got: 0 unless it lags behind.
        positions: The token positions that it holds, in the order in which they lie in memory.
        ring_at: Where a ring writes next; -1 for no ring.
        kept: First positions that a ring never overwrites.
        left_padding: Padding of each batch row; empty for none.
        bits: Bits of a quantised entry; 0 for plain ones.
        trimmable: Whether it can be cut back.
        unused: Whether the model makes it and never writes to it (a layer without attention).
        reads: Earlier layers whose keys and values the layer reads; empty for a layer that has its own.
        buffers: Its arrays.
    """

    rank: Rank
    layer: LayerIndex
    place: int
    class_name: str
    offset: int
    capacity: int
    rows: tuple[int, ...] = ()
    pending: int = 0
    positions: tuple[int, ...] = ()
    ring_at: int = -1
    kept: int = 0
    left_padding: tuple[int, ...] = ()
    bits: int = 0
    trimmable: bool = False
    unused: bool = False
    reads: tuple[int, ...] = ()
    buffers: tuple[KVBuffer, ...] = ()

    @property
    def used_bytes(self) -> int:
        return sum(buffer.used_bytes for buffer in self.buffers)

    @property
    def held_bytes(self) -> int:
        return sum(buffer.held_bytes for buffer in self.buffers)

    def buffer(self, name: str) -> KVBuffer | None:
        """A buffer by its name; of a tree's parts, the first that has one of that name.

        ``keys`` and ``values`` of a quantised entry are what they are before packing: their rank unpacks them.
        """
        for known in self.buffers:
            if known.name == name or known.name.endswith(f".{name}"):
                return known
            plain = known.name.removesuffix(".packed")
            if self.bits and plain != known.name and (plain == name or plain.endswith(f".{name}")):
                return self._unpacked(known)
        return None

    def _unpacked(self, packed: KVBuffer) -> KVBuffer:
        plain = packed.name.removesuffix(".packed")
        scales = next((known for known in self.buffers if known.name == f"{plain}.scales"), packed)
        shape, held = (
            (*sizes[:-1], sizes[-1] * _WORD_BITS // self.bits) for sizes in (packed.shape, packed.held_shape)
        )
        return replace(packed, name=plain, shape=shape, held_shape=held, dtype=scales.dtype)

    @property
    def shapes(self) -> str:
        """What it holds, without blanks: ``[1,3,44,64]``; values where they differ, states by their names."""
        prefixes = list(dict.fromkeys(_part(buffer.name) for buffer in self.buffers))
        parts = [f"{prefix[:-1]}: " * bool(prefix) + self._shapes_of(prefix) for prefix in prefixes]
        return " · ".join(parts) or ("–" if self.reads else "empty")

    def _shapes_of(self, prefix: str) -> str:
        keys, values = self.buffer(f"{prefix}keys"), self.buffer(f"{prefix}values")
        if keys is not None:
            differ = values is not None and values.shape != keys.shape
            return _shape(keys) + (f", values {_shape(values)}" if differ and values is not None else "")
        named = [buffer for buffer in self.buffers if _part(buffer.name) == prefix]
        texts = [f"{buffer.name.removeprefix(prefix)} {_shape(buffer)}" for buffer in named[:_MOST_NAMED]]
        return ", ".join(texts) + (" …" if len(named) > _MOST_NAMED else "")

    @property
    def room(self) -> str:
        """The positions that fit: ``256``, ``ring of 8``, ``window of 8``; empty where there are none."""
        if not self.capacity:
            return ""
        if self.ring_at >= 0:
            return f"ring of {self.capacity}"
        return f"window of {self.capacity}" if self.capacity < self.offset else str(self.capacity)

    @property
    def detail(self) -> str:
        """What a class has besides: ring, kept slots, bits, padding."""
        parts = []
        if self.reads:
            parts.append(f"reads layer {', '.join(map(str, self.reads))}'s")
        if self.ring_at >= 0:
            slot = self.ring_at if self.ring_at < self.capacity else self.kept  # it turns with the next write
            parts.append(f"next slot {slot}")
        if self.kept:
            parts.append(f"keeps {self.kept}")
        if self.bits:
            packed = next((buffer for buffer in self.buffers if buffer.name.endswith(".packed")), None)
            parts.append(f"{self.bits}-bit" + (f", packed {_shape(packed)}" if packed is not None else ""))
        if self.unused:
            parts.append("never written")
        if self.rows:
            parts.append(f"rows {list(self.rows)}")
        if self.left_padding:
            parts.append(f"padding {list(self.left_padding)}")
        return " · ".join(parts)


def _shape(buffer: KVBuffer) -> str:
    return f"[{','.join(map(str, buffer.shape))}]"


def _part(name: str) -> str:
    """The part of a tree that a buffer belongs to: ``1.`` of ``1.keys``; empty outside of trees."""
    return name[: len(name) - len(name.lstrip("0123456789."))]


@dataclass(frozen=True, slots=True, kw_only=True)
class KVReport:
    """All entries of a run, first layer first.

    Attributes:
        prompt_tokens, generated_tokens: Of the run.
        standing: Where the run stands, such as ``decode 42:43``; empty once it has ended.
        cut_short: Whether it was interrupted or failed, so that ranks may have come unequally far.
        entries: One per layer that has a KV cache.
    """

    prompt_tokens: int
    generated_tokens: int
    standing: str = ""
    cut_short: bool = False
    entries: tuple[KVEntryReport, ...]

    @property
    def expected(self) -> int:
        """Tokens that have been fed: the last generated one is sampled, but not fed."""
        return self.prompt_tokens + max(0, self.generated_tokens - 1)

    @property
    def headline(self) -> str:
        """How the offsets disagree, by rank or by layer; empty when they agree."""
        counted = [entry for entry in self.entries if entry.offset >= 0 and not entry.unused]
        most = max((entry.offset for entry in counted), default=0)
        behind = [entry for entry in counted if entry.offset < most]
        if not behind or self.standing or self.cut_short:  # in the middle of a pass they do differ
            return ""
        by = most - min(entry.offset for entry in behind)
        ranks = {entry.rank for entry in counted}
        late = {entry.rank for entry in behind}
        if len(late) == 1 and all(entry.offset < most for entry in counted if entry.rank in late):
            others = f"rank {next(iter(ranks - late))}" if len(ranks) == 2 else "the others"
            return f"OFFSETS DIFFER: rank {next(iter(late))} is {by} behind {others}"
        named = ", ".join(str(entry.layer) for entry in behind[:6]) + (" …" if len(behind) > 6 else "")
        who = f"layer {named} is" if len(behind) == 1 else f"layers {named} are"
        return f"OFFSETS DIFFER: {who} {by} behind the others"

    @property
    def trimmed(self) -> int:
        """Tokens that every entry has been cut back by since the run."""
        counted = [entry.offset for entry in self.entries if entry.offset >= 0]
        return max(0, self.expected - max(counted, default=self.expected))

    def rows(self) -> list[list[str]]:
        """The table: consecutive layers of a rank that read the same, in one row."""
        has_keys = any(entry.buffer("keys") for entry in self.entries)
        holds = "keys" if has_keys or not any(entry.buffers for entry in self.entries) else "states"
        table = [["rank", "layers", "class", "offset", "capacity", holds, "used/held", ""]]
        most = max((entry.offset for entry in self.entries), default=0)

        def reads(entry: KVEntryReport) -> tuple[object, ...]:
            shown = (entry.shapes, entry.used_bytes, entry.held_bytes, entry.detail)
            return (entry.rank, entry.class_name, entry.offset, entry.capacity, *shown)

        for _, group in groupby(self.entries, key=reads):
            same = list(group)
            first, last = same[0], same[-1]
            span = str(first.layer) if len(same) == 1 else f"{first.layer}–{last.layer}"
            offset = (
                "–"
                if first.offset < 0 or first.unused
                else f"{first.offset}{' ←' if first.offset < most else ''}"
            )
            used, held = (sum(getattr(e, k) for e in same) for k in ("used_bytes", "held_bytes"))
            table.append(
                [
                    str(first.rank),
                    span,
                    first.class_name,
                    offset,
                    first.room or "–",
                    first.shapes,
                    format_share(used, held),
                    first.detail,
                ]
            )
        return table

    def __iter__(self) -> Iterator[KVEntryReport]:
        return iter(self.entries)

    def __str__(self) -> str:
        if self.standing:
            table = format_table(self.rows()) if self.entries else " no layer has been called yet"
            return f"KV cache · the run that stands at {self.standing}\n{table}"
        if not self.entries and not self.prompt_tokens:
            return 'KV cache · nothing has been run yet\n next: pipe.generate("…")'
        head = f"KV cache · last run{', cut short' if self.cut_short else ''} · "
        head += f"{self.expected} tokens = {self.prompt_tokens} prompt"
        if self.generated_tokens:
            fed = self.generated_tokens - 1
            head += f" + {fed} of {self.generated_tokens} generated (the last is sampled, not fed)"
        if self.trimmed:
            head += f" · {self.trimmed} trimmed since"
        lines = [head, self.headline, format_table(self.rows())]
        return "\n".join(line for line in lines if line)
