"""A tiny random model of every architecture in the installed mlx-lm.

Configurations are our own and small: a few layers, a sliding window of 8, about a hundred tokens of
vocabulary. Most keys mean the same in most model files, and mlx-lm ignores those a file does not know,
so a configuration is `_COMMON` and what the architecture wants otherwise.
"""

import ast
import copy
import importlib
from pathlib import Path
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
import mlx_lm.models  # isort: skip
from mlx.utils import tree_map  # isort: skip

VOCABULARY = 101
WINDOW = 8
MODELS = Path(mlx_lm.models.__path__[0])

# What cannot run here at all, and why. Everything else must be in CONFIGS.
NOT_RUN = {
    "bitnet": "its matmul is a Metal kernel",
    "muse_spark": "its rotary attention is a Metal kernel",
    "olmo": "it needs the package ai2-olmo",
}

# What runs in one process and is refused over ranks: any cut of it.
REFUSED = {
    "iquestloopcoder": "calls the parts of its layers",
    "nanbeige": "goes through its layers 2 times",
}

_MIX = ["sliding_attention", "sliding_attention", "full_attention"] * 2
_LINEAR = ["linear_attention", "linear_attention", "full_attention"] * 2
_ROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 10000.0}

_COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 6,
    "num_layers": 6,
    "intermediate_size": 48,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "rms_norm_eps": 1e-5,
    "norm_eps": 1e-5,
    "layer_norm_eps": 1e-5,
    "layer_norm_epsilon": 1e-5,
    "layernorm_epsilon": 1e-5,
    "rope_theta": 10000.0,
    "max_position_embeddings": 512,
    "sliding_window": WINDOW,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "mlp_bias": False,
    "use_bias": False,
    "use_qk_norm": True,
    # Experts
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "num_experts_per_token": 2,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "moe_intermediate_size": 24,
    "shared_expert_intermediate_size": 24,
    "shared_intermediate_size": 24,
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "first_k_dense_replace": 1,
    "moe_layer_freq": 1,
    "decoder_sparse_step": 1,
    "mlp_only_layers": [],
    "n_group": 1,
    "topk_group": 1,
    # Latent attention
    "kv_lora_rank": 16,
    "q_lora_rank": 24,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    # Linear attention
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_conv_kernel_dim": 4,
    "partial_rotary_factor": 0.5,
}


def _common(**changes: Any) -> dict[str, Any]:
    return {**_COMMON, **changes}


def _text(**changes: Any) -> dict[str, Any]:
    """A multimodal model's configuration: only its text part matters here."""
    return {"text_config": {"model_type": "text", **_common(**changes)}, "vocab_size": VOCABULARY}


