"""Where a model may be cut, and what a hop there has to carry besides the last layer's return value.

Nothing is known of any architecture. One pass is built and never evaluated (`engine/rehearse.py`), and for
every cut MLX's graph says by which ways what the layers before it made reaches the layers after it:

- through the return value of the layer before the cut: that is the hop;
- through the return value of an earlier layer, keys and values written to a KV cache that later layers
  read, or an object that layers pass along and change: these are forwarded with the hop;
- in any other way: the cut is refused.
"""

from dataclasses import dataclass, field

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_nb.engine.kv import state_arrays
from mlx_nb.engine.layers import layer_paths, transformer_layers
from mlx_nb.engine.pytree import Tree, arrays_of
from mlx_nb.engine.reach import Graph, walk
from mlx_nb.engine.rehearse import Key, Place, Rehearsal, rehearse
from mlx_nb.shared.legal import LegalCuts
from mlx_nb.shared.text import format_layers


@dataclass(frozen=True, slots=True, kw_only=True)
class Forward:
    """What crosses a cut besides the return value of the layer before it.

    Attributes:
        returns: Earlier layers whose return values later layers read.
        writes: KV entries of earlier layers that later layers read: what a pass writes there.
        shared: Arguments that layers pass along and change in place.
    """

    returns: tuple[int, ...] = ()
    writes: tuple[Place, ...] = ()
    shared: tuple[Key, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.returns or self.writes or self.shared)

    def describe(self) -> str:
        """What is forwarded, for a table: ``K/V of 2 KV caches, values of layer 13``."""
        parts = []
        if self.writes:
            places = len({place for place, _ in self.writes})
            parts.append(f"K/V of {places} KV cache{'s' if places > 1 else ''}")
        if self.returns:
            parts.append(f"values of layer{'s' if len(self.returns) > 1 else ''} {_list(self.returns)}")
        if self.shared:
            parts.append(f"objects that layers share ({_list(self.shared)})")
        return ", ".join(parts)


