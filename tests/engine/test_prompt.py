"""From a prompt to token ids, with a real tokenizer and without one."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.engine.embedded import embedded_model
from mlx_nb.engine.loading import read_config
from mlx_nb.engine.prompt import Prompter
from mlx_nb.shared.errors import ModelError, PromptError


@pytest.fixture(scope="module")
def smollm2() -> Prompter:
    folder = embedded_model()
    return Prompter(folder, read_config(folder), trust_remote_code=False)


@pytest.fixture
def bare(tiny: Callable[..., Path]) -> Prompter:
    """A folder without a tokenizer."""
    folder = tiny("llama")
    return Prompter(folder, read_config(folder), trust_remote_code=False)


def test_a_string_goes_through_the_template_unless_it_is_raw(smollm2: Prompter) -> None:
    raw, with_template = smollm2.encode("Why?", raw=True), smollm2.encode("Why?", raw=False)

    assert smollm2.tokenizer.decode(raw) == "Why?"
    text = smollm2.tokenizer.decode(with_template)
    assert text.startswith("<|im_start|>system\n")
    assert text.endswith("<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n")


def test_messages_are_a_conversation(smollm2: Prompter) -> None:
    messages = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Why?"},
    ]

    text = smollm2.tokenizer.decode(smollm2.encode(messages, raw=False))

    assert text.endswith(
        "assistant\nHello!<|im_end|>\n<|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert smollm2.encode([{"role": "user", "content": "Hi"}], raw=False) == smollm2.encode("Hi", raw=False)


def test_ids_are_taken_as_they_are(smollm2: Prompter, bare: Prompter) -> None:
    assert smollm2.encode([5, 0, 49151], raw=False) == [5, 0, 49151]
    assert bare.encode([0, 100], raw=False) == [0, 100]


@pytest.mark.parametrize("ids", [[101], [-1], [3, 4, 1000]])
def test_an_id_out_of_range_is_named_with_its_place(bare: Prompter, ids: list[int]) -> None:
    with pytest.raises(
        PromptError, match=rf"Token id {ids[-1]} at place {len(ids) - 1} is outside the vocabulary \(0–100\)"
    ):
        bare.encode(ids, raw=False)


@pytest.mark.parametrize("item", [1.5, "a", True, None])
def test_what_is_no_id_is_named(bare: Prompter, item: Any) -> None:
    with pytest.raises(PromptError, match=r"Item 1 of the prompt is .*, not a token id"):
        bare.encode([1, item], raw=False)


@pytest.mark.parametrize("prompt", ["", "  \n\t"])
@pytest.mark.parametrize("raw", [True, False])
def test_an_empty_string_is_refused(smollm2: Prompter, prompt: str, raw: bool) -> None:
    with pytest.raises(PromptError, match="The prompt is empty"):
        smollm2.encode(prompt, raw=raw)


def test_no_ids_are_refused(smollm2: Prompter) -> None:
    with pytest.raises(PromptError, match="The prompt has no tokens"):
        smollm2.encode([], raw=False)


def test_a_folder_without_a_tokenizer_takes_ids_only(bare: Prompter) -> None:
    for prompt in ("Why?", [{"role": "user", "content": "Why?"}]):
        with pytest.raises(PromptError, match="no tokenizer, so it takes token ids only"):
            bare.encode(prompt, raw=False)  # type: ignore[arg-type]
    assert bare.piece(7) == "<7>"
    assert bare.detokenizer() is None
    assert [token.text for token in bare.tokens([7, 8], raw=False)] == ["<7>", "<8>"]


@pytest.mark.parametrize(
    "prompt", ["Why?", "What is the capital of France?", "a 🙂 b", "user", "  spaces  around "]
)
def test_the_mask_leaves_exactly_the_users_words(smollm2: Prompter, prompt: str) -> None:
    tokens = smollm2.tokens(prompt, raw=False)

    own = [token.id for token in tokens if not token.template]
    assert smollm2.tokenizer.decode(own).strip() == prompt.strip()  # a token may begin with a space
    assert sum(token.template for token in tokens) > 20
    assert not any(token.template for token in smollm2.tokens(prompt, raw=True))


def test_stop_ids_come_from_the_model(smollm2: Prompter, bare: Prompter) -> None:
    assert [smollm2.piece(token) for token in smollm2.stop_ids] == ["<|im_end|>"]
    assert bare.stop_ids == ()


def test_a_broken_tokenizer_is_named(tiny: Callable[..., Path], tmp_path: Path) -> None:
    folder = shutil.copytree(tiny("llama"), tmp_path / "model")
    (folder / "tokenizer.json").write_text("{")

    with pytest.raises(ModelError, match=f"The tokenizer in {folder} cannot be loaded"):
        Prompter(folder, read_config(folder), trust_remote_code=False)
