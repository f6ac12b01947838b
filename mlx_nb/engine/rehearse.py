"""A pass that is built and never evaluated: it shows which modules are called, how often, and with what.

Two tokens are fed, so that no mask is left out. It costs some 10 ms and reads no weight.

What a layer returns, what it writes to a KV cache and what it leaves in objects that are passed along is
marked: the array that goes on through the model is a node of its own in MLX's graph, so that
`engine/cuts.py` can tell by which way a value got from one layer to another.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.hooks import Hooks
from mlx_nb.engine.kv import KVEntry, is_kv_entry, make_kv_cache, parts_of, unwatch, watch_writes
from mlx_nb.engine.layers import layer_paths, transformer_layers
from mlx_nb.engine.pytree import Tree, flatten, is_plain_object, map_arrays
from mlx_nb.shared.attention import SDPA
from mlx_nb.shared.errors import MlxNbError, ModelError

Key = int | str
"""A layer's argument: its position, or its keyword."""
Place = tuple[int, int]
"""A KV entry that is written to: its place in the list, and the part of it where it is a tree."""


@dataclass(slots=True)
class Rehearsal:
    """What one unevaluated pass of the whole model showed.

    Attributes:
        layers: Index of each layer by its path.
        calls: How often each module path was called.
        attends: How often a module called the shared attention function, by its path with ``.sdpa`` behind.
        order: Both in the order in which they were called first.
        returned: What each whole layer returned, by its path: what a hop after it would carry.
        writes: Keys and values written in this pass, by KV entry.
        writers: The layer that wrote them.
        readers: The layers that each place of the KV cache list was handed to.
        shared: Arguments that layers change in place and do not return, as each layer left them.
        changed: Which arguments those are.
        odd: Layers that return what cannot cross to another rank, and its class.
        output: What the model returned.
        kv: The KV cache list.
    """

    layers: dict[str, int]
    calls: Counter[str] = field(default_factory=Counter)
    attends: Counter[str] = field(default_factory=Counter)
    order: dict[str, None] = field(default_factory=dict)
    returned: dict[str, Tree] = field(default_factory=dict)
    writes: dict[Place, list[mx.array]] = field(default_factory=dict)
    writers: dict[Place, int] = field(default_factory=dict)
    readers: dict[int, set[int]] = field(default_factory=dict)
    shared: dict[int, dict[Key, Tree]] = field(default_factory=dict)
    changed: set[Key] = field(default_factory=set)
    odd: dict[int, str] = field(default_factory=dict)
    output: Tree = None
    kv: list[KVEntry] = field(default_factory=list)
    _inside: list[int] = field(default_factory=list)
    _stack: list[str] = field(default_factory=list)

    @property
    def probe(self) -> "Rehearsal":
        """It stands in for the run and for its probe at once."""
        return self

    def call(self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A hooked module's call."""
        self.calls[path] += 1
        self.order[path] = None
        self._stack.append(path)
        try:
            return self._call(module, path, base, args, kwargs)
        finally:
            self._stack.pop()

    def attend(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the attention function."""
        path = f"{self._stack[-1]}.{SDPA}"
        self.attends[path] += 1
        self.order[path] = None
        return function(*args, **kwargs)

    def _call(self, module: Any, path: str, base: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if path not in self.layers:
            return base.__call__(module, *args, **kwargs)
        index = self.layers[path]
        passed = passed_objects(args, kwargs)
        before = {key: flatten(item) for key, item in passed.items()}
        self._note_readers(index, [*args, *kwargs.values()])
        self._inside.append(index)
        try:
            value = base.__call__(module, *args, **kwargs)
        finally:
            self._inside.pop()
        # An object that is handed back as well crosses with the return value.
        handed_back = {id(item) for item in value} if isinstance(value, tuple | list) else {id(value)}
        self.shared[index] = {}
        for key, item in passed.items():
            if id(item) in handed_back:
                continue
            if not _same(before[key], flatten(item)):
                self.changed.add(key)
            if key in self.changed:
                left = map_arrays(mx.stop_gradient, item)
                self.shared[index][key] = left
                overwrite(item, map_arrays(mx.stop_gradient, left))
        try:
            kept = map_arrays(mx.stop_gradient, value)
        except ModelError:
            self.odd[index] = type(value).__name__
            return value
        self.returned[path] = kept
        return map_arrays(mx.stop_gradient, kept)

    def watch(self) -> None:
        """Note every write to the KV cache list."""
        for place, entry in enumerate(self.kv):
            for number, part in enumerate(parts_of(entry)):
                watch_writes(part, partial(self._wrote, (place, number)))

    def _wrote(self, place: Place, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        if self._inside:
            self.writers[place] = self._inside[-1]
        kept = [mx.stop_gradient(keys), mx.stop_gradient(values)]
        self.writes[place] = kept
        return mx.stop_gradient(kept[0]), mx.stop_gradient(kept[1])

    def _note_readers(self, index: int, arguments: list[Any]) -> None:
        given = {id(item) for item in arguments if is_kv_entry(item)}
        for place, entry in enumerate(self.kv):
            if id(entry) in given or given & {id(part) for part in parts_of(entry)}:
                self.readers.setdefault(place, set()).add(index)


def passed_objects(args: tuple[Any, ...], kwargs: dict[Key, Any] | dict[str, Any]) -> dict[Key, Any]:
    """The arguments of a layer that it may change in place: dictionaries, lists and plain objects."""
    found: dict[Key, Any] = {}
    for key, item in [*enumerate(args), *kwargs.items()]:
        if is_kv_entry(item) or isinstance(item, nn.Module):
            continue
        if isinstance(item, dict | list) or is_plain_object(item):
            # What cannot cross is not forwarded; if a later layer reads it, the cut is refused.
            with suppress(ModelError):
                flatten(item)
                found[key] = item
    return found


def overwrite(target: Any, source: Any) -> None:
    """Make a dictionary, list or plain object hold what another one holds."""
    if isinstance(target, dict):
        target.clear()
        target.update(source)
    elif isinstance(target, list):
        target[:] = source
    else:
        vars(target).clear()
        vars(target).update(vars(source))


def _same(before: tuple[str, list[mx.array]], after: tuple[str, list[mx.array]]) -> bool:
    """Whether a container still holds the very arrays that it held."""
    same_arrays = all(a is b for a, b in zip(before[1], after[1], strict=False))
    return before[0] == after[0] and len(before[1]) == len(after[1]) and same_arrays


@contextmanager
def undisturbed(model: nn.Module) -> Iterator[None]:
    """Give every module its attributes back afterwards: some models keep what a pass made."""
    modules: list[Any] = [module for _, module in model.named_modules()]
    before = [(module, dict(module), dict(vars(module))) for module in modules]
    try:
        yield
    finally:
        for module, items, attributes in before:
            module.clear()
            dict.update(module, items)  # nn.Module has an update of its own
            vars(module).clear()
            vars(module).update(attributes)


def _cannot_run(model: nn.Module, error: Exception) -> ModelError:
    name = type(model).__module__.rpartition(".")[2]
    if "No Metal" in str(error):
        return ModelError(
            f"{name} uses Metal kernels, which this machine does not have.",
            "Load it on a Mac with Apple silicon, or another model: %mlx_load smollm2",
        )
    text = " ".join(str(error).split())[:300]
    return ModelError(
        f"mlx-lm's code for {name} raises {type(error).__name__} in its first pass: {text}",
        "Type: %mlx_load smollm2, or another model.",
    )


def rehearse(model: nn.Module) -> Rehearsal:
    """Build one pass of a whole model (no stubs installed yet) without evaluating anything.

    Raises:
        ModelError: The model's code fails, as some does without Metal.
    """
    paths = layer_paths(model)
    indexes = {paths[id(layer)]: i for i, layer in reversed(list(enumerate(transformer_layers(model))))}
    rehearsal = Rehearsal(indexes, kv=make_kv_cache(model))
    hooks = Hooks(model)
    rehearsal.watch()
    with undisturbed(model):
        hooks.acquire()
        token = ACTIVE.set(rehearsal)
        try:
            rehearsal.output = model(mx.zeros((1, 2), dtype=mx.int32), cache=rehearsal.kv)
        except MlxNbError:
            raise
        except Exception as error:
            raise _cannot_run(model, error) from error
        finally:
            ACTIVE.reset(token)
            hooks.release()
    for entry in rehearsal.kv:
        for part in parts_of(entry):
            unwatch(part)
    return rehearsal
