"""Timelines as a pipeline makes them, of any length."""

from mlx_nb.shared.timeline import COMPUTE, DECODE, PREFILL, SEND, WAIT, RankTimes, Span, Timeline


def make(
    chunks: int = 8, tokens: int = 12, ranks: int = 2, chunk_s: float = 0.18, token_s: float = 0.06
) -> Timeline:
    """Every rank takes up a pass when the one before has sent it; decoding waits for the token from the last."""
    spans: list[list[Span]] = [[] for _ in range(ranks)]
    free = [0.0] * ranks
    came = 0.0
    for index in range(chunks + tokens):
        decode = index >= chunks
        start = index - chunks + 64 * chunks if decode else index * 64
        facts = {
            "index": index,
            "phase": DECODE if decode else PREFILL,
            "start": start,
            "stop": start + (1 if decode else 64),
        }
        came = came if decode else 0.0
        for rank in range(ranks):
            begin = max(free[rank], came)
            if begin > free[rank]:
                spans[rank].append(Span(kind=WAIT, begin_s=free[rank], end_s=begin, **facts))
            end = begin + (token_s if decode else chunk_s) * (1 + 0.2 * rank) + 0.002 * (index % 3)
            spans[rank].append(Span(kind=COMPUTE, begin_s=begin, end_s=end, **facts))
            free[rank] = end
            if rank < ranks - 1:
                spans[rank].append(Span(kind=SEND, begin_s=end, end_s=end + 0.002, **facts))
                free[rank] = end + 0.002
            came = free[rank]
    return Timeline([RankTimes(spans=tuple(one)) for one in spans])
