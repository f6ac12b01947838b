"""Faults of what a module computes with: epsilons, RoPE, the scores' scale, the mask."""

from typing import Any

import mlx.core as mx

from mlx_nb.engine.faults.tools import (
    ATTENTION,
    FIRST_NORM,
    Original,
    Strike,
    Target,
    Undo,
    entries_among,
    setting,
    wrapped,
)


def _norm_epsilon(target: Target) -> tuple[str, Undo]:
    return setting(*target.inside(FIRST_NORM), "eps", lambda _eps: target.by)


def _rope(target: Target) -> tuple[Any, str]:
    return target.inside(ATTENTION, ("rope", "rotary_emb", "rotary"))


def _rope_base(target: Target) -> tuple[str, Undo]:
    return setting(*_rope(target), "base", lambda base: base * target.by)


def _rope_scale(target: Target) -> tuple[str, Undo]:
    return setting(*_rope(target), "scale", lambda scale: scale * target.by)


def _rope_traditional(target: Target) -> tuple[str, Undo]:
    return setting(*_rope(target), "traditional", lambda way: not way)


def _rope_offset(target: Target) -> tuple[str, Undo]:
    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if "offset" in kwargs or not args:
            return original(x, *args, **{**kwargs, "offset": kwargs.get("offset", 0) + int(target.by)})
        return original(x, args[0] + int(target.by), *args[1:], **kwargs)

    module, path = _rope(target)
    return path, wrapped(module, call)


def _attention_scale(target: Target) -> tuple[str, Undo]:
    return setting(*target.inside(ATTENTION), "scale", lambda scale: scale * target.by)


def _mask_off_by_one(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(("self_attn", "attn", "attention"))
    by = int(target.by)

    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        start = next((entry.offset for entry in entries_among(args, kwargs)), 0)

        def shifted(mask: Any) -> Any:
            if isinstance(mask, str):
                rows = mx.arange(start, start + x.shape[1])[:, None]
                return mx.arange(start + x.shape[1])[None] <= rows + by
            if isinstance(mask, mx.array) and mask.ndim >= 2 and mask.shape[-2] > 1:
                return mx.concatenate([mask[..., by:, :], mask[..., -by:, :]], axis=-2)
            return mask

        # The mask is what is text, or an array that is not the hidden state.
        changed = [shifted(value) for value in args]
        return original(x, *changed, **{name: shifted(value) for name, value in kwargs.items()})

    return path, wrapped(module, call)


TABLE: dict[str, Strike] = {
    "norm_epsilon": _norm_epsilon,
    "rope_base": _rope_base,
    "rope_offset": _rope_offset,
    "rope_traditional": _rope_traditional,
    "rope_scale": _rope_scale,
    "attention_scale": _attention_scale,
    "mask_off_by_one": _mask_off_by_one,
}
