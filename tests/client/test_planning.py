"""Plans and shape tables without a cluster: checked against the files, and against what ranks really load."""

import json
import resource
import time
from pathlib import Path

import pytest

import mlx_nb
from mlx_nb.shared.errors import ModelNotFoundError, OptionError, PlanError
from mlx_nb.shared.fit import make_plan, split_by_memory
from mlx_nb.shared.model_sizes import Common, ModelSizes

GIB = 2**30
ENDS = tuple(Common(size_bytes=2 * GIB, readers=(reader,)) for reader in (0, 10))


def sizes(**changes: object) -> ModelSizes:
    """Ten layers of 1 GiB, an embedding and a head of 2 GiB each, a KV cache of half a GiB a layer."""
    known: dict[str, object] = {
        "model": "ten", "layers": (GIB,) * 10, "common": ENDS, "kv": (GIB // 2,) * 10,
        "context": 4096, "hidden_size": 64, "dtype": "bfloat16",
    }  # fmt: skip
    return ModelSizes(**{**known, **changes})  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def smollm2_plan() -> mlx_nb.shared.plan.Plan:
    return mlx_nb.plan("smollm2", ranks=2)


def test_a_plan_weighs_what_the_ranks_load(smollm2_plan) -> None:
    # 49,152 x 576 embedding, tied; 15 layers of 3,540,096; a norm of 576; float32.
    assert [shard.weight_bytes for shard in smollm2_plan.shards] == [
        4 * (49_152 * 576 + 15 * 3_540_096),
        4 * (49_152 * 576 + 15 * 3_540_096 + 576),
    ]


def test_a_rank_alone_has_a_tied_embedding_once() -> None:
    alone = mlx_nb.plan("smollm2", ranks=1).shards[0]

    assert alone.weight_bytes == 4 * 134_515_008


def test_a_plan_counts_keys_and_values_of_the_context(smollm2_plan) -> None:
    # 3 KV heads of 64, keys and values, float32, 4,096 tokens, 15 layers a rank.
    assert [shard.kv_bytes for shard in smollm2_plan.shards] == [2 * 3 * 64 * 4 * 4096 * 15] * 2


@pytest.mark.cluster
def test_the_plan_of_loaded_ranks_agrees(cluster2, smollm2_plan) -> None:
    pipe = cluster2.load("smollm2", split="memory")
    weights = [shard.weight_bytes for shard in pipe.plan.shards]
    text = repr(pipe.plan)
    pipe.unload()

    assert weights == [shard.weight_bytes for shard in smollm2_plan.shards]
    assert " cut: so that the fullest rank is as empty as can be" in text
    assert " legal cuts: before any layer from 1 to 29" in text


def test_layers_by_memory_leave_the_fullest_rank_as_empty_as_can_be() -> None:
    counts = split_by_memory(sizes(), [8 * GIB, 24 * GIB])

    def fullest(first: int) -> float:
        used = [sizes().weight_bytes(0, first) + sizes().kv_bytes(0, first),
                sizes().weight_bytes(first, 10) + sizes().kv_bytes(first, 10)]  # fmt: skip
        return max(used[0] / (8 * GIB), used[1] / (24 * GIB))

    assert fullest(counts[0]) == min(fullest(first) for first in range(1, 10))


def test_a_model_that_does_not_fit_is_refused_with_what_would() -> None:
    with pytest.raises(PlanError) as error:
        make_plan(sizes(), ["mini1", "mini2"], [6 * GIB, 24 * GIB], "even")

    assert "rank 0 (mini1) would need" in error.value.problem
    assert error.value.fix.startswith("It fits with: split=[")
    fitting = json.loads(error.value.fix.removeprefix("It fits with: split="))
    assert make_plan(sizes(), ["mini1", "mini2"], [6 * GIB, 24 * GIB], fitting).num_ranks == 2


def test_more_ranks_are_named_when_no_cut_fits() -> None:
    with pytest.raises(PlanError, match=r"It fits on 3 ranks of 8\.0 GiB"):
        make_plan(sizes(), ["a", "b"], [8 * GIB, 8 * GIB], "memory")


def test_a_context_that_would_fit_is_named() -> None:
    # The first rank: 7 GiB of weights and half a GiB in reserve leave half a GiB of 2.5 for KV caches.
    with pytest.raises(PlanError, match=r"It fits on 3 ranks of 8\.0 GiB, or with context=800\."):
        make_plan(sizes(), ["a", "b"], [8 * GIB, 8 * GIB], "even")


def test_a_plan_says_why_it_cuts_there() -> None:
    even = make_plan(sizes(), ["a", "b", "c"], [0, 0, 0], "even")
    assert even.reason == "even: 3 layers a rank, one more on rank 0"
    filled = make_plan(sizes(), ["a", "b"], [16 * GIB, 48 * GIB], "memory")
    assert filled.reason.startswith("so that the fullest rank is as empty as can be")
    assert filled.reason.endswith(
        "; rank 0 is fullest, 34 % of its memory, rank 1 emptiest, 30 %, 512 MiB a rank for all else counted"
    )
    asked = make_plan(sizes(), ["a", "b"], [20 * GIB, 20 * GIB], [5, 5])
    assert asked.reason == "as asked for; each rank is 50 % full, 512 MiB a rank for all else counted"


def test_a_plan_says_which_part_of_the_host_a_rank_may_fill() -> None:
    assert str(mlx_nb.plan("smollm2", ranks=3)).count(" GiB (a third of this host)\n") == 3
    assert "this host" not in str(mlx_nb.plan("smollm2", ranks=1))
    assert "this host" not in str(mlx_nb.plan("smollm2", hosts=["a:16GB", "b:16GB"]))


def test_an_unknown_memory_cannot_be_divided_by() -> None:
    with pytest.raises(PlanError, match="hosts="):
        mlx_nb.plan("smollm2", hosts=["mini1", "mini2"], split="memory")


@pytest.mark.parametrize(
    ("wishes", "error"),
    [
        ({"ranks": 31}, PlanError),
        ({"ranks": 0}, PlanError),
        ({"split": [1, 2]}, PlanError),
        ({"context": 0}, OptionError),
    ],
)
def test_a_wrong_wish_says_so(wishes: dict, error: type[Exception]) -> None:
    with pytest.raises(error):
        mlx_nb.plan("smollm2", **wishes)


def test_a_wrong_split_is_told_as_an_argument_of_the_call() -> None:
    with pytest.raises(PlanError, match=r"Type: split=\[10, 20\]$"):
        mlx_nb.plan("smollm2", split=[10, 19])


def test_ranks_that_are_not_the_hosts_slots_are_refused() -> None:
    with pytest.raises(OptionError, match="2 slots, but 3 ranks"):
        mlx_nb.plan("smollm2", ranks=3, hosts=["a:16GB", "b:16GB"])
    assert len(mlx_nb.plan("smollm2", hosts=["a", "b", "c"]).shards) == 3


@pytest.mark.parametrize("host", ["a:lots", "a:2:16GB", ":16GB", "a:"])
def test_a_host_that_is_none_is_told_the_three_forms(host: str) -> None:
    with pytest.raises(OptionError, match="mini1, mini1:2 or mini1:16GB"):
        mlx_nb.plan("smollm2", hosts=[host, "b:16GB"])


def test_a_plan_is_made_again_at_once_unless_the_model_has_changed(tmp_path: Path) -> None:
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "vocab_size": 101}
    config = {**sizes, "model_type": "llama", "rms_norm_eps": 1e-5, "num_hidden_layers": 5}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert mlx_nb.plan(str(tmp_path), ranks=2).shards[0].num_layers == 5
    began_s = time.monotonic()
    assert len(mlx_nb.plan(str(tmp_path), ranks=5).shards) == 5
    assert time.monotonic() - began_s < 0.3  # no process has been started

    (tmp_path / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 12}))

    assert mlx_nb.plan(str(tmp_path), ranks=2).shards[0].num_layers == 12


