"""Where a model keeps its transformer layers.

They live under different paths (`model.layers`, `language_model.model.layers`, `transformer.h`,
`backbone.layers`, …). Every mlx-lm model has a `layers` property; the path is the list of modules
whose items *are* its items.
"""

from typing import Any

import mlx.nn as nn

from mlx_nb.shared.errors import ModelError


def transformer_layers(model: nn.Module) -> list[nn.Module]:
    """The layers, first to last.

    Raises:
        ModelError: The model does not say which its layers are.
    """
    layers = getattr(model, "layers", None)
    if layers is None:
        raise ModelError(
            f"{type(model).__module__} has no `layers`, so it cannot be divided over ranks.",
            "Load it on one rank: %mlx_load … --ranks 1 (in Python: ranks=1)",
        )
    return list(layers)


def layer_paths(model: nn.Module) -> dict[int, str]:
    """The dotted path of every layer, by the layer's `id`.

    Paths are those of `named_modules()`; a layer reachable by two paths keeps the first.
    """
    wanted = {id(layer) for layer in transformer_layers(model)}
    paths: dict[int, str] = {}
    for path, module in named_modules(model):
        if id(module) in wanted:
            paths.setdefault(id(module), path)
    return paths


def named_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Every module with its dotted path, the model itself first (with an empty path), parents before children."""
    found: list[tuple[str, Any]] = list(model.named_modules())
    found.sort(key=lambda item: item[0].count(".") + bool(item[0]))
    return found
