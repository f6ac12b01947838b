"""Reading mlx-lm's KV cache objects: what each class means by offset, capacity and order.

`keys_and_values()` and the state are views of what the next step overwrites: whatever leaves here is copied.
"""

from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.kv import KVEntry, offset_of, parts_of
from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.kv_report import KVBuffer, KVEntryReport

_MOST_POSITIONS = 4096


def read_entry(
    entry: KVEntry,
    *,
    rank: int,
    layer: int,
    place: int,
    expected: int,
    unused: bool = False,
    reads: tuple[int, ...] = (),
) -> KVEntryReport:
    """What one entry holds.

    Args:
        entry: The entry.
        rank, layer, place: Whose it is.
        expected: Tokens that the run has fed.
        unused: Whether the model makes it and never writes to it.
        reads: The earlier layers whose keys and values the layer reads.
    """
    offset = offset_of(entry)
    order = positions(entry)
    parts = parts_of(entry)
    ring = next((part for part in parts if is_ring(part) and isinstance(part._idx, int)), None)
    padding = next(
        (found for part in parts if (found := getattr(part, "left_padding", None)) is not None), None
    )
    return KVEntryReport(
        rank=Rank(rank),
        layer=LayerIndex(layer),
        place=place,
        class_name=class_name(entry),
        offset=offset,
        capacity=capacity(entry),
        rows=next((found for part in parts if (found := _row_offsets(part))), ()),
        pending=max(0, expected - offset) if offset >= 0 and not unused else 0,
        unused=unused,
        reads=reads,
        positions=tuple(order[:_MOST_POSITIONS]),
        ring_at=ring._idx if ring is not None else -1,
        kept=int(getattr(ring, "keep", 0) or 0),
        left_padding=tuple(padding.tolist()) if padding is not None else (),
        bits=max(int(getattr(part, "bits", 0) or 0) for part in parts),
        trimmable=bool(entry.is_trimmable()),
        buffers=tuple(buffers(entry)),
    )


def without_entry(*, rank: int, layer: int, reads: tuple[int, ...]) -> KVEntryReport:
    """A layer that reads earlier layers' keys and values and is handed no entry: nothing here to trim."""
    return KVEntryReport(
        rank=Rank(rank),
        layer=LayerIndex(layer),
        place=-1,
        class_name="none",
        offset=-1,
        capacity=0,
        trimmable=True,
        reads=reads,
    )


def _row_offsets(entry: KVEntry) -> tuple[int, ...]:
    """Tokens of each row of a batch; empty for an entry without rows of their own."""
    offset: Any = getattr(entry, "offset", None)
    return tuple(int(row) for row in np.array(offset)) if isinstance(offset, mx.array) and offset.ndim else ()


def _fed(entry: KVEntry) -> int:
    """Slots that have been written so far; in a batch a row's padding takes slots, too."""
    if hasattr(entry, "_offset"):
        return int(entry._offset)
    if _row_offsets(entry) and not is_ring(entry):
        return int(entry._idx)
    return offset_of(entry)


def class_name(entry: KVEntry) -> str:
    """The class; a tree with its parts."""
    parts = getattr(entry, "caches", None)
    name = type(entry).__name__
    return f"{name}({', '.join(class_name(part) for part in parts)})" if parts else name


def is_ring(entry: KVEntry) -> bool:
    """Whether old positions are overwritten in a circle."""
    return hasattr(entry, "_idx") and hasattr(entry, "max_size")


def capacity(entry: KVEntry) -> int:
    """Positions that fit before the entry grows or turns; 0 where there are none."""
    for part in getattr(entry, "caches", ()):
        if inner := capacity(part):
            return inner
    if hasattr(entry, "max_size"):
        return int(entry.max_size)
    if hasattr(entry, "window_size"):
        return int(entry.window_size)
    keys = getattr(entry, "keys", None)
    if isinstance(keys, list | tuple):
        keys = keys[0] if keys else None
    return int(keys.shape[-2]) if isinstance(keys, mx.array) and keys.ndim >= 2 else 0


