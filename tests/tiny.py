"""Tiny random models of several architectures, made on the spot: no download, a few milliseconds a pass."""

import json
import re
from pathlib import Path
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten, tree_map_with_path  # isort: skip
from mlx_lm.utils import _get_classes, quantize_model  # isort: skip

VOCABULARY = 101

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 5,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "rope_theta": 10000.0,
    "tie_word_embeddings": True,
    "max_position_embeddings": 512,
}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, "model_type": "llama"},
    "llama_untied": {**_COMMON, "model_type": "llama", "tie_word_embeddings": False},
    "qwen3": {**_COMMON, "model_type": "qwen3", "head_dim": 16},
    "gemma3": {
        **_COMMON,
        "model_type": "gemma3_text",
        "num_hidden_layers": 7,
        "head_dim": 16,
        "sliding_window": 8,
        "sliding_window_pattern": 3,
        "rope_global_base_freq": 1e6,
        "rope_local_base_freq": 1e4,
        "rope_traditional": False,
        "query_pre_attn_scalar": 16,
    },
    "gemma4_text": {  # its last layers read the keys and values of earlier ones
        **_COMMON,
        "model_type": "gemma4_text",
        "num_hidden_layers": 7,
        "head_dim": 16,
        "global_head_dim": 32,
        "num_kv_shared_layers": 2,
        "layer_types": ["sliding_attention" if place % 3 < 2 else "full_attention" for place in range(7)],
        "sliding_window": 8,
        "hidden_size_per_layer_input": 8,
        "vocab_size_per_layer_input": VOCABULARY,
    },
    "gpt_oss": {  # windows, and a sink in each head
        **_COMMON,
        "model_type": "gpt_oss",
        "num_hidden_layers": 4,
        "head_dim": 16,
        "sliding_window": 8,
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "tie_word_embeddings": False,
    },
    "gemma2": {**_COMMON, "model_type": "gemma2", "head_dim": 16},  # an attention of its own
    "qwen3_moe": {
        **_COMMON,
        "model_type": "qwen3_moe",
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
        "moe_intermediate_size": 48,
        "norm_topk_prob": True,
    },
    "mamba2": {
        **_COMMON,
        "model_type": "mamba2",
        "num_heads": 8,
        "head_dim": 16,
        "intermediate_size": 128,
        "state_size": 16,
        "layer_norm_epsilon": 1e-5,
        "conv_kernel": 4,
        "n_groups": 1,
        "use_bias": False,
        "use_conv_bias": True,
        "time_step_limit": [0.0, 100.0],
        "time_step_rank": 8,
    },
    "rwkv7": {  # its layers return a tuple, and the later ones need what the first made
        **_COMMON,
        "model_type": "rwkv7",
        "norm_eps": 1e-5,
        "head_dim": 16,
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
        "tie_word_embeddings": False,
    },
    "deepseek_v3": {  # latent attention: cached keys and values differ in width
        **_COMMON,
        "model_type": "deepseek_v3",
        "num_key_value_heads": 4,
        "moe_intermediate_size": 48,
        "n_shared_experts": 1,
        "n_routed_experts": 4,
        "num_experts_per_tok": 2,
        "kv_lora_rank": 16,
        "q_lora_rank": 24,
        "qk_rope_head_dim": 8,
        "v_head_dim": 16,
        "qk_nope_head_dim": 16,
        "first_k_dense_replace": 1,
        "tie_word_embeddings": False,
    },
}


def make_tiny(
    kind: str, folder: Path, *, dtype: str = "float32", bits: int | str = 0, seed: int = 3, **changes: Any
) -> Path:
    """Write a model folder without a tokenizer.

    The weights are scaled up: at their usual size a random model repeats one token for ever, and a test
    that compares tokens would see nothing.

    Args:
        kind: A key of `CONFIGS`.
        folder: Where; it is made.
        dtype: The weights' dtype.
        bits: Quantised to so many bits, in groups of 32; 0 leaves them as they are, "mixed" takes 4, 6 or 8
            by the module's place, and leaves some as they are.
        seed: Of the weights.
        **changes: To the configuration.
    """
    config: dict[str, Any] = {**CONFIGS[kind], **changes}
    mx.random.seed(seed)
    model_class, args_class = _get_classes(config)
    model = model_class(args_class.from_dict(config))
    model.update(tree_map_with_path(_livelier, model.parameters()))
    if config["tie_word_embeddings"] and "lm_head" in model:  # gemma3 ties when the file has no head
        model.tie_word_embeddings = True
        model.pop("lm_head")
    model.set_dtype(getattr(mx, dtype))
    if bits:
        own = {"quant_predicate": _mixed} if bits == "mixed" else {}
        model, config = quantize_model(
            model, config, group_size=32, bits=4 if bits == "mixed" else int(bits), **own
        )
    mx.eval(model.parameters())
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    return folder


def _livelier(path: str, array: mx.array) -> mx.array:
    """Matrices three times as large, vectors a little uneven, and nothing zero: a zero gate hides what it gates.

    Embeddings stay small: a tied one would otherwise only find the token that was fed.
    """
    noise = mx.random.normal(array.shape)
    if not mx.any(array).item():
        return 0.5 * noise
    if "embed" in path:
        return array / 4
    return array * 3 if array.ndim > 1 else array * (1 + 0.2 * noise)


def _mixed(path: str, _module: object) -> bool | dict[str, int]:
    """Bits by place, as in recipes that spare some layers; what is not packed at all comes in between."""
    if "v_proj" in path or path.startswith("model.layers.2."):
        return False
    bits = 8 if "embed" in path or "lm_head" in path else 6 if "down_proj" in path or ".0." in path else 4
    return {"group_size": 32, "bits": bits}


LAYOUTS = ("single", "single, index", "sharded", "sharded, index")


def store(folder: Path, layout: str) -> Path:
    """Store a model's one weight file in another layout: in three files, or with an index, or both."""
    whole = folder / "model.safetensors"
    tensors = mx.load(str(whole))
    assert isinstance(tensors, dict)
    mx.eval(tensors)
    names = sorted(tensors)
    count = 3 if layout.startswith("sharded") else 1
    where = {}
    for number in range(count):
        # Every third tensor, so that each layer lies in several files.
        part = names[number::count]
        file = f"model-{number + 1:05}-of-{count:05}.safetensors" if count > 1 else whole.name
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in part})
        where.update(dict.fromkeys(part, file))
    if count > 1:
        whole.unlink()
    if layout.endswith("index"):
        index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def store_by_layers(folder: Path, per_file: int = 2) -> dict[str, set[str]]:
    """Store a model's one weight file as large ones are: in order, so many layers a file, with an index.

    Returns:
        The tensors of each file. The embedding comes with the first layers, norm and head with the last.
    """
    whole = folder / "model.safetensors"
    tensors = mx.load(str(whole))
    assert isinstance(tensors, dict)
    numbers = {name: int(found[1]) for name in tensors if (found := re.search(r"layers\.(\d+)\.", name))}
    count = max(numbers.values()) // per_file + 1
    files: dict[str, set[str]] = {}
    for name in tensors:
        place = numbers[name] // per_file if name in numbers else 0 if "embed" in name else count - 1
        files.setdefault(f"model-{place + 1:05}-of-{count:05}.safetensors", set()).add(name)
    for file, names in files.items():
        mx.save_safetensors(str(folder / file), {name: tensors[name] for name in names})
    whole.unlink()
    where = {name: file for file, names in files.items() for name in names}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))
    return files
