"""The calls on what may be wrong with a rank.

Every function here is called by name through `engine/calls.py`, on one rank or on all.
"""

from collections.abc import Callable
from typing import Any

from mlx_nb.engine.checkup import check_up
from mlx_nb.engine.pipes import DRIVER, stage_of
from mlx_nb.shared.findings import RankFindings
from mlx_nb.shared.request import RunRequest


def check(pipe_id: str, request: RunRequest) -> RankFindings:
    """Check this rank's share, in a run of its own. Called on all ranks together."""
    with DRIVER.interrupt.listening():
        return check_up(stage_of(pipe_id), request, DRIVER)


CALLS: dict[str, Callable[..., Any]] = {check.__name__: check}
