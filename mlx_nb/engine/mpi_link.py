"""The transport over MPI: non-blocking sends straight out of MLX's memory, polled receives.

Three facts shape it (measured, see ARCHITECTURE.md):

- A pending `Isend` needs its sender to keep entering MPI: over TCP, 64 KB and more never arrive
  while the sender is elsewhere. A progress thread tests the requests while any is pending. It
  touches MPI only, never MLX, whose streams belong to one thread.
- A blocking `Recv` burns a core and hangs for ever when the peer dies: receives are polled.
- What an interrupted run left in flight must not be taken for the next run's data: the run's id is
  the message tag, and strangers are drained.
"""

import contextlib
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from mpi4py import MPI

from mlx_nb.engine.envelope import Coming, Reader, Writer
from mlx_nb.engine.pytree import Tree
from mlx_nb.engine.transport import Arrival
from mlx_nb.shared.awake import AwakeClock
from mlx_nb.shared.errors import RankLostError, RunAbortedError, RunError, RunInterruptedError

NAP_S = 0.001
HEARTBEAT_S = 1.0
STALE_S = 30.0
_HEARTBEAT, _ABORT, _INTERRUPT = 1, 2, 3
_GONE = "Type: %mlx_cluster restart"


@dataclass(slots=True)
class _Incoming:
    """A value that is on its way into memory."""

    coming: Coming
    request: MPI.Request
    started: float


@dataclass(slots=True)
class _Outgoing:
    """Requests under way, and what they read from: neither may go before MPI is done with it."""

    run_id: int
    requests: list[MPI.Request]
    keep: list[Any] = field(default_factory=list)


