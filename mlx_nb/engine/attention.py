"""A look inside attention: mlx-lm's shared attention function, watched where a model's code calls it.

The function is fused, so that scores and pattern never exist as values. Where somebody looks, they are computed
again, in float32, from what the function was given; how far that is from what it returned is told along.
"""

import inspect
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine import mlx_lm_api
from mlx_nb.engine.context import ACTIVE
from mlx_nb.shared.attention import MADE_AGAIN, PATTERN, SCORES, K, Q, V, Z
from mlx_nb.shared.errors import OptionError

Function = Callable[..., mx.array]

NAME = "scaled_dot_product_attention"
_GIVEN = {Q: "queries", K: "keys", V: "values"}


class Watched:
    """Stands in for the attention function under its name in a model's file; counts who needs it there."""

    def __init__(self, function: Function) -> None:
        self.function = function
        self.users = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        run = ACTIVE.get()
        probe = run.probe if run is not None else None
        if probe is None:
            return self.function(*args, **kwargs)
        return probe.attend(self.function, args, kwargs)


def watch_attention(model: nn.Module) -> list[dict[str, Any]]:
    """Put a `Watched` into every file whose code a model runs, and that has the shared function's name.

    Returns:
        The names of these files, for `unwatch_attention`.
    """
    shared = mlx_lm_api.attention_function()
    found: dict[int, dict[str, Any]] = {}
    for names in _files(type(module) for _, module in model.named_modules()):
        held = names.get(NAME)
        if held is shared:
            held = names[NAME] = Watched(shared)
        if isinstance(held, Watched) and id(names) not in found:
            held.users += 1
            found[id(names)] = names
    return list(found.values())


def unwatch_attention(files: Iterable[dict[str, Any]]) -> None:
    """Give the function its name back, where nobody else needs the `Watched`."""
    for names in files:
        held: Watched = names[NAME]
        held.users -= 1
        if held.users == 0:
            names[NAME] = held.function


def _files(classes: Iterable[type]) -> Iterable[dict[str, Any]]:
    """The global names that the code of classes sees; also where a file was never imported by its name."""
    for cls in {base for one in classes for base in one.__mro__}:
        for function in vars(cls).values():
            if (names := getattr(function, "__globals__", None)) is not None:
                yield names


