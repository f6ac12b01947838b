"""The one adapter to mlx-lm's KV cache objects; its API changes between minor versions.

On every rank the list of entries keeps its full length in model order, since models index it for
masks (`cache[0]`, `fa_idx`). Entries of layers that live elsewhere are *ghosts*: they advance their
offsets without holding data, so that masks come out as they would in one process.
"""

from collections.abc import Callable, Container
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine import mlx_lm_api
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.request import KEPT_TOKENS, GenerateOptions

KVEntry = Any

# Files of mlx-lm whose rows were seen to be as alone beside longer ones. Others ask for the mask as well and
# then do not say how far they are (jamba, bailing_moe_linear), or do not use it everywhere (olmo_hybrid).
_MASK_STATES = {
    "mamba2", "falcon_h1", "nemotron_h", "qwen3_next", "granitemoehybrid", "lfm2", "lfm2_moe", "kimi_linear",
    "qwen3_5", "kimi_k3", "bailing_hybrid",
}  # fmt: skip


def make_kv_cache(model: nn.Module, max_kv_size: int | None = None) -> list[KVEntry]:
    """A fresh KV cache for every layer of the whole model, in model order.

    mlx-lm limits only models that leave the making to it; here every entry that would grow without end is
    limited, also where a model makes its own (llama does, since it may have sliding windows).
    """
    entries = mlx_lm_api.make_prompt_cache(model, max_kv_size)
    if max_kv_size is None:
        return entries
    return [
        mlx_lm_api.rotating_kv_cache(max_kv_size, KEPT_TOKENS) if type(entry).__name__ == "KVCache" else entry
        for entry in entries
    ]


def make_batch_kv_cache(model: nn.Module, padding: list[int]) -> list[KVEntry]:
    """Fresh KV caches for several prompts, each with so many padding tokens on its left.

    Raises:
        OptionError: mlx-lm has no such classes for this model's.
    """
    masks = _masks_states(model)
    return [_for_rows(entry, padding, masks_states=masks) for entry in make_kv_cache(model)]


def _masks_states(model: nn.Module) -> bool:
    """Whether a model's code hides padding from its states, as was tried: see `_MASK_STATES`."""
    calls = [vars(base).get("__call__") for module in model.modules() for base in type(module).__mro__]
    files = [getattr(call, "__globals__", {}) for call in calls]
    masking = {str(names["__name__"]).rpartition(".")[2] for names in files if "create_ssm_mask" in names}
    return bool(masking) and masking <= _MASK_STATES


def _for_rows(entry: KVEntry, padding: list[int], *, masks_states: bool) -> KVEntry:
    name = type(entry).__name__
    if hasattr(entry, "caches"):
        entry.caches = tuple(_for_rows(part, padding, masks_states=masks_states) for part in entry.caches)
        return entry
    if name == "KVCache":
        return mlx_lm_api.batch_kv_cache(padding)
    if name == "RotatingKVCache" and not entry.keep:
        return mlx_lm_api.batch_rotating_kv_cache(entry.max_size, padding)
    if name == "ArraysCache" and masks_states:
        entry.left_padding = mx.array(padding)
        return entry
    why = "its states would take the padding for text" if name == "ArraysCache" else "mlx-lm cannot pad it"
    raise OptionError(
        f"This model cannot run several prompts at once: it keeps an {name}, and {why}.".replace(
            "an K", "a K"
        ).replace("an C", "a C"),
        "Run them one after another: [pipe.generate(prompt) for prompt in prompts]",
    )


def check_kv_options(entries: list[KVEntry], options: GenerateOptions, *, shared: bool = False) -> None:
    """Check what is asked of a model's fresh KV caches.

    Args:
        entries: One for each layer of the whole model.
        options: What is asked.
        shared: Whether layers read the keys and values that earlier ones have written.

    Raises:
        OptionError: They cannot be limited, or not be quantised.
    """
    parts = [part for entry in entries for part in parts_of(entry)]
    names = ", ".join(sorted({type(part).__name__ for part in parts}))
    if options.max_kv_size is not None and not any(
        type(part).__name__ == "RotatingKVCache" and part.keep == KEPT_TOKENS for part in parts
    ):
        raise OptionError(f"This model's KV caches ({names}) cannot be limited.", "Leave max_kv_size away.")
    if options.kv_bits is not None:
        if shared:
            raise OptionError(
                "Layers of this model read the keys and values of earlier ones, and mlx-lm cannot do that from "
                "a quantised KV cache, in one process either.",
                "Leave kv_bits away.",
            )
        if any("Rotating" in type(part).__name__ for part in parts):
            raise OptionError(
                f"This model's KV caches ({names}) rotate, and mlx-lm cannot quantise those.",
                "Leave kv_bits away.",
            )
        if not any(hasattr(entry, "to_quantized") for entry in entries):
            raise OptionError(f"This model's KV caches ({names}) cannot be quantised.", "Leave kv_bits away.")


def is_kv_entry(value: object) -> bool:
    """Whether a layer's argument is a KV cache entry (all of mlx-lm's classes have a state)."""
    # Asked of the class: in mlx-lm 0.31 an empty entry's state cannot be read.
    return hasattr(type(value), "state") and (
        hasattr(value, "is_trimmable") or hasattr(value, "update_and_fetch")
    )


