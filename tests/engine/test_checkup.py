"""The check-up of one rank: nothing on clean models, and what is wrong by its name."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import pytest

from mlx_nb.client.magics.check import check_parser
from mlx_nb.engine.stage import Stage
from mlx_nb.shared.errors import OptionError
from tests import tiny
from tests.engine.loopback_pipe import LoopbackPipe

CLEAN = ("llama", "deepseek_v3")  # more of them over two ranks: tests/faults/test_hunt.py


@pytest.fixture
def checked(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Checks a tiny model on one rank, after something was done to its stage."""
    pipes = []

    def check(kind: str, spoil: Callable[[Stage], None] = lambda _stage: None, **options: Any) -> Any:
        folder = tiny.make_tiny(kind, tmp_path / kind, **options.pop("changes", {}))
        pipe = LoopbackPipe(folder, [tiny.CONFIGS[kind]["num_hidden_layers"]])
        pipes.append(pipe)
        spoil(pipe.stages[0])
        return pipe.check(**options)

    yield check
    for pipe in pipes:
        pipe.unload()


@pytest.mark.parametrize("kind", CLEAN)
def test_nothing_is_found_on_a_clean_model(kind: str, checked: Callable[..., Any]) -> None:
    report = checked(kind)

    assert report.ok, report
    assert "nothing wrong" in str(report)
    assert "module calls made again" in str(report)


def test_rings_and_quantised_kv_caches_are_checked_too(checked: Callable[..., Any]) -> None:
    assert checked("qwen3", max_kv_size=6, max_tokens=4).ok
    packed = {"kv_bits": 8, "kv_group_size": 32, "quantized_kv_start": 0}
    assert checked("qwen3", changes={"head_dim": 32}, **packed).ok
    with pytest.raises(OptionError, match="does not divide"):
        checked("qwen3", **packed)


def layer(stage: Stage, number: int) -> Any:
    return stage.model.layers[number]


def wrong_weight(stage: Stage) -> None:
    layer(stage, 3).self_attn.o_proj.weight = layer(stage, 3).self_attn.o_proj.weight.T


def wrong_setting(stage: Stage) -> None:
    layer(stage, 2).post_attention_layernorm.eps = 0.5


def not_a_number(stage: Stage) -> None:
    weight = layer(stage, 1).mlp.down_proj.weight
    layer(stage, 1).mlp.down_proj.weight = mx.where(mx.arange(weight.shape[1]) == 5, mx.nan, weight)


@pytest.mark.parametrize(
    ("spoil", "kind", "site", "said"),
    [
        (wrong_weight, "weights", "model.layers.3.self_attn.o_proj.weight", "the transpose"),
        (wrong_setting, "module", "model.layers.2.post_attention_layernorm", "eps is 0.5, should be 1e-05"),
        (not_a_number, "weights", "model.layers.1.mlp.down_proj.weight", "not what its file has"),
    ],
)
def test_what_is_wrong_is_named_and_nothing_else(
    spoil: Callable[[Stage], None], kind: str, site: str, said: str, checked: Callable[..., Any]
) -> None:
    report = checked("llama", spoil)

    assert [(one.kind, one.site, one.rank) for one in report.findings] == [(kind, site, 0)]
    assert said in str(report)
    assert "Type: " in str(report)
    assert site in report._repr_html_()
    assert not report


def test_the_users_last_run_stays_as_it_is(checked: Callable[..., Any], tmp_path: Path) -> None:
    pipe = LoopbackPipe(tiny.make_tiny("llama", tmp_path / "own"), [5])
    try:
        pipe.generate([1, 2, 3, 4], max_tokens=3)
        before, last = str(pipe.kv_cache()), pipe.last

        assert pipe.check().ok

        assert pipe.last is last
        assert str(pipe.kv_cache()) == before
        # Its KV caches are looked at as well.
        pipe.stages[0].last_kv[2].offset -= 1
        report = pipe.check()
        assert [one.site for one in report.findings] == ["the KV caches of your last run"]
        assert "layer 2 is 1 behind" in str(report)
    finally:
        pipe.unload()


def test_the_magic_has_help() -> None:
    assert "--max-kv-size" in check_parser().format_help()
