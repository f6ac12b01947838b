"""Traces over ranks in one process, against the same model of mlx-lm's with its layers looked at."""

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlx_nb.client.trace import Trace
from mlx_nb.client.trace_file import open_trace
from mlx_nb.shared.errors import OptionError, SiteError, TraceError, TransferTooLargeError
from tests.engine.loopback import CHUNK, PROMPT
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]
TOKENS = 4


def whole_model(folder: Path, generated: list[int]) -> list[mx.array]:
    """What every layer returns, ``[B 1, L, D]``: mlx-lm alone, the same chunks, the tokens that were generated."""
    model, _ = load_model(folder)
    seen: dict[int, list[mx.array]] = {}
    for place, layer in enumerate(model.layers):
        base: Any = type(layer)

        def call(self: Any, *args: Any, base: Any = base, **kwargs: Any) -> Any:
            value = base.__call__(self, *args, **kwargs)
            first = value[0] if isinstance(value, tuple) else value
            seen.setdefault(self._place, []).append(mx.array(first))
            return value

        layer.__class__ = type("Seen", (base,), {"__call__": call})
        object.__setattr__(layer, "_place", place)
    kv = make_prompt_cache(model)
    tokens = [*PROMPT, *generated[:-1]]
    chunks = [PROMPT[at : at + CHUNK] for at in range(0, len(PROMPT), CHUNK)]
    for chunk in [*chunks, *([token] for token in tokens[len(PROMPT) :])]:
        mx.eval(model(mx.array(chunk)[None], cache=kv))
    return [mx.concatenate(seen[place], axis=1) for place in range(len(model.layers))]


@pytest.fixture
def pipe(tiny: Tiny) -> Iterator[LoopbackPipe]:
    """A tiny llama over two ranks: layers 0-2, 3-4. Ranks that share a thread take turns, as with breakpoints."""
    found = LoopbackPipe(tiny("llama"), [3, 2])
    found.break_at("*", when="nonfinite")
    yield found
    found.unload()


def traced(pipe: LoopbackPipe, sites: Any = "layers.*.resid_post", **options: Any) -> Trace:
    wishes = {"max_tokens": TOKENS, "prefill_step_size": CHUNK, **options}
    return pipe.trace(list(PROMPT), sites=sites, **wishes)


@pytest.mark.parametrize("kind", ["llama", "gemma3", "rwkv7"])
def test_every_layer_in_three_chunks_and_decode_is_that_of_the_whole_model(tiny: Tiny, kind: str) -> None:
    pipe = LoopbackPipe(tiny(kind), [3, 4] if kind == "gemma3" else [3, 2])
    pipe.break_at("layers.0.output", token=10_000)
    folder = pipe.stages[0].folder

    trace = traced(pipe)

    alone = np.stack([np.array(one) for one in whole_model(folder, trace.gen.token_ids)])
    stack = trace["layers.*.resid_post"]
    assert (stack.shape, stack.axes[0]) == (alone.shape, "layer")
    np.testing.assert_array_equal(stack.numpy(), alone)
    np.testing.assert_array_equal(trace["layers.4.resid_post"][0, 9:17, ::3], alone[4][0, 9:17, ::3])
    assert np.abs(trace["layers.3.resid_post"].numpy() - alone[4]).max() > 0.01  # the control: another layer
    pipe.unload()


def test_joined_passes_single_passes_and_slices_agree(pipe: LoopbackPipe) -> None:
    trace = traced(pipe, "layers.*.resid_post, layers.1.self_attn.rope.input, logits")

    one = trace["layers.3.resid_post"]
    whole = one.numpy()
    assert one.shape == (1, len(PROMPT) + TOKENS - 1, 64)
    assert (one.dtype, one.rank, one.nbytes, one.axes) == ("float32", 1, whole.nbytes, ("B", "L", "D"))
    assert not whole.flags.writeable
    np.testing.assert_array_equal(trace["layers.3.resid_post", 9].numpy(), whole[:, 8:16])
    np.testing.assert_array_equal(trace.at("layers.3.output", token=22)[...], whole[:, 22:23])
    for index in [
        np.s_[0, 7:9],
        np.s_[..., -1],
        np.s_[:, ::-3, 5],
        np.s_[0, -1, ::-1],
        np.s_[:, 8:8],
        np.s_[0, 23],
    ]:
        np.testing.assert_array_equal(one[index], whole[index])
    stack = trace["layers.*.resid_post"]
    np.testing.assert_array_equal(stack[::-2, 0, 20:, :4], stack.numpy()[::-2, 0, 20:, :4])
    np.testing.assert_array_equal(np.asarray(stack), stack.numpy())
    assert stack.rank == (0, 1)
    # Queries and keys go through the same module: two calls of it, of different widths.
    assert trace["layers.1.self_attn.rope#1.input"].shape == (1, 4, 24, 16)
    assert trace["layers.1.self_attn.rope#2.input"].shape == (1, 2, 24, 16)
    with pytest.raises(OptionError, match=r"rope#2.input.* cannot be stacked"):
        trace["layers.1.self_attn.rope.input"]
    assert trace["logits"].shape == (1, 24, 101)


