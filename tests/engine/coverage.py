"""The table of architectures in the book: ``python -m tests.engine.coverage notebooks/coverage.md``.

It makes a tiny random model of each, cuts it everywhere and compares with one process; some four minutes.
"""

import sys
from collections import Counter
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from tests.engine.architectures import CONFIGS, NOT_RUN, installed
from tests.engine.in_memory import CHUNK, DECODED, PROMPT, Ranks, difference, one_process, splits_of

EXACT, DIFFERS, REFUSED, NOT = "exact", "**differs**", "refused", "not run"


def row(name: str) -> tuple[str, str, str]:
    """Legal cuts, result and reason of one architecture."""
    if name in NOT_RUN:
        return "", NOT, f"{NOT_RUN[name][0].upper()}{NOT_RUN[name][1:]}."
    if name not in CONFIGS:
        return "", NOT, "No configuration yet: see `tests/engine/architectures.py`."
    ranks = Ranks.of(name)
    cuts = ranks.cuts
    if not cuts.legal:
        return "none", REFUSED, next(iter(cuts.refused.values()))
    wanted = one_process(ranks.models[0])
    allowed = [s for s in splits_of(cuts.num_layers) if not _starts(s) & cuts.refused.keys()]
    worst = max(difference(wanted, ranks.passes(counts)) for counts in allowed)
    legal = f"all {len(cuts.legal)}" if not cuts.refused else ", ".join(map(str, cuts.legal))
    forwards = [f for f in cuts.forwards.values() if f]
    told = forwarded(len(forwards), len(cuts.legal), _kinds(forwards)) if forwards else ""
    return legal, EXACT if worst == 0 else f"{DIFFERS} by {worst:.1e}", told


def forwarded(some: int, legal: int, kinds: str) -> str:
    """At how many of the legal cuts more than the hidden state goes over.

    >>> forwarded(5, 7, "keys and values"), forwarded(1, 1, "keys and values")
    ('At 5 of the 7 cuts the hop also carries keys and values.', 'At the only cut the hop also carries keys and values.')
    """
    where = f"{some} of the {legal} cuts" if legal > 1 else "the only cut"
    return f"At {where} the hop also carries {kinds}."


def _starts(counts: list[int]) -> set[int]:
    return {sum(counts[:rank]) for rank in range(1, len(counts))}


def _kinds(forwards: list) -> str:
    kinds = {
        "keys and values that later layers read": any(f.writes for f in forwards),
        "values that earlier layers returned": any(f.returns for f in forwards),
        "an object that layers share": any(f.shared for f in forwards),
    }
    return " and ".join(kind for kind, there in kinds.items() if there)


def page(names: list[str]) -> str:
    """The whole page, in MyST."""
    rows = {}
    for name in names:
        rows[name] = row(name)
        print(f"{name:24}{rows[name][1]}", file=sys.stderr, flush=True)
    counts = Counter("differs" if result.startswith(DIFFERS) else result for _, result, _ in rows.values())
    today = datetime.now(UTC).date().isoformat()
    lines = [
        "# Which models can be cut, and where",
        "",
        f"Made on {today} with mlx-lm {version('mlx-lm')} and MLX {version('mlx')}, on a CPU.",
        "",
        f"**{counts[EXACT]} of {len(rows)} architectures are exact**, {counts[REFUSED]} are refused, "
        f"{counts[NOT]} were not run, {counts['differs']} differ.",
        "",
        "*Exact* means that every logit of every pass equals the one that the same model gives in one process, "
        f"to the last bit. Each model is tiny and random; a prompt of {len(PROMPT)} tokens goes in chunks of "
        f"{CHUNK}, longer than its sliding window, then {DECODED} tokens are decoded. It is cut at every place "
        "over two ranks, at several over three, and into one layer a rank. *Refused* means that loading it over "
        "several ranks ends with the reason, before any weight is read; on one rank it runs.",
        "",
        "Where a model may be cut is not kept in a table: it is found when the model is loaded, from a pass that is built "
        "but never computed. This page is made by `python -m tests.engine.coverage notebooks/coverage.md`.",
        "",
        "| architecture | legal cuts | result | what else crosses, or why not |",
        "|---|---|---|---|",
    ]
    lines += [f"| {name} | {legal} | {result} | {reason} |" for name, (legal, result, reason) in rows.items()]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    text = page(installed())
    Path(sys.argv[1]).write_text(text) if len(sys.argv) > 1 else print(text)
