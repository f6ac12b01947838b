"""Two programs' names for the modules of one model, matched by path: ours are mlx-lm's, theirs transformers'."""

from collections.abc import Sequence

# What mlx-lm calls otherwise than the checkpoint that it was written for, inside a layer.
_ALIASES = {"mlp.gate": ("mlp.router", "block_sparse_moe.gate"), "block_sparse_moe.gate": ("mlp.gate",)}


def join_modules(
    ours: Sequence[str], our_layers: Sequence[str], theirs: Sequence[str], their_layers: Sequence[str]
) -> dict[str, str]:
    """Their path for each of our module paths that they have.

    A layer is joined with the layer of its number, whatever the list is called, and what lies in it by the path
    inside; what stands beside the layers by the path beside them.

    >>> join_modules(["model.norm", "model.layers.0", "model.layers.0.mlp"], ["model.layers.0"],
    ...              ["transformer.norm", "transformer.h.0", "transformer.h.0.mlp"], ["transformer.h.0"])
    {'model.norm': 'transformer.norm', 'model.layers.0': 'transformer.h.0', 'model.layers.0.mlp': 'transformer.h.0.mlp'}
    """
    known = set(theirs)
    found = {}
    for path in ours:
        for name in _spellings(path, our_layers, their_layers):
            if name in known:
                found[path] = name
                break
    return found


def _spellings(path: str, our_layers: Sequence[str], their_layers: Sequence[str]) -> list[str]:
    for layer, other in zip(our_layers, their_layers, strict=False):
        if path == layer:
            return [other]
        if path.startswith(f"{layer}."):
            inside = path.removeprefix(f"{layer}.")
            return [f"{other}.{name}" for name in (inside, *_ALIASES.get(inside, ()))]
    beside, there = _beside(our_layers), _beside(their_layers)
    if beside and path.startswith(f"{beside}."):
        return [f"{there}.{path.removeprefix(f'{beside}.')}" if there else path.removeprefix(f"{beside}.")]
    if path == beside:
        return [there]
    return [path]


def _beside(layers: Sequence[str]) -> str:
    """The module that has the list of layers: ``model`` for ``model.layers.0``."""
    return layers[0].rpartition(".")[0].rpartition(".")[0] if layers else ""