@dataclass(slots=True)
class AttentionCall:
    """One call of the attention function, and what can be seen of it.

    Shapes:
        q, z: ``[B, H, L, …]``.
        k, v: ``[B, K, S, …]``, unpacked where the KV cache is quantised.
        scores, pattern: ``[B, H, L, S]`` float32; scores have the scale and the mask in them.
    """

    function: Function
    arguments: dict[str, Any]
    returned: mx.array | None = None
    _made: dict[str, mx.array] = field(default_factory=dict)

    @classmethod
    def of(cls, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "AttentionCall":
        """A call that is about to be made."""
        bound = inspect.signature(function).bind(*args, **kwargs)
        bound.apply_defaults()
        call = cls(function, dict(bound.arguments))
        # A handle of its own: the quantised function scales its queries in place.
        call._made[Q] = call.arguments["queries"][...]
        return call

    def make(self) -> None:
        """Call the function."""
        self.returned = self.function(**self.arguments)

    def value(self, kind: str) -> mx.array:
        """What is at a place; `scores`, `pattern` and `z` once the call was made."""
        if kind == Z:
            assert self.returned is not None  # it was called
            return self.returned
        if kind not in self._made:
            makers: dict[str, Callable[[], mx.array]] = {
                K: lambda: self._plain("keys"),
                V: lambda: self._plain("values"),
                SCORES: self._scores,
                PATTERN: lambda: _softmax(self.value(SCORES), self.arguments["sinks"]),
            }
            self._made[kind] = makers[kind]()
        return self._made[kind]

    def put(self, kind: str, array: mx.array, rank: int) -> None:
        """Let the call go on with another value; the same value again changes nothing, to the bit.

        Raises:
            OptionError: It is packed where it lies.
        """
        before = self.value(kind)
        if array is before or mx.array_equal(array, before).item():
            return
        if kind in (K, V) and self._quantised:
            raise OptionError(
                f"Rank {rank}: the {_GIVEN[kind]} lie in a quantised KV cache, and cannot be changed on the way.",
                "Change the pattern or the scores, or leave kv_bits away.",
            )
        if kind == Z:
            self.returned = array
            return
        self._made[kind] = array
        if kind in _GIVEN:
            self.arguments[_GIVEN[kind]] = array
            return
        if kind == SCORES:
            self._made.pop(PATTERN, None)
        assert self.returned is not None  # scores and pattern come after the call
        self.returned = self._mixed().astype(self.returned.dtype)

    def error(self) -> mx.array:
        """How far what follows from the pattern is from what the function returned, over the latter's largest value."""
        returned = self.value(Z).astype(mx.float32)
        most = mx.maximum(mx.max(mx.abs(returned)), 1e-30)
        return mx.max(mx.abs(self._mixed() - returned)) / most

    def shown(self) -> tuple[tuple[str, Any], ...]:
        """The arguments by their names in mlx-lm, for a stop to show."""
        given = {**self.arguments, **{_GIVEN[kind]: self.value(kind) for kind in _GIVEN}}
        return tuple(
            (name, given[name])
            for name in ("queries", "keys", "values", "mask", "scale", "sinks")
            if given[name] is not None
        )

    def told(self, kind: str) -> str:
        """What to say of a value that was computed again."""
        if kind not in MADE_AGAIN:
            return ""
        error: Any = self.error().item()
        text = (
            "Computed again in float32, since the fused function keeps none: "
            f"what it returned differs by {error:.1e} of its largest value at most."
        )
        if "Rotating" in type(self.arguments["cache"]).__name__:
            text += " S is in the order of the ring: pipe.kv_cache()[layer].positions."
        return text

    @property
    def _quantised(self) -> bool:
        return hasattr(self.arguments["cache"], "bits")

    def _plain(self, name: str) -> mx.array:
        given, cache = self.arguments[name], self.arguments["cache"]
        if not self._quantised:
            plain: mx.array = given[...]
            return plain
        packed, scales, biases = given
        return mx.dequantize(packed, scales, biases, group_size=cache.group_size, bits=cache.bits)

    def _scores(self) -> mx.array:
        queries, keys = (self.value(kind).astype(mx.float32) for kind in (Q, K))
        batch, heads, length, width = queries.shape
        groups = keys.shape[1]  # several query heads share the keys of one KV head
        queries = queries.reshape(batch, groups, heads // groups, length, width) * self.arguments["scale"]
        scores = queries @ keys[:, :, None].swapaxes(-1, -2)
        scores = scores.reshape(batch, heads, length, -1)
        mask = self.arguments["mask"]
        if isinstance(mask, str):  # "causal": the last query sees every key
            cached = scores.shape[-1]
            mask = mx.arange(cached - length, cached)[:, None] >= mx.arange(cached)[None]
        if mask is None:
            return scores
        if mask.dtype == mx.bool_:
            return mx.where(mask, scores, -mx.inf)
        return scores + mask.astype(mx.float32)

    def _mixed(self) -> mx.array:
        pattern, values = self.value(PATTERN), self.value(V).astype(mx.float32)
        batch, heads, length, cached = pattern.shape
        groups = values.shape[1]
        mixed = pattern.reshape(batch, groups, heads // groups, length, cached) @ values[:, :, None]
        return mixed.reshape(batch, heads, length, -1)


def _softmax(scores: mx.array, sinks: mx.array | None) -> mx.array:
    """Over S. A sink is one more score of each head, whose share nobody gets; a row that sees nothing is all zeros."""
    top = mx.max(scores, axis=-1, keepdims=True)
    if sinks is not None:
        sinks = sinks.astype(mx.float32).reshape(1, -1, 1, 1)
        top = mx.maximum(top, sinks)
    top = mx.where(top == -mx.inf, 0.0, top)
    weights = mx.exp(scores - top)
    total = mx.sum(weights, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + mx.exp(sinks - top)
    return weights / mx.where(total == 0, 1.0, total)
