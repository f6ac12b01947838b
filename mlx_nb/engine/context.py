"""The run that is under way, seen from inside the model's own code.

Run state belongs to the run, never to modules: a stub or a hook finds it here. It is a context
variable because every greenlet keeps its own, so a stopped run and a free one do not meet.
"""

from contextvars import ContextVar
from typing import Any, Protocol

from mlx_nb.engine.pytree import Tree


class PassContext(Protocol):
    """What a stub asks of the run whose forward pass called it."""

    def received(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        """What a layer that lives elsewhere returns here: usually what the layer before this rank's first did."""

    def deliver(self, value: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        """Hand the last owned layer's whole return value on; what it returns goes on through the model."""

    def saw_kv(self, index: int, arguments: list[Any]) -> None:
        """Owned layer `index` is being called with these arguments, KV cache entries among them."""

    def layer_done(self, index: int, value: Tree) -> None:
        """Owned layer `index` has returned `value`."""


ACTIVE: ContextVar[Any] = ContextVar("mlx_nb_active_run", default=None)