def test_numbers_are_those_of_the_values(pipe: LoopbackPipe) -> None:
    trace = traced(pipe)
    for capture in (trace["layers.0.resid_post"], trace["layers.*.resid_post"]):
        values = capture.numpy()
        found = capture.summary
        assert (found.min, found.max) == (values.min(), values.max())
        assert values[found.min_at] == values.min()
        assert values[found.max_at] == values.max()
        assert found.mean == pytest.approx(values.mean(), rel=1e-3, abs=1e-5)
        assert found.rms == pytest.approx(np.sqrt((values**2).mean()), rel=1e-4)
    text = repr(trace["layers.3.resid_post"]).splitlines()
    assert text[0] == "Capture model.layers.3.output (resid_post) · rank 1 · tokens 0:24"
    assert text[1].startswith(" [B 1, L 24, D 64] float32 · 6 KiB, on ")
    assert text[2].startswith(" min ")
    assert len(trace.table()) == 6
    assert "layers.4.output" in repr(trace)


def test_a_trace_in_a_file_is_the_same_trace(tiny: Tiny, tmp_path: Path) -> None:
    pipe = LoopbackPipe(tiny("llama"), [3, 2], dtype="bfloat16")
    pipe.break_at("layers.0.output", token=10_000)
    trace = traced(pipe, ["layers.*.resid_post", "embed_tokens.input"])

    opened = open_trace(trace.save(tmp_path / "trace"))

    assert opened.info.sites == ("layers.*.resid_post", "embed_tokens.input")
    assert opened.sites == trace.sites
    for site in ("layers.*.resid_post", "layers.2.output", "embed_tokens.input"):
        live, stored = trace[site], opened[site]
        assert (stored.shape, stored.dtype, stored.axes) == (live.shape, live.dtype, live.axes)
        np.testing.assert_array_equal(stored.numpy(), live.numpy())
        assert stored.summary.max_at == live.summary.max_at
    np.testing.assert_array_equal(opened["layers.2.output", 9].numpy(), trace["layers.2.output", 9].numpy())
    # bfloat16 exactly: float32 whose lower half is empty, and mlx's own reader finds the same.
    assert not (trace["layers.2.output"].numpy().view(np.uint32) & 0xFFFF).any()
    assert trace["layers.2.output"].mx().dtype == mx.bfloat16
    plain = mx.load(str(tmp_path / "trace.safetensors"))["model.layers.2.output@8"]
    assert mx.array_equal(plain, trace["layers.2.output", 8].mx())
    pipe.unload()


def test_damaged_files_are_one_line(pipe: LoopbackPipe, tmp_path: Path) -> None:
    path = traced(pipe).save(tmp_path / "whole.safetensors")
    whole = path.read_bytes()
    damaged = {
        "cut short": whole[:-5],
        "no safetensors file": whole[:50],
        "no trace": b"\x02\0\0\0\0\0\0\0{}",
    }
    for what, data in damaged.items():
        path.write_bytes(data)
        with pytest.raises(TraceError, match=what):
            open_trace(path)
    with pytest.raises(TraceError, match="cannot be read"):
        open_trace(tmp_path / "nowhere")
    with pytest.raises(TraceError, match="cannot be written"):
        traced(pipe).save(tmp_path / "no folder" / "trace")
    assert [file.name for file in tmp_path.iterdir()] == ["whole.safetensors"]


def test_the_least_recently_used_value_goes_first_and_its_handle_says_so(pipe: LoopbackPipe) -> None:
    each = CHUNK * 64 * 4
    trace = traced(pipe, "layers.0.resid_post", max_tokens=0, budget_bytes=3 * each)
    trace["layers.0.resid_post", 0].numpy()  # used: the second chunk is now the oldest

    more = traced(pipe, "layers.1.resid_post", max_tokens=0, budget_bytes=3 * each)

    assert [one.held for one in trace.records()[0].passes] == [False, False, False]
    assert more["layers.1.resid_post"].held
    with pytest.raises(TraceError, match=r"output of tokens 0:8 is no longer on rank 0.*budget_bytes"):
        trace["layers.0.resid_post"].numpy()
    assert "is no longer on rank 0" in repr(trace["layers.0.resid_post"])
    assert "3 of them let go" in repr(trace)
    assert trace.table()[1][7] == "let go"
    with pytest.raises(TraceError, match="holds nothing"):
        trace.save("nothing")
    assert pipe.stages[0].captures.size_bytes <= 3 * each
    more.drop()
    assert pipe.stages[0].captures.size_bytes == 0


def test_a_small_budget_takes_nothing_from_other_traces(pipe: LoopbackPipe) -> None:
    trace = traced(pipe, "layers.0.resid_post", max_tokens=0)
    size = pipe.stages[0].captures.size_bytes

    small = traced(pipe, "layers.1.resid_post", max_tokens=0, budget_bytes=CHUNK * 64 * 4)

    assert trace["layers.0.resid_post"].held
    assert [one.held for one in small.records()[0].passes] == [False, False, True]
    assert pipe.stages[0].captures.size_bytes <= size + CHUNK * 64 * 4


