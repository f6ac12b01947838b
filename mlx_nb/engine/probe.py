"""What watches a stepped run's modules and decides where the pass stands still."""

import sys
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nb.engine.breaking import Breaks
from mlx_nb.engine.pytree import Tree
from mlx_nb.engine.source import calling_frame
from mlx_nb.engine.stop import Stop, replace_first
from mlx_nb.engine.transport import Arrival
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND, Frame
from mlx_nb.shared.strides import Event, Stride, advance

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run


LOGGED_PASSES = 8


class Probe:
    """Stops one run by a stride.

    It is mute on a rank until the rank's part of the pass begins and after it has been sent on: what
    runs lazily there (the embedding on rank 1, the norm on rank 0) is not computed, so there is
    nothing to see.
    """

    def __init__(self, run: "Run", *, keeps_past: bool = True) -> None:
        """Of a run that is stepped; one that only changes or records values in a free run keeps no past."""
        self.run = run
        self.keeps_past = keeps_past
        self.stride = Stride(name="run")
        self.breaks = Breaks(run)
        self.interrupted: Callable[[], bool] = lambda: False
        self._ticks = 0
        self._log: list[Event] = []
        self._stack: list[Frame] = []
        self._calls: Counter[str] = Counter()
        self._open = False
        self._begun = False

    def begin_pass(self) -> None:
        """A pass is about to start: nothing is on the stack."""
        self._stack.clear()
        self._calls.clear()
        self._open = self.run.stage.shard.is_first
        self._begun = False
        self._ticks = 0
        now = self.run.current
        assert now is not None  # the pass that begins
        log = self.run.log
        self._log = log[now.index] = []
        for old in sorted(log)[:-LOGGED_PASSES]:
            del log[old]

    def call(self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module's call: stop before it, run it, stop after it."""
        self._calls[path] += 1
        number = self._calls[path]
        layer = self.run.stage.layer_at(path)
        if layer == self.run.stage.shard.layers.start:
            self._open = True
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
            if self._open:
                frame = calling_frame(sys._getframe(1))
                leaving = self._event(OUTPUT, path, depth, number, layer)
                stop = Stop(event=leaving, kwargs={}, value=value, module=module, frame=frame, inputs=given)
                self._consider(stop)
                value = stop.value
            return value
        finally:
            self._stack.pop()

    def crossed(self, kind: str, value: Tree, arrival: Arrival | None) -> Tree:
        """A value leaves for the next rank or has come from the one before."""
        shard = self.run.stage.shard
        layer = shard.layers.start - 1 if kind == RECV else shard.layers.stop - 1
        path = self.run.stage.layer_path(layer)
        depth = len(self._stack)
        event = self._event(kind, path, depth, 1, -1)
        stop = Stop(event=event, kwargs={}, value=value, arrival=arrival)
        self._consider(stop)
        if kind == SEND:
            self._open = False
        return stop.value

    def _event(
        self, kind: str, path: str, depth: int, call: int, layer: int, *, begins_pass: bool = False
    ) -> Event:
        now = self.run.current
        assert now is not None  # hooks only run inside a pass
        self._ticks += 1
        event = Event(
            kind=kind,
            module=path,
            depth=depth,
            call=call,
            layer=layer,
            begins_pass=begins_pass,
            rank=self.run.stage.rank,
            start=now.start,
            stop=now.stop,
            tick=self._ticks,
        )
        self._log.append(event)
        return event

    def _consider(self, stop: Stop) -> None:
        if self.run.stage.patches:
            self.run.stage.patches.apply(self.run, stop)
        if self.run.edits and (edit := self.run.edits.get(self.run.place_of(stop.event))) is not None:
            replace_first(stop, edit)  # on the way to a place behind it once more
        halt, self.stride = advance(self.stride, stop.event)
        if self.breaks.armed and (about := self.breaks.meet(stop)):
            halt, stop.about = True, about
        if halt or self.interrupted():
            stop.stack = tuple(self._stack)
            self.run.switch(stop)
        if self.run.recorder is not None:
            self.run.recorder.saw(stop)  # last: what the pass goes on with
