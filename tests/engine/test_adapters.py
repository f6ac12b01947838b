"""Adapters over ranks compute exactly what `mlx_lm.load(…, adapter_path=…)` computes in one process."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_nb.shared.errors import AdapterError, WeightsError
from tests.adapters import change, make_adapter, rewrite
from tests.engine.loopback import generate, logits, make_stages
from tests.one_process import OneProcess
from tests.tiny import CONFIGS

import mlx.core as mx  # isort: skip

Tiny = Callable[..., Path]

# The model, how it is stored, what it computes in, the kind of adapter, and what else it is.
CASES: dict[str, tuple[str, dict[str, Any], str | None, str, dict[str, Any]]] = {
    "lora": ("llama", {}, None, "lora", {}),
    "lora on the last layers": ("llama", {}, None, "lora", {"num_layers": 2}),
    "lora on embedding and head": (
        "llama_untied",
        {},
        None,
        "lora",
        {"keys": ["self_attn.q_proj", "mlp.down_proj", "model.embed_tokens", "lm_head"]},
    ),
    "lora on a tied embedding": ("llama", {}, None, "lora", {"keys": ["model.embed_tokens"]}),
    "lora on experts": ("qwen3_moe", {}, None, "lora", {}),
    "lora on 4 bits": ("llama", {"bits": 4}, None, "lora", {}),
    "lora on 4 bits, packed": ("llama", {"bits": 4}, "native", "lora", {}),
    "lora on 6 bits, packed": ("llama", {"bits": 6}, "native", "lora", {}),
    "lora on bfloat16": ("llama", {"dtype": "bfloat16"}, "native", "lora", {}),
    "dora": ("llama", {}, None, "dora", {}),
    "dora on 8 bits": ("qwen3", {"bits": 8}, None, "dora", {"num_layers": 3}),
    "dora on 4 bits, packed": ("llama_untied", {"bits": 4}, "native", "dora", {}),
    "full": ("llama", {}, None, "full", {}),
    "full on the last layer": ("gemma3", {}, None, "full", {"num_layers": 1}),
    "full on bfloat16": ("llama_untied", {"dtype": "bfloat16"}, None, "full", {"num_layers": 3}),
}


# Every kind, both ends, experts, packed and not; the rest by hand.
SPREAD = {
    "lora on the last layers", "lora on embedding and head", "lora on experts", "lora on 6 bits, packed",
    "dora on 8 bits", "dora on 4 bits, packed", "full on the last layer",
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [name if name in SPREAD else pytest.param(name, marks=pytest.mark.soak) for name in CASES]
)
def test_logits_and_tokens_are_exactly_those_of_mlx_lm(tiny: Tiny, tmp_path: Path, name: str) -> None:
    model, stored, dtype, kind, wishes = CASES[name]
    folder = tiny(model, **stored)
    adapter = make_adapter(folder, tmp_path / "adapter", kind, **wishes)
    alone = OneProcess(folder, adapter, dtype)
    wanted, tokens = alone.logits(), alone.tokens()
    without = OneProcess(folder, None, dtype).logits()
    assert np.abs(wanted - without).max() > 0.1  # the control: the adapter changes something
    count = CONFIGS[model]["num_hidden_layers"]

    for split in ([count], [count - 2, 2], [1, count - 2, 1]):
        stages = make_stages(folder, split, dtype, adapter_path=str(adapter))

        assert np.abs(logits(stages) - wanted).max() == 0.0, split
        assert generate(stages)[0] == tokens, split


def test_a_rank_holds_the_adapter_of_its_own_layers(tiny: Tiny, tmp_path: Path) -> None:
    adapter = make_adapter(tiny("llama"), tmp_path / "adapter", num_layers=3)

    stages = make_stages(tiny("llama"), [2, 2, 1], adapter_path=str(adapter))

    layers = [
        {int(name.split(".")[2]) for name in stage.owned if name.endswith((".lora_a", ".lora_b"))}
        for stage in stages
    ]
    assert layers == [set(), {2, 3}, {4}]
    assert [stage.loaded().adapter for stage in stages] == [str(adapter)] * 3


def test_other_ranks_adapter_tensors_change_nothing(tiny: Tiny, tmp_path: Path) -> None:
    folder = tiny("llama")
    adapter = make_adapter(folder, tmp_path / "adapter", "dora")
    wanted = logits(make_stages(folder, [2, 3], adapter_path=str(adapter)))

    def poisoned(layers: range) -> Path:
        copy = make_adapter(folder, tmp_path / f"poisoned{layers.start}", "dora")
        rewrite(
            copy,
            lambda tensors: {
                name: value * mx.nan if int(name.split(".")[2]) in layers else value
                for name, value in tensors.items()
            },
        )
        return copy

    foreign, own = poisoned(range(2, 5)), poisoned(range(2))  # as rank 0 sees them
    first = {path: make_stages(folder, [2, 3], adapter_path=str(path))[0] for path in (foreign, own)}
    for path, stage in first.items():
        stages = make_stages(folder, [2, 3], adapter_path=str(adapter))
        stage.transport = stages[0].transport
        same = np.array_equal(logits([stage, stages[1]]), wanted)
        assert same is (path == foreign)  # the control: its own tensors do matter


@pytest.fixture
def adapter(tiny: Tiny, tmp_path: Path) -> Path:
    """A whole adapter for the tiny llama, to break."""
    return make_adapter(tiny("llama"), tmp_path / "adapter")


def refusal(folder: Path, adapter: Path | str, split: tuple[int, ...] = (3, 2)) -> str:
    """How one of the ranks refuses an adapter."""
    with pytest.raises(AdapterError) as error:
        make_stages(folder, split, adapter_path=str(adapter))
    assert error.value.problem.startswith("Rank ")
    assert error.value.fix
    return str(error.value)


def test_a_folder_that_is_not_there(tiny: Tiny, tmp_path: Path) -> None:
    text = refusal(tiny("llama"), tmp_path / "nowhere")

    assert f"There is no adapter folder {tmp_path / 'nowhere'}." in text
    assert "adapter_config.json and adapters.safetensors" in text


def test_a_file_instead_of_its_folder(tiny: Tiny, adapter: Path) -> None:
    assert f"Type: --adapter {adapter}" in refusal(tiny("llama"), adapter / "adapters.safetensors")


def test_folders_that_are_no_adapters(tiny: Tiny, adapter: Path) -> None:
    (adapter / "adapters.safetensors").rename(adapter / "0000200_adapters.safetensors")
    assert "copy the one you want, such as 0000200_adapters.safetensors" in refusal(tiny("llama"), adapter)
    (adapter / "adapter_config.json").unlink()
    assert "has no adapter_config.json" in refusal(tiny("llama"), adapter)
    (adapter / "adapter_model.safetensors").touch()
    assert "PEFT's format" in refusal(tiny("llama"), adapter)
    assert "has no adapter_config.json" in refusal(tiny("llama"), tiny("llama"))


@pytest.mark.parametrize(
    ("entries", "told"),
    [
        ({"num_layers": None}, "lacks num_layers"),
        ({"lora_parameters": None}, "lacks lora_parameters"),
        ({"lora_parameters": {"rank": 4, "alpha": 16}}, "lacks lora_parameters.scale, lora_parameters.dropout"),
        ({"fine_tune_type": "ia3"}, "asks for fine_tune_type 'ia3'; mlx-lm knows lora, dora, full"),
        ({"fine_tune_type": "full"}, r"tensor model\.layers\.\S+: not an adapter parameter in the model \(and \d+ more\)"),
        ({"fine_tune_type": "dora"}, r"\.m and \d+ more are missing from .*adapters.safetensors"),
        ({"num_layers": 1}, "not an adapter parameter in the model"),
        ({"lora_parameters": {"rank": 8, "scale": 1.0, "dropout": 0.0}}, r"adapter shape \(\d+, 4\) does not match"),
    ],
)  # fmt: skip
def test_a_configuration_that_does_not_fit(
    tiny: Tiny, adapter: Path, entries: dict[str, Any], told: str
) -> None:
    change(adapter, **entries)

    with pytest.raises(AdapterError, match=told):
        make_stages(tiny("llama"), [3, 2], adapter_path=str(adapter))


@pytest.mark.parametrize("text", ["{", "[]", "\x00"])
def test_a_configuration_that_is_none(tiny: Tiny, adapter: Path, text: str) -> None:
    (adapter / "adapter_config.json").write_text(text)

    assert "adapter_config.json" in refusal(tiny("llama"), adapter)


def test_an_adapter_of_another_model_is_named(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    wider = tiny("llama", hidden_size=32)
    assert "does not match model parameter shape" in refusal(wider, adapter)
    assert "adapter_config.json says it was made for llama." in refusal(wider, adapter)
    assert "not an adapter parameter in the model" in refusal(tiny("mamba2"), adapter)


def test_an_adapter_of_a_deeper_model_names_the_layers(tiny: Tiny, adapter: Path) -> None:
    text = refusal(tiny("llama", num_hidden_layers=4), adapter, (2, 2))

    assert "belongs to layer 4, and the model has layers 0–3" in text
    assert "tensor model.layers.4." in text


def test_a_missing_tensor_is_named_by_the_rank_that_needs_it(tiny: Tiny, adapter: Path) -> None:
    lost = "model.layers.3.self_attn.v_proj.lora_a"
    rewrite(adapter, lambda tensors: {k: v for k, v in tensors.items() if k != lost})

    text = refusal(tiny("llama"), adapter)

    assert text.startswith("Rank 1 ")
    assert f"tensor {lost} is missing from {adapter / 'adapters.safetensors'}" in text


def test_a_truncated_adapter_is_named(tiny: Tiny, adapter: Path) -> None:
    file = adapter / "adapters.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    assert "adapters.safetensors is truncated: tensor model.layers." in refusal(tiny("llama"), adapter)


def test_the_models_own_faults_stay_the_models(tiny: Tiny, adapter: Path, tmp_path: Path) -> None:
    """The control of all refusals: a whole adapter loads, and a broken model is not the adapter's fault."""
    make_stages(tiny("llama"), [3, 2], adapter_path=str(adapter))
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text(json.dumps(CONFIGS["llama"]))

    with pytest.raises(WeightsError, match="has no weights"):
        make_stages(broken, [3, 2], adapter_path=str(adapter))
