"""How a fault is put in: what it gets, and the few ways to change a module so that it can be undone.

What computes wrongly gets a class of its own below the hooks, so that a stepper and a check-up see what they would see if
the code were wrong.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.hooks import own_class, set_own_class
from mlx_nb.engine.kv import KVEntry, is_kv_entry, parts_of
from mlx_nb.engine.layers import transformer_layers

if TYPE_CHECKING:
    from mlx_nb.engine.stage import Stage

Undo = Callable[[], None]
Original = Callable[..., Any]

ATTENTION = ("self_attn", "attn", "attention", "linear_attn", "mixer", "temporal_block")
MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
FIRST_NORM = ("input_layernorm", "attention_norm", "operator_norm", "pre_norm", "norm", "ln_1")


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


def wrapped(module: nn.Module, call: Callable[..., Any]) -> Undo:
    """Let a module compute otherwise: `call` gets its own `__call__`, bound, and the arguments."""
    base: Any = own_class(module)

    def faulty(self: Any, *args: Any, **kwargs: Any) -> Any:
        return call(lambda *a, **k: base.__call__(self, *a, **k), *args, **kwargs)

    cls = type(base.__name__, (base,), {"__call__": faulty, "__module__": base.__module__})
    set_own_class(module, cls)
    return lambda: set_own_class(module, base)


def tensor(
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


def setting(module: Any, path: str, name: str, change: Callable[[Any], Any]) -> tuple[str, Undo]:
    """Set one of a module's own numbers or switches otherwise."""
    before = getattr(module, name, None)
    if not isinstance(before, bool | int | float):
        raise NotHere(f"a {name} in {path.rpartition('.')[2]}")
    setattr(module, name, change(before))
    return path, lambda: setattr(module, name, before)


def entries_among(args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[KVEntry]:
    """The KV cache entries among a call's arguments that hold keys."""
    found = [value for value in (*args, *kwargs.values()) if is_kv_entry(value)]
    return [part for entry in found for part in parts_of(entry) if hasattr(part, "keys")]


def first_changed(value: Any, change: Callable[[mx.array], mx.array]) -> Any:
    """A return value with its first array changed."""
    if isinstance(value, mx.array):
        return change(value)
    return type(value)([change(value[0]), *value[1:]])


Strike = Callable[[Target], tuple[str, Undo]]
"""Puts a fault in; returns where it is, and what takes it out."""