def positions(entry: KVEntry) -> list[int]:
    """The token positions that an entry holds, in the order in which they lie in memory.

    A ring keeps its first `keep` slots and overwrites the rest in a circle: after 20 tokens with 8 slots of
    which 2 are kept, it holds 0, 1 and 14 to 19. In a batch these are slots: a row's own positions are less by
    its left padding.
    """
    for part in getattr(entry, "caches", ()):
        if found := positions(part):
            return found
    offset = _fed(entry)
    if offset <= 0:
        return []
    window = getattr(entry, "window", None)
    if isinstance(window, mx.array):
        return list(range(offset - window.shape[1], offset))
    if not is_ring(entry):
        start = int(getattr(entry, "start_position", 0) or 0)
        return list(range(start, offset))
    keys = entry.keys
    held = int(keys.shape[2]) if isinstance(keys, mx.array) else 0
    keep, at = int(getattr(entry, "keep", 0)), int(entry._idx)
    filled = min(held, offset)
    if offset <= filled:  # it has not turned yet
        return list(range(offset))
    newest = list(range(offset - (filled - keep), offset))  # what lies behind the kept slots, oldest first
    split = len(newest) - (at - keep) if at > keep else 0
    turned = newest[split:] + newest[:split] if at < filled else newest
    return list(range(keep)) + turned


def buffers(entry: KVEntry, prefix: str = "") -> list[KVBuffer]:
    """The arrays of an entry, keys first."""
    found: list[KVBuffer] = []
    parts = getattr(entry, "caches", None)
    if parts is not None:
        for number, part in enumerate(parts):
            found += buffers(part, f"{prefix}{number}.")
        return found
    for name, array, used in named_arrays(entry):
        held_shape = tuple(array.shape)
        shape = (*held_shape[:-2], used, held_shape[-1]) if used >= 0 and len(held_shape) >= 2 else held_shape
        share = used / held_shape[-2] if used >= 0 and len(held_shape) >= 2 and held_shape[-2] else 1.0
        found.append(
            KVBuffer(
                name=prefix + name,
                shape=shape,
                held_shape=held_shape,
                dtype=str(array.dtype).removeprefix("mlx.core."),
                used_bytes=int(array.nbytes * share),
                held_bytes=array.nbytes,
            )
        )
    return found


def named_arrays(entry: KVEntry) -> list[tuple[str, mx.array, int]]:
    """An entry's arrays by name, each with how many positions are valid (-1: it has no positions)."""
    if hasattr(entry, "keys"):
        named: list[tuple[str, Any]] = [("keys", entry.keys), ("values", entry.values)]
        found = []
        for name, value in named:
            if isinstance(value, mx.array):
                found.append((name, value, _valid(entry, value)))
            elif isinstance(value, list | tuple):  # quantised: packed, scales, biases
                for part, array in zip(("packed", "scales", "biases"), value, strict=False):
                    if isinstance(array, mx.array):
                        found.append((f"{name}.{part}", array, _valid(entry, array)))
        return found
    states = getattr(entry, "cache", None)
    if isinstance(states, list):
        return [(f"state {i}", array, -1) for i, array in enumerate(states) if isinstance(array, mx.array)]
    return [(name, array, -1) for name, array in vars(entry).items() if isinstance(array, mx.array)]


def array_named(entry: KVEntry, name: str) -> mx.array | None:
    """The valid part of an array by its name (``keys``, ``1.values``, ``keys.packed``); None if there is none.

    Keys and values of a quantised entry come unpacked.
    """
    number, _, rest = name.partition(".")
    if number.isdigit():
        parts = getattr(entry, "caches", ())
        return array_named(parts[int(number)], rest) if int(number) < len(parts) else None
    valid = {
        known: array[..., :used, :] if used >= 0 else array for known, array, used in named_arrays(entry)
    }
    if f"{name}.packed" in valid:
        return mx.dequantize(
            valid[f"{name}.packed"],
            scales=valid[f"{name}.scales"],
            biases=valid[f"{name}.biases"],
            group_size=entry.group_size,
            bits=entry.bits,
        )
    return valid.get(name)


def _valid(entry: KVEntry, array: mx.array) -> int:
    held = int(array.shape[-2]) if array.ndim >= 2 else 0
    offset = _fed(entry) - int(getattr(entry, "start_position", 0) or 0)
    return min(held, max(offset, 0))
