"""``python -m mlx_nb.engine.describe plan|sites MODEL``: what a model weighs and where its sites are.

A short-lived process, since the notebook kernel does not import MLX. Prints one JSON object; no weight is read.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_nb.engine.capacity import capacity
from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.cuts import Cuts, legal_cuts
from mlx_nb.engine.hooks import Hooks
from mlx_nb.engine.kv import make_kv_cache, state_arrays
from mlx_nb.engine.layers import named_modules
from mlx_nb.engine.loading import text_config
from mlx_nb.engine.mlx_lm_api import dequantize_model
from mlx_nb.engine.pytree import arrays_of
from mlx_nb.engine.reach import reachable
from mlx_nb.engine.resolve import resolve_model
from mlx_nb.engine.summary import Sizes
from mlx_nb.engine.unloaded import build_unloaded
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.model_sizes import Common, ModelSizes, SiteRow
from mlx_nb.shared.text import format_shape

# A prime that no dimension of a model is likely to have: an axis of this length is L.
_LENGTH = 7

Key = TypeVar("Key", str, int)


def sizes_of(name: str, folder: Path, *, context: int, native: bool) -> ModelSizes:
    """What each layer weighs, and its KV cache at `context` tokens.

    Args:
        name: The model as it was asked for.
        folder: Its files; ``config.json`` is enough.
        context: Tokens.
        native: Whether the weights stay as they are (Metal), or become float32 at load (CPU).
    """
    model, config = build_unloaded(folder)
    notes = []
    if native:
        kinds = {
            str(v.dtype) for _, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating)
        }
        dtype = "/".join(sorted(kind.removeprefix("mlx.core.") for kind in kinds))
    else:
        dtype = "float32"
        if config.get("quantization"):
            model = dequantize_model(model)
            notes.append(
                "quantised weights become float32 at load, since this is a CPU (dtype='native' keeps them)"
            )
        model.set_dtype(mx.float32)
    cuts = legal_cuts(model)
    weights, common = _weights(model, cuts)
    kv, common_kv = _kv_bytes(cuts, context)
    return ModelSizes(
        model=name,
        layers=tuple(weights),
        common=tuple(common),
        kv=tuple(kv),
        common_kv=tuple(common_kv),
        context=context,
        hidden_size=int(text_config(config).get("hidden_size", 0) or 0),
        dtype=dtype,
        notes=tuple(notes),
        along=tuple(cuts.plain.along.get(layer, "") for layer in range(cuts.num_layers)),
        refused=tuple(cuts.refused.get(layer, "") for layer in range(cuts.num_layers)),
    )


def _weights(model: nn.Module, cuts: Cuts) -> tuple[list[int], list[Common]]:
    """Bytes that only one layer reads, layer by layer, and those that several read or the model's ends.

    By the graph: what nobody reads is not counted. Where it has forgotten a layer, by name.
    """
    parameters = dict(tree_flatten(model.parameters()))
    reads = cuts.reads
    if not reads:  # it cannot be cut: all on one rank, whoever reads it
        found = reachable(arrays_of(cuts.rehearsal.output), parameters)
        reads = (frozenset(found), *[frozenset[str]()] * cuts.num_layers)
    readers: dict[str, set[int]] = defaultdict(set)
    for reader, names in enumerate(reads):
        for name in names:
            readers[name].add(reader)
    inside = [
        {name for name in parameters if name.startswith(f"{path}.")} for path in cuts.paths if cuts.reads
    ]
    if any(
        own.isdisjoint(readers) for own in inside
    ):  # dbrx evaluates its router: what came before is forgotten
        for name in parameters.keys() - readers.keys():
            readers[name] = {next((layer for layer, own in enumerate(inside) if name in own), 0)}
    return _divide({name: parameters[name].nbytes for name in readers}, readers, cuts)


def _kv_bytes(cuts: Cuts, context: int) -> tuple[list[int], list[Common]]:
    """KV cache bytes at `context` tokens of entries that only one layer uses, layer by layer, and of the others.

    A rank has every entry that it hands to a layer of its own, also where a layer elsewhere fills it.
    """
    users: dict[int, set[int]] = cuts.rehearsal.readers
    if not cuts.legal:  # it cannot be cut: all on one rank, whoever uses it
        users = {place: {0} for place in range(len(cuts.rehearsal.kv))}
    sizes = {place: _entry_bytes(cuts.rehearsal.kv[place], context) for place in users}
    return _divide(sizes, users, cuts)


def _divide(
    sizes: Mapping[Key, int], users: Mapping[Key, Collection[int]], cuts: Cuts
) -> tuple[list[int], list[Common]]:
    """Bytes of what one layer uses, by layer, and of what others use, by who does."""
    alone = [0] * cuts.num_layers
    together: Counter[tuple[int, ...]] = Counter()
    for key, size in sizes.items():
        rising = tuple(sorted(users[key]))
        if len(rising) == 1 and rising[0] < cuts.num_layers:
            alone[rising[0]] += size
        elif size:
            together[rising] += size
    return alone, [Common(size_bytes=size, readers=rising) for rising, size in together.items()]


def _entry_bytes(entry: Any, context: int) -> int:
    parts = getattr(entry, "caches", None)
    if parts is not None:
        return sum(_entry_bytes(part, context) for part in parts)
    arrays = state_arrays(entry)
    if not hasattr(entry, "keys"):
        return sum(array.nbytes for array in arrays)  # a state of fixed size
    positions = min(context, int(getattr(entry, "max_size", context)))
    return sum(array.nbytes // array.shape[-2] * positions for array in arrays if array.ndim >= 3)


def sites_of(folder: Path) -> list[SiteRow]:
    """Every module's output, in the order in which a pass reaches it."""
    model, config = build_unloaded(folder)
    text = text_config(config)
    heads = int(text.get("num_attention_heads", 0) or 0)
    sizes = Sizes(
        hidden=int(text.get("hidden_size", 0) or 0),
        heads=heads,
        kv_heads=int(text.get("num_key_value_heads", heads) or 0),
        vocabulary=int(text.get("vocab_size", 0) or 0),
    )
    seen = _watch(model)
    rows = []
    for path, module in named_modules(model):
        if path not in seen.returned:
            continue
        arrays = seen.returned[path]
        counted = [value for _, value in tree_flatten(module.parameters())]
        rows.append(
            SiteRow(
                site=f"{path}.output" if path else "logits",
                class_name=type(module).__name__,
                shape=" ".join(_symbolic(tuple(a.shape), sizes) for a in arrays[:3]),
                dtype=str(arrays[0].dtype).removeprefix("mlx.core.") if arrays else "",
                calls=seen.calls[path],
                parameters=sum(value.size for value in counted),
                size_bytes=sum(value.nbytes for value in counted),
            )
        )
    order = {path: place for place, path in enumerate(seen.calls)}
    return sorted(
        rows,
        key=lambda row: order.get(row.site.removesuffix(".output"), -1) if row.site != "logits" else 10**9,
    )


