"""Processes told apart by pid *and* creation time, so that a pid given away again is never killed."""

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass

import psutil

CLUSTER_VARIABLE = "MLX_NB_CLUSTER"
"""Environment variable that every process of a cluster carries; its value is the cluster's name."""

# /proc gives the boot time in whole seconds, and clock adjustments may move it by one.
CREATED_TOLERANCE_S = 1.5


@dataclass(frozen=True, slots=True)
class ProcessId:
    """One process, for as long as it lives.

    Attributes:
        pid: The operating system's number, which is given away again.
        created_s: When the process began, in seconds since the epoch.
        role: What it is for: ``mpirun``, ``controller``, ``engine``, ``nanny``, ``watchdog``, ``client``.
    """

    pid: int
    created_s: float
    role: str = ""

    def find(self) -> psutil.Process | None:
        """The living process, or None if it ended (a zombie has ended)."""
        try:
            process = psutil.Process(self.pid)
            same = abs(process.create_time() - self.created_s) < CREATED_TOLERANCE_S
            return process if same and process.status() != psutil.STATUS_ZOMBIE else None
        except psutil.Error:
            return None

    @property
    def alive(self) -> bool:
        return self.find() is not None

    @property
    def stopped(self) -> bool:
        """Whether it is there and stands still, by SIGSTOP or in a debugger's hands."""
        process = self.find()
        return process is not None and is_stopped(process)

    def memory_bytes(self) -> int:
        """Resident memory, 0 if the process ended."""
        process = self.find()
        try:
            return process.memory_info().rss if process else 0
        except psutil.Error:
            return 0

    def to_json(self) -> dict[str, object]:
        return asdict(self)


def is_stopped(process: psutil.Process) -> bool:
    """Whether a process stands still."""
    try:
        return process.status() in (psutil.STATUS_STOPPED, psutil.STATUS_TRACING_STOP)
    except psutil.Error:
        return False


def identify(pid: int | None = None, role: str = "") -> ProcessId:
    """The identity of a running process, by default this one.

    Raises:
        psutil.NoSuchProcess: There is none with this pid.
    """
    process = psutil.Process(pid)
    return ProcessId(process.pid, process.create_time(), role)


def descendants(root: ProcessId) -> list[psutil.Process]:
    """All living children of a process, and theirs; none if it ended."""
    process = root.find()
    try:
        return process.children(recursive=True) if process else []
    except psutil.Error:
        return []


def marked(name: str) -> list[psutil.Process]:
    """All processes whose environment carries the name of this cluster.

    Finds what a record cannot name yet: a process born between two writes of it.
    """
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(CLUSTER_VARIABLE) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def end(name: str, recorded: Iterable[ProcessId], *, spare: Sequence[int] = (), term_s: float = 3.0) -> float:
    """End a cluster's processes: SIGTERM, wait, SIGKILL; stopped ones are killed at once.

    Args:
        name: The cluster, whose mark the processes carry.
        recorded: Processes that are known by pid and creation time.
        spare: Pids to leave alone, such as the caller's own.
        term_s: Time that they have to end by themselves.

    Returns:
        Seconds until all had ended.
    """
    began_s = time.monotonic()
    victims = {p.pid: p for p in marked(name) if p.pid not in spare}
    for known in recorded:
        process = known.find()
        if process and process.pid not in spare:
            victims[process.pid] = process
    for process in victims.values():
        # One that is stopped is deaf to SIGTERM, and the time for it would be lost.
        _send(process, "kill" if is_stopped(process) else "terminate")
    _, left = psutil.wait_procs(list(victims.values()), timeout=term_s)
    # What was forked meanwhile is marked as well.
    late = {p.pid: p for p in [*left, *marked(name)] if p.pid not in spare}
    for process in late.values():
        _send(process, "kill")
    psutil.wait_procs(list(late.values()), timeout=5)
    return time.monotonic() - began_s


def _send(process: psutil.Process, how: str) -> None:
    with suppress(psutil.Error):  # it ended in the meantime, which is what was wanted
        getattr(process, how)()
