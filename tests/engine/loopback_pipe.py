"""A notebook's `Pipe` over ranks in one process: the client's own code, the engine's own calls, no MPI.

One rank at a time moves while a run is stepped, so they may share a thread. A free run over several ranks may not.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.remote import Pending
from mlx_nb.engine import pipes
from mlx_nb.engine.calls import pipe_call
from mlx_nb.engine.stage import Stage
from mlx_nb.shared.errors import RunAbortedError
from tests.engine.loopback import PROMPT, make_stages


class LoopbackRemote:
    """Makes each call at once, on the stage of the rank that it is for."""

    ended = ""

    def __init__(self, pipe_id: str, size: int) -> None:
        self.pipe_id, self.size = pipe_id, size

    def lost(self) -> set[int]:
        return set()

    def out_of_reach(self) -> set[int]:
        return set()

    def submit(self, rank: int, name: str, _pipe_id: str, *args: Any, on_event: Any = None, **kw: Any) -> Any:
        try:
            function = pipe_call(name)
            assert function is not None, name
            value = function(f"{self.pipe_id}@{rank}", *args, **kw)
        except Exception as error:  # noqa: BLE001 - raised where it is waited for
            value = error
        return Pending(rank, name, SimpleNamespace(ready=lambda: True, value=value))  # type: ignore[arg-type]

    def submit_to(self, ranks: Sequence[int], name: str, *args: Any, **kw: Any) -> list[Any]:
        return [self.submit(rank, name, *args, **kw) for rank in ranks]

    def wait(self, pending: Sequence[Any], timeout_s: float | None = None) -> list[Any]:
        values = [one.result.value for one in pending]
        errors = [value for value in values if isinstance(value, Exception)]
        errors.sort(key=lambda error: isinstance(error, RunAbortedError))
        if errors:
            raise errors[0]
        return values

    def call(self, rank: int, name: str, *args: Any, **kw: Any) -> Any:
        return self.wait([self.submit(rank, name, *args, **kw)])[0]


class LoopbackPipe(Pipe):
    """A pipe over stages that are made here; leave it with `unload`."""

    def __init__(
        self,
        folder: Path,
        split: Sequence[int],
        change: Callable[[Stage], None] | None = None,
        dtype: str | None = None,
    ) -> None:
        self.stages = make_stages(folder, split, dtype)
        cluster: Any = SimpleNamespace(pipes=[], name="loopback", ranks=len(split))
        super().__init__(cluster, folder.name, {"split": list(split), "ranks": len(split)})
        cluster.remote = LoopbackRemote(self.pipe_id, len(split))
        for stage in self.stages:
            if change:
                change(stage)
            pipes.PIPES[f"{self.pipe_id}@{stage.rank}"] = stage
        self._shards = [stage.loaded() for stage in self.stages]
        self.plan = self._make_plan()
        cluster.pipes.append(self)

    def begin_at(self, **options: Any) -> Any:
        """`debug` of the prompt in three chunks."""
        return self.debug(list(PROMPT), **{"max_tokens": 5, "prefill_step_size": 8, **options})

    def unload(self) -> None:
        if current.dbg is not None and current.dbg.pipe is self:
            current.dbg.close()
        for stage in self.stages:
            stage.close()
            pipes.PIPES.pop(f"{self.pipe_id}@{stage.rank}", None)
