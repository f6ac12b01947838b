"""Several prompts at once: each row says what it says alone, and ends for itself."""

from pathlib import Path
from typing import Any

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError, PromptError
from tests.cluster.conftest import loaded
from tests.cluster.reference import (
    IDS,
    MAX_TOKENS,
    PROMPTS,
    SAMPLING,
    SEED,
    SEVERAL,
    SEVERAL_TOKENS,
    TINY_SEVERAL,
    TINY_TOKENS,
)

pytestmark = [pytest.mark.cluster]


def alike(pipe: Pipe, reference: dict[str, Any], **options: Any) -> None:
    """Every row is mlx-lm's own answer to its prompt alone, and what its `batch_generate` makes of all of them."""
    found = pipe.generate([PROMPTS[place] for place in SEVERAL], max_tokens=SEVERAL_TOKENS, **options)

    for gen, together in zip(found, reference["several"], strict=True):
        assert gen.token_ids[: -1 if gen.finish_reason == "stop" else None] == together
    assert len({len(together) for together in reference["several"]}) > 1
    for gen, place in zip(found, SEVERAL, strict=True):
        wanted = reference["answers"][place]
        count = MAX_TOKENS[place]
        assert gen.prompt_ids == wanted["prompt_ids"]
        assert gen.token_ids[:count] == wanted["token_ids"]
        if wanted["finish"] == "stop":
            assert (gen.text, gen.finish_reason, len(gen.token_ids)) == (
                wanted["text"],
                "stop",
                len(wanted["token_ids"]),
            )
        else:
            assert gen.finish_reason in ("stop", "length")
        assert gen.state == "finished"
        assert gen.stats is not None
    assert len({len(gen.prompt_ids) for gen in found}) > 1  # the control: some are padded
    assert len({len(gen.token_ids) for gen in found}) > 1  # and they end at different times


def test_on_two_ranks_each_row_is_as_alone(pipe2: Pipe, reference: dict[str, Any]) -> None:
    alike(pipe2, reference)
    assert pipe2.last.text == "\n\n".join(gen.text for gen in pipe2.last)
    assert pipe2.last.state == "finished"
    assert "trimmed" not in str(pipe2.kv_cache())  # the longest prompt may have left the KV caches


def test_in_small_chunks_on_three_ranks_over_tcp_too(tcp_pipe3: Pipe, reference: dict[str, Any]) -> None:
    alike(tcp_pipe3, reference, prefill_step_size=16)


@pytest.mark.parametrize(
    ("kind", "split"), [("qwen3", [1, 2, 2]), ("gemma3", [1, 4, 2]), ("deepseek_v3", [1, 3, 1])]
)
@pytest.mark.parametrize("chunk", [pytest.param(None, marks=pytest.mark.soak), 8])
def test_other_architectures_too(
    cluster3: Cluster,
    tiny_folders: Path,
    reference: dict[str, Any],
    kind: str,
    split: list[int],
    chunk: int | None,
) -> None:
    with loaded(cluster3, tiny_folders / kind, split=split) as tiny:
        rows = tiny.generate(TINY_SEVERAL, max_tokens=TINY_TOKENS, prefill_step_size=chunk)

        assert [row.token_ids for row in rows] == reference["tiny_several"][kind]
        assert rows[1].token_ids == reference["tiny"][kind]  # as alone


def test_rows_end_for_themselves(pipe2: Pipe, reference: dict[str, Any]) -> None:
    text = reference["answers"][0]["text"]
    found = pipe2.generate([PROMPTS[0], PROMPTS[1]], max_tokens=10, stop=text[14:22])

    assert (found[0].text, found[0].finish_reason) == (text[:14], "stop")
    assert found[1].token_ids == reference["answers"][1]["token_ids"]


def test_each_row_has_a_random_state_of_its_own(pipe2: Pipe, reference: dict[str, Any]) -> None:
    found = pipe2.generate([PROMPTS[0], PROMPTS[2]], max_tokens=MAX_TOKENS[2], seed=SEED, **SAMPLING)

    assert found[1].token_ids == reference["sampled"]["token_ids"]


def test_what_is_several_and_what_is_one(pipe2: Pipe) -> None:
    ids = pipe2.encode("hi")
    messages = [{"role": "user", "content": "hi"}]

    assert pipe2.generate(ids, max_tokens=2).token_ids == pipe2.generate(messages, max_tokens=2).token_ids
    both = pipe2.generate([ids, messages, "hi"], max_tokens=2)
    assert isinstance(both, list)
    assert len({tuple(gen.token_ids) for gen in both}) == 1
    assert isinstance(pipe2.generate(["hi"], max_tokens=2), list)
    with pytest.raises(PromptError, match="The prompt is empty"):
        pipe2.generate(["hi", " "])


def test_what_cannot_be_padded_is_refused_with_the_reason(
    pipe2: Pipe, cluster3: Cluster, tiny_folders: Path
) -> None:
    with loaded(cluster3, tiny_folders / "rwkv7") as tiny:
        with pytest.raises(
            OptionError, match="it keeps an ArraysCache, and its states would take the padding for text"
        ):
            tiny.generate([IDS, IDS[:3]], max_tokens=2)
        assert len(tiny.generate(IDS, max_tokens=2).token_ids) == 2
    with pytest.raises(OptionError, match="kv_bits: the KV caches of several prompts cannot be quantised"):
        pipe2.generate(["hi", "ho"], kv_bits=8)
