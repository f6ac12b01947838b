"""A pass that is built and never evaluated: it shows which modules are called, how often, and with what.

Two tokens are fed, so that no mask is left out. It costs some 10 ms and reads no weight.
"""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.hooks import Hooks
from mlx_nb.engine.kv import make_kv_cache
from mlx_nb.engine.layers import layer_paths
from mlx_nb.engine.pytree import Tree


@dataclass(slots=True)
class Rehearsal:
    """What one unevaluated pass of the whole model showed.

    Attributes:
        calls: How often each module path was called.
        returned: What each whole layer returned, by its path: what a hop after it would carry.
    """

    layers: frozenset[str]
    calls: Counter[str] = field(default_factory=Counter)
    returned: dict[str, Tree] = field(default_factory=dict)

    @property
    def probe(self) -> "Rehearsal":
        """It stands in for the run and for its probe at once."""
        return self

    def call(self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A hooked module's call."""
        self.calls[path] += 1
        value = base.__call__(module, *args, **kwargs)
        if path in self.layers:
            self.returned[path] = value
        return value


def rehearse(model: nn.Module) -> Rehearsal:
    """Build one pass of a whole model (no stubs installed yet) without evaluating anything."""
    rehearsal = Rehearsal(frozenset(layer_paths(model).values()))
    hooks = Hooks(model)
    hooks.acquire()
    token = ACTIVE.set(rehearsal)
    try:
        model(mx.zeros((1, 2), dtype=mx.int32), cache=make_kv_cache(model))
    finally:
        ACTIVE.reset(token)
        hooks.release()
    return rehearsal
