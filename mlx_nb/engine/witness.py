"""Everything that one run does on one rank, kept: what every module was given and made, what crossed, the KV caches."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.history import copy_of
from mlx_nb.engine.kv import KVEntry, is_kv_entry, state_arrays
from mlx_nb.engine.pytree import Tree, arrays_in, flatten, unflatten
from mlx_nb.engine.stop import Stop
from mlx_nb.shared.errors import ModelError
from mlx_nb.shared.findings import Crossed
from mlx_nb.shared.position import INPUT, RECV, SEND
from mlx_nb.shared.strides import Event

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run

Call = tuple[str, str, int]
"""An entry or an exit: its kind, the module's path, and the number of the call in its pass."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was at hand at an entry (arguments by place or name) or an exit (``value``)."""

    tick: int
    arguments: dict[int | str, Any] = field(default_factory=dict)
    value: Tree = None


@dataclass(slots=True)
class SeenPass:
    """One pass.

    Attributes:
        start, stop: Its tokens.
        inputs: The token ids, ``[1, L]``.
        calls: Every entry and exit on this rank.
        received, sent: What crossed; None where nothing does.
        kv: The owned KV cache entries as the pass left them, by place.
        whole: Whether it has come to its end.
    """

    start: int
    stop: int
    inputs: mx.array
    calls: dict[Call, Seen] = field(default_factory=dict)
    received: Tree = None
    sent: Tree = None
    kv: dict[int, KVEntry] = field(default_factory=dict)
    whole: bool = False

    def arrays(self) -> Iterator[mx.array]:
        """All of them."""
        for seen in self.calls.values():
            yield from arrays_in([*seen.arguments.values(), seen.value])
        yield from arrays_in([self.received, self.sent])


class Witness:
    """Stands where a run has its recorder, and keeps everything. For short runs only.

    Attributes:
        passes: What it has seen.
    """

    def __init__(self, run: "Run") -> None:
        self._run = run
        self.passes: list[SeenPass] = []

    @property
    def whole(self) -> list[SeenPass]:
        """The passes that have come to their end."""
        return [one for one in self.passes if one.whole]

    def begin_pass(self, start: int) -> None:
        now = self._run.current
        assert now is not None  # the pass that begins
        self.passes.append(SeenPass(start, now.stop, self._run.batch.inputs(start, now.stop)))

    def wants(self, _event: Event) -> bool:
        """Nothing inside attention: what the module around it returns tells as much."""
        return False

    def saw(self, stop: Stop) -> None:
        event, seen = stop.event, self.passes[-1]
        if event.kind == RECV:
            seen.received = kept(stop.value)
        elif event.kind == SEND:
            seen.sent = kept(stop.value)
        elif event.kind == INPUT:
            given: dict[int | str, Any] = dict(enumerate(stop.args))
            given.update(stop.kwargs)
            plain = {name: kept(value) for name, value in given.items() if not is_kv_entry(value)}
            seen.calls[event.kind, event.module, event.call] = Seen(event.tick, arguments=plain)
        else:
            seen.calls[event.kind, event.module, event.call] = Seen(event.tick, value=kept(stop.value))

    def end_pass(self) -> None:
        seen = self.passes[-1]
        seen.whole = True
        seen.kv = {place: copy_of(self._run.kv[place]) for place in sorted(self._run.owned)}
        mx.eval([*seen.arrays(), *(a for entry in seen.kv.values() for a in state_arrays(entry))])


def kept(value: Any) -> Any:
    """A value in objects of its own: models write into their arrays in place. What is no data is None."""
    if isinstance(value, mx.array):
        return mx.contiguous(value)
    try:
        header, arrays = flatten(value)
    except (ModelError, TypeError):  # a KV cache list, a module, a function
        return None
    return unflatten(header, [mx.contiguous(array) for array in arrays])


def crossed(tree: Tree) -> Crossed:
    """What both ends of a hop can be asked about one value."""
    arrays, digest = arrays_in(tree), 0
    for array in arrays:
        bits = np.array(mx.contiguous(array).reshape(-1).view(mx.uint8), copy=False)
        digest = zlib.crc32(bits.tobytes(), digest)
    return Crossed(
        shapes=tuple(tuple(array.shape) for array in arrays),
        dtypes=tuple(str(array.dtype).removeprefix("mlx.core.") for array in arrays),
        digest=digest,
    )
