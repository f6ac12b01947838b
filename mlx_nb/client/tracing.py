"""Recording on the ranks: a trace's wish travels with each run's request, its values stay where they were made."""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.capture import Wanted
from mlx_nb.client.trace import Trace, TraceInfo
from mlx_nb.shared.capture import SiteRecord, TraceWish
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.position import Summary
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.tensor import Details, DetailsWish, Window, WindowWish

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

Sites = str | Sequence[str]


class RankSource:
    """Values on the ranks of a pipe."""

    def __init__(self, pipe: "Pipe", trace_id: str) -> None:
        self.pipe, self.trace_id = pipe, trace_id

    @property
    def where(self) -> str:
        return "on the rank" if self.pipe.num_ranks == 1 else "on their ranks"

    def records(self) -> list[SiteRecord]:
        return [record for found in self.pipe.call_all("captures", self.trace_id) for record in found]

    def slices(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        return self._ask("capture_slices", wanted, parts=4)

    def summaries(self, wanted: Sequence[Wanted]) -> list[Summary]:
        return self._ask("capture_summaries", wanted, parts=3)

    def look(self, record: SiteRecord, axis: int, wish: WindowWish | DetailsWish) -> Window | Details:
        starts = tuple(one.start for one in record.passes)
        key = (self.trace_id, *record.key)
        remote = self.pipe.cluster.remote
        return remote.call(Rank(record.rank), "look_at_capture", self.pipe.pipe_id, key, starts, axis, wish)

    def texts(self, ids: Sequence[int]) -> list[str]:
        if not self.pipe.shards[0].has_tokenizer:
            return []
        return self.pipe.cluster.remote.call(Rank(0), "pieces", self.pipe.pipe_id, list(ids))

    def token_statistics(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        return self._ask("capture_token_statistics", wanted, parts=3)

    def drop(self) -> None:
        self.pipe.call_all("drop_trace", self.trace_id)

    def _ask(self, name: str, wanted: Sequence[Wanted], parts: int) -> list[Any]:
        """One call for each rank that has something, all at once; the answers in the order asked for."""
        remote = self.pipe.cluster.remote
        ranks = sorted({record.rank for record, *_ in wanted})
        pending = []
        for rank in ranks:
            there = [
                ((self.trace_id, *record.key), *rest)[:parts]
                for record, *rest in wanted
                if record.rank == rank
            ]
            pending.append(remote.submit(Rank(rank), name, self.pipe.pipe_id, there))
        answers = {rank: iter(found) for rank, found in zip(ranks, remote.wait(pending), strict=True)}
        return [next(answers[record.rank]) for record, *_ in wanted]


class LiveTrace(Trace):
    """A trace whose values are on the ranks: ``with pipe.trace(sites=…) as trace: …`` records the runs inside."""

    def __init__(self, pipe: "Pipe", sites: Sites, budget_bytes: int, given: str = "") -> None:
        """Of nothing yet; `given` names values that the run goes on with. Raises as `Pipe.trace`."""
        wanted = [part.strip() for part in (sites.split(",") if isinstance(sites, str) else sites)]
        wanted = [part for part in wanted if part]
        if not wanted:
            raise OptionError("A trace needs a site.", 'Type: pipe.trace(…, sites="layers.*.resid_post")')
        if not isinstance(budget_bytes, int) or budget_bytes < 1:
            raise OptionError(
                f"budget_bytes is a number of bytes, not {budget_bytes!r}.", "Type: budget_bytes=2 * 2**30"
            )
        first = pipe.shards[0]
        modules = first.places
        self._pipe = pipe
        self._patterns = tuple(resolve_site(site, modules, first.layer_paths) for site in wanted)
        self._budget_bytes, self._given = budget_bytes, given
        self._trace_id = secrets.token_hex(4)
        info = TraceInfo(
            model=pipe.name,
            dtype=pipe.dtype,
            modules=modules,
            layer_paths=tuple(first.layer_paths),
            sites=tuple(wanted),
            layers=tuple(shard.layers for shard in pipe.shards),
        )
        super().__init__(RankSource(pipe, self._trace_id), info)

    def wish(self, prompt: Sequence[int]) -> TraceWish:
        """What the next run records."""
        self.info.prompts.append(tuple(prompt))
        self._dropped = False
        return TraceWish(
            trace_id=self._trace_id,
            run=len(self.info.prompts) - 1,
            patterns=self._patterns,
            budget_bytes=self._budget_bytes,
            given=self._given,
        )

    def __enter__(self) -> "LiveTrace":
        if self._pipe.tracing is not None:
            raise OptionError(
                "A trace of this pipe is recording already.",
                "Record all sites in one: pipe.trace(sites=[…, …])",
            )
        self._pipe.tracing = self
        return self

    def __exit__(self, *_: object) -> None:
        self._pipe.tracing = None

    def run(self, prompt: Prompt, max_tokens: int, options: dict[str, Any]) -> None:
        """Feed a prompt and record it; tokens are generated as `Pipe.generate` does. Raises as that."""
        if isinstance(max_tokens, bool) or not hasattr(max_tokens, "__index__") or max_tokens < 0:
            raise OptionError(f"max_tokens is 0 or more, not {max_tokens!r}.", "Type: max_tokens=16")
        wishes = {**options, "max_tokens": max(1, max_tokens)}
        with self:
            request = self._pipe.request_with(prompt, wishes, "generate" if max_tokens else "prefill")
            run = self._pipe.begin_request(request, prompt)
            self.gen = run.generation
            for _ in run.pieces():
                pass
