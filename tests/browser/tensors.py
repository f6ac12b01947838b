"""Tensors in this process, for the view's tests: the client's own controller, the ranks' own reader."""

from typing import Any

import numpy as np

from mlx_nb.client.tensor_view import LiveTensor
from mlx_nb.client.tensors import Tensor
from mlx_nb.shared.tensor_reading import Grid, read

PROMPT = [
    "<|im_start|>",
    "user",
    "↵",
    "What",
    "·is",
    "·the",
    "·capital",
    "·of",
    "·France",
    "?",
    "<|im_end|>",
    "↵",
    "<|im_start|>",
    "assistant",
    "↵",
]


def live(array: np.ndarray, letters: tuple[str, ...], **said: Any) -> LiveTensor:
    """A live view of an array; tokens are named where an axis is L."""
    along = letters.index("L") if "L" in letters else -1
    tensor = Tensor(
        **{
            "model": "smollm2",
            "site": "layers.15",
            "suffix": ".output",
            "note": "rank 1",
            "shape": array.shape,
            "letters": letters,
            "dtype": str(array.dtype),
            "size_bytes": array.nbytes,
            "look": lambda wish: read(
                Grid([array], 0, wish.face, lambda part: part.astype(np.float32)), wish
            ),
            "positions": {along: range(array.shape[along])} if along >= 0 else {},
            "texts": lambda tokens: [PROMPT[token % len(PROMPT)] for token in tokens],
            "place": {"rank": 1, "site": "model.layers.15.output", "layer": 15},
            "text": "Capture layers.15.output",
            **said,
        }
    )
    return LiveTensor(tensor, "Recorded now: the last run's 44 tokens were fed again.")


def hidden(tokens: int = 37, channels: int = 576) -> np.ndarray:
    """Hidden states as they look: noise, a few channels that are always large, one outlier."""
    random = np.random.default_rng(1)
    values = random.standard_normal((1, tokens, channels)).astype(np.float32)
    values[..., [138, 301]] *= 9
    values[0, 0, 138] = -812.0
    return values


def heads() -> np.ndarray:
    """Queries of nine heads, some of it NaN."""
    values = np.random.default_rng(2).standard_normal((1, 9, 37, 64)).astype(np.float32)
    values[0, 0, 20, 30:34] = np.nan
    values[0, 0, 5, 10], values[0, 0, 6, 10] = np.inf, -np.inf
    return values


def large() -> np.ndarray:
    """4,096 tokens by 8,192 channels with one value out of place."""
    values = np.random.default_rng(3).standard_normal((4096, 8192), np.float32)
    values[2047, 4095] = 1204.0
    return values
