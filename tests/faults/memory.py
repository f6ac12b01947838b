"""Memory over a long life: one generation of 5,000 tokens, and 200 models loaded and unloaded.

``python -m tests.faults.memory FILE.md`` runs both on two ranks and writes what they took. The model is a tiny random llama: smollm2's
context has 8,192 positions, and its 5,000 tokens take minutes. Its KV caches rotate in 512 slots, so that nothing has a reason to grow.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path

import psutil

from mlx_nb.client.cluster import Cluster
from tests.tiny import make_tiny

TOKENS, LOOK_TOKENS, WARM_TOKENS = 5000, 500, 1000
CYCLES, LOOK_CYCLES, WARM_CYCLES = 200, 20, 40
ALLOWED = 0.02

Sample = tuple[int, list[int]]
"""At which token or cycle, and the resident bytes of each rank and of this process."""


def look(cluster: Cluster) -> list[int]:
    """Resident bytes of each rank, rank 0 first, and of this process."""
    ranks = [psutil.Process(info.pid).memory_info().rss for info in cluster.ranks]
    return [*ranks, psutil.Process().memory_info().rss]


def generation(cluster: Cluster, folder: Path) -> Iterator[Sample]:
    """Samples from a generation of 5,000 tokens."""
    pipe = cluster.load(str(make_tiny("llama", folder, max_position_embeddings=8192)))
    seen = 0
    for seen, _piece in enumerate(pipe.stream([3, 5, 7], max_tokens=TOKENS, max_kv_size=512), 1):
        if seen % LOOK_TOKENS == 0:
            yield seen, look(cluster)
    assert seen == TOKENS
    pipe.unload()


def cycles(cluster: Cluster, folder: Path) -> Iterator[Sample]:
    """Samples from 200 cycles, each of a load, a few tokens, and an unload."""
    make_tiny("llama", folder)
    for number in range(1, CYCLES + 1):
        pipe = cluster.load(str(folder))
        pipe.generate([3, 5, 7], max_tokens=4)
        pipe.unload()
        if number % LOOK_CYCLES == 0:
            yield number, look(cluster)


def growth(samples: list[Sample], warm: int) -> list[float]:
    """By which part each process has grown from the end of the warm-up to its largest afterwards."""
    after = [sizes for number, sizes in samples if number >= warm]
    return [max(sizes) / sizes[0] - 1 for sizes in zip(*after, strict=True)]


def to_markdown(title: str, samples: list[Sample], warm: int) -> str:
    """A table of all samples, in MiB, and the growth."""
    names = [*(f"rank {rank}" for rank in range(len(samples[0][1]) - 1)), "kernel"]
    grown = ", ".join(f"{name} {part:+.1%}" for name, part in zip(names, growth(samples, warm), strict=True))
    rows = [
        f"| {number} | " + " | ".join(f"{size / 2**20:.1f}" for size in sizes) + " |"
        for number, sizes in samples
    ]
    head = [
        "| after | " + " | ".join(f"{name}, MiB" for name in names) + " |",
        "| --- " * (len(names) + 1) + "|",
    ]
    return "\n".join([f"## {title}", "", f"After the warm-up of {warm}: {grown}.", "", *head, *rows, ""])


def main(file: str = "") -> int:
    """Run both; 1 if one of them grew by more than allowed."""
    with tempfile.TemporaryDirectory() as folder, Cluster.start(ranks=2) as cluster:
        long = list(generation(cluster, Path(folder) / "long"))
        many = list(cycles(cluster, Path(folder) / "many"))
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    )
    page = "\n".join(
        [
            "# Memory over a long life",
            "",
            f"{date.today().isoformat()}, commit {commit.stdout.strip()}; two ranks on Linux, a tiny random llama, resident memory.",
            "Written by `python -m tests.faults.memory notebooks/memory_soak.md`.",
            "",
            to_markdown(f"One generation of {TOKENS} tokens, KV caches of 512 slots", long, WARM_TOKENS),
            to_markdown(f"{CYCLES} times load, generate, unload", many, WARM_CYCLES),
        ]
    )
    print(page)
    if file:
        Path(file).write_text(page)
    return int(max(*growth(long, WARM_TOKENS), *growth(many, WARM_CYCLES)) > ALLOWED)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
