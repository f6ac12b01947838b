"""A pass that stands still: what is at hand there, while the arrays stay where they are."""

from collections.abc import Callable
from dataclasses import dataclass
from types import FrameType
from typing import Any

import mlx.core as mx

from mlx_nb.engine.attention import AttentionCall
from mlx_nb.engine.pytree import Tree, arrays_in
from mlx_nb.engine.transport import Arrival
from mlx_nb.shared.position import INPUT, Frame
from mlx_nb.shared.strides import Event


@dataclass(slots=True, kw_only=True)
class Stop:
    """A pass that stands still: the event, and what is at hand there.

    Attributes:
        event: Where.
        args, kwargs: The call's arguments, at an entry.
        value: What was returned, or what crosses.
        call: The module's own ``__call__``, to name the arguments.
        module: The module.
        frame: The model's frame that makes the call.
        stack: The modules from the model down to this one.
        arrival: How the value came, at a recv.
        inputs: At an exit, the first array that the module was called with.
        extra: More to show than the arguments: a failed module's weights.
        attention: The call of the attention function that it is inside of.
        about: Why it stands here, if not for the stride's sake.
    """

    event: Event
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any]
    value: Tree = None
    call: Callable[..., Any] | None = None
    module: Any = None
    frame: FrameType | None = None
    stack: tuple[Frame, ...] = ()
    arrival: Arrival | None = None
    inputs: mx.array | None = None
    extra: tuple[tuple[str, mx.array], ...] = ()
    attention: AttentionCall | None = None
    about: str = ""


def first_array(stop: Stop) -> mx.array | None:
    """The first array argument at an entry; the first array returned, or crossing, elsewhere."""
    if stop.event.kind == INPUT:
        for value in (*stop.args, *stop.kwargs.values()):
            if isinstance(value, mx.array):
                return value
        return None
    return next(iter(arrays_in(stop.value)), None)


def size_of(value: Tree) -> int:
    """Bytes of all arrays of a value that crosses."""
    return sum(array.nbytes for array in arrays_in(value))


def replace_first(stop: Stop, array: mx.array) -> None:
    """Put another array where `first_array` finds one; the pass goes on with it."""
    if stop.event.kind != INPUT:
        stop.value = with_first(stop.value, array)[0]
        return
    args = list(stop.args)
    for place, value in enumerate(args):
        if isinstance(value, mx.array):
            args[place] = array
            stop.args = tuple(args)
            return
    for name, value in stop.kwargs.items():
        if isinstance(value, mx.array):
            stop.kwargs = {**stop.kwargs, name: array}
            return


def with_first(tree: Tree, array: mx.array) -> tuple[Tree, bool]:
    """A tree with its first array replaced, and whether there was one."""
    if isinstance(tree, mx.array):
        return array, True
    items = (
        list(tree.items())
        if isinstance(tree, dict)
        else list(enumerate(tree))
        if isinstance(tree, list | tuple)
        else []
    )
    for place, (_, item) in enumerate(items):
        changed, done = with_first(item, array)
        if done:
            items[place] = (items[place][0], changed)
            if isinstance(tree, dict):
                return dict(items), True
            values = [value for _, value in items]
            if isinstance(tree, list):
                return values, True
            return (type(tree)(*values) if hasattr(tree, "_fields") else tuple(values)), True
    return tree, False
