"""A plan against memory: which cut fits, which is refused, and what would fit instead."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

from mlx_nb.shared.errors import PlanError
from mlx_nb.shared.legal import choose_counts
from mlx_nb.shared.model_sizes import ModelSizes
from mlx_nb.shared.plan import Plan, Shard, explain_even, split_evenly, split_layers
from mlx_nb.shared.text import format_size

# What a rank needs besides weights and KV caches: the runtime, activations of a chunk, buffers on their way.
RESERVE_BYTES = 512 * 1024 * 1024

BY_MEMORY = "so that the fullest rank is as empty as can be, embedding, head and KV caches counted"


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
    reason = "as asked for"
    if split == "memory":
        counts: str | Sequence[int] = split_by_memory(sizes, memories)
        reason = BY_MEMORY
    else:
        counts = split
    asked = [len(shard.layers) for shard in split_layers(count, len(hosts), counts, model=sizes.model)]
    legal, moved = choose_counts(sizes.cuts, asked, even=isinstance(split, str), model=sizes.model)
    if split == "even":
        reason = explain_even(count, len(hosts))
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
    if all(memories):
        reason = f"{reason}; {_fullness(shards)}, {format_size(RESERVE_BYTES)} a rank for all else counted"
    return Plan(
        model=sizes.model,
        shards=shards,
        hidden_size=sizes.hidden_size,
        dtype=sizes.dtype,
        reason=reason,
        context=sizes.context,
        notes=sizes.notes,
        legal_cuts=sizes.cuts,
    )


def _fullness(shards: Sequence[Shard]) -> str:
    """How full the fullest rank and the emptiest are, in percent of what they may use."""
    full = [
        round(100 * (shard.weight_bytes + shard.kv_bytes + RESERVE_BYTES) / shard.memory_bytes)
        for shard in shards
    ]
    most, least = max(full), min(full)
    if most == least:
        return f"each rank is {most} % full"
    return f"rank {full.index(most)} is fullest, {most} % of its memory, rank {full.index(least)} emptiest, {least} %"


def split_by_memory(sizes: ModelSizes, memories: Sequence[int]) -> list[int]:
    """Layers per rank so that the fullest rank is as little full as it can be.

    Every way of cutting is a path through (ranks, layers); the best is found by dynamic programming over
    the share of its memory that the fullest rank would use.

    Raises:
        PlanError: A rank's memory is not known, or there are more ranks than layers.
    """
    ranks, count = len(memories), len(sizes.layers)
    split_evenly(count, ranks, sizes.model)  # refuses more ranks than layers
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
            _what_fits(sizes, shards, memories),
        )


def _what_fits(sizes: ModelSizes, shards: Sequence[Shard], memories: Sequence[int]) -> str:
    """The smallest change that would fit: another cut, a shorter context, or more ranks like the largest."""
    if all(memories):
        counts = split_by_memory(sizes, memories)
        start, fits = 0, True
        for count, memory in zip(counts, memories, strict=True):
            needed = sizes.weight_bytes(start, start + count) + sizes.kv_bytes(start, start + count)
            fits, start = fits and needed + RESERVE_BYTES <= memory, start + count
        if fits:
            return f"It fits with: split={counts}"
    shorter = _longest_context(sizes, shards)
    otherwise = f", or with context={shorter}" if shorter else ""
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
            return f"It fits on {ranks} ranks of {format_size(most)}{otherwise}."
    if shorter:
        return f"It fits with context={shorter}."
    return "Take a quantised model, or hosts with more memory."


def _longest_context(sizes: ModelSizes, shards: Sequence[Shard]) -> int:
    """Tokens, in whole hundreds, that these shards would have room for; 0 where not even the weights fit.

    KV caches of a window or a state do not grow with the context, so this may be less than what would fit.
    """
    rooms = [
        (shard.memory_bytes - shard.weight_bytes - RESERVE_BYTES) / shard.kv_bytes
        for shard in shards
        if shard.memory_bytes and shard.kv_bytes
    ]
    return max(0, int(sizes.context * min(rooms, default=0.0)) // 100 * 100)
