"""``%%mlx_step`` begins to step, ``%mlx_step into`` and the like go on, ``%mlx_show`` opens views."""

from collections.abc import Callable
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from mlx_nb.client.debugger import Debugger
from mlx_nb.client.going_back import BACKWARDS
from mlx_nb.client.magics.model import prompt_of
from mlx_nb.client.magics.parsing import Parser, one_line_errors, one_of, parse_words, split_line
from mlx_nb.client.magics.state import need_cluster, need_debugger, need_pipe, offer
from mlx_nb.client.options import add_generation_options, add_prompt_cache_option, generation_options
from mlx_nb.client.show import VIEWS, close_views, show_stepper, show_view
from mlx_nb.shared.errors import OptionError

STRIDES = ("into", "over", "out", "layer", "rank", "token", "run", "continue", "until", "back")
QUESTIONS = ("pm", "p", "where", "list", "args", "locals", "restart", "close")
SUBCOMMANDS = (*STRIDES, *QUESTIONS)

# pdb's letters, and the two that the view's keys have besides.
LETTERS = {
    "s": "into", "n": "over", "r": "out", "c": "run", "continue": "run", "cont": "run", "unt": "until",
    "b": "back", "w": "where", "l": "list", "a": "args", "q": "close", "quit": "close", "k": "rank", "t": "token",
}  # fmt: skip

_HELP = """step through a forward pass like a program

  %%mlx_step [options] in a cell, the prompt below it: stand before the embedding
  %mlx_step into (s)      next entry, exit, send or recv
  %mlx_step over (n)      this module's exit
  %mlx_step out (r)       the exit of the module around it
  %mlx_step layer [N]     the next layer's output
  %mlx_step rank (k)      the recv on the next rank
  %mlx_step token (t) [N] the start of the next pass
  %mlx_step until SITE    a site, such as layers.3.self_attn.output
  %mlx_step run (c)       to a breakpoint, or to the end
  %mlx_step back (b) [STRIDE [N]]   undo the last stride; or a stride backwards: back layer, back token 3, back restart
  %mlx_step pm            after an exception in a pass: stand where it was raised
  %mlx_step p EXPR        evaluate in the model's own frame, on the rank
  %mlx_step where (w), list (l), args (a), locals, restart, close (q)"""


def step_parser() -> Parser:
    """The options of ``%%mlx_step``."""
    parser = Parser("%%mlx_step", _HELP)
    parser.add_argument("-o", "--out", metavar="NAME", help="put the stepper into this variable")
    add_generation_options(parser)
    add_prompt_cache_option(parser)
    return parser


def show_parser() -> Parser:
    """The options of ``%mlx_show``."""
    parser = Parser("%mlx_show", f"open a view: {', '.join(VIEWS)}")
    parser.add_argument("view", nargs="?", default="step", help="which (step)")
    parser.add_argument(
        "prompt",
        nargs="?",
        help="for tokens, lens, stats, attention: the rest of the line, word for word",
    )
    parser.add_argument("--layer", type=int, metavar="N", help="for attention: which layer")
    parser.add_argument("--head", type=int, metavar="N", help="for attention: which head is shown large")
    parser.add_argument(
        "--raw", action="store_const", const=True, help="the prompt without the chat template"
    )
    return parser


