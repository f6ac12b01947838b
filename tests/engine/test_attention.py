"""Inside attention: what mlx-lm's shared function is given and makes, against numpy's own attention."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mlx_lm.models import base, llama

from mlx_nb.client.trace import Trace
from mlx_nb.shared.errors import OptionError, SiteError
from tests.engine.loopback import CHUNK, PROMPT
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]
SITES = "layers.*.scores,layers.*.pattern,layers.*.rot_q,layers.*.rot_k,layers.*.sdpa.v,layers.*.sdpa.z"
TOKENS = 4
WINDOW = 8


@pytest.fixture
def pipe(tiny: Tiny) -> Iterator[LoopbackPipe]:
    found = LoopbackPipe(tiny("llama"), [3, 2])
    found.break_at("layers.0.output", token=10_000)  # ranks that share a thread take turns
    yield found
    found.unload()


def traced(pipe: LoopbackPipe, sites: str = SITES, **options: Any) -> Trace:
    return pipe.trace(
        list(PROMPT), sites=sites, **{"max_tokens": TOKENS, "prefill_step_size": CHUNK, **options}
    )


def softmax(scores: np.ndarray, sinks: np.ndarray | None) -> np.ndarray:
    """Over the last axis, in float64; a sink takes its share of each head's."""
    scores = scores.astype(np.float64)
    if sinks is not None:
        column = np.broadcast_to(sinks.astype(np.float64)[None, :, None, None], (*scores.shape[:3], 1))
        scores = np.concatenate([scores, column], axis=-1)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    whole = weights / weights.sum(axis=-1, keepdims=True)
    return whole if sinks is None else whole[..., :-1]


