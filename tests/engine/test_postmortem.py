"""An exception in a pass over ranks in one process: what the one line says, and what lies there afterwards."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_nb.engine.stage import Stage
from mlx_nb.shared.errors import RunError, RunFinished
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]


def with_weight(path: str, shape: tuple[int, ...]) -> Callable[[Stage], None]:
    """Give one module a weight of another shape."""

    def change(stage: Stage) -> None:
        for name, module in stage.model.named_modules():
            if name == path:
                module.weight = mx.ones(shape)

    return change


@pytest.mark.parametrize(
    ("path", "shape", "parts"),
    [
        (
            "layers.3.self_attn.q_proj",
            (64, 48),
            [
                "Rank 1 (layers 3–4) raised ValueError in prefill 0:8 · model.layers.3.self_attn.q_proj:",
                "x is [B 1, L 8, D 64]",
                "self['weight'].T is [48, 64]",
                "config.json: hidden_size = 64",
                "Look around where it was raised: pipe.pm()",
            ],
        ),
        (
            "layers.1.mlp.down_proj",
            (64, 80),
            ["Rank 0 (layers 0–2)", "model.layers.1.mlp.down_proj", "[80, 64]", "intermediate_size = 96"],
        ),
        (
            "layers.1.self_attn.o_proj",
            (64, 60),
            ["model.layers.1.self_attn.o_proj", "num_attention_heads = 4, head_dim = 16"],
        ),
        (
            "layers.1.self_attn.q_proj",  # its output is misshapen: that shows in the attention's own code
            (63, 64),
            ["model.layers.1.self_attn:", "queries is [B 1, L 8, 63]", "num_attention_heads = 4"],
        ),
    ],
)
def test_the_line_names_rank_site_operands_and_the_field(
    tiny: Tiny, path: str, shape: tuple[int, ...], parts: list[str]
) -> None:
    pipe = LoopbackPipe(tiny("llama"), [3, 2], with_weight(f"model.{path}", shape))
    with pipe.begin_at() as dbg, pytest.raises(RunError) as error:
        dbg.run()
    pipe.unload()

    for part in parts:
        assert part in str(error.value), str(error.value)


def test_the_pass_lies_where_it_raised_and_every_rank_answers(tiny: Tiny) -> None:
    pipe = LoopbackPipe(tiny("llama"), [3, 2], with_weight("model.layers.3.self_attn.q_proj", (64, 48)))
    with pytest.raises(RunError, match="No forward pass of this pipe has raised"):
        pipe.pm()
    with pipe.begin_at() as dbg, pytest.raises(RunError):
        dbg.run()
    assert dbg.closed

    found = pipe.pm()

    assert found.position.where == "prefill 0:8 · rank 1 · model.layers.3.self_attn.q_proj.input"
    assert [frame.class_name for frame in found.position.stack][-2:] == ["Attention", "Linear"]
    named = {arg.name: arg.summary.shape for arg in found.args if arg.summary}
    assert named == {"x": (1, 8, 64), "self.weight": (64, 48)}
    assert found.value.shape == (1, 8, 64)
    assert found.p("self.weight.shape").text == "(64, 48)"
    assert "x @" in found.source()
    assert "queries, keys, values = self.q_proj(x)" in found.position.about
    assert [kv.text for kv in found.position.ranks] == ["8 written", "8 pending"]
    assert found.p("len(cache)", rank=0).text == "5"  # rank 0's part of the pass is over
    for stride in (found.into, found.run, found.token):
        with pytest.raises(RunFinished, match="it cannot go on"):
            stride()
    found.close()
    assert not any(stage.runs for stage in pipe.stages)
    pipe.unload()


def test_an_error_that_is_no_shape_is_told_with_its_module(tiny: Tiny, monkeypatch: Any) -> None:
    pipe = LoopbackPipe(tiny("llama"), [3, 2])
    module = __import__("mlx_lm.models.llama", fromlist=["MLP"])

    def raises(self: Any, x: mx.array) -> mx.array:
        raise KeyError("gone")

    monkeypatch.setattr(module.MLP, "__call__", raises)
    with pipe.begin_at() as dbg, pytest.raises(RunError, match=r"raised KeyError in .*model\.layers\.0\.mlp"):
        dbg.run()
    assert pipe.pm().position.site == "model.layers.0.mlp.input"
    pipe.unload()
