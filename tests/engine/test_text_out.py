"""Text is handed out as tokens come, and never a part of a stop text."""

import pytest

from mlx_nb.engine.text_out import TextOut


class Words:
    """A detokenizer whose tokens are the texts themselves."""

    last_segment = ""

    def __init__(self, words: list[str]) -> None:
        self.words = words

    def add_token(self, token: int) -> None:
        self.last_segment = self.words[token]

    def finalize(self) -> None:
        pass


def spoken(words: list[str], *stop: str) -> tuple[list[str], str, str]:
    """The pieces, the text, and why it ended."""
    out, pieces, finish = TextOut(Words(words), stop), [], ""
    for token in range(len(words)):
        more, finish = out.add(token, "length" if token == len(words) - 1 else "")
        pieces.append(more)
        if finish:
            break
    return pieces, out.text, finish


@pytest.mark.parametrize(
    ("words", "stop", "text", "finish"),
    [
        (["one ", "two ", "three"], [], "one two three", "length"),
        (["one ", "two ", "three"], ["two"], "one ", "stop"),
        (["one ", "tw", "o three"], ["two"], "one ", "stop"),
        (["a", "b", "a", "b", "c", "d"], ["abc"], "ab", "stop"),
        (["aab", "d"], ["abc", "abd"], "a", "stop"),
        (["ab"], ["abc"], "ab", "length"),
        (["ab", "c"], ["abc"], "", "stop"),
        (["x", "ab", "y"], ["abc"], "xaby", "length"),
        (["one STOP two END"], ["END", "STOP"], "one ", "stop"),
    ],
)
def test_a_stop_text_cuts_wherever_tokens_end(
    words: list[str], stop: list[str], text: str, finish: str
) -> None:
    pieces, whole, found = spoken(words, *stop)

    assert (whole, found) == (text, finish)
    assert "".join(pieces) == text


def test_only_what_may_become_a_stop_text_is_held_back() -> None:
    out = TextOut(Words(["one ", "t", "hree"]), ["two"])

    assert [out.add(0, ""), out.text] == [("one ", ""), "one "]
    assert [out.add(1, ""), out.text] == [("", ""), "one t"]
    assert [out.add(2, ""), out.text] == [("three", ""), "one three"]
