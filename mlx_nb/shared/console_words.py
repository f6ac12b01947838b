"""Errors say what to type in a notebook cell; in a terminal or a call of Python they must say it otherwise."""

import re
import shlex
from collections.abc import Sequence

from mlx_nb.shared.magic_words import in_flags

_VALUE = r"(?!-)[\w./,-]*[\w/]"
_LINE = re.compile(
    r"%(?:mlx_load(?: (?:…|(?P<model>(?!-)[^\s,;]*[\w/])))?|mlx_cluster start)"
    rf"(?P<options>(?: --trust-remote-code| --[\w-]+ {_VALUE})*)"
)


def in_console(text: str, command: str, typed: Sequence[str] = (), *, ranks: int = 2) -> str:
    """An error as it is typed here: its fix speaks of magics, which only a notebook has.

    Args:
        text: Problem and fix.
        command: The subcommand of ``mlx-nb``.
        typed: The arguments that followed it: what is to be typed again is shown with what was right of them.
        ranks: For ``run``, how many ranks mpirun has started.

    >>> in_console("31 ranks are too many. Type: %mlx_load smollm2 --ranks 30", "demo")
    '31 ranks are too many. Type: mlx-nb demo --model smollm2 --ranks 30'
    >>> in_console("Too many. Type: %mlx_load m --ranks 8", "generate", ["--model", "m", "--ranks=9", "Hi you"])
    "Too many. Type: mlx-nb generate --model m --ranks 8 'Hi you'"
    >>> in_console("No. Type: %mlx_load m --ranks 1", "run", ["--model", "m", "--prompt", "Hi"], ranks=3)
    'No. Type: mpirun -n 1 mlx-nb run --model m --prompt Hi'
    >>> in_console("The prompt is empty. Type some text after the options.", "run")
    'The prompt is empty. Type: mpirun -n 2 mlx-nb run --prompt "What is the capital of France?"'
    """

    def line(found: "re.Match[str]") -> str:
        return _again(found.groupdict()["model"], found["options"], command, typed, ranks)

    again = f"mpirun -n {ranks} mlx-nb run" if command == "run" else f"mlx-nb {command}"
    text = in_flags(_LINE.sub(line, text))
    for magic, here in (
        (r"Type some text after the options\.", f'Type: {again} --prompt "What is the capital of France?"'),
        (
            r"Type: pipe\.generate\(\[1, 2, 3\]\).*",
            "Token ids can be given in a notebook: pipe.generate([1, 2, 3])",
        ),
        (r"%env (\w+)=(\S+),?", rf"\1=\2 {again}"),
        (r"%mlx_cluster restart", f"{again}, once more"),
        (r"%mlx_doctor --clean", "mlx-nb clean"),
        (r"%%?mlx_(?=generate|doctor|bench)", "mlx-nb "),
    ):
        text = re.sub(magic, here, text)
    return text


def in_python(fix: str) -> str:
    """What to type, for a call of ``mlx_nb.plan``, which takes the split as a list.

    >>> in_python("Type: %mlx_load smollm2 --split 10,20")
    'Type: split=[10, 20]'
    >>> in_python("Type: %mlx_load smollm2 --ranks 30")
    'Type: ranks=30'
    """

    def argument(found: "re.Match[str]") -> str:
        counts = found["counts"]
        return f"split=[{counts.replace(',', ', ')}]" if counts else f"ranks={found['ranks']}"

    return re.sub(r"%mlx_load \S+ --(?:split (?P<counts>\d+(?:,\d+)*)|ranks (?P<ranks>\d+))", argument, fix)


def _again(model: str | None, options: str, command: str, typed: Sequence[str], ranks: int) -> str:
    """The command once more, with a load's model and options in place of those that were typed."""
    wanted = re.findall(r"--([\w-]+)(?: ([^\s-]\S*))?", options)
    if command == "run":  # mpirun says how many
        ranks = next((int(value) for name, value in wanted if name == "ranks" and value.isdecimal()), ranks)
        wanted = [(name, value) for name, value in wanted if name != "ranks"]
    start = f"mpirun -n {ranks} mlx-nb run" if command == "run" else f"mlx-nb {command}"
    words = list(typed)
    if model:
        if command == "fetch":
            return " ".join([start, shlex.quote(model)])
        wanted.insert(0, ("model", model))
    added: list[str] = []
    for name, value in wanted:
        place = next((i for i, word in enumerate(words) if word.partition("=")[0] == f"--{name}"), None)
        option = [f"--{name}", value] if value else [f"--{name}"]
        if place is None:
            added += option
        else:
            words[place : place + (1 if "=" in words[place] else len(option))] = option
    after_model = words.index("--model") + 2 if "--model" in words else 0
    words[after_model:after_model] = added
    return " ".join([start, *map(shlex.quote, words)])
