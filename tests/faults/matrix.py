"""Every fault in every phase of a cluster's life: what the user is told, how soon, and what is left behind.

``python -m tests.faults.matrix [FILE.md] [PHASE …]`` runs all cells and writes a table, ``--cell FAULT PHASE`` one, ``--random FIRST COUNT`` so
many drawn by their seeds, one after the other on one cluster. Every row is written as it comes, next to those that are there; ``--missing``
goes on with a table that was cut short. A cell is good when the user got an error (or a right answer) in time, the text so far was kept, the
same cluster restarted and answered, and no process was left.
"""

import argparse
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path

import psutil
from filelock import FileLock

from mlx_nb.client import records
from mlx_nb.client.bringup import Progress
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.launch import TIMEOUT_VARIABLE
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
PHASES = ("start", "load", "prefill", "decode", "background", "stepped", "idle")


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

    @property
    def late_s(self) -> float:
        """By how much the report came later than promised."""
        limit_s = SILENT_S if self.fault.startswith("stop") else DEAD_S
        return max(0.0, round(self.reported_s - limit_s, 1))


def run_cell(fault: str, phase: str, delay_s: float = 0.0) -> Cell:
    """Play a fault in a phase of a cluster of its own."""
    names = _names()
    with _patient():
        bed = Bed()
        cell = bed.play(fault, phase, delay_s)
        bed.close()
    _look_for_leftovers(cell, lambda: [process for name in _names() - names for process in marked(name)])
    return cell


class Bed:
    """A cluster that faults strike, one after the other.

    Attributes:
        cluster: None before the first fault.
    """

    def __init__(self) -> None:
        self.cluster: Cluster | None = None

    def play(self, fault: str, phase: str, delay_s: float = 0.0) -> Cell:
        """Let a fault happen, bring the cluster back, and ask it something."""
        cell = Cell(fault, phase)
        stopped: list[psutil.Process] = []
        before: list[psutil.Process] = []
        try:
            if phase == "start":
                before = marked(self.cluster.name) if self.cluster else []
                self._begin(cell, stopped)
                _go_on(stopped)
                self.cluster = self.cluster or Cluster.start(ranks=2)
                if self.cluster.remote.ended:
                    self.cluster.restart()
                pipe = self.cluster.load("smollm2")
            else:
                cluster = self.cluster = self.cluster or Cluster.start(ranks=2)
                pipe = _in_life(cell, cluster, stopped, delay_s)
                _go_on(stopped)
                if fault != "ctrl-c" and not cell.harmless:
                    before = marked(cluster.name)
                    cluster.restart()
                    pipe.load_there()
            if (text := pipe.generate(FRANCE, max_tokens=10).text) != ANSWER:
                cell.wrong.append(f"afterwards it answers {text!r}")
            for one in list(self.cluster.pipes):
                one.unload()
            _look_for_leftovers(cell, lambda: [process for process in before if _lives(process)])
        except BaseException as error:  # noqa: BLE001 - whatever it is belongs into the table
            cell.wrong.append(f"afterwards: {type(error).__name__}: {' '.join(str(error).split())}"[:300])
        finally:
            _go_on(stopped)
        return cell

    def _begin(self, cell: Cell, stopped: list[psutil.Process]) -> None:
        """The fault while the ranks come up, the first time or again."""
        at: list[float] = []
        names = _names()

        def look(stage: str, _done: int, _of: int) -> None:
            if stage == "ranks" and not at:
                at.append(0.0)
                threading.Thread(target=strike, daemon=True).start()

        def strike() -> None:
            name = self.cluster.name if self.cluster else next(iter(_names() - names))
            for _ in range(200):
                at[0] = time.monotonic()
                if hit(cell.fault, name, stopped):
                    break
                time.sleep(0.02)

        try:
            self._start(look)
            cell.said = "it started all the same"
            if not cell.harmless:
                cell.wrong.append("the fault went unnoticed")
        except (MlxNbError, KeyboardInterrupt) as error:
            _note(cell, error, at[0] if at else time.monotonic())

    def _start(self, progress: Progress) -> None:
        if self.cluster is None:
            Cluster.start(ranks=2, progress=progress).stop()
        else:
            self.cluster.restart(progress)

    def close(self) -> None:
        """End the cluster."""
        if self.cluster is not None:
            self.cluster.stop()
            self.cluster = None


@contextmanager
def _patient() -> Iterator[None]:
    """A start may take this long, which a fault can make it take."""
    before = os.environ.get(TIMEOUT_VARIABLE)
    os.environ[TIMEOUT_VARIABLE] = str(START_TIMEOUT_S)
    try:
        yield
    finally:
        os.environ.pop(TIMEOUT_VARIABLE)
        if before is not None:
            os.environ[TIMEOUT_VARIABLE] = before


