"""What one pass takes over from the rank before, and owes the rank after it.

Usually that is the return value of one layer. Where later layers read more of the earlier ones
(`engine/cuts.py` finds out), it crosses in the same message: return values of earlier layers, what was
written to their KV caches in this pass, and objects that layers pass along.
"""

from functools import partial
from typing import Any

import mlx.core as mx

from mlx_nb.engine.cuts import Cuts, Forward, message
from mlx_nb.engine.kv import KVEntry, parts_of, unwatch, watch_writes
from mlx_nb.engine.pytree import Tree, map_arrays
from mlx_nb.engine.rehearse import Key, Place, overwrite, passed_objects

_NOTHING = Forward()


class Crossing:
    """One pass on one rank, as far as other ranks' layers are concerned.

    Attributes:
        incoming: What comes besides the return value of the layer before this rank's first.
        outgoing: What goes besides the return value of this rank's last layer.
        filled: Places of the KV cache list that hold what the rank before wrote.
    """

    def __init__(
        self, start: int, incoming: Forward | None, outgoing: Forward | None, kv: list[KVEntry]
    ) -> None:
        """A pass begins.

        Args:
            start: This rank's first layer.
            incoming: What the cut before it forwards; None on the first rank.
            outgoing: What the cut after it forwards; None on the last rank.
            kv: The run's KV cache list.
        """
        self._start = start
        self.incoming = incoming or _NOTHING
        self.outgoing = outgoing or _NOTHING
        self.filled: set[int] = set()
        self._kv = kv
        self._value: Tree = None
        self._returns: dict[int, Tree] = {}
        self._writes: dict[Place, list[mx.array]] = {}
        self._shared: dict[Key, Tree] = {}
        for place in self.outgoing.writes:
            watch_writes(self._part(place), partial(self._wrote, place))

    @classmethod
    def of(cls, cuts: Cuts, owned: range, kv: list[KVEntry]) -> "Crossing":
        """A pass on a rank that holds the layers `owned`."""
        return cls(owned.start, cuts.forwards.get(owned.start), cuts.forwards.get(owned.stop), kv)

    @classmethod
    def alone(cls, kv: list[KVEntry]) -> "Crossing":
        """A pass on a rank that holds the whole model."""
        return cls(0, None, None, kv)

    def take(self, received: Tree) -> None:
        """What the rank before sent for this pass."""
        self._value = received["value"] if self.incoming else received
        self._returns[self._start - 1] = self._value
        if not self.incoming:
            return
        self._returns.update(zip(self.incoming.returns, received["returns"], strict=True))
        self._shared.update(zip(self.incoming.shared, received["shared"], strict=True))
        for place, (keys, values) in zip(self.incoming.writes, received["writes"], strict=True):
            self._part(place).update_and_fetch(keys, values)
            self.filled.add(place[0])

    def before(self, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        """What a layer of an earlier rank returns here, and leaves in the objects that it is passed."""
        if layer == self._start - 1:
            passed = passed_objects(args, kwargs)
            for key, held in self._shared.items():
                overwrite(passed[key], held)
        return self._returns.get(layer, self._value)

    def returned(self, layer: int, value: Tree) -> None:
        """An owned layer has returned; models change arrays in place afterwards, so handles are kept."""
        if layer in self.outgoing.returns:
            self._returns[layer] = map_arrays(mx.stop_gradient, value)

    def pack(self, value: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        """What goes to the rank after, once the last owned layer has returned `value`."""
        for place in self.outgoing.writes:
            unwatch(self._part(place))
        shared = passed_objects(args, kwargs)
        return message(self.outgoing, value, self._returns, self._writes, shared)

    def value_in(self, hop: Tree) -> Tree:
        """The last owned layer's return value in what `pack` made; somebody may have changed it there."""
        return hop["value"] if self.outgoing else hop

    def _wrote(self, place: Place, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        self._writes[place] = [keys, values]
        return keys, values

    def _part(self, place: Place) -> KVEntry:
        return parts_of(self._kv[place[0]])[place[1]]