def advance_ghost(entry: KVEntry, batch: int, length: int) -> None:
    """Move an entry of a layer that lives elsewhere on by `length` tokens."""
    if hasattr(entry, "caches"):
        for part in entry.caches:
            advance_ghost(part, batch, length)
        return
    if hasattr(entry, "update_window"):
        # A window that counts rows of its own: positions and masks read the offset and the row count only.
        entry.update_window(mx.zeros((batch, length, 1)))
        mx.eval(state_arrays(entry))
        return
    if not hasattr(entry, "update_and_fetch"):
        # SSM and conv states count no positions, but how much padding is still to come.
        if getattr(entry, "left_padding", None) is not None:
            entry.advance(length)
            mx.eval(entry.left_padding)
        return
    if type(entry).__name__ == "BatchKVCache":
        entry.offset, entry._idx = entry.offset + length, entry._idx + length
        mx.eval(entry.offset)
        return
    if type(entry).__name__ in ("KVCache", "QuantizedKVCache", "ConcatenateKVCache"):
        # Their masks read only the offset; nothing need be stored.
        entry.offset += length
        return
    # Rings and chunked entries derive masks from what they store: one head of width 1 is enough. It is
    # evaluated at once, because lazy updates would grow a graph over the whole generation.
    nothing = mx.zeros((batch, 1, length, 1))
    entry.update_and_fetch(nothing, nothing)
    mx.eval(state_arrays(entry))


def fill_ghosts(arguments: list[Any]) -> None:
    """Give entries that a layer elsewhere would have written something that can be read.

    A model may hand a layer's keys and values to later layers itself. What they make of it is passed over on
    this rank, but the code runs, and there must be arrays.
    """
    for entry in arguments:
        if type(entry).__name__ in ("KVCache", "ConcatenateKVCache") and entry.keys is None:
            entry.keys = entry.values = mx.zeros((1, 1, 1, 1))


def empty_ghost(entry: KVEntry) -> None:
    """Take back what `fill_ghosts` gave, before a KV cache is quantised: it cannot be packed."""
    for part in parts_of(entry):
        if type(part).__name__ in ("KVCache", "ConcatenateKVCache"):
            part.keys = part.values = None


def parts_of(entry: KVEntry) -> list[KVEntry]:
    """The entries that keys and values are written to: the entry itself, or the members of a tree."""
    members = [part for member in getattr(entry, "caches", ()) for part in parts_of(member)]
    return members or [entry]


def watch_writes(entry: KVEntry, watch: Callable[[mx.array, mx.array], tuple[mx.array, mx.array]]) -> None:
    """Show `watch` the keys and values of every write; what it returns is written.

    The watcher sits on this one object, so quantising the entry, which replaces it, ends the watch.
    """

    def update_and_fetch(keys: mx.array, values: mx.array) -> Any:
        return type(entry).update_and_fetch(entry, *watch(keys, values))

    if hasattr(type(entry), "update_and_fetch"):
        entry.update_and_fetch = update_and_fetch


def unwatch(entry: KVEntry) -> None:
    """End the watch over an entry's writes."""
    entry.__dict__.pop("update_and_fetch", None)


def keep_rows(entries: list[KVEntry], rows: list[int]) -> None:
    """Drop every row but these from KV caches for several prompts."""
    for entry in entries:
        for part in parts_of(entry):
            part.filter(mx.array(rows))


def state_arrays(entry: KVEntry) -> list[mx.array]:
    """The arrays that an entry holds now (they change with its next update).

    They are taken from the object and not from its ``state``, which mlx-lm 0.31 cuts to the positions in use
    and cannot make for an empty entry.
    """
    found: list[mx.array] = []

    def visit(node: Any) -> None:
        if isinstance(node, mx.array):
            found.append(node)
        elif isinstance(node, list | tuple):
            for item in node:
                visit(item)
        elif is_kv_entry(node):
            for item in vars(node).values():
                visit(item)

    visit(entry)
    return found


def offset_of(entry: KVEntry) -> int:
    """Positions written so far, or -1 for a class that counts none."""
    for part in getattr(entry, "caches", ()):
        if (inner := offset_of(part)) >= 0:
            return inner
    offset: Any = getattr(entry, "offset", -1)
    if isinstance(offset, mx.array):
        offset = offset.max().item()
    return int(offset)


def quantize_kv_cache(entries: list[KVEntry], start: int, group_size: int, bits: int | None) -> None:
    """Quantise the entries that are long enough, in place, as mlx-lm does after each pass.

    Raises:
        OptionError: The group size does not divide the width of the keys or values.
    """
    for entry in entries:
        for array in (getattr(entry, "keys", None), getattr(entry, "values", None)):
            if isinstance(array, mx.array) and array.shape[-1] % group_size:
                raise OptionError(
                    f"kv_group_size {group_size} does not divide this model's KV heads, which are {array.shape[-1]} wide.",
                    "Type: kv_group_size=32" if array.shape[-1] % 32 == 0 else "Leave kv_bits away.",
                )
    mlx_lm_api.quantize_kv_cache(entries, start=start, group_size=group_size, bits=bits)


def settle_kv_cache(
    entries: list[KVEntry], owned: Container[int], options: GenerateOptions, batch: int, length: int
) -> None:
    """What is left to do once the model has been called: quantise what is owned, let the ghosts follow.

    Args:
        entries: The whole list.
        owned: The places that hold data on this rank.
        options: Of the run.
        batch, length: Rows and tokens of the pass.

    Raises:
        OptionError: As `quantize_kv_cache`.
    """
    if options.kv_bits is not None:
        for place, entry in enumerate(entries):
            if place not in owned:
                empty_ghost(entry)
        quantize_kv_cache(entries, options.quantized_kv_start, options.kv_group_size, options.kv_bits)
    for place, entry in enumerate(entries):
        if place not in owned:
            advance_ghost(entry, batch, length)
