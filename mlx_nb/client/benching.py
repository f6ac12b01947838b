"""A benchmark from the notebook, in a process of its own: it starts clusters and peers, and never touches ours."""

import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import closing

from mlx_nb.client.json_lines import follow
from mlx_nb.shared.bench_report import Report
from mlx_nb.shared.errors import MlxNbError, OptionError

Tell = Callable[[str, int, int], None]
CONSOLE = "mlx_nb.cli"


def list_rows() -> str:
    """The rows by name, with what each measures."""
    command = [sys.executable, "-m", CONSOLE, "bench", "--list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


def run_bench(arguments: Sequence[str], tell: Tell) -> Report:
    """Run ``mlx-nb bench`` with these arguments, and follow it.

    Raises:
        OptionError: There is no such row.
        MlxNbError: It failed.
        KeyboardInterrupt: It was interrupted; everything that it started has been stopped.
    """
    report = None
    with closing(follow(CONSOLE, "bench", "--events", *arguments)) as events:
        for event in events:
            if event["kind"] == "progress":
                tell(event["text"], event["done"], event["total"])
            elif event["kind"] == "report":
                report = Report.from_json(event["report"])
            elif event["kind"] == "error":
                raise OptionError(event["problem"], event["fix"])
    if report is None:
        raise MlxNbError("The benchmark ended without a report.", "Try it in a terminal: mlx-nb bench")
    return report