def _names() -> set[str]:
    return {folder.name for folder in records.runtime_folder().iterdir()}


def _in_life(cell: Cell, cluster: Cluster, stopped: list[psutil.Process], delay_s: float) -> Pipe:
    """The fault in a later phase; the pipe, which may be of no use any more."""
    struck: list[float] = []

    def strike() -> None:
        time.sleep(delay_s)
        struck.append(time.monotonic())
        if not hit(cell.fault, cluster.name, stopped):
            cell.wrong.append("there was nobody to strike")

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
                pipe.generate(STORY, raw=True, max_tokens=4)
            case "prefill":
                with _soon(strike, 0.8):
                    pipe.generate([504, 3426, 314] * chunks, max_tokens=1)
            case "decode":
                for number, _piece in enumerate(pipe.stream(STORY, raw=True, max_tokens=tokens)):
                    if number == 5:
                        strike()
            case "background":
                run = pipe.start(STORY, raw=True, max_tokens=tokens)
                while len(run.gen.token_ids) < 5 and not run.done:
                    time.sleep(0.05)
                with _soon(strike, 0.0):
                    run.wait(60)
            case "stepped":
                with pipe.debug(STORY, raw=True, max_tokens=tokens) as dbg:
                    dbg.layer(3)
                    strike()
                    dbg.run()
            case "idle":
                strike()
                time.sleep(0.5)
                pipe.generate(STORY, raw=True, max_tokens=tokens)
        cell.said = "no error"
        if not cell.harmless:
            cell.wrong.append("the fault went unnoticed" if struck else "the fault came too late")
    except (MlxNbError, KeyboardInterrupt) as error:
        _note(cell, error, struck[0] if struck else time.monotonic())
    if cell.phase == "decode" and len(pipe.last.text if pipe.last else "") < 5:
        cell.wrong.append("the text so far is lost")
    if cell.phase == "background" and len(run.gen.text) < 5:
        cell.wrong.append("the text so far is lost")
    if cell.phase == "load" and pipe is first and cell.fault == "ctrl-c":
        return first
    return pipe


def _note(cell: Cell, error: BaseException, struck_s: float) -> None:
    cell.reported_s = max(0.0, time.monotonic() - struck_s)
    cell.said = " ".join((str(error) or type(error).__name__).split())
    if cell.harmless:
        cell.wrong.append("a short delay was taken for an end")
    if cell.late_s > SLACK_S:
        cell.wrong.append(f"reported {cell.late_s:.0f} s late")
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
        parent = process.parent()  # it has a child that looks like it, and whose pid may be the lower
        child = parent is not None and "ipyparallel.controller" in " ".join(parent.cmdline())
        return "" if child else "controller"
    if process.name() in ("mpirun", "mpiexec", "prterun"):
        return "mpirun"
    return ""


def _go_on(stopped: list[psutil.Process]) -> None:
    while stopped:
        try:
            stopped.pop().resume()
        except psutil.Error:
            continue


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False


def _look_for_leftovers(cell: Cell, left: Callable[[], list[psutil.Process]]) -> None:
    deadline = time.monotonic() + GONE_S
    while found := left():
        if time.monotonic() > deadline:
            cell.wrong.append(f"left behind: {[process.pid for process in found]}")
            return
        time.sleep(0.2)


def draw(seed: int) -> tuple[str, str, float]:
    """A fault, a phase, and how many seconds into it."""
    chance = random.Random(seed)
    return chance.choice(FAULTS), chance.choice(PHASES), chance.uniform(0.0, 1.0)


Place = tuple[str, str]
"""A fault, and its phase as the table calls it."""


def rows_of(file: Path) -> dict[Place, str]:
    """The rows of a table that was written before."""
    lines = file.read_text().splitlines() if file.is_file() else []
    rows = [line for line in lines if line.startswith("| ") and " s | " in line]
    return {(cells[1], cells[2]): row for row in rows if (cells := [cell.strip() for cell in row.split("|")])}


def _in_order(place: Place) -> tuple[int, ...]:
    fault, when = place
    phase, _, seed = when.partition(", seed ")
    return (1, int(seed)) if seed else (0, PHASES.index(phase), FAULTS.index(fault))


def row_of(cell: Cell, when: str, commit: str) -> str:
    """A cell's row in the table."""
    late = f"{LATE}{cell.late_s:.1f} s" if cell.late_s else ""
    verdict = "; ".join(cell.wrong) or f"good{late}"
    words = [
        cell.fault,
        when,
        f"{cell.reported_s:.1f} s",
        verdict.replace("|", "/"),
        commit,
        cell.said[:160].replace("|", "/"),
    ]
    return f"| {' | '.join(words)} |"


LATE = ", late by "


