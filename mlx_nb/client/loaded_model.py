"""What is known of a model over ranks, and how to call it there; `Pipe` is what users hold."""

import secrets
from dataclasses import replace
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from mlx_nb.client.prompts import plain_prompt
from mlx_nb.shared.errors import ClusterError, NoModelError, RemoteCodeError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.loaded import LoadedShard
from mlx_nb.shared.model_sizes import SiteTable
from mlx_nb.shared.plan import Plan, explain_even, split_layers
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.text import format_table
from mlx_nb.shared.tokens import PromptTokens

if TYPE_CHECKING:
    from mlx_nb.client.cluster import Cluster
    from mlx_nb.client.remote import OnEvent, Pending


class LoadedModel:
    """A model over ranks, as far as nothing runs; only `Pipe` is made of it.

    Attributes:
        cluster: Where it lives.
        name: The model as it was asked for.
        pipe_id: Its name on the ranks.
        plan: Which rank holds which layers.
        last: The last run's `Generation`, or several prompts' list; None before the first.
    """

    plan: Plan

    def __init__(self, cluster: "Cluster", name: str, wishes: dict[str, Any], why_so: str) -> None:
        self.cluster = cluster
        self.name = name
        self.pipe_id = secrets.token_hex(4)
        self.last: Any = None
        self._why_so = why_so
        self._wishes = wishes
        self._unloaded = False
        self._found = False  # by an attaching kernel, which does not know what was asked for
        self._shards: list[LoadedShard] = []

    def submit_all(
        self, name: str, *args: Any, on_event: "OnEvent | None" = None, **kwargs: Any
    ) -> "list[Pending]":
        """Send a call about this pipe to every rank that takes part in it."""
        count = self._wishes.get("ranks") or len(self.cluster)
        ranks = [Rank(rank) for rank in range(count)]
        return self.cluster.remote.submit_to(ranks, name, self.pipe_id, *args, on_event=on_event, **kwargs)

    def call_all(self, name: str, *args: Any) -> list[Any]:
        """Call a function about this pipe on every rank that takes part in it, and wait."""
        return self.cluster.remote.wait(self.submit_all(name, *args))

    def _make_plan(self) -> Plan:
        first = self._shards[0]
        counts = [shard.layers[1] - shard.layers[0] for shard in self._shards]
        known = split_layers(first.num_layers, len(counts), counts, model=self.name)
        shards = tuple(
            replace(cut, host=there.host, weight_bytes=there.weight_bytes)
            for cut, there in zip(known, self._shards, strict=True)
        )
        split = self._wishes.get("split", "even")
        reason = explain_even(first.num_layers, len(counts)) if split == "even" else "as asked for"
        reason = self._why_so or reason
        if self._found:
            reason = "as it was loaded"
        if first.split_reason:
            reason = f"{reason}; {first.split_reason}"
        return Plan(
            model=self.name,
            shards=shards,
            hidden_size=first.hidden_size,
            dtype=first.dtype,
            reason=reason,
            legal_cuts=first.cuts,
        )

    # What it is -----------------------------------------------------------------------------------

    @property
    def path(self) -> str:
        return self._shards[0].folder

    @property
    def adapter_path(self) -> str | None:
        return self._shards[0].adapter or None

    @property
    def dtype(self) -> str:
        return self._shards[0].dtype

    @property
    def dtype_wish(self) -> str | None:
        """The dtype that was asked for; None for the device's own."""
        return self._shards[0].dtype_wish

    @property
    def trusted(self) -> bool:
        """Whether code of the model's own may run."""
        return self._shards[0].trusted

    @property
    def code_path(self) -> str:
        """The file under work that it was loaded with; empty without one."""
        return self._shards[0].code

    @property
    def num_ranks(self) -> int:
        return len(self._shards)

    @property
    def shards(self) -> tuple[LoadedShard, ...]:
        """What each rank reported when it had loaded, rank 0 first."""
        return tuple(self._shards)

    @property
    def loaded(self) -> bool:
        """Whether ranks hold it: not after `Pipe.unload`, nor when the cluster has ended."""
        return not (self._unloaded or self.cluster.remote.ended)

    def __repr__(self) -> str:
        first, plan = self._shards[0], self.plan
        state = (
            "unloaded" if self._unloaded else "cluster ended" if self.cluster.remote.ended else self._state()
        )
        width = f" · D {first.hidden_size}" if first.hidden_size else ""
        adapted = f" + adapter {PurePath(first.adapter).name}" if first.adapter else ""
        adapted += f" · {PurePath(first.code).name}" if first.code else ""
        head = f"Pipe {self.name}{adapted} · {first.num_layers} layers{width} · {first.dtype} · {state}"
        if self._unloaded:  # the ranks hold nothing of it any more
            return f"{head}\n next: %mlx_load {self.name}"
        return f'{head}\n{format_table(plan.rows(), right=(3,))}\n next: pipe.generate("…")  pipe.debug("…")'

    def _state(self) -> str:
        busy = self.last is not None and self.last.state in ("running", "paused")
        return self.last.state if self.last is not None and busy else "idle"

    # Tokens ---------------------------------------------------------------------------------------

    def tokens(self, prompt: Prompt, *, raw: bool = False) -> PromptTokens:
        """A prompt's tokens, with their text and which of them the chat template added.

        Raises:
            PromptError: It has no tokens, or the model has no tokenizer.
        """
        self._check()
        return self.cluster.remote.call(Rank(0), "tokens", self.pipe_id, plain_prompt(prompt), raw=raw)

    def sites(self) -> SiteTable:
        """Every site of the model with shapes, dtypes, parameters and bytes."""
        from mlx_nb.client.planning import sites

        if self.code_path:
            raise RemoteCodeError(
                f"Shape tables run no code of yours ({PurePath(self.code_path).name}).",
                "Type: pipe.trace('…', sites='**').table(), for the shapes of a run",
            )
        return sites(self.name)

    def encode(self, prompt: Prompt, *, raw: bool = False) -> list[int]:
        """A prompt's token ids; ids are taken as they are. Raises as `tokens`."""
        self._check()
        return self.cluster.remote.call(Rank(0), "encode", self.pipe_id, plain_prompt(prompt), raw=raw)

    def _check(self) -> None:
        if ended := self.cluster.remote.ended:
            when = ended.rpartition(" at ")[2].rstrip(".")
            raise ClusterError(
                f"This pipe's cluster {self.cluster.name} ended at {when}.",
                f"Type: %mlx_cluster start, then %mlx_load {self.name} (next time: --keep 8h).",
            )
        if self._unloaded:
            raise NoModelError(f"This pipe ({self.name}) was unloaded.", f"Type: %mlx_load {self.name}")
