"""A prompt cache in one file, in mlx-lm's own format, whatever the split that wrote or reads it.

Rank 0 writes what every rank holds, and reads for all. An entry travels as its attributes, so nothing here
depends on what mlx-lm counts as its state.
"""

import hashlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nb.engine import mlx_lm_api
from mlx_nb.engine.kept import KeptKV
from mlx_nb.engine.kv import KVEntry, make_kv_cache, offset_of, parts_of
from mlx_nb.engine.pytree import Tree, arrays_of
from mlx_nb.engine.transport import SILENCE_S
from mlx_nb.engine.weights import read_header
from mlx_nb.shared.errors import PromptCacheError, RankSilentError, WeightsError

if TYPE_CHECKING:
    from mlx_nb.engine.stage import Stage

NAP_S = 0.001
_GROWING = ("KVCache", "QuantizedKVCache", "ConcatenateKVCache")


def save(stage: "Stage", kept: KeptKV, count: int, path: Path, run_id: int) -> int:
    """Write the first `count` tokens' KV caches; called on all ranks together. Bytes written, on rank 0.

    Raises:
        PromptCacheError: The file cannot be written.
    """
    entries = kept.cut_to(count)
    mine = {place: _packed(entries[place]) for place in _places(stage, stage.rank)}

    def work() -> int:
        if stage.rank:
            _send(stage, 0, run_id, mine)
            return 0
        whole = list(entries)
        for rank in range(1, stage.size):
            received = _receive(stage, rank, run_id)
            for place, packed in received.items():
                whole[place] = _unpacked(packed)
        metadata = {
            "model": str(stage.folder),
            "tokenizer_config": "{}",  # mlx_lm.generate --prompt-cache-file asks for both
            "mlx_nb_config": fingerprint(stage),
            "mlx_nb_tokens": " ".join(map(str, kept.tokens[:count])),
        }
        return _write(path, whole, metadata)

    return _together(stage, run_id, work)


def load(stage: "Stage", path: Path, run_id: int) -> KeptKV:
    """Read a prompt cache; called on all ranks together, and rank 0 reads.

    Raises:
        PromptCacheError: There is no such file, it is damaged, or it was made with another model.
    """

    def work() -> KeptKV:
        if stage.rank:
            found = _receive(stage, 0, run_id)
            return _kept(stage, found["entries"], found["tokens"])
        entries, tokens = _read(stage, path)
        for rank in range(1, stage.size):
            _send(stage, rank, run_id, {"entries": _for_rank(stage, entries, rank), "tokens": tokens})
        return _kept(stage, _for_rank(stage, entries, 0), tokens)

    return _together(stage, run_id, work)


