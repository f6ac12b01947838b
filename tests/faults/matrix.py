"""Every fault in every phase of a cluster's life: what the user is told, how soon, and what is left behind.

``python -m tests.faults.matrix [FILE.md] [PHASE …]`` runs all cells and writes a table, ``--cell FAULT PHASE`` one. A cell is good when the user got an
error (or a right answer) in time, the text so far was kept, the same cluster restarted and answered, and no
process was left.
"""

import json
import os
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import psutil

from mlx_nb.client import records
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.processes import marked
from mlx_nb.shared.errors import MlxNbError

STORY, FRANCE, ANSWER = (
    "Once upon a time there was a little robot, and",
    "What is the capital of France?",
    "The capital of France is Paris.",
)
DEAD_S, SILENT_S, GONE_S = 5.0, 10.0, 15.0
SLACK_S = 8.0  # the machine's, not ours: a shared one may stand still for seconds
START_TIMEOUT_S = 20.0

FAULTS = (
    "kill rank 0",
    "kill rank 1",
    "stop rank 1",
    "crash rank 1",
    "kill mpirun",
    "kill controller",
    "ctrl-c",
)
PHASES = ("start", "load", "prefill", "decode", "stepped", "idle")


@dataclass(slots=True)
class Cell:
    """What became of one fault in one phase.

    Attributes:
        said: The error that the user saw, or how it ended without one.
        reported_s: From the fault to the error.
        wrong: What was not as it should be; a good cell has nothing here.
    """

    fault: str
    phase: str
    said: str = ""
    reported_s: float = 0.0
    wrong: list[str] = field(default_factory=list)


def run_cell(fault: str, phase: str, delay_s: float = 0.0) -> Cell:
    """Play a fault in a phase of a cluster of its own."""
    cell = Cell(fault, phase)
    names = {folder.name for folder in records.runtime_folder().iterdir()}
    os.environ["MLX_NB_START_TIMEOUT"] = str(START_TIMEOUT_S)
    cluster: Cluster | None = None
    stopped: list[psutil.Process] = []
    try:
        if phase == "start":
            _in_start(cell, names, stopped)
            cluster = Cluster.start(ranks=2)
            pipe = cluster.load("smollm2")
        else:
            cluster = Cluster.start(ranks=2)
            pipe = _in_life(cell, cluster, stopped, delay_s)
            _go_on(stopped)
            if fault != "ctrl-c":
                cluster.restart()
                pipe.load_there()
        if (text := pipe.generate(FRANCE, max_tokens=10).text) != ANSWER:
            cell.wrong.append(f"afterwards it answers {text!r}")
    except BaseException as error:  # noqa: BLE001 - whatever it is belongs into the table
        cell.wrong.append(f"afterwards: {type(error).__name__}: {error}"[:200])
    finally:
        _go_on(stopped)
        if cluster is not None:
            cluster.stop()
    _look_for_leftovers(cell, names)
    return cell


def _in_start(cell: Cell, names: set[str], stopped: list[psutil.Process]) -> None:
    """The fault while the ranks come up."""
    at: list[float] = []

    def look(stage: str, _done: int, _of: int) -> None:
        if stage == "ranks" and not at:
            at.append(0.0)
            threading.Thread(target=strike, daemon=True).start()

    def strike() -> None:
        new = {folder.name for folder in records.runtime_folder().iterdir()} - names
        for _ in range(200):
            if hit(cell.fault, next(iter(new)), stopped):
                at[0] = time.monotonic()
                break
            time.sleep(0.02)

    try:
        Cluster.start(ranks=2, progress=look).stop()
        cell.said = "it started all the same" if at and at[0] else "it started before the fault"
    except (MlxNbError, KeyboardInterrupt) as error:
        _note(cell, error, at[0] if at else time.monotonic(), START_TIMEOUT_S)
    _go_on(stopped)


def _in_life(cell: Cell, cluster: Cluster, stopped: list[psutil.Process], delay_s: float) -> Pipe:
    """The fault in a later phase; the pipe, which may be of no use any more."""
    struck: list[float] = []

    def strike() -> None:
        time.sleep(delay_s)
        hit(cell.fault, cluster.name, stopped)
        struck.append(time.monotonic())

    first = cluster.load("smollm2")
    pipe = first
    try:
        match cell.phase:
            case "load":
                with _soon(strike, 0.15):
                    pipe = cluster.load("smollm2")
                    first.unload()
            case "prefill":
                with _soon(strike, 0.8):
                    pipe.generate([504, 3426, 314] * 1500, max_tokens=1)
            case "decode":
                for number, _piece in enumerate(pipe.stream(STORY, raw=True, max_tokens=3000)):
                    if number == 5:
                        strike()
            case "stepped":
                with pipe.debug(STORY, raw=True, max_tokens=3000) as dbg:
                    dbg.layer(3)
                    strike()
                    dbg.run()
            case "idle":
                strike()
                time.sleep(0.5)
                pipe.generate(STORY, raw=True, max_tokens=400)
        cell.said = "no error"
        if cell.phase not in ("load", "idle"):
            cell.wrong.append("the fault went unnoticed")
    except (MlxNbError, KeyboardInterrupt) as error:
        _note(
            cell,
            error,
            struck[0] if struck else time.monotonic(),
            SILENT_S if "stop" in cell.fault else DEAD_S,
        )
    if cell.phase == "decode" and len(pipe.last.text if pipe.last else "") < 5:
        cell.wrong.append("the text so far is lost")
    if cell.phase == "load" and pipe is first and cell.fault == "ctrl-c":
        return first
    return pipe


