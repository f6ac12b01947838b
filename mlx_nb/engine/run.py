"""One run on one rank: its tokens, its KV caches, its place in the forward pass.

The body runs in a greenlet. Whatever it waits for (a value from another rank, a user at a stop) is a
switch back to the engine's main loop, so the rank can be asked anything meanwhile, and the pass
stands still inside the model's own code, on the same thread.
"""

import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import greenlet
import mlx.core as mx
import numpy as np

from mlx_nb.engine.captures import Recorder
from mlx_nb.engine.clock import Clock
from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.haste import LookAgain
from mlx_nb.engine.history import History, Snapshot, restore
from mlx_nb.engine.kv import (
    KVEntry,
    check_kv_options,
    is_kv_entry,
    keep_rows,
    make_batch_kv_cache,
    make_kv_cache,
    offset_of,
    settle_kv_cache,
    state_arrays,
)
from mlx_nb.engine.passlog import PassLog
from mlx_nb.engine.patience import Patience
from mlx_nb.engine.pytree import Tree, arrays_of, map_arrays
from mlx_nb.engine.rows import Answer, Rows
from mlx_nb.engine.stop import Stop, first_array
from mlx_nb.engine.transport import Arrival
from mlx_nb.shared.ids import LayerIndex
from mlx_nb.shared.position import KVOffset
from mlx_nb.shared.request import RunRequest
from mlx_nb.shared.strides import Event
from mlx_nb.shared.timeline import COMPUTE, SEND, WAIT

if TYPE_CHECKING:
    from mlx_nb.engine.probe import Probe
    from mlx_nb.engine.stage import Stage


Place = tuple[int, int, int]
"""A stop in a run: its pass, its rank, its number there. They sort as they come."""


LAYERS_AT_ONCE = 4
"""After so many layers of a token's pass their computation begins, while Python still builds the graph of the next ones:
on two ranks of smollm2 a token took 99 instead of 110 ms (medians of 5, in turn); 1 layer 102, all but the first 107."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """What a run switches out with while a value from another rank is on its way."""

    source: int
    what: str
    phase: str


@dataclass(frozen=True, slots=True, kw_only=True)
class PassEnded:
    """A run's part of one pass is over on this rank."""


@dataclass(slots=True, kw_only=True)
class Pass:
    """One trip through the model: a chunk of the prompt, or one token."""

    index: int
    phase: str
    start: int
    stop: int
    final: bool
    crossing: Crossing
    through: Tree = None
    done_layers: set[int] = field(default_factory=set)
    arrival: Arrival | None = None
    taken: bool = False
    began: float = 0.0


