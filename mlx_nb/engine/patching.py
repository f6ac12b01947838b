"""Changing values while a pass goes on: patches of the pipe, on the rank that owns the site."""

import pickle
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.stop import Stop, first_array, replace_first
from mlx_nb.shared.errors import OptionError, ValueShapeError
from mlx_nb.shared.patches import FUNCTION, PatchSpec
from mlx_nb.shared.strides import Event
from mlx_nb.shared.text import format_shape

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run

Function = Callable[[mx.array], Any]


class Patches:
    """The patches of one rank's share of a model."""

    def __init__(self) -> None:
        self._specs: dict[int, PatchSpec] = {}
        self._values: dict[int, mx.array] = {}
        self._functions: dict[int, Function] = {}

    def __bool__(self) -> bool:
        return bool(self._specs)

    def add(self, spec: PatchSpec) -> None:
        """Change values from now on.

        Raises:
            OptionError: A function cannot be rebuilt here.
        """
        if spec.how == FUNCTION:
            self._functions[spec.number] = _rebuilt(spec)
        elif spec.value is not None:
            self._values[spec.number] = mx.array(spec.value)
        self._specs[spec.number] = spec

    def remove(self, number: int) -> None:
        """Change nothing any more; does nothing the second time."""
        for table in (self._specs, self._values, self._functions):
            table.pop(number, None)

    def cover(self, event: Event) -> bool:
        """Whether one of them changes something at an event."""
        return any(spec.covers(event) for spec in self._specs.values())

    def apply(self, run: "Run", stop: Stop) -> None:
        """Change the first array at a stop, as every patch that covers it says.

        Raises:
            ValueShapeError: A value does not fit.
            OptionError: A function raises.
        """
        for spec in list(self._specs.values()):
            if not spec.covers(stop.event) or (array := first_array(stop)) is None:
                continue
            replace_first(stop, self._changed(run, spec, stop, array))

    def _changed(self, run: "Run", spec: PatchSpec, stop: Stop, array: mx.array) -> mx.array:
        event = stop.event
        axes = run.stage.sizes.axes(tuple(array.shape), event.stop - event.start)
        axis = axes.index("L") if "L" in axes else -1
        positions = spec.positions(event)
        if spec.how == FUNCTION:
            new = self._called(run, spec, stop, array)
        else:
            value = self._values[spec.number]
            if axis >= 0 and value.ndim == array.ndim and value.shape[axis] > 1:
                # A value for many tokens: each pass takes its own, and where it ends nothing is changed.
                count = value.shape[axis]
                positions = [place for place in positions if event.start + place < count]
                if not positions:
                    return array
                rows = mx.array([min(event.start + i, count - 1) for i in range(array.shape[axis])])
                value = mx.take(value, rows, axis=axis)
            value = self._fitted(run, stop, value, array)
            new = {"replace": lambda: value, "add": lambda: array + value, "scale": lambda: array * value}[
                spec.how
            ]()
        if axis < 0 or len(positions) == array.shape[axis]:
            return new.astype(array.dtype)
        chosen = np.zeros(array.shape[axis], dtype=bool)
        chosen[positions] = True
        shape = [1] * array.ndim
        shape[axis] = -1
        return mx.where(mx.array(chosen).reshape(shape), new.astype(array.dtype), array)

    def _fitted(self, run: "Run", stop: Stop, value: mx.array, array: mx.array) -> mx.array:
        try:
            return mx.broadcast_to(value.astype(array.dtype), array.shape)
        except ValueError as error:
            raise _misfit(run, stop, tuple(array.shape), tuple(value.shape)) from error

    def _called(self, run: "Run", spec: PatchSpec, stop: Stop, array: mx.array) -> mx.array:
        try:
            new = self._functions[spec.number](array)
            new = new if isinstance(new, mx.array) else mx.array(new)
            mx.eval(new)
        except Exception as error:  # the user's function may raise anything
            raise OptionError(
                f"The patch at {spec.site} raised {type(error).__name__} on rank {run.stage.rank}: {error}.",
                "It gets one mx.array and returns one of its shape; mx and np are known to it.",
            ) from error
        if new.shape != array.shape:
            raise _misfit(run, stop, tuple(array.shape), tuple(new.shape))
        return new


def _misfit(run: "Run", stop: Stop, wanted: tuple[int, ...], given: tuple[int, ...]) -> ValueShapeError:
    return ValueShapeError(
        f"{stop.event.site} is {format_shape(wanted, ())} on rank {run.stage.rank}; "
        f"your value is {format_shape(given, ())}.",
        "Give it that shape, or one that broadcasts to it.",
    )


def _rebuilt(spec: PatchSpec) -> Function:
    try:
        function: Any = pickle.loads(spec.function)
    except Exception as error:
        raise OptionError(
            f"The patch at {spec.site} cannot be rebuilt on the ranks: {type(error).__name__}: {error}.",
            "Define the function in the notebook, and import what it needs inside it.",
        ) from error
    if (names := getattr(function, "__globals__", None)) is not None:
        names.setdefault("mx", mx)  # the notebook's kernel has no mlx, so its cells can only name it
        names.setdefault("np", np)
    found: Function = function
    return found