def test_a_value_that_was_read_stays_longer(pipe: LoopbackPipe) -> None:
    each = CHUNK * 64 * 4
    trace = traced(pipe, "layers.0.resid_post", max_tokens=0, budget_bytes=3 * each)
    trace["layers.0.resid_post", 0].numpy()
    with pipe.trace(sites="layers.0.resid_post", budget_bytes=3 * each):
        pipe.generate(list(PROMPT[:8]), max_tokens=1)

    assert [one.held for one in trace.records()[0].passes] == [True, False, True]


def test_what_is_too_large_is_refused_with_a_slice_that_is_not(
    pipe: LoopbackPipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    trace = traced(pipe)
    stack = trace["layers.*.resid_post"]
    monkeypatch.setattr("mlx_nb.shared.capture.MAX_TRANSFER_BYTES", 10_000)

    with pytest.raises(TransferTooLargeError, match="at most 64 MiB") as refused:
        stack.numpy()

    advice = refused.value.fix.partition("capture")[2]
    assert advice == "[:, :, :7, :]"
    assert eval(f"stack{advice}", {"stack": stack}).shape == (5, 1, 7, 64)


def test_runs_inside_a_block_are_recorded_stepped_ones_too_and_free_ones_cost_nothing(
    pipe: LoopbackPipe,
) -> None:
    before = [type(module) for stage in pipe.stages for module in stage.model.modules()]
    with pipe.trace(sites="layers.*.mlp_out") as trace:
        assert "nothing recorded yet" in repr(trace)
        first = pipe.generate(list(PROMPT), max_tokens=2)
        with pytest.raises(OptionError, match="recording already"):
            pipe.trace(list(PROMPT))
        with pipe.begin_at() as dbg:
            dbg.run()
    pipe.generate(list(PROMPT), max_tokens=2)

    assert trace.runs == [0, 1]
    assert trace.at("layers.3.mlp_out", run=0).tokens == (0, len(PROMPT) + len(first.token_ids) - 1)
    assert trace["layers.*.mlp_out"].shape == (5, 1, len(PROMPT) + 4, 64)
    assert pipe.tracing is None
    assert [type(module) for stage in pipe.stages for module in stage.model.modules()] == before


def test_going_back_records_the_passes_again(pipe: LoopbackPipe) -> None:
    with pipe.trace(sites="layers.1.resid_post") as trace, pipe.begin_at() as dbg:
        dbg.run()
        whole = trace["layers.1.resid_post"].numpy()
    with pipe.trace(sites="layers.1.resid_post") as again, pipe.begin_at() as dbg:
        dbg.token(2)
        dbg.back("token")
        dbg.run()

    np.testing.assert_array_equal(again["layers.1.resid_post"].numpy(), whole)


@pytest.mark.parametrize(
    ("ask", "error", "text"),
    [
        (lambda pipe: traced(pipe, "layers.0.nothing"), SiteError, "No site 'layers.0.nothing'"),
        (lambda pipe: traced(pipe, ""), OptionError, "needs a site"),
        (lambda pipe: traced(pipe, max_tokens=-1), OptionError, "max_tokens is 0 or more"),
        (lambda pipe: traced(pipe, budget_bytes=0), OptionError, "budget_bytes"),
        (lambda pipe: traced(pipe)["layers.0.mlp_out"], SiteError, "layers.0.mlp_out was not recorded"),
        (lambda pipe: traced(pipe)["layers.9.resid_post"], SiteError, "No site"),
        (lambda pipe: traced(pipe)["layers.0.output", 99], OptionError, "No pass fed token 99"),
        (lambda pipe: traced(pipe)["layers.0.output", "x"], OptionError, "named by its place"),
        (lambda pipe: traced(pipe)["layers.0.output"][0, 0, 0, 0], OptionError, "has 3 axes"),
        (lambda pipe: traced(pipe)["layers.0.output"][0, 99], OptionError, "outside axis 1"),
        (lambda pipe: traced(pipe)["layers.0.output"][[0, 1]], OptionError, "whole numbers and slices"),
        (lambda pipe: traced(pipe).at("layers.0.output", run=3), OptionError, "no run 3"),
        (lambda pipe: pipe.trace(max_tokens=3), OptionError, "Without a prompt"),
    ],
)
def test_mistakes_are_one_line(
    pipe: LoopbackPipe, ask: Callable[[LoopbackPipe], Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text) as raised:
        ask(pipe)
    assert "\n" not in str(raised.value)


def test_xarray_names_the_axes(pipe: LoopbackPipe, monkeypatch: pytest.MonkeyPatch) -> None:
    trace = traced(pipe)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "xarray", None)
        with pytest.raises(OptionError, match="xarray is not installed"):
            trace["layers.0.resid_post"].xarray()
    pytest.importorskip("xarray")

    found = trace["layers.*.resid_post"].xarray()

    assert found.dims == ("layer", "B", "L", "D")
    assert list(found["layer"].values) == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(
        found.sel(layer=3, L=20).values, trace["layers.3.resid_post"].numpy()[:, 20]
    )
