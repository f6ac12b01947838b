"""How a magic's line is read: options first, then the prompt, word for word.

A prompt is text, not shell: quotes, braces, dollars and question marks in it mean themselves.
"""

import argparse
import re
import shlex
from collections.abc import Callable, Sequence
from functools import wraps
from typing import Any, NoReturn

from IPython.core.error import UsageError

from mlx_nb.client.options import near_option
from mlx_nb.shared.errors import MlxNbError, OptionError
from mlx_nb.shared.magic_words import in_magics

_WORD = re.compile(
    r"""(?P<name>--[\w-]+=)?(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<plain>[^\s"']\S*))"""
)
_OPTION = re.compile(r"--?[A-Za-z][\w-]*")


class HelpShown(Exception):
    """``--help`` was given and has been printed."""


class Parser(argparse.ArgumentParser):
    """An argument parser that raises one-line errors, prints help and never exits."""

    def __init__(self, prog: str, description: str, *, usage: str | None = None, **kwargs: Any) -> None:
        super().__init__(
            prog=prog,
            usage=usage and usage.replace("%", "%%"),  # argparse puts its values into it
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **kwargs,
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of exiting.

        Raises:
            OptionError: Always.
        """
        raise OptionError(f"{self.prog}: {message}.{near_option(self, message)}", f"Type: {self.prog} --help")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        """argparse calls it after help."""
        raise HelpShown

    def option_names(self) -> list[str]:
        """Every option by its longest name, for completion."""
        actions = {id(action): action for action in self._option_string_actions.values()}
        return [max(action.option_strings, key=len) for action in actions.values()]

    def takes_value(self, option: str) -> bool:
        """Whether an option is followed by a value."""
        action = self._option_string_actions.get(option)
        return action is not None and action.nargs != 0


def split_line(parser: Parser, line: str) -> tuple[list[str], str]:
    """The leading options of a line, and the rest of it, verbatim.

    ``--`` ends the options. One pair of quotes around the whole rest is taken away.

    Raises:
        OptionError: An option's quote is not closed.
    """
    options: list[str] = []
    rest = line.lstrip()
    while _OPTION.match(rest):
        word, rest = _take_word(rest)
        options.append(word)
        if parser.takes_value(word) and rest:
            value, rest = _take_word(rest)
            options.append(value)
        elif word in ("--help", "-h"):
            break
    if rest == "--" or rest.startswith("-- "):
        rest = rest[2:].lstrip()
    rest = rest.rstrip()
    if len(rest) > 1 and rest[0] == rest[-1] and rest[0] in "\"'" and rest[0] not in rest[1:-1]:
        rest = rest[1:-1]
    return options, rest


def _take_word(text: str) -> tuple[str, str]:
    """The first word of a line, its quotes taken away, and what follows."""
    match = _WORD.match(text)
    if not match:
        raise OptionError("A quote in the options is not closed.", "Close it, or leave it away.")
    value = next(part for part in match.group("double", "single", "plain") if part is not None)
    return (match["name"] or "") + value, text[match.end() :].lstrip()


def parse_words(parser: Parser, line: str) -> argparse.Namespace:
    """A line without a prompt: every word belongs to the parser."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise OptionError(f"{parser.prog}: a quote is not closed.", f"Type: {parser.prog} --help") from error
    return parser.parse_args(words)


def one_line_errors(magic: Callable[..., Any]) -> Callable[..., Any]:
    """Turn our errors into IPython's one-line errors; a user's mistake never shows a traceback."""

    @wraps(magic)
    def wrapped(self: Any, line: str = "", cell: str | None = None) -> Any:
        try:
            return magic(self, line) if cell is None else magic(self, line, cell)
        except HelpShown:
            return None
        except MlxNbError as error:
            raise UsageError(in_magics(str(error))) from None
        except KeyboardInterrupt:
            # As an error, so that Run All stops here; the traceback would show nothing but our own waiting.
            raise UsageError(f"Interrupted: %{magic.__name__} {line.strip()}".rstrip()) from None

    return wrapped


def one_of(word: str, choices: Sequence[str], prog: str) -> None:
    """Check a subcommand.

    Raises:
        OptionError: It is not one of the choices; the nearest is named first.
    """
    import difflib

    if word not in choices:
        near = difflib.get_close_matches(word, choices, n=1, cutoff=0.7)
        hint = f"Did you mean {prog} {near[0]}?" if near else f"Type one of: {', '.join(choices)}."
        raise OptionError(f"{prog} has no '{word}'.", hint)
