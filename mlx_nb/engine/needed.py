"""Which weight files hold a rank's share of a model, from the configuration and the index alone."""

import re
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import mlx.nn as nn

from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.cuts import legal_cuts
from mlx_nb.engine.layers import transformer_layers
from mlx_nb.engine.loading import owned_parameters, results_of
from mlx_nb.engine.pytree import like
from mlx_nb.engine.stubs import install_stubs
from mlx_nb.engine.unloaded import build_unloaded
from mlx_nb.engine.weights import read_index
from mlx_nb.shared.errors import ModelError
from mlx_nb.shared.legal import choose_counts
from mlx_nb.shared.plan import split_layers

# The number of a layer in a tensor's name, wherever the model keeps its layers.
_NUMBERED = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")


def files_of_share(
    folder: Path, rank: int, size: int, split: str | Sequence[int], *, name: str
) -> set[str] | None:
    """The weight files that a rank must have.

    Where the tensors are called as the model's parameters are, these are the files of exactly those that the
    rank reads. Else (mlx-lm renames some at load) they are the files of its layers, by number, and those of
    whatever belongs to no layer.

    Args:
        folder: With ``config.json`` and the index; no weight file is needed.
        rank, size: Which of how many.
        split: ``even``, or the layers per rank.
        name: The model's name, for errors.

    Returns:
        Their names; None where all are needed: there is no index, or the model is only known once it is loaded.

    Raises:
        PlanError: The model cannot be split so.
    """
    where = read_index(folder)
    if not where:
        return None
    try:
        model, _ = build_unloaded(folder)
    except ModelError:
        return None  # loading it says what is wrong
    owned, names = _share(model, rank, size, split, name)
    if names <= where.keys():
        return {where[parameter] for parameter in names}
    return {file for tensor, file in where.items() if _belongs(tensor, owned)}


def _share(
    model: nn.Module, rank: int, size: int, split: str | Sequence[int], name: str
) -> tuple[range, set[str]]:
    """A rank's layers, and the parameters that it reads."""
    layers = transformer_layers(model)
    cuts = legal_cuts(model)
    wanted = [len(shard.layers) for shard in split_layers(len(layers), size, split, model=name)]
    counts, _ = choose_counts(cuts.plain, wanted, even=split == "even", model=name)
    shard = split_layers(len(layers), size, counts, model=name)[rank]
    install_stubs(layers, shard.layers)
    results = results_of(
        model,
        None if shard.is_first else like(cuts.message(shard.layers.start)),
        make_crossing=partial(Crossing.of, cuts, shard.layers),
        is_last=shard.is_last,
    )
    return shard.layers, set(owned_parameters(model, results))


def _belongs(tensor: str, owned: range) -> bool:
    number = _NUMBERED.search(tensor)
    return number is None or int(number[1]) in owned
