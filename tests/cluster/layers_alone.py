"""What every layer of a model returns in one process, from mlx-lm alone. Run as a program:

python layers_alone.py FOLDER OUT.npy CHUNKS    (CHUNKS: lists of token ids as JSON, a pass each)
python layers_alone.py FOLDER OUT.npy CHUNKS POSITIONS LOGITS.npy    also what norm and head make of them there
"""

import json
import sys
from pathlib import Path
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import numpy as np
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model


def main(folder: str, out: str, chunks: str, positions: str = "", logits: str = "") -> None:
    model: Any = load_model(Path(folder))[0]
    seen: list[list[mx.array]] = [[] for _ in model.layers]
    places = {id(layer): place for place, layer in enumerate(model.layers)}
    base: Any = type(model.layers[0])

    class Seen(base):  # type: ignore[misc]
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            value = super().__call__(*args, **kwargs)
            seen[places[id(self)]].append(value)
            return value

    for layer in model.layers:
        layer.__class__ = Seen
    kv = make_prompt_cache(model)
    for chunk in json.loads(chunks):
        mx.eval(model(mx.array(chunk)[None], cache=kv))
    layers = [mx.concatenate(one, axis=1) for one in seen]
    np.save(out, np.stack([np.array(one) for one in layers]))
    if positions:
        places = mx.array(json.loads(positions))
        np.save(logits, np.stack([np.array(norm_and_head(model, one[:, places])[0]) for one in layers]))


def norm_and_head(model: Any, hidden: mx.array) -> mx.array:
    """Of models whose code says it in these two steps: llama, gemma3, qwen3."""
    normed = model.model.norm(hidden)
    return model.lm_head(normed) if "lm_head" in model else model.model.embed_tokens.as_linear(normed)


if __name__ == "__main__":
    main(*sys.argv[1:])
