"""``%mlx_bench``: measure ours and its peers on this machine."""

from pathlib import Path

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from mlx_nb.client.benching import list_rows, run_bench
from mlx_nb.client.magics.parsing import Parser, one_line_errors, parse_words
from mlx_nb.client.options import add_bench_options
from mlx_nb.client.progress import ProgressLine
from mlx_nb.shared.bench_report import Report


def bench_parser() -> Parser:
    parser = Parser(
        "%mlx_bench",
        "measure two ranks against mlx-lm in one process, its own pipeline, plain MPI; half an hour for all rows\n"
        "(it starts a cluster of its own: stop yours first for quiet numbers)",
    )
    add_bench_options(parser)
    parser.add_argument("-o", "--out", metavar="NAME", help="put the report into this variable")
    return parser


@magics_class
class BenchMagics(Magics):
    """Measuring."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_bench(self, line: str) -> Report | None:
        """Measure ours and its peers: see ``%mlx_bench --help``."""
        found = parse_words(bench_parser(), line)
        if found.list:
            print(list_rows())
            return None
        words = ["--rounds", str(found.rounds), "--model", found.model, *(["--quick"] * found.quick)]
        if found.rows:
            words += ["--rows", found.rows]
        with ProgressLine() as progress:
            report = run_bench(words, progress.tell)
        for file, text in ((found.json, report.to_json), (found.markdown, report.to_markdown)):
            if file:
                Path(file).write_text(text())
        if found.out:
            self.shell.user_ns[found.out] = report
        return report
