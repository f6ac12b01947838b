"""Which rank holds which layers: pure arithmetic over a model's layer count.

What a layer weighs is measured elsewhere (`engine/weigh.py`), since that needs the model.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

from mlx_nb.shared.errors import PlanError
from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.legal import choose_counts
from mlx_nb.shared.model_sizes import ModelSizes
from mlx_nb.shared.text import format_layers, format_size, format_table


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
    """

    model: str
    shards: tuple[Shard, ...]
    hidden_size: int = 0
    dtype: str = ""
    reason: str = ""
    context: int = 0
    notes: tuple[str, ...] = field(default=())

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
                    [f"of {format_size(shard.memory_bytes)}" if shard.memory_bytes else ""]
                    if self.context
                    else []
                ),
            ]
            for shard in self.shards
        ]

    def __repr__(self) -> str:
        head = f"Plan {self.model} · {self.num_layers} layers · {self.num_ranks} ranks"
        if self.dtype:
            head += f" · {self.dtype}"
        lines = [head, format_table(self.rows(), right=(3,))]
        if self.reason:
            lines.append(f" cut: {self.reason}")
        if self.context:
            lines.append(f" KV caches at {self.context:,} tokens; weights, KV caches and memory are per rank")
        lines += [f" note: {note}" for note in self.notes]
        return "\n".join(lines)


def split_evenly(num_layers: int, num_ranks: int) -> list[int]:
    """Layers per rank, rank 0 first; a remainder goes to the first ranks.

    >>> split_evenly(30, 4)
    [8, 8, 7, 7]

    Raises:
        PlanError: There are more ranks than layers, or no ranks.
    """
    if num_ranks < 1:
        raise PlanError(
            f"A model cannot be split over {num_ranks} ranks.", "Type: %mlx_cluster start --ranks 2"
        )
    if num_ranks > num_layers:
        raise PlanError(
            f"{num_ranks} ranks are more than the model's {num_layers} layers.",
            f"Type: %mlx_load MODEL --ranks {num_layers}",
        )
    each, more = divmod(num_layers, num_ranks)
    return [each + (rank < more) for rank in range(num_ranks)]


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
        counts = split_evenly(num_layers, num_ranks)
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
                f"Type: %mlx_load {model} --split {even}",
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


# What a rank needs besides weights and KV caches: the runtime, activations of a chunk, buffers on their way.
RESERVE_BYTES = 512 * 1024 * 1024


def make_plan(
    sizes: ModelSizes, hosts: Sequence[str], memories: Sequence[int], split: str | Sequence[int]
) -> Plan:
    """The plan of a model over hosts, against their memory where it is known.

    Args:
        sizes: What the model weighs.
        hosts: A host name for each rank.
        memories: Bytes for each rank, 0 where unknown.
        split: ``even``, ``memory``, or the layers per rank.

    Raises:
        PlanError: The split does not fit the model, or a rank's share does not fit its memory.
    """
    count = len(sizes.layers)
    reason = "even, a remainder to the first ranks" if split == "even" else "as asked for"
    if split == "memory":
        counts: str | Sequence[int] = split_by_memory(sizes, memories)
        reason = "in proportion to each rank's memory, embedding, head and KV caches counted"
    else:
        counts = split
    asked = [len(shard.layers) for shard in split_layers(count, len(hosts), counts, model=sizes.model)]
    legal, moved = choose_counts(sizes.cuts, asked, even=isinstance(split, str), model=sizes.model)
    reason = f"{reason}; {moved}" if moved else reason
    cut = split_layers(count, len(hosts), legal, model=sizes.model)
    shards = tuple(
        replace(
            shard,
            host=host,
            weight_bytes=sizes.weight_bytes(shard.layers.start, shard.layers.stop),
            kv_bytes=sizes.kv_bytes(shard.layers.start, shard.layers.stop),
            memory_bytes=memory,
        )
        for shard, host, memory in zip(cut, hosts, memories, strict=True)
    )
    _check_fit(sizes, shards, memories)
    return Plan(
        model=sizes.model,
        shards=shards,
        hidden_size=sizes.hidden_size,
        dtype=sizes.dtype,
        reason=reason,
        context=sizes.context,
        notes=sizes.notes,
    )


