"""A benchmark from the notebook, in a process of its own: it starts clusters and peers, and never touches ours."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence

from mlx_nb.shared.bench_report import Report
from mlx_nb.shared.errors import MlxNbError, OptionError

Tell = Callable[[str, int, int], None]


def list_rows() -> str:
    """The rows by name, with what each measures."""
    command = [sys.executable, "-m", "mlx_nb.bench", "--list"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.rstrip()


def run_bench(arguments: Sequence[str], tell: Tell) -> Report:
    """Run ``mlx-nb bench`` with these arguments, and follow it.

    Raises:
        OptionError: There is no such row.
        MlxNbError: It failed.
        KeyboardInterrupt: It was interrupted; everything that it started has been stopped.
    """
    # By name: the benchmark imports the engine's side too, which this process never does.
    command = [sys.executable, "-m", "mlx_nb.bench", "--events", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True) as process:
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["kind"] == "progress":
                    tell(event["text"], event["done"], event["total"])
                elif event["kind"] == "report":
                    return Report.from_json(event["report"])
                elif event["kind"] == "error":
                    raise OptionError(event["problem"], event["fix"])
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    raise MlxNbError(f"The benchmark ended without a report (exit {process.returncode}).", "Try it again.")
