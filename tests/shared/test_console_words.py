"""What a notebook's error says in a terminal can be typed there as it stands."""

import pytest

from mlx_nb.cli import build_parser
from mlx_nb.shared.console_words import in_console


@pytest.mark.parametrize(
    ("command", "typed", "fix", "told"),
    [
        (
            "run",
            "--model m/nanbeige --prompt hi",
            "Load it on 1 rank: %mlx_load m/nanbeige --ranks 1",
            "Load it on 1 rank: mpirun -n 1 mlx-nb run --model m/nanbeige --prompt hi",
        ),
        (
            "run",
            "--prompt hi --split 10,19",
            "Type: %mlx_load smollm2 --split 10,10,10",
            "Type: mpirun -n 3 mlx-nb run --model smollm2 --prompt hi --split 10,10,10",
        ),
        (
            "generate",
            "--model m/gemma3n --ranks 9 hi",
            "Type: %mlx_load … --ranks 8",
            "Type: mlx-nb generate --model m/gemma3n --ranks 8 hi",
        ),
        (
            "generate",
            "--ranks=0 hi",
            "Type: %mlx_cluster start --ranks 2",
            "Type: mlx-nb generate --ranks 2 hi",
        ),
        (
            "generate",
            "--model /m --ranks 3 hi",
            "type: %mlx_load /m --trust-remote-code if you trust it.",
            "type: mlx-nb generate --model /m --trust-remote-code --ranks 3 hi if you trust it.",
        ),
        ("demo", "", "Type: %mlx_load smollm2.", "Type: mlx-nb demo --model smollm2."),
        ("fetch", "m/a", "Type: %mlx_load smollm2, or wait.", "Type: mlx-nb fetch smollm2, or wait."),
    ],
)
def test_a_fix_repeats_what_was_typed(command: str, typed: str, fix: str, told: str) -> None:
    assert in_console(f"It is wrong. {fix}", command, typed.split(), ranks=3) == f"It is wrong. {told}"


def test_what_is_told_is_taken() -> None:
    told = in_console("Type: %mlx_load … --ranks 8", "generate", ["--model", "a", "--ranks", "9", "It's me"])
    import shlex

    found = build_parser().parse_args(shlex.split(told.partition("mlx-nb ")[2]))
    assert (found.model, found.ranks, found.prompt) == ("a", 8, ["It's me"])


def test_a_terminal_is_not_told_to_type_python() -> None:
    told = in_console(
        "It takes ids only. Type: pipe.generate([1, 2, 3]) or, step by step, pipe.debug([1])", "generate"
    )
    assert told == "It takes ids only. Token ids can be given in a notebook: pipe.generate([1, 2, 3])"
