"""Where parameters come from: a file, or nowhere.

MLX leaves a parameter that no file gives as it was made, which is random, without a word; mlx-lm's own check
knows only all tensors or none. Here mlx-lm's call that puts the tensors into the model is watched, what it
leaves unfilled is remembered, and once a rank's share of a pass has been built, MLX's graph says whether it
reads any of that. So a rank answers for what it needs, after any conversion, and for nothing else.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_nb.engine.reach import reachable
from mlx_nb.shared.errors import UnfitWeightsError
from mlx_nb.shared.text import format_shape


@dataclass(slots=True)
class Provenance:
    """What one loading of a model has left unfilled.

    Attributes:
        unfilled: The arrays that stand where no file gave a fitting tensor, by parameter.
        misfits: For those that a file gave in another shape: ``[96, 64] in the file, [95, 64] in the model``.
        stored_as: The tensor of the files that a parameter is, as it is; none for those that mlx-lm made of others.
        model: The model, once its tensors are put into it.
    """

    unfilled: dict[str, mx.array] = field(default_factory=dict)
    misfits: dict[str, str] = field(default_factory=dict)
    stored_as: dict[str, str] = field(default_factory=dict)
    model: nn.Module | None = None
    _read: dict[int, tuple[str, Any]] = field(default_factory=dict)

    def read(self, tensors: Any) -> None:
        """Remember what a file was read as; the arrays are held, so that no other takes an id of theirs."""
        if isinstance(tensors, dict):
            self._read.update({id(array): (name, array) for name, array in tensors.items()})

    def take(self, model: nn.Module, given: dict[str, Any]) -> dict[str, mx.array]:
        """Compare what a model needs with what is given; returns what fits.

        Raises:
            UnfitWeightsError: Tensors are given that the model has no place for.
        """
        wanted: dict[str, mx.array] = dict(tree_flatten(model.parameters()))
        self.model = model
        self.stored_as = {
            name: self._read[id(array)][0] for name, array in given.items() if id(array) in self._read
        }
        self._read.clear()
        if extra := sorted(given.keys() - wanted.keys()):
            raise UnfitWeightsError(
                f"{and_more('tensor', extra)} {'has' if len(extra) == 1 else 'have'} no place in the model"
                " that config.json describes.",
                "Fetch the model again: config.json and the weights do not belong together.",
                extra[0],
            )
        for name, array in wanted.items():
            if name not in given:
                self.unfilled[name] = array
            elif given[name].shape != array.shape:
                self.unfilled[name] = array
                shapes = format_shape(given[name].shape), format_shape(array.shape)
                self.misfits[name] = f"{shapes[0]} in the file, {shapes[1]} in the model"
        return {name: value for name, value in given.items() if name not in self.unfilled}

    def lacking(self, results: list[mx.array]) -> list[str]:
        """The parameters without a tensor that `results`, not evaluated yet, depend on."""
        return sorted(reachable(results, self.unfilled)) if self.unfilled else []


@contextmanager
def watching() -> Iterator[Provenance]:
    """Watch which parameters mlx-lm fills while it loads a model."""
    seen = Provenance()

    def load_weights(original: Any, model: nn.Module, given: Any, strict: bool) -> nn.Module:
        if not strict or isinstance(given, str):
            return original(model, given, strict=strict)
        return original(model, list(seen.take(model, dict(given)).items()), strict=False)

    load = mx.load

    def watched(*args: Any, **kwargs: Any) -> Any:
        tensors = load(*args, **kwargs)
        seen.read(tensors)
        return tensors

    with _instead(load_weights):
        mx.load = watched
        try:
            yield seen
        finally:
            mx.load = load


@contextmanager
def shapes_before() -> Iterator[dict[str, tuple[int, ...]]]:
    """The shapes of a model's parameters as they are just before mlx-lm fills some of them."""
    shapes: dict[str, tuple[int, ...]] = {}

    def load_weights(original: Any, model: nn.Module, given: Any, strict: bool) -> nn.Module:
        shapes.update({name: tuple(array.shape) for name, array in tree_flatten(model.parameters())})
        return original(model, given, strict=strict)

    with _instead(load_weights):
        yield shapes


@contextmanager
def _instead(function: Any) -> Iterator[None]:
    """Have a function called for MLX's method: mlx-lm hands the tensors over deep inside its own functions."""
    original = nn.Module.load_weights

    def load_weights(self: nn.Module, given: Any, strict: bool = True) -> nn.Module:
        return function(original, self, given, strict)

    nn.Module.load_weights = load_weights
    try:
        yield
    finally:
        nn.Module.load_weights = original


def and_more(what: str, names: list[str]) -> str:
    """The first of some names, and how many more there are.

    >>> and_more("tensor", ["a", "b", "c"]), and_more("tensor", ["a"])
    ('tensor a and 2 more', 'tensor a')
    """
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"{what} {names[0]}{more}"
