"""Where NaN and Inf come from: the usual causes, looked for at the first module that shows them.

A guess is only made where the numbers at hand bear it out; else the places to look are named.
"""

from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nb.engine.pytree import arrays_in
from mlx_nb.engine.source import source_of_frame
from mlx_nb.shared.position import INPUT
from mlx_nb.shared.text import format_number

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run
    from mlx_nb.engine.stop import Stop

LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4028e38}
_TINY_EPS = 1e-12


def report_nonfinite(run: "Run", stop: "Stop") -> str:
    """Token, rank, layer and module of the first NaN or Inf, whether the input was finite, and the likely culprit."""
    given = stop.inputs
    arrays = arrays_in(stop.value)
    if stop.event.kind == INPUT:
        arrays = [value for value in (*stop.args, *stop.kwargs.values()) if isinstance(value, mx.array)]
    bad = next(array for array in arrays if not _finite(array))
    first = np.unravel_index(int(mx.argmin(mx.isfinite(bad).reshape(-1)).item()), bad.shape)  # type: ignore[arg-type]
    layer = run.stage.layer_inside(stop.event.module)
    now = run.current
    assert now is not None  # a stop is always inside a pass
    axes = run.stage.sizes.axes(tuple(bad.shape), now.stop - now.start)
    token = now.start + int(first[axes.index("L")]) if "L" in axes else now.start
    place = f"token {token}, rank {run.stage.rank}" + (f", layer {layer}" if layer >= 0 else "")
    nan, inf = int(mx.sum(mx.isnan(bad)).item()), int(mx.sum(mx.isinf(bad)).item())  # type: ignore[arg-type]
    counts = " and ".join(text for text in (f"{nan} NaN" if nan else "", f"{inf} Inf" if inf else "") if text)
    at = ",".join(str(int(i)) for i in first)
    was = ""
    if stop.event.kind != INPUT and given is not None:
        was = "its input was still finite" if _finite(given) else "its input was not finite any more"
    head = f"{counts} of {bad.size} at {place}: {stop.event.site}, first at [{at}]"
    return ". ".join(part for part in (head, was.capitalize(), _culprit(run, stop, bad, given)) if part)


def _culprit(run: "Run", stop: "Stop", bad: mx.array, given: mx.array | None) -> str:
    if given is not None and not _finite(given):
        return _between(stop)
    for path, array in _own_arrays(stop.module):
        if not _finite(array):
            count = int(mx.sum(~mx.isfinite(array)).item())  # type: ignore[arg-type]
            return f"Likely culprit: its {path} holds {count} NaN or Inf."
    if given is not None and "norm" in type(stop.module).__name__.lower():
        squares = mx.sum(mx.square(given.astype(mx.float32)), axis=-1)
        eps = float(getattr(stop.module, "eps", 1.0))
        if mx.any(squares == 0).item() and eps < _TINY_EPS:
            return f"Likely culprit: zero norm, a token's vector is all zeros and eps is {eps:g}."
    if mask := _bad_mask(stop):
        return mask
    name = str(bad.dtype).removeprefix("mlx.core.")
    if given is not None and name in LARGEST and mx.any(mx.isinf(bad)).item():
        most = format_number(float(mx.max(mx.abs(given.astype(mx.float32))).item()))  # type: ignore[arg-type]
        wide = _in_float32(stop.module, given)
        over = f", recomputed in float32 the output reaches {format_number(wide)}" if wide else ""
        return f"Likely culprit: {name} overflow (largest {LARGEST[name]:g}); the input reaches {most}{over}."
    return "None of the usual culprits fits: look at dbg.args, dbg.locals and dbg.source()."


def _between(stop: "Stop") -> str:
    """The input is bad while every module before it was fine: it comes from the code between them."""
    if mask := _bad_mask(stop):
        return mask
    if stop.frame is None:
        return "It came in with the value from the rank before."
    source = source_of_frame(stop.frame)
    where = f"{source.function}, {source.file}, before line {source.line}" if source else "the code between"
    named = [(name, value) for name, value in stop.frame.f_locals.items() if isinstance(value, mx.array)]
    fine = [name for name, value in named if value.size and _finite(value)]
    broken = [name for name, value in named if value.size and not _finite(value)]
    there = f": {', '.join(broken) or 'nothing named'} is not finite, {', '.join(fine) or 'nothing'} is"
    return f"It arose between modules, in {where}{there}."


def _bad_mask(stop: "Stop") -> str:
    """A mask in which some query may see nothing: softmax over such a row is NaN."""
    named: dict[str, Any] = dict(stop.frame.f_locals) if stop.frame else {}
    for name, value in {**named, **stop.kwargs}.items():
        if "mask" not in name or not isinstance(value, mx.array) or value.ndim < 2:
            continue
        open_ = value if value.dtype == mx.bool_ else mx.isfinite(value) & (value > -1e9)
        if mx.any(mx.isnan(value)).item() if value.dtype != mx.bool_ else False:
            return f"Likely culprit: a bad mask, {name} holds NaN."
        seen = mx.any(open_, axis=-1).reshape(-1)
        if not mx.all(seen).item():
            row = int(mx.argmin(seen).item()) % value.shape[-2]  # type: ignore[arg-type]
            return f"Likely culprit: a bad mask, row {row} of {name} allows no position."
    return ""


def _in_float32(module: Any, given: mx.array) -> float:
    """The largest magnitude of a plain linear layer's output in float32; 0 where it cannot be told."""
    weight = module.get("weight") if isinstance(module, nn.Linear) else None
    if weight is None:
        return 0.0
    output = mx.abs(given.astype(mx.float32) @ weight.astype(mx.float32).T)
    return float(mx.max(output).item())  # type: ignore[arg-type]


def _own_arrays(module: Any) -> list[tuple[str, mx.array]]:
    if not isinstance(module, nn.Module):
        return []
    return [(name, value) for name, value in module.items() if isinstance(value, mx.array)]


def _finite(array: mx.array) -> bool:
    return not array.size or bool(mx.all(mx.isfinite(array)).item())