@magics_class
class StepMagics(Magics):
    """Stepping and showing."""

    @no_var_expand
    @line_cell_magic
    @one_line_errors
    def mlx_step(self, line: str, cell: str | None = None) -> Any:
        """Step through a forward pass: see ``%mlx_step --help``."""
        if cell is not None:
            return self._begin(line, cell)
        word, _, rest = line.strip().partition(" ")
        if word in ("", "--help", "-h", "help"):
            print(_HELP)
            return None
        name = LETTERS.get(word, word)
        one_of(name, SUBCOMMANDS, "%mlx_step")
        if name == "pm":
            debugger = need_pipe().pm()
            offer(self.shell, "dbg", debugger)
            return debugger
        return self._go(need_debugger(lost=name == "restart"), name, rest.strip())

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_show(self, line: str) -> None:
        """Open a view: see ``%mlx_show --help``."""
        parser = show_parser()
        view, _, rest = line.strip().partition(" ")
        words, prompt = split_line(parser, rest)
        found = parser.parse_args([view, *words] if view else [])
        named = {name: getattr(found, name) for name in ("layer", "head", "raw")}
        wishes = {name: value for name, value in named.items() if value is not None}
        one_of(found.view, VIEWS, "%mlx_show")
        if found.view == "cluster":
            show_view(None, found.view, cluster=need_cluster())
        else:
            show_view(need_pipe(), found.view, prompt, **wishes)

    @line_magic
    @one_line_errors
    def mlx_freeze(self, line: str) -> None:
        """Replace every live view by its picture, which stays readable without a kernel."""
        parse_words(Parser("%mlx_freeze", "turn every live view into a picture that needs no kernel"), line)
        count = close_views()
        print("1 view is a picture now." if count == 1 else f"{count} views are pictures now.")

    def _begin(self, line: str, cell: str) -> None:
        parser = step_parser()
        words, rest = split_line(parser, line)
        found = parser.parse_args(words)
        debugger = need_pipe().debug(prompt_of(rest, cell), **generation_options(found))
        offer(self.shell, "dbg", debugger)
        show_stepper(debugger)
        if found.out:
            self.shell.user_ns[found.out] = debugger

    def _go(self, debugger: Debugger, name: str, rest: str) -> Any:
        if name in STRIDES:
            position = self._stride(debugger, name, rest)
            if debugger.asked_to_stop and not debugger.done:
                print(f"[{debugger.how_far} · %mlx_step run goes on]")
            if position.kind == "end":
                print("\n".join([debugger.gen.text, *debugger.pipe.breakpoints.deaf()]))
            return position
        looks: dict[str, Callable[[], object]] = {
            "where": debugger.where,
            "list": debugger.source,
            "args": lambda: "\n".join(map(str, debugger.args)),
            "locals": lambda: "\n".join(map(str, debugger.locals)),
            "p": lambda: debugger.p(rest or "self"),
        }
        if name in looks:
            print(looks[name]())
        elif name == "restart":
            return debugger.restart()
        elif name == "close":
            debugger.close()
            print("The stepper is closed.")
        return None

    def _stride(self, debugger: Debugger, name: str, rest: str) -> Any:
        if name == "until":
            wanted = dict(item.split("=", 1) for item in rest.split() if "=" in item)
            numbers = {k: _count(v, f"until {k}=") for k, v in wanted.items()}
            if strange := next((k for k in wanted if k not in ("layer", "rank", "token")), None):
                raise OptionError(
                    f"%mlx_step until knows layer=, rank= and token=, not {strange}=.",
                    "Type: %mlx_step until layer=3",
                )
            site = next((item for item in rest.split() if "=" not in item), None)
            return debugger.until(site, **numbers)
        if name == "back":
            return self._back(debugger, rest.split())
        if name in ("layer", "token"):
            return getattr(debugger, name)(_count(rest, f"{name} ") if rest else 1)
        if rest:
            raise OptionError(f"%mlx_step {name} takes nothing, not '{rest}'.", f"Type: %mlx_step {name}")
        return getattr(debugger, name)()

    def _back(self, debugger: Debugger, words: list[str]) -> Any:
        if not words or words[0].isdecimal():
            return debugger.back(n=int(words[0]) if words else 1)
        stride = LETTERS.get(words[0], words[0])
        if stride == "until":
            if len(words) != 2:
                raise OptionError(
                    "%mlx_step back until needs a site.", "Type: %mlx_step back until layers.3.output"
                )
            return debugger.back("until", site=words[1])
        one_of(stride, BACKWARDS, "%mlx_step back")
        return debugger.back(stride, _count(words[1], f"back {stride} ") if words[1:] else 1)


def _count(text: str, name: str) -> int:
    if not text.isdecimal():
        raise OptionError(f"'{text}' is not a count.", f"Type a whole number: %mlx_step {name}2")
    return int(text)
