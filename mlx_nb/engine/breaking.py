"""Breakpoints where the arrays are: conditions are evaluated on the rank, and only they compute anything."""

import builtins
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.culprit import report_nonfinite
from mlx_nb.engine.pytree import arrays_in
from mlx_nb.engine.stop import Stop, first_array
from mlx_nb.engine.summary import bound_arguments
from mlx_nb.shared.attention import SCORES
from mlx_nb.shared.breaks import (
    CHANGES,
    EVERYWHERE,
    EXPRESSION,
    NONFINITE,
    STATISTICS,
    Break,
    Condition,
    parse_condition,
)
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.position import INPUT

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run


class Breaks:
    """The breakpoints that are armed while a run moves on one rank.

    Attributes:
        armed: They, with their counts.
    """

    def __init__(self, run: "Run") -> None:
        self.armed: tuple[Break, ...] = ()
        self._run = run
        self._conditions: dict[str, Condition] = {}
        self._looked_at: mx.array | None = None
        self._seen: dict[tuple[int, str, int], object] = {}

    def arm(self, breaks: Sequence[Break]) -> None:
        """Take over what the notebook sent along with a stride."""
        self.armed = tuple(breaks)
        self._conditions = {one.when: parse_condition(one.when) for one in breaks}

    def meet(self, stop: "Stop") -> str:
        """What to say about a stop at which the run must stand still; empty to go on.

        A condition that cannot be evaluated stands still too, and says why: passed over it would never be noticed.
        """
        about = ""
        for place, one in enumerate(self.armed):
            if not one.covers(stop.event):
                continue
            try:
                holds = self._holds(one, stop)
                halt, counted = one.hit() if holds else (False, one)
                if not one.looked and self._conditions[one.when].kind == EXPRESSION:
                    counted = replace(counted, looked=True)
            except _UnknownNameError as error:
                halt, counted = False, replace(one, unknown=error.name or "so")
            except RunError as error:
                return f"Breakpoint {one.number}: {error}"
            if counted is not one:
                self.armed = (*self.armed[:place], counted, *self.armed[place + 1 :])
            if halt and not about:
                about = self._about(counted, stop)
        return about

    def only_everywhere(self) -> bool:
        """Whether nothing but NaN and Inf, at whatever site, is looked for."""
        return all(
            not one.enabled or (one.pattern == EVERYWHERE and self._conditions[one.when].kind == NONFINITE)
            for one in self.armed
        )

    def looks_everywhere(self) -> bool:
        """Whether NaN and Inf are looked for in this pass on this rank."""
        now = self._run.current
        assert now is not None  # layers are only called inside a pass
        return any(
            one.enabled
            and one.rank in (-1, self._run.stage.rank)
            and (one.token < 0 or now.start <= one.token < now.stop)
            for one in self.armed
        )

    def begin_pass(self) -> None:
        """A pass begins: nothing of the one before is held."""
        self._looked_at = None

    def _holds(self, one: Break, stop: "Stop") -> bool:
        condition = self._conditions[one.when]
        if not condition.kind:
            return True
        if condition.kind == NONFINITE:
            return self._nonfinite(stop)
        if condition.kind == CHANGES:
            return self._changed(one, condition.text, stop)
        return self._true(one, condition, stop)

    def _nonfinite(self, stop: "Stop") -> bool:
        if self._run.past_its_use:
            return False
        found = arrays_at(stop)
        if stop.event.kind == SCORES:
            found = [mx.where(array == -mx.inf, 0.0, array) for array in found]  # what the mask hides
        if len(found) == 1 and found[0] is self._looked_at:
            return False  # a block returns what its last part returned
        bad = any(has_nonfinite(array) for array in found)
        self._looked_at = found[0] if len(found) == 1 and not bad else None
        return bad

    def _changed(self, one: Break, what: str, stop: "Stop") -> bool:
        """Whether a site's shape or dtype is another than at the last visit; the first visit is none."""
        array = first_array(stop)
        if array is None:
            return False
        key = one.number, stop.event.site, stop.event.call
        now = getattr(array, what)
        before = self._seen.get(key, now)
        self._seen[key] = now
        return bool(before != now)

    def _true(self, one: Break, condition: Condition, stop: "Stop") -> bool:
        names = _Names(self._run, stop)
        array = first_array(stop)
        if condition.statistics and array is None:
            return False  # a statistic of nothing is no number to compare
        scope = stop.frame.f_globals if stop.frame else {"mx": mx}
        try:
            return bool(eval(condition.text, {**scope, "mx": mx, "np": np}, names))
        except NameError as error:
            if "*" in one.pattern:  # a glob comes to places that do not have the name
                raise _UnknownNameError(name=error.name) from error
            raise self._unclear(condition, error) from error
        except Exception as error:  # the user's expression may raise anything
            raise self._unclear(condition, error) from error

    def _unclear(self, condition: Condition, error: Exception) -> RunError:
        return RunError(
            f"the condition {condition.text} raises {type(error).__name__}: {error}.",
            f"It may name {', '.join(STATISTICS)}, shape, dtype, value, or what dbg.locals shows.",
        )

    def _about(self, one: Break, stop: "Stop") -> str:
        if self._conditions[one.when].kind == NONFINITE:
            return f"{one.label.capitalize()}: {report_nonfinite(self._run, stop)}"
        if one.when and (array := first_array(stop)) is not None:
            read = self._conditions[one.when].statistics
            shown = ", ".join(f"{name} {STATISTIC[name](array):.4g}" for name in read)
            return f"{one.label.capitalize()}, hit {one.hits}" + (f": {shown}." if shown else ".")
        return f"{one.label.capitalize()}, hit {one.hits}."


