"""What ``mlx-nb bench`` does, for a person in a terminal and for ``%mlx_bench``."""

import argparse
import json
from pathlib import Path

from mlx_nb.bench.rows import ROWS
from mlx_nb.bench.run import Tell, run
from mlx_nb.client.progress import ProgressLine
from mlx_nb.shared.bench_report import Report
from mlx_nb.shared.errors import MlxNbError, OptionError


def run_command(found: argparse.Namespace) -> int:
    """Measure, print, write; 1 if a target was missed. With ``--events`` it speaks JSON lines.

    Raises:
        OptionError: There is no such row, or a file cannot be written.
    """
    if found.events:
        return _run_for_notebook(found)
    if found.list:
        width = max(map(len, ROWS))
        for key, row in ROWS.items():
            print(f"{key:{width}}  {row.text}")
        return 0
    files = [Path(file) for file in (found.json, found.markdown) if file]
    for file in files:  # before an hour's work, not after it
        if not file.absolute().parent.is_dir():
            raise OptionError(f"{file} cannot be written: there is no such folder.", "Make the folder first.")
    with ProgressLine() as progress:
        report = _run(found, progress.tell)
    print(report)
    if found.json:
        Path(found.json).write_text(report.to_json())
    if found.markdown:
        Path(found.markdown).write_text(report.to_markdown())
    for file in files:
        print(f"written: {file}")
    return 0 if report.ok else 1


def _run_for_notebook(found: argparse.Namespace) -> int:
    """Measure for ``%mlx_bench``: a JSON line for every step, and one for the report or the error."""

    def say(**event: object) -> None:
        print(json.dumps(event), flush=True)

    try:
        report = _run(
            found, lambda text, done, total: say(kind="progress", text=text, done=done, total=total)
        )
    except MlxNbError as error:
        say(kind="error", problem=error.problem, fix=error.fix)
        return 1
    say(kind="report", report=report.to_json())
    return 0


def _run(found: argparse.Namespace, tell: Tell) -> Report:
    rows = [key for key in (found.rows or "").split(",") if key]
    return run(rows, rounds=found.rounds, model=found.model, quick=found.quick, tell=tell)
