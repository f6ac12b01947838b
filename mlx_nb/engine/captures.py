"""What traces have recorded on this rank: arrays that stay here, under a budget, until somebody asks for a slice."""

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx
import numpy as np

from mlx_nb.engine.stop import Stop, first_array, replace_first
from mlx_nb.engine.summary import summarize, token_statistics
from mlx_nb.shared.attention import AXES, MADE_AGAIN
from mlx_nb.shared.capture import (
    BUDGET_BYTES,
    Index,
    PassRecord,
    SiteRecord,
    TraceWish,
    check_transfer,
    gone,
    merge_summaries,
    pick,
)
from mlx_nb.shared.errors import TraceError
from mlx_nb.shared.position import RECV, SEND, Summary
from mlx_nb.shared.strides import Event

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run

AT_ONCE_BYTES = 16 * 1024 * 1024
"""How much of a value is summed up at once: statistics take several times its memory."""

Key = tuple[str, int, str, int]
"""A trace, a run in it, a site, and a call of its module."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    """A value that was recorded, whether or not it is still here."""

    stop: int
    shape: tuple[int, ...]
    error: mx.array | None = None


@dataclass(slots=True, kw_only=True)
class _Place:
    """One site of one run: what all its passes share, and the passes by their first token."""

    layer: int
    dtype: str
    axes: tuple[str, ...]
    passes: dict[int, _Seen]


class CaptureStore:
    """The recorded values of one model on one rank.

    Attributes:
        budgets: The most that it holds of each trace. Together they may take the largest of these; the least recently
            used values go first.
        given: Values that modules are given in a comparison, under a name: by site and the pass's first token.
    """

    def __init__(self, rank: int) -> None:
        self.rank = rank
        self.budgets: dict[str, int] = {}
        self._sizes: Counter[str] = Counter()  # bytes held, by trace
        self._held: OrderedDict[tuple[Key, int], mx.array] = OrderedDict()
        self._places: dict[Key, _Place] = {}
        self.given: dict[str, dict[tuple[str, int], mx.array]] = {}

    @property
    def size_bytes(self) -> int:
        """What it holds."""
        return self._sizes.total()

    def put(self, key: Key, place: _Place, start: int, seen: _Seen, array: mx.array) -> None:
        """Take a value in; older ones make room, the trace's own first. One larger than the whole budget is noted, not kept."""
        self._places.setdefault(key, place).passes[start] = seen
        self._drop((key, start))
        self._held[key, start] = array
        trace_id = key[0]
        self._sizes[trace_id] += array.nbytes
        while self._sizes[trace_id] > self.budgets.get(trace_id, BUDGET_BYTES):
            self._drop(next(at for at in self._held if at[0][0] == trace_id))
        while self.size_bytes > max(self.budgets.values(), default=BUDGET_BYTES):
            self._drop(next(iter(self._held)))

    def peek(self, key: Key, start: int) -> mx.array | None:
        """A value, without counting as a use."""
        return self._held.get((key, start))

    def forget(self, trace_id: str, run: int | None = None, start: int = 0) -> None:
        """Drop a trace, or of one of its runs all passes from a token on."""
        for key in [key for key in self._places if key[0] == trace_id and run in (None, key[1])]:
            passes = self._places[key].passes
            for at in [at for at in passes if at >= start or run is None]:
                del passes[at]
                self._drop((key, at))
            if not passes:
                del self._places[key]
        if run is None:
            self.budgets.pop(trace_id, None)
            del self._sizes[trace_id]

    def records(self, trace_id: str) -> list[SiteRecord]:
        """What a trace has, in the order in which it was first seen."""
        return [
            SiteRecord(
                run=run,
                site=site,
                call=call,
                rank=self.rank,
                layer=place.layer,
                dtype=place.dtype,
                axes=place.axes,
                passes=tuple(
                    PassRecord(
                        start=start,
                        stop=seen.stop,
                        shape=seen.shape,
                        held=((trace, run, site, call), start) in self._held,
                        error=_number(seen.error),
                    )
                    for start, seen in sorted(place.passes.items())
                ),
            )
            for (trace, run, site, call), place in self._places.items()
            if trace == trace_id
        ]

    def slice(self, key: Key, starts: Sequence[int], axis: int, index: Index) -> np.ndarray:
        """A copy of a slice of passes that follow each other; bfloat16 as its bits, uint16.

        Raises:
            TraceError: A value is no longer here.
            TransferTooLargeError: It is over 64 MiB.
        """
        found: mx.array = pick(
            self.arrays(key, starts), axis, index, lambda arrays, at: mx.concatenate(list(arrays), axis=at)
        )
        check_transfer(key[2], found.shape, found.dtype.size, axis)
        if found.dtype == mx.bfloat16:
            found = mx.contiguous(found).view(mx.uint16)
        return np.array(found, copy=True)

    def summary(self, key: Key, starts: Sequence[int], axis: int) -> Summary:
        """Numbers over passes that follow each other. Raises TraceError as `slice`."""
        arrays = self.arrays(key, starts)
        groups: list[list[mx.array]] = []
        size = AT_ONCE_BYTES
        for array in arrays:
            if size + array.nbytes > AT_ONCE_BYTES:
                groups.append([])
                size = 0
            groups[-1].append(array)
            size += array.nbytes
        parts = [
            summarize(mx.concatenate(group, axis=axis) if len(group) > 1 else group[0]) for group in groups
        ]
        if len(parts) == 1:
            return parts[0]
        first = arrays[0].shape
        shape = (*first[:axis], sum(array.shape[axis] for array in arrays), *first[axis + 1 :])
        return merge_summaries(parts, axis, shape, ())

    def token_statistics(self, key: Key, starts: Sequence[int], axis: int) -> np.ndarray:
        """``[STATISTICS, L]`` over passes that follow each other. Raises TraceError as `slice`."""
        return np.concatenate([token_statistics(array, axis) for array in self.arrays(key, starts)], axis=1)

    def arrays(self, key: Key, starts: Sequence[int]) -> list[mx.array]:
        """The values themselves.

        Raises:
            TraceError: One is no longer here.
        """
        place = self._places.get(key)
        if place is None or any(start not in place.passes for start in starts):
            raise TraceError(
                f"Rank {self.rank} no longer knows this trace.", "Record it again: pipe.trace(…)"
            )
        for start in starts:
            if (key, start) not in self._held:
                raise gone(key[2], self.rank, start, place.passes[start].stop)
            self._held.move_to_end((key, start))
        return [self._held[key, start] for start in starts]

    def _drop(self, at: tuple[Key, int]) -> None:
        if (array := self._held.pop(at, None)) is not None:
            self._sizes[at[0][0]] -= array.nbytes


