"""What watches a stepped run's modules and decides where the pass stands still."""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nb.engine.attention import AttentionCall, Function
from mlx_nb.engine.breaking import Breaks
from mlx_nb.engine.haste import Gathered
from mlx_nb.engine.passlog import PassLog
from mlx_nb.engine.pytree import Tree, arrays_in
from mlx_nb.engine.source import calling_frame
from mlx_nb.engine.stop import Stop, replace_first
from mlx_nb.engine.transport import Arrival
from mlx_nb.shared.attention import KINDS, SDPA, K, Q, V
from mlx_nb.shared.breaks import Break
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND, Frame
from mlx_nb.shared.strides import Event, Stride, advance, meets

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run


LOGGED_PASSES = 8
_PASSES_THROUGH = ("run", "cont", "token", "rank")  # strides that never end inside a layer


class Probe:
    """Stops one run by a stride.

    It is mute on a rank until the rank's part of the pass begins and after it has been sent on: what
    runs lazily there (the embedding on rank 1, the norm on rank 0) is not computed, so there is
    nothing to see.

    Attributes:
        shapes: What each module has returned in this pass, by its path: the shape of the first array.
    """

    def __init__(self, run: "Run", *, keeps_past: bool = True) -> None:
        """Of a run that is stepped; one that only changes or records values in a free run keeps no past."""
        self.run = run
        self.keeps_past = keeps_past
        self.stride = Stride(name="run")
        self.breaks = Breaks(run)
        self.interrupted: Callable[[], bool] = lambda: False
        self._ticks = 0
        self._log = PassLog()
        self._sure = 0
        self._careful_pass = -1
        self._hasty = self._gathers = False
        self._gathered = Gathered()
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._inner: list[str] = []
        self._stack: list[Frame] = []
        self._calls: Counter[str] = Counter()
        self._open = False
        self._begun = False

    def set_out(self, stride: Stride, breaks: Sequence[Break], interrupted: Callable[[], bool]) -> None:
        """The notebook lets the run go on."""
        self.stride, self.interrupted = stride, interrupted
        self.breaks.arm(breaks)
        self._choose_pace()

    def begin_pass(self) -> None:
        """A pass is about to start: nothing is on the stack."""
        self._sure = 0
        self._begin()
        log = self.run.log
        for old in sorted(log)[:-LOGGED_PASSES]:
            del log[old]

    def begin_again(self) -> None:
        """The pass starts once more, to look at each value as it comes, from the first that is not known."""
        now = self.run.current
        assert now is not None  # the pass that begins again
        self._careful_pass = now.index
        self._begin()

    def _begin(self) -> None:
        self._stack.clear()
        self._calls.clear()
        self._gathered.clear()
        self.shapes.clear()
        self._inner.clear()
        self._ticks = 0
        self._open = self.run.stage.shard.is_first
        self._begun = False
        now = self.run.current
        assert now is not None  # the pass that begins
        self._log = self.run.log[now.index] = PassLog(self.run.stage.rank, now.start, now.stop)
        self.breaks.begin_pass()
        self._choose_pace()

    def _choose_pace(self) -> None:
        """Whether nothing can stop the pass but NaN and Inf, and it could be run again for that."""
        run = self.run
        self._hasty = (
            self.stride.name in _PASSES_THROUGH
            and self.keeps_past
            and run.recorder is None
            and not run.stage.patches
            and not run.edits
            and self.breaks.only_everywhere()
            and run.current is not None
            and run.current.index != self._careful_pass
            and run.current.index in run.history.snapshots
        )
        self._gathers = self._hasty and self.breaks.looks_everywhere()

    @property
    def unknown(self) -> bool:
        """Whether there are values that nobody has looked at, and somebody wants to."""
        return bool(self._gathered)

    def look(self, also: Sequence[mx.array] = ()) -> None:
        """Look at what was gathered. Raises LookAgain if something is NaN or Inf."""
        self._gathered.look(also)
        self._sure = max(self._sure, self._ticks)

    def call(self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module's call: stop before it, run it, stop after it."""
        self._calls[path] += 1
        number = self._calls[path]
        layer = self.run.stage.layer_at(path)
        if layer == self.run.stage.shard.layers.start:
            self._open = True
        if self._open and self._hasty and (self._begun or not self.run.stage.shard.is_first):
            return self._in_haste(module, path, base, args, kwargs, number, layer)
        self._stack.append(Frame(path=path, class_name=base.__name__))
        depth = len(self._stack) - 1
        try:
            if self._open:
                frame = calling_frame(sys._getframe(1))
                is_leaf = path not in self.run.stage.parents
                begins = self.run.stage.shard.is_first and is_leaf and not self._begun
                self._begun = self._begun or begins
                entry = self._event(INPUT, path, depth, number, layer, begins_pass=begins)
                stop = Stop(
                    event=entry, args=args, kwargs=kwargs, call=base.__call__, module=module, frame=frame
                )
                self._consider(stop)
                args, kwargs = stop.args, stop.kwargs
            given = next((a for a in (*args, *kwargs.values()) if isinstance(a, mx.array)), None)
            value = base.__call__(module, *args, **kwargs)
            if self._open and self._hasty:
                self._returned(path, depth, number, layer, value)
            elif self._open:
                self._note_shape(path, value)
                frame = calling_frame(sys._getframe(1))
                leaving = self._event(OUTPUT, path, depth, number, layer)
                stop = Stop(event=leaving, kwargs={}, value=value, module=module, frame=frame, inputs=given)
                self._consider(stop)
                value = stop.value
            return value
        finally:
            self._stack.pop()

    def _in_haste(
        self,
        module: Any,
        path: str,
        base: Any,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        number: int,
        layer: int,
    ) -> Any:
        """A call inside which nothing stops."""
        depth = len(self._stack) + len(self._inner)
        self._log_row(INPUT, path, depth, number, layer)
        self._inner.append(path)
        value = base.__call__(module, *args, **kwargs)
        self._inner.pop()
        self._returned(path, depth, number, layer, value)
        return value

    def _returned(self, path: str, depth: int, number: int, layer: int, value: Any) -> None:
        """A module has returned, and nothing stops here."""
        self._note_shape(path, value)
        self._log_row(OUTPUT, path, depth, number, layer)
        if self._gathers and not self.run.past_its_use:
            self._gathered.add(value)
            if not self._gathered:
                self._sure = self._ticks  # it was time to look, and all is well

    def _note_shape(self, path: str, value: Any) -> None:
        """Keep what a module returned as a shape: the first array's, which costs nothing."""
        array = value if isinstance(value, mx.array) else next(iter(arrays_in(value)), None)
        if array is not None:
            self.shapes[path] = array.shape

    def attend(self, function: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the attention function, by the innermost module: what is in it, where somebody wants to see."""
        if not self._open:
            return function(*args, **kwargs)
        inner = self._inner[-1] if self._inner else self._stack[-1].path
        path = f"{inner}.{SDPA}"
        depth = len(self._stack) + len(self._inner)
        self._calls[path] += 1
        first = len(self._log.rows)
        for kind in KINDS:
            self._log_row(kind, path, depth, self._calls[path], -1)
        if self._hasty:
            return function(*args, **kwargs)
        events = {kind: self._log.event(first + place) for place, kind in enumerate(KINDS)}
        if not any(self._is_wanted(event) for event in events.values()):
            return function(*args, **kwargs)
        call = AttentionCall.of(function, args, kwargs)
        frame = calling_frame(sys._getframe(1))
        for kind in KINDS:
            if kind not in (Q, K, V) and call.returned is None:
                call.make()
            if self._is_wanted(
                events[kind]
            ):  # asked here: at a stop before it the user may have gone on to it
                stop = Stop(
                    event=events[kind], kwargs={}, value=call.value(kind), frame=frame, attention=call
                )
                self._consider(stop)
                call.put(kind, stop.value, self.run.stage.rank)
        return call.returned

    def _is_wanted(self, event: Event) -> bool:
        """Whether somebody looks at a place inside attention: what is there is only made for them."""
        run = self.run
        return (
            meets(self.stride, event)
            or any(one.covers(event) for one in self.breaks.armed)
            or run.stage.patches.cover(event)
            or (run.recorder is not None and run.recorder.wants(event))
            or run.place_of(event) in run.edits
        )

    def crossed(self, kind: str, value: Tree, arrival: Arrival | None) -> Tree:
        """A value leaves for the next rank or has come from the one before."""
        shard = self.run.stage.shard
        layer = shard.layers.start - 1 if kind == RECV else shard.layers.stop - 1
        path = self.run.stage.layer_path(layer)
        depth = len(self._stack)
        self.look(arrays_in(value))
        event = self._event(kind, path, depth, 1, -1)
        stop = Stop(event=event, kwargs={}, value=value, arrival=arrival)
        self._consider(stop)
        if kind == SEND:
            self._open = False
        return stop.value

    def _event(
        self, kind: str, path: str, depth: int, call: int, layer: int, *, begins_pass: bool = False
    ) -> Event:
        self._log_row(kind, path, depth, call, layer, begins_pass=begins_pass)
        return self._log.event(-1)

    def _log_row(
        self, kind: str, path: str, depth: int, call: int, layer: int, *, begins_pass: bool = False
    ) -> None:
        self._ticks += 1
        self._log.rows.append((kind, path, depth, call, layer, begins_pass, self._ticks))

    def _consider(self, stop: Stop) -> None:
        if self.run.stage.patches:
            self.run.stage.patches.apply(self.run, stop)
        if self.run.edits and (edit := self.run.edits.get(self.run.place_of(stop.event))) is not None:
            replace_first(stop, edit)  # on the way to a place behind it once more
        if stop.event.tick <= self._sure:
            return  # it comes by once more
        self._sure = stop.event.tick
        halt, self.stride = advance(self.stride, stop.event)
        if self.breaks.armed and (about := self.breaks.meet(stop)):
            halt, stop.about = True, about
        if halt or self.interrupted():
            stop.stack = tuple(self._stack)
            self.run.switch(stop)
        if self.run.recorder is not None:
            self.run.recorder.saw(stop)  # last: what the pass goes on with
