"""The logit lens over ranks in one process: the last row must be the model's own logits, to the bit."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.utils import load_model

from mlx_nb.engine.readout import logits_of
from mlx_nb.shared.errors import OptionError, SiteError
from tests.engine.loopback import CHUNK, PROMPT
from tests.engine.loopback_pipe import LoopbackPipe

Tiny = Callable[..., Path]


def own_logits(folder: Path) -> np.ndarray:
    """``[L, V]``: mlx-lm in one process, the same chunks."""
    model, _ = load_model(folder)
    kv = make_prompt_cache(model)
    chunks = [PROMPT[at : at + CHUNK] for at in range(0, len(PROMPT), CHUNK)]
    return np.concatenate(
        [np.array(model(mx.array(c)[None], cache=kv)[0].astype(mx.float32)) for c in chunks]
    )


def opened(folder: Path) -> LoopbackPipe:
    """Two ranks that share a thread take turns, as with breakpoints."""
    layers = json.loads((folder / "config.json").read_text())["num_hidden_layers"]
    pipe = LoopbackPipe(folder, [3, layers - 3])
    pipe.break_at("*", when="nonfinite")
    return pipe


# Tied and untied heads, a scaled embedding, a soft cap, tuples between the layers, a head before the last rank.
@pytest.mark.parametrize("kind", ["llama", "llama_untied", "gemma3", "rwkv7", "deepseek_v3", "mamba2"])
def test_the_last_row_is_what_the_model_says(tiny: Tiny, kind: str) -> None:
    folder = tiny(kind)
    expected = own_logits(folder)
    pipe = opened(folder)

    lens = pipe.lens(list(PROMPT), tokens=range(len(PROMPT)), top=5, prefill_step_size=CHUNK)

    best = np.argsort(-expected, axis=-1, kind="stable")[:, :5]
    assert lens.ids[-1].tolist() == best.tolist()
    assert lens.ids[-2].tolist() != best.tolist()  # the control: another layer says something else
    chances = np.exp(expected - expected.max(axis=-1, keepdims=True))
    chances /= chances.sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(lens.probabilities[-1], np.take_along_axis(chances, best, -1), rtol=1e-4)
    np.testing.assert_allclose(
        lens.entropy_bits[-1], -(chances * np.log2(chances)).sum(axis=-1), rtol=1e-3, atol=1e-4
    )
    assert lens.ranks[-pipe.shards[0].num_layers :][2:4] == (0, 1)
    pipe.unload()


@pytest.fixture
def llama(tiny: Tiny) -> Iterator[LoopbackPipe]:
    pipe = opened(tiny("llama"))
    yield pipe
    pipe.unload()


def test_what_the_head_makes_of_the_last_layer_is_the_models_logits_to_the_bit(
    llama: LoopbackPipe, tiny: Tiny
) -> None:
    expected = own_logits(tiny("llama"))
    trace = llama.trace(list(PROMPT), "layers.4.output,layers.3.output", prefill_step_size=CHUNK)

    def read(site: str) -> np.ndarray:
        # The same chunks: a product over other rows may be rounded otherwise.
        states = [trace[site, at][0] for at in range(0, len(PROMPT), CHUNK)]
        return np.concatenate([np.array(logits_of(llama.stages[1], mx.array(each))) for each in states])

    np.testing.assert_array_equal(read("layers.4.output"), expected)
    assert not np.array_equal(read("layers.3.output"), expected)  # the control


def test_every_class_is_its_own_again_and_a_standing_run_goes_on(llama: LoopbackPipe) -> None:
    plain = llama.generate(list(PROMPT), max_tokens=3)
    before = [type(module) for _, module in llama.stages[1].model.named_modules()]
    lens = llama.lens(list(PROMPT), tokens=-1)
    assert [type(module) for _, module in llama.stages[1].model.named_modules()] == before

    dbg = llama.debug(list(PROMPT), max_tokens=3)
    dbg.until("layers.3.self_attn.output")
    while_standing = llama.lens(list(PROMPT), tokens=-1)
    assert while_standing.ids.tolist() == lens.ids.tolist()
    dbg.run()
    assert dbg.gen.token_ids == plain.token_ids
    dbg.close()


def test_generated_tokens_can_be_read_too(llama: LoopbackPipe) -> None:
    gen = llama.generate(list(PROMPT), max_tokens=4)
    lens = llama.lens(list(PROMPT), max_tokens=4, tokens=[len(PROMPT) - 1, len(PROMPT), len(PROMPT) + 2])

    assert lens.fed == (PROMPT[-1], gen.token_ids[0], gen.token_ids[2])
    assert [one.answer for one in lens.read] == [gen.token_ids[0], gen.token_ids[1], gen.token_ids[3]]


def test_where_the_answer_appears_is_found_from_the_end(llama: LoopbackPipe) -> None:
    lens = llama.lens(list(PROMPT), tokens=range(len(PROMPT)))
    for place, read in enumerate(lens.read):
        on_top = [int(ids[0]) == read.answer for ids in read.ids]
        expected = len(on_top) - next((i for i, hit in enumerate(reversed(on_top)) if not hit), len(on_top))
        assert lens.appears_at(place) == (expected if expected < len(on_top) else len(on_top) - 1)
        assert read.answer_places.tolist() == [
            0 if hit else read.answer_places[row] for row, hit in enumerate(on_top)
        ]


@pytest.mark.parametrize(
    ("wishes", "said"),
    [
        ({"tokens": 999}, "No pass fed token 999"),
        ({"tokens": []}, "No pass fed"),
        ({"top": 0}, "top is a number of tokens from 1 to 100, not 0"),
        ({"tokens": "3"}, "tokens"),
    ],
)
def test_a_wrong_wish_is_refused_in_one_line(llama: LoopbackPipe, wishes: dict, said: str) -> None:
    with pytest.raises(OptionError, match=said):
        llama.lens(list(PROMPT), **wishes)


def test_a_trace_of_other_sites_is_refused(llama: LoopbackPipe) -> None:
    trace = llama.trace(list(PROMPT), "layers.1.resid_post")
    with pytest.raises(SiteError, match="every layer"):
        llama.lens(trace)
    whole = llama.trace(list(PROMPT), "layers.*.resid_post")
    assert llama.lens(whole).rows == ("0", "1", "2", "3", "4")


def test_logits_that_are_not_finite_are_said_to_be_so(llama: LoopbackPipe) -> None:
    with llama.patch("layers.4.resid_post", float("nan")):
        lens = llama.lens(list(PROMPT), tokens=-1)
    assert lens.ids[-1, 0].tolist() == [-1] * 10
    assert "not finite" in lens.sentence(0)
    assert "NaN" in repr(lens)
