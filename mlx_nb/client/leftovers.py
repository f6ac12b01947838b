"""What clusters that ended badly have left on this machine: found by our own mark, and nothing else is touched."""

import os
from collections.abc import Iterator
from dataclasses import dataclass

import psutil

from mlx_nb.client import records
from mlx_nb.client.processes import CLUSTER_VARIABLE, end

WATCHDOG = "mlx_nb.client.watchdog"


@dataclass(frozen=True, slots=True)
class Leftover:
    """Processes of a cluster that nobody knows any more.

    Attributes:
        cluster: Its name.
        pids: Its processes.
    """

    cluster: str
    pids: tuple[int, ...]


def find_leftovers() -> list[Leftover]:
    """Processes of this user that carry a cluster's mark, where no record says that it runs and nobody watches over it.

    A cluster whose record lies elsewhere (another runtime directory) still has its watchdog, which ends it in
    time; it is somebody's, and is left alone.
    """
    # Dead records that nobody works on are deleted by the listing itself.
    running = {record.name for record in records.list_records()}
    by_name: dict[str, list[psutil.Process]] = {}
    for name, process in _marked():
        if name not in running:
            by_name.setdefault(name, []).append(process)
    unwatched = {name: found for name, found in by_name.items() if not any(map(_is_watchdog, found))}
    return [Leftover(name, tuple(sorted(p.pid for p in found))) for name, found in sorted(unwatched.items())]


def clean() -> list[Leftover]:
    """End every leftover; what was ended."""
    found = find_leftovers()
    for leftover in found:
        end(leftover.cluster, [])
    records.list_records()  # with its processes gone, a dead record is deleted too
    return found


def describe(ended: list[Leftover]) -> str:
    """What was ended, as a line for each cluster."""
    if not ended:
        return "Nothing was left behind."
    return "\n".join(
        f"Ended {len(one.pids)} process{'es' if len(one.pids) > 1 else ''} of {one.cluster}." for one in ended
    )


def _is_watchdog(process: psutil.Process) -> bool:
    try:
        return WATCHDOG in process.cmdline()
    except psutil.Error:
        return False  # it has just ended


def _marked() -> Iterator[tuple[str, psutil.Process]]:
    for process in psutil.process_iter():
        try:
            name = process.environ().get(CLUSTER_VARIABLE)
            if name and process.status() != psutil.STATUS_ZOMBIE and process.uids().real == os.getuid():
                yield name, process
        except (psutil.Error, OSError):
            continue
