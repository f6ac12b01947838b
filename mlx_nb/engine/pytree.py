"""A layer's whole return value as a header and a list of arrays, without pickle.

Layers return more than the hidden state: rwkv7, hunyuan, gemma4 and kimi return tuples. What
crosses to the next rank is therefore a tree. Tuples stay tuples: models unpack and index them.
"""

import json
from typing import Any

import mlx.core as mx

from mlx_nb.shared.errors import ModelError

Tree = Any


def flatten(tree: Tree) -> tuple[str, list[mx.array]]:
    """A tree as JSON text and its arrays in order.

    Raises:
        ModelError: The tree holds something that is neither array, scalar, list, tuple nor dict.
    """
    arrays: list[mx.array] = []
    return json.dumps(_encode(tree, arrays), separators=(",", ":")), arrays


def unflatten(header: str, arrays: list[mx.array]) -> Tree:
    """The inverse of `flatten`."""
    return _decode(json.loads(header), arrays)


def arrays_of(tree: Tree) -> list[mx.array]:
    """The arrays of a tree, in order."""
    return flatten(tree)[1]


def like(tree: Tree) -> Tree:
    """A tree of the same structure, shapes and dtypes, of zeros that come from nowhere."""
    header, arrays = flatten(tree)
    return unflatten(header, [mx.zeros(array.shape, dtype=array.dtype) for array in arrays])


def _encode(node: Tree, arrays: list[mx.array]) -> Any:
    if isinstance(node, mx.array):
        arrays.append(node)
        return {"a": len(arrays) - 1}
    if node is None or isinstance(node, bool | int | float | str):
        return node
    # A named tuple would come back as a plain one, and attribute access on it would fail far away.
    if isinstance(node, list) or type(node) is tuple:
        kind = "l" if isinstance(node, list) else "t"
        return {kind: [_encode(item, arrays) for item in node]}
    if isinstance(node, dict):
        return {"d": [[key, _encode(item, arrays)] for key, item in node.items()]}
    raise ModelError(
        f"A layer returned a {type(node).__name__}, which cannot cross to the next rank.",
        "Load the model on one rank: %mlx_load MODEL --ranks 1",
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
    return {key: _decode(item, arrays) for key, item in content}
