"""The border: the only place in `client/` that names `mlx_nb.engine`.

Nothing of the engine is imported here. A call travels as a name and its arguments, and the rank looks the
name up in its own table.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Protocol

import ipyparallel as ipp
from ipyparallel.serialize import deserialize_object

from mlx_nb.client.ctrl_c import held_back
from mlx_nb.shared.awake import AwakeClock
from mlx_nb.shared.errors import (
    ClusterError,
    MlxNbError,
    RankLostError,
    RankSilentError,
    RunAbortedError,
    RunError,
)
from mlx_nb.shared.failure import Failure, RankTraceback
from mlx_nb.shared.ids import EngineId, Rank
from mlx_nb.shared.spec import RankInfo

# Evaluated on the rank: this is how the call gets over without a line of engine code being shipped.
RUN_THERE = ipp.Reference("__import__('mlx_nb.engine.calls', fromlist=['run']).run")

SLICE_S = 0.1
"""How long one wait lasts, so that Ctrl-C and a lost rank are seen in between."""

GRACE_S = 2.0
"""How long a wait goes on once a rank is lost or has failed: time for the others to report what they saw."""

SILENT_GRACE_S = 0.3
"""The same once a rank has reported another's silence: the cause is known, and the user was promised 10 s."""

SILENT_S = 9.9
"""How long a stopped process may be waited for. A run's other ranks notice before, and know at which token."""

INTERRUPT_S = 5.0
"""How long ranks may take to end calls that were interrupted while they were being sent."""

OnEvent = Callable[[Rank, dict[str, Any]], None]


@dataclass(frozen=True, slots=True)
class Pending:
    """A call that is on its way on one rank; `result` is ipyparallel's handle."""

    rank: Rank
    name: str
    result: ipp.AsyncResult

    @property
    def done(self) -> bool:
        return bool(self.result.ready())


class _Lost:
    """The outcome of a call whose engine ended."""


class _Running:
    """The outcome of a call that has none yet."""


class StandingStill:
    """Sees which ranks' processes have been stopped for too long; ask it often."""

    def __init__(self, watch: "Watch | None") -> None:
        self._watch = watch
        self._since: dict[Rank, float] = {}
        self._awake = AwakeClock()  # what was frozen together with this kernel has not been silent

    def too_long(self) -> set[Rank]:
        """Those that have stood still for `SILENT_S`."""
        now_s = self._awake()
        standing = self._watch.stopped() if self._watch else set()
        self._since = {rank: self._since.get(rank, now_s) for rank in standing}
        return {rank for rank, since_s in self._since.items() if now_s - since_s > SILENT_S}


class Watch(Protocol):
    """Knows which ranks are gone."""

    def lost(self) -> set[Rank]: ...

    def stopped(self) -> set[Rank]:
        """Ranks whose process stands still."""

    def name(self, rank: Rank) -> str:
        """How errors name a rank: ``Rank 1 (mini2, layers 14–27)``."""

    def why(self, rank: Rank) -> str:
        """Why a rank is lost, and how its log ends."""


