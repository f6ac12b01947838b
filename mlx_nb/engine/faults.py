"""Faults that are put into a rank on purpose, and taken out again without a trace.

A table: each entry strikes one thing, and returns where, and how it is undone. What computes wrongly gets a class of
its own below the hooks, so that a stepper and a check-up see what they would see if the code were wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.hooks import own_class, set_own_class
from mlx_nb.engine.kv import KVEntry, is_kv_entry, parts_of
from mlx_nb.engine.layers import named_modules, transformer_layers
from mlx_nb.engine.pytree import map_arrays
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.faults import FaultSpec, kind_of
from mlx_nb.shared.text import format_layers

if TYPE_CHECKING:
    from mlx_nb.engine.stage import Stage

Undo = Callable[[], None]
Original = Callable[..., Any]

_ATTENTION = ("self_attn", "attn", "attention", "linear_attn", "mixer", "temporal_block")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_FIRST_NORM = ("input_layernorm", "attention_norm", "operator_norm", "pre_norm", "norm", "ln_1")
_SOFT_CAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logit_softcap")


class NotHere(Exception):
    """A layer, or the rank, lacks what a fault strikes."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a fault is put into.

    Attributes:
        stage: The rank's share.
        index: The layer.
        by: The fault's number.
    """

    stage: "Stage"
    index: int
    by: float

    @property
    def layer(self) -> Any:
        return transformer_layers(self.stage.model)[self.index]

    @property
    def path(self) -> str:
        return self.stage.layer_path(self.index)

    def inside(self, *names: tuple[str, ...]) -> tuple[Any, str]:
        """A module in the layer and its path: one name out of each group, from the outside in."""
        module, path = self.layer, self.path
        for group in names:
            name = next((name for name in group if name in module), None)
            if name is None:
                raise NotHere(f"a {group[0]}")
            module, path = module[name], f"{path}.{name}"
        return module, path


@dataclass(slots=True)
class Struck:
    """A fault that is in.

    Attributes:
        spec: Which.
        sites: The modules, tensors or KV cache entries that are wrong now.
        undo: Takes it out.
    """

    spec: FaultSpec
    sites: list[str]
    undo: list[Undo]


class Faults:
    """The faults of one rank's share, in the order in which they were put in."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self._active: list[Struck] = []

    def put(self, spec: FaultSpec) -> list[str]:
        """Put one in; where it is.

        Raises:
            OptionError: Nothing on this rank has what it strikes.
        """
        struck = Struck(spec, [], [])
        self._strike(struck)
        self._active.append(struck)
        return struck.sites

    def take(self, number: int) -> None:
        """Take one out; does nothing the second time. Those that came later are lifted off, and put back."""
        place = next((i for i, one in enumerate(self._active) if one.spec.number == number), None)
        if place is None:
            return
        later = self._active[place + 1 :]
        for one in reversed(self._active[place:]):
            _lift(one)
        del self._active[place:]
        for one in later:
            self.put(one.spec)

    def clear(self) -> None:
        """Take all out."""
        for one in reversed(self._active):
            _lift(one)
        self._active.clear()

    def _strike(self, struck: Struck) -> None:
        spec, stage = struck.spec, self._stage
        kind = kind_of(spec.name)
        by = spec.by if spec.by is not None else kind.by if kind.by is not None else 0.0
        layers = stage.shard.layers if spec.layer is None else range(spec.layer, spec.layer + 1)
        lacking = ""
        for layer in layers:
            try:
                site, undo = TABLE[spec.name](Target(stage, layer, by))
            except NotHere as error:
                lacking = lacking or str(error)
                continue
            struck.sites.append(site)
            struck.undo.append(undo)
            if not kind.everywhere:
                return
        if not struck.sites:
            raise OptionError(
                f"The fault {spec.name} needs {lacking}, which {format_layers(layers)} of {stage.name} on rank "
                f"{stage.rank} have not.",
                "Take another rank or layer, or another fault: mlx_nb.faults()",
            )


def _lift(struck: Struck) -> None:
    for undo in reversed(struck.undo):
        undo()


# Tools ------------------------------------------------------------------------------------------------


