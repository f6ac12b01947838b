"""Moving a run on: to its end, or to where a stride says it should stand still.

A greenlet switches out whenever it waits; here is what it switches to. A free run waits inside the
call, with a deadline; a stepped run goes back to the notebook, so no call stays in an engine while a
user thinks.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import greenlet
import mlx.core as mx
import numpy as np

from mlx_nb.engine.interrupt import Interrupt
from mlx_nb.engine.picture import picture_of
from mlx_nb.engine.postmortem import one_line, stand_at_failure
from mlx_nb.engine.probe import Probe
from mlx_nb.engine.report import position_of
from mlx_nb.engine.run import PassEnded, Run, Waiting
from mlx_nb.engine.stop import Stop, first_array
from mlx_nb.engine.transfer import MAX_TRANSFER_BYTES
from mlx_nb.engine.transport import SILENCE_S
from mlx_nb.shared.breaks import Break
from mlx_nb.shared.errors import (
    MlxNbError,
    RankSilentError,
    RunError,
    RunInterruptedError,
    TransferTooLargeError,
)
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.strides import Stride
from mlx_nb.shared.text import format_layers, format_size
from mlx_nb.shared.timeline import RankTimes


@dataclass(slots=True)
class Driver:
    """Drives the runs of one rank; remembers where each stands."""

    interrupt: Interrupt

    def run_to_end(self, run: Run) -> Outcome:
        """Drive a run until it has finished, waiting for the other ranks inside this call.

        An interrupt ends it with the state ``interrupted`` and all tokens so far. A pause lets it stand still
        (``more``); this again goes on.

        Raises:
            MlxNbError: It failed; the other ranks have been told.
        """
        run.clock.resume()
        _go_through(run)
        return self._drive(run, until=float("inf"))

    def run_for(self, run: Run, seconds: float) -> Outcome:
        """Drive a run for a while: to the first wait or the end of a pass after so many seconds.

        It stands still then (``more``), and the rank answers others before it goes on. An interrupt only ends
        the while sooner: whoever drives the run in pieces ends it by asking for no more.

        Raises:
            MlxNbError: It failed; the other ranks have been told.
        """
        run.clock.resume()
        _go_through(run)
        try:
            return self._drive(run, until=time.monotonic() + seconds)
        finally:
            run.clock.pause()
            run.wait_began = None  # the time until it goes on is nobody's silence

    def _drive(self, run: Run, *, until: float) -> Outcome:
        in_pieces = until < float("inf")
        run.stage.transport.begin(run.request.run_id)
        with self.interrupt.listening():
            try:
                state = self._switch(run)
                while state is not None:
                    if self.interrupt.requested and not in_pieces:
                        return self._interrupted(run)
                    if self.interrupt.pause and not in_pieces:
                        run.clock.pause()
                        run.wait_began = None  # the time until it goes on is nobody's silence
                        return Outcome(kind="more", kv=run.kv_offsets(), **_text(run))
                    if self.interrupt.requested or time.monotonic() > until:
                        return Outcome(kind="more", kv=run.kv_offsets(), **_text(run))
                    if isinstance(state, Waiting):
                        self._wait(run, state)
                    else:
                        self._between_passes(run)
                    state = self._switch(run)
            except RunInterruptedError:
                return self._interrupted(run)
            except MlxNbError as error:
                if self.interrupt.requested and not in_pieces:
                    return self._interrupted(run)
                self._fail(run, str(error))
                raise
        return self._finished(run)

    def step(
        self, run: Run, stride: Stride, breaks: Sequence[Break] = (), *, preview: bool = False
    ) -> Outcome:
        """Drive a run until `stride` or a breakpoint says stop, its part of the pass is over, or it has finished.

        Raises:
            MlxNbError: It failed.
        """
        if run.probe is None:
            run.probe = Probe(run)
            run.stage.hooks.acquire()
        run.probe.keeps_past = True
        run.probe.set_out(stride, breaks, lambda: self.interrupt.requested)
        run.stage.transport.begin(run.request.run_id)
        try:
            with self.interrupt.listening():
                state = self._switch(run)
                while isinstance(state, Waiting):
                    if self.interrupt.requested:
                        return Outcome(kind="waiting", kv=run.kv_offsets(), **_left(run), **_text(run))
                    self._wait(run, state)
                    state = self._switch(run)
        except MlxNbError as error:
            self._fail(run, str(error))
            raise
        finally:
            run.stage.transport.end(run.request.run_id)
        left = _left(run)
        if isinstance(state, Stop):
            run.stop = state
            array = first_array(state) if preview else None
            picture = picture_of(array) if array is not None else b""
            position = position_of(run, state)
            return Outcome(
                kind="stop",
                position=position,
                preview=picture,
                shapes=_shapes(run, state) if preview else (),
                kv=position.kv,
                **left,
                **_text(run),
            )
        run.stop = None
        if isinstance(state, PassEnded):
            return Outcome(kind="handover", kv=run.kv_offsets(), **left, **_text(run))
        return replace(self._finished(run), breaks=run.probe.breaks.armed)

    def account(self, run: Run) -> Outcome:
        """Where a run lies that will not go on."""
        position = position_of(run, run.fallen) if run.fallen else None
        return Outcome(kind="failed", position=position, kv=run.kv_offsets(), **_text(run))

    def _switch(self, run: Run) -> Any:
        """Let the run go on until it switches out; None once its body has returned."""
        if run.state != "running":
            raise RunError(f"Run {run.request.run_id} has {run.state}.", "Start another: pipe.generate(…)")
        current = greenlet.getcurrent()
        run.greenlet.parent = current
        try:
            out = run.greenlet.switch()
        except MlxNbError as error:
            self._fail(run, str(error))
            raise
        except Exception as error:
            run.stop = run.fallen = stand_at_failure(run, error)
            self._fail(run, f"{type(error).__name__}: {error}")
            raise _explain(run, error) from error
        if run.greenlet.dead:
            run.state = "finished"
            return None
        return out

    def _wait(self, run: Run, waiting: Waiting) -> None:
        """Sleep until something may have come: a short spin, then naps that neither burn a core nor add much."""
        transport, now = run.stage.transport, time.monotonic()
        transport.check(run.request.run_id)
        run.wait_began = run.wait_began or now
        waited = now - run.wait_began
        if nap := run.patience.nap_s(f"{waiting.what} {waiting.phase}", waited):
            time.sleep(nap)
        _check_voice(run, waiting.source, f"waits for {waiting.what}")

    def _between_passes(self, run: Run) -> None:
        """A rank that only sends, as the first one does in a long prefill, waits for nobody: it looks here."""
        run.stage.transport.check(run.request.run_id)
        if not run.stage.shard.is_last:
            _check_voice(run, run.stage.rank + 1, "sends to it")

    def _interrupted(self, run: Run) -> Outcome:
        run.state = "interrupted"
        run.stage.transport.abort(
            run.request.run_id, f"Rank {run.stage.rank} was interrupted.", interrupted=True
        )
        return Outcome(kind="interrupted", kv=run.kv_offsets(), times=_times(run), **_text(run))

    def _finished(self, run: Run) -> Outcome:
        return Outcome(
            kind="finished", kv=run.kv_offsets(), logits=_logits(run), times=_times(run), **_text(run)
        )

    def _fail(self, run: Run, reason: str) -> None:
        """Give a run up and tell the others, once: whoever waits for this rank would wait for ever."""
        if run.state == "failed":
            return
        run.state = "failed"
        run.stage.transport.abort(run.request.run_id, f"Rank {run.stage.rank} gave the run up: {reason}")


def _shapes(run: Run, stop: Stop) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """What the view's module tree shows: the layer of a stop, and what lies outside all layers."""
    assert run.probe is not None  # it stands at a stop
    stage = run.stage
    here = {-1, stage.layer_inside(stop.event.module)}
    return tuple(
        (path, shape) for path, shape in run.probe.shapes.items() if stage.layer_inside(path) in here
    )