_DSA = {"index_head_dim": 16, "index_n_heads": 2, "index_topk": 6}
_MLA = {"num_key_value_heads": 4, "scoring_func": "sigmoid", "topk_method": "noaux_tc"}
_GROUPED = {
    "layer_group_size": 3,
    "group_norm_size": 2,
    "score_function": "sigmoid",
    "num_key_value_heads": 4,
    "moe_router_enable_expert_bias": True,
    "topk_group": 1,
}
_GEMMA3N = {
    "num_hidden_layers": 8,
    "num_kv_shared_layers": 3,
    "layer_types": [*_MIX[:5], "sliding_attention", "sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": VOCABULARY,
    "rope_local_base_freq": 10000.0,
    "final_logit_softcapping": 30.0,
    "activation_sparsity_pattern": [0.5, 0.5, *[0.0] * 6],
    "hidden_size_per_layer_input": 8,
    "altup_num_inputs": 3,
    "altup_coef_clip": 120.0,
    "altup_correct_scale": True,
    "altup_active_idx": 0,
    "laurel_rank": 8,
}
_GEMMA4 = {
    "num_hidden_layers": 8,
    "num_kv_shared_layers": 3,
    "layer_types": [*_MIX[:5], "sliding_attention", "sliding_attention", "full_attention"],
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "global_head_dim": 16,
    "num_global_key_value_heads": 1,
    "partial_rotary_factor": 1.0,
    "tie_word_embeddings": True,
}
_GEMMA3 = {"sliding_window_pattern": 3, "query_pre_attn_scalar": 8}
_KDA = {
    "linear_attn_config": {
        "kda_layers": [1, 2, 4, 5],
        "full_attn_layers": [3, 6],
        "num_heads": 2,
        "head_dim": 8,
        "short_conv_kernel_size": 4,
        "gate_lower_bound": -5.0,
    },
    "model_max_length": 512,
    "num_key_value_heads": 4,
}
_LFM2 = {
    "conv_bias": False,
    "conv_L_cache": 3,
    "block_dim": 32,
    "block_multiple_of": 8,
    "block_ffn_dim_multiplier": 1.0,
    "block_auto_adjust_ff_dim": False,
    "block_ff_dim": 48,
    "full_attn_idxs": [2, 5],
    "num_dense_layers": 2,
    "use_expert_bias": True,
}
_LLAMA4 = {
    "attention_chunk_size": WINDOW,
    "interleave_moe_layer_step": 2,
    "intermediate_size_mlp": 48,
    "rope_scaling": None,
    "num_experts_per_tok": 1,
    "num_hidden_layers": 8,
}
_LONGCAT = {
    "attention_method": "MLA",
    "zero_expert_type": "identity",
    "ffn_hidden_size": 48,
    "moe_topk": 2,
    "expert_ffn_hidden_size": 24,
    "zero_expert_num": 2,
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
_GPT = {"n_embd": 32, "n_layer": 5, "n_head": 4, "n_positions": 512, "n_ctx": 512, "n_inner": 48}
_GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.35,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.7,
}
_MINICPM = {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 2.0, "num_key_value_heads": 4}

# Of those that cannot run here: enough to see that they are refused with the reason.
METAL: dict[str, dict[str, Any]] = {
    "bitnet": _common(),
    "muse_spark": _text(
        layer_types=_MIX,
        layer_rope_theta=[10000.0] * 6,
        rope_parameters=_ROPE,
        moe_hidden_size=16,
        num_shared_experts=0,
        post_norm_eps=1e-6,
        final_logit_softcapping=20.0,
        output_multiplier=1.0,
    ),
}

CONFIGS: dict[str, dict[str, Any]] = {
    "Klear": _common(),
    "afm7": _common(hidden_dim=32, num_layers=7, num_kv_reuse_layers=3, num_heads=4, num_kv_heads=2),
    "afmoe": _common(layer_types=_MIX, num_dense_layers=2),
    "apertus": _common(post_norm=False, qk_norm=True),
    "baichuan_m1": _common(
        sliding_window_layers=[0, 2, 4],
        conv_window=2,
        num_swa_attention_heads=4,
        num_swa_key_value_heads=2,
    ),
    "bailing_hybrid": _common(**_GROUPED),
    "bailing_moe": _common(topk_group=1),
    "bailing_moe_linear": _common(**_GROUPED),
    "bailing_moe_v3": _common(
        layer_group_size=3, num_key_value_heads=4, moe_shared_expert_intermediate_size=24, no_kda_lora=True
    ),
    "cohere": _common(),
    "cohere2": _common(sliding_window_pattern=3),
    "dbrx": _common(
        d_model=32,
        ffn_config={"ffn_hidden_size": 24, "moe_num_experts": 4, "moe_top_k": 2},
        attn_config={"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        n_layers=5,
        n_heads=4,
    ),
    "deepseek": _common(),
    "deepseek_v2": _common(
        **{**_MLA, "topk_method": "gready"},
        rope_scaling={"factor": 2.0, "original_max_position_embeddings": 512, "mscale_all_dim": 0.5},
    ),
    "deepseek_v3": _common(**_MLA),
    "deepseek_v32": _common(**_MLA, **_DSA),
    "deepseek_v41": _common(
        head_dim=16,
        qk_rope_head_dim=8,
        o_groups=2,
        o_lora_rank=8,
        num_hidden_layers=8,
        compress_ratios=(0, 4, 4, 0, 4, 4, 4, 0),
        kv_source_layer_ids=(1, 5),
        index_source_layer_ids=(1, 4, 5),
        candidate_source_layer_id=1,
        candidate_topk_blocks=2,
        candidate_block_size=2,
        index_n_heads=2,
        index_head_dim=16,
        index_topk=3,
        hc_mult=2,
        hc_sinkhorn_iters=3,
        rms_norm_eps=1e-6,
        scoring_func="sqrtsoftplus",
    ),
    "dots1": _common(scoring_func="noaux_tc"),
    "ernie4_5": _common(),
    "ernie4_5_moe": _common(
        moe_num_experts=4, moe_k=2, moe_num_shared_experts=1, moe_layer_start_index=1, moe_capacity=[4, 4, 4]
    ),
    "exaone": _common(),
    "exaone4": _common(sliding_window_pattern="LLG", rope_scaling=None),
    "exaone_moe": _common(layer_types=_MIX, is_moe_layer=[False, True, True, True, False, True]),
    "falcon_h1": _common(
        mamba_d_conv=4,
        mamba_d_head=8,
        mamba_d_ssm=32,
        mamba_d_state=8,
        mamba_expand=1,
        mamba_n_heads=4,
        mamba_rms_norm=True,
        embedding_multiplier=1.0,
        lm_head_multiplier=1.0,
    ),
    "gear": _common(layer_types=["conv_mixer", "sliding_attention", "full_attention"] * 2),
    "gemma": _common(),
    "gemma2": _common(),
    "gemma3": _text(**_GEMMA3),
    "gemma3_text": _common(**_GEMMA3),
    "gemma3n": _text(**_GEMMA3N),
    "gemma4": _text(**_GEMMA4),
    "gemma4_text": _common(**_GEMMA4),
    "glm": _common(),
    "glm4": _common(),
    "glm4_moe": _common(rope_scaling=None),
    "glm4_moe_lite": _common(**_MLA),
    "glm_moe_dsa": _common(**_MLA, **_DSA, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"}),
    "gpt2": _common(**_GPT, num_key_value_heads=4),
    "gpt_bigcode": _common(**_GPT, num_key_value_heads=1),
    "gpt_neox": _common(rotary_emb_base=10000, rotary_pct=0.5, num_key_value_heads=4),
    "gpt_oss": _common(layer_types=["sliding_attention", "full_attention"] * 3),
    "gptj": _common(**_GPT, rotary_dim=4),
    "granite": _common(**_GRANITE),
    "granitemoe": _common(**_GRANITE),
    "granitemoehybrid": _common(
        **_GRANITE,
        layer_types=["mamba", "mamba", "attention"] * 2,
        mamba_n_heads=4,
        mamba_d_head=8,
        mamba_proj_bias=False,
        mamba_d_state=8,
        mamba_d_conv=4,
        mamba_n_groups=1,
        mamba_conv_bias=True,
    ),
    "helium": _common(),
    "hunyuan": _common(
        moe_topk=2,
        num_shared_expert=1,
        use_mixed_mlp_moe=True,
        use_cla=True,
        cla_share_factor=2,
        rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 1000.0},
    ),
    "hunyuan_v1_dense": _common(rope_scaling={"type": "dynamic", "factor": 1.0, "alpha": 1000.0}),
    "internlm2": _common(),
    "internlm3": _common(),
    "iquestloopcoder": _common(loop_window_size=WINDOW),
    "jamba": _common(
        attn_layer_offset=1,
        attn_layer_period=3,
        expert_layer_offset=1,
        expert_layer_period=2,
        mamba_d_conv=4,
        mamba_d_state=8,
        mamba_expand=2,
    ),
    "kimi_k25": _text(**_MLA),
    "kimi_k3": _text(
        **_KDA,
        attn_res_block_size=2,
        hidden_act="situ",
        activation_situ_beta=1.0,
        activation_situ_linear_beta=1.0,
        mla_use_output_gate=True,
        routed_expert_hidden_size=16,
    ),
    "kimi_linear": _common(**_KDA),
    "kimi_vl": _text(**_MLA),
    "laguna": _common(layer_types=_MIX, mlp_layer_types=["dense", *["sparse"] * 5]),
    "lfm2": _common(**_LFM2),
    "lfm2-vl": _text(**_LFM2),
    "lfm2_moe": _common(**_LFM2),
    "lille-130m": _common(**{**_GPT, "n_embd": 96}, n_kv_heads=2, block_size=512),
    "llama": _common(layer_types=_MIX),
    "llama4": _text(**_LLAMA4),
    "llama4_text": _common(intermediate_size_mlp=48, no_rope_layers=[1, 1, 1, 0, 1, 1]),
    "longcat_flash": _common(**_LONGCAT, num_key_value_heads=4),
    "longcat_flash_ngram": _common(
        **_LONGCAT, num_key_value_heads=4, ngram_vocab_size_ratio=3, emb_neighbor_num=2, emb_split_num=2
    ),
    "mamba": _common(
        state_size=8,
        conv_kernel=4,
        use_bias=False,
        use_conv_bias=True,
        time_step_rank=4,
        intermediate_size=64,
    ),
    "mamba2": _common(
        num_heads=8,
        state_size=8,
        conv_kernel=4,
        n_groups=1,
        use_conv_bias=True,
        intermediate_size=64,
        time_step_limit=(0.0, 100.0),
        time_step_rank=4,
    ),
    "mellum": _common(
        layer_types=_MIX, rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE}
    ),
    "mimo": _common(),
    "mimo_v2_flash": _common(
        hybrid_layer_pattern=[0, 1, 1, 0, 1, 1],
        moe_layer_freq=[0, 1, 1, 1, 1, 1],
        add_swa_attention_sink_bias=True,
        add_full_attention_sink_bias=False,
        sliding_window_size=WINDOW,
        scoring_func="sigmoid",
        topk_method="noaux_tc",
        swa_rope_theta=10000.0,
        swa_num_attention_heads=4,
        swa_num_key_value_heads=2,
        swa_head_dim=8,
        swa_v_head_dim=16,
    ),
    "minicpm": _common(**_MINICPM),
    "minicpm3": _common(
        **_MINICPM,
        rope_scaling={
            "type": "longrope",
            "original_max_position_embeddings": 512,
            "long_factor": [1.0] * 4,
            "short_factor": [1.0] * 4,
        },
    ),
    "minimax": _common(rotary_dim=4),
    "minimax_m3_vl": _text(
        dense_intermediate_size=48,
        moe_layer_freq=[0, 1, 1, 1, 1, 1],
        sparse_attention_freq=[0, 0, 1, 1, 1, 1],
        index_n_heads=2,
        index_head_dim=8,
        index_block_size=4,
        index_topk_blocks=2,
    ),
    "ministral3": _common(
        layer_types=_MIX,
        rope_parameters={
            "rope_theta": 10000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    ),
    "mistral3": _text(model_type="llama"),
    "mistral4": _common(
        num_key_value_heads=4,
        rope_parameters={
            "rope_theta": 10000.0,
            "rope_type": "default",
            "llama_4_scaling_beta": 0.1,
            "original_max_position_embeddings": 16,
        },
    ),
    "mixtral": _common(),
    "muse_glimmer": _common(layer_types=_MIX),
    "nanbeige": _common(num_loops=2),
    "nanochat": _common(),
    "nemotron": _common(hidden_act="relu2"),
    "nemotron-nas": _common(
        block_configs=[
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
            {"attention": {"replace_with_linear": True}, "ffn": {"ffn_mult": 1.0}},
            {"attention": {"n_heads_in_group": 1}, "ffn": {"replace_with_linear": True}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
        ]
    ),
    "nemotron_h": _common(
        hybrid_override_pattern=["M", "-", "M", "*", "E", "M", "*", "-"],
        num_hidden_layers=8,
        mamba_num_heads=4,
        mamba_head_dim=8,
        mamba_proj_bias=False,
        ssm_state_size=8,
        conv_kernel=4,
        n_groups=1,
        use_conv_bias=True,
        moe_shared_expert_intermediate_size=24,
        time_step_limit=(0.0, 100.0),
    ),
    "olmo2": _common(),
    "olmo3": _common(layer_types=_MIX),
    "olmo_hybrid": _common(layer_types=_LINEAR, linear_allow_neg_eigval=True),
    "olmoe": _common(),
    "openelm": _common(
        num_transformer_layers=5,
        model_dim=32,
        ffn_dim_divisor=8,
        num_query_heads=[4, 4, 4, 4, 4],
        num_kv_heads=[2, 2, 2, 2, 2],
        ffn_multipliers=[1.0, 1.5, 2.0, 2.0, 2.0],
    ),
    "phi": _common(num_key_value_heads=4),
    "phi3": _common(partial_rotary_factor=1.0),
    # It marks token ids up to 100,351 as unused, whatever its vocabulary.
    "phi3small": _common(
        vocab_size=100_352,
        dense_attention_every_n_layers=2,
        ff_intermediate_size=48,
        gegelu_limit=20.0,
        blocksparse_block_size=32,
        blocksparse_num_local_blocks=1,
        blocksparse_vert_stride=2,
    ),
    "phimoe": _common(
        rope_scaling={
            "long_factor": [1.0] * 4,
            "short_factor": [1.0] * 4,
            "long_mscale": 1.0,
            "short_mscale": 1.0,
            "original_max_position_embeddings": 512,
        },
    ),
    "phixtral": _common(num_vocab=VOCABULARY, model_dim=32, num_heads=4, num_layers=5, rotary_dim=4),
    "pixtral": _text(model_type="llama"),
    "plamo": _common(n_shared_head=2),
    "plamo2": _common(
        hidden_size_per_head=8,
        attention_window_size=WINDOW,
        mamba_d_state=8,
        mamba_num_heads=4,
        tie_word_embeddings=True,
    ),
    "plamo3": _common(window_size=WINDOW, sliding_window=None, sliding_window_pattern=3),
    "prism_hadamard_qwen35": {
        **_text(hidden_size=128, full_attention_interval=3, num_experts=0),
        "schema_version": 1,
        "tensor_namespace": "mlx-lm-text",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {"path": f"model.layers.{i}.mlp.up_proj", "embedding": False, "dtype": "float16", "block": 0}
            for i in range(6)
        ],
    },
    "qwen": _common(kv_channels=8),
    "qwen2": _common(),
    "qwen2_moe": _common(),
    "qwen2_vl": _text(),
    "qwen3": _common(),
    "qwen3_5": _text(full_attention_interval=3, num_experts=0, model_type="qwen3_5_text"),
    "qwen3_5_moe": _text(full_attention_interval=3, model_type="qwen3_5_moe_text"),
    "qwen3_moe": _common(),
    "qwen3_next": _common(full_attention_interval=3),
    "qwen3_vl": _text(),
    "qwen3_vl_moe": _text(),
    "recurrent_gemma": _common(
        conv1d_width=4,
        logits_soft_cap=30.0,
        attention_window_size=WINDOW,
        block_types=["recurrent", "recurrent", "attention"],
        num_key_value_heads=1,
    ),
    "rwkv7": _common(a_low_rank_dim=8, v_low_rank_dim=8, gate_low_rank_dim=8, decay_low_rank_dim=8),
    "seed_oss": _common(),
    "smollm3": _common(),
    "solar_open": _common(),
    "spark2_5": _common(
        layer_types=_MIX, rope_parameters={"full_attention": _ROPE, "sliding_attention": _ROPE}
    ),
    "stablelm": _common(use_qkv_bias=True),
    "starcoder2": _common(),
    "step3p5": _common(
        num_attention_groups=2,
        layer_types=_MIX,
        moe_num_experts=4,
        moe_top_k=2,
        share_expert_dim=24,
        moe_layers_enum="2,3,4,5",
        attention_other_setting={"num_attention_heads": 4, "num_attention_groups": 2},
    ),
    "talkie": _common(),
    "telechat3": _common(),
    "youtu_llm": _common(num_key_value_heads=4),
}


def installed() -> list[str]:
    """The model files of the installed mlx-lm: those that define `Model` and `ModelArgs`.

    Read as text, since importing one may end the process (olmo does, without its package).
    """
    found = []
    for file in sorted(MODELS.glob("*.py")):
        tree = ast.parse(file.read_text())
        names: set[str] = set()
        for node in tree.body:
            if isinstance(node, ast.ClassDef):
                names.add(node.name)
            elif isinstance(node, ast.ImportFrom):
                names |= {alias.asname or alias.name for alias in node.names}
        if {"Model", "ModelArgs"} <= names:
            found.append(file.stem)
    return found


def build(name: str, seed: int = 3) -> nn.Module:
    """A tiny random model, evaluated.

    The weights are scaled up: at their usual size a random model repeats one token for ever, and its
    layers hardly move the hidden state, so a lost layer would hardly show.
    """
    mx.random.seed(seed)
    model = build_blank(name)
    model.update(tree_map(_louder, model.parameters()))
    mx.eval(model.parameters())
    return model


def build_blank(name: str) -> nn.Module:
    """The same without weights of its own: they are never evaluated."""
    module: Any = importlib.import_module(f"mlx_lm.models.{name}")
    config = {"model_type": name, **copy.deepcopy({**CONFIGS, **METAL}[name])}
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config))
    model.eval()
    return model


def _louder(array: mx.array) -> mx.array:
    if not mx.issubdtype(array.dtype, mx.floating):
        return array
    noise = mx.random.normal(array.shape)
    if array.ndim > 1:
        # Some files start with zeros where a checkpoint has values.
        return (array * 2 + 0.1 * noise).astype(array.dtype)
    return (array + 0.2 * noise).astype(array.dtype)
