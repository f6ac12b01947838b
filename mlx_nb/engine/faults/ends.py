"""Faults of the model's ends: the embedding, the last norm, the head, the soft cap."""

from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.faults.tools import NotHere, Original, Strike, Target, Undo, tensor, wrapped
from mlx_nb.engine.layers import named_modules

_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logit_softcap")


def _embedding(target: Target) -> tuple[Any, str]:
    if not target.stage.shard.is_first:
        raise NotHere("the embedding: rank=0")
    for path, module in named_modules(target.stage.model):
        if isinstance(module, nn.Embedding | nn.QuantizedEmbedding) and path in target.stage.order:
            return module, path
    raise NotHere("an embedding")


def _embed_scale(target: Target) -> tuple[str, Undo]:
    module, path = _embedding(target)

    def call(original: Original, ids: mx.array, *args: Any, **kwargs: Any) -> Any:
        value = original(ids, *args, **kwargs)
        return value * (target.by or value.shape[-1] ** -0.5)

    return path, wrapped(module, call)


def _token_shift(target: Target) -> tuple[str, Undo]:
    module, path = _embedding(target)

    def call(original: Original, ids: mx.array, *args: Any, **kwargs: Any) -> Any:
        return original(mx.concatenate([ids[..., :1], ids[..., :-1]], axis=-1), *args, **kwargs)

    return path, wrapped(module, call)


def _at_the_end(target: Target) -> None:
    if not target.stage.shard.is_last:
        raise NotHere(f"the model's end: rank={target.stage.size - 1}")


def _soft_cap(target: Target) -> tuple[str, Undo]:
    _at_the_end(target)
    for path, module in named_modules(target.stage.model):
        for owner in (module, getattr(module, "args", None)):
            for name in _SOFT_CAPS:
                before = getattr(owner, name, None)
                if isinstance(before, int | float) and before:
                    return _capped(owner, name, before, target.by, path)
    raise NotHere("a soft cap of the logits")


def _capped(owner: Any, name: str, before: float, by: float, path: str) -> tuple[str, Undo]:
    setattr(owner, name, before * by)
    return path or "the model", lambda: setattr(owner, name, before)


def _wrong_head(target: Target) -> tuple[str, Undo]:
    _at_the_end(target)
    for path, module in named_modules(target.stage.model):
        if path.rpartition(".")[2] in ("lm_head", "embed_out", "output") and "weight" in module:
            return tensor(module, path, lambda weight: mx.roll(weight, int(target.by), 0))
    for path, module in named_modules(target.stage.model):
        if isinstance(module, nn.Embedding):  # tied
            return tensor(module, path, lambda weight: mx.roll(weight, int(target.by), 0))
    raise NotHere("a head")


def _flat_logits(target: Target) -> tuple[str, Undo]:
    _at_the_end(target)
    prefix = target.path.rpartition(".")[0].rpartition(".")[0]
    for path, module in named_modules(target.stage.model):
        if path.rpartition(".")[0] == prefix and "norm" in path.rpartition(".")[2] and "weight" in module:
            # Gemma's norms multiply by one more than their weight.
            nothing = -1.0 if "gemma" in type(module).__module__ else 0.0
            return tensor(module, path, partial(mx.full_like, vals=nothing))
    raise NotHere("a norm behind its layers")


TABLE: dict[str, Strike] = {
    "embed_scale": _embed_scale,
    "token_shift": _token_shift,
    "soft_cap": _soft_cap,
    "wrong_head": _wrong_head,
    "flat_logits": _flat_logits,
}
