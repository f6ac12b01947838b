"""The calls on what may be wrong with a rank.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

from collections.abc import Callable
from typing import Any

from mlx_nb.engine.checkup import check_up
from mlx_nb.engine.pipes import DRIVER, PIPES, stage_of
from mlx_nb.shared.faults import FaultSpec
from mlx_nb.shared.findings import RankFindings
from mlx_nb.shared.request import RunRequest


def check(pipe_id: str, request: RunRequest) -> RankFindings:
    """Check this rank's share, in a run of its own. Called on all ranks together."""
    with DRIVER.interrupt.listening():
        return check_up(stage_of(pipe_id), request, DRIVER)


def put_fault(pipe_id: str, spec: FaultSpec) -> list[str]:
    """Put a fault in; the sites that are wrong now. Raises as `Faults.put`."""
    return stage_of(pipe_id).faults.put(spec)


def take_fault(pipe_id: str, number: int) -> None:
    """Take a fault out."""
    if pipe_id in PIPES:
        PIPES[pipe_id].faults.take(number)


CALLS: dict[str, Callable[..., Any]] = {
    function.__name__: function for function in (check, put_fault, take_fault)
}