def test_an_unknown_model_says_so() -> None:
    with pytest.raises(ModelNotFoundError, match="Did you mean smollm2"):
        mlx_nb.plan("smolm2")


def test_a_configuration_alone_is_enough_for_a_plan_of_671_billion_parameters(tmp_path: Path) -> None:
    config = {
        "model_type": "deepseek_v3", "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432,
        "moe_intermediate_size": 2048, "num_hidden_layers": 61, "num_attention_heads": 128,
        "num_key_value_heads": 128, "n_shared_experts": 1, "n_routed_experts": 256, "routed_scaling_factor": 2.5,
        "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128,
        "qk_nope_head_dim": 128, "topk_method": "noaux_tc", "scoring_func": "sigmoid", "norm_topk_prob": True,
        "n_group": 8, "topk_group": 4, "num_experts_per_tok": 8, "moe_layer_freq": 1, "first_k_dense_replace": 3,
        "max_position_embeddings": 163840, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "attention_bias": False,
        "torch_dtype": "bfloat16",
    }  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(config))
    eight = [f"mini{i}:256GB" for i in range(8)]
    before = processor_s()

    plan = mlx_nb.plan(str(tmp_path), hosts=eight)

    assert processor_s() - before < 5  # of the processor, not of the clock: other processes may be at work
    total = sum(shard.weight_bytes for shard in plan.shards)
    assert total == pytest.approx(2 * 671e9, rel=0.01)
    assert [len(shard.layers) for shard in plan.shards] == [8, 8, 8, 8, 8, 7, 7, 7]

    # In 4 bits, as its index says: half a byte a parameter, and a scale and a bias for 64 of them.
    config["quantization"] = {"group_size": 64, "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    where = dict.fromkeys(quantised_names(61, 3), "model-00001-of-00088.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))

    filled = mlx_nb.plan(str(tmp_path), hosts=["a:128GB", "b:64GB"] * 4, split="memory", context=16_384)
    assert sum(shard.weight_bytes for shard in filled.shards) == pytest.approx(4.5 / 8 * 671e9, rel=0.01)
    counts = [len(shard.layers) for shard in filled.shards]
    assert sum(counts) == 61
    assert min(counts[0::2]) > max(counts[1::2])  # the large ones hold more
    assert [shard.memory_bytes for shard in filled.shards[:2]] == [96 * GIB, 48 * GIB]
    by_hand = mlx_nb.plan(str(tmp_path), hosts=eight, split=[10, 8, 8, 8, 8, 8, 8, 3])
    assert by_hand.shards[0].layers == range(10)
    with pytest.raises(PlanError, match=r"does not fit: rank 0 \(m\) .* has 10\.7 GiB\. It fits on 58 ranks"):
        mlx_nb.plan(str(tmp_path), hosts=["m:16GB"] * 8)