class MpiLink:
    """One rank's links over two communicators of its own: values, and signals (heartbeat, abort)."""

    def __init__(self, world: MPI.Intracomm | None = None) -> None:
        comm: MPI.Intracomm = world or MPI.COMM_WORLD
        self.rank, self.size = comm.rank, comm.size
        self._values: MPI.Intracomm = comm.Dup()
        self._signals: MPI.Intracomm = comm.Dup()
        self._tag_limit = comm.Get_attr(MPI.TAG_UB) or 32767
        self._incoming: dict[tuple[int, int], _Incoming] = {}
        self._writers: dict[tuple[int, int], Writer] = {}
        self._readers: dict[tuple[int, int], Reader] = {}
        self._outgoing: deque[_Outgoing] = deque()
        self._aborted: dict[int, RunError] = {}
        self._runs: set[int] = set()
        self._heard: set[int] = set()
        self._stale: dict[int, float] = {}
        self._awake = AwakeClock()  # the progress thread keeps it going while there are runs
        self._last_seen = dict.fromkeys(range(self.size), self._awake())
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._closed = False
        self._thread = threading.Thread(target=self._keep_moving, name="mlx_nb progress", daemon=True)
        self._thread.start()

    def send(self, target: int, run_id: int, value: Tree) -> None:
        """Start sending a tree as one message, each array from where MLX holds it."""
        parts = self._writers.setdefault((target, run_id), Writer()).pack(value)
        with self._reporting(target):
            request = self._values.Isend(parts.buffer, target, self._tag(run_id))
        parts.datatype.Free()
        if request.Test():
            return  # a small message is gone at once: nobody needs to look after it
        with self._lock:
            self._outgoing.append(_Outgoing(run_id, [request], parts.keep))
        self._wake.set()

    def poll(self, source: int, run_id: int) -> Arrival | None:
        """The next value of this run from `source`, if it has arrived whole."""
        key = (source, run_id)
        with self._reporting(source):
            if key not in self._incoming and not self._begin_receiving(source, run_id):
                return None
            incoming = self._incoming[key]
            if not incoming.request.Test():
                return None
        del self._incoming[key]
        self._hear(source)
        value, size_bytes = self._readers[key].unpack(incoming.coming)
        return Arrival(value=value, size_bytes=size_bytes, seconds=time.monotonic() - incoming.started)

    def abort(self, run_id: int, reason: str, *, interrupted: bool = False) -> None:
        """Tell every other rank that this run is given up; a dead rank is passed over."""
        text = reason[:500].encode()
        kind = _INTERRUPT if interrupted else _ABORT
        for target in self._others():
            with contextlib.suppress(MPI.Exception):
                request = self._signals.Isend([_signal(kind, run_id, text), MPI.BYTE], target, kind)
                with self._lock:
                    self._outgoing.append(_Outgoing(run_id, [request]))
        self._wake.set()

    def check(self, run_id: int) -> None:
        """Read the signals; raise if another rank has given this run up."""
        self._read_signals()
        if given_up := self._aborted.pop(run_id, None):
            raise given_up

    def silent_s(self, source: int) -> float:
        """Seconds since `source` last gave a sign of life, without those in which this rank stood still itself."""
        return self._awake() - self._last_seen[source]

    def begin(self, run_id: int) -> None:
        """Send signs of life until `end`, and count the others' silence.

        From now, if this run is new here or a rank has not begun it. A run in the background begins again with every
        piece, and all send signs of life between them.
        """
        self._read_signals()
        if run_id not in self._runs:
            self._heard.clear()
        now = self._awake()
        for rank in self._last_seen.keys() - self._heard:
            self._last_seen[rank] = now
        self._runs.add(run_id)
        self._wake.set()

    def end(self, run_id: int) -> None:
        """This rank has left the run."""
        self._runs.discard(run_id)

    def forget(self, run_id: int) -> None:
        """Receive and drop what a run left in flight, now and for a while to come.

        A large message that nobody receives would keep its sender's request pending for ever.
        """
        self._aborted.pop(run_id, None)
        for key in [key for key in self._incoming if key[1] == run_id]:
            left = self._incoming.pop(key)
            # A request that is posted writes into this memory whenever the bytes come.
            with self._lock:
                self._outgoing.append(_Outgoing(run_id, [left.request], left.coming.parts.keep))
        for links in (self._writers, self._readers):
            for key in [key for key in links if key[1] == run_id]:
                del links[key]
        self._stale[run_id] = time.monotonic()
        self._wake.set()

    def close(self) -> None:
        """Stop the progress thread; the communicators end with the process."""
        self._closed = True
        self._wake.set()
        self._thread.join(timeout=2)

    def _hear(self, source: int) -> None:
        self._last_seen[source] = self._awake()
        self._heard.add(source)

    def _tag(self, run_id: int) -> int:
        return run_id % self._tag_limit

    def _others(self) -> list[int]:
        return [rank for rank in range(self.size) if rank != self.rank]

    def _begin_receiving(self, source: int, run_id: int) -> bool:
        status = MPI.Status()
        message = self._values.Improbe(source, self._tag(run_id), status)
        if message is None:
            return False
        started = time.monotonic()
        reader = self._readers.setdefault((source, run_id), Reader())
        coming = reader.prepare(status.Get_count(MPI.BYTE))
        request = message.Irecv(coming.parts.buffer)
        coming.parts.datatype.Free()
        self._incoming[source, run_id] = _Incoming(coming, request, started)
        return True

    def _read_signals(self) -> None:
        status = MPI.Status()
        while True:
            try:
                message = self._signals.Improbe(MPI.ANY_SOURCE, MPI.ANY_TAG, status)
                if message is None:
                    return
                text = bytearray(status.Get_count(MPI.BYTE))
                message.Recv([text, MPI.BYTE])
            except MPI.Exception:
                return  # a dead peer shows where a value is awaited from it
            self._hear(status.Get_source())
            if text[0] in (_ABORT, _INTERRUPT):
                error = RunInterruptedError if text[0] == _INTERRUPT else RunAbortedError
                reason = bytes(text[9:]).decode(errors="replace")
                advice = "The other ranks stopped with it; the cluster still works."
                self._aborted[int.from_bytes(text[1:9], "little")] = error(reason, advice)

    def _keep_moving(self) -> None:
        beat = 0.0
        while not self._closed:
            self._awake()
            busy = self._test_outgoing()
            self._drain_stale()
            if self._runs and time.monotonic() - beat > HEARTBEAT_S:
                beat = time.monotonic()
                self._send_heartbeats()
            if busy:
                time.sleep(NAP_S)
            else:
                woken = self._wake.wait(0.05 if self._stale else HEARTBEAT_S / 2 if self._runs else None)
                self._wake.clear()
                if woken:  # whoever sent mostly polls now, and moves it along; two threads at it are slower
                    time.sleep(NAP_S)

    def _test_outgoing(self) -> bool:
        with self._lock:
            pending = list(self._outgoing)
        for item in pending:
            try:
                done = all([request.Test() for request in item.requests])
            except MPI.Exception:
                done = True  # the peer is gone: nothing will read these bytes
            if done:
                with self._lock, contextlib.suppress(ValueError):
                    self._outgoing.remove(item)
        return bool(self._outgoing)

    def _drain_stale(self) -> None:
        for run_id, since in list(self._stale.items()):
            for source in self._others():
                with contextlib.suppress(MPI.Exception):
                    while message := self._values.Improbe(source, self._tag(run_id), status := MPI.Status()):
                        message.Recv([bytearray(status.Get_count(MPI.BYTE)), MPI.BYTE])
            if time.monotonic() - since > STALE_S:
                del self._stale[run_id]

    def _send_heartbeats(self) -> None:
        for target in self._others():
            with contextlib.suppress(MPI.Exception):
                request = self._signals.Isend([_signal(_HEARTBEAT, 0, b""), MPI.BYTE], target, _HEARTBEAT)
                with self._lock:
                    self._outgoing.append(_Outgoing(0, [request]))

    @contextlib.contextmanager
    def _reporting(self, peer: int) -> Any:
        try:
            yield
        except MPI.Exception as error:
            raise RankLostError(f"Rank {peer} is gone ({error.Get_error_string()}).", _GONE) from error


def _signal(kind: int, run_id: int, text: bytes) -> bytearray:
    return bytearray(bytes([kind]) + run_id.to_bytes(8, "little") + text)
