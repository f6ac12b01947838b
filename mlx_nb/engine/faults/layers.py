"""Faults of whole layers, and of the numbers that they and their MLPs return."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_nb.engine.faults.tools import MLP, NotHere, Original, Strike, Target, Undo, first_changed, wrapped
from mlx_nb.engine.layers import transformer_layers
from mlx_nb.engine.pytree import map_arrays
from mlx_nb.shared.errors import OptionError


def _layer_skipped(target: Target) -> tuple[str, Undo]:
    _returns_one_array(target)
    return target.path, wrapped(target.layer, lambda _original, x, *_args, **_kwargs: x)


def _layer_repeated(target: Target) -> tuple[str, Undo]:
    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        return original(*args, **kwargs)

    return target.path, wrapped(target.layer, call)


def _layer_loaded_twice(target: Target) -> tuple[str, Undo]:
    layers, owned = transformer_layers(target.stage.model), target.stage.shard.layers
    own = _arrays(target.layer)
    for other in (target.index - 1, target.index + 1):
        if other not in owned:
            continue
        theirs = _arrays(layers[other])
        if {k: v.shape for k, v in theirs.items()} == {k: v.shape for k, v in own.items()}:
            target.layer.load_weights(list(theirs.items()))
            return target.path, lambda: target.layer.load_weights(list(own.items()))
    raise NotHere("a neighbour of the same shape on its rank")


def _arrays(layer: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(layer.parameters()))


def _residual_lost(target: Target) -> tuple[str, Undo]:
    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        return first_changed(original(x, *args, **kwargs), lambda value: value - x)

    return target.path, wrapped(target.layer, call)


def _stale_input(target: Target) -> tuple[str, Undo]:
    before: list[mx.array] = []

    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        stale = before[-1] if before and before[-1].shape == x.shape else x
        before[:] = [mx.contiguous(x)]
        return original(stale, *args, **kwargs)

    return target.path, wrapped(target.layer, call)


def _tuple_dropped(target: Target) -> tuple[str, Undo]:
    returned = target.stage.cuts.rehearsal.returned.get(target.path)
    if not isinstance(returned, tuple) or not isinstance(returned[-1], mx.array):
        raise NotHere("layers that return a tuple of arrays")

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        *kept, last = original(*args, **kwargs)
        return (*kept, map_arrays(mx.zeros_like, last))

    return target.path, wrapped(target.layer, call)


def _returns_one_array(target: Target) -> None:
    if not isinstance(target.stage.cuts.rehearsal.returned.get(target.path), mx.array):
        raise NotHere("layers that return one array")


def _nan(target: Target) -> tuple[str, Undo]:
    def spoil(value: mx.array) -> mx.array:
        return mx.where(mx.arange(value.shape[-1]) == 3, mx.array(mx.nan, value.dtype), value)

    return target.path, wrapped(
        target.layer, lambda original, *a, **k: first_changed(original(*a, **k), spoil)
    )


def _overflow_float16(target: Target) -> tuple[str, Undo]:
    def through(value: mx.array) -> mx.array:
        return (value * target.by).astype(mx.float16).astype(value.dtype) / target.by

    module, path = target.inside(MLP)
    return path, wrapped(module, lambda original, *a, **k: first_changed(original(*a, **k), through))


def _half_precision(target: Target) -> tuple[str, Undo]:
    def rounded(value: mx.array) -> mx.array:
        if value.dtype != mx.float32:
            raise OptionError("half_precision changes float32 models only.", "Load it with dtype='float32'.")
        return value.astype(mx.bfloat16).astype(value.dtype)

    module, path = target.inside(MLP)
    return path, wrapped(module, lambda original, *a, **k: first_changed(original(*a, **k), rounded))


TABLE: dict[str, Strike] = {
    "layer_skipped": _layer_skipped,
    "layer_repeated": _layer_repeated,
    "layer_loaded_twice": _layer_loaded_twice,
    "residual_lost": _residual_lost,
    "stale_input": _stale_input,
    "tuple_dropped": _tuple_dropped,
    "nan": _nan,
    "overflow_float16": _overflow_float16,
    "half_precision": _half_precision,
}