def alone(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, scale: float, sees: np.ndarray, sinks: Any = None
) -> tuple[np.ndarray, np.ndarray]:
    """Pattern and result, one query head after another, from queries, keys, values and who sees whom ``[L, S]``."""
    heads, shared = q.shape[1], q.shape[1] // k.shape[1]
    scores = np.stack([scale * q[0, h] @ k[0, h // shared].T for h in range(heads)])[None]
    pattern = softmax(np.where(sees, scores, -np.inf), sinks)
    return pattern, np.stack([pattern[0, h] @ v[0, h // shared] for h in range(heads)])[None]


def passes(trace: Trace) -> list[tuple[int, int]]:
    record = next(record for record in trace.records() if record.site.endswith(".pattern"))
    return [(one.start, one.stop) for one in record.passes]


@pytest.mark.parametrize(
    ("kind", "split", "options", "windows", "tolerance"),
    [
        ("llama", [3, 2], {}, [0] * 5, 1e-6),
        ("llama", [3, 2], {"kv_bits": 8, "kv_group_size": 32}, [0] * 5, 1e-5),
        ("qwen3_moe", [3, 2], {}, [0] * 5, 1e-6),
        ("gemma3", [4, 3], {}, [WINDOW, WINDOW, 0, WINDOW, WINDOW, 0, WINDOW], 1e-6),
        ("gemma4_text", [5, 2], {}, [WINDOW, WINDOW, 0, WINDOW, WINDOW, 0, WINDOW], 1e-6),
        ("gpt_oss", [2, 2], {}, [WINDOW, 0, WINDOW, 0], 1e-6),
    ],
)
def test_pattern_and_scores_are_those_of_an_independent_attention(
    tiny: Tiny, kind: str, split: list[int], options: dict[str, Any], windows: list[int], tolerance: float
) -> None:
    wide = {"head_dim": 32} if "kv_bits" in options else {}
    pipe = LoopbackPipe(tiny(kind, **wide), split)
    pipe.break_at("layers.0.output", token=10_000)
    trace = traced(pipe, **options)
    looked = 0
    for layer, window in enumerate(windows):
        module = pipe.stages[0].model.layers[layer].self_attn
        sinks = np.array(module.sinks) if kind == "gpt_oss" else None
        scale = float(getattr(module, "scale", None) or module.sm_scale)
        for start, stop in passes(trace):
            at: dict[str, np.ndarray] = {
                name: trace[f"layers.{layer}.{site}", start].numpy()
                for name, site in {"q": "rot_q", "k": "rot_k", "v": "sdpa.v", "z": "sdpa.z"}.items()
            }
            length, cached = stop - start, at["k"].shape[2]
            here = np.arange(start, stop)[:, None]
            there = np.arange(stop - cached, stop)[None]
            sees = (there <= here) & ((there > here - window) if window else True)
            if window and length == 1:
                sees = np.ones((1, cached), bool)  # a ring in its own order, and all of it is near enough
            pattern, result = alone(at["q"], at["k"], at["v"], scale, sees, sinks)

            seen = trace[f"layers.{layer}.pattern", start]
            np.testing.assert_allclose(seen.numpy(), pattern, atol=1e-6)
            np.testing.assert_allclose(at["z"], result, atol=tolerance * np.abs(result).max())
            scores = trace[f"layers.{layer}.scores", start].numpy()
            assert (np.isfinite(scores) == np.broadcast_to(sees, scores.shape)).all()
            np.testing.assert_allclose(softmax(scores, sinks), pattern, atol=1e-6)
            assert seen.reconstruction_error is not None
            assert seen.reconstruction_error < tolerance
            assert seen.shape == (1, 4, length, cached)
            # The control: with its heads in another order the values mixed are others.
            other = alone(at["q"][:, ::-1], at["k"], at["v"], scale, sees, sinks)[0]
            assert np.abs(other - pattern).max() > 0.01 or cached == 1
            looked += 1
    assert looked == len(windows) * (3 + TOKENS - 1 + bool(options))  # quantised: the last token is fed alone
    pipe.unload()


def test_latent_attention_is_seen_with_the_rotated_part_in_its_mask(tiny: Tiny) -> None:
    pipe = LoopbackPipe(tiny("deepseek_v3"), [3, 2])
    pipe.break_at("layers.0.output", token=10_000)
    trace = traced(pipe)
    for start, stop in passes(trace):
        seen = trace["layers.*.pattern", start]
        values = seen.numpy()
        np.testing.assert_allclose(values.sum(axis=-1), 1.0, atol=1e-5)
        future = np.arange(values.shape[-1])[None] > np.arange(start, stop)[:, None]
        assert (values[..., future] == 0).all()
        assert seen.reconstruction_error is not None
        assert seen.reconstruction_error < 1e-6
    pipe.unload()


def test_stops_inside_attention_are_for_those_who_name_them(pipe: LoopbackPipe) -> None:
    pipe.breakpoints.delete()
    with pipe.begin_at() as dbg:
        here = dbg.until("blocks.3.attn.hook_pattern", token=8)
        assert here.where == "prefill 8:16 · rank 1 · model.layers.3.self_attn.sdpa.pattern"
        assert [arg.name for arg in here.args] == ["pattern", "queries", "keys", "values", "mask", "scale"]
        assert [arg.summary.axes for arg in here.args[:3] if arg.summary] == [
            ("B", "H", "L", "S"), ("B", "H", "L", ""), ("B", "K", "S", ""),
        ]  # fmt: skip
        assert "Computed again in float32" in here.about
        assert "scaled_dot_product_attention" in dbg.source()
        assert dbg.p("pattern.shape").text == "(1, 4, 8, 16)"
        assert dbg.p("scale").text == "0.25"
        pattern = dbg.value
        assert dbg.back("into").site == "model.layers.3.self_attn.rope#2.output"
        assert dbg.into().site == "model.layers.3.self_attn.o_proj.input"  # strides pass it by
        assert dbg.back(here).where == here.where
        assert np.array_equal(dbg.value, pattern)
        assert dbg.over().site == "model.layers.3.self_attn.o_proj.input"
        dbg.back()
        assert dbg.out().site == "model.layers.3.self_attn.output"
        assert dbg.back("until", site="layers.3.scores").site == "model.layers.3.self_attn.sdpa.scores"


def test_breakpoints_and_conditions_inside_attention(pipe: LoopbackPipe) -> None:
    pipe.breakpoints.delete()
    pipe.break_at("layers.*.scores", when="nonfinite")  # what the mask hides does not count
    pipe.break_at("layers.2.pattern", when="max > 0.5 and token >= 8")
    with pipe.begin_at() as dbg:
        at = dbg.run()
        assert (at.site, at.start) == ("model.layers.2.self_attn.sdpa.pattern", 8)
        assert "max" in at.about
        assert "Computed again" in at.about
        pipe.breakpoints.delete()
        pipe.break_at("layers.*")  # a glob that does not say so means no place in there
        seen = [dbg.run().site for _ in range(6)]
        assert not [site for site in seen if "sdpa" in site]


def logits_after(pipe: LoopbackPipe) -> np.ndarray:
    return traced(pipe, "logits")["logits"].numpy()


def test_a_pattern_that_is_put_back_changes_nothing_and_another_changes_what_it_should(
    pipe: LoopbackPipe,
) -> None:
    plain = logits_after(pipe)
    for kind in ("rot_q", "sdpa.k", "sdpa.v", "scores", "pattern", "sdpa.z"):
        with pipe.patch(f"layers.3.{kind}", lambda x: x):
            assert np.array_equal(logits_after(pipe), plain), kind
        with pipe.patch(f"layers.3.{kind}", lambda x: x * 0.5):
            assert not np.array_equal(logits_after(pipe), plain), kind
    # A head whose pattern is nothing mixes nothing: the same as without its values.
    head = np.ones((1, 4, 1, 1), np.float32)
    head[0, 1] = 0
    with pipe.patch("layers.3.pattern", head, how="scale"):
        through_pattern = logits_after(pipe)
    with pipe.patch("layers.3.sdpa.z", head, how="scale"):
        np.testing.assert_allclose(through_pattern, logits_after(pipe), atol=2e-5)
    assert np.abs(through_pattern - plain).max() > 1e-3
    with pytest.raises(OptionError, match=r"tokens= cannot choose among the cached keys"):
        pipe.patch("layers.3.rot_k", 0, tokens=3)


def test_a_value_put_in_at_a_stop_counts_and_goes_when_one_goes_back(pipe: LoopbackPipe) -> None:
    pipe.breakpoints.delete()
    with pipe.begin_at() as dbg:
        here = dbg.until("layers.3.pattern")
        z = dbg.until("layers.3.sdpa.z") and dbg.value
        dbg.back(here)
        even = np.tril(np.ones((8, 8), np.float32))
        dbg.value = np.broadcast_to(even / even.sum(-1, keepdims=True), dbg.value.shape)
        values = dbg.until("layers.3.sdpa.z") and dbg.value
        assert not np.allclose(values, z)
        dbg.out()
        dbg.back("until", site="layers.3.sdpa.z")  # the change before it is made again on the way
        assert np.array_equal(dbg.value, values)
        dbg.back(here)
        assert np.array_equal(dbg.until("layers.3.sdpa.z") and dbg.value, z)


def test_quantised_keys_are_seen_and_cannot_be_put_in(tiny: Tiny) -> None:
    pipe = LoopbackPipe(tiny("llama", head_dim=32), [3, 2])
    pipe.break_at("layers.0.output", token=10_000)
    with (
        pipe.patch("layers.3.sdpa.k", 0.0),
        pytest.raises(OptionError, match=r"Rank 1: the keys lie in a quantised KV cache"),
    ):
        traced(pipe, kv_bits=8, kv_group_size=32)
    pipe.unload()


@pytest.mark.parametrize(
    ("kind", "why"),
    [
        ("mamba2", "this model has no attention"),
        ("rwkv7", "this model's attention does not call"),
        ("gemma2", "this model's attention does not call mlx-lm's shared scaled_dot_product_attention"),
    ],
)
def test_where_nobody_calls_the_function_that_is_said(tiny: Tiny, kind: str, why: str) -> None:
    pipe = LoopbackPipe(tiny(kind), [3, 2])
    for site in ("layers.1.pattern", "layers.*.scores", "blocks.1.attn.hook_attn_scores"):
        with pytest.raises(SiteError, match=f"is not observable: {why}"):
            pipe.trace(list(PROMPT), sites=site)
    with pipe.begin_at() as dbg, pytest.raises(SiteError, match="not observable"):
        dbg.until("layers.1.pattern")
    pipe.unload()


def test_the_function_has_its_name_back_when_nobody_looks(tiny: Tiny) -> None:
    one, other = (LoopbackPipe(tiny("llama"), split) for split in ([3, 2], [2, 3]))
    shared: Any = base.scaled_dot_product_attention
    with one.begin_at() as dbg:
        assert vars(llama)["scaled_dot_product_attention"] is not shared
        dbg.until("layers.1.output")
        other.break_at("layers.0.output", token=10_000)
        traced(other, "layers.0.pattern")
        assert vars(llama)["scaled_dot_product_attention"] is not shared  # the first one still needs it
        dbg.until("layers.2.pattern")
    assert vars(llama)["scaled_dot_product_attention"] is shared
    one.unload()
    other.unload()
