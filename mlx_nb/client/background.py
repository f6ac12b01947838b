"""A run in the background: the ranks advance it in short calls, and answer others in between.

No call stays on a rank for the length of the run, so a pause is only the absence of the next call, and nothing has
to be interrupted: the pass stands in its greenlet, what is in flight waits in MPI.
"""

import asyncio
import queue
import threading
import time
from collections.abc import Generator
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mlx_nb.client.generation import Generation
from mlx_nb.client.live import LiveText
from mlx_nb.client.remote import SILENT_S, Pending, StandingStill
from mlx_nb.shared.errors import ClusterError, MlxNbError, RankSilentError, RunTimeoutError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.request import RunRequest

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

WHILE_S = 0.1
"""How long the ranks advance a run before they answer others; it ends at a wait or with a pass."""

LOOK_S = 0.5

LEAVE_S = 0.2
"""How long ranks may take to free a run that failed because one of them is silent."""


class BackgroundRun:
    """A run that goes on while the notebook does something else. Made by `Pipe.start`.

    ``gen = await run`` waits for its end in a notebook or any other event loop. Cancelling what awaits it stops it,
    as with a task.

    Attributes:
        gen: What it has produced so far.
        state: ``waiting`` (for its turn), ``running``, ``paused``, ``finished``, ``interrupted`` (stopped) or ``failed``.
        error: Why it failed, else None.
        prefilled: Prompt tokens that have gone through all ranks.
    """

    def __init__(self, pipe: "Pipe", request: RunRequest, generation: Generation) -> None:
        self.pipe = pipe
        self.gen = generation
        self.state = "waiting"
        self.error: BaseException | None = None
        self.prefilled = 0
        self._request = request
        self._remote = pipe.cluster.remote
        self._ranks = [Rank(rank) for rank in range(pipe.num_ranks)]
        self._outcomes: dict[Rank, Outcome] = {}
        self._pause, self._stop, self._opened = False, False, False
        self._paused_s = 0.0
        self._changed = threading.Condition()
        self._ended: list[Any] = []
        self._live = LiveText(lambda: repr(self))
        self._began = time.monotonic()
        threading.Thread(target=self._main, name=f"mlx_nb run {request.run_id}", daemon=True).start()

    in_cell = False
    """Nobody has to wait for it, and the ranks answer others in between."""

    # What a user does ---------------------------------------------------------------------------------

    @property
    def run_id(self) -> int:
        return self._request.run_id

    @property
    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.state in ("finished", "interrupted", "failed")

    @property
    def text(self) -> str:
        """The text so far."""
        return self.gen.text

    def pause(self) -> "BackgroundRun":
        """Stand still; returns when all ranks do, after a chunk or a token at most. Others may use the ranks."""
        with self._changed:
            self._pause = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.done or self.state == "paused")
        return self

    def resume(self) -> "BackgroundRun":
        """Go on after a pause; does nothing if there was none."""
        with self._changed:
            self._pause = False
            if self.state == "paused":
                self.state = self.gen.state = "waiting"  # for its turn
            self._changed.notify_all()
        return self

    def stop(self, *, wait: bool = True) -> Generation:
        """End it where it stands, after a chunk or a token at most; `gen` keeps what it has produced."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()
            if wait:
                self._changed.wait_for(lambda: self.done)
        return self.gen

    def wait(self, timeout: float | None = None) -> Generation:
        """Wait for its end. Ctrl-C stops it.

        Raises:
            RunTimeoutError: It has not ended after `timeout` seconds, and still goes on.
            MlxNbError: It failed.
        """
        until = time.monotonic() + timeout if timeout is not None else float("inf")
        try:
            with self._changed:
                while not self.done and (left := until - time.monotonic()) > 0:
                    self._changed.wait(min(left, LOOK_S))
        except KeyboardInterrupt:
            self.stop()
            raise
        if not self.done:
            raise RunTimeoutError(
                f"The run is {self.state} after {timeout:g} s, with {len(self.gen.token_ids)} tokens so far.",
                "Wait again: run.wait(). Or end it: run.stop()",
            )
        if self.error is not None:
            raise self.error
        return self.gen

    def __await__(self) -> Generator[Any, None, Generation]:
        return self._awaited().__await__()

    async def _awaited(self) -> Generation:
        loop = asyncio.get_running_loop()
        ended = asyncio.Event()
        with self._changed:
            self._ended.append(lambda: loop.call_soon_threadsafe(ended.set))
            if self.done:
                ended.set()
        try:
            await ended.wait()
        except BaseException:  # cancelled, or Ctrl-C
            self.stop(wait=False)
            raise
        return self.wait()

    # The thread that drives it --------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            self._drive()
            state = "finished" if not self._stop else "interrupted"
        except Exception as error:  # noqa: BLE001 - raised again by whoever waits for the run
            self.error, state = error, "failed"
        if state != "finished":
            state = self._leave(state)
        self._end(state)

    def _drive(self) -> None:
        """Advance it to its end, or until it was stopped."""
        while not self._stop and len(self._outcomes_that_end()) < len(self._ranks):
            if self._pause:
                self._stand_still()
            elif self._take_turn():
                try:
                    self._open()
                    self._go_on()
                finally:
                    self._remote.background.release()

    def _take_turn(self) -> bool:
        """Wait for the other runs in the background; False if it was paused or stopped meanwhile."""
        while not self._remote.background.acquire(timeout=LOOK_S / 5):
            if self._stop or self._pause:
                return False
            if self._remote.ended:
                raise ClusterError(self._remote.ended, "Type: %mlx_cluster start")
        self._set("running")
        return True

    def _open(self) -> None:
        if not self._opened:
            self._opened = True
            self._remote.wait(self.pipe.submit_all("open_run", self._request))

    def _go_on(self) -> None:
        """Let every rank advance until the run has ended there, or nobody wants it to go on."""
        answers: queue.SimpleQueue[Rank] = queue.SimpleQueue()
        pending: dict[Rank, Pending] = {}
        paused_s, self._paused_s = self._paused_s, 0.0

        def submit(rank: Rank, seconds: float) -> None:
            found = self._remote.submit(rank, "advance", self.pipe.pipe_id, self.run_id, WHILE_S, seconds)
            pending[rank] = found
            found.result.add_done_callback(lambda _result: answers.put(rank))

        ended = self._outcomes_that_end()
        for rank in self._ranks:
            if rank not in ended:
                submit(rank, paused_s)
        standing, looked = StandingStill(self._remote.watch), 0.0
        while pending:
            if (
                time.monotonic() - looked > LOOK_S
            ):  # the others answer all the time, and nobody waits for it alone
                looked = time.monotonic()
                if silent := [pending[rank] for rank in standing.too_long() if rank in pending]:
                    raise self._remote.silent_error(silent, SILENT_S, "; its process is stopped")
            try:
                rank = answers.get(timeout=LOOK_S)
            except queue.Empty:
                if self._remote.ended or self._remote.lost():
                    self._remote.wait(list(pending.values()))  # which says what happened
                continue
            try:
                outcome: Outcome = self._remote.wait([pending[rank]])[0]
            except MlxNbError:
                self._remote.wait(list(pending.values()))  # raises the cause rather than its echo
                raise
            del pending[rank]
            self._take_in(rank, outcome)
            if outcome.kind == "more" and not self._pause and not self._stop:
                submit(rank, 0.0)

    def _outcomes_that_end(self) -> dict[Rank, Outcome]:
        return {rank: outcome for rank, outcome in self._outcomes.items() if outcome.kind != "more"}

    def _take_in(self, rank: Rank, outcome: Outcome) -> None:
        self._outcomes[rank] = outcome
        if rank == self._ranks[-1]:
            self.prefilled = self._request.reused + sum(
                count for phase, count, _ in outcome.passes if phase == "prefill"
            )
            self.gen.follow(outcome)
            self._live.refresh()

    def _stand_still(self) -> None:
        """Wait until it shall go on."""
        began = time.monotonic()
        self._set("paused")
        with self._changed:
            while self._pause and not self._stop and not self._remote.ended:
                self._changed.wait(LOOK_S)
        self._paused_s += time.monotonic() - began
        self._set("waiting")

    def _leave(self, state: str) -> str:
        """Free what the ranks hold of a run that has not come to its end; the state that it ends in."""
        remote = self._remote
        if self._opened and not remote.ended and not remote.lost():
            try:
                # A silent rank gets the message as well, for the case that it goes on.
                patience_s = LEAVE_S if isinstance(self.error, RankSilentError) else None
                remote.wait(self.pipe.submit_all("close_run", self.run_id), timeout_s=patience_s)
            except MlxNbError as error:
                self.error = self.error or error
                return "failed"
        # What had ended on every rank before the stop came has finished.
        return "finished" if len(self._outcomes_that_end()) == len(self._ranks) else state

    def _end(self, state: str) -> None:
        if len(self._outcomes) == len(self._ranks):
            outcomes = [self._outcomes[rank] for rank in self._ranks]
            self.gen.settle(outcomes, state, time.monotonic() - self._began)
        self._set(state)
        for tell in self._ended:
            with suppress(RuntimeError):  # whose loop was closed no longer waits
                tell()
        self._live.refresh(last=True)

    def _set(self, state: str) -> None:
        with self._changed:
            self.state = self.gen.state = state
            self._changed.notify_all()
        self._live.refresh(last=True)

    # What it looks like ---------------------------------------------------------------------------------

    def __repr__(self) -> str:
        count, total = len(self.gen.token_ids), len(self.gen.prompt_ids)
        line = (
            self.gen.stats.line if self.gen.stats and count else f"prompt {self.prefilled} of {total} tokens"
        )
        why = f" · {self.gen.finish_reason}" if self.gen.finish_reason else ""
        head = f"Run {self.pipe.name} · {self.state}{why} · {line}"
        if self.gen.text:
            head += f"\n{self.gen.text}"
        if self.error is not None:
            return f"{head}\n{self.error}"
        next_steps = {"running": "run.pause()  run.stop()  ", "paused": "run.resume()  run.stop()  "}
        tail = "" if self.done else f"\n next: {next_steps.get(self.state, 'run.stop()  ')}gen = await run"
        return f"{head}{tail}"

    def _ipython_display_(self) -> None:
        self._live.show()
