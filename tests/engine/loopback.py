"""Ranks in one process and one thread: the engine's own stages and runs over a `LoopbackWorld`."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import greenlet
import numpy as np

from mlx_nb.engine.drive import Driver
from mlx_nb.engine.interrupt import Interrupt
from mlx_nb.engine.run import Run
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.position import Position
from mlx_nb.shared.request import GenerateOptions, RunRequest
from mlx_nb.shared.strides import Stride

PROMPT = tuple((place * 7) % 101 for place in range(21))
CHUNK = 8  # three chunks, so that masks of a second multi-token chunk are tried


def make_stages(folder: Path, split: Sequence[int], dtype: str | None = None, **wishes: Any) -> list[Stage]:
    """A stage for each rank."""
    transports = LoopbackWorld(len(split)).transports()
    return [
        Stage(folder.name, folder, transport, split=split, dtype=dtype, **wishes) for transport in transports
    ]


def request_for(kind: str = "generate", **options: Any) -> RunRequest:
    """The prompt in three chunks."""
    request_for.last += 1  # type: ignore[attr-defined]
    known = {"max_tokens": 12, "prefill_step_size": CHUNK, **options}
    return RunRequest(
        run_id=request_for.last,  # type: ignore[attr-defined]
        tokens=PROMPT,
        options=GenerateOptions(**known),
        kind=kind,
    )


request_for.last = 0  # type: ignore[attr-defined]


def drive(runs: list[Run], at_each: Callable[[list[Run]], None] = lambda _runs: None) -> list[Run]:
    """Give each rank its turn until all have finished; `at_each` is called after every turn."""
    while alive := [run for run in runs if not run.greenlet.dead]:
        for run in alive:
            run.stepping = False
            run.greenlet.parent = greenlet.getcurrent()
            run.greenlet.switch()
            at_each(runs)
    return runs


def generate(stages: list[Stage], **options: Any) -> tuple[list[int], list[Run]]:
    """The generated tokens of a free run, and the runs."""
    runs = drive([stage.open_run(request) for request in [request_for(**options)] for stage in stages])
    assert len({tuple(run.tokens) for run in runs}) == 1  # every rank knows them all
    return runs[-1].tokens[len(PROMPT) :], runs


def logits(stages: list[Stage], chunk: int = CHUNK) -> np.ndarray:
    """The prompt's logits, fed in chunks."""
    request = request_for("logits", prefill_step_size=chunk)
    return np.concatenate(drive([stage.open_run(request) for stage in stages])[-1].rows)


class Stepper:
    """Gives the ranks their turns as the notebook does (`client/debugger.py`), without a notebook."""

    def __init__(self, stages: list[Stage], **options: Any) -> None:
        request = request_for(**options)
        self.runs = [stage.open_run(request) for stage in stages]
        self.driver = Driver(Interrupt())
        self.rank = 0
        self.position: Position | None = None
        self.go("token")

    def go(self, name: str, **more: Any) -> Position | None:
        """A stride; None once the run has ended."""
        stride: Stride = Stride(name=name, num_ranks=len(self.runs), **more)
        if self.position is not None:
            here = self.position
            stride = replace(stride, kind=here.kind, module=here.module, call=here.call, depth=here.depth)
        while True:
            outcome: Outcome = self.driver.step(self.runs[self.rank], stride)
            stride = outcome.stride or stride
            if outcome.kind == "stop":
                self.position = outcome.position
                return self.position
            if outcome.kind == "finished":
                drive(self.runs)
                self.position = None
                return None
            self.rank = (self.rank + 1) % len(self.runs)

    @property
    def tokens(self) -> list[int]:
        return self.runs[-1].tokens[len(PROMPT) :]

    def close(self) -> None:
        for run in self.runs:
            run.stage.close_run(run.request.run_id)
