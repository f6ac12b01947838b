"""``pipe.check()``: a check-up of every rank, and of what only shows between them."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from mlx_nb.client.current import current
from mlx_nb.client.processors import read_options
from mlx_nb.shared.findings import CheckReport, Finding, RankFindings
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.text import format_number, format_size

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

PROMPT_TOKENS, CHUNK, NEW_TOKENS = 10, 5, 2
"""The check's own run: short, but in chunks, since a mask's mistakes only show from the second one on."""


def check(pipe: "Pipe", prompt: Prompt | None, options: dict[str, Any]) -> CheckReport:
    """Check a pipe. Arguments and errors as `Pipe.check`."""
    of_the_last_run = _last_run(pipe)  # first: the check's own run has KV caches, too
    known = read_options({"max_tokens": NEW_TOKENS, "prefill_step_size": CHUNK, **options})
    request = pipe.request(prompt if prompt is not None else _tokens(pipe), known)
    ranks: list[RankFindings] = pipe.call_all("check", replace(request, trace=None))
    if any(one.state == "interrupted" for one in ranks):
        raise KeyboardInterrupt
    found = [finding for one in ranks for finding in one.findings]
    if all(one.state == "finished" for one in ranks):
        found += [*_agree(ranks), *_boundaries(ranks), *_offsets(ranks, found)]
    found += _whole(ranks, pipe.shards[0].num_layers)
    found = _causes(found) + of_the_last_run
    return CheckReport(
        model=pipe.name, ranks=len(ranks), findings=tuple(found), looked=_looked(pipe, ranks, request.tokens)
    )


def _tokens(pipe: "Pipe") -> list[int]:
    """A prompt of its own: ids from all over the vocabulary, none of which ends a text."""
    first = pipe.shards[0]
    vocabulary = max(first.vocabulary, 2)
    found = [(7 + place * (vocabulary // PROMPT_TOKENS + 3)) % vocabulary for place in range(PROMPT_TOKENS)]
    return [token if token not in first.stop_ids else (token + 1) % vocabulary for token in found]


def _last_run(pipe: "Pipe") -> list[Finding]:
    """Whether the KV caches of the user's own last run agree."""
    if pipe.last is None and (current.dbg is None or current.dbg.pipe is not pipe):
        return []
    report = pipe.kv_cache().report
    if not report.headline:
        return []
    counted = [entry for entry in report if entry.offset >= 0 and not entry.unused]
    most = max(entry.offset for entry in counted)
    late = next(entry for entry in counted if entry.offset < most)
    return [
        Finding(
            kind="kv",
            rank=late.rank,
            site="the KV caches of your last run",
            what=f"{report.headline} (from layer {late.layer} on: {late.offset} of {most})",
            look="pipe.kv_cache()",
        )
    ]


def _agree(ranks: Sequence[RankFindings]) -> list[Finding]:
    """Whether all ranks fed the same tokens at the same positions."""
    told = ranks[-1]  # the last rank samples, so it is the one to believe
    found = []
    for one in ranks[:-1]:
        if one.tokens != told.tokens:
            place = next(
                (i for i, (a, b) in enumerate(zip(one.tokens, told.tokens, strict=False)) if a != b),
                min(len(one.tokens), len(told.tokens)),
            )
            has, should = (
                str(tokens[place]) if place < len(tokens) else "none" for tokens in (one.tokens, told.tokens)
            )
            what = f"token {place} is {has} here, and {should} on rank {told.rank}"
            found.append(
                Finding(
                    kind="tokens", rank=one.rank, site="the tokens", what=what, look="pipe.last.token_ids"
                )
            )
        elif one.spans != told.spans:
            what = f"its passes fed {_spans(one.spans)}, those of rank {told.rank} {_spans(told.spans)}"
            found.append(Finding(kind="tokens", rank=one.rank, site="the positions", what=what))
    return found


def _spans(spans: Sequence[tuple[int, int]]) -> str:
    return " ".join(f"{start}:{stop}" for start, stop in spans)


