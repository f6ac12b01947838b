"""From a Llama-shaped GGUF file to a folder that mlx-lm loads: float32 weights, config, tokenizer.

Float32, because packed and half-precision products are many times slower on a CPU, and because every
rank then computes with the same exact numbers. The conversion is exact and independent of the machine:
scale * integer has few enough bits to be exact, so each weight is rounded once, in the addition.
"""

import json
import os
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import mlx.core as mx
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from mlx_nb.engine.model_folder import write_synced
from mlx_nb.shared.errors import ModelError
from mlx_nb.shared.models import Progress

GROUP_SIZE = 32
"""Weights that share a scale in GGUF's Q4_1 and Q8_0, and in MLX's packed form of them."""

_CONTROL_TOKEN = 3
_AFTER_LAYERS = {"output_norm": "model.norm", "output": "lm_head"}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def convert(path: Path, folder: Path, progress: Progress) -> None:
    """Write config, tokenizer and weights of a GGUF file into an existing, empty folder.

    Raises:
        ModelError: The file is no Llama with a byte-level BPE tokenizer.
        OSError: The folder cannot be written.
    """
    loaded: Any = mx.load(str(path), return_metadata=True)
    tensors, metadata = loaded
    config = make_config(metadata, tied="output.weight" not in tensors)
    _write_json(folder / "config.json", config)
    ids = {key: config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    _write_json(folder / "generation_config.json", ids)
    write_synced(folder / "tokenizer.json", make_tokenizer(metadata).to_str().encode())
    _write_json(folder / "tokenizer_config.json", make_tokenizer_config(metadata))
    _write_safetensors(folder / "model.safetensors", tensors, config, progress)


def make_config(metadata: Mapping[str, Any], *, tied: bool) -> dict[str, Any]:
    """mlx-lm's ``config.json`` from GGUF metadata; `tied` when the head is the embedding."""
    if metadata.get("general.architecture") != "llama":
        raise ModelError(
            f"The GGUF file holds a {metadata.get('general.architecture')!r} model; only llama is converted.",
            "Load this model from Hugging Face or a folder instead.",
        )
    hidden, heads = _int(metadata, "llama.embedding_length"), _int(metadata, "llama.attention.head_count")
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": hidden,
        "intermediate_size": _int(metadata, "llama.feed_forward_length"),
        "num_hidden_layers": _int(metadata, "llama.block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _int(metadata, "llama.attention.head_count_kv"),
        "head_dim": hidden // heads,
        "hidden_act": "silu",
        "max_position_embeddings": _int(metadata, "llama.context_length"),
        "vocab_size": _int(metadata, "llama.vocab_size"),
        # Round off what float32 added: 9.999999747378752e-06 is written 1e-05.
        "rms_norm_eps": float(f"{metadata['llama.attention.layer_norm_rms_epsilon'].item():.6g}"),
        "rope_theta": float(metadata["llama.rope.freq_base"].item()),
        "tie_word_embeddings": tied,
        "attention_bias": False,
        "mlp_bias": False,
        "torch_dtype": "float32",
        "bos_token_id": _int(metadata, "tokenizer.ggml.bos_token_id"),
        "eos_token_id": _int(metadata, "tokenizer.ggml.eos_token_id"),
        "pad_token_id": _int(metadata, "tokenizer.ggml.padding_token_id"),
    }


def make_tokenizer(metadata: Mapping[str, Any]) -> Tokenizer:
    """The byte-level BPE tokenizer that the metadata describe; digits are split one by one.

    Raises:
        ModelError: It is another kind of tokenizer.
    """
    kind = (metadata.get("tokenizer.ggml.model"), metadata.get("tokenizer.ggml.pre"))
    if kind != ("gpt2", "smollm"):
        raise ModelError(
            f"The GGUF file has a {kind} tokenizer; only SmolLM's is converted.",
            "Load this model from Hugging Face or a folder instead.",
        )
    tokens = metadata["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in metadata["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    control = _control_tokens(metadata)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in control])
    return tokenizer