class _Watcher:
    """Stands in for a run and its probe: keeps what every module returns."""

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.returned: dict[str, list[mx.array]] = {}

    @property
    def probe(self) -> "_Watcher":
        return self

    def attend(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the attention function, which is no module."""
        return function(*args, **kwargs)

    def call(self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A hooked module's call."""
        self.calls[path] += 1
        value = base.__call__(module, *args, **kwargs)
        self.returned[path] = arrays_of(_plain(value))
        return value


def _watch(model: nn.Module) -> _Watcher:
    """One pass of the whole model, built and never evaluated."""
    watcher = _Watcher()
    hooks = Hooks(model)
    hooks.acquire()
    token = ACTIVE.set(watcher)
    try:
        model(mx.zeros((1, _LENGTH), dtype=mx.int32), cache=make_kv_cache(model))
    finally:
        ACTIVE.reset(token)
        hooks.release()
    return watcher


def _plain(value: Any) -> Any:
    """Arrays out of whatever a module returned; other objects are left out."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value if isinstance(value, mx.array) else None


def _symbolic(shape: tuple[int, ...], sizes: Sizes) -> str:
    """A shape with B and L as letters: they are the run's, not the model's."""
    axes = sizes.axes(shape, _LENGTH)
    text = format_shape(shape, axes)
    return text.replace("B 1", "B").replace(f"L {_LENGTH}", "L")


def main() -> int:
    """Print one JSON object; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m mlx_nb.engine.describe")
    parser.add_argument("what", choices=("plan", "sites"))
    parser.add_argument("model")
    parser.add_argument("--context", type=int, default=4096)
    parser.add_argument("--native", action="store_true")
    found = parser.parse_args()
    try:
        folder = Path(resolve_model(found.model, choose=lambda _folder: ()))  # the small files will do
        if found.what == "plan":
            content: Any = dataclasses.asdict(
                sizes_of(found.model, folder, context=found.context, native=found.native)
            )
        else:
            content = [dataclasses.asdict(row) for row in sites_of(folder)]
        print(json.dumps({"kind": "done", "content": content, "memory_bytes": capacity()[1]}))
    except MlxNbError as error:
        kind = type(error).__name__
        print(json.dumps({"kind": "error", "class": kind, "problem": error.problem, "fix": error.fix}))
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
