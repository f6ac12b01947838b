"""Changed values, tokens and patches over ranks in one process."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest

from mlx_nb.shared.errors import OptionError, SiteError, ValueShapeError
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]

KINDS = ["llama", "qwen3_moe", "gemma3", "gemma4_text", "mamba2", "rwkv7", "deepseek_v3"]
SPLITS = {"gemma3": [4, 3], "gemma4_text": [4, 3]}


@pytest.fixture
def pipe(tiny: Tiny) -> Iterator[LoopbackPipe]:
    found = LoopbackPipe(tiny("llama"), [3, 2])
    yield found
    found.unload()


def logits_of(pipe: LoopbackPipe, **options: Any) -> list[bytes]:
    """The logits of every pass of a run, bit for bit."""
    found = []
    with pipe.begin_at(**options) as dbg:
        while dbg.until("logits").kind != "end":
            found.append(dbg.value.tobytes())
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_value_that_is_put_in_changes_what_follows_and_itself_nothing(tiny: Tiny, kind: str) -> None:
    pipe = LoopbackPipe(tiny(kind), SPLITS.get(kind, [3, 2]))
    wanted = logits_of(pipe)
    with pipe.begin_at() as dbg:
        here = dbg.until("layers.1.output", token=8)
        before = dbg.value
        dbg.value = before  # itself: no change at all
        dbg.until("logits")
        assert dbg.value.tobytes() == wanted[1]
        dbg.back(here)
        dbg.value = before * 2
        assert np.array_equal(dbg.value, before * 2)
        assert dbg.position.summary is not None
        assert np.isclose(dbg.position.summary.max, 2 * before.max())
        behind = dbg.until("logits")
        changed = dbg.value.tobytes()
        assert changed != wanted[1]
        dbg.back("layer")
        dbg.until("logits")
        assert dbg.value.tobytes() == changed  # a change before the place is made again on the way
        dbg.back(here)
        dbg.until("logits")
        assert dbg.value.tobytes() == wanted[1]  # one behind it is not
        assert behind.site == "logits"
    pipe.unload()


@pytest.mark.parametrize("site", ["recv", "send", "layers.3.input", "layers.3.self_attn.q_proj.input", "embed_tokens.input"])  # fmt: skip
def test_values_are_put_in_at_entries_and_between_the_ranks(pipe: LoopbackPipe, site: str) -> None:
    with pipe.begin_at() as dbg:
        dbg.until(site)
        new = np.roll(dbg.value, 1, axis=1)
        dbg.value = new
        assert np.array_equal(dbg.value, new)
        dbg.until("layers.3.self_attn.q_proj.output")
        other = dbg.value
        dbg.restart()
        dbg.until("layers.3.self_attn.q_proj.output")
        assert not np.array_equal(dbg.value, other)


def test_a_wrong_shape_is_told_with_the_line_to_type(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        dbg.until("layers.3.output")
        for wrong, fix in (
            ((8, 64), "Type: dbg.value = x[None]"),
            ((64, 8), "Type: dbg.value = x.reshape(1, 8, 64)"),
            ((1, 1, 8, 64), "Type: dbg.value = x[0]"),
            ((3,), "Give it that shape: [1, 8, 64]."),
        ):
            with pytest.raises(ValueShapeError) as error:
                dbg.value = np.zeros(wrong)
            given = ", ".join(map(str, wrong))
            assert str(error.value) == f"layers.3.output is [1, 8, 64]; your value is [{given}]. {fix}"
        with pytest.raises(OptionError, match="is no array of numbers"):
            dbg.value = "text"
        dbg.value = mx.ones((1, 8, 64)).astype(mx.bfloat16)
        assert np.all(dbg.value == 1)


def test_the_next_token_is_taken_and_everything_goes_on_from_it(pipe: LoopbackPipe) -> None:
    with pipe.begin_at() as dbg:
        here = dbg.position
        dbg.next_token = 7
        assert dbg.next_token == 7
        dbg.run()
        changed = dbg.gen.token_ids
        assert changed[0] == 7
        dbg.back(here)
        assert dbg.next_token is None
        dbg.run()
        plain = dbg.gen.token_ids
        assert plain[0] != 7
        dbg.back("token", 2)
        dbg.until("layers.3.output")
        dbg.next_token = 9
        dbg.run()
        place = len(plain) - 2
        assert dbg.gen.token_ids[:place] == plain[:place]
        assert dbg.gen.token_ids[place] == 9
        for wrong in (101, -1, "x"):
            dbg.restart()
            with pytest.raises(OptionError, match="is no token id; they are 0–100"):
                dbg.next_token = wrong  # type: ignore[assignment]


# Patches ------------------------------------------------------------------------------------------


# MLX computes experts in float32 only on a CPU.
@pytest.mark.parametrize(
    ("kind", "dtype"), [*[(kind, None) for kind in KINDS], ("llama", "bfloat16"), ("gemma3", "float16")]
)
def test_a_patch_with_the_value_itself_changes_not_a_bit(tiny: Tiny, kind: str, dtype: str | None) -> None:
    pipe = LoopbackPipe(tiny(kind), SPLITS.get(kind, [3, 2]), dtype=dtype)
    wanted = logits_of(pipe)
    for tokens in (None, slice(3, 12), 22):
        with pipe.patch("layers.*.output", lambda x: x, tokens=tokens):
            assert logits_of(pipe) == wanted
        with pipe.patch("layers.1.output", 1.0, tokens=tokens, how="scale"):
            assert logits_of(pipe) == wanted
    with pipe.patch("layers.1.output", 1.5, how="scale"):
        assert logits_of(pipe) != wanted  # the control
    assert logits_of(pipe) == wanted
    pipe.unload()


def test_a_captured_value_put_back_changes_nothing_and_covers_its_tokens_only(pipe: LoopbackPipe) -> None:
    wanted = logits_of(pipe)
    rows = []
    with pipe.begin_at() as dbg:
        while dbg.until("layers.3.output").kind != "end":
            rows.append(dbg.value)
    whole = np.concatenate(rows, axis=1)
    with pipe.patch("layers.3.output", whole):
        assert logits_of(pipe) == wanted
    with pipe.patch("layers.3.output", whole[:, :10]):  # what is behind it is left alone
        assert logits_of(pipe) == wanted
    changed = whole.copy()
    changed[:, 9] += 1
    with pipe.patch("layers.3.output", changed):
        found = logits_of(pipe)
    assert [a == b for a, b in zip(found, wanted, strict=True)][:2] == [True, False]


@pytest.mark.parametrize(
    ("what", "how", "expected"),
    [
        (0, "replace", lambda x: 0 * x),
        (2.5, "add", lambda x: x + np.float32(2.5)),
        (0.5, "scale", lambda x: x * np.float32(0.5)),
        (np.arange(64, dtype=np.float32), "add", lambda x: x + np.arange(64, dtype=np.float32)),
        (lambda x: mx.maximum(x, 0), "replace", lambda x: np.maximum(x, 0)),
    ],
)
@pytest.mark.parametrize("layer", [1, 4])
def test_what_a_patch_does_is_what_numpy_does(
    pipe: LoopbackPipe, what: Any, how: str, expected: Callable[..., Any], layer: int
) -> None:
    site = f"layers.{layer}.mlp.output"
    with pipe.begin_at() as dbg:
        dbg.until(site)
        before = dbg.value
    with pipe.patch(site, what, tokens=slice(2, 5), how=how), pipe.begin_at() as dbg:
        dbg.until(site)
        after = dbg.value
    wanted = before.copy()
    wanted[:, 2:5] = expected(before[:, 2:5])
    assert np.array_equal(after, wanted)


def test_patches_are_listed_saved_and_replayed(pipe: LoopbackPipe, tmp_path: Path) -> None:
    direction = np.linspace(-1, 1, 64, dtype=np.float32)
    with pipe.patch("layers.3.resid_post", direction, tokens=slice(4, None), how="add") as one:
        wanted = logits_of(pipe)
        file = one.save(tmp_path / "push")
        assert repr(pipe.patches).splitlines()[1].split() == ["1", "layers.3.resid_post", "add", "[64]", "4:"]
    assert len(pipe.patches) == 0
    assert "removed" in repr(one)
    with pipe.load_patch(str(file)):
        assert logits_of(pipe) == wanted
    assert logits_of(pipe) != wanted
    with pytest.raises(OptionError, match="is no saved patch"):
        pipe.load_patch(str(tmp_path / "nothing"))
    with pipe.patch("logits", lambda x: x) as function, pytest.raises(OptionError, match="cannot be saved"):
        function.save(tmp_path / "f")


def test_mistakes_in_patches_are_one_line(pipe: LoopbackPipe) -> None:
    with pytest.raises(SiteError):
        pipe.patch("layers.9.output", 0)
    with pytest.raises(OptionError, match="A patch cannot halve"):
        pipe.patch("layers.1.output", 0, how="halve")
    with pytest.raises(OptionError, match="counted from 0"):
        pipe.patch("layers.1.output", 0, tokens=-1)
    for what, match in (
        (np.zeros(63), r"model\.layers\.1\.output is \[1, 8, 64\] on rank 0; your value is \[63\]"),
        (lambda x: x[..., :3], r"your value is \[1, 8, 3\]"),
        (lambda x: 1 / 0, "raised ZeroDivisionError on rank 0"),
    ):
        with (
            pipe.patch("layers.1.output", what),
            pipe.begin_at() as dbg,
            pytest.raises((ValueShapeError, OptionError), match=match),
        ):
            dbg.run()
    with pipe.begin_at() as dbg:
        assert dbg.run().kind == "end"


def test_ranks_that_load_anew_are_told_the_patches_again(pipe: LoopbackPipe) -> None:
    wanted = logits_of(pipe)
    with pipe.patch("layers.3.output", 0.5, how="scale"):
        changed = logits_of(pipe)
        for stage in pipe.stages:
            stage.patches.remove(1)
        assert logits_of(pipe) == wanted  # the control: they have forgotten
        pipe.patches.renew()
        assert logits_of(pipe) == changed
