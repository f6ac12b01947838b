"""Random models without a tokenizer, in an architecture that mlx-lm can split by itself.

``python -m mlx_nb.bench.peers.make_model FOLDER`` writes a qwen2 folder with smollm2's dimensions in float32;
with ``--large`` one of 430 million parameters in 8 bits.
"""

import mlx_nb.engine  # isort: skip  (a fast BLAS before mlx)
import json
import sys
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model, quantize_model

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
LARGE = {
    **CONFIG,
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}


def main(folder: Path, *, large: bool) -> None:
    """Write it."""
    folder.mkdir(parents=True, exist_ok=True)
    config = LARGE if large else CONFIG
    (folder / "config.json").write_text(json.dumps(config))
    mx.random.seed(0)
    model, _ = load_model(folder, lazy=True, strict=False)
    if large:
        model, config = quantize_model(model, dict(config), 64, 8)
        (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))


if __name__ == "__main__":
    main(Path(sys.argv[1]), large="--large" in sys.argv)
