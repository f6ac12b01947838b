"""Options of generation do what they do in mlx-lm: the same tokens as one process."""

import threading
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError
from tests.cluster.conftest import loaded
from tests.cluster.reference import (
    IDS,
    PROMPTS,
    SEED,
    TINY_ROTATING,
    TINY_TOKENS,
    TUNED,
    TUNED_PROMPT,
    TUNED_TOKENS,
)

pytestmark = [pytest.mark.cluster]

RARE, LATER = ("quantised later", "eight bits", "presence", "frequency"), pytest.mark.soak
PROMPT = PROMPTS[TUNED_PROMPT]


def tuned(pipe: Pipe, name: str) -> list[int]:
    return pipe.generate(PROMPT, max_tokens=TUNED_TOKENS, seed=SEED, **TUNED[name]).token_ids


@pytest.mark.parametrize("name", [pytest.param(name, marks=LATER if name in RARE else ()) for name in TUNED])
def test_an_option_gives_the_tokens_of_mlx_lm(pipe3: Pipe, reference: dict[str, Any], name: str) -> None:
    wanted = reference["tuned"][name]["token_ids"]

    assert tuned(pipe3, name) == wanted


def test_the_options_change_the_tokens(reference: dict[str, Any]) -> None:
    """The control: with an option that does nothing the test above would see nothing."""
    plain = reference["answers"][TUNED_PROMPT]["token_ids"]
    same = [name for name in TUNED if reference["tuned"][name]["token_ids"][: len(plain)] == plain]

    assert set(same) <= {"eight bits", "quantised later"}


@pytest.mark.soak
def test_on_two_ranks_too(pipe2: Pipe, reference: dict[str, Any]) -> None:
    for name in ("rotating", "quantised", "all"):
        assert tuned(pipe2, name) == reference["tuned"][name]["token_ids"]


def test_over_tcp_too(tcp_pipe3: Pipe, reference: dict[str, Any]) -> None:
    for name in ("rotating", "quantised", "bias"):
        assert tuned(tcp_pipe3, name) == reference["tuned"][name]["token_ids"]


def test_the_kv_caches_are_what_was_asked_for(pipe3: Pipe) -> None:
    pipe3.generate(PROMPT, max_tokens=3, max_kv_size=24)
    ring = pipe3.kv_cache()[17]
    pipe3.generate(PROMPT, max_tokens=3, kv_bits=4, kv_group_size=32)
    packed = pipe3.kv_cache()[17]

    assert (ring.class_name, ring.report.kept, ring.capacity) == ("RotatingKVCache", 4, 24)
    assert (packed.class_name, packed.report.bits) == ("QuantizedKVCache", 4)


def test_a_stop_text_ends_the_run_before_it(pipe3: Pipe, reference: dict[str, Any]) -> None:
    whole = reference["answers"][0]
    text, ids = whole["text"], whole["token_ids"]
    stop = text[14:22]  # over several tokens, from the middle of one to the middle of another
    assert len(pipe3.encode(stop, raw=True)) > 1

    pieces = list(pipe3.stream(PROMPTS[0], stop=["never said", stop]))

    gen = pipe3.last
    assert gen is not None
    assert gen.text == "".join(piece.text for piece in pieces) == text[: text.index(stop)]
    assert gen.finish_reason == pieces[-1].finish_reason == "stop"
    assert gen.token_ids == ids[: len(gen.token_ids)]
    assert len(gen.token_ids) < len(ids)
    # The control: what only looks like a stop text is not kept back for good.
    assert pipe3.generate(PROMPTS[0], max_tokens=24, stop=text[14:20] + "~").text == text


def test_a_function_of_the_notebook_changes_the_logits(pipe3: Pipe, reference: dict[str, Any]) -> None:
    banned = reference["answers"][0]["token_ids"][0]

    def ban(tokens: Any, logits: Any) -> Any:
        logits[:, banned] = -float("inf")
        return logits

    gen = pipe3.generate(PROMPTS[0], max_tokens=5, logits_processors=[ban])

    assert banned not in gen.token_ids
    assert pipe3.generate(PROMPTS[0], max_tokens=5).token_ids[0] == banned


def test_a_function_that_fails_is_named_and_the_ranks_go_on(pipe3: Pipe) -> None:
    def wrong(tokens: Any, logits: Any) -> Any:
        return logits[0]

    def broken(tokens: Any, logits: Any) -> Any:
        return logits + undefined_name  # type: ignore[name-defined]  # noqa: F821

    lock = threading.Lock()
    with pytest.raises(OptionError, match=r"wrong returned \[49152\], not logits \[1, 49152\]"):
        pipe3.generate("hi", logits_processors=[wrong])
    with pytest.raises(OptionError, match="broken raised NameError on the last rank"):
        pipe3.generate("hi", logits_processors=broken)
    with pytest.raises(OptionError, match="cannot be sent to the last rank: cannot pickle"):
        pipe3.generate("hi", logits_processors=lambda tokens, logits: lock)
    with pytest.raises(OptionError, match="cannot be rebuilt on the last rank"):
        pipe3.generate("hi", logits_processors=[b"no pickle"])
    with pytest.raises(OptionError, match="cannot be rebuilt on the last rank"):
        pipe3.debug("hi", logits_processors=[b"no pickle"])
    assert pipe3.generate("hi", max_tokens=2).state == "finished"


def test_what_a_model_cannot_do_is_refused(cluster3: Cluster, tiny_folders: Path) -> None:
    with loaded(cluster3, tiny_folders / "gemma3") as pipe:
        for options, message in (
            ({"kv_bits": 8}, "rotate, and mlx-lm cannot quantise those"),
            ({"stop": "."}, "has no tokenizer"),
            ({"logit_bias": {101: 1.0}}, "token 101, which is outside the vocabulary"),
        ):
            with pytest.raises(OptionError, match=message):
                pipe.generate(IDS, **options)
        assert len(pipe.generate(IDS, max_tokens=2).token_ids) == 2


def test_what_cannot_be_limited_is_refused(cluster3: Cluster, tiny_folders: Path) -> None:
    with loaded(cluster3, tiny_folders / "rwkv7") as pipe:
        with pytest.raises(OptionError, match="ArraysCache\\) cannot be limited"):
            pipe.generate(IDS, max_kv_size=16)
        with pytest.raises(OptionError, match="ArraysCache\\) cannot be quantised"):
            pipe.generate(IDS, kv_bits=8)


def test_a_limit_is_mlx_lms_own(cluster3: Cluster, tiny_folders: Path, reference: dict[str, Any]) -> None:
    with loaded(cluster3, tiny_folders / "qwen3") as pipe:
        assert (
            pipe.generate(IDS, max_tokens=TINY_TOKENS, **TINY_ROTATING).token_ids
            == reference["tiny_rotating"]
        )
        # The control: without the limit the tokens are others.
        assert reference["tiny_rotating"] != reference["tiny"]["qwen3"]


def test_a_group_that_does_not_fit_is_refused(pipe3: Pipe) -> None:
    with pytest.raises(
        OptionError, match="kv_group_size 128 does not divide this model's KV heads, which are 64"
    ):
        pipe3.generate("hi", kv_bits=8, kv_group_size=128)
    assert pipe3.generate("hi", max_tokens=2).state == "finished"
