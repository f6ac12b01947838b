"""Every fault in every phase of a cluster's life: what the user is told, how soon, and what is left behind.

``python -m tests.faults.matrix [FILE.md] [PHASE …]`` runs all cells and writes a table, ``--cell FAULT PHASE`` one. A cell is good when the user got an
error (or a right answer) in time, the text so far was kept, the same cluster restarted and answered, and no
process was left.
"""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
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
DELAY_S = 4.0  # well below the silence that is reported

FAULTS = (
    "kill rank 0",
    "kill rank 1",
    "stop rank 1",
    "delay rank 1",
    "crash rank 1",
    "kill mpirun",
    "kill controller",
    "ctrl-c",
)
SIGNALS = {"kill": signal.SIGKILL, "stop": signal.SIGSTOP, "delay": signal.SIGSTOP, "crash": signal.SIGSEGV}
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

    @property
    def harmless(self) -> bool:
        """Whether the user should not notice it."""
        return self.fault.startswith("delay")


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
            if fault != "ctrl-c" and not cell.harmless:
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
    # A harmless fault does not end a run, so its runs are short.
    chunks, tokens = (300, 60) if cell.harmless else (1500, 3000)
    try:
        match cell.phase:
            case "load":
                with _soon(strike, 0.15):
                    pipe = cluster.load("smollm2")
                    first.unload()
            case "prefill":
                with _soon(strike, 0.8):
                    pipe.generate([504, 3426, 314] * chunks, max_tokens=1)
            case "decode":
                for number, _piece in enumerate(pipe.stream(STORY, raw=True, max_tokens=tokens)):
                    if number == 5:
                        strike()
            case "stepped":
                with pipe.debug(STORY, raw=True, max_tokens=tokens) as dbg:
                    dbg.layer(3)
                    strike()
                    dbg.run()
            case "idle":
                strike()
                time.sleep(0.5)
                pipe.generate(STORY, raw=True, max_tokens=400)
        cell.said = "no error"
        if cell.phase not in ("load", "idle") and not cell.harmless:
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
    if cell.harmless:
        cell.wrong.append("a short delay was taken for an end")
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
                process.send_signal(SIGNALS[how])
                if how in ("stop", "delay"):
                    stopped.append(process)
                if how == "delay":
                    threading.Timer(DELAY_S, _go_on, [stopped]).start()
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


def draw(seed: int) -> tuple[str, str, float]:
    """A fault, a phase, and how many seconds into it."""
    chance = random.Random(seed)
    return chance.choice(FAULTS), chance.choice(PHASES), chance.uniform(0.0, 1.0)


def rows_of(file: Path) -> dict[tuple[str, str], str]:
    """The rows of a table that was written before, by fault and phase."""
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = [line for line in lines if line.startswith("| ") and " s | " in line]
    return {(cells[1], cells[2]): row for row in rows if (cells := [cell.strip() for cell in row.split("|")])}


def row_of(cell: Cell, when: str) -> str:
    """A cell's row in the table."""
    said = cell.said[:160].replace("|", "/")
    return f"| {cell.fault} | {when} | {cell.reported_s:.1f} s | {'; '.join(cell.wrong) or 'good'} | {said} |"


def to_markdown(rows: dict[tuple[str, str], str]) -> str:
    """The page with all rows."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
    ).stdout.strip()
    fixed = {key: row for key, row in rows.items() if "seed" not in key[1]}
    drawn = {key: row for key, row in rows.items() if "seed" in key[1]}
    head = [
        "| fault | phase | reported after | verdict | what the user reads |",
        "| --- | --- | --- | --- | --- |",
    ]
    return "\n".join(
        [
            "# Faults",
            "",
            f"{date.today().isoformat()}, commit {commit}; two ranks on one Linux machine with {os.cpu_count()} cores.",
            "",
            "A cell is good when the user was told in time (5 s for a dead process, 10 s for a silent one, and 8 s for a busy machine), the text",
            "so far was kept, the same cluster restarted with the same model and answered right, and no process was left. A delay is 4 s, and must go",
            "unnoticed.",
            "",
            "Written by `python -m tests.faults.matrix notebooks/fault_matrix.md`.",
            "",
            f"## Every fault in every phase: {_good(fixed)}",
            "",
            *head,
            *fixed.values(),
            "",
            f"## Drawn at random: {_good(drawn)}",
            "",
            *head,
            *drawn.values(),
            "",
        ]
    )


def _good(rows: dict[tuple[str, str], str]) -> str:
    return f"{sum('| good |' in row for row in rows.values())} of {len(rows)} good"


def main(file: str = "", *which: str) -> int:
    """Run all cells, or some, or one with ``--cell FAULT PHASE``, which is written as JSON; 1 if one is not good."""
    own = tempfile.mkdtemp(prefix="mlx_nb-faults-")
    os.environ["JUPYTER_RUNTIME_DIR"] = own  # other clusters of this user are none of our business
    if file == "--cell":
        cell = run_cell(*which)
        print(json.dumps(asdict(cell)))
        shutil.rmtree(own, ignore_errors=True)
        return int(bool(cell.wrong))
    rows = rows_of(Path(file)) if file and which else {}
    bad = 0
    for fault, phase, delay_s, when in _chosen(which):
        cell = run_cell(fault, phase, delay_s)
        rows[fault, when] = row_of(cell, when)
        print(f"{fault:15} {when:25} {cell.reported_s:5.1f} s  {'; '.join(cell.wrong) or 'good'}", flush=True)
        if cell.wrong:
            bad += 1
            print(f"    {cell.said[:300]}", flush=True)
        if file:  # after every cell: a long run may be cut short
            Path(file).write_text(to_markdown(rows))
    shutil.rmtree(own, ignore_errors=True)
    return int(bad > 0)


def _chosen(which: Sequence[str]) -> Iterator[tuple[str, str, float, str]]:
    """Fault, phase, delay, and what the table calls the phase."""
    if which[:1] == ("random",):
        first, count = map(int, which[1:])
        for seed in range(first, first + count):
            fault, phase, delay_s = draw(seed)
            yield fault, phase, delay_s, f"{phase}, seed {seed}"
        return
    for phase in which or PHASES:
        for fault in FAULTS:
            yield fault, phase, 0.0, phase


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