def make_tokenizer_config(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """``tokenizer_config.json``: the names of the special tokens, and the chat template."""
    tokens = metadata["tokenizer.ggml.tokens"]
    return {
        # The class that takes tokenizer.json as it is; GPT2Tokenizer would lose the split of digits.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": tokens[_int(metadata, "tokenizer.ggml.bos_token_id")],
        "eos_token": tokens[_int(metadata, "tokenizer.ggml.eos_token_id")],
        "pad_token": tokens[_int(metadata, "tokenizer.ggml.padding_token_id")],
        "unk_token": tokens[_int(metadata, "tokenizer.ggml.unknown_token_id")],
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": _int(metadata, "llama.context_length"),
        "chat_template": metadata["tokenizer.chat_template"],
    }


def dequantise(tensors: Mapping[str, mx.array], name: str) -> mx.array:
    """One weight as float32; `name` is GGUF's, without ``.weight``."""
    weight = tensors[f"{name}.weight"]
    if weight.dtype != mx.uint32:
        return weight.astype(mx.float32)
    scales = tensors[f"{name}.scales"].astype(mx.float32)  # [out, in / GROUP_SIZE]
    biases = tensors[f"{name}.biases"].astype(mx.float32)
    bits = weight.shape[-1] // scales.shape[-1]  # 32-bit words a group = bits a weight, as a group is 32
    return mx.dequantize(weight, scales, biases, group_size=GROUP_SIZE, bits=bits)


def unpermute(weight: mx.array, heads: int) -> mx.array:
    """Put the rows of a q or k projection back into Hugging Face's order.

    GGUF pairs rows 2i and 2i+1 of a head for its interleaved RoPE; mlx-lm rotates row i with row i + half.

    Shapes:
        weight: ``[heads * head_dim, D]``, in and out.
    """
    rows, width = weight.shape
    paired = weight.reshape(heads, rows // heads // 2, 2, width)  # [heads, head_dim / 2, 2, D]
    return paired.swapaxes(1, 2).reshape(rows, width)


def _weights(tensors: Mapping[str, mx.array], config: Mapping[str, Any]) -> Iterator[tuple[str, str, int]]:
    """GGUF's name, mlx-lm's name, and the heads to un-permute (0 for most), in the model's order."""
    rotated = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    yield "token_embd", "model.embed_tokens.weight", 0
    for layer in range(config["num_hidden_layers"]):
        for theirs, ours in _IN_LAYER.items():
            yield f"blk.{layer}.{theirs}", f"model.layers.{layer}.{ours}.weight", rotated.get(theirs, 0)
    for theirs, ours in _AFTER_LAYERS.items():
        if f"{theirs}.weight" in tensors:
            yield theirs, f"{ours}.weight", 0


def _shape(tensors: Mapping[str, mx.array], name: str) -> list[int]:
    weight = tensors[f"{name}.weight"]
    if weight.dtype != mx.uint32:
        return list(weight.shape)
    return [weight.shape[0], tensors[f"{name}.scales"].shape[1] * GROUP_SIZE]


def _write_safetensors(
    path: Path, tensors: Mapping[str, mx.array], config: Mapping[str, Any], progress: Progress
) -> None:
    """Write the weights one by one, so that one is in memory at a time and a full disk is an OSError."""
    header: dict[str, Any] = {"__metadata__": {"format": "mlx"}}
    end = 0
    for theirs, ours, _ in _weights(tensors, config):
        shape = _shape(tensors, theirs)
        start, end = end, end + 4 * _product(shape)
        header[ours] = {"dtype": "F32", "shape": shape, "data_offsets": [start, end]}
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % 8)  # the format asks for data on an 8-byte boundary

    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        done = 0
        for theirs, _, heads in _weights(tensors, config):
            weight = dequantise(tensors, theirs)
            if heads:
                weight = unpermute(weight, heads)
            flat: Any = mx.contiguous(weight).flatten()
            mx.eval(flat)
            done += file.write(memoryview(flat).cast("B"))
            progress("convert", done, end)
        file.flush()
        os.fsync(file.fileno())


def _control_tokens(metadata: Mapping[str, Any]) -> list[str]:
    kinds = metadata["tokenizer.ggml.token_type"].tolist()
    pairs = zip(metadata["tokenizer.ggml.tokens"], kinds, strict=True)
    return [token for token, kind in pairs if kind == _CONTROL_TOKEN]


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    write_synced(path, json.dumps(content, indent=1, ensure_ascii=False).encode())


def _int(metadata: Mapping[str, Any], key: str) -> int:
    return int(metadata[key].item())


def _product(shape: list[int]) -> int:
    product = 1
    for size in shape:
        product *= size
    return product
