"""A random checkpoint with the dimensions of mlx-community/Qwen3-1.7B-8bit, written without building the model.

The packed weights are cut out of one block of random bytes, each piece from a place of its own: two
gigabytes in a few seconds. Scales are float32: with bfloat16 a pass on a CPU takes eight times as long.

As a program, ``python tests/qwen3.py FOLDER FILE``, it writes what mlx-lm makes of it in one process.
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_DIM = 28, 2048, 16, 8, 128
INTERMEDIATE, VOCABULARY, GROUP, BITS = 6144, 151_936, 64, 8

CONFIG = {
    "model_type": "qwen3",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "intermediate_size": INTERMEDIATE,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "head_dim": HEAD_DIM,
    "rms_norm_eps": 1e-6,
    "vocab_size": VOCABULARY,
    "rope_theta": 1e6,
    "max_position_embeddings": 40_960,
    "tie_word_embeddings": True,
    "torch_dtype": "float32",
    "quantization": {"group_size": GROUP, "bits": BITS},
}

LINEAR = {
    "self_attn.q_proj": (HEADS * HEAD_DIM, HIDDEN),
    "self_attn.k_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.v_proj": (KV_HEADS * HEAD_DIM, HIDDEN),
    "self_attn.o_proj": (HIDDEN, HEADS * HEAD_DIM),
    "mlp.gate_proj": (INTERMEDIATE, HIDDEN),
    "mlp.up_proj": (INTERMEDIATE, HIDDEN),
    "mlp.down_proj": (HIDDEN, INTERMEDIATE),
}
NORMS = {
    "self_attn.q_norm": HEAD_DIM,
    "self_attn.k_norm": HEAD_DIM,
    "input_layernorm": HIDDEN,
    "post_attention_layernorm": HIDDEN,
}

LAYER_PARAMETERS = sum(rows * columns for rows, columns in LINEAR.values()) + sum(NORMS.values())
EMBEDDING_PARAMETERS = VOCABULARY * HIDDEN

PROMPT = [(place * 16_889 + 77) % VOCABULARY for place in range(9)]
CHUNK, DECODED = 5, 2

_PIECE = 2**25
# A byte is 0 to 255, evenly: centred, its standard deviation is 73.9.
_CENTRE, _DEVIATION = 127.5, 73.9


def make_qwen3(folder: Path, seed: int = 5) -> Path:
    """Write the model folder: ``config.json`` and 1.9 GB of weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG))
    rng = np.random.default_rng(seed)
    pool = memoryview(rng.bytes(2 * _PIECE))
    tensors = list(_tensors(rng))
    header, at = {}, 0
    for name, dtype, shape, _ in tensors:
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    head = json.dumps(header).encode()
    head += b" " * (-len(head) % 8)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        for _, dtype, shape, content in tensors:
            if dtype == "U32":
                size = 4 * int(np.prod(shape))
                for done in range(0, size, _PIECE):
                    start = int(rng.integers(_PIECE))
                    file.write(pool[start : start + min(_PIECE, size - done)])
            else:
                file.write(np.broadcast_to(np.float32(content), shape).tobytes())
    return folder


def _tensors(rng: np.random.Generator) -> Iterator[tuple[str, str, tuple[int, ...], object]]:
    """Name, dtype, shape and the values that are not random bytes, in the order of a pass."""
    yield from _quantised("model.embed_tokens", VOCABULARY, HIDDEN, 0.02)
    for layer in range(LAYERS):
        for name, (rows, columns) in LINEAR.items():
            yield from _quantised(f"model.layers.{layer}.{name}", rows, columns, 1.5 / columns**0.5)
        for name, width in NORMS.items():
            weight = 1 + 0.2 * rng.standard_normal(width, dtype=np.float32)
            yield f"model.layers.{layer}.{name}.weight", "F32", (width,), weight
    yield "model.norm.weight", "F32", (HIDDEN,), 1.0


def _quantised(
    path: str, rows: int, columns: int, deviation: float
) -> Iterator[tuple[str, str, tuple[int, ...], object]]:
    scale = deviation / _DEVIATION
    yield f"{path}.weight", "U32", (rows, columns * BITS // 32), None
    yield f"{path}.scales", "F32", (rows, columns // GROUP), scale
    yield f"{path}.biases", "F32", (rows, columns // GROUP), -_CENTRE * scale


def main(folder: Path, file: Path, *, packed: bool) -> None:
    """Write ``tokens [2]`` and ``logits [L 10, V]``: of the prompt and of the tokens that are fed after it.

    The prompt goes in chunks, as mlx-lm cuts them: 5, 3 and 1.
    """
    import mlx_nb.engine  # noqa: F401 - before mlx: the same BLAS as on the ranks

    import mlx.core as mx  # isort: skip
    from mlx_lm.generate import generate_step
    from mlx_lm.utils import dequantize_model, load_model

    model, _ = load_model(folder, lazy=True)
    if not packed:
        model = dequantize_model(model)
        model.set_dtype(mx.float32)
    rows: list[np.ndarray] = []

    class Spy:
        """The model, with a look at the logits of every pass."""

        layers = model.layers

        def __call__(self, inputs: mx.array, **kwargs: object) -> mx.array:
            logits = model(inputs, **kwargs)  # [B 1, L, V]
            rows.append(np.array(logits[0]))
            return logits

    steps = generate_step(mx.array(PROMPT), Spy(), max_tokens=DECODED, prefill_step_size=CHUNK)
    tokens = [int(token) for token, _ in steps]
    np.savez(file, tokens=tokens, logits=np.concatenate(rows)[: len(PROMPT) + DECODED - 1])


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), packed="--packed" in sys.argv)
