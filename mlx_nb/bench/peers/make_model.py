"""A random model with smollm2's dimensions in an architecture that mlx-lm can split by itself.

``python -m mlx_nb.bench.peers.make_model FOLDER`` writes a qwen2 folder, float32, without a tokenizer.
"""

import mlx_nb.engine  # isort: skip  (a fast BLAS before mlx)
import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model

assert mlx_nb.engine

CONFIG = {
    "model_type": "qwen2",
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
    "rms_norm_eps": 1e-5,
    "rope_theta": 100000.0,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


def main(folder: Path) -> None:
    """Write it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    mx.random.seed(0)
    model, _ = load_model(folder, lazy=True, strict=False)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
