"""Arrays in numbers: what a stop sends to the notebook instead of the array itself."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.kv import is_kv_entry, offset_of
from mlx_nb.shared.attention import AXES, K, Q, V
from mlx_nb.shared.position import Argument, Summary

_MAX_ARGUMENTS = 12
_MAX_TEXT = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What the axes of this model are long, to name them: B L S D H K V (0 where unknown)."""

    batch: int = 1
    hidden: int = 0
    heads: int = 0
    kv_heads: int = 0
    vocabulary: int = 0

    def axes(self, shape: tuple[int, ...], length: int) -> tuple[str, ...]:
        """A letter for each leading axis, as far as the shape says for certain.

        ``[B, L, D]`` hidden states, ``[B, L, V]`` logits, ``[B, H, L, …]`` and ``[B, K, L, …]`` heads.
        """
        if len(shape) < 2 or shape[0] != self.batch:
            return ()
        if len(shape) == 4 and shape[2] == length and shape[1] in (self.heads, self.kv_heads):
            return ("B", "H" if shape[1] == self.heads else "K", "L", "")
        if shape[1] != length:
            return ("B",)
        last = {self.hidden: "D", self.vocabulary: "V"}.get(shape[-1], "") if len(shape) == 3 else ""
        return ("B", "L", *[""] * (len(shape) - 3), last) if len(shape) > 2 else ("B", "L")


def summarize(array: mx.array, axes: tuple[str, ...] = ()) -> Summary:
    """Five statistics of an array; evaluates it.

    The statistics are taken over the finite elements, in float32 (integers too).
    """
    shape = tuple(array.shape)
    common: dict[str, Any] = {
        "shape": shape,
        "axes": axes,
        "dtype": str(array.dtype).removeprefix("mlx.core."),
        "size_bytes": array.nbytes,
    }
    if array.size == 0:
        none: dict[str, Any] = dict.fromkeys(("min", "mean", "rms", "max"), float("nan"))
        return Summary(**common, **none, min_at=(), max_at=(), nan=0, inf=0)
    if mx.issubdtype(array.dtype, mx.complexfloating):
        array = mx.abs(array)
    values = array.astype(mx.float32).reshape(-1)
    finite = mx.isfinite(values)
    count = mx.sum(finite)
    low, high = mx.where(finite, values, mx.inf), mx.where(finite, values, -mx.inf)
    kept = mx.where(finite, values, 0.0)
    several = [
        mx.argmin(low),
        mx.argmax(high),
        mx.min(low),
        mx.max(high),
        mx.sum(kept) / count,
        mx.sqrt(mx.sum(kept * kept) / count),
        mx.sum(mx.isnan(values)),
        mx.sum(mx.isinf(values)),
    ]
    mx.eval(several)
    numbers: list[Any] = [value.item() for value in several]
    least_at, most_at, least, most, mean, rms, nan, inf = numbers
    if nan + inf == array.size:
        least = most = mean = rms = float("nan")
    return Summary(
        **common,
        min=least,
        min_at=tuple(int(i) for i in np.unravel_index(least_at, shape)),
        mean=mean,
        rms=rms,
        max=most,
        max_at=tuple(int(i) for i in np.unravel_index(most_at, shape)),
        nan=nan,
        inf=inf,
    )


def describe_call(
    call: Callable[..., Any],
    module: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sizes: Sizes,
    length: int,
) -> tuple[Argument, ...]:
    """The arguments of a module's call by parameter name; what was left at its default is left out."""
    return describe_values(bound_arguments(call, module, args, kwargs), sizes, length)


def bound_arguments(
    call: Callable[..., Any], module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> list[tuple[str, Any]]:
    """The arguments of a call by parameter name; what goes to ``**kwargs`` by its own name."""
    try:
        bound = inspect.signature(call).bind(module, *args, **kwargs)
        named = list(bound.arguments.items())[1:]
    except (TypeError, ValueError):
        named = [(f"arg{i}", value) for i, value in enumerate(args)] + list(kwargs.items())
    flat: list[tuple[str, Any]] = []
    for name, value in named:
        if name in ("kwargs",) and isinstance(value, dict):
            flat.extend(value.items())
        else:
            flat.append((name, value))
    return flat


def describe_tree(value: Any, sizes: Sizes, length: int) -> tuple[Argument, ...]:
    """What a module returned: one array, or the parts of a tuple or dict."""
    if isinstance(value, list | tuple):
        named = [(f"out[{i}]", item) for i, item in enumerate(value)]
    elif isinstance(value, dict):
        named = [(f"out[{key!r}]", item) for key, item in value.items()]
    else:
        named = [("out", value)]
    return describe_values(named, sizes, length)


def describe_values(named: list[tuple[str, Any]], sizes: Sizes, length: int) -> tuple[Argument, ...]:
    rows = []
    for name, value in named[:_MAX_ARGUMENTS]:
        if isinstance(value, mx.array):
            axes = sizes.axes(tuple(value.shape), length)
            rows.append(Argument(name=name, summary=summarize(value, axes)))
        else:
            rows.append(Argument(name=name, text=_short(value)))
    return tuple(rows)


def describe_attention(
    kind: str, value: mx.array, given: tuple[tuple[str, Any], ...]
) -> tuple[Argument, ...]:
    """A place inside attention: what is there, and then what the function was given."""
    axes = {**AXES, "queries": AXES[Q], "keys": AXES[K], "values": AXES[V]}
    return tuple(
        Argument(name=name, summary=summarize(item, axes.get(name, ())))
        if isinstance(item, mx.array)
        else Argument(name=name, text=_short(item))
        for name, item in [(kind, value), *given]
        if not (item is value and name != kind)
    )


def _short(value: Any) -> str:
    if is_kv_entry(value):
        offset = offset_of(value)
        return type(value).__name__ + (f"(offset={offset})" if offset >= 0 else "")
    if isinstance(value, list | tuple) and value and all(is_kv_entry(item) or item is None for item in value):
        return f"{len(value)} KV caches"
    text = " ".join(repr(value).split())
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"


def token_statistics(array: mx.array, axis: int) -> np.ndarray:
    """Each token's numbers, as `shared.statistics.STATISTICS` names them.

    Shapes:
        array: Any, with the tokens along `axis`.
        returned: ``[STATISTICS, L]`` float32.
    """
    rows = mx.moveaxis(array, axis, 0).reshape(array.shape[axis], -1).astype(mx.float32)
    finite = mx.isfinite(rows)
    count = finite.astype(mx.float32).sum(axis=1)
    kept = mx.where(finite, rows, 0.0)
    # Scaled to 1: the squares and sums of large float32 values would overflow.
    most = mx.abs(kept).max(axis=1)
    scale = mx.where(most > 0, most, 1.0)
    unit = kept / scale[:, None]
    mean = unit.sum(axis=1) / count  # NaN where nothing is finite
    rms = mx.sqrt(mx.square(unit).sum(axis=1) / count) * scale
    away = mx.where(finite, unit - mean[:, None], 0.0)
    std = mx.sqrt(mx.square(away).sum(axis=1) / count) * scale
    largest = mx.where(count > 0, most, float("nan"))
    return np.array(mx.stack([rms, largest, std, rows.shape[1] - count]), copy=True)
