"""Breakpoints over ranks in one process: conditions, and the report about the first NaN or Inf."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_nb.client.pipe import Pipe
from mlx_nb.engine import haste
from mlx_nb.engine.breaking import STATISTIC, has_nonfinite
from mlx_nb.engine.stage import Stage
from mlx_nb.shared.breaks import STATISTICS
from mlx_nb.shared.errors import OptionError, SiteError
from tests.engine.loopback import PROMPT, make_stages
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]


@pytest.fixture
def pipe(tiny: Tiny) -> Iterator[LoopbackPipe]:
    """A tiny llama over two ranks: layers 0-2, 3-4."""
    found = LoopbackPipe(tiny("llama"), [3, 2])
    yield found
    found.unload()


def site_of(pipe: Pipe, **wishes: Any) -> str:
    """Where a run to the end stands still."""
    pipe.breakpoints.delete()
    pipe.break_at(**wishes)
    with pipe.begin_at() as dbg:  # type: ignore[attr-defined]
        position = dbg.run()
        return f"{position.phase} {position.start}:{position.stop} r{position.rank} {position.site}"


@pytest.mark.parametrize(
    ("wishes", "where"),
    [
        ({"site": "layers.1.mlp_out"}, "prefill 0:8 r0 model.layers.1.mlp.output"),
        ({"site": "layers.1.mlp_out", "token": 9}, "prefill 8:16 r0 model.layers.1.mlp.output"),
        ({"site": "layers.*.mlp_out", "rank": 1}, "prefill 0:8 r1 model.layers.3.mlp.output"),
        ({"site": "layers.1.mlp_out", "ignore": 4}, "decode 22:23 r0 model.layers.1.mlp.output"),
        ({"site": "layers.4.output", "when": "shape"}, "prefill 16:21 r1 model.layers.4.output"),
        ({"site": "layers.4.output", "when": "shape[1] == 1"}, "decode 21:22 r1 model.layers.4.output"),
        ({"site": "layers.*.output", "when": "layer == 3"}, "prefill 0:8 r1 model.layers.3.output"),
        ({"site": "*", "when": "mask is None"}, "decode 21:22 r0 model.layers.0.input_layernorm.output"),
        ({"site": "layers.2.self_attn.rope.input", "when": "offset > 8"}, "prefill 16:21 r0"),
        ({"site": "*", "when": "dtype != mx.float32 and rank == 1"}, "decode 26:27"),
        ({"site": "*", "when": "max(1, 2) == 2 and min > 1e6"}, "decode 26:27"),
        ({"site": "recv"}, "prefill 0:8 r1 recv"),
    ],
)
def test_a_run_stands_still_where_it_was_told(pipe: LoopbackPipe, wishes: dict[str, Any], where: str) -> None:
    found = site_of(pipe, **wishes)

    assert found.startswith(where) or (where == "decode 26:27" and " end" in found), found


def test_counts_are_kept_over_both_ranks_and_a_one_shot_goes(pipe: LoopbackPipe) -> None:
    every = pipe.break_at("layers.*.output", ignore=100)
    once = pipe.break_at("layers.4.output", once=True)
    with pipe.begin_at() as dbg:
        dbg.run()
        assert every.hits == 5
        assert [one.id for one in pipe.breakpoints] == [every.id]
        assert repr(once) == "Breakpoint 2 · deleted"
        dbg.run()
        assert dbg.done
        assert every.hits == 5 * 7  # three chunks and four decoded tokens
    assert repr(pipe.breakpoints).splitlines() == [
        " id  site             condition  hits  ignore  enabled",
        "  1  layers.*.output  –            35      65  yes",
    ]


def test_a_name_that_is_nowhere_under_a_glob_is_told_when_the_run_is_over(pipe: LoopbackPipe) -> None:
    wrong = pipe.break_at("layers.*.output", when="valu.max() > 5")
    right = pipe.break_at("*", when="mask is None and rank == 7")  # only some places have a mask
    with pipe.begin_at() as dbg:
        dbg.run()
        assert dbg.done
    assert pipe.breakpoints.deaf() == [
        "Breakpoint 1 (valu.max() > 5) never stops: nothing there is called valu."
    ]
    assert repr(wrong).endswith("yes      nothing there is called valu")
    assert "called" not in repr(right)


def test_a_disabled_breakpoint_is_passed_and_an_enabled_one_stops_any_stride(pipe: LoopbackPipe) -> None:
    one = pipe.break_at("layers.1.output")
    one.disable()
    with pipe.begin_at() as dbg:
        assert dbg.until("layers.2.output").site == "model.layers.2.output"
        one.enable()
        position = dbg.token(2)
        assert position.site == "model.layers.1.output"
        assert "Breakpoint 1, hit 1" in str(position)


def test_a_condition_that_cannot_be_evaluated_stands_still_and_says_so(pipe: LoopbackPipe) -> None:
    pipe.break_at("layers.1.output", when="nonsense > 3")
    with pipe.begin_at() as dbg:
        assert "the condition nonsense > 3 raises NameError" in dbg.run().about
        dbg.pipe.breakpoints.delete()
        assert dbg.run().kind == "end"


def test_mistakes_are_named_where_the_breakpoint_is_set(pipe: LoopbackPipe) -> None:
    with pytest.raises(SiteError):
        pipe.break_at("layers.9.output")
    for wrong in ({"when": "max >"}, {"rank": 2}, {"token": -1}, {"ignore": -1}):
        with pytest.raises(OptionError):
            pipe.break_at("*", **wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="There is no breakpoint 7"):
        pipe.breakpoints.delete(7)
    assert len(pipe.breakpoints) == 0


# NaN and Inf --------------------------------------------------------------------------------------


def break_the(stage: Stage, path: str, change: Callable[[Any], None]) -> None:
    """Change a module of the rank that owns it."""
    for name, module in stage.model.named_modules():
        if name == path:
            change(module)


def nan_weight(module: Any) -> None:
    weight = np.array(module.weight)
    weight[5, 7] = np.nan
    module.weight = mx.array(weight)


def huge_weight(module: Any) -> None:
    module.weight = mx.clip(module.weight * 1e6, -6e4, 6e4).astype(mx.float16)


def no_eps(module: Any) -> None:
    module.eps = 0.0


def zero(module: Any) -> None:
    module.weight = mx.zeros_like(module.weight)


@pytest.mark.parametrize(
    ("changes", "dtype", "expected"),
    [
        (
            {"model.layers.3.mlp.up_proj": nan_weight},
            None,
            ["rank 1, layer 3: model.layers.3.mlp.up_proj.output", "Its input was still finite", "its weight holds 1 NaN"],
        ),
        (
            {"model.layers.1.mlp.gate_proj": huge_weight},
            "float16",
            [
                "rank 0, layer 1: model.layers.1.mlp.gate_proj.output",
                "Its input was still finite",
                "float16 overflow (largest 65504)",
                "recomputed in float32",
            ],
        ),
        (
            {"model.embed_tokens": zero, "model.layers.0.input_layernorm": no_eps},
            None,
            ["layer 0: model.layers.0.input_layernorm.output", "Its input was still finite", "zero norm"],
        ),
    ],
)  # fmt: skip
def test_the_first_bad_module_is_named_with_its_culprit(
    tiny: Tiny, changes: dict[str, Callable[[Any], None]], dtype: str | None, expected: list[str]
) -> None:
    def damage(stage: Stage) -> None:
        for path, change in changes.items():
            break_the(stage, path, change)

    pipe = LoopbackPipe(tiny("llama"), [3, 2], damage, dtype=dtype)
    pipe.break_at("*", when="nonfinite")
    with pipe.begin_at() as dbg:
        about = dbg.run().about
    pipe.unload()

    assert "Breakpoint 1 (nonfinite): " in about
    assert "at token 0" in about
    for part in expected:
        assert part in about, about


def test_a_bad_mask_is_found_in_the_code_between_the_modules(tiny: Tiny) -> None:
    pipe = LoopbackPipe(tiny("llama"), [3, 2])
    pipe.break_at("*", when="nonfinite")
    module = __import__("mlx_lm.models.llama", fromlist=["create_attention_mask"])
    before = module.create_attention_mask

    def wrong(h: mx.array, cache: Any = None, **_: Any) -> mx.array:
        mask = mx.zeros((h.shape[1], (cache.offset if cache else 0) + h.shape[1]))
        mask[2] = -mx.inf
        return mask

    module.create_attention_mask = wrong
    try:
        with pipe.begin_at() as dbg:
            position = dbg.run()
    finally:
        module.create_attention_mask = before
        pipe.unload()

    assert position.site == "model.layers.0.self_attn.o_proj.output"
    assert "at token 2" in position.about
    assert "Its input was not finite any more" in position.about
    assert "a bad mask, row 2 of mask allows no position" in position.about


@pytest.mark.parametrize("dtype", [mx.float32, mx.float16, mx.bfloat16])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf"), 3e38, 0.0])
def test_nonfinite_numbers_are_found_and_large_ones_are_not_taken_for_them(
    dtype: mx.Dtype, bad: float
) -> None:
    for shape in ((4, 5), (1, 3, 64)):
        array = mx.random.normal(shape).astype(dtype)
        array[-1, 2] = bad
        wanted = not mx.all(mx.isfinite(array)).item()

        assert has_nonfinite(array) == wanted
        assert has_nonfinite(mx.swapaxes(array, 0, 1)) == wanted
    assert not has_nonfinite(mx.zeros((0, 3)))
    assert not has_nonfinite(mx.array([1, 2]))


def test_every_statistic_is_what_numpy_says() -> None:
    values = np.array([[3.0, -7.5], [0.25, 2.0]], dtype=np.float32)
    with_bad = mx.array(np.append(values.ravel(), [np.nan, np.inf]).astype(np.float32))
    wanted = {
        "min": -7.5,
        "max": 3.0,
        "mean": values.mean(),
        "rms": np.sqrt((values**2).mean()),
        "absmax": 7.5,
        "nan": 1,
        "inf": 1,
    }

    assert set(STATISTIC) == set(STATISTICS) == set(wanted)
    for name, number in wanted.items():
        assert STATISTIC[name](with_bad) == pytest.approx(number), name


def test_the_loopback_pipe_makes_the_tokens_of_a_free_run(pipe: LoopbackPipe, tiny: Tiny) -> None:
    from tests.engine.loopback import generate

    wanted, _ = generate(make_stages(tiny("llama"), [3, 2]), max_tokens=5)
    with pipe.begin_at() as dbg:
        dbg.run()
        assert dbg.gen.token_ids == wanted
        assert dbg.gen.prompt_ids == list(PROMPT)


def test_values_looked_at_together_lead_to_the_same_stop_as_one_by_one(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stands(careful: bool) -> list[str]:
        pipe = LoopbackPipe(tiny("llama"), [3, 2])
        one = pipe.break_at("*", when="nonfinite")
        if careful:  # a second one that never holds: then nothing is gathered
            pipe.break_at("layers.0.output", token=100_000)
        found = []
        with pipe.begin_at() as dbg:
            dbg.token()
            break_the(pipe.stages[1], "model.layers.3.mlp.up_proj", nan_weight)
            for _ in range(2):
                position = dbg.run()
                rows = [(kv.rank, kv.offset, kv.pending) for kv in position.ranks]
                found.append(f"{position.where} {position.tick} {position.about} {rows} {one.hits}")
        pipe.unload()
        return found

    looked = []
    before = haste.LookAgain.__init__

    def counted(self: haste.LookAgain) -> None:
        looked.append(1)
        before(self)

    monkeypatch.setattr(haste.LookAgain, "__init__", counted)
    one_by_one = stands(careful=True)
    assert not looked  # the control is none, unless it goes the other way

    together = stands(careful=False)

    assert looked
    assert together == one_by_one
    assert "layers.3.mlp.up_proj.output" in together[0]
