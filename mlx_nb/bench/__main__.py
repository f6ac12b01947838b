"""``python -m mlx_nb.bench``: the same as ``mlx-nb bench``."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_nb.bench.rows import ROWS
from mlx_nb.bench.run import run
from mlx_nb.client.progress import ProgressLine
from mlx_nb.shared.console_words import in_console
from mlx_nb.shared.errors import MlxNbError


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark."""
    parser.add_argument("--rows", help="comma-separated, of those that --list names (all)")
    parser.add_argument("--list", action="store_true", help="name the rows and leave")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender is run (3)")
    parser.add_argument("--model", default="smollm2", help="(smollm2)")
    parser.add_argument("--quick", action="store_true", help="fewer tokens: to try it out, not to quote")
    parser.add_argument("--json", metavar="FILE", help="write every sample")
    parser.add_argument("--markdown", metavar="FILE", help="write the table and the machine's description")


def run_command(found: argparse.Namespace) -> int:
    """Measure, print, write; 1 if a target was missed."""
    if found.list:
        for key, row in ROWS.items():
            print(f"{key:14} {row.text}")
        return 0
    rows = [key for key in (found.rows or "").split(",") if key]
    with ProgressLine() as progress:
        report = run(rows, rounds=found.rounds, model=found.model, quick=found.quick, tell=progress.tell)
    print(report)
    for file, text in ((found.json, report.to_json()), (found.markdown, report.to_markdown())):
        if file:
            Path(file).write_text(text)
            print(f"written: {file}")
    return 0 if report.ok else 1


def main(arguments: Sequence[str]) -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(prog="mlx-nb bench", description=run.__doc__, allow_abbrev=False)
    add_options(parser)
    try:
        return run_command(parser.parse_args(arguments))
    except MlxNbError as error:
        print(f"mlx-nb: {in_console(str(error), 'bench')}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmlx-nb: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
