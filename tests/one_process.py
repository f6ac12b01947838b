"""What mlx-lm makes of the loopback's prompt in one process, without any of this package's code."""

from pathlib import Path

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import numpy as np
from mlx_lm.generate import generate_step
from mlx_lm.utils import dequantize_model, load_adapters, load_model

from mlx_nb.engine.kv import make_kv_cache
from tests.engine.loopback import CHUNK, PROMPT


class OneProcess:
    """A model folder, with an adapter or without, in float32 (None) or as it is stored (native)."""

    def __init__(self, folder: Path, adapter: Path | None, dtype: str | None) -> None:
        self.model, config = load_model(folder)
        if adapter is not None:
            self.model = load_adapters(self.model, str(adapter))
            self.model.eval()
        if dtype is None:
            if "quantization" in config:
                self.model = dequantize_model(self.model)
            self.model.set_dtype(mx.float32)

    def logits(self) -> np.ndarray:
        kv = make_kv_cache(self.model)
        chunks = [PROMPT[start : start + CHUNK] for start in range(0, len(PROMPT), CHUNK)]
        rows = [self.model(mx.array(chunk)[None], cache=kv)[0].astype(mx.float32) for chunk in chunks]
        return np.concatenate([np.array(row) for row in rows])

    def tokens(self) -> list[int]:
        return [int(token) for token, _ in generate_step(mx.array(PROMPT), self.model, max_tokens=12)]
