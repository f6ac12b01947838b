"""Two values that should be one: how far apart they are, computed where they lie, many pairs at a time."""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.shared.text import format_number, format_shape

# The same operations on the same numbers give the same bits on the CPU. A few units in the last place are let
# pass for kernels that may add up in another order when an input lies differently in memory.
TOLERANCE = {"float32": 2e-6, "float16": 2e-3, "bfloat16": 1.6e-2}


@dataclass(slots=True)
class Difference:
    """How two arrays of one shape differ; its numbers are there once they are evaluated.

    Attributes:
        numbers: Largest difference and largest value of the second one over what is finite in both; then how many
            elements are not finite in the first, and in the second. ``[4]`` float32.
        dtype: What the first one is of.
    """

    numbers: mx.array
    dtype: str

    @property
    def _values(self) -> list[float]:
        return [float(number) for number in np.array(self.numbers)]

    @property
    def error(self) -> float:
        """The largest difference over the largest value."""
        most, scale = self._values[:2]
        return float(most / scale) if scale else float(most > 0)

    @property
    def holes(self) -> tuple[int, int]:
        """Elements that are NaN or infinite: in the first, in the second."""
        first, second = self._values[2:]
        return int(first), int(second)

    @property
    def within(self) -> bool:
        """Whether they are the same but for rounding."""
        first, second = self.holes
        return first == second and self.error <= TOLERANCE.get(self.dtype, 0.0)

    @property
    def told(self) -> str:
        """The numbers in words."""
        first, second = self.holes
        if first != second:
            size = "1 value is" if first == 1 else f"{first} values are"
            return f"{size} NaN or infinite" + (f", and should be {second}" if second else "")
        most, scale = self._values[:2]
        return f"largest difference {format_number(most)}, largest value {format_number(scale)}"


def difference(live: mx.array, own: mx.array) -> Difference:
    """Compare two arrays of one shape; nothing is computed yet."""
    dtype = str(live.dtype).removeprefix("mlx.core.")
    if mx.issubdtype(live.dtype, mx.complexfloating):
        live, own = (mx.concatenate([mx.real(a), mx.imag(a)], axis=-1) for a in (live, own))
    a, b = live.astype(mx.float32), own.astype(mx.float32)
    good = mx.isfinite(a) & mx.isfinite(b)
    zero = mx.array(0.0)
    if not live.size:
        return Difference(mx.zeros(4), dtype)
    numbers = mx.stack(
        [
            mx.where(good, mx.abs(a - b), zero).max(),
            mx.where(good, mx.abs(b), zero).max(),
            (~mx.isfinite(a)).sum().astype(mx.float32),
            (~mx.isfinite(b)).sum().astype(mx.float32),
        ]
    )
    return Difference(numbers, dtype)


def misfit(live: Any, own: Any) -> str:
    """Why two values cannot be compared number by number; empty if they can, or are equal."""
    if isinstance(live, mx.array) != isinstance(own, mx.array):
        return f"is {_kind(live)}, should be {_kind(own)}"
    if isinstance(live, mx.array):
        if live.shape != own.shape:
            return f"is {format_shape(live.shape)}, should be {format_shape(own.shape)}"
        if live.dtype != own.dtype:
            return f"is {_kind(live)}, should be {_kind(own)}"
        return ""
    if isinstance(live, bool | int | float | str | None) and isinstance(own, bool | int | float | str | None):
        return "" if live == own else f"is {live!r}, should be {own!r}"
    return ""


def _kind(value: Any) -> str:
    if isinstance(value, mx.array):
        return f"{str(value.dtype).removeprefix('mlx.core.')} {format_shape(value.shape)}"
    return repr(value) if isinstance(value, bool | int | float | str | None) else type(value).__name__
