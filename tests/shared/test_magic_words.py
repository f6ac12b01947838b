"""Errors in the words of a magic."""

import pytest

from mlx_nb.shared.magic_words import in_magics


@pytest.mark.parametrize(
    ("said", "typed"),
    [
        ("It stands between modules. Type: dbg.into()", "It stands between modules. Type: %mlx_step into"),
        (
            "kv_group_size is 32 or 64. Type: kv_group_size=32",
            "--kv-group-size is 32 or 64. Type: --kv-group-size 32",
        ),
        ("Set one: pipe.break_at('*', when='nonfinite')", "Set one: %mlx_break * --if nonfinite"),
        ('Type: pipe.generate("…", max_tokens=3)', 'Type: pipe.generate("…", max_tokens=3)'),
        ("Type: --max-tokens 256", "Type: --max-tokens 256"),
    ],
)
def test_advice_is_what_one_types_in_a_magic(said: str, typed: str) -> None:
    assert in_magics(said) == typed
