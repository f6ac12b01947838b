"""Faults of weights."""

from collections.abc import Callable

import mlx.core as mx

from mlx_nb.engine.faults.tools import (
    ATTENTION,
    FIRST_NORM,
    MLP,
    NotHere,
    Strike,
    Target,
    Undo,
    tensor,
)


def _norm_offset(target: Target) -> tuple[str, Undo]:
    return tensor(*target.inside(FIRST_NORM), lambda weight: weight + target.by)


def _transposed_weight(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(ATTENTION, ("o_proj", "out_proj", "dense", "wo"))
    if "weight" in module and module["weight"].shape[0] != module["weight"].shape[-1]:
        raise NotHere("a square output projection")
    return tensor(module, path, lambda weight: weight.T)


def _swapped_qk_rows(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(ATTENTION, ("q_proj", "wq"))
    heads = target.stage.sizes.heads

    def interleaved(weight: mx.array) -> mx.array:
        if not heads or weight.shape[0] % (2 * heads):
            raise NotHere("a query projection with whole heads")
        return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)

    return tensor(module, path, interleaved)


def _gqa_order(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(ATTENTION, ("k_proj", "wk"))
    heads = target.stage.sizes.kv_heads

    def turned(weight: mx.array) -> mx.array:
        if heads < 2 or weight.shape[0] % heads:
            raise NotHere("two KV heads or more")
        return weight.reshape(heads, -1, weight.shape[-1])[::-1].reshape(weight.shape)

    return tensor(module, path, turned)


def _swapped_gate_up(target: Target) -> tuple[str, Undo]:
    gate, path = target.inside(MLP, ("gate_proj", "w1"))
    up, _ = target.inside(MLP, ("up_proj", "w3"))
    own, other = gate.get("weight"), up.get("weight")
    site, undo = tensor(gate, path, lambda _weight: other)
    up["weight"] = own

    def undo_both() -> None:
        undo()
        up["weight"] = other

    return site, undo_both


def _down(target: Target, change: Callable[[mx.array], mx.array]) -> tuple[str, Undo]:
    return tensor(*target.inside(MLP, ("down_proj", "w2", "c_proj", "value")), change)


def _cut_weight(target: Target) -> tuple[str, Undo]:
    return _down(
        target,
        lambda weight: mx.concatenate(
            [weight[: weight.shape[0] // 2], mx.zeros_like(weight[weight.shape[0] // 2 :])]
        ),
    )


def _random_weight(target: Target) -> tuple[str, Undo]:
    return _down(target, lambda weight: mx.random.normal(weight.shape, key=mx.random.key(1)) * weight.std())


def _lost_head(target: Target) -> tuple[str, Undo]:
    heads = target.stage.sizes.heads

    def without(weight: mx.array) -> mx.array:
        if not heads or weight.shape[-1] % heads:
            raise NotHere("an output projection with whole heads")
        return mx.where(mx.arange(weight.shape[-1]) < weight.shape[-1] // heads, 0.0, weight)

    return tensor(*target.inside(ATTENTION, ("o_proj", "out_proj", "dense", "wo")), without)


def _expert_order(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(MLP, ("gate", "router"))
    return tensor(module, path, lambda weight: weight[::-1])


TABLE: dict[str, Strike] = {
    "transposed_weight": _transposed_weight,
    "swapped_qk_rows": _swapped_qk_rows,
    "gqa_order": _gqa_order,
    "swapped_gate_up": _swapped_gate_up,
    "cut_weight": _cut_weight,
    "random_weight": _random_weight,
    "lost_head": _lost_head,
    "expert_order": _expert_order,
    "norm_offset": _norm_offset,
}