def split_by_memory(sizes: ModelSizes, memories: Sequence[int]) -> list[int]:
    """Layers per rank so that the fullest rank is as little full as it can be.

    Every way of cutting is a path through (ranks, layers); the best is found by dynamic programming over
    the share of its memory that the fullest rank would use.

    Raises:
        PlanError: A rank's memory is not known, or there are more ranks than layers.
    """
    ranks, count = len(memories), len(sizes.layers)
    split_evenly(count, ranks)  # refuses more ranks than layers
    if not all(memories):
        raise PlanError(
            "The memory of a host is not known, so the layers cannot be divided by it.",
            "Say it: hosts=['mini1:16GB', 'mini2:64GB'], or load over a running cluster.",
        )

    def fullness(rank: int, start: int, stop: int) -> float:
        return (sizes.weight_bytes(start, stop) + sizes.kv_bytes(start, stop)) / memories[rank]

    best: list[dict[int, tuple[float, int]]] = [{0: (0.0, 0)}]
    for rank in range(ranks):
        reached: dict[int, tuple[float, int]] = {}
        for start, (worst, _) in best[-1].items():
            stops = [count] if rank == ranks - 1 else range(start + 1, count - (ranks - rank - 1) + 1)
            for stop in stops:
                if stop <= start or stop in sizes.cuts.refused:
                    continue
                value = max(worst, fullness(rank, start, stop))
                if stop not in reached or value < reached[stop][0]:
                    reached[stop] = (value, start)
        if not reached:  # too few legal cuts: an even split says so
            return split_evenly(count, ranks)
        best.append(reached)
    ends = [count]
    for rank in range(ranks, 0, -1):
        ends.append(best[rank][ends[-1]][1])
    ends.reverse()
    return [stop - start for start, stop in pairwise(ends)]


def _check_fit(sizes: ModelSizes, shards: Sequence[Shard], memories: Sequence[int]) -> None:
    for shard in shards:
        needed = shard.weight_bytes + shard.kv_bytes + RESERVE_BYTES
        if not shard.memory_bytes or needed <= shard.memory_bytes:
            continue
        where = f"rank {shard.rank}" + (f" ({shard.host})" if shard.host else "")
        raise PlanError(
            f"{sizes.model} does not fit: {where} would need {format_size(needed)} for {shard.describe()} "
            f"and {sizes.context:,} tokens of KV cache, and has {format_size(shard.memory_bytes)}.",
            _what_fits(sizes, memories),
        )


def _what_fits(sizes: ModelSizes, memories: Sequence[int]) -> str:
    """The smallest change that would fit: another cut, or more ranks like the largest."""
    if all(memories):
        counts = split_by_memory(sizes, memories)
        start, fits = 0, True
        for count, memory in zip(counts, memories, strict=True):
            needed = sizes.weight_bytes(start, start + count) + sizes.kv_bytes(start, start + count)
            fits, start = fits and needed + RESERVE_BYTES <= memory, start + count
        if fits:
            return f"It fits with: split={counts}"
    most = max(memories)
    for ranks in range(len(memories) + 1, len(sizes.layers) + 1):
        counts = split_by_memory(sizes, [most] * ranks)
        start, worst = 0, 0
        for count in counts:
            worst = max(
                worst, sizes.weight_bytes(start, start + count) + sizes.kv_bytes(start, start + count)
            )
            start += count
        if worst + RESERVE_BYTES <= most:
            return f"It fits on {ranks} ranks of {format_size(most)}, or with a shorter context."
    return "Take a quantised model, a shorter context, or hosts with more memory."