class Run:
    """The state of one run on this rank.

    Attributes:
        request: What was asked for.
        batch: The prompts and their tokens; every rank keeps them all.
        kv: A KV cache entry per layer of the whole model; other ranks' are ghosts.
        state: ``running``, ``finished``, ``interrupted`` or ``failed``.
        finish: Why generation ended: ``stop`` or ``length``; empty before.
        passes: Seconds of each pass on this rank, with its phase and token count.
        clock: When this rank computed, waited and sent.
        stop: Where it stands; None where it does not stand at a site.
        fallen: Where its pass raised.
        recorder: What it records; None for nothing.
        history: What it was before each pass, as long as it is stepped.
        log: The events of the last passes.
        edits, forced: Values that were put in at stops, and tokens put in place of sampled ones.
        patience: How long its waits take.
    """

    def __init__(
        self, stage: "Stage", request: RunRequest, before: "Run | None" = None, index: int = 0
    ) -> None:
        """A run from its start, or from a pass of another one.

        Args:
            stage: This rank's share.
            request: What is asked for.
            before: The run whose past this one shares up to pass `index`.
            index: A pass that `before` has a snapshot of; 0 is always possible.
        """
        self.stage = stage
        self.request = request
        self.batch = Rows(request, stage.prompter, is_last=stage.shard.is_last)
        self.kv = self._kv_to_go_on_with() if before is None else self._fresh_kv()
        self.state = "running"
        self.finish = ""
        self.probe: Probe | None = None
        self.recorder = Recorder(self, request.trace) if request.trace is not None else None
        self.passes: list[tuple[str, int, float]] = []
        self.clock = Clock()
        self.patience = Patience()
        self.rows: list[np.ndarray] = []
        self.current: Pass | None = None
        self._next_index = 0
        self.wait_began: float | None = None
        self.stop: Stop | None = None
        self.fallen: Stop | None = None
        self.prompt_s = 0.0
        self.decode_s = 0.0
        self._first_token_at = 0.0
        self._began = 0.0
        # Places in `kv`, not objects: quantising replaces the objects.
        self.layer_places: dict[int, list[int]] = {}
        # A rank alone owns all of it, also where a model never calls its layers.
        self._owned = set(range(len(self.kv))) if stage.size == 1 else set()
        self.first_seed = self.seed
        self.history = History()
        # The events of the last passes, and what was changed in them: both by pass.
        self.log: dict[int, PassLog] = {}
        self.edits: dict[Place, mx.array] = {}
        self.forced: dict[Place, int] = {}
        self._resume: Snapshot | None = None
        if before is not None:
            self._take_over(before, index)
        self.greenlet = greenlet.greenlet(self._body)

    def _kv_to_go_on_with(self) -> list[KVEntry]:
        """Fresh KV caches, or those that an earlier run has left and that hold the prompt's first tokens."""
        kept = self.stage.kept.pop(self.request.kept, None)
        if kept is not None and self.request.reused:
            return kept.cut_to(self.request.reused)
        return self._fresh_kv()

    def _fresh_kv(self) -> list[KVEntry]:
        if self.batch.several:
            return make_batch_kv_cache(self.stage.model, self.batch.padding)
        fresh = make_kv_cache(self.stage.model, self.request.options.max_kv_size)
        shared = any(forward.writes for forward in self.stage.cuts.forwards.values())
        check_kv_options(fresh, self.request.options, shared=shared)
        return fresh

    @property
    def tokens(self) -> list[int]:
        """Prompt and generated token ids; of several prompts, the first one's."""
        return self.batch.rows[0].tokens

    @property
    def owned(self) -> set[int]:
        """The places in `kv` that hold data on this rank."""
        return self._owned

    def _take_over(self, before: "Run", index: int) -> None:
        """Be what another run was before a pass."""
        self.first_seed = before.first_seed
        self.batch.seed = self.first_seed
        self.log = {place: events for place, events in before.log.items() if place < index}
        self.edits, self.forced = dict(before.edits), dict(before.forced)
        self.layer_places, self._owned = dict(before.layer_places), set(before._owned)
        snapshot = before.history.snapshots.get(index)
        if snapshot is None:
            return
        self.resume_at(snapshot, restore(snapshot, before.kv))
        self.history = before.history.until(index)

    def resume_at(self, snapshot: Snapshot, kv: list[KVEntry]) -> None:
        """Begin before a pass, with these KV caches."""
        self._resume, self.kv = snapshot, kv
        self.passes, self._next_index = list(snapshot.passes), snapshot.index
        self.batch.resume(snapshot.tokens, snapshot.seed)

    @property
    def seed(self) -> int:
        """The sampler's random state; 0 on ranks that do not sample."""
        return self.batch.seed

    # The body -----------------------------------------------------------------------------------

    def _body(self) -> None:
        ACTIVE.set(self)
        self._began = time.perf_counter()
        if self._resume is not None and self._resume.phase == "decode":
            logits = self._forward(self.batch.end - 1, self.batch.end, "decode", final=True)
        else:
            logits = self._prefill(self._resume.start if self._resume else 0)
        if self.request.kind != "generate":
            return
        while True:
            answers = self._next_tokens(logits)
            places = list(self.batch.active)
            going = self.batch.take(answers)
            self._clock_token()
            for place, answer in zip(places, answers, strict=True):
                self.stage.on_token(self, answer, place)
            if not self.batch.active:
                self.finish = self.batch.rows[0].finish
                self.clock.turn("")
                return
            if going is not None:
                keep_rows(self.kv, going)
            if self.stage.shard.is_last:
                self._end_pass()
            logits = self._forward(self.batch.end - 1, self.batch.end, "decode", final=True)

    def _prefill(self, begin: int = 0) -> mx.array | None:
        """Feed the prompt, from a token on."""
        total = self.batch.width
        logits = None
        for start, stop in self._chunks(total):
            if stop <= begin:
                continue
            start = max(start, begin)
            logits = self._forward(start, stop, "prefill", final=stop == total)
            self.stage.on_prefill(self, stop, total)
            if stop < total:
                self._end_pass()
        return logits

    def _chunks(self, total: int) -> list[tuple[int, int]]:
        """Where the prompt's chunks begin and end.

        A pass attends to its own tokens as they are, and writes them quantised, or over others: then the last
        token is fed alone, as in mlx-lm, for the same result.
        """
        options = self.request.options
        # A pass over several prompts shall take no longer than one over one: an interrupt waits for it.
        size = options.prefill_step_size or max(8, self.stage.prefill_step_size // len(self.batch.rows))
        whole = total - 1 if options.kv_differs and self.request.kind != "logits" else total
        chunks = [(start, min(start + size, whole)) for start in range(self.request.reused, whole, size)]
        return chunks if whole == total else [*chunks, (whole, total)]

    def _forward(self, start: int, stop: int, phase: str, *, final: bool) -> mx.array | None:
        """One pass; on the last rank the last position's logits ``[B, V]``, if they are needed."""
        index = self._next_index
        self._next_index += 1
        began = time.perf_counter()
        if self.probe and self.probe.keeps_past:
            self.history.take(self, index, phase, start)
        self.clock.begin_pass(index, phase, start, stop)
        crossing = self.stage.crossing(self.kv)
        self.current = Pass(
            index=index, phase=phase, start=start, stop=stop, final=final, crossing=crossing, began=began
        )
        if self.probe:
            self.probe.begin_pass()
        if self.recorder:
            self.recorder.begin_pass(start)
        inputs = self.batch.inputs(start, stop)  # [B, L]
        output = self._through_model(inputs)  # [B, L, V], evaluated only where it is used
        settle_kv_cache(self.kv, self._owned, self.request.options, inputs.shape[0], stop - start)
        logits = None
        if self.stage.shard.is_last:
            if self.request.kind == "logits":
                self.rows.append(np.array(output[0].astype(mx.float32), copy=True))
            elif final:
                logits = output[:, -1, :]
                mx.eval(logits)
            mx.eval(self._kv_arrays())
        if self.recorder:
            self.recorder.end_pass()
        self.passes.append((phase, stop - start, time.perf_counter() - began))
        return logits

    def _through_model(self, inputs: mx.array) -> mx.array:
        """The model's own forward pass; once more where something in it must be looked at more closely."""
        if self.probe is None:
            return self.stage.model(inputs, cache=self.kv)
        try:
            output = self.stage.model(inputs, cache=self.kv)
            self.probe.look()
            return output
        except LookAgain:
            pass
        except Exception:
            if not self.probe.unknown:
                raise
        now = self._pass()
        self.kv = restore(self.history.snapshots[now.index], self.kv)
        now.crossing, now.through, now.taken = self.stage.crossing(self.kv), None, False
        now.done_layers.clear()
        self.probe.begin_again()
        return self.stage.model(inputs, cache=self.kv)

    def _next_tokens(self, logits: mx.array | None) -> list[Answer]:
        """The last rank samples and tells the others."""
        last = self.stage.size - 1
        if not self.stage.shard.is_last:
            self._end_pass()  # before waiting: the token only comes once the later ranks have had their turn
            told = self.wait_for(last, "the token").value
            return [Answer(token=int(token), finish=str(finish)) for token, finish in told]
        assert logits is not None  # the last rank's final pass always makes them
        # A token that was set while the prompt went in is meant for the first pass that samples.
        index, first = self._pass().index, self._first_sampling
        forced = next((t for at, t in self.forced.items() if max(at[0], first) == index), None)
        answers = self.batch.pick(logits, forced)
        for rank in range(last):
            told = [(answer.token, answer.finish) for answer in answers]
            self.stage.transport.send(rank, self.request.run_id, told)
        return answers

    @property
    def _first_sampling(self) -> int:
        """The pass that ends the prompt."""
        return (
            next(
                (place for place, (phase, _, _) in enumerate(self.passes) if phase == "decode"),
                len(self.passes),
            )
            - 1
        )

    @property
    def text(self) -> str:
        """The text so far, of several prompts the first one's; empty on all ranks but the last."""
        return self.batch.rows[0].out.text

    def _clock_token(self) -> None:
        now = time.perf_counter()
        if not self._first_token_at:
            self._first_token_at, self.prompt_s = now, now - self._began
        self.decode_s = now - self._first_token_at

    def leave_out(self, seconds: float) -> None:
        """Count a pause as no time of the run."""
        self._began += seconds
        if self._first_token_at:
            self._first_token_at += seconds

    def value(self) -> mx.array | None:
        """The first array where the run stands; None where it does not stand at one."""
        return first_array(self.stop) if self.stop else None

    def place_of(self, event: Event) -> Place:
        """An event's place in the run."""
        return self._pass().index, event.rank, event.tick

    def forget_from(self, place: Place) -> None:
        """Drop what was changed at a place or behind it."""
        self.edits = {at: array for at, array in self.edits.items() if at < place}
        self.forced = {at: token for at, token in self.forced.items() if at < place}

    def _end_pass(self) -> None:
        """Let the engine's main loop look up: at an interrupt, another rank's abort, or whose turn it is."""
        self.switch(PassEnded())

    # Waiting ------------------------------------------------------------------------------------

    def switch(self, what: object) -> Any:
        """Stand still: hand `what` to the engine's main loop, go on when it switches back."""
        return self.greenlet.parent.switch(what)

    def wait_for(self, source: int, what: str) -> Arrival:
        """The next value from another rank."""
        transport = self.stage.transport
        phase = self._pass().phase
        self.clock.turn(WAIT)
        while (arrival := transport.poll(source, self.request.run_id)) is None:
            self.switch(Waiting(source=source, what=what, phase=phase))
        if self.wait_began is not None:
            self.patience.learn(f"{what} {phase}", time.monotonic() - self.wait_began)
        self.clock.turn(COMPUTE)
        self.wait_began = None
        return arrival

    # What the stubs ask (engine/context.py) ---------------------------------------------------------

    def received(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        """The value to go on with where the layers live elsewhere."""
        now = self._pass()
        if now.through is not None:
            return now.through
        if now.arrival is None:
            source = self.stage.rank - 1
            now.arrival = self.wait_for(source, "the hidden state")
        if not now.taken:
            # Handles of its own: models change arrays in place, and the pass may begin again.
            received = map_arrays(lambda array: array[...], now.arrival.value)
            if self.probe:
                received = self.probe.crossed("recv", received, now.arrival)
            now.crossing.take(received)
            now.taken = True
            self._owned |= now.crossing.filled
        return now.crossing.before(index, args, kwargs)

    def deliver(self, value: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        """Send the last owned layer's whole return value, and what is forwarded with it, to the next rank."""
        now = self._pass()
        hop = now.crossing.pack(value, args, kwargs)
        if self.probe:
            hop = self.probe.crossed("send", hop, None)
            value = now.crossing.value_in(hop)
        # Everything this rank owes the pass is computed here: the hop, and KV states it does not hang on.
        mx.eval(arrays_of(hop), self._kv_arrays())
        self.clock.turn(SEND)
        self.stage.transport.send(self.stage.rank + 1, self.request.run_id, hop)
        self.clock.turn(COMPUTE)
        now.through = value
        return value

    @property
    def past_its_use(self) -> bool:
        """Whether nothing needs what the pass still computes: norm and head of a chunk that is not the prompt's last."""
        now = self._pass()
        behind = self.stage.shard.is_last and self.stage.shard.layers.stop - 1 in now.done_layers
        return behind and not now.final and self.request.kind != "logits"

    def saw_kv(self, index: int, arguments: list[Any]) -> None:
        """An owned layer is being called: the KV entries among its arguments hold data here."""
        entries = {id(a) for a in arguments if is_kv_entry(a)}
        places = [
            place
            for place, entry in enumerate(self.kv)
            if id(entry) in entries or entries & {id(part) for part in getattr(entry, "caches", ())}
        ]
        self._owned.update(places)
        self.layer_places[index] = places

    def layer_done(self, index: int, value: Tree) -> None:
        """An owned layer has returned."""
        now = self._pass()
        now.done_layers.add(index)
        now.crossing.returned(index, value)
        if now.phase == "decode" and self.probe is None:
            place, left = index - self.stage.shard.layers.start, self.stage.shard.layers.stop - 1 - index
            if left and place % LAYERS_AT_ONCE == 0:
                mx.async_eval(arrays_of(value))

    # What others may ask --------------------------------------------------------------------------

    def kv_offsets(self) -> tuple[KVOffset, ...]:
        """The KV cache of each owned layer, as it stands now."""
        rows = []
        # Before a layer is called for the first time, what the rehearsed pass handed to it.
        readers = self.stage.cuts.rehearsal.readers
        for layer in self.stage.shard.layers:
            same_length = len(self.kv) == self.stage.shard.num_layers
            likely = [layer] if same_length else [at for at in sorted(readers) if layer in readers[at]]
            for place in self.layer_places.get(layer, likely):
                entry = self.kv[place]
                offset = offset_of(entry)
                stop = self.current.stop if self.current else 0
                done = bool(self.current) and layer in self._pass().done_layers
                written = done or 0 < stop <= offset
                name = type(entry).__name__
                rows.append(
                    KVOffset(layer=LayerIndex(layer), class_name=name, offset=offset, written=written)
                )
        return tuple(rows)

    def _kv_arrays(self) -> list[mx.array]:
        return [array for place in self._owned for array in state_arrays(self.kv[place])]

    def _pass(self) -> Pass:
        assert self.current is not None  # stubs and hooks only run inside a pass
        return self.current
