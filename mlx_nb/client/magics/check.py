"""``%mlx_check``: a check-up of the loaded model on its ranks."""

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand
from IPython.display import display

from mlx_nb.client.magics.parsing import Parser, one_line_errors, split_line
from mlx_nb.client.magics.state import need_pipe, offer
from mlx_nb.client.options import add_chunk_option, generation_options

_HELP = """check every rank: weights against their files, every module against a fresh one, KV caches, hops, tokens

  %mlx_check
  %mlx_check --max-kv-size 16 What is the capital of France?    in a run of your own

then: check.ok, check.findings, check.first"""


def check_parser() -> Parser:
    """The options of ``%mlx_check``."""
    parser = Parser("%mlx_check", _HELP)
    parser.add_argument("--max-tokens", type=int, metavar="N", help="generate so many (2)")
    parser.add_argument("--max-kv-size", type=int, metavar="N", help="with KV caches of so many slots")
    add_chunk_option(parser)
    parser.add_argument("--raw", action="store_true", help="without the chat template")
    parser.add_argument("-o", "--out", metavar="NAME", help="put the report into this variable (check)")
    return parser


@magics_class
class CheckMagics(Magics):
    """Check-ups."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_check(self, line: str) -> None:
        """Check the loaded model: see ``%mlx_check --help``."""
        parser = check_parser()
        words, rest = split_line(parser, line)
        found = parser.parse_args(words)
        given = generation_options(found, "max_tokens", "max_kv_size", "prefill_step_size", "raw")
        options = {name: value for name, value in given.items() if value is not None}
        report = need_pipe().check(rest or None, **options)
        if found.out:
            self.shell.user_ns[found.out] = report
        else:
            offer(self.shell, "check", report)
        display(report)
