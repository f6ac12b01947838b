"""mlx-lm by itself: the whole model in one process, or its own pipeline over several.

``python -m mlx_nb.bench.peers.one_process FOLDER [--pipeline]`` reads one JSON command a line and answers
each with one JSON line. The BLAS is the one that our ranks use; its threads come from the environment.
With ``--pipeline`` it is one rank of mlx-lm's own pipeline over MLX's ring (``MLX_RANK``, ``MLX_HOSTFILE``).
"""

import mlx_nb.engine  # isort: skip  (a fast BLAS before mlx)
import json
import sys
import time
from pathlib import Path
from typing import Any

import mlx.core as mx
import psutil
from mlx_lm.generate import generate_step
from mlx_lm.utils import dequantize_model, load_model, load_tokenizer

assert mlx_nb.engine


class OneProcess:
    """A model as mlx-lm loads it."""

    def __init__(self, folder: Path, *, pipeline: bool) -> None:
        self._folder = folder
        self._group = mx.distributed.init(strict=True, backend="ring") if pipeline else None
        self._model: Any = None

    def load(self) -> float:
        """Load the model, and its tokenizer if it has one; seconds. A quantised one is taken to float32, as ours is."""
        self._model = None
        mx.clear_cache()
        begin = time.perf_counter()
        self._model, config = load_model(self._folder, lazy=True)
        if "quantization" in config:
            self._model = dequantize_model(self._model)
            self._model.set_dtype(mx.float32)
        if self._group is not None:
            self._model.model.pipeline(self._group)
        mx.eval(self._model.parameters())
        if (self._folder / "tokenizer.json").exists():
            load_tokenizer(self._folder)
        return time.perf_counter() - begin

    def prefill(self, ids: list[int], chunk: int) -> float:
        """Prompt tokens a second, up to the first token."""
        begin = time.perf_counter()
        for _ in generate_step(mx.array(ids), self._model, max_tokens=1, prefill_step_size=chunk):
            pass
        return len(ids) / (time.perf_counter() - begin)

    def decode(self, ids: list[int], tokens: int) -> float:
        """Generated tokens a second, from the first to the last."""
        times = [
            time.perf_counter()
            for _ in generate_step(mx.array(ids), self._model, max_tokens=tokens, prefill_step_size=128)
        ]
        return (len(times) - 1) / (times[-1] - times[0])

    def memory(self) -> float:
        """Bytes that this process has in memory."""
        return float(psutil.Process().memory_info().rss)


def main(arguments: list[str]) -> None:
    """Answer commands until standard input ends."""
    peer = OneProcess(Path(arguments[0]), pipeline="--pipeline" in arguments)
    for line in sys.stdin:
        command = json.loads(line)
        answer = getattr(peer, command.pop("do"))(**command)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
