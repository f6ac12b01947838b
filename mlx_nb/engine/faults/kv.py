"""Faults of KV caches."""

from typing import Any

import mlx.core as mx

from mlx_nb.engine.faults.tools import NotHere, Original, Strike, Target, Undo, entries_among, wrapped
from mlx_nb.engine.kv import KVEntry, is_kv_entry


def _kv_site(target: Target) -> str:
    return f"KV cache, layer {target.index}"


def _needs_keys(target: Target) -> None:
    """Only layers with attention have keys to get wrong."""
    if not any(name in target.layer for name in ("self_attn", "attn", "attention")):
        raise NotHere("a KV cache with keys")


def _kv_offset(target: Target) -> tuple[str, Undo]:
    _needs_keys(target)

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        fresh = [entry for entry in entries_among(args, kwargs) if entry.offset == 0]
        value = original(*args, **kwargs)
        for entry in fresh:
            entry.offset += int(target.by)
        return value

    return _kv_site(target), wrapped(target.layer, call)


def _kv_stale(target: Target) -> tuple[str, Undo]:
    _needs_keys(target)

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        entries = [(entry, entry.offset) for entry in entries_among(args, kwargs)]
        value = original(*args, **kwargs)
        for entry, start in entries:
            count = min(entry.offset - start, start)
            if count > 0 and isinstance(entry.values, mx.array) and entry.values.shape[2] >= entry.offset:
                entry.values[..., start : start + count, :] = entry.values[..., :count, :]
        return value

    return _kv_site(target), wrapped(target.layer, call)


def _kv_missing(target: Target) -> tuple[str, Undo]:
    _needs_keys(target)

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        bare = [None if is_kv_entry(value) else value for value in args]
        return original(*bare, **{k: None if is_kv_entry(v) else v for k, v in kwargs.items()})

    return _kv_site(target), wrapped(target.layer, call)


def _ring_logical(target: Target) -> tuple[str, Undo]:
    attention, path = target.inside(("self_attn", "attn", "attention"))

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        rings = [entry for entry in entries_among(args, kwargs) if hasattr(entry, "max_size")]
        for ring in rings:
            _read_short(ring)
        try:
            return original(*args, **kwargs)
        finally:
            for ring in rings:
                ring.__dict__.pop("update_and_fetch", None)

    return path, wrapped(attention, call)


def _read_short(ring: KVEntry) -> None:
    def update_and_fetch(keys: mx.array, values: mx.array) -> Any:
        all_keys, all_values = type(ring).update_and_fetch(ring, keys, values)
        if keys.shape[2] > 1 or ring.offset <= ring.max_size:
            return all_keys, all_values
        return all_keys[..., : ring._idx, :], all_values[..., : ring._idx, :]

    ring.update_and_fetch = update_and_fetch


TABLE: dict[str, Strike] = {
    "kv_offset": _kv_offset,
    "kv_stale": _kv_stale,
    "kv_missing": _kv_missing,
    "ring_logical": _ring_logical,
}