@dataclass(slots=True)
class Remote:
    """Calls functions on ranks by name.

    Attributes:
        client: ipyparallel's client. It must not be called from two threads side by side: hold `lock`.
        table: Every rank's engine and process.
        watch: Knows which ranks are gone; None to trust that all are there.
        lock: Held for each submit; the waiting is done without it.
        ended: Once the cluster has been stopped: a sentence that says so.
        background: Held by the background run that has its turn.
    """

    client: ipp.Client
    table: Mapping[Rank, RankInfo]
    watch: Watch | None = None
    lock: threading.RLock = field(default_factory=threading.RLock)
    ended: str = ""
    background: threading.Lock = field(default_factory=threading.Lock)

    def call(
        self, rank: Rank | int, name: str, /, *args: Any, timeout_s: float | None = None, **kwargs: Any
    ) -> Any:
        """Call a function on one rank and wait for what it returns.

        Raises:
            MlxNbError: What the rank raised; a `RunError` if it was no error of ours.
            RankLostError: A rank ended meanwhile.
            RankSilentError: `timeout_s` went by without an answer.
        """
        return self.wait([self.submit(rank, name, *args, **kwargs)], timeout_s=timeout_s)[0]

    def call_all(self, name: str, /, *args: Any, timeout_s: float | None = None, **kwargs: Any) -> list[Any]:
        """Call a function on every rank; returns what they return, rank 0 first. Raises as `call` does."""
        return self.wait(self.submit_all(name, *args, **kwargs), timeout_s=timeout_s)

    def submit(
        self, rank: Rank | int, name: str, /, *args: Any, on_event: OnEvent | None = None, **kwargs: Any
    ) -> Pending:
        """Send a call to one rank without waiting.

        Args:
            rank: Where.
            name: A name in the rank's table of calls.
            args, kwargs: Plain data for the function.
            on_event: Gets the rank and each event that the call publishes, with its ``number``. It runs on
                ipyparallel's own thread: it must be short, must not raise, and must not call a rank.

        Raises:
            RankLostError: The rank is gone.
        """
        return self.submit_to([Rank(int(rank))], name, *args, on_event=on_event, **kwargs)[0]

    def _send(
        self, rank: Rank, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], on_event: OnEvent | None
    ) -> Pending:
        result = self.client[self.table[rank].engine].apply_async(RUN_THERE, name, args, kwargs)
        if on_event:
            for message in result._children:  # at once: the first event comes about 1 ms later
                message.iopub_callbacks.append(_relay(rank, on_event))
        return Pending(rank, name, result)

    def busy(self, rank: Rank) -> bool:
        """Whether it has not answered something that this kernel asked, ``%%px`` cells included."""
        uuid = self.client._engines.get(self.table[rank].engine)
        return bool(self.client._outstanding_dict.get(uuid))

    def submit_all(
        self, name: str, /, *args: Any, on_event: OnEvent | None = None, **kwargs: Any
    ) -> list[Pending]:
        """Send a call to every rank without waiting, rank 0 first; see `submit`."""
        return self.submit_to(sorted(self.table), name, *args, on_event=on_event, **kwargs)

    def submit_to(
        self, ranks: Sequence[Rank], name: str, /, *args: Any, on_event: OnEvent | None = None, **kwargs: Any
    ) -> list[Pending]:
        """Send a call to some ranks without waiting, in their order; see `submit`."""
        for rank in ranks:
            self._check(rank)  # all or none: a rank that got the call would wait for the one that did not
        sent: list[Pending] = []
        try:
            with held_back(), self.lock:
                sent = [self._send(rank, name, args, kwargs, on_event) for rank in ranks]
        except KeyboardInterrupt:
            # The caller gets no hold of these calls, so they are ended here.
            with suppress(MlxNbError, TimeoutError):
                self.interrupt()
                self._wait(sent, INTERRUPT_S)
            raise
        return sent

    def wait(self, pending: Sequence[Pending], *, timeout_s: float | None = None) -> list[Any]:
        """Wait for calls, and return what they returned, in their order. Raises as `call` does.

        Ctrl-C interrupts the ranks and is raised again; whoever wants what the ranks then return
        (a text so far) catches it and waits for the same calls once more.
        """
        try:
            self._wait(pending, timeout_s)
        except KeyboardInterrupt:
            with suppress(TimeoutError):  # a rank that is gone confirms no signal
                self.interrupt()
            raise
        outcomes = [_outcome(one) for one in pending]
        gone = self.lost() | {one.rank for one, what in zip(pending, outcomes, strict=True) if what is _Lost}
        failures = [what for what in outcomes if isinstance(what, Failure)]
        failures.sort(
            key=lambda failure: isinstance(failure.error, RunAbortedError)
        )  # the cause before its echoes
        unanswered = any(what is _Lost or what is _Running for what in outcomes)
        if gone and (unanswered or any(isinstance(f.error, RunError | ClusterError) for f in failures)):
            # A lost rank is the cause, and a run that failed the consequence; a user's mistake stays one.
            cause = RankTraceback(failures[0].traceback) if failures else None
            raise self.lost_error(gone) from cause
        if failures:
            raise failures[0].error from RankTraceback(failures[0].traceback)
        return outcomes

    def lost(self) -> set[Rank]:
        """Ranks that are gone; none once the cluster has been stopped."""
        return set() if self.ended or self.watch is None else self.watch.lost()

    def out_of_reach(self) -> set[Rank]:
        """Ranks that will not answer now: lost ones, and those whose process stands still."""
        return self.lost() | (self.watch.stopped() if self.watch else set())

    def interrupt(self, timeout_s: float = 5.0) -> None:
        """Interrupt what the ranks run, as Ctrl-C would; returns when the signals were delivered.

        The signal goes through each engine's nanny: sent through mpirun it would end the whole set.
        """
        self._signal("SIGINT", timeout_s)

    def ask_to_pause(self, timeout_s: float = 5.0) -> None:
        """Let the free run that is under way stand still on every rank; returns when the signals were delivered."""
        self._signal("SIGUSR2", timeout_s)

    def _signal(self, name: str, timeout_s: float) -> None:
        with self.lock:
            sent = self.client.send_signal(name, targets=self.client.ids, block=False)
        sent.result(timeout_s)

    def lost_error(self, gone: set[Rank]) -> RankLostError:
        """The error that names the lost ranks, why they are lost, and how their logs end."""
        why = self.watch.why if self.watch else lambda _rank: "it does not answer"
        text = " ".join(f"{self._name(rank)} is lost: {why(rank)}." for rank in sorted(gone))
        return RankLostError(text, "Type: %mlx_cluster restart")

    def _wait(self, pending: Sequence[Pending], timeout_s: float | None) -> None:
        """Return when all calls are done, or some will never be."""
        awake = AwakeClock()
        began_s = awake()
        give_up_s = float("inf")
        standing = StandingStill(self.watch)
        while waiting := [one for one in pending if not one.done]:
            waiting[0].result.wait(SLICE_S)
            now_s = awake()
            if self.ended:
                raise ClusterError(self.ended, "Type: %mlx_cluster start")
            failures = [what for one in pending if isinstance(what := _outcome(one), Failure)]
            if failures or self.lost():
                silence = any(isinstance(failure.error, RankSilentError) for failure in failures)
                give_up_s = min(give_up_s, now_s + (SILENT_GRACE_S if silence else GRACE_S))
            if now_s > give_up_s:
                return
            too_long = standing.too_long()
            if silent := [one for one in waiting if one.rank in too_long]:
                raise self.silent_error(silent, SILENT_S, "; its process is stopped")
            if timeout_s is not None and now_s - began_s > timeout_s and not all(one.done for one in waiting):
                raise self.silent_error(waiting, now_s - began_s)

    def silent_error(self, waiting: Sequence[Pending], waited_s: float, why: str = "") -> RankSilentError:
        """The error that names the ranks that have not answered."""
        names = ", ".join(self._name(one.rank) for one in waiting)
        has = "has" if len(waiting) == 1 else "have"
        return RankSilentError(
            f"{names} {has} been silent for {waited_s:.0f} s, in {waiting[0].name}{why}.",
            "Type: %mlx_cluster restart",
        )

    def _name(self, rank: Rank) -> str:
        return self.watch.name(rank) if self.watch else f"Rank {rank} ({self.table[rank].host})"

    def check(self) -> None:
        """Raise if the cluster was stopped, or has lost a rank.

        Raises:
            ClusterError, RankLostError: It has.
        """
        for rank in self.table:
            self._check(rank)

    def _check(self, rank: Rank) -> None:
        if self.ended:
            raise ClusterError(self.ended, "Type: %mlx_cluster start")
        if rank not in self.table:
            last = len(self.table) - 1
            raise ClusterError(f"There is no rank {rank}.", f"The ranks of this cluster are 0–{last}.")
        if rank in self.lost():
            raise self.lost_error({rank})