def _go_through(run: Run) -> None:
    """Let a run pass every site without a stop; where patches are set, it is probed all the same."""
    if run.probe is None and run.stage.patches:
        run.probe = Probe(run, keeps_past=False)
        run.stage.hooks.acquire()
    if run.probe is not None:
        run.probe.stride = Stride(name="run")


def _check_voice(run: Run, rank: int, why: str) -> None:
    """Raise if another rank has given no sign of life for too long."""
    if (silent_s := run.stage.transport.silent_s(rank)) > SILENCE_S:
        shard = run.stage.shards[rank]
        token = len(run.tokens) - len(run.request.tokens)
        raise RankSilentError(
            f"Rank {rank} ({format_layers(shard.layers)}) has been silent for {silent_s:.0f} s, at token "
            f"{token}; rank {run.stage.rank} {why}.",
            "Text so far: pipe.last.text. Type: %mlx_cluster restart",
        )


def _left(run: Run) -> dict[str, Any]:
    """What goes on to the next rank: the rest of the stride, and the breakpoints with their counts."""
    assert run.probe is not None  # a step has made it
    return {"stride": run.probe.stride, "breaks": run.probe.breaks.armed}


def _text(run: Run) -> dict[str, Any]:
    return {
        "pass_index": run.current.index if run.current else -1,
        "token_ids": tuple(run.tokens[len(run.request.tokens) :]),
        "text": run.text,
        "finish": run.finish,
        "rows": run.batch.texts(),
        "passes": tuple(run.passes),
        "prompt_s": run.prompt_s,
        "decode_s": run.decode_s,
        "peak_memory_bytes": mx.get_peak_memory(),
    }


def _times(run: Run) -> RankTimes:
    """When it computed and waited. A stepped run has no timeline: it would show the user thinking."""
    run.clock.turn("")
    return run.clock.times() if run.probe is None or not run.probe.keeps_past else RankTimes()


def _logits(run: Run) -> np.ndarray | None:
    """The logits of every position, ``[L, V]`` float32, for a run that asked for them."""
    if not run.rows:
        return None
    size = sum(rows.nbytes for rows in run.rows)
    if size > MAX_TRANSFER_BYTES:
        most = MAX_TRANSFER_BYTES // run.rows[0][0].nbytes
        raise TransferTooLargeError(
            f"The logits of {sum(map(len, run.rows))} tokens are {format_size(size)}; at most 64 MiB travel at once.",
            f"Ask for at most {most} tokens.",
        )
    return np.concatenate(run.rows)


def _explain(run: Run, error: Exception) -> RunError:
    if run.fallen is not None:
        return RunError(one_line(run, error, run.fallen), "Look around where it was raised: pipe.pm()")
    shard = run.stage.shard
    text = " ".join(str(error).split())[:300]
    return RunError(
        f"Rank {run.stage.rank} (layers {shard.layers.start}–{shard.layers.stop - 1}) raised "
        f"{type(error).__name__} outside a pass: {text}",
        "The cluster still works. Text so far: pipe.last.text",
    )