def _note(cell: Cell, error: BaseException, struck_s: float, limit_s: float) -> None:
    cell.reported_s = max(0.0, time.monotonic() - struck_s)
    cell.said = " ".join((str(error) or type(error).__name__).split())
    if cell.reported_s > limit_s + SLACK_S:
        cell.wrong.append(f"reported after {cell.reported_s:.0f} s, wanted {limit_s:.0f}")
    if isinstance(error, MlxNbError) and not error.fix:
        cell.wrong.append("the error does not say what to type")


@contextmanager
def _soon(strike: Callable[[], None], after_s: float) -> Iterator[None]:
    timer = threading.Timer(after_s, strike)
    timer.start()
    try:
        yield
    finally:  # a fault that comes late still belongs to this cell
        timer.cancel()
        timer.join()


def hit(fault: str, name: str, stopped: list[psutil.Process]) -> bool:
    """Let a fault happen to a cluster; False if its victim is not there yet."""
    if fault == "ctrl-c":
        os.kill(os.getpid(), signal.SIGINT)
        return True
    how, _, whom = fault.partition(" ")
    for process in marked(name):
        try:
            if _role(process) == whom:
                number = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "crash": signal.SIGSEGV}[how]
                process.send_signal(number)
                if how == "stop":
                    stopped.append(process)
                return True
        except psutil.Error:
            continue
    return False


def _role(process: psutil.Process) -> str:
    words = " ".join(process.cmdline())
    if "ipyparallel.engine" in words and "mpiexec" not in words and "prterun" not in words:
        return f"rank {process.environ().get('PMIX_RANK', '?')}"
    if "ipyparallel.controller" in words:
        return "controller"
    if process.name() in ("mpirun", "mpiexec", "prterun"):
        return "mpirun"
    return ""


def _go_on(stopped: list[psutil.Process]) -> None:
    while stopped:
        try:
            stopped.pop().resume()
        except psutil.Error:
            continue


def _look_for_leftovers(cell: Cell, names: set[str]) -> None:
    new = {folder.name for folder in records.runtime_folder().iterdir()} - names
    deadline = time.monotonic() + GONE_S
    while left := [process for name in new for process in marked(name)]:
        if time.monotonic() > deadline:
            cell.wrong.append(f"left behind: {[process.pid for process in left]}")
            return
        time.sleep(0.2)


def to_markdown(cells: list[Cell]) -> str:
    """The table of all cells."""
    good = sum(not cell.wrong for cell in cells)
    rows = [
        f"| {c.fault} | {c.phase} | {c.reported_s:.1f} s | {'; '.join(c.wrong) or 'good'} | {c.said[:160].replace('|', '/')} |"
        for c in cells
    ]
    head = [
        "| fault | phase | reported after | verdict | what the user reads |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join(
        [f"{good} of {len(cells)} cells good, {date.today().isoformat()}.", "", *head, *rows, ""]
    )


def main(file: str = "", *phases: str) -> int:
    """Run all cells, or one with ``--cell FAULT PHASE``, which is written as JSON; 1 if one is not good."""
    cells = []
    own = tempfile.mkdtemp(prefix="mlx_nb-faults-")
    os.environ["JUPYTER_RUNTIME_DIR"] = own  # other clusters of this user are none of our business
    if file == "--cell":
        cell = run_cell(*phases)
        print(json.dumps(asdict(cell)))
        shutil.rmtree(own, ignore_errors=True)
        return int(bool(cell.wrong))
    for phase in phases or PHASES:
        for fault in FAULTS:
            cells.append(run_cell(fault, phase))
            last = cells[-1]
            print(
                f"{fault:15} {phase:8} {last.reported_s:5.1f} s  {'; '.join(last.wrong) or 'good'}",
                flush=True,
            )
            if last.wrong:
                print(f"    {last.said[:300]}", flush=True)
    shutil.rmtree(own, ignore_errors=True)
    if file:
        Path(file).write_text(to_markdown(cells))
    return int(any(cell.wrong for cell in cells))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