class Recorder:
    """Puts what one run meets at the sites of its trace into the rank's store."""

    def __init__(self, run: "Run", wish: TraceWish) -> None:
        self._run, self._wish = run, wish
        self._store = run.stage.captures
        self._store.budgets[wish.trace_id] = wish.budget_bytes
        self._pending: list[tuple[Key, int]] = []
        self._errors: list[mx.array] = []
        self._given = self._store.given.get(wish.given, {})

    def begin_pass(self, start: int) -> None:
        """A pass begins: one that is run again, after going back, takes the place of what followed."""
        self._pending.clear()
        self._store.forget(self._wish.trace_id, self._wish.run, start)

    def wants(self, event: Event) -> bool:
        """Whether it records what is at an event."""
        return any(event.at(pattern) for pattern in self._wish.patterns)

    def saw(self, stop: Stop) -> None:
        """The pass comes through a stop; it goes on with another run's value if it was given one."""
        self._record(stop)
        value = self._given.get((stop.event.site, stop.event.start))
        if value is not None and (own := first_array(stop)) is not None and own.shape == value.shape:
            replace_first(stop, value.astype(own.dtype))

    def _record(self, stop: Stop) -> None:
        event, stage = stop.event, self._run.stage
        if not self.wants(event):
            return
        array = first_array(stop)
        if array is None:
            return
        between = event.kind in (SEND, RECV)
        call = event.call if event.module in stage.repeated and not between else 0
        key = (self._wish.trace_id, self._wish.run, event.site, call)
        # Another array object: models write into theirs in place, and these never change.
        array = mx.contiguous(array)
        shape = tuple(array.shape)
        place = _Place(
            layer=-1 if between else stage.layer_inside(event.module),
            dtype=str(array.dtype).removeprefix("mlx.core."),
            axes=AXES[event.kind] if stop.attention else stage.sizes.axes(shape, event.stop - event.start),
            passes={},
        )
        error = stop.attention.error() if stop.attention and event.kind in MADE_AGAIN else None
        seen = _Seen(stop=event.stop, shape=shape, error=error)
        self._store.put(key, place, event.start, seen, array)
        if error is not None:
            self._errors.append(error)
        self._pending.append((key, event.start))

    def end_pass(self) -> None:
        """A pass is over on this rank: compute what nothing else has needed, so that no graph is kept."""
        found = [self._store.peek(*at) for at in self._pending]
        mx.eval([array for array in found if array is not None], self._errors)
        self._pending.clear()
        self._errors.clear()


def _number(array: mx.array | None) -> float | None:
    return None if array is None else float(array.item())  # type: ignore[arg-type]
