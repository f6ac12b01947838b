"""A run made again on a model fresh from its files, module by module, each given what the run's own was given.

So nothing adds up: where a module's output differs, the module itself does, and where what it is given differs
although everything before agreed, the code between the modules does, or the KV cache that it read.
"""

from collections import Counter
from os.path import commonpath
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from mlx_nb.engine.compare import Difference, difference, misfit
from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.history import copy_of
from mlx_nb.engine.kv import is_kv_entry, make_kv_cache, offset_of, settle_kv_cache, state_arrays
from mlx_nb.engine.kv_read import is_ring, named_arrays
from mlx_nb.engine.pytree import Tree, arrays_in
from mlx_nb.engine.witness import Seen, SeenPass, Witness, kept
from mlx_nb.shared.findings import Finding
from mlx_nb.shared.position import INPUT, OUTPUT
from mlx_nb.shared.request import GenerateOptions

if TYPE_CHECKING:
    from mlx_nb.engine.stage import Stage

WHOLE = "the model"
"""The site of what the model itself does, outside all its modules."""

AT_THE_END = 10**9
"""The tick of what is seen when a pass is over."""


class Shadow:
    """Makes a witnessed run again; stands in for the run and for its probe at once.

    Attributes:
        findings: What differed, in the order of the run.
        modules: Module calls that were made again.
        worst: The largest relative difference that was let pass.
    """

    def __init__(self, stage: "Stage", live: nn.Module, options: GenerateOptions) -> None:
        """Of a rank.

        Args:
            stage: The fresh share.
            live: The model that is checked, to name what it has otherwise.
            options: Of the run.
        """
        self.stage, self.options = stage, options
        self.findings: list[Finding] = []
        self.modules = 0
        self.worst = 0.0
        self._live = dict(live.named_modules())
        self._fresh = dict(stage.model.named_modules())
        self._kv = make_kv_cache(stage.model, options.max_kv_size)
        self._owned: set[int] = set(range(len(self._kv))) if stage.size == 1 else set()
        self._layer_of: dict[int, int] = {}
        self._pending: list[tuple[Finding, Difference]] = []
        self._told: set[tuple[str, str]] = set()

    def attend(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A call of the attention function, which the module around it answers for."""
        return function(*args, **kwargs)

    @property
    def probe(self) -> "Shadow":
        return self

    def follow(self, witness: Witness) -> None:
        """Make every pass again."""
        self.stage.hooks.acquire()
        token = ACTIVE.set(self)
        try:
            for number, seen in enumerate(witness.whole):
                self._follow(number, seen)
        finally:
            ACTIVE.reset(token)
            self.stage.hooks.release()
        self.findings.sort(key=lambda one: one.at)

    def _follow(self, number: int, seen: SeenPass) -> None:
        self._number, self._seen = number, seen
        self._calls: Counter[str] = Counter()
        self._open = self.stage.shard.is_first
        self._mute = ""
        self._through: Tree = None
        self._taken = False
        self._last = ""
        self._stack: list[str] = []
        self._crossing: Crossing = self.stage.crossing(self._kv)
        output = self.stage.model(seen.inputs, cache=self._kv)
        settle_kv_cache(self._kv, self._owned, self.options, 1, seen.stop - seen.start)
        results = arrays_in(output) if self.stage.shard.is_last else []
        held = [array for place in self._owned for array in state_arrays(self._kv[place])]
        mx.eval(results, held, [pair.numbers for _, pair in self._pending])
        for finding, pair in self._pending:
            if pair.within:
                self.worst = max(self.worst, pair.error)
            else:
                what = f"{finding.what}: {pair.told}"
                self._tell(finding, what, error=pair.error)
        self._pending.clear()
        self._look_for_more()
        self._look_at_kv()

    # What the hooks ask -------------------------------------------------------------------------------

    def call(self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A module's call: given what the run's own was given, its result compared, and replaced by the run's."""
        self._calls[path] += 1
        number = self._calls[path]
        if self.stage.layer_at(path) == self.stage.shard.layers.start:
            self._open = True
        if self._mute:
            return base.__call__(module, *args, **kwargs)
        before = self._seen.calls.get((INPUT, path, number)) if self._open else None
        if self._open and before is None:
            return self._missing(module, path, base, args, kwargs)
        self._stack.append(path)
        try:
            if before is not None:
                args, kwargs = self._given(path, before, args, kwargs)
                self.modules += 1
            value = base.__call__(module, *args, **kwargs)
        finally:
            self._stack.pop()
        after = self._seen.calls.get((OUTPUT, path, number)) if self._open else None
        if after is not None:
            value = self._made(path, after, value)
        self._last = path
        return value

    def _missing(
        self, module: Any, path: str, base: type, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """A module that the run has never called: the outermost one is told."""
        parent = self._stack[-1] if self._stack else ""
        siblings = any(p.startswith(f"{parent}.") for _, p, _ in self._seen.calls) if parent else True
        name = path if siblings else parent
        self._tell(
            self._finding("calls", name, self._tick_of(parent)), "it was skipped: its code has not run here"
        )
        if not siblings:
            self._told.add(("module", parent))  # what it returns is wrong for that reason
        self._mute = path
        try:
            return base.__call__(module, *args, **kwargs)
        finally:
            self._mute = ""

    def _given(
        self, path: str, before: Seen, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        parent = self._stack[-2] if len(self._stack) > 1 else ""
        leaf = path.removeprefix(f"{parent}.") if parent else path
        forced: dict[int | str, Any] = dict(enumerate(args))
        forced.update(kwargs)
        for name, own in list(forced.items()):
            live = before.arguments.get(name)
            if is_kv_entry(own) and name in before.arguments:  # where there is one, it is not kept
                layer = self.stage.layer_inside(path)
                lost = self._finding("kv", f"KV cache, layer {layer}", before.tick, layer=layer)
                self._tell(lost, f"{leaf} is called without it")
            if is_kv_entry(own) or not isinstance(own, mx.array | bool | int | float | str | None):
                continue
            which = "what it is given" if name == 0 else f"the argument {name} that it is given"
            if name != 0 and isinstance(name, int):
                which = f"argument {name} that it is given"
            finding = self._finding("between", parent or path, before.tick)
            since = self._since(parent)
            what = f"the code before {leaf}{since}: {which}"
            if why := misfit(live, own):
                self._tell(finding, f"{what} {why}")
            elif isinstance(own, mx.array) and isinstance(live, mx.array):
                self._compare(finding, f"{what} differs", live, own)
            if type(live) is type(own):
                forced[name] = kept(live)
        return tuple(forced[place] for place in range(len(args))), {name: forced[name] for name in kwargs}

    def _since(self, parent: str) -> str:
        """The module that ran before, where the same code called it."""
        if parent and self._last.startswith(f"{parent}."):
            return f", after {self._last.removeprefix(f'{parent}.')}"
        return ""

    def _made(self, path: str, after: Seen, value: Tree) -> Tree:
        finding = self._finding("module", path, after.tick)
        live, own = arrays_in(after.value), arrays_in(value)
        if len(live) != len(own):
            self._tell(finding, f"it returns {_count(live)}, should be {_count(own)}")
            return value
        same = True
        for number, (one, other) in enumerate(zip(live, own, strict=True)):
            which = "its output" if len(live) == 1 else f"array {number} of its output"
            if why := misfit(one, other):
                self._tell(finding, f"{which} {why}")
                same = False
            else:
                self._compare(finding, f"{which} differs from what a fresh one makes of the same", one, other)
        if not same or not live:
            return value
        again = kept(after.value)
        return again if type(again) is type(value) else value

    # What the stubs ask (engine/context.py) -------------------------------------------------------------

    def received(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        if self._through is not None:
            return self._through
        if not self._taken:
            self._taken = True
            self._crossing.take(kept(self._seen.received))
            self._owned |= self._crossing.filled
        return self._crossing.before(index, args, kwargs)

    def deliver(self, value: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        hop = self._crossing.pack(value, args, kwargs)
        last = self.stage.shard.layers.stop - 1
        finding = self._finding("crossing", f"the hop after layer {last}", AT_THE_END - 1, layer=last)
        live, own = arrays_in(self._seen.sent), arrays_in(hop)
        if len(live) != len(own):
            self._tell(finding, f"{_count(live)} were sent, should be {_count(own)}")
        else:
            for one, other in zip(live, own, strict=True):
                if why := misfit(one, other):
                    self._tell(finding, f"what was sent {why}")
                else:
                    self._compare(finding, "what was sent is not what the layer returned", one, other)
        self._open, self._through = False, value
        return value

    def saw_kv(self, index: int, arguments: list[Any]) -> None:
        entries = {id(a) for a in arguments if is_kv_entry(a)}
        for place, entry in enumerate(self._kv):
            if id(entry) in entries or entries & {id(part) for part in getattr(entry, "caches", ())}:
                self._owned.add(place)
                self._layer_of.setdefault(place, index)

    def layer_done(self, index: int, value: Tree) -> None:
        self._crossing.returned(index, value)

    # When a pass is over ----------------------------------------------------------------------------------

    def _look_for_more(self) -> None:
        """Modules that the run has called more often than the code says."""
        extra = [
            path
            for kind, path, number in self._seen.calls
            if kind == INPUT and number > self._calls.get(path, 0)
        ]
        if not extra:
            return
        name = commonpath([path.replace(".", "/") for path in extra]).replace("/", ".")
        times = max(number for _, path, number in self._seen.calls if path == extra[0])
        tick = min(self._seen.calls[INPUT, path, self._calls.get(path, 0) + 1].tick for path in extra)
        finding = self._finding("calls", name, tick)
        self._tell(
            finding, f"its code has run {times} times in one pass, should be {self._calls.get(extra[0], 0)}"
        )
        self._told.add(("module", name))

    def _look_at_kv(self) -> None:
        """The KV cache entries as the pass has left them; the next pass goes on with the run's own."""
        for place in sorted(self._owned & self._seen.kv.keys()):
            own, live = self._kv[place], self._seen.kv[place]
            layer = self._layer_of.get(place, place)
            finding = self._finding("kv", f"KV cache, layer {layer}", AT_THE_END, layer=layer)
            if what := _kv_differs(live, own):
                self._tell(finding, what)
                self._kv[place] = copy_of(live)

    # Telling ------------------------------------------------------------------------------------------------

    def _finding(self, kind: str, site: str, tick: int, *, layer: int | None = None) -> Finding:
        at = self.stage.layer_inside(site) if layer is None else layer
        return Finding(
            kind=kind, rank=self.stage.rank, site=site or WHOLE, what="", layer=at, at=(self._number, tick)
        )

    def _compare(self, finding: Finding, what: str, live: mx.array, own: mx.array) -> None:
        fields = {name: getattr(finding, name) for name in Finding.__dataclass_fields__}
        self._pending.append((Finding(**{**fields, "what": what}), difference(live, own)))

    def _tell(self, finding: Finding, what: str, *, error: float = 0.0) -> None:
        if (finding.kind, finding.site) in self._told:
            return
        self._told.add((finding.kind, finding.site))
        tokens = f"tokens {self._seen.start}:{self._seen.stop}"
        fields = {name: getattr(finding, name) for name in Finding.__dataclass_fields__}
        fields["what"] = f"{what} ({tokens})"
        fields["error"] = error
        fields["hint"] = self._otherwise(finding.site) if finding.kind in ("module", "between") else ""
        fields["look"] = self._look(finding)
        self.findings.append(Finding(**fields))

    def _look(self, finding: Finding) -> str:
        if finding.kind == "kv":
            return f"pipe.kv_cache()[{finding.layer}]"
        if finding.kind == "crossing":
            return "dbg = pipe.debug(…); dbg.until('send')"
        if finding.site == WHOLE:
            return "dbg = pipe.debug(…); dbg.until('logits')"
        kind = INPUT if finding.kind in ("between", "calls") else OUTPUT
        return f"dbg = pipe.debug(…); dbg.until('{finding.site}.{kind}')"

    def _otherwise(self, path: str) -> str:
        """Plain settings of a module that a fresh one has otherwise; of those inside, too, where they are no modules."""
        name = "" if path == WHOLE else path
        live, fresh = self._live.get(name), self._fresh.get(name)
        if live is None or fresh is None:
            return ""
        has, should = _settings(live), _settings(fresh)
        found = [
            f"{name} is {has.get(name)!r}, should be {should.get(name)!r}"
            for name in sorted(has.keys() | should.keys())
            if has.get(name) != should.get(name)
        ]
        return f"Its {'; its '.join(found)}." if found else ""

    def _tick_of(self, path: str) -> int:
        found = self._seen.calls.get((INPUT, path, max(1, self._calls.get(path, 1))))
        return found.tick if found else 0


def _settings(module: nn.Module) -> dict[str, Any]:
    """A module's own numbers and switches."""
    both = {**vars(module), **dict(module)}
    return {
        name: value
        for name, value in both.items()
        if not name.startswith("_") and isinstance(value, bool | int | float | str)
    }


def _count(arrays: list[mx.array]) -> str:
    return "1 array" if len(arrays) == 1 else f"{len(arrays)} arrays"


def _kv_differs(live: Any, own: Any) -> str:
    """How a KV cache entry differs from what it should be; empty if it does not."""
    if type(live).__name__ != type(own).__name__:
        return f"it is a {type(live).__name__}, should be a {type(own).__name__}"
    if (has := offset_of(live)) != (should := offset_of(own)):
        by = f"{abs(should - has)} {'behind' if has < should else 'ahead'}"
        return f"its offset is {has}, should be {should}: {by}"
    if is_ring(live) and live._idx != own._idx:
        return f"its ring writes next at {live._idx}, should be {own._idx}"
    for number, (part, other) in enumerate(zip(_parts(live), _parts(own), strict=True)):
        where = f"part {number}, " if len(_parts(live)) > 1 else ""
        pairs = zip(named_arrays(part), named_arrays(other), strict=False)
        for (name, array, used), (_, fresh, length) in pairs:
            if used >= 0:
                array, fresh = array[..., :used, :], fresh[..., :length, :]
            if array.shape != fresh.shape:
                return f"{where}its {name} are {list(array.shape)}, should be {list(fresh.shape)}"
            pair = difference(array, fresh)
            if not pair.within:
                which = _positions(array, fresh) if used >= 0 else ""
                return f"{where}its {name}{which} are not what was written in this run ({pair.told})"
    return ""


def _parts(entry: Any) -> list[Any]:
    return [part for member in getattr(entry, "caches", ()) for part in _parts(member)] or [entry]


def _positions(array: mx.array, fresh: mx.array) -> str:
    """The slots in which two buffers differ."""
    wrong = (array != fresh).any(axis=-1)
    wrong = wrong.reshape(-1, wrong.shape[-1]).any(axis=0)
    slots = [place for place, bad in enumerate(np.array(wrong).tolist()) if bad]
    if not slots:
        return ""
    return f" in slot {slots[0]}" if len(slots) == 1 else f" in slots {slots[0]}–{slots[-1]}"
