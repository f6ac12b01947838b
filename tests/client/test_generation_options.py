"""Options of generation as they are typed, and what is wrong with them in one line."""

from typing import Any

import pytest

from mlx_nb.client.magics.model import generate_parser
from mlx_nb.client.magics.parsing import split_line
from mlx_nb.client.options import generation_options
from mlx_nb.client.processors import read_options
from mlx_nb.shared.errors import OptionError


def typed(line: str) -> tuple[dict[str, Any], str]:
    parser = generate_parser()
    words, rest = split_line(parser, line)
    return generation_options(parser.parse_args(words)), rest


@pytest.mark.parametrize(
    ("line", "options"),
    [
        (r'--stop "\n\n" --stop "User:" hi', {"stop": ["\n\n", "User:"]}),
        ("--logit-bias 42=-100,7=5.5 hi", {"logit_bias": {42: -100.0, 7: 5.5}}),
        ("--kv-bits 4 --kv-group-size 32 --quantized-kv-start 9 hi",
         {"kv_bits": 4, "kv_group_size": 32, "quantized_kv_start": 9}),
        ("--presence-penalty 1 --frequency-penalty 0.5 --repetition-context-size 60 hi",
         {"presence_penalty": 1.0, "frequency_penalty": 0.5, "repetition_context_size": 60}),
    ],
)  # fmt: skip
def test_options_are_read_before_the_prompt(line: str, options: dict[str, Any]) -> None:
    assert typed(line) == (options, "hi")
    read_options(options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stop": [""]}, "stop is text, not nothing"),
        ({"stop": [3]}, "stop is text, not 3. Type: stop="),
        ({"logit_bias": 3}, "logit_bias is a dict of token id and number, not 3"),
        ({"max_kv_size": 4}, "max_kv_size is over 4, since the first 4 tokens stay, not 4"),
        ({"max_kv_size": 9, "kv_bits": 8}, "A rotating KV cache cannot be quantised"),
        ({"kv_group_size": 7}, "kv_group_size is 32, 64 or 128, not 7"),
        ({"quantized_kv_start": -1}, "quantized_kv_start is 0 or more, not -1"),
        ({"presence_context_size": 0}, "presence_context_size is 1 or more, not 0"),
        ({"max_tokens": 2.5}, "max_tokens is a whole number, not 2.5"),
        ({"logits_processors": [3]}, "A logits processor is a function of tokens and logits, not 3"),
    ],
)
def test_what_is_wrong_is_said_before_any_rank_is_asked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as told:
        read_options(options)
    assert message in str(told.value)


def test_a_bias_that_is_no_pair_is_named() -> None:
    with pytest.raises(OptionError, match="'42' is not like 42=-100,7=5"):
        typed("--logit-bias 42 hi")