def processor_s() -> float:
    """Processor seconds that the processes begun here have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def quantised_names(layers: int, dense: int) -> list[str]:
    """Names in the index of a quantised deepseek_v3, as mlx-lm stores it."""
    modules = ["model.embed_tokens", "lm_head"]
    for layer in range(layers):
        at = f"model.layers.{layer}"
        modules += [
            f"{at}.self_attn.{name}"
            for name in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "embed_q", "unembed_out", "o_proj")
        ]
        inside = [""] if layer < dense else [".switch_mlp", ".shared_experts"]
        for part in inside:
            modules += [f"{at}.mlp{part}.{name}" for name in ("gate_proj", "up_proj", "down_proj")]
    return [f"{module}.{kind}" for module in modules for kind in ("weight", "scales", "biases")]


def test_every_module_of_the_model_is_a_site_in_the_order_of_a_pass() -> None:
    table = mlx_nb.sites("smollm2")

    names = [row.site for row in table]
    assert names.index("model.embed_tokens.output") < names.index("model.layers.0.output")
    assert names[-1] == "logits"
    assert table[-1].shape == "[B, L, V 49152]"
    assert table[-1].parameters == 134_515_008
    inside = table["layers.7.self_attn.*"]
    assert [row.shape for row in inside if row.site.endswith("rope.output")] == ["[B, K 3, L, 64]"]
    assert "(×2)" in repr(inside)
