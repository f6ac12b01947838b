"""The bug hunt: every fault is put into a tiny model, and the check-up has to name it. Prints the table as a program:

python -m tests.faults.hunt [FILE.md]
"""

import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from datetime import date
from importlib import metadata
from pathlib import Path
from typing import Any

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.faults import faults
from mlx_nb.shared.findings import CheckReport
from mlx_nb.shared.text import format_table
from tests import tiny
from tests.engine.test_forwarding import write

CLEAN = ("gemma3n", "gpt2", "hunyuan", "falcon_h1")
"""Architectures without a fault of their own here: nothing may be found. Nor may it in those of the cases, afterwards."""


@dataclass(frozen=True)
class Case:
    """A fault, the model that it goes into, and what the check is asked besides."""

    fault: str
    model: str = "llama"
    where: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)


_OTHERWISE = {
    "ring_logical": [Case("ring_logical", options={"max_kv_size": 8, "max_tokens": 6})],
    "tuple_dropped": [Case("tuple_dropped", "rwkv7", {"rank": 0})],
    "expert_order": [Case("expert_order", "qwen3_moe")],
    "embed_scale": [Case("embed_scale", "gemma3", {"rank": 0})],
    "token_shift": [Case("token_shift", where={"rank": 0})],
    "soft_cap": [Case("soft_cap", "gemma2")],
    "wrong_head": [Case("wrong_head"), Case("wrong_head", "llama_untied")],
    "kv_offset": [
        Case("kv_offset", where={"rank": 1, "by": -1}),
        Case("kv_offset", "gemma3", {"layer": 5, "by": 1}),
        Case("kv_offset", "deepseek_v3", {"layer": 1, "by": -1}),
    ],
    "nan": [Case("nan"), Case("nan", where={"rank": 0})],
    "norm_epsilon": [Case("norm_epsilon", "gemma3"), Case("norm_epsilon", "mamba2", {"rank": 0})],
    "layer_skipped": [Case("layer_skipped", "qwen3", {"layer": 3}), Case("layer_skipped", "mamba2")],
}
CASES = [case for kind in faults() for case in _OTHERWISE.get(kind.name, [Case(kind.name)])]


def make(kind: str, folder: Path) -> Path:
    """A tiny model; gemma2 is the one with a soft cap, which `tests/tiny.py` has no use for."""
    if kind in tiny.CONFIGS:
        return tiny.make_tiny(kind, folder)
    if kind != "gemma2":
        return write(folder, kind)
    changes = {"model_type": "gemma2", "head_dim": 16, "query_pre_attn_scalar": 16}
    changes |= {"final_logit_softcapping": 3.0, "attn_logit_softcapping": 50.0}
    return tiny.make_tiny("llama", folder, **changes)


def found(sites: tuple[str, ...], rank: int, report: CheckReport) -> bool:
    """Whether the first finding names the fault's site, or something in it, and its rank, and nothing else is named."""

    def named(site: str) -> bool:
        return any(site == one or site.startswith(f"{one}.") for one in sites)

    first = report.first
    return first is not None and named(first.site) and all(one.rank == rank for one in report.findings)


def hunt(pipe: Pipe, case: Case) -> tuple[bool, list[str]]:
    """Put a fault in, check, take it out; whether it was found, and the table's row."""
    began = time.perf_counter()
    with pipe.fault(case.fault, **case.where) as fault:
        report = pipe.check(**case.options)
    ok = found(fault.sites, fault.rank, report)
    first = report.first
    said = f"rank {first.rank} {first.site}: {first.what}" if first else "nothing"
    where = fault.sites[0] + (f" … {len(fault.sites)} in all" if len(fault.sites) > 1 else "")
    row = [
        "found" if ok else "MISSED",
        case.fault,
        case.model,
        f"rank {fault.rank} {where}",
        said[:150],
        str(len(report.findings)),
        f"{time.perf_counter() - began:.1f} s",
    ]
    return ok, row


def main(file: str = "") -> int:
    rows = [["", "fault", "model", "put on", "the first finding", "findings", ""]]
    missed = 0
    with tempfile.TemporaryDirectory() as name, Cluster.start(ranks=2) as cluster:
        for model in dict.fromkeys([*(case.model for case in CASES), *CLEAN]):
            pipe = cluster.load(str(make(model, Path(name) / model)))
            for case in [case for case in CASES if case.model == model]:
                ok, row = hunt(pipe, case)
                missed += not ok
                rows.append(row)
            report = pipe.check()
            missed += not report.ok
            said = "nothing" if report.ok else str(report.first)
            told = "clean" if report.ok else "FALSE ALARM"
            rows.append([told, "none", model, "", said, str(len(report.findings)), ""])
            pipe.unload()
    said = f"{len(CASES)} faults of {len(faults())} kinds on 2 ranks, {missed} missed or false"
    print(format_table(rows))
    print(said)
    if file:
        Path(file).write_text(_page(rows, said))
    return int(missed > 0)


def _page(rows: list[list[str]], said: str) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("mlx", "mlx-lm"))
    head, *lines = [[cell.replace("|", "\\|") for cell in row[:-1]] for row in rows]
    return "\n".join(
        [
            "# The bug hunt",
            "",
            f"{date.today().isoformat()}, commit {commit.stdout.strip()}, {versions}; Linux, CPU, float32. {said}.",
            "",
            "Every fault of `mlx_nb.faults()` is put into a tiny random model over two ranks, and `pipe.check()` has to name the",
            "module, tensor or KV cache entry and the rank, and nothing on another rank. Clean models have to be left alone, those of the",
            "faults too, afterwards.",
            "",
            "Written by `python -m tests.faults.hunt notebooks/bug_hunt.md`.",
            "",
            "| " + " | ".join(head) + " |",
            "|" + "---|" * len(head),
            *("| " + " | ".join(row) + " |" for row in lines),
            "",
        ]
    )


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
