"""Which rank holds which layers: pure arithmetic over a model's layer count.

What a layer weighs is measured elsewhere (`engine/weigh.py`), since that needs the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlx_nb.shared.errors import PlanError
from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.legal import LegalCuts
from mlx_nb.shared.text import as_html, format_layers, format_size, format_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """The layers that one rank holds.

    Shapes:
        input: ``[B, L]`` token ids if `is_first`, else the ``[B, L, D]`` hidden state.
        output: ``[B, L, V]`` logits if `is_last`, else the ``[B, L, D]`` hidden state.

    Attributes:
        rank: The rank that holds them.
        layers: Layers held, half-open, numbered as in the whole model.
        num_layers: Layers in the whole model, so that a shard knows if it is last.
        host: The rank's host name, empty while unknown.
        weight_bytes: Bytes of the tensors that this rank evaluates, in the compute dtype
            (a tied embedding counts on both ends); 0 while unknown.
        kv_bytes: Bytes of its KV caches at the plan's context; 0 while unknown.
        memory_bytes: Memory of its host for this rank; 0 while unknown.
    """

    rank: Rank
    layers: range
    num_layers: int
    host: str = ""
    weight_bytes: int = 0
    kv_bytes: int = 0
    memory_bytes: int = 0

    @property
    def is_first(self) -> bool:
        """Whether this rank embeds the tokens."""
        return self.layers.start == 0

    @property
    def is_last(self) -> bool:
        """Whether this rank makes the logits and samples."""
        return self.layers.stop == self.num_layers

    def describe(self) -> str:
        """What the rank holds, as the views print it: ``embed, layers 0–14``."""
        before = ["embed"] if self.is_first else []
        after = ["norm", "head"] if self.is_last else []
        return ", ".join([*before, format_layers(self.layers), *after])


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """All shards of a model, and why they are cut there.

    Attributes:
        model: The model as the user named it.
        shards: One per rank, rank 0 first; together they hold every layer exactly once.
        hidden_size: Width D of the hidden state, 0 if the config does not tell.
        dtype: The dtype that the ranks compute in.
        reason: Why the cuts are where they are, as a sentence.
        context: Tokens that the KV caches are counted for; 0 where they are not.
        notes: What a reader should know besides.
        legal_cuts: Where the model may be cut, and what goes along there; None while unknown.
        ranks_a_host: How many ranks divide their host's memory; 1 where each has its own.
    """

    model: str
    shards: tuple[Shard, ...]
    hidden_size: int = 0
    dtype: str = ""
    reason: str = ""
    context: int = 0
    notes: tuple[str, ...] = field(default=())
    legal_cuts: LegalCuts | None = None
    ranks_a_host: int = 1

    @property
    def num_layers(self) -> int:
        return self.shards[0].num_layers

    @property
    def num_ranks(self) -> int:
        return len(self.shards)

    def rank_of(self, layer: LayerIndex) -> Rank:
        """The rank that holds a layer.

        Raises:
            PlanError: No rank holds it.
        """
        for shard in self.shards:
            if layer in shard.layers:
                return shard.rank
        raise PlanError(
            f"{self.model} has no layer {layer}; its layers are 0–{self.num_layers - 1}.",
            f"Type a layer from 0 to {self.num_layers - 1}.",
        )

    def rows(self) -> list[list[str]]:
        """The table that the pipe and the plan both print."""
        return [
            [
                f"rank {shard.rank}",
                shard.host,
                shard.describe(),
                format_size(shard.weight_bytes) if shard.weight_bytes else "",
                *([f"+ KV {format_size(shard.kv_bytes)}"] if self.context else []),
                *(
                    [f"of {format_size(shard.memory_bytes)}{self._share}" if shard.memory_bytes else ""]
                    if self.context
                    else []
                ),
            ]
            for shard in self.shards
        ]

    @property
    def _share(self) -> str:
        """Which part of its host's memory a rank's is, where ranks divide it."""
        if self.ranks_a_host == 1:
            return ""
        part = {2: "half", 3: "a third", 4: "a quarter"}.get(self.ranks_a_host, f"1/{self.ranks_a_host}")
        return f" ({part} of this host)"

    def __repr__(self) -> str:
        plural = "" if self.num_ranks == 1 else "s"
        head = f"Plan {self.model} · {self.num_layers} layers · {self.num_ranks} rank{plural}"
        if self.dtype:
            head += f" · {self.dtype}"
        lines = [head, format_table(self.rows(), right=(3,))]
        if self.reason:
            lines.append(f" cut: {self.reason}")
        if self.legal_cuts is not None:
            lines.append(f" legal cuts: {self.legal_cuts}")
        if self.context:
            lines.append(f" KV caches at {self.context:,} tokens; weights, KV caches and memory are per rank")
        lines += [f" note: {note}" for note in self.notes]
        return "\n".join(lines)

    def _repr_html_(self) -> str:
        return as_html(repr(self))


def split_evenly(num_layers: int, num_ranks: int, model: str = "smollm2") -> list[int]:
    """Layers per rank, rank 0 first; a remainder goes to the first ranks.

    >>> split_evenly(30, 4)
    [8, 8, 7, 7]

    Raises:
        PlanError: There are more ranks than layers, or no ranks.
    """
    if num_ranks < 1:
        raise PlanError(
            f"A model cannot be split over {num_ranks} ranks.",
            f"Take from 1 to {num_layers} ranks, one layer or more for each.",
        )
    if num_ranks > num_layers:
        raise PlanError(
            f"{num_ranks} ranks are more than the model's {num_layers} layer{'s' if num_layers > 1 else ''}.",
            f"Type: %mlx_load {model} --ranks {num_layers}",
        )
    each, more = divmod(num_layers, num_ranks)
    return [each + (rank < more) for rank in range(num_ranks)]


def explain_even(num_layers: int, num_ranks: int) -> str:
    """Why an even split cuts where it does.

    >>> explain_even(30, 4), explain_even(28, 2)
    ('even: 7 layers a rank, one more on ranks 0–1', 'even: 14 layers a rank')
    """
    each, more = divmod(num_layers, num_ranks)
    if not more:
        return f"even: {each} layers a rank"
    which = "rank 0" if more == 1 else f"ranks 0–{more - 1}"
    return f"even: {each} layers a rank, one more on {which}"


def split_layers(
    num_layers: int, num_ranks: int, split: str | Sequence[int] = "even", *, model: str = "the model"
) -> tuple[Shard, ...]:
    """Cut the layers into one shard per rank.

    Args:
        num_layers: Layers in the whole model.
        num_ranks: Ranks that take part.
        split: ``"even"``, or the layers per rank, rank 0 first.
        model: The model's name, for errors.

    Raises:
        PlanError: The split does not cover the layers, or not with one or more each.
    """
    if isinstance(split, str):
        if split != "even":
            raise PlanError(
                f"There is no split '{split}'.",
                "Type one of: --split even, or layers per rank such as --split 14,16",
            )
        counts = split_evenly(num_layers, num_ranks, model)
    else:
        counts = [int(count) for count in split]
        shown = ",".join(map(str, counts))
        even = ",".join(map(str, split_evenly(num_layers, max(1, min(num_ranks, num_layers)))))
        if sum(counts) != num_layers:
            short = num_layers - sum(counts[:-1])
            better = ",".join(map(str, [*counts[:-1], short])) if short > 0 else even
            raise PlanError(
                f"--split {shown} covers {sum(counts)} layers; {model} has {num_layers}.",
                f"Type: %mlx_load {model} --split {better if len(counts) == num_ranks else even}",
            )
        if len(counts) != num_ranks:
            raise PlanError(
                f"--split {shown} names {len(counts)} ranks; {num_ranks} take part.",
                f"Type: %mlx_load {model} --split {even}"
                if num_ranks <= num_layers
                else f"Type: %mlx_load {model} --ranks {num_layers}",
            )
        if min(counts) < 1:
            raise PlanError(
                f"--split {shown} leaves a rank without layers.", f"Type: %mlx_load {model} --split {even}"
            )
    shards, start = [], 0
    for rank, count in enumerate(counts):
        shards.append(Shard(rank=Rank(rank), layers=range(start, start + count), num_layers=num_layers))
        start += count
    return tuple(shards)