def _boundaries(ranks: Sequence[RankFindings]) -> list[Finding]:
    """Whether what a rank received is what the one before sent: shapes, dtypes, and every byte."""
    found = []
    for before, after in pairwise(ranks):
        site = f"the hop from rank {before.rank}"
        if len(before.sent) != len(after.received):
            what = f"{len(after.received)} values came of {len(before.sent)} that were sent"
            found.append(Finding(kind="crossing", rank=after.rank, site=site, what=what))
            continue
        for number, (sent, came) in enumerate(zip(before.sent, after.received, strict=True)):
            if sent == came:
                continue
            alike = str(sent) == str(came)
            what = (
                f"what came in pass {number} is not what was sent"
                if alike
                else f"{came} came, {sent} was sent"
            )
            found.append(
                Finding(
                    kind="crossing",
                    rank=after.rank,
                    site=site,
                    what=what,
                    look="dbg = pipe.debug(…); dbg.until('recv')",
                    at=(number, 0),
                )
            )
            break
    return found


def _offsets(ranks: Sequence[RankFindings], found: Sequence[Finding]) -> list[Finding]:
    """Whether every layer's KV cache has gone as far as the run, where nothing else was seen of it."""
    known = {one.layer for one in found if one.kind == "kv"}
    fed = ranks[-1].spans[-1][1] if ranks[-1].spans else 0
    return [
        Finding(
            kind="kv",
            rank=one.rank,
            site=f"KV cache, layer {layer}",
            what=f"its offset is {offset} after {fed} tokens: {abs(fed - offset)} {'behind' if offset < fed else 'ahead'}",
            layer=layer,
            look=f"pipe.kv_cache()[{layer}]",
            at=(len(one.spans), 0),
        )
        for one in ranks
        for layer, offset in one.offsets
        if offset >= 0 and offset != fed and layer not in known
    ]


def _whole(ranks: Sequence[RankFindings], num_layers: int) -> list[Finding]:
    """Whether every layer is on exactly one rank."""
    held = Counter(layer for one in ranks for layer in range(*one.layers))
    return [
        Finding(
            kind="layers",
            rank=-1,
            site=f"layer {layer}",
            what="no rank holds it" if not held[layer] else f"{held[layer]} ranks hold it",
            layer=layer,
            look="pipe.plan",
        )
        for layer in range(num_layers)
        if held[layer] != 1
    ]


def _causes(found: list[Finding]) -> list[Finding]:
    """Findings as they came about; what is only said once more by a later one is left away.

    A module with a wrong weight has a wrong output, and NaN that a module makes differs from what a fresh one makes.
    """
    weights = {one.site.rpartition(".")[0] for one in found if one.kind == "weights"}
    broken = {(one.rank, one.site) for one in found if one.kind in ("module", "between")}
    kept = [
        one
        for one in found
        if not (one.kind == "module" and one.site in weights)
        and not (one.kind == "nan" and ((one.rank, one.site) in broken or one.site in weights))
    ]
    if any(one.kind in ("module", "between", "weights", "calls", "nan") for one in kept):
        kept = [one for one in kept if one.kind != "flat"] + [one for one in kept if one.kind == "flat"]
    return sorted(kept, key=lambda one: (one.kind == "flat", one.at, one.rank))


def _looked(pipe: "Pipe", ranks: Sequence[RankFindings], prompt: Sequence[int]) -> tuple[str, ...]:
    """What a check has looked at."""
    last = ranks[-1]
    count, size = sum(one.parameters for one in ranks), sum(one.parameter_bytes for one in ranks)
    lines = [f"{count} tensors ({format_size(size)}) compared with {pipe.path}; every layer is on one rank"]
    if any(one.state != "finished" for one in ranks):
        return (*lines, "the check's run failed, so no more was looked at")
    fed = last.spans[-1][1] if last.spans else 0
    lines += [
        f"{fed} tokens fed in {len(last.spans)} passes, {min(fed, len(prompt))} of them the prompt's: "
        "tokens and positions agree on all ranks",
        f"{sum(one.modules for one in ranks)} module calls made again by fresh ones; "
        f"largest relative difference {format_number(max(one.worst for one in ranks))}",
    ]
    counted = [offset for one in ranks for _, offset in one.offsets if offset >= 0]
    if counted:
        lines.append(f"KV caches of {len(counted)} layers, each at offset {fed}")
    if sent := [crossed for one in ranks for crossed in one.sent]:
        lines.append(f"{len(sent)} hops came as they were sent, byte by byte: {sent[0]}")
    lines.append("no NaN or infinite values; the logits are not flat")
    if pipe.patches:
        lines.append(f"{len(pipe.patches)} patches were in force: pipe.patches")
    return tuple(lines)
