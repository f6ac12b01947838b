"""``%mlx_diff``: the loaded model against another one."""

from pathlib import Path
from typing import Any

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand
from IPython.display import display

from mlx_nb.client.magics.model import prompt_of
from mlx_nb.client.magics.parsing import Parser, one_line_errors, split_line
from mlx_nb.client.magics.state import need_pipe, offer
from mlx_nb.client.options import add_chunk_option, generation_options
from mlx_nb.client.reference import reference
from mlx_nb.client.trace_file import open_trace
from mlx_nb.shared.errors import OptionError

_HELP = """compare the loaded model with another one, layer by layer; the rest of the line is the prompt, word for word

  %mlx_diff What is the capital of France?                 with the same model in one process
  %mlx_diff --against other What is the capital of France?   with a pipe or a trace in the variable `other`
  %mlx_diff --against clean.safetensors                    with a saved trace, and its prompt

then: diff.ok, diff.first, diff.worst, diff.table(), diff.to_markdown(path)"""


def diff_parser() -> Parser:
    """The options of ``%mlx_diff``."""
    parser = Parser("%mlx_diff", _HELP)
    parser.add_argument("--against", metavar="NAME", help="a pipe, a trace, or a trace's file (one process)")
    parser.add_argument(
        "--sites",
        metavar="GLOB",
        default="layers.*",
        help="what is compared: sites, aliases, globs (layers.*)",
    )
    parser.add_argument("--free", action="store_true", help="only free runs, in which errors add up")
    parser.add_argument("--tol", type=float, metavar="X", help="the relative distance that is let pass")
    parser.add_argument("--max-tokens", type=int, metavar="N", default=0, help="generate so many (0)")
    add_chunk_option(parser)
    parser.add_argument("--raw", action="store_true", help="without the chat template")
    parser.add_argument("-o", "--out", metavar="NAME", help="put the report into this variable (diff)")
    return parser


@magics_class
class DiffMagics(Magics):
    """Comparisons."""

    @no_var_expand
    @line_cell_magic
    @one_line_errors
    def mlx_diff(self, line: str, cell: str | None = None) -> None:
        """Compare two models: see ``%mlx_diff --help``."""
        parser = diff_parser()
        words, rest = split_line(parser, line)
        found = parser.parse_args(words)
        pipe = need_pipe()
        other = self._other(found.against)
        own_prompt = hasattr(other, "info") and not rest and cell is None
        report = pipe.diff(
            other,
            None if own_prompt else prompt_of(rest, cell, "%mlx_diff"),
            sites=found.sites,
            forced=not found.free,
            tol=found.tol,
            **generation_options(found, "max_tokens", "prefill_step_size", "raw"),
        )
        if found.out:
            self.shell.user_ns[found.out] = report
        else:
            offer(self.shell, "diff", report)
        display(report)

    def _other(self, name: str | None) -> Any:
        if name is None:
            return reference()
        if name in self.shell.user_ns:
            return self.shell.user_ns[name]
        if Path(name).is_file():
            return open_trace(name)
        raise OptionError(
            f"'{name}' is neither a variable nor a file.",
            "Type: %mlx_diff --against NAME, with a pipe or a trace; or leave --against away.",
        )
