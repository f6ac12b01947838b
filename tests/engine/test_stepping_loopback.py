"""The probe in one process: which stops a pass has, and that stepping changes nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_nb.engine.layers import named_modules
from tests.engine.loopback import PROMPT, Stepper, generate, make_stages

Tiny = Callable[..., Path]

LLAMA_LAYER = [  # one layer's stops in the order in which llama.py makes its calls
    "input",
    "input_layernorm.input",
    "input_layernorm.output",
    "self_attn.input",
    "self_attn.q_proj.input",
    "self_attn.q_proj.output",
    "self_attn.k_proj.input",
    "self_attn.k_proj.output",
    "self_attn.v_proj.input",
    "self_attn.v_proj.output",
    "self_attn.rope#1.input",
    "self_attn.rope#1.output",
    "self_attn.rope#2.input",
    "self_attn.rope#2.output",
    "self_attn.o_proj.input",
    "self_attn.o_proj.output",
    "self_attn.output",
    "post_attention_layernorm.input",
    "post_attention_layernorm.output",
    "mlp.input",
    "mlp.gate_proj.input",
    "mlp.gate_proj.output",
    "mlp.up_proj.input",
    "mlp.up_proj.output",
    "mlp.down_proj.input",
    "mlp.down_proj.output",
    "mlp.output",
    "output",
]


def layer(index: int) -> list[str]:
    return [f"model.layers.{index}.{stop}" for stop in LLAMA_LAYER]


def pass_of(stepper: Stepper) -> list[str]:
    """The sites of one pass, from its beginning up to the next one's."""
    assert stepper.position is not None
    sites, index = [stepper.position.site], stepper.position.index
    while (position := stepper.go("into")) and position.index == index:
        sites.append(position.site)
    return sites


@pytest.mark.parametrize("split", [[5], [3, 2], [1, 3, 1]])
def test_a_pass_stops_as_the_model_is_built(tiny: Tiny, split: list[int]) -> None:
    stepper = Stepper(make_stages(tiny("llama"), split))

    expected = ["model.embed_tokens.input", "model.embed_tokens.output"]
    for index in range(5):
        expected += layer(index)
        if index + 1 in [sum(split[:rank]) for rank in range(1, len(split))]:
            expected += ["send", "recv"]
    expected += ["model.norm.input", "model.norm.output", "model.output", "logits"]
    assert pass_of(stepper) == expected
    assert pass_of(stepper)[:2] == [
        "input",
        "model.input",
    ]  # from the second pass on, the model's own entry too
    stepper.close()


@pytest.mark.parametrize(
    "kind",
    [
        "llama",
        "gemma3",
        pytest.param("qwen3_moe", marks=pytest.mark.soak),
        "rwkv7",
        pytest.param("mamba2", marks=pytest.mark.soak),
        pytest.param("deepseek_v3", marks=pytest.mark.soak),
    ],
)
@pytest.mark.parametrize("stride", ["into", "over", "layer", "rank", "token"])
def test_stepping_to_the_end_gives_the_free_runs_tokens(tiny: Tiny, kind: str, stride: str) -> None:
    stages = make_stages(tiny(kind), {7: [3, 2, 2]}.get(7 if kind == "gemma3" else 5, [2, 2, 1]))
    wanted, _ = generate(stages, max_tokens=3)
    stepper = Stepper(stages, max_tokens=3)

    while stepper.position is not None:
        stepper.go(stride)

    assert stepper.tokens == wanted
    assert len(set(wanted)) > 1


def test_a_free_run_while_a_stepper_stands_gives_the_same_tokens(tiny: Tiny) -> None:
    stages = make_stages(tiny("gemma3"), [4, 3])
    wanted, _ = generate(stages)
    stepper = Stepper(stages)
    for _ in range(40):
        stepper.go("into")
    site = stepper.position

    assert generate(stages)[0] == wanted

    assert stepper.position is site
    while stepper.position is not None:
        stepper.go("layer")
    assert stepper.tokens == wanted


def test_two_steppers_take_turns(tiny: Tiny) -> None:
    stages = make_stages(tiny("llama"), [3, 2])
    wanted, _ = generate(stages)
    one, two = Stepper(stages), Stepper(stages)

    while one.position is not None or two.position is not None:
        for stepper in (one, two):
            if stepper.position is not None:
                stepper.go("layer", count=3)

    assert one.tokens == two.tokens == wanted


def test_the_classes_are_given_back(tiny: Tiny) -> None:
    stages = make_stages(tiny("llama"), [3, 2])
    before = [[type(module) for _, module in named_modules(stage.model)] for stage in stages]

    def now() -> list[list[type]]:
        return [[type(module) for _, module in named_modules(stage.model)] for stage in stages]

    one = Stepper(stages, max_tokens=2)
    one.go("layer", count=4)
    two = Stepper(stages, max_tokens=2)
    two.go("layer", count=4)
    assert now() != before  # the control
    one.close()
    assert now() != before
    while two.position is not None:
        two.go("token")
    two.close()

    assert now() == before


def test_a_value_put_in_place_changes_the_pass_from_there(tiny: Tiny) -> None:
    stages = make_stages(tiny("llama"), [3, 2])
    wanted, _ = generate(stages)
    stepper = Stepper(stages)
    while stepper.position is not None and stepper.position.site != "model.layers.1.output":
        stepper.go("into")
    stop = stepper.runs[0].stop
    assert stop is not None
    stop.value = stop.value * 0

    while stepper.position is not None:
        stepper.go("token")

    assert stepper.tokens != wanted


def test_a_prompt_in_three_chunks_is_three_passes(tiny: Tiny) -> None:
    stepper = Stepper(make_stages(tiny("llama"), [3, 2]), max_tokens=2)
    seen = []
    while stepper.position is not None:
        seen.append((stepper.position.phase, stepper.position.start, stepper.position.stop))
        stepper.go("token")

    length = len(PROMPT)
    assert seen == [
        ("prefill", 0, 8),
        ("prefill", 8, 16),
        ("prefill", 16, 21),
        ("decode", length, length + 1),
    ]