def fingerprint(stage: "Stage") -> str:
    """Tells models of different configurations apart."""
    text = json.dumps(stage.config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


# Which rank has what ------------------------------------------------------------------------------------


def _places(stage: "Stage", rank: int) -> set[int]:
    """The places of the KV cache list that hold data on a rank: its layers are handed them."""
    readers = stage.cuts.rehearsal.readers
    if stage.size == 1:
        return set(range(len(stage.cuts.rehearsal.kv)))
    return {place for place, layers in readers.items() if layers & set(stage.shards[rank].layers)}


def _for_rank(stage: "Stage", entries: list[KVEntry], rank: int) -> list[Tree]:
    """Every entry as a rank needs it: its own whole, of the others what their masks are made from."""
    own = _places(stage, rank)
    found = [_packed(entry, ghost=place not in own) for place, entry in enumerate(entries)]
    mx.eval([array for packed in found for array in arrays_of(packed)])
    return found


def _kept(stage: "Stage", packed: list[Tree], tokens: list[int]) -> KeptKV:
    fresh = make_kv_cache(stage.model)
    entries = [_unpacked(one) if one is not None else fresh[place] for place, one in enumerate(packed)]
    return KeptKV(entries=entries, tokens=[*tokens, -1], own=_places(stage, stage.rank), whole=True)


# An entry on its way ------------------------------------------------------------------------------------


def _packed(entry: KVEntry, *, ghost: bool = False) -> Tree:
    """An entry as plain data; None for a ghost that counts no positions."""
    if hasattr(entry, "caches"):
        parts = [_packed(part, ghost=ghost) for part in entry.caches]
        return {"class": type(entry).__name__, "parts": parts} if None not in parts else None
    attributes = {name: value for name, value in vars(entry).items() if not callable(value)}
    if ghost:
        if offset_of(entry) < 0:
            return None
        growing = type(entry).__name__ in _GROWING
        attributes = {name: _narrow(value, empty=growing) for name, value in attributes.items()}
    return {"class": type(entry).__name__, "attributes": attributes}


def _narrow(value: Any, *, empty: bool) -> Any:
    """One head of width 1 of keys or values, or nothing at all where only the offset counts."""
    if isinstance(value, mx.array) and value.ndim == 4:
        return None if empty else value[:, :1, :, :1]
    if isinstance(value, list | tuple) and value and isinstance(value[0], mx.array):
        return None if empty else type(value)(_narrow(item, empty=False) for item in value)
    return value


def _unpacked(packed: Tree) -> KVEntry:
    """The inverse of `_packed`."""
    cls = mlx_lm_api.kv_cache_class(packed["class"])
    entry = cls.__new__(cls)
    if "parts" in packed:
        entry.caches = tuple(_unpacked(part) for part in packed["parts"])
    else:
        entry.__dict__.update(packed["attributes"])
    return entry


# The file ------------------------------------------------------------------------------------------------


def _write(path: Path, entries: list[KVEntry], metadata: dict[str, str]) -> int:
    """Write beside the file and move it there: a file that was cut short never has its name."""
    half = path.with_name(f".{path.stem}.{os.getpid()}.safetensors")
    try:
        mlx_lm_api.save_prompt_cache(half, entries, metadata)
        half.replace(path)
    except (OSError, RuntimeError, ValueError) as error:
        half.unlink(missing_ok=True)
        raise PromptCacheError(
            f"{path} cannot be written: {' '.join(str(error).split())[:200]}.",
            "Name a folder that exists on rank 0.",
        ) from error
    return path.stat().st_size


def _read(stage: "Stage", path: Path) -> tuple[list[KVEntry], list[int]]:
    """A file's entries, and the tokens that they hold.

    Raises:
        PromptCacheError: It cannot be used with this model.
    """
    again = "Make it again: pipe.save_prompt_cache(path)"
    if not path.is_file():
        raise PromptCacheError(f"There is no file {path} on rank 0's host.", again)
    try:
        read_header(path)
        entries, metadata = mlx_lm_api.load_prompt_cache(path)
    except WeightsError as error:
        raise PromptCacheError(error.problem, again) from error
    except Exception as error:  # whatever mlx-lm makes of a file that is none
        raise PromptCacheError(
            f"{path} is no prompt cache of mlx-lm's ({type(error).__name__}: {error}).", again
        ) from error
    if problem := _misfit(stage, entries, metadata):
        raise PromptCacheError(f"{path} was made with another model than {stage.name}: {problem}.", again)
    count = max((offset_of(entry) for entry in entries), default=0)
    tokens = [int(token) for token in metadata.get("mlx_nb_tokens", "").split()]
    if len(tokens) != count and count >= 0:
        tokens = []  # mlx-lm's own file, or one that it has gone on with
    return entries, tokens or [-1] * max(count, 1)


def _misfit(stage: "Stage", entries: list[KVEntry], metadata: dict[str, str]) -> str:
    """How a file does not fit the model; empty if it does."""
    fresh = make_kv_cache(stage.model)
    if len(entries) != len(fresh):
        return f"it has {len(entries)} KV caches, the model {len(fresh)}"
    for place, (entry, wanted) in enumerate(zip(entries, fresh, strict=True)):
        kinds = {type(wanted).__name__} | (
            {"RotatingKVCache", "QuantizedKVCache"} if type(wanted).__name__ == "KVCache" else set()
        )
        if type(entry).__name__ not in kinds:
            return f"entry {place} is a {type(entry).__name__}, the model's a {type(wanted).__name__}"
    for (place, part), (keys, values) in stage.cuts.rehearsal.writes.items():
        held = parts_of(entries[place])[part]
        for name, written in (("keys", keys), ("values", values)):
            found, expected = _heads(held, name), (written.shape[1], written.shape[-1])
            if found and found != expected:
                return f"the {name} of entry {place} are {found[0]} heads of width {found[1]}, the model's {expected[0]} of {expected[1]}"
    if metadata.get("mlx_nb_config", fingerprint(stage)) != fingerprint(stage):
        return "their configurations differ"
    return ""


def _heads(entry: KVEntry, name: str) -> tuple[int, int] | None:
    value = getattr(entry, name, None)
    if isinstance(value, list | tuple) and value:  # packed, scales, biases
        return value[0].shape[1], value[0].shape[-1] * 32 // entry.bits
    return (value.shape[1], value.shape[-1]) if isinstance(value, mx.array) else None


# Between the ranks -----------------------------------------------------------------------------------------


def _together(stage: "Stage", run_id: int, work: Callable[[], Any]) -> Any:
    """Do this rank's part; one that fails tells the others, which would wait for it."""
    stage.transport.begin(run_id)
    try:
        return work()
    except Exception as error:
        stage.transport.abort(run_id, f"Rank {stage.rank} gave up: {error}")
        raise
    finally:
        stage.transport.end(run_id)
        stage.transport.forget(run_id)


def _send(stage: "Stage", target: int, run_id: int, value: Tree) -> None:
    mx.eval(arrays_of(value))
    stage.transport.send(target, run_id, value)


def _receive(stage: "Stage", source: int, run_id: int) -> Any:
    while (arrival := stage.transport.poll(source, run_id)) is None:
        stage.transport.check(run_id)
        if (silent_s := stage.transport.silent_s(source)) > SILENCE_S:
            raise RankSilentError(
                f"Rank {source} has been silent for {silent_s:.0f} s, with a prompt cache on its way.",
                "Type: %mlx_cluster restart",
            )
        time.sleep(NAP_S)
    return arrival.value
