"""``%mlx_trace``: recording values while a prompt goes through."""

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from mlx_nb.client.magics.model import prompt_of
from mlx_nb.client.magics.parsing import Parser, one_line_errors, split_line
from mlx_nb.client.magics.state import need_pipe, offer
from mlx_nb.client.options import add_chunk_option, generation_options

_HELP = """record values at sites while a prompt goes through; the rest of the line is the prompt, word for word

  %mlx_trace What is the capital of France?
  %mlx_trace --sites layers.*.mlp_out,logits --max-tokens 8 -o t What is the capital of France?

then: trace["layers.3.resid_post"], trace["layers.*.resid_post"][:, 0, -1], trace.table(), trace.save(path)"""


def trace_parser() -> Parser:
    """The options of ``%mlx_trace``."""
    parser = Parser("%mlx_trace", _HELP)
    parser.add_argument(
        "--sites",
        metavar="GLOB",
        default="layers.*.resid_post",
        help="a site, an alias or a glob, several with commas (layers.*.resid_post)",
    )
    parser.add_argument(
        "--max-tokens", type=int, metavar="N", default=0, help="generate so many (0: the prompt alone)"
    )
    add_chunk_option(parser)
    parser.add_argument("--raw", action="store_true", help="without the chat template")
    parser.add_argument("-o", "--out", metavar="NAME", help="put the trace into this variable (trace)")
    return parser


@magics_class
class TraceMagics(Magics):
    """Traces."""

    @no_var_expand
    @line_cell_magic
    @one_line_errors
    def mlx_trace(self, line: str, cell: str | None = None) -> None:
        """Record values at sites: see ``%mlx_trace --help``."""
        parser = trace_parser()
        words, rest = split_line(parser, line)
        found = parser.parse_args(words)
        pipe = need_pipe()
        trace = pipe.trace(
            prompt_of(rest, cell, "%mlx_trace"),
            sites=found.sites,
            max_tokens=found.max_tokens,
            **generation_options(found, "prefill_step_size", "raw"),
        )
        if found.out:
            self.shell.user_ns[found.out] = trace
        else:
            offer(self.shell, "trace", trace)
        if found.max_tokens:
            print(trace.gen)
        print(trace)
