"""The logit lens: the model's own norm and head, given the hidden state of any layer.

The model runs its own forward pass with every layer returning what it is given, so that scaling, soft caps
and tied heads are its own code (nostalgebraist, "interpreting GPT: the logit lens", 2020). It costs a norm
and a product with the head; embedding and masks are built and never evaluated.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nb.engine.kv import make_kv_cache
from mlx_nb.engine.layers import transformer_layers
from mlx_nb.engine.pytree import Tree, arrays_in, like
from mlx_nb.engine.rehearse import undisturbed
from mlx_nb.engine.stop import with_first
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.readout import Readout

if TYPE_CHECKING:
    from mlx_nb.engine.stage import Stage

_VALUE = "_mlx_nb_returns"

AT_ONCE_BYTES = 32 * 1024 * 1024
"""How many bytes of logits are made at once, in float32."""


def logits_of(stage: "Stage", hidden: mx.array) -> mx.array:
    """What the model makes of hidden states behind its last layer.

    Args:
        stage: The last rank's.
        hidden: What a layer returns at some positions.

    Shapes:
        hidden: ``[N, …]``, one entry for each hidden state: ``[N, D]`` in most models.
        returned: ``[N, V]`` float32, not evaluated.

    Raises:
        OptionError: This rank has no head, or what a layer returns is an object of the model's own.
    """
    if not stage.shard.is_last:
        raise OptionError(f"Rank {stage.rank} has no head.", "The last rank has: pipe.lens(…) asks it.")
    last = stage.layer_path(stage.shard.num_layers - 1)
    returned: Tree = like(stage.cuts.rehearsal.returned[last])
    first = next(iter(arrays_in(returned)))
    value, put = with_first(returned, hidden.astype(first.dtype)[None])
    if not put:
        raise OptionError(
            "What this model's layers return cannot be read by its head alone.",
            "Look at the layers themselves: pipe.trace(…)",
        )
    model: Any = stage.model
    with undisturbed(model), _all_layers_return(transformer_layers(model), value):
        output = model(mx.zeros((1, hidden.shape[0]), dtype=mx.int32), cache=make_kv_cache(model))
    logits: mx.array = output[0].astype(mx.float32)
    return logits


def read_out(stage: "Stage", hidden: Sequence[np.ndarray], top: int) -> list[Readout]:
    """Read hidden states position by position.

    Args:
        stage: The last rank's.
        hidden: For each position the states of the layers asked for, ``[N, …]``, the last layer's last.
        top: How many tokens of each.

    Raises:
        OptionError: As `logits_of`.
    """
    return [_read(stage, states, top) for states in hidden]


def _read(stage: "Stage", states: np.ndarray, top: int) -> Readout:
    # Backwards: the last layer's most probable token is what the others are asked about.
    answer = -1
    parts = []
    for at in reversed(range(0, len(states), step := _rows_at_once(stage))):
        logits = logits_of(stage, mx.array(states[at : at + step]))
        mx.eval(logits)
        if at + step >= len(states):
            last = logits[-1]
            answer = int(np.argmax(np.array(last))) if mx.all(mx.isfinite(last)).item() else -1
        parts.append(_rows(logits, top, answer))
    ids, probabilities, entropy, chances, places = (
        np.concatenate(columns[::-1]) for columns in zip(*parts, strict=True)
    )
    return Readout(
        ids=ids,
        probabilities=probabilities,
        entropy_bits=entropy,
        answer=answer,
        answer_probabilities=chances,
        answer_places=places,
    )


def _rows_at_once(stage: "Stage") -> int:
    return max(1, AT_ONCE_BYTES // (4 * max(1, stage.sizes.vocabulary)))


def _rows(logits: mx.array, top: int, answer: int) -> tuple[np.ndarray, ...]:
    """Ids, probabilities, entropy in bits, and the answer's probability and place: of every row ``[n, V]``."""
    count = min(top, logits.shape[-1])
    finite = mx.all(mx.isfinite(logits), axis=-1)
    log_p = logits - mx.logsumexp(logits, axis=-1, keepdims=True)
    found = mx.argpartition(-logits, kth=count - 1, axis=-1)[:, :count] if count < logits.shape[-1] else None
    if found is None:
        found = mx.broadcast_to(mx.arange(logits.shape[-1]), logits.shape)
    values = mx.take_along_axis(log_p, found, axis=-1)
    order = mx.argsort(-values, axis=-1)
    ids = mx.where(finite[:, None], mx.take_along_axis(found, order, axis=-1).astype(mx.int32), -1)
    probabilities = mx.exp(mx.take_along_axis(values, order, axis=-1))
    entropy = -mx.sum(mx.exp(log_p) * log_p, axis=-1) / float(np.log(2))
    of_answer = log_p[:, max(answer, 0)]
    places = mx.sum(log_p > of_answer[:, None], axis=-1)
    made = (ids, probabilities, entropy, mx.exp(of_answer), places.astype(mx.int32))
    mx.eval(*made)
    return tuple(np.array(array, copy=True) for array in made)


@contextmanager
def _all_layers_return(layers: Sequence[nn.Module], value: Tree) -> Iterator[None]:
    """Let every layer return `value`, whatever it is called with and whichever rank it lives on."""
    before: dict[int, tuple[Any, type]] = {id(layer): (layer, type(layer)) for layer in layers}
    try:
        for layer, cls in before.values():
            object.__setattr__(layer, _VALUE, value)
            layer.__class__ = _returning(cls)
        yield
    finally:
        for layer, cls in before.values():
            layer.__class__ = cls
            object.__delattr__(layer, _VALUE)


@cache
def _returning(base: Any) -> type:
    """A subclass of a layer's class that computes nothing. One for each class."""

    def call(self: Any, *_args: Any, **_kwargs: Any) -> Any:
        return getattr(self, _VALUE)

    return type(base.__name__, (base,), {"__call__": call, "__module__": base.__module__})
