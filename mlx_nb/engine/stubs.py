"""Sharding without a per-model patch: the layers that live elsewhere become stubs.

The model runs its own `__call__` on every rank. Each layer's `__class__` is swapped for a generated
subclass whose `__call__` returns, before this rank's range, the value received from the rank before;
inside it, what the layer's own code returns; after it, the last value once more. `isinstance`,
attributes and parameter paths stay as they were. Laziness makes it free: what a rank does not need
(embedding, norm, head, other ranks' layers) is never evaluated, so never read from disk.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import mlx.nn as nn

from mlx_nb.engine.context import ACTIVE, PassContext
from mlx_nb.engine.kv import fill_ghosts
from mlx_nb.shared.errors import RunError

_SLOT = "_mlx_nb_slot"


@dataclass(frozen=True, slots=True)
class Slot:
    """A layer's place in the pipeline, kept on the layer as a plain attribute (MLX sees only dict items)."""

    index: int
    owned: range
    num_layers: int


def install_stubs(layers: list[nn.Module], owned: range) -> None:
    """Turn every layer outside `owned` into a stub, and the edge layers into the ends of a hop."""
    for index, layer in enumerate(layers):
        object.__setattr__(layer, _SLOT, Slot(index, owned, len(layers)))
        cls: Any = type(layer)
        layer.__class__ = stub_class(cls)


def remove_stubs(layers: list[nn.Module]) -> None:
    """Give every layer its own class back."""
    for layer in layers:
        if hasattr(type(layer), "_mlx_nb_base"):
            layer.__class__ = type(layer)._mlx_nb_base


@cache
def stub_class(base: Any) -> type:
    """A subclass of a layer's class that knows its place in the pipeline. One for each class."""

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        slot: Slot = getattr(self, _SLOT)
        run: PassContext | None = ACTIVE.get()
        if run is None:
            if slot.index in slot.owned:
                return base.__call__(self, *args, **kwargs)
            raise RunError(
                f"Layer {slot.index} lives on another rank; "
                f"this one holds layers {slot.owned.start}–{slot.owned.stop - 1}.",
                "Use pipe.generate(…) or pipe.logits(…), which run all ranks together.",
            )
        if slot.index < slot.owned.start or slot.index >= slot.owned.stop:
            value = run.received(slot.index, args, kwargs)
            fill_ghosts([*args, *kwargs.values()])
            return value
        run.saw_kv(slot.index, [*args, *kwargs.values()])
        value = base.__call__(self, *args, **kwargs)
        run.layer_done(slot.index, value)
        if slot.index == slot.owned.stop - 1 and slot.index < slot.num_layers - 1:
            return run.deliver(value, args, kwargs)
        return value

    return type(
        base.__name__, (base,), {"__call__": call, "__module__": base.__module__, "_mlx_nb_base": base}
    )
