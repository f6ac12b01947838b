"""Sees which ranks of a cluster are gone, without asking them: a dead rank does not answer."""

import socket
from collections.abc import Callable, Mapping

from mlx_nb.client import logs
from mlx_nb.client.bringup import Running
from mlx_nb.client.processes import ProcessId
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.spec import RankInfo


class ClusterWatch:
    """Looks at the processes on this machine, and at what the controller says of the others."""

    def __init__(self, running: Running, holds: Callable[[Rank], str]) -> None:
        self._running = running
        self._holds = holds

    @property
    def _table(self) -> Mapping[Rank, RankInfo]:
        return self._running.table or {}

    def lost(self) -> set[Rank]:
        """Ranks whose process ended, whose engine the controller has lost, or all if mpirun or the controller ended."""
        if self._around():
            return set(self._table)
        known = set(self._running.client.ids) if self._running.client else set()
        return {rank for rank, info in self._table.items() if info.engine not in known or self._ended(info)}

    def name(self, rank: Rank) -> str:
        """How errors name a rank: ``Rank 1 (mini2, layers 14–27)``."""
        parts = (self._table[rank].host, self._holds(rank))
        return f"Rank {rank} ({', '.join(part for part in parts if part)})"

    def why(self, rank: Rank) -> str:
        """Why a rank is lost, and how its log ends."""
        info = self._table[rank]
        if self._ended(info):
            reason = f"its process {info.pid} ended"
        elif ended := self._around():
            reason = f"{ended} ended"
        else:
            reason = "the controller has lost its engine"
        words = logs.last_words(self._running.record.folder, rank)
        return f"{reason}; its log ends: {words}" if words else reason

    def _around(self) -> str:
        """Which of the processes without which no rank can be reached has ended."""
        for role, name in (("mpirun", "mpirun"), ("controller", "the controller")):
            process = self._running.process(role)
            if process and not process.alive:
                return name
        return ""

    def memory_bytes(self, info: RankInfo) -> int:
        """A rank's memory now, if it is on this machine; else what it said last."""
        return process_of(info).memory_bytes() if is_local(info) else info.memory_bytes

    def stopped(self) -> set[Rank]:
        """Ranks whose process exists and does not run: SIGSTOP, or a debugger. Seen on this machine only."""
        return {rank for rank, info in self._table.items() if is_local(info) and process_of(info).stopped}

    def _ended(self, info: RankInfo) -> bool:
        return is_local(info) and not process_of(info).alive


def is_local(info: RankInfo) -> bool:
    """Whether a rank's process is on this machine."""
    return info.host == socket.gethostname()


def process_of(info: RankInfo) -> ProcessId:
    """A rank's process; it means something on its own host only."""
    return ProcessId(info.pid, info.created_s, "engine")
