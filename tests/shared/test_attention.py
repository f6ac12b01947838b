"""Which globs mean places inside attention."""

import pytest

from mlx_nb.shared.sites import complete_site
from mlx_nb.shared.strides import Event, Stride, advance, came_past

HERE = Event(kind="pattern", module="model.layers.1.self_attn.sdpa", depth=4, start=0, stop=4, tick=9)


@pytest.mark.parametrize(
    ("pattern", "there"),
    [
        ("model.layers.1.self_attn.sdpa.pattern", True),
        ("model.layers.*.self_attn.sdpa.*", True),
        ("**.sdpa.pattern", True),
        ("model.layers.*", False),
        ("**", False),
        ("model.layers.1.self_attn.sdpa.scores", False),
    ],
)
def test_only_a_glob_that_says_so_means_a_place_in_there(pattern: str, there: bool) -> None:
    assert HERE.at(pattern) is there


@pytest.mark.parametrize("name", ["into", "over", "out", "layer", "rank", "token", "run"])
def test_strides_pass_it_by(name: str) -> None:
    stride = Stride(name=name, kind="output", depth=9)
    assert not advance(stride, HERE)[0]
    assert not came_past(stride, HERE)


def test_who_names_it_comes_there() -> None:
    named = Stride(name="until", site="model.layers.1.self_attn.sdpa.pattern")
    assert advance(named, HERE)[0]
    assert came_past(named, HERE)
    assert advance(Stride(name="place", rank=0, token=0, tick=9), HERE)[0]
    assert not advance(Stride(name="until", rank=0), HERE)[0]


def test_tab_offers_them() -> None:
    modules = ["model.layers.0", "model.layers.0.self_attn", "model.layers.0.self_attn.sdpa"]
    found = complete_site("layers.0.self_attn.sdpa.", modules, ["model.layers.0"])
    assert found == [f"layers.0.self_attn.sdpa.{kind}" for kind in ("q", "k", "v", "scores", "pattern", "z")]
    assert "layers.0.pattern" in complete_site("layers.0.pat", modules, ["model.layers.0"])
