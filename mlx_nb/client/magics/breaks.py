"""``%mlx_break``: where runs stand still."""

import re

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from mlx_nb.client.magics.parsing import Parser, one_line_errors, parse_words
from mlx_nb.client.magics.state import need_pipe
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.magic_words import in_magics

CONDITIONS = ("nonfinite", "shape", "dtype")
_IF = re.compile(r"(?:^|\s)--if(?:\s+|=|$)")

_HELP = """let every run, stepped or free, stand still at a site; alone, list where

  %mlx_break layers.3.self_attn.output
  %mlx_break * --if nonfinite             the first module that makes NaN or Inf
  %mlx_break layers.*.mlp_out --rank 1 --if absmax > 100
  %mlx_break layers.0.output --if shape   another shape than at the last visit (or dtype)

--if takes the rest of the line: nonfinite, shape, dtype, or an expression over min, max, mean,
rms, absmax, nan, inf, shape, dtype, layer, token, value and the model's own names."""


def break_parser() -> Parser:
    """The options of ``%mlx_break``."""
    usage = "%mlx_break [SITE] [--rank N] [--token N] [--once] [--ignore N] [--if EXPR]\n       %mlx_break --delete|--enable|--disable N"
    parser = Parser("%mlx_break", _HELP, usage=usage)
    parser.add_argument("site", nargs="?", help="a site, an alias or a glob; * is every module's exit")
    parser.add_argument("--if", dest="when", metavar="EXPR", help="only where this holds")
    parser.add_argument("--rank", type=int, metavar="N", help="only on this rank")
    parser.add_argument(
        "--token",
        type=int,
        metavar="N",
        help="only in the pass that feeds this token; the prompt's first is 0",
    )
    parser.add_argument("--once", action="store_true", help="delete it when it has stopped a run")
    parser.add_argument("--ignore", type=int, default=0, metavar="N", help="let N hits pass first")
    for name in ("delete", "enable", "disable"):
        parser.add_argument(
            f"--{name}", nargs="?", const="", metavar="N", help=f"{name} breakpoint N, or all"
        )
    return parser


@magics_class
class BreakMagics(Magics):
    """Breakpoints."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_break(self, line: str) -> None:
        """Set, list, disable or delete breakpoints: see ``%mlx_break --help``."""
        found_if = _IF.search(line)
        when = line[found_if.end() :].strip() if found_if else None
        if found_if and not when:
            raise OptionError("--if needs a condition.", "Type: %mlx_break layers.*.output --if absmax > 100")
        found = parse_words(break_parser(), line[: found_if.start()] if found_if else line)
        breakpoints = need_pipe().breakpoints
        for name in ("delete", "enable", "disable"):
            if (which := getattr(found, name)) is None:
                continue
            for number in breakpoints.numbers if which == "all" else [_number(which, name)]:
                breakpoints.find(number)
                one = next(one for one in breakpoints if one.id == number)
                getattr(one, name)()
            print(in_magics(str(breakpoints)))
            return
        if found.site is None and when is None:
            print(in_magics(str(breakpoints)))
            return
        if found.site and (found.site in CONDITIONS or re.search("[<>=]", found.site)):
            raise OptionError(
                f"'{found.site}' is a condition, not a site.", f"Type: %mlx_break * --if {found.site}"
            )
        made = need_pipe().break_at(
            found.site,
            when=when,
            rank=found.rank,
            token=found.token,
            once=found.once,
            ignore=found.ignore,
        )
        print(made)


def _number(text: str, name: str) -> int:
    if not text:
        raise OptionError(f"--{name} needs a breakpoint's number.", f"Type: %mlx_break --{name} 1, or all")
    if not text.isdecimal():
        raise OptionError(f"'{text}' is no breakpoint's id.", f"Type: %mlx_break --{name} 1, or all")
    return int(text)
