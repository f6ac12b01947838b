"""``python -m mlx_nb.engine.describe plan|sites MODEL``: what a model weighs and where its sites are.

A short-lived process, since the notebook kernel does not import MLX. Prints one JSON object; no weight is read.
"""

import argparse
import dataclasses
import json
import sys
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_nb.engine.capacity import capacity
from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.cuts import Cuts, legal_cuts
from mlx_nb.engine.hooks import Hooks
from mlx_nb.engine.kv import make_kv_cache, state_arrays
from mlx_nb.engine.layers import layer_paths, named_modules, transformer_layers
from mlx_nb.engine.loading import owned_parameters, results_of, text_config
from mlx_nb.engine.mlx_lm_api import dequantize_model
from mlx_nb.engine.pytree import arrays_of, like
from mlx_nb.engine.resolve import resolve_model
from mlx_nb.engine.stubs import install_stubs, remove_stubs
from mlx_nb.engine.summary import Sizes
from mlx_nb.engine.unloaded import build_unloaded
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.model_sizes import ModelSizes, SiteRow
from mlx_nb.shared.text import format_shape

# A prime that no dimension of a model is likely to have: an axis of this length is L.
_LENGTH = 7


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
    layers = transformer_layers(model)
    paths = layer_paths(model)
    weights = {id(layer): _nbytes(layer) for layer in layers}
    cuts = legal_cuts(model)
    first, last, both = _ends(model, layers, [paths[id(layer)] for layer in layers], cuts)
    return ModelSizes(
        model=name,
        layers=tuple(weights[id(layer)] for layer in layers),
        first=first,
        last=last,
        both=both,
        kv=tuple(_kv_bytes(model, context)),
        context=context,
        hidden_size=int(text_config(config).get("hidden_size", 0) or 0),
        dtype=dtype,
        notes=tuple(notes),
        refused=tuple(cuts.refused.get(layer, "") for layer in range(len(layers))),
    )


def _nbytes(module: nn.Module) -> int:
    return sum(value.nbytes for _, value in tree_flatten(module.parameters()))


def _ends(model: nn.Module, layers: list[nn.Module], paths: list[str], cuts: Cuts) -> tuple[int, int, int]:
    """Bytes outside the layers that the first rank reads, the last, and both: by the graph, not by names."""
    if not cuts.legal:
        outside = _nbytes(model) - sum(map(_nbytes, layers))
        return outside, 0, 0
    first, last = cuts.legal[0], cuts.legal[-1]
    ends = []
    for owned in (range(first), range(last, len(layers))):
        is_last = owned.start > 0
        install_stubs(layers, owned)
        try:
            results = results_of(
                model,
                like(cuts.message(last)) if is_last else None,
                make_crossing=partial(Crossing.of, cuts, owned),
                is_last=is_last,
            )
            names = owned_parameters(model, results)
        finally:
            remove_stubs(layers)
        inside = tuple(f"{paths[layer]}." for layer in owned)
        ends.append({name: value.nbytes for name, value in names.items() if not name.startswith(inside)})
    both = sum(size for name, size in ends[0].items() if name in ends[1])
    return sum(ends[0].values()), sum(ends[1].values()), both


def _kv_bytes(model: nn.Module, context: int) -> list[int]:
    """KV cache bytes of each layer at `context` tokens, from one small pass that is never evaluated."""
    kv = make_kv_cache(model)
    model(mx.zeros((1, 2), dtype=mx.int32), cache=kv)
    sizes = [_entry_bytes(entry, context) for entry in kv]
    count = len(transformer_layers(model))
    return sizes if len(sizes) == count else [sum(sizes) // count] * count


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
