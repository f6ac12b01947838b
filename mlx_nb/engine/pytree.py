"""A layer's whole return value as a header and a list of arrays, without pickle.

Layers return more than the hidden state: rwkv7, hunyuan, gemma4 and kimi return tuples. What
crosses to the next rank is therefore a tree. Tuples stay tuples: models unpack and index them. An object
that a model keeps its own state in (kimi's residual blocks) crosses as its attributes; the class is
looked up among those that are loaded on the other side, never imported, and its code is not called.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.shared.errors import ModelError

Tree = Any


def flatten(tree: Tree) -> tuple[str, list[mx.array]]:
    """A tree as JSON text and its arrays in order.

    Raises:
        ModelError: The tree holds something that is neither array, scalar, container nor plain object.
    """
    arrays: list[mx.array] = []
    return json.dumps(_encode(tree, arrays), separators=(",", ":")), arrays


def unflatten(header: str, arrays: list[mx.array]) -> Tree:
    """The inverse of `flatten`."""
    return _decode(json.loads(header), arrays)


def arrays_of(tree: Tree) -> list[mx.array]:
    """The arrays of a tree, in order."""
    return flatten(tree)[1]


def arrays_in(value: Any) -> list[mx.array]:
    """The arrays of whatever a module took or returned, in order; what could not cross is passed over."""
    if isinstance(value, mx.array):
        return [value]
    if isinstance(value, dict) and not isinstance(value, nn.Module):
        value = list(value.values())
    elif is_plain_object(value):
        value = list(vars(value).values())
    if isinstance(value, list | tuple):
        return [array for item in value for array in arrays_in(item)]
    return []


def like(tree: Tree) -> Tree:
    """A tree of the same structure, shapes and dtypes, of zeros that come from nowhere."""
    header, arrays = flatten(tree)
    return unflatten(header, [mx.zeros(array.shape, dtype=array.dtype) for array in arrays])


def map_arrays(change: Callable[[mx.array], mx.array], tree: Tree) -> Tree:
    """A tree of the same structure, in containers of its own, with every array changed."""
    header, arrays = flatten(tree)
    return unflatten(header, [change(array) for array in arrays])


def is_plain_object(node: object) -> bool:
    """Whether something is an object that only holds attributes: no module, no KV entry, no builtin."""
    return (
        hasattr(node, "__dict__")
        and not isinstance(node, dict | list | tuple | type | nn.Module)
        and not callable(node)
        and not (hasattr(type(node), "state") or "state" in vars(node))
        and type(node).__module__ in sys.modules
        and _class_at(type(node).__module__, type(node).__qualname__) is type(node)
    )


def _encode(node: Tree, arrays: list[mx.array]) -> Any:
    if isinstance(node, mx.array):
        arrays.append(node)
        return {"a": len(arrays) - 1}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    if isinstance(node, list) or type(node) is tuple:
        kind = "l" if isinstance(node, list) else "t"
        return {kind: [_encode(item, arrays) for item in node]}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        cls = type(node)
        return {"n": [cls.__module__, cls.__qualname__, [_encode(item, arrays) for item in node]]}
    if isinstance(node, dict) and not isinstance(node, nn.Module):
        return {"d": [[key, _encode(item, arrays)] for key, item in node.items()]}
    if is_plain_object(node):
        cls = type(node)
        items = [[key, _encode(item, arrays)] for key, item in vars(node).items()]
        return {"o": [cls.__module__, cls.__qualname__, items]}
    raise ModelError(
        f"A layer returned a {type(node).__name__}, which cannot cross to the next rank.",
        "Load the model on one rank: %mlx_load … --ranks 1 (in Python: ranks=1)",
    )


def _decode(node: Any, arrays: list[mx.array]) -> Tree:
    if not isinstance(node, dict):
        return node
    ((kind, content),) = node.items()
    if kind == "a":
        return arrays[content]
    if kind == "l":
        return [_decode(item, arrays) for item in content]
    if kind == "t":
        return tuple(_decode(item, arrays) for item in content)
    if kind == "d":
        return {key: _decode(item, arrays) for key, item in content}
    module, name, items = content
    cls = _class_at(module, name)
    if cls is None:
        raise ModelError(
            f"The rank before sent a {module}.{name}, which this rank does not know.",
            "Use the same mlx-lm version on all hosts: %mlx_doctor",
        )
    if kind == "n":
        return tuple.__new__(cls, [_decode(item, arrays) for item in items])
    made: Any = object.__new__(cls)
    vars(made).update({key: _decode(item, arrays) for key, item in items})
    return made


def _class_at(module: str, name: str) -> type | None:
    found: Any = sys.modules.get(module)
    for part in name.split("."):
        found = getattr(found, part, None)
    return found if isinstance(found, type) else None