def message(
    forward: Forward,
    value: Tree,
    returns: dict[int, Tree],
    writes: dict[Place, list[mx.array]],
    shared: dict[Key, Tree],
) -> Tree:
    """What crosses: the value alone, or the value and what is forwarded with it, in the order of `forward`."""
    if not forward:
        return value
    return {
        "value": value,
        "returns": [returns[layer] for layer in forward.returns],
        "writes": [writes[place] for place in forward.writes],
        "shared": [shared[key] for key in forward.shared],
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Cuts:
    """The cuts of one model.

    Attributes:
        num_layers: Layers in the whole model; a cut before layer i has i from 1 to num_layers - 1.
        forwards: What each legal cut forwards.
        refused: Why each of the others is none, as a sentence.
        reads_kv_of: The layers that read keys and values which earlier layers have written, and those layers.
        rehearsal: The pass that showed it.
        reads: Names of the parameters that each layer reads, or the model's code on the way to it; last, those
            of what comes after all layers. A rank reads what its layers read. Empty if there is no legal cut.
    """

    num_layers: int
    forwards: dict[int, Forward]
    refused: dict[int, str]
    reads_kv_of: dict[int, tuple[int, ...]] = field(default_factory=dict)
    rehearsal: Rehearsal = field(repr=False)
    paths: tuple[str, ...] = field(repr=False)
    reads: tuple[frozenset[str], ...] = field(default=(), repr=False)

    @property
    def legal(self) -> tuple[int, ...]:
        """The layers that a rank may begin with, besides layer 0."""
        return tuple(sorted(self.forwards))

    @property
    def plain(self) -> LegalCuts:
        """The same as plain data, which travels."""
        along = {cut: forward.describe() for cut, forward in self.forwards.items() if forward}
        return LegalCuts(num_layers=self.num_layers, legal=self.legal, refused=self.refused, along=along)

    def message(self, cut: int) -> Tree:
        """What crosses at a legal cut in the rehearsed pass."""
        forward, seen = self.forwards[cut], self.rehearsal
        return message(
            forward,
            seen.returned[self.paths[cut - 1]],
            {layer: seen.returned[self.paths[layer]] for layer in forward.returns},
            {place: seen.writes[place] for place in forward.writes},
            {key: seen.shared[cut - 1][key] for key in forward.shared},
        )


def legal_cuts(model: nn.Module) -> Cuts:
    """Where a model may be cut, and why not elsewhere. No weight is read.

    Args:
        model: The whole model, before any stub is installed.
    """
    layers = transformer_layers(model)
    by_id = layer_paths(model)
    paths = tuple(by_id.get(id(layer), "") for layer in layers)
    parameters = dict(tree_flatten(model.parameters()))
    seen = rehearse(model)
    count = len(layers)
    if whole := _why_not_at_all(layers, paths, seen):
        return Cuts(
            num_layers=count,
            forwards={},
            refused=dict.fromkeys(range(1, count), whole),
            rehearsal=seen,
            paths=paths,
        )
    finder = _Finder(seen, paths, parameters)
    forwards, refused = {}, {}
    for cut in range(1, count):
        found = finder.at(cut)
        if isinstance(found, Forward):
            forwards[cut] = found
        else:
            refused[cut] = found
    return Cuts(
        num_layers=count,
        forwards=forwards,
        refused=refused,
        rehearsal=seen,
        paths=paths,
        reads=finder.reads() if forwards else (),
        reads_kv_of=finder.reads_kv_of(),
    )


def _why_not_at_all(layers: list[nn.Module], paths: tuple[str, ...], seen: Rehearsal) -> str:
    if len({id(layer) for layer in layers}) < len(layers):
        return (
            "The model uses the same layer in several places, so its layers cannot live on different ranks."
        )
    if not all(paths):
        return "The model's layers are not among its modules, so they cannot live on different ranks."
    if seen.odd:
        layer, kind = next(iter(seen.odd.items()))
        return f"Layer {layer} returns a {kind}, which cannot cross to another rank."
    times = {seen.calls[path] for path in paths}
    if times == {0}:
        return (
            "The model calls the parts of its layers and not the layers, so there is no boundary to cut at."
        )
    if max(times) > 1:
        return (
            f"The model goes through its layers {max(times)} times in a pass; a pipeline goes through once."
        )
    order = [path for path in seen.calls if path in set(paths)]
    if order != [path for path in paths if seen.calls[path]]:
        return "The model does not call its layers in their order, so they cannot be cut in two."
    if missing := [i for i, path in enumerate(paths) if not seen.calls[path]]:
        return f"The model never calls layer {missing[0]}, so what would cross there is not known."
    return ""


class _Finder:
    """Asks the graph of one rehearsed pass about every cut."""

    def __init__(self, seen: Rehearsal, paths: tuple[str, ...], parameters: dict[str, mx.array]) -> None:
        self.seen = seen
        self.count = len(paths)
        named: dict[str, mx.array] = {}
        self.layer_of = _layers_of(parameters, paths)
        # An array that has two names is drawn under one of them.
        for name in {id(array): name for name, array in parameters.items()}.values():
            named[f"param:{name}"] = parameters[name]
        self.returned = [self._name(named, f"return:{i}", seen.returned[p]) for i, p in enumerate(paths)]
        self.shared = [
            {
                key: self._name(named, f"shared:{i}:{key}", tree)
                for key, tree in seen.shared.get(i, {}).items()
            }
            for i in range(self.count)
        ]
        self.written = {
            place: self._name(named, f"write:{place[0]}.{place[1]}", arrays)
            for place, arrays in seen.writes.items()
        }
        outputs = arrays_of(seen.output)
        self.result = self._name(named, "output", [mx.stop_gradient(a) for a in outputs])
        self.states = [
            self._name(named, f"kv:{p}", [mx.stop_gradient(a) for a in state_arrays(e)])
            for p, e in enumerate(seen.kv)
        ]
        results = [named[name] for name in self.result.union(*self.states)]
        # One array that hangs on all the others: a call takes some 900 arguments at most.
        graph = Graph([mx.depends(mx.array(0.0), results)], named)
        self.depends = graph.contract([name for name in named if not name.startswith("param:")])

    @staticmethod
    def _name(named: dict[str, mx.array], prefix: str, tree: Tree) -> set[str]:
        names = {f"{prefix}/{i}": array for i, array in enumerate(arrays_of(tree))}
        named.update(names)
        return set(names)

    def at(self, cut: int) -> Forward | str:
        """What a cut before layer `cut` forwards, or why it is none."""
        roots = self.result | self._states_after(cut)
        hop = self.returned[cut - 1].union(*self.shared[cut - 1].values())
        earlier = {name: i for i in range(cut - 1) for name in self.returned[i]}
        writes = {
            name: place
            for place, names in self.written.items()
            for name in names
            if self.seen.writers.get(place, self.count) < cut
        }
        reached = walk(self.depends, roots, {*hop, *earlier, *writes})
        leaks = sorted({i for n in reached if (i := self._before(n, cut)) is not None})
        if leaks:
            return self._reason(cut, leaks, {*hop, *earlier, *writes})
        keys = self.shared[cut - 1]
        return Forward(
            returns=tuple(sorted({earlier[name] for name in reached & earlier.keys() - hop})),
            writes=tuple(sorted({writes[name] for name in reached & writes.keys()})),
            shared=tuple(sorted((key for key in keys if key in self.seen.changed), key=str)),
        )

    def reads(self) -> tuple[frozenset[str], ...]:
        """The parameters on the way to each layer's marks from the marks before; last, on the way to the output."""
        marks = [
            self.returned[i].union(
                *(self.shared[i][key] for key in self.shared[i].keys() & self.seen.changed)
            )
            for i in range(self.count)
        ]
        for write, layer in self.seen.writers.items():
            marks[layer] |= self.written[write]
        for place, readers in self.seen.readers.items():
            marks[min(readers)] |= self.states[place]
        return tuple(self._parameters_of(names) for names in [*marks, self.result])

    def _parameters_of(self, marks: set[str]) -> frozenset[str]:
        reached = set().union(*(self.depends.get(mark, ()) for mark in marks))
        return frozenset(name.removeprefix("param:") for name in reached if name.startswith("param:"))

    def reads_kv_of(self) -> dict[int, tuple[int, ...]]:
        """The layers that read others' keys and values, and those: directly, or as a layer hands them on."""
        writer = {n: self.seen.writers.get(place, -1) for place, names in self.written.items() for n in names}
        for name in set().union(*self.returned):
            made_of = self.depends.get(name, set())
            if made_of and made_of <= writer.keys():  # a hidden state would hang on parameters, too
                writer[name] = min(writer[one] for one in made_of)
        ends = set().union(writer, *self.returned)
        found = {}
        for layer, returned in enumerate(self.returned):
            near = set().union(*(walk(self.depends, self.depends.get(n, ()), ends) for n in returned))
            if others := {writer[n] for n in near & writer.keys()} - {layer, -1}:
                found[layer] = tuple(sorted(others))
        return found

    def _states_after(self, cut: int) -> set[str]:
        """The KV caches that layers from `cut` on are handed or write."""
        places = {place for place, readers in self.seen.readers.items() if max(readers) >= cut}
        places |= {place for (place, _), layer in self.seen.writers.items() if layer >= cut}
        return set().union(*(self.states[place] for place in places))

    def _before(self, name: str, cut: int) -> int | None:
        """The layer before the cut that a node is a parameter of."""
        layer = self.layer_of.get(name.removeprefix("param:")) if name.startswith("param:") else None
        return layer if layer is not None and layer < cut else None

    def _reason(self, cut: int, leaks: list[int], stops: set[str]) -> str:
        readers = []
        for layer in range(cut, self.count):
            later = set().union(*self.returned[cut:layer])
            roots = self.returned[layer] | {
                name
                for place, layers in self.seen.readers.items()
                if layer in layers
                for name in self.states[place]
            }
            reached = walk(self.depends, roots, {*stops, *later})
            if any(self._before(name, cut) in leaks for name in reached):
                readers.append(layer)
        whose = f"layer{'s' if len(leaks) > 1 else ''} {_list(leaks)}"
        if not readers:
            return f"A cut before layer {cut} separates the model's end from what {whose} made for it."
        who = format_layers(range(readers[0], readers[-1] + 1))
        read = "which reads" if len(readers) == 1 else "which read"
        if any(set(leaks) & handed and max(handed) >= cut for handed in self.seen.readers.values()):
            return f"A cut before layer {cut} separates {who}, {read} the KV cache of {whose}."
        return f"A cut before layer {cut} separates {who}, {read} what {whose} made besides the return value."


def _layers_of(parameters: dict[str, mx.array], paths: tuple[str, ...]) -> dict[str, int]:
    """The layer of each parameter; one that several layers share, or the model besides, belongs to none."""
    owners: dict[int, set[int]] = {}
    found: dict[str, int] = {}
    prefixes = {f"{path}.": i for i, path in enumerate(paths)}
    for name, array in parameters.items():
        layer = next((i for prefix, i in prefixes.items() if name.startswith(prefix)), -1)
        owners.setdefault(id(array), set()).add(layer)
        found[name] = layer
    return {name: i for name, i in found.items() if i >= 0 and owners[id(parameters[name])] == {i}}


def _list(items: tuple[Key, ...] | list[int]) -> str:
    return ", ".join(map(str, items))
