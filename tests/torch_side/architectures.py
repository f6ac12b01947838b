"""Tiny random transformers models, as checkpoints of Hugging Face's: made by torch, in a process of its own.

``python -m tests.torch_side.architectures FOLDER NAME …`` writes them.
"""

import json
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

_COMMON: dict[str, Any] = {
    "hidden_size": 64,
    "num_hidden_layers": 4,
    "intermediate_size": 96,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 101,
    "max_position_embeddings": 512,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_ROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}}
_WINDOWS = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    }
}
_EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True}

CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**_COMMON, **_ROPE, "tie_word_embeddings": False},
    "mistral": {**_COMMON, **_ROPE, "sliding_window": None, "head_dim": 16},
    "qwen2": {**_COMMON, **_ROPE, "tie_word_embeddings": True},
    "qwen3": {**_COMMON, **_ROPE, "head_dim": 16},
    "qwen3_moe": {**_COMMON, **_ROPE, **_EXPERTS, "head_dim": 16, "num_experts": 4, "decoder_sparse_step": 1},
    "gemma2": {
        **_COMMON,
        **_ROPE,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 4096,
        "final_logit_softcapping": 3.0,
    },
    "gemma3_text": {
        **_COMMON,
        **_WINDOWS,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 8,
        "layer_types": ["sliding_attention"] * 2 + ["full_attention"] + ["sliding_attention"],
    },
    "phi3": {**_COMMON, **_ROPE, "original_max_position_embeddings": 512},
    "olmo2": {**_COMMON, **_ROPE},
    "cohere": {**_COMMON, **_ROPE, "logit_scale": 0.25, "use_qk_norm": False},
    "granite": {
        **_COMMON,
        **_ROPE,
        "embedding_multiplier": 12.0,
        "residual_multiplier": 0.5,
        "attention_multiplier": 0.25,
        "logits_scaling": 4.0,
    },
    # mlx-lm takes the exact GELU whatever the configuration says, and by default that says tanh.
    "starcoder2": {**_COMMON, **_ROPE, "sliding_window": None, "hidden_act": "gelu"},
    "gpt_neox": {
        **_COMMON,
        **_ROPE,
        "num_key_value_heads": 4,
        "intermediate_size": 256,
        "hidden_act": "gelu_new",  # mlx-lm's, whatever the configuration says
        "rotary_pct": 0.25,
        "rotary_emb_base": 10000,
        "use_parallel_residual": True,
    },
}


def make(folder: Path, *names: str) -> None:
    """Write checkpoints, each into a folder of its name; what torch makes of a process stays out of this one."""
    program = [sys.executable, "-m", "tests.torch_side.architectures", str(folder), *names]
    done = subprocess.run(program, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr[-2000:]


def convert(checkpoint: Path, folder: Path) -> Path:
    """A checkpoint as mlx-lm writes it: its names, its layout."""
    import mlx.core as mx
    from mlx.utils import tree_flatten

    from mlx_nb.engine.mlx_lm_api import load_model

    model = load_model(checkpoint, trust_remote_code=False)
    mx.eval(model.parameters())
    folder.mkdir(parents=True)
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(model.parameters())))
    (folder / "config.json").write_text((checkpoint / "config.json").read_text())
    return folder


def _write(folder: Path, name: str) -> None:
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(3)
    # transformers writes into what it is given, and all configurations share one dictionary for RoPE.
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **deepcopy(CONFIGS[name])))
    with torch.no_grad():
        for path, array in model.named_parameters():
            # At their usual size random weights hardly move the hidden state, and norms are all alike.
            noise = torch.randn_like(array)
            array.copy_(0.2 * noise if array.ndim > 1 and "embed" not in path else array + 0.1 * noise)
    model.save_pretrained(folder / name)
    # What older configurations say, and mlx-lm reads.
    file = folder / name / "config.json"
    config = json.loads(file.read_text())
    config |= {key: value for key, value in CONFIGS[name].items() if key not in config}
    ropes = config.get("rope_parameters") or {}
    if "rope_theta" in ropes:
        config.setdefault("rope_theta", ropes["rope_theta"])
    if "full_attention" in ropes:
        config["rope_global_base_freq"] = config["rope_theta"] = ropes["full_attention"]["rope_theta"]
        config["rope_local_base_freq"] = ropes["sliding_attention"]["rope_theta"]
        config["sliding_window_pattern"] = 3
    file.write_text(json.dumps(config))


if __name__ == "__main__":
    for wanted in sys.argv[2:]:
        _write(Path(sys.argv[1]), wanted)
