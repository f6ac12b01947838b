"""A conversation keeps its KV caches: every turn feeds what is new, and says what one process would."""

from pathlib import Path
from typing import Any

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError, PromptError
from tests.cluster.conftest import loaded
from tests.cluster.reference import TALK, TALK_SYSTEM, TALK_TOKENS

pytestmark = [pytest.mark.cluster]


def spoken(pipe: Pipe, reference: dict[str, Any]) -> None:
    """Hold the conversation, and compare every turn with mlx-lm's."""
    chat = pipe.chat(TALK_SYSTEM, max_tokens=TALK_TOKENS)
    for text, wanted in zip(TALK, reference["talk"], strict=True):
        gen = chat.send(text)

        assert (gen.token_ids, gen.text) == (wanted["token_ids"], wanted["text"])
        assert len(gen.prompt_ids) == wanted["prompt"]
        assert gen.stats is not None
        # mlx-lm has fed the last token too, which may be one more that both know.
        assert wanted["reused"] - 1 <= gen.stats.reused_tokens <= wanted["reused"]
        assert gen.stats.prompt_tokens == len(gen.prompt_ids) - gen.stats.reused_tokens
        assert {entry.offset for entry in pipe.kv_cache()} == {len(gen.prompt_ids) + len(gen.token_ids) - 1}
    assert gen.stats.reused_tokens > gen.stats.prompt_tokens  # the control: most is not fed again
    assert [message["role"] for message in chat.messages] == ["system", *["user", "assistant"] * len(TALK)]
    assert f"reused {gen.stats.reused_tokens}" in repr(chat)
    assert f"and {gen.stats.reused_tokens} reused" in gen.stats.line
    chat.close()


def test_on_two_ranks_it_is_that_of_one_process(pipe2: Pipe, reference: dict[str, Any]) -> None:
    spoken(pipe2, reference)


def test_on_three_uneven_ranks_over_tcp_too(tcp_pipe3: Pipe, reference: dict[str, Any]) -> None:
    spoken(tcp_pipe3, reference)


def test_changed_messages_are_fed_from_where_they_differ(pipe2: Pipe, reference: dict[str, Any]) -> None:
    chat = pipe2.chat(TALK_SYSTEM, max_tokens=TALK_TOKENS)
    chat(TALK[0])
    chat.messages = chat.messages[:1]
    again = chat(TALK[0])

    assert again.token_ids == reference["talk"][0]["token_ids"]
    assert again.reused == len(again.prompt_ids) - 1  # all but the one that must be fed
    # Another run in between has KV caches of its own.
    pipe2.generate(TALK[2], max_tokens=3)
    assert chat(TALK[1]).token_ids == reference["talk"][1]["token_ids"]


def test_an_answer_that_was_left_is_kept_as_far_as_it_came(pipe2: Pipe) -> None:
    chat = pipe2.chat(max_tokens=40)
    pieces = []
    for piece in chat.stream(TALK[0]):
        pieces.append(piece.text)
        if len(pieces) == 4:
            break

    assert chat.messages[-1]["content"].startswith("".join(pieces))
    said = chat.messages[-1]["content"]
    gen = chat.send(TALK[1])

    assert gen.state == "finished"
    assert gen.reused > 30
    alone = pipe2.generate(
        [*chat.messages[:1], {"role": "assistant", "content": said}, chat.messages[2]], max_tokens=40
    )
    assert gen.token_ids == alone.token_ids


def test_after_a_failure_the_conversation_is_as_before(pipe2: Pipe, reference: dict[str, Any]) -> None:
    def broken(tokens: Any, logits: Any) -> Any:
        raise ValueError("seven")

    chat = pipe2.chat(TALK_SYSTEM, max_tokens=TALK_TOKENS)
    chat(TALK[0])
    with pytest.raises(OptionError, match="seven"):
        chat(TALK[1], logits_processors=[broken])
    assert len(chat.messages) == 3
    assert chat(TALK[1]).token_ids == reference["talk"][1]["token_ids"]
    with pytest.raises(PromptError, match="The message is empty"):
        chat(" ")
    with pytest.raises(OptionError, match="There is no option 'max_token'"):
        pipe2.chat(max_token=3)


def test_without_a_tokenizer_there_is_no_conversation(cluster2: Cluster, tiny_folders: Path) -> None:
    with (
        loaded(cluster2, tiny_folders / "qwen3") as tiny,
        pytest.raises(PromptError, match="has no tokenizer"),
    ):
        tiny.chat()
