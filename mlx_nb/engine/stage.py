"""One rank's share of one model, and the runs that go through it."""

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import mlx.core as mx
import numpy as np

from mlx_nb.engine.captures import CaptureStore
from mlx_nb.engine.faults import Faults
from mlx_nb.engine.history import trimmed
from mlx_nb.engine.hooks import Hooks
from mlx_nb.engine.kept import KeptKV, keep
from mlx_nb.engine.kv import state_arrays
from mlx_nb.engine.kv_read import array_named, read_entry, without_entry
from mlx_nb.engine.patching import Patches
from mlx_nb.engine.probe import Probe
from mlx_nb.engine.rows import Answer
from mlx_nb.engine.run import Place, Run
from mlx_nb.engine.share import Share
from mlx_nb.engine.transfer import as_numpy
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.kv_report import KVReport
from mlx_nb.shared.request import RunRequest
from mlx_nb.shared.text import format_count, format_size

LARGE_KV_BYTES = 16 * 1024 * 1024
"""KV caches of the run before last that are worth the time to look for them: Python's own search may come much later."""


class Stage(Share):
    """The code on one rank that runs its shard.

    Attributes:
        runs: The runs that are open here, by id.
        captures: What traces have recorded.
        faults: What is wrong with it on purpose.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Load a share; arguments as `Share`."""
        super().__init__(*args, **kwargs)
        self.hooks = Hooks(self.model)
        self.patches = Patches()
        self.faults = Faults(self)
        self._begin_without_runs()

    def __repr__(self) -> str:
        runs = format_count(len(self.runs), "run") + " open" if self.runs else "idle"
        size = f"{format_size(self.weight_bytes)} {self.dtype}"
        return (
            f"Stage {self.name} · rank {self.rank} of {self.size} · {self.shard.describe()} · {size} · {runs}"
        )

    def _begin_without_runs(self) -> None:
        self.runs: dict[int, Run] = {}
        self.captures = CaptureStore(self.rank)
        self.last_kv: list[Any] = []
        self.kept: dict[str, KeptKV] = {}
        self.last_run: Run | None = None
        self.laid_out: Run | None = None
        self.reported_kv: list[Any] = []  # what the last report was about, so that its handles stay true

    # Runs ---------------------------------------------------------------------------------------

    def open_run(self, request: RunRequest) -> Run:
        """Take part in a run from here on."""
        run = Run(self, request)
        if run.recorder is not None:
            run.probe = Probe(run, keeps_past=False)
            self.hooks.acquire()
        self.runs[request.run_id] = run
        return run

    def rewind(self, run_id: int, new_id: int, index: int, place: Place, *, keep: bool = False) -> Run:
        """Another run, which shares a run's past up to a pass.

        Args:
            run_id: The run; also one that has ended, as long as no other has ended since.
            new_id: The new one's id.
            index: The pass that it stands before.
            place: Where it will go; what was changed there or behind is dropped.
            keep: Whether the old one stays open.

        Raises:
            RunError: The run's past is gone.
        """
        known = self.runs.get(run_id, self.last_run)
        if known is None or known.request.run_id != run_id:
            raise RunError(f"Rank {self.rank} has forgotten this run.", "Begin it again: dbg.restart()")
        request = replace(known.request, run_id=new_id)
        if index not in known.history.snapshots:
            request = replace(request, reused=0)  # from the very start, with empty KV caches
        made = Run(self, request, known, index)
        made.forget_from(place)
        made.probe = Probe(made)
        self.hooks.acquire()
        self.runs[new_id] = made
        if not keep:
            self.close_run(run_id)
        return made

    def trim(
        self, run_id: int, new_id: int, index: int, fed: int, generated: Sequence[int], count: int
    ) -> Run:
        """Another run, which shares a run's past but for its last tokens; the old one stays open. Raises as `trimmed`."""
        known = self.run(run_id)
        snapshot, kv = trimmed(known, index, fed, generated, count)
        made = Run(self, replace(known.request, run_id=new_id), known, -1)
        made.resume_at(snapshot, kv)
        made.history = known.history.until(snapshot.index - 1)
        made.forget_from((snapshot.index, 0, 0))
        made.probe = Probe(made)
        self.hooks.acquire()
        self.runs[new_id] = made
        return made

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Let what runs inside leave no trace: the last run, and what lies for a post-mortem, stay as they are."""
        known = self.last_run, self.last_kv, self.reported_kv
        try:
            yield
        finally:
            self.last_run, self.last_kv, self.reported_kv = known

    def run(self, run_id: int) -> Run:
        """An open run.

        Raises:
            RunError: It is not open here (it ended, or the cluster was restarted).
        """
        if run_id not in self.runs:
            raise RunError(
                f"Rank {self.rank} knows no run {run_id}; it has ended.", "Start another: pipe.generate(…)"
            )
        return self.runs[run_id]

    def close_run(self, run_id: int) -> None:
        """Leave a run: its greenlet ends, its messages are drained, its KV caches stay as the last ones."""
        run = self.runs.pop(run_id, None)
        if run is None:
            return
        if run is self.laid_out:
            self.laid_out = None
        if run.greenlet and not run.greenlet.dead:
            run.greenlet.throw()
        run.stop = run.fallen = None
        if run.probe is not None:
            run.probe = None
            self.hooks.release()
        before, self.last_run, self.last_kv = self.last_run, run, run.kv
        if before is not None and before is not run:
            size_bytes = sum(array.nbytes for entry in before.kv for array in state_arrays(entry))
            del before
            if size_bytes > LARGE_KV_BYTES:
                gc.collect()  # a run, its recorder and its frames point at each other
        if run.request.keeps and run.state != "failed":
            self.kept[run.request.kept] = keep(run)
        self.transport.end(run_id)
        self.transport.forget(run_id)

    def lay_out(self, run_id: int) -> None:
        """Keep a run that has failed as it lies, here or on another rank, for `pipe.pm`; the one before goes."""
        run = self.runs.get(run_id)
        if run is None:
            return
        if self.laid_out is not None and self.laid_out.request.run_id != run_id:
            self.close_run(self.laid_out.request.run_id)
        self.laid_out = self.last_run = run
        self.last_kv = run.kv
        if run.state == "running":
            run.state = "failed"
        if run.probe is not None:
            run.probe = None
            self.hooks.release()
        self.transport.end(run_id)
        self.transport.forget(run_id)

    def close(self) -> None:
        """Leave every run."""
        for run_id in list(self.runs):
            self.close_run(run_id)

    # KV caches of the last run ----------------------------------------------------------------------

    def kv_report(self, run_id: int | None = None) -> KVReport:
        """What this rank's KV caches hold: of a run that stands, or since the last one."""
        run = self.runs.get(run_id, self.last_run) if run_id is not None else self.last_run
        if run is None:
            return KVReport(prompt_tokens=0, generated_tokens=0, entries=())
        prompt = run.batch.held
        now = run.current
        report = KVReport(
            prompt_tokens=prompt,
            generated_tokens=run.batch.end - run.batch.width,
            standing=f"{now.phase} {now.start}:{now.stop}" if now and run.request.run_id in self.runs else "",
            cut_short=run.state in ("interrupted", "failed"),
            entries=(),
        )
        self.reported_kv = run.kv
        expected = max(report.expected, now.stop if now and report.standing else 0)
        entries = [
            read_entry(
                run.kv[place],
                rank=self.rank,
                layer=layer,
                place=place,
                expected=expected,
                unused=self._never_writes(run.kv[place], place),
                reads=self.cuts.reads_kv_of.get(layer, ()),
            )
            for layer, places in sorted(run.layer_places.items())
            for place in places
        ]
        entries += [
            without_entry(rank=self.rank, layer=layer, reads=self.cuts.reads_kv_of[layer])
            for layer, places in run.layer_places.items()
            if not places and layer in self.cuts.reads_kv_of
        ]
        return replace(report, entries=tuple(sorted(entries, key=lambda entry: entry.layer)))

    def _never_writes(self, entry: Any, place: int) -> bool:
        """Whether the model makes an entry and leaves it alone: it was not written when the pass was rehearsed."""
        written = {there for there, _ in self.cuts.rehearsal.writes}
        return hasattr(entry, "update_and_fetch") and place not in written and not state_arrays(entry)

    def kv_slice(self, place: int, name: str, index: tuple[Any, ...]) -> np.ndarray:
        """A copy of a slice of one buffer, over its valid positions.

        Raises:
            RunError: There is no such buffer any more.
        """
        return as_numpy(self.kv_array(place, name)[index])

    def kv_array(self, place: int, name: str) -> mx.array:
        """The valid part of one buffer. Raises as `kv_slice`."""
        kv = self.reported_kv
        found = array_named(kv[place], name) if place < len(kv) else None
        if found is None:
            raise RunError(f"Rank {self.rank} has no {name} at place {place}.", "Look again: pipe.kv_cache()")
        return found

    # What a run tells -----------------------------------------------------------------------------

    def on_prefill(self, run: Run, done: int, total: int) -> None:
        """A chunk of the prompt has gone through this rank."""
        if self.shard.is_last:
            self.publish({"kind": "prefill", "run_id": run.request.run_id, "done": done, "total": total})

    def on_token(self, run: Run, answer: Answer, row: int) -> None:
        """A token has been chosen; the last rank tells the notebook."""
        if self.shard.is_last:
            event = {
                "row": row,
                "token": answer.token,
                "text": answer.text,
                "finish": answer.finish,
                "prompt_s": run.prompt_s,
                "decode_s": run.decode_s,
            }
            self.publish({"kind": "token", "run_id": run.request.run_id, **event})
