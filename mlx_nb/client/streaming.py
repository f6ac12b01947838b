"""A free run on all ranks, seen from the notebook: events while it goes on, the ranks' account at its end."""

import queue
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

from mlx_nb.client.generation import Generation, Generations, Piece, rate
from mlx_nb.client.remote import OnEvent, Pending, Remote
from mlx_nb.shared.errors import MlxNbError, RankSilentError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.outcome import Outcome

LOOK_S = 0.05
INTERRUPTS, INTERRUPT_AGAIN_S = 10, 3.0
LOST_EVERY_S = 0.5
PAUSE_AGAIN_S = 0.5

Event = dict[str, Any]


class FreeRun:
    """A run under way.

    Attributes:
        generation: What it has produced so far; filled while `pieces` is read.
        run_id: The ranks' name for it.
        prefilled: Prompt tokens that have gone through all ranks.
        outcomes: The ranks' own account, rank 0 first, once it has ended.
    """

    def __init__(
        self,
        remote: Remote,
        generation: Generation,
        run_id: int,
        submit: Callable[[OnEvent], list[Pending]],
        go_on: Callable[[OnEvent, float], list[Pending]],
        leave: Callable[[], object],
    ) -> None:
        """`submit` begins it; `go_on` lets it go on after so many seconds' pause, and `leave` frees it there."""
        self.run_id = run_id
        self._go_on, self._leave = go_on, leave
        self._pause, self._stop, self._asked = False, False, 0.0
        self._known: list[Outcome] = []
        self._changed = threading.Condition()
        self._reading = False
        self.generation = generation
        self.generations = Generations([generation])
        self.prefilled = 0
        self._remote = remote
        self.outcomes: list[Outcome] = []
        self._fill: Callable[[int, Outcome | None], Outcome] | None = None
        self._began = time.monotonic()
        self._events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self._pending: list[Pending] = submit(self._take)

    def _take(self, _rank: Rank, event: Event) -> None:
        """Runs on ipyparallel's thread: hand over, nothing else."""
        self._events.put(event)

    def notes(self) -> list[str]:
        """As `BreakingRun.notes`: nothing, for it looks for nothing."""
        return []

    # From a view or another thread -----------------------------------------------------------------

    @property
    def state(self) -> str:
        """``waiting`` until its pieces are read, then ``running``, ``paused``, or how it has ended."""
        return self.generation.state if self._reading or self.outcomes else "waiting"

    in_cell = True
    """Somebody waits for it, and the ranks answer nobody meanwhile."""

    @property
    def done(self) -> bool:
        return self.generation.state not in ("running", "paused")

    def pause(self, timeout_s: float = 10.0) -> "FreeRun":
        """Stand still on every rank, after a chunk or a token at most; whoever reads the pieces waits meanwhile."""
        with self._changed:
            self._pause, self._asked = True, 0.0
            self._changed.notify_all()
            self._changed.wait_for(lambda: self.done or self.state == "paused", timeout_s)
        return self

    def resume(self) -> "FreeRun":
        """Go on after a pause; does nothing if there was none."""
        with self._changed:
            self._pause = False
            self._changed.notify_all()
        return self

    def stop(self) -> None:
        """End it where it is paused; does nothing to one that runs, which the ranks' interrupt ends."""
        with self._changed:
            self._stop = True
            self._changed.notify_all()

    # Whoever waits for it --------------------------------------------------------------------------

    def pieces(self) -> Iterator[Piece | None]:
        """Pieces as they come; None when there is only progress to show.

        Whatever ends it early (Ctrl-C, a lost rank, the caller), the generation keeps what came so far.

        Raises:
            KeyboardInterrupt: The run was interrupted; the ranks have stopped by then.
            MlxNbError: It failed.
        """
        self._reading = True
        self._say("running")
        try:
            while True:
                yield from self._streamed()
                outcomes = self._filled(self._remote.wait(self._pending))
                if all(outcome.kind != "more" for outcome in outcomes):
                    break
                for event in self._waiting_events():
                    if event["kind"] == "token":
                        yield self._taken(event)
                if not self._stand_still(outcomes):
                    break
        except (KeyboardInterrupt, GeneratorExit):
            self._interrupt()
            raise
        except MlxNbError:
            self._say("failed")
            raise
        for event in self._waiting_events():
            if event["kind"] == "token":
                yield self._taken(event)
        self._settle(outcomes)

    def _say(self, state: str) -> None:
        with self._changed:
            for generation in self.generations:
                generation.state = state
            self._changed.notify_all()

    def _stand_still(self, outcomes: list[Outcome]) -> bool:
        """Wait until it shall go on, and let it; False if it was stopped, and left."""
        began, self._known = time.monotonic(), outcomes
        self._say("paused")
        while self._pause and not self._stop:
            with self._changed:
                self._changed.wait(LOOK_S)
            if self._remote.ended or self._remote.lost():
                self._remote.check()
        if self._stop:
            self._leave()
            return False
        self._say("running")
        self._pending = self._go_on(self._take, time.monotonic() - began)
        return True

    def _filled(self, outcomes: list[Any]) -> list[Outcome]:
        """What the ranks said last: one that had ended before says nothing now."""
        if self._known:
            return [
                known if said is None else said for said, known in zip(outcomes, self._known, strict=True)
            ]
        if self._fill is not None:
            return [self._fill(rank, outcome) for rank, outcome in enumerate(outcomes)]
        return outcomes

    def _ask_to_pause(self) -> None:
        """Again and again while it is wanted: a rank that is between two calls hears nothing."""
        if self._pause and time.monotonic() - self._asked > PAUSE_AGAIN_S:
            self._asked = time.monotonic()
            with suppress(TimeoutError):
                self._remote.ask_to_pause()

    def wait_with(self, fill: Callable[[int, Outcome | None], Outcome]) -> Generation:
        """Read the run to its end; `fill` says what a rank that had ended before has to say."""
        self._fill = fill
        for _ in self.pieces():
            pass
        return self.generation

    def _streamed(self) -> Iterator[Piece | None]:
        looked = time.monotonic()
        while not any(one.done for one in self._pending):
            self._ask_to_pause()
            try:
                event = self._events.get(timeout=LOOK_S)
            except queue.Empty:
                if time.monotonic() - looked > LOST_EVERY_S:
                    looked = time.monotonic()
                    # A rank that stands still is named by one that waits for it, while there is one.
                    silent = self._remote.out_of_reach() >= {one.rank for one in self._pending}
                    if self._remote.ended or self._remote.lost() or silent:
                        return
                continue
            if event["kind"] == "prefill":
                self.prefilled = event["done"]
                yield None
            elif event["kind"] == "token":
                yield self._taken(event)

    def _waiting_events(self) -> Iterator[Event]:
        while True:
            try:
                # The ranks have answered; their last events are at most a network hop behind.
                yield self._events.get(timeout=LOOK_S / 5)
            except queue.Empty:
                return

    def _taken(self, event: Event) -> Piece:
        """Take a token into its prompt's generation, and make a piece of it."""
        generation = self.generations[event["row"]]
        seen, prompt = len(generation.token_ids), generation.fed
        piece = Piece(
            text=event["text"],
            token=event["token"],
            prompt_tokens=prompt,
            prompt_tps=rate(prompt, event["prompt_s"]),
            generation_tokens=seen + 1,
            generation_tps=rate(seen, event["decode_s"]),
            finish_reason=event["finish"] or None,
        )
        generation.add(piece)
        return piece

    def _interrupt(self) -> None:
        """Stop the ranks and keep what they have; called while an exception is on its way."""
        self._say("interrupted")
        try:
            # A signal that comes between two calls of a rank is dropped there, so it may take a second one.
            for _ in range(INTERRUPTS):
                if not all(one.done for one in self._pending):
                    self._remote.interrupt()
                with suppress(RankSilentError):
                    told = self._filled(self._remote.wait(self._pending, timeout_s=INTERRUPT_AGAIN_S))
                    if any(outcome.kind == "more" for outcome in told):  # it was paused
                        self._leave()
                    return self._settle(told)
        except MlxNbError:
            return None  # a rank is lost or failed: the streamed pieces are what there is

    def _settle(self, outcomes: list[Outcome]) -> None:
        self.outcomes = outcomes
        kinds = {outcome.kind for outcome in outcomes}
        state = "interrupted" if kinds & {"interrupted", "more"} else "finished"
        wall_s = time.monotonic() - self._began
        for place, generation in enumerate(self.generations):
            of_row = [outcome.of_row(place) for outcome in outcomes]
            ended = of_row[-1].finish and len(self.generations) > 1  # before the others were interrupted
            generation.settle(of_row, "finished" if ended else state, wall_s)
