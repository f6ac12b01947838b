"""The sites before a model's first layer and behind its last one: what a comparison of all layers looks at besides.

Each layer is given the other's input, the first one too: an embedding, a last norm or a head that is wrong
would show in none of them.
"""

from collections.abc import Sequence

from mlx_nb.shared.globs import matches
from mlx_nb.shared.loaded import LoadedShard
from mlx_nb.shared.position import INPUT, OUTPUT
from mlx_nb.shared.text import format_size

LOGITS_BYTES = 128 * 1024 * 1024
"""The most that a prompt's logits may take unless they were asked for: the layers would lose their place for them."""

_HEADS = ("lm_head", "embed_out", "output")


def around(shard: LoadedShard, patterns: Sequence[str], tokens: int) -> tuple[list[str], str]:
    """The sites beside the layers, if all layers are compared.

    Args:
        shard: Any rank's report of the model.
        patterns: What is compared.
        tokens: How many are fed.

    Returns:
        The sites, in the model's order, and a note on what was left aside.
    """
    layers = shard.layer_paths
    if not all(any(matches(f"{path}.{OUTPUT}", one) for one in patterns) for path in layers):
        return [], ""
    order = list(shard.order)
    beside = [
        path for path in order if path and not any(_inside(path, one) or _inside(one, path) for one in layers)
    ]
    start = order.index(layers[0]) if layers[0] in order else 0
    # Those beside the layers that this model never calls, but the other may: somebody forgot them.
    home = layers[0].rpartition(".")[0].rpartition(".")[0]
    idle = [
        path
        for path, _ in shard.modules
        if path
        and path not in order
        and path.rpartition(".")[0] in ("", home)
        and not any(_inside(one, path) for one in layers)
    ]
    before = [path for path in beside if order.index(path) < start]
    behind = [path for path in beside if path not in before]
    size_bytes, note, logits = 4 * shard.vocabulary * tokens, "", ["logits"]
    if size_bytes > LOGITS_BYTES:
        behind, logits = [path for path in behind if path.rpartition(".")[2] not in _HEADS], []
        note = (
            f"The logits of {tokens} tokens take {format_size(size_bytes)} and were left aside: "
            "sites='layers.*,logits' compares them."
        )
    sites = [f"{path}.{OUTPUT}" for path in before] + [f"{layers[0]}.{INPUT}"]
    sites += [f"{path}.{kind}" for path in behind for kind in (INPUT, OUTPUT)]
    return sites + [f"{path}.{OUTPUT}" for path in idle] + logits, note


def _inside(path: str, other: str) -> bool:
    return path == other or path.startswith(f"{other}.")
