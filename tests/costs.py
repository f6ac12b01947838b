"""A model large enough to weigh, and what a rank's share of it is on disk. Counts of bytes, not timings."""

import re
from pathlib import Path
from typing import Any

from mlx_nb.engine.weights import read_tensors  # before mlx: it loads OpenBLAS
from tests.tiny import make_tiny, store

# Weights of 50 to 100 MB: headers and configuration are nothing beside them, and it is made in a second.
WIDE: dict[str, Any] = {
    "hidden_size": 512,
    "intermediate_size": 1536,
    "num_hidden_layers": 8,
    "vocab_size": 4096,
}
LAYERS = 8

MOST_READ = 1.03
"""Bytes read, as a multiple of the shard's bytes on disk."""
MOST_HELD, MLX_EXTRA_BYTES, PROCESS_EXTRA_BYTES = 1.15, 32 * 2**20, 96 * 2**20
"""Peak memory: a multiple of the shard's bytes in the compute dtype, and a constant for MLX's own count and the process's."""


def make_wide(kind: str, folder: Path, layout: str = "sharded, index", **wishes: Any) -> Path:
    """A wide model of eight layers."""
    return store(make_tiny(kind, folder, **{**WIDE, **wishes}), layout)


def disk_bytes(folder: Path, layers: range, num_layers: int = LAYERS) -> int:
    """What a rank with these layers has to read: its layers; the embedding, and norm and head, at the ends."""
    tensors = read_tensors(folder)
    tied = not any(name.startswith("lm_head") for name in tensors)
    total = 0
    for name, tensor in tensors.items():
        layer = re.search(r"\.layers\.(\d+)\.", name)
        if layer:
            wanted = int(layer[1]) in layers
        elif "embed" in name:
            wanted = 0 in layers or (tied and num_layers - 1 in layers)
        else:
            wanted = num_layers - 1 in layers
        total += tensor.size_bytes * wanted
    return total