def to_markdown(rows: dict[Place, str]) -> str:
    """The page with all rows."""
    fixed = {key: row for key, row in rows.items() if "seed" not in key[1]}
    drawn = {key: row for key, row in rows.items() if "seed" in key[1]}
    head = [
        "| fault | phase | reported after | verdict | commit | what the user reads |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    return "\n".join(
        [
            "# Faults",
            "",
            f"{date.today().isoformat()}; two ranks of smollm2 on one Linux machine with {os.cpu_count()} cores, which had other work to do.",
            "",
            "A cell is good when the user was told in time (5 s for a dead process, 10 s for a silent one; *late* is said up to 8 s, for a busy machine, and",
            "bad beyond), the text so far was kept, the same cluster restarted with the same model and answered right, and no process was left.",
            "A delay is 4 s, and must go unnoticed.",
            "",
            "Written by `python -m tests.faults.matrix notebooks/fault_matrix.md`.",
            "",
            f"## Every fault in every phase: {_good(fixed)}",
            "",
            *head,
            *fixed.values(),
            "",
            f"## Drawn at random, one after the other on one cluster: {_good(drawn)}",
            "",
            "Written by the same with `--random 0 200`. The seed draws fault, phase, and the time into it.",
            "",
            *head,
            *drawn.values(),
            "",
        ]
    )


def _good(rows: dict[Place, str]) -> str:
    late = sum(LATE in row for row in rows.values())
    said = f"{sum('| good' in row for row in rows.values())} of {len(rows)} good"
    return f"{said}, {late} of them late" if late else said


def write_row(file: Path, place: Place, row: str) -> None:
    """Put a row into the table, at its place; another process may be at it too."""
    with FileLock(f"{tempfile.gettempdir()}/mlx_nb-{file.name}.lock"):
        rows = {**rows_of(file), place: row}
        file.write_text(to_markdown({place: rows[place] for place in sorted(rows, key=_in_order)}))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run cells; 1 if one is not good."""
    parser = argparse.ArgumentParser(prog="python -m tests.faults.matrix")
    parser.add_argument("file", nargs="?", type=Path, help="a Markdown page to write")
    parser.add_argument("phases", nargs="*", help=f"which, of {', '.join(PHASES)}; by default all")
    parser.add_argument("--cell", nargs=2, metavar=("FAULT", "PHASE"), help="one cell, as JSON")
    parser.add_argument(
        "--random", nargs=2, type=int, metavar=("FIRST", "COUNT"), help="cells drawn by seeds"
    )
    parser.add_argument("--missing", action="store_true", help="leave out what the file has, if it is good")
    asked = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    own = tempfile.mkdtemp(prefix="mlx_nb-faults-")
    os.environ["JUPYTER_RUNTIME_DIR"] = own  # other clusters of this user are none of our business
    try:
        if asked.cell:
            cell = run_cell(*asked.cell)
            print(json.dumps(asdict(cell)))
            return int(bool(cell.wrong))
        done = rows_of(asked.file) if asked.file and asked.missing else {}
        done = {place: row for place, row in done.items() if "| good" in row}
        bad = 0
        for cell, when in _cells(asked.random, asked.phases or PHASES, done):
            if asked.file:
                write_row(asked.file, (cell.fault, when), row_of(cell, when, _commit()))
            late = f", late by {cell.late_s:.1f} s" if cell.late_s else ""
            verdict = "; ".join(cell.wrong) or f"good{late}"
            print(f"{cell.fault:15} {when:25} {cell.reported_s:5.1f} s  {verdict}", flush=True)
            if cell.wrong:
                bad += 1
                print(f"    {cell.said[:300]}", flush=True)
        return int(bad > 0)
    finally:
        shutil.rmtree(own, ignore_errors=True)


def _commit() -> str:
    """The commit that is played, with a mark if files were changed since."""
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    here = Path(__file__).parent
    return subprocess.run(command, cwd=here, capture_output=True, text=True, check=True).stdout.strip()


def _cells(
    seeds: Sequence[int] | None, phases: Sequence[str], done: Mapping[Place, str]
) -> Iterator[tuple[Cell, str]]:
    """Play cells; each with what the table calls its phase."""
    if not seeds:
        for phase in phases:
            for fault in FAULTS:
                if (fault, phase) not in done:
                    yield run_cell(fault, phase), phase
        return
    with _patient():
        bed = Bed()
        first, count = seeds
        for seed in range(first, first + count):
            fault, phase, delay_s = draw(seed)
            if (fault, when := f"{phase}, seed {seed}") in done:
                continue
            cell = bed.play(fault, phase, delay_s)
            yield cell, when
            if cell.wrong:
                bed.close()
            if seed % 20 == 0:
                us = psutil.Process()
                print(
                    f"# {us.num_threads()} threads, {us.num_fds()} files, {us.memory_info().rss / 2**20:.0f} MiB",
                    flush=True,
                )
        bed.close()


if __name__ == "__main__":
    sys.exit(main())