def _wrapped(module: nn.Module, call: Callable[..., Any]) -> Undo:
    """Let a module compute otherwise: `call` gets its own `__call__`, bound, and the arguments."""
    base: Any = own_class(module)

    def faulty(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(lambda *a, **k: base.__call__(self, *a, **k), *args, **kwargs)

    cls = type(base.__name__, (base,), {"__call__": faulty, "__module__": base.__module__})
    set_own_class(module, cls)
    return lambda: set_own_class(module, base)


def _tensor(
    module: Any, path: str, change: Callable[[mx.array], mx.array], name: str = "weight"
) -> tuple[str, Undo]:
    """Put another array in a parameter's place."""
    if name not in module:
        raise NotHere(f"a {name} in {path.rpartition('.')[2]}")
    before = module[name]
    if not mx.issubdtype(before.dtype, mx.floating):
        raise NotHere("weights that are not packed (dtype=None)")
    after = change(before).astype(before.dtype)
    if after.shape == before.shape and mx.array_equal(after, before).item():
        raise NotHere("a weight that this changes")
    module[name] = after

    def undo() -> None:
        module[name] = before

    return f"{path}.{name}", undo


def _setting(module: Any, path: str, name: str, change: Callable[[Any], Any]) -> tuple[str, Undo]:
    """Set one of a module's own numbers or switches otherwise."""
    before = getattr(module, name, None)
    if not isinstance(before, bool | int | float):
        raise NotHere(f"a {name} in {path.rpartition('.')[2]}")
    setattr(module, name, change(before))
    return path, lambda: setattr(module, name, before)


def _entries(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[KVEntry]:
    """The KV cache entries among a call's arguments that hold keys."""
    found = [value for value in (*args, *kwargs.values()) if is_kv_entry(value)]
    return [part for entry in found for part in parts_of(entry) if hasattr(part, "keys")]


def _kv_site(target: Target) -> str:
    return f"KV cache, layer {target.index}"


def _needs_keys(target: Target) -> None:
    """Only layers with attention have keys to get wrong."""
    if not any(name in target.layer for name in ("self_attn", "attn", "attention")):
        raise NotHere("a KV cache with keys")


def _first(value: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """A return value with its first array changed."""
    if isinstance(value, mx.array):
        return change(value)
    return type(value)([change(value[0]), *value[1:]])


# KV caches ----------------------------------------------------------------------------------------------


def _kv_offset(target: Target) -> tuple[str, Undo]:
    _needs_keys(target)

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        fresh = [entry for entry in _entries(args, kwargs) if entry.offset == 0]
        value = original(*args, **kwargs)
        for entry in fresh:
            entry.offset += int(target.by)
        return value

    return _kv_site(target), _wrapped(target.layer, call)


def _kv_stale(target: Target) -> tuple[str, Undo]:
    _needs_keys(target)

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        entries = [(entry, entry.offset) for entry in _entries(args, kwargs)]
        value = original(*args, **kwargs)
        for entry, start in entries:
            count = min(entry.offset - start, start)
            if count > 0 and isinstance(entry.values, mx.array) and entry.values.shape[2] >= entry.offset:
                entry.values[..., start : start + count, :] = entry.values[..., :count, :]
        return value

    return _kv_site(target), _wrapped(target.layer, call)


def _kv_missing(target: Target) -> tuple[str, Undo]:
    _needs_keys(target)

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        bare = [None if is_kv_entry(value) else value for value in args]
        return original(*bare, **{k: None if is_kv_entry(v) else v for k, v in kwargs.items()})

    return _kv_site(target), _wrapped(target.layer, call)


def _ring_logical(target: Target) -> tuple[str, Undo]:
    attention, path = target.inside(("self_attn", "attn", "attention"))

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        rings = [entry for entry in _entries(args, kwargs) if hasattr(entry, "max_size")]
        for ring in rings:
            _read_short(ring)
        try:
            return original(*args, **kwargs)
        finally:
            for ring in rings:
                ring.__dict__.pop("update_and_fetch", None)

    return path, _wrapped(attention, call)


def _read_short(ring: KVEntry) -> None:
    def update_and_fetch(keys: mx.array, values: mx.array) -> Any:
        all_keys, all_values = type(ring).update_and_fetch(ring, keys, values)
        if keys.shape[2] > 1 or ring.offset <= ring.max_size:
            return all_keys, all_values
        return all_keys[..., : ring._idx, :], all_values[..., : ring._idx, :]

    ring.update_and_fetch = update_and_fetch


# Layers ---------------------------------------------------------------------------------------------------


def _layer_skipped(target: Target) -> tuple[str, Undo]:
    _returns_one_array(target)
    return target.path, _wrapped(target.layer, lambda _original, x, *_args, **_kwargs: x)


def _layer_repeated(target: Target) -> tuple[str, Undo]:
    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        original(*args, **kwargs)
        return original(*args, **kwargs)

    return target.path, _wrapped(target.layer, call)


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
    from mlx.utils import tree_flatten

    return dict(tree_flatten(layer.parameters()))


def _residual_lost(target: Target) -> tuple[str, Undo]:
    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        return _first(original(x, *args, **kwargs), lambda value: value - x)

    return target.path, _wrapped(target.layer, call)


def _stale_input(target: Target) -> tuple[str, Undo]:
    before: list[mx.array] = []

    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        stale = before[-1] if before and before[-1].shape == x.shape else x
        before[:] = [mx.contiguous(x)]
        return original(stale, *args, **kwargs)

    return target.path, _wrapped(target.layer, call)


def _tuple_dropped(target: Target) -> tuple[str, Undo]:
    returned = target.stage.cuts.rehearsal.returned.get(target.path)
    if not isinstance(returned, tuple) or not isinstance(returned[-1], mx.array):
        raise NotHere("layers that return a tuple of arrays")

    def call(original: Original, *args: Any, **kwargs: Any) -> Any:
        *kept, last = original(*args, **kwargs)
        return (*kept, map_arrays(mx.zeros_like, last))

    return target.path, _wrapped(target.layer, call)


def _returns_one_array(target: Target) -> None:
    if not isinstance(target.stage.cuts.rehearsal.returned.get(target.path), mx.array):
        raise NotHere("layers that return one array")


# Numbers ----------------------------------------------------------------------------------------------------


def _nan(target: Target) -> tuple[str, Undo]:
    def spoil(value: mx.array) -> mx.array:
        return mx.where(mx.arange(value.shape[-1]) == 3, mx.array(mx.nan, value.dtype), value)

    return target.path, _wrapped(target.layer, lambda original, *a, **k: _first(original(*a, **k), spoil))


def _overflow_float16(target: Target) -> tuple[str, Undo]:
    def through(value: mx.array) -> mx.array:
        return (value * target.by).astype(mx.float16).astype(value.dtype) / target.by

    module, path = target.inside(_MLP)
    return path, _wrapped(module, lambda original, *a, **k: _first(original(*a, **k), through))


def _half_precision(target: Target) -> tuple[str, Undo]:
    def rounded(value: mx.array) -> mx.array:
        if value.dtype != mx.float32:
            raise OptionError("half_precision changes float32 models only.", "Load it with dtype='float32'.")
        return value.astype(mx.bfloat16).astype(value.dtype)

    module, path = target.inside(_MLP)
    return path, _wrapped(module, lambda original, *a, **k: _first(original(*a, **k), rounded))


# Weights ------------------------------------------------------------------------------------------------------


def _transposed_weight(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(_ATTENTION, ("o_proj", "out_proj", "dense", "wo"))
    if "weight" in module and module["weight"].shape[0] != module["weight"].shape[-1]:
        raise NotHere("a square output projection")
    return _tensor(module, path, lambda weight: weight.T)


def _swapped_qk_rows(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(_ATTENTION, ("q_proj", "wq"))
    heads = target.stage.sizes.heads

    def interleaved(weight: mx.array) -> mx.array:
        if not heads or weight.shape[0] % (2 * heads):
            raise NotHere("a query projection with whole heads")
        return weight.reshape(heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)

    return _tensor(module, path, interleaved)


def _gqa_order(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(_ATTENTION, ("k_proj", "wk"))
    heads = target.stage.sizes.kv_heads

    def turned(weight: mx.array) -> mx.array:
        if heads < 2 or weight.shape[0] % heads:
            raise NotHere("two KV heads or more")
        return weight.reshape(heads, -1, weight.shape[-1])[::-1].reshape(weight.shape)

    return _tensor(module, path, turned)


def _swapped_gate_up(target: Target) -> tuple[str, Undo]:
    gate, path = target.inside(_MLP, ("gate_proj", "w1"))
    up, _ = target.inside(_MLP, ("up_proj", "w3"))
    own, other = gate.get("weight"), up.get("weight")
    site, undo = _tensor(gate, path, lambda _weight: other)
    up["weight"] = own

    def undo_both() -> None:
        undo()
        up["weight"] = other

    return site, undo_both


def _down(target: Target, change: Callable[[mx.array], mx.array]) -> tuple[str, Undo]:
    return _tensor(*target.inside(_MLP, ("down_proj", "w2", "c_proj", "value")), change)


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

    return _tensor(*target.inside(_ATTENTION, ("o_proj", "out_proj", "dense", "wo")), without)


def _expert_order(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(_MLP, ("gate", "router"))
    return _tensor(module, path, lambda weight: weight[::-1])


# Settings ---------------------------------------------------------------------------------------------------------


def _norm_epsilon(target: Target) -> tuple[str, Undo]:
    return _setting(*target.inside(_FIRST_NORM), "eps", lambda _eps: target.by)


def _norm_offset(target: Target) -> tuple[str, Undo]:
    return _tensor(*target.inside(_FIRST_NORM), lambda weight: weight + target.by)


def _rope(target: Target) -> tuple[Any, str]:
    return target.inside(_ATTENTION, ("rope", "rotary_emb", "rotary"))


def _rope_base(target: Target) -> tuple[str, Undo]:
    return _setting(*_rope(target), "base", lambda base: base * target.by)


def _rope_scale(target: Target) -> tuple[str, Undo]:
    return _setting(*_rope(target), "scale", lambda scale: scale * target.by)


def _rope_traditional(target: Target) -> tuple[str, Undo]:
    return _setting(*_rope(target), "traditional", lambda way: not way)


def _rope_offset(target: Target) -> tuple[str, Undo]:
    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        if "offset" in kwargs or not args:
            return original(x, *args, **{**kwargs, "offset": kwargs.get("offset", 0) + int(target.by)})
        return original(x, args[0] + int(target.by), *args[1:], **kwargs)

    module, path = _rope(target)
    return path, _wrapped(module, call)


def _attention_scale(target: Target) -> tuple[str, Undo]:
    return _setting(*target.inside(_ATTENTION), "scale", lambda scale: scale * target.by)


def _mask_off_by_one(target: Target) -> tuple[str, Undo]:
    module, path = target.inside(("self_attn", "attn", "attention"))
    by = int(target.by)

    def call(original: Original, x: mx.array, *args: Any, **kwargs: Any) -> Any:
        start = next((entry.offset for entry in _entries(args, kwargs)), 0)

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

    return path, _wrapped(module, call)


# The model's ends -----------------------------------------------------------------------------------------------------


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

    return path, _wrapped(module, call)


def _token_shift(target: Target) -> tuple[str, Undo]:
    module, path = _embedding(target)

    def call(original: Original, ids: mx.array, *args: Any, **kwargs: Any) -> Any:
        return original(mx.concatenate([ids[..., :1], ids[..., :-1]], axis=-1), *args, **kwargs)

    return path, _wrapped(module, call)


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
            return _tensor(module, path, lambda weight: mx.roll(weight, int(target.by), 0))
    for path, module in named_modules(target.stage.model):
        if isinstance(module, nn.Embedding):  # tied
            return _tensor(module, path, lambda weight: mx.roll(weight, int(target.by), 0))
    raise NotHere("a head")


def _flat_logits(target: Target) -> tuple[str, Undo]:
    _at_the_end(target)
    prefix = target.path.rpartition(".")[0].rpartition(".")[0]
    for path, module in named_modules(target.stage.model):
        if path.rpartition(".")[0] == prefix and "norm" in path.rpartition(".")[2] and "weight" in module:
            # Gemma's norms multiply by one more than their weight.
            nothing = -1.0 if "gemma" in type(module).__module__ else 0.0
            return _tensor(module, path, partial(mx.full_like, vals=nothing))
    raise NotHere("a norm behind its layers")


TABLE: dict[str, Callable[[Target], tuple[str, Undo]]] = {
    "kv_offset": _kv_offset,
    "kv_stale": _kv_stale,
    "kv_missing": _kv_missing,
    "ring_logical": _ring_logical,
    "layer_skipped": _layer_skipped,
    "layer_repeated": _layer_repeated,
    "layer_loaded_twice": _layer_loaded_twice,
    "residual_lost": _residual_lost,
    "stale_input": _stale_input,
    "tuple_dropped": _tuple_dropped,
    "nan": _nan,
    "overflow_float16": _overflow_float16,
    "half_precision": _half_precision,
    "transposed_weight": _transposed_weight,
    "swapped_qk_rows": _swapped_qk_rows,
    "gqa_order": _gqa_order,
    "swapped_gate_up": _swapped_gate_up,
    "cut_weight": _cut_weight,
    "random_weight": _random_weight,
    "lost_head": _lost_head,
    "expert_order": _expert_order,
    "norm_epsilon": _norm_epsilon,
    "norm_offset": _norm_offset,
    "rope_base": _rope_base,
    "rope_offset": _rope_offset,
    "rope_traditional": _rope_traditional,
    "rope_scale": _rope_scale,
    "attention_scale": _attention_scale,
    "mask_off_by_one": _mask_off_by_one,
    "embed_scale": _embed_scale,
    "token_shift": _token_shift,
    "soft_cap": _soft_cap,
    "wrong_head": _wrong_head,
    "flat_logits": _flat_logits,
}