class _UnknownNameError(NameError):
    """One place of a glob does not have a name that the condition reads; another may."""


class _Names(dict[str, Any]):
    """What a condition may name: statistics, computed when they are read; then the model's own names."""

    def __init__(self, run: "Run", stop: "Stop") -> None:
        event, layer = stop.event, run.stage.layer_inside(stop.event.module)
        super().__init__(stop.frame.f_locals if stop.frame else {})
        if stop.call is not None:
            self.update(bound_arguments(stop.call, stop.module, stop.args, stop.kwargs))
        for name in STATISTICS:
            self.pop(name, None)  # the statistic is meant, whatever the model calls so
        self.update(layer=layer, rank=event.rank, token=event.start, site=event.site)
        array = first_array(stop)
        self._array = array
        if array is not None:
            self.update(value=array, shape=tuple(array.shape), dtype=_Dtype(array.dtype))

    def __missing__(self, name: str) -> Any:
        if name in STATISTIC and self._array is not None:
            number = STATISTIC[name](self._array)
            return _Statistic(number, getattr(builtins, name, None))
        raise KeyError(name)


class _Statistic(float):
    """A number that may still be called where Python has a function of its name: ``max(a, b)``."""

    _function: Any

    def __new__(cls, number: float, function: Any) -> "_Statistic":
        made = super().__new__(cls, number)
        made._function = function
        return made

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._function(*args, **kwargs)


class _Dtype(str):
    """A dtype that equals its name, with or without the package: ``dtype != 'float32'``, ``mx.float32``."""

    def __new__(cls, dtype: mx.Dtype) -> "_Dtype":
        return super().__new__(cls, str(dtype).removeprefix("mlx.core."))

    def __eq__(self, other: object) -> bool:
        return str(self) == str(other).removeprefix("mlx.core.")

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__


def _over_finite(reduce: Callable[[mx.array], mx.array], fill: float) -> Callable[[mx.array], float]:
    """A statistic over the finite elements in float32, as `summary.summarize` takes it."""

    def number(array: mx.array) -> float:
        values = array.astype(mx.float32)
        found: Any = reduce(mx.where(mx.isfinite(values), values, fill)).item()
        return float(found)

    return number


def _mean(array: mx.array) -> float:
    values = array.astype(mx.float32)
    finite = mx.isfinite(values)
    total: Any = (mx.sum(mx.where(finite, values, 0.0)) / mx.sum(finite)).item()
    return float(total)


def _rms(array: mx.array) -> float:
    return _mean(mx.square(array.astype(mx.float32))) ** 0.5


def _count(test: Callable[[mx.array], mx.array]) -> Callable[[mx.array], float]:
    def number(array: mx.array) -> float:
        found: Any = mx.sum(test(array)).item()
        return float(found)

    return number


STATISTIC: dict[str, Callable[[mx.array], float]] = {
    "min": _over_finite(mx.min, float("inf")),
    "max": _over_finite(mx.max, float("-inf")),
    "mean": _mean,
    "rms": _rms,
    "absmax": _over_finite(lambda values: mx.max(mx.abs(values)), 0.0),
    "nan": _count(mx.isnan),
    "inf": _count(mx.isinf),
}


def has_nonfinite(array: mx.array) -> bool:
    """Whether an array holds NaN or Inf; evaluates it.

    Looked at where MLX holds it, which on a CPU is five to ten times as fast as a reduction of MLX's own. The sum of
    squares is NaN or infinite if any element is; only where it is, which large numbers do too, every element counts.
    """
    if not array.size or array.dtype not in _BITS:
        return False
    mx.eval(array)
    width, exponent = _BITS[array.dtype]
    if array.dtype == mx.float32:
        flat = np.array(array, copy=False).ravel()
        with np.errstate(all="ignore"):
            if math.isfinite(np.dot(flat, flat)):
                return False
    bits = np.array(array.view(width), copy=False)
    return bool(np.any((bits & exponent) == exponent))


# What holds a number's bits, and its exponent's: all ones mean NaN or Inf (IEEE 754, section 3.4).
_BITS: dict[mx.Dtype, tuple[mx.Dtype, Any]] = {
    mx.float32: (mx.uint32, np.uint32(0x7F800000)),
    mx.float16: (mx.uint16, np.uint16(0x7C00)),
    mx.bfloat16: (mx.uint16, np.uint16(0x7F80)),
}


def arrays_at(stop: "Stop") -> list[mx.array]:
    """The arrays that are looked at: the first argument at an entry, all that was returned elsewhere."""
    if stop.event.kind == INPUT:
        first = first_array(stop)
        return [] if first is None else [first]
    return arrays_in(stop.value)