def ask(
    client: ipp.Client,
    engines: Sequence[EngineId],
    name: str,
    timeout_s: float,
    look: Callable[[], None] = lambda: None,
) -> dict[EngineId, Any]:
    """Call a function on engines whose ranks are not known yet; `look` is called meanwhile, and may raise.

    Raises:
        TimeoutError: Not all answered in time.
        MlxNbError: What one of them raised.
    """
    pending = {e: Pending(Rank(-1), name, client[e].apply_async(RUN_THERE, name, (), {})) for e in engines}
    awake = AwakeClock()
    end_s = awake() + timeout_s
    for one in pending.values():
        while not one.done:
            one.result.wait(SLICE_S)
            look()
            if awake() > end_s:
                raise TimeoutError(f"{name} was not answered in {timeout_s:.0f} s")
    outcomes = {engine: _outcome(one) for engine, one in pending.items()}
    for engine, what in outcomes.items():
        if isinstance(what, Failure):
            raise what.error from RankTraceback(what.traceback)
        if what is _Lost:
            raise RankLostError(f"Engine {engine} ended while it started.", "Type: %mlx_cluster logs")
    return outcomes


def _outcome(one: Pending) -> Any:
    """What a call has come to: its value, a `Failure`, `_Lost` or `_Running`."""
    if not one.done:
        return _Running
    try:
        return one.result.get(0)
    except ipp.error.RemoteError as error:
        if error.ename == "EngineError":
            return _Lost
        # Raised outside the rank's own net: the import of the engine's code, or the arguments' unpickling.
        ours = RunError(
            f"Rank {one.rank} failed in {one.name}: {error.ename}: {error.evalue}",
            "To see where, type: %mlx_cluster logs",
        )
        return Failure(error=ours, rank=one.rank, traceback=str(error.traceback or ""))


def _relay(rank: Rank, on_event: OnEvent) -> Callable[[dict[str, Any]], None]:
    """A callback for ipyparallel's message stream that passes on the events in it."""

    def relay(message: dict[str, Any]) -> None:
        if message["header"]["msg_type"] == "data_message":
            on_event(rank, deserialize_object(message["buffers"])[0])

    return relay
