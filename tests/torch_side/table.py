"""The table of comparisons with transformers in torch: ``python -m tests.torch_side.table [FILE.md]``."""

import subprocess
import sys
import tempfile
from datetime import date
from importlib import metadata
from pathlib import Path

import mlx_nb
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.diff_report import DiffReport
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.text import format_number
from tests.torch_side.architectures import CONFIGS, convert, make

IDS = [3 + (place * 7) % 97 for place in range(21)]
HEAD = ["architecture", "joined", "sites", "worst module", "forced", "logits, free", "verdict"]
FAULTS = {  # where each shows, given that transformers has no modules for RoPE
    "rope_base": ("llama", "self_attn.o_proj.input"),
    "rope_traditional": ("qwen3", "self_attn.o_proj.input"),
    "attention_scale": ("mistral", "self_attn.o_proj.input"),
    "gqa_order": ("qwen2", "self_attn.k_proj.output"),
    "norm_offset": ("gemma3_text", "input_layernorm.output"),
    "swapped_gate_up": ("llama", "mlp.gate_proj.output"),
    "transposed_weight": ("olmo2", "self_attn.o_proj.output"),
}


def compare(pipe: Pipe, checkpoint: Path) -> DiffReport:
    """Every module that both have, and the logits, in a prompt of two chunks and three tokens more."""
    wanted = mlx_nb.reference(str(checkpoint), kind="transformers")
    return pipe.diff(wanted, IDS, sites=["**.input", "**.output", "logits"], max_tokens=3)


def row(name: str, report: DiffReport) -> list[str]:
    """One line of the table."""
    worst = max((one for one in report.rows if one.forced), key=lambda one: one.forced.relative)  # type: ignore[union-attr]
    logits = next(one for one in report.rows if one.site == "logits")
    assert worst.forced
    assert logits.free
    return [
        name,
        report.notes[0].split(" modules")[0],
        str(len(report.rows)),
        worst.site,
        format_number(worst.forced.relative),
        format_number(logits.free.relative),
        "same" if report.ok else f"DIFFERS at {report.first.site}" if report.first else "DIFFERS",
    ]


def main(file: str = "", *names: str) -> int:
    """Compare all; 1 if one differs."""
    rows, faults, bad = [], [], 0
    with tempfile.TemporaryDirectory() as folder, Cluster.start(ranks=2) as cluster:
        wanted = list(names) or list(CONFIGS)
        make(Path(folder), *wanted)
        for name in wanted:
            checkpoint = Path(folder) / name
            try:
                pipe = cluster.load(str(convert(checkpoint, Path(folder) / f"{name}-mlx")))
                report = compare(pipe, checkpoint)
                rows.append(row(name, report))
                bad += not report.ok
                print(" · ".join(rows[-1]), flush=True)
                for fault, (_, site) in ((f, at) for f, at in FAULTS.items() if at[0] == name):
                    with pipe.fault(fault) as put:
                        found = pipe.diff(mlx_nb.reference(str(checkpoint), kind="transformers"), IDS).first
                    said = found.site if found else "nothing"
                    ok = said.endswith(site) and found is not None and found.rank == put.rank
                    faults.append(
                        [fault, name, f"rank {put.rank} {put.sites[0]}", said, "found" if ok else "MISSED"]
                    )
                    bad += not ok
                    print(" · ".join(faults[-1]), flush=True)
                pipe.unload()
            except MlxNbError as error:
                bad += 1
                rows.append([name, "", "", "", "", "", f"FAILED: {error}"])
                print(name, error, flush=True)
    if file:
        Path(file).write_text(_page(rows, faults))
    return int(bad > 0)


def _page(rows: list[list[str]], faults: list[list[str]]) -> str:
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    versions = ", ".join(
        f"{name} {metadata.version(name)}" for name in ("mlx", "mlx-lm", "torch", "transformers")
    )
    lines = [
        "# Against transformers in torch",
        "",
        f"{date.today().isoformat()}, commit {commit.stdout.strip()}, {versions}; Linux, CPU, float32.",
        "",
        "A tiny random checkpoint of each architecture, written by transformers and converted as mlx-lm does it, over two ranks;",
        f"a prompt of {len(IDS)} tokens in chunks of 16, and three generated ones. *Forced*: every module is given what went into",
        "transformers' own, so that errors do not add up; the relative distance of what it returns is at most 1e-4 where both are",
        "the same. *Free*: nothing is given.",
        "",
        "Written by `python -m tests.torch_side.table notebooks/against_transformers.md`.",
        "",
        "| " + " | ".join(HEAD) + " |",
        "|" + "---|" * len(HEAD),
        *("| " + " | ".join(one) + " |" for one in rows),
        "",
        "The same with a fault put in. transformers has no modules for RoPE, so what is wrong there shows where its result is used.",
        "",
        "| fault | architecture | put on | first found at | |",
        "|---|---|---|---|---|",
        *("| " + " | ".join(one) + " |" for one in faults),
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
