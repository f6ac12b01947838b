"""However the notebook's kernel ends, no process of its cluster stays."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from jupyter_client.blocking import BlockingKernelClient
from jupyter_client.manager import KernelManager

from mlx_nb.client import records
from tests.conftest import Script, cluster_processes, seconds_until, seconds_until_gone

pytestmark = [pytest.mark.cluster]

LIMIT_S = 15

KERNEL = """
import time
from mlx_nb.client.cluster import Cluster
cluster = Cluster.start(ranks=2)
print(cluster.name, flush=True)
time.sleep({stay_s})
"""

STARTING = """
from mlx_nb.client import bringup, records
from mlx_nb.client.cluster import Cluster
def tell(stage, done, of):
    if (stage, done) == ("{stage}", {done}):
        print(records.list_records()[0].name, flush=True)
        import time; time.sleep(60)
Cluster.start(ranks=2, progress=tell)
"""


@pytest.mark.parametrize(
    "how",
    [
        signal.SIGKILL,
        pytest.param(signal.SIGTERM, marks=pytest.mark.soak),
        pytest.param(signal.SIGHUP, marks=pytest.mark.soak),
    ],
)
def test_a_kernel_that_is_killed_leaves_nothing(script: Callable[..., Script], how: signal.Signals) -> None:
    kernel = script(KERNEL.format(stay_s=300))
    name = kernel.line()
    time.sleep(1)
    assert len(cluster_processes(name)) == 8  # the control: it sees them, and they live while the kernel does

    kernel.process.send_signal(how)

    kernel.wait()
    taken_s = seconds_until_gone(name, LIMIT_S)
    print(f"{how.name}: {taken_s:.1f} s")
    assert not (records.runtime_folder() / name).exists()


@pytest.mark.parametrize(("stage", "done"), [("controller", 0), ("controller", 1), ("ranks", 0)])
def test_a_kernel_that_is_killed_during_a_start_leaves_nothing(
    script: Callable[..., Script], stage: str, done: int
) -> None:
    kernel = script(STARTING.format(stage=stage, done=done))
    name = kernel.line()
    assert cluster_processes(name)

    kernel.process.kill()

    kernel.wait()
    seconds_until_gone(name, LIMIT_S)
    assert not (records.runtime_folder() / name).exists()


def test_a_kernel_that_ends_by_itself_has_cleaned_up_when_it_is_gone(script: Callable[..., Script]) -> None:
    kernel = script(KERNEL.format(stay_s=0))
    name = kernel.line()

    assert kernel.wait() == 0

    assert cluster_processes(name) == []


def test_a_stopped_rank_and_a_killed_mpirun_end_as_well(script: Callable[..., Script]) -> None:
    kernel = script(KERNEL.format(stay_s=300))
    name = kernel.line()
    record = records.read(records.runtime_folder() / name / records.RECORD_FILE)
    assert record
    mpirun = next(p for p in record.processes if p.role == "mpirun")
    os.kill(record.ranks[0].pid, signal.SIGSTOP)  # deaf to SIGTERM
    os.kill(mpirun.pid, signal.SIGKILL)

    kernel.process.kill()

    kernel.wait()
    seconds_until_gone(name, LIMIT_S)


def test_a_watchdog_holds_nothing_of_its_kernel(script: Callable[..., Script]) -> None:
    kernel = script(KERNEL.format(stay_s=300))
    name = kernel.line()
    record = records.read(records.runtime_folder() / name / records.RECORD_FILE)
    assert record
    watchdog = next(p.pid for p in record.processes if p.role == "watchdog")

    assert os.getsid(watchdog) == watchdog != os.getsid(kernel.process.pid)
    descriptors = {str(fd.readlink()) for fd in Path(f"/proc/{watchdog}/fd").iterdir()}
    assert descriptors == {"/dev/null"}
    kernel.process.kill()
    kernel.wait()
    seconds_until_gone(name, LIMIT_S)


@pytest.fixture
def notebook() -> Iterator[tuple[KernelManager, BlockingKernelClient]]:
    """A real Jupyter kernel, as a notebook has it."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel()
    client = manager.client()
    client.start_channels()
    client.wait_for_ready(timeout=60)
    yield manager, client
    client.stop_channels()
    if manager.has_kernel:
        manager.shutdown_kernel(now=True)
    manager.cleanup_resources()
    manager.context.destroy(linger=0)


def evaluate(client: BlockingKernelClient, code: str) -> str:
    """Run a cell and return its output."""
    printed: list[str] = []

    def take(message: dict[str, dict[str, Any]]) -> None:
        content = message["content"]
        shown = content.get("data", {}).get("text/plain", "")
        printed.append(content.get("text", shown) or "\n".join(content.get("traceback", [])))

    client.execute_interactive(code, timeout=120, output_hook=take)
    return "".join(printed).strip()


def start_in(client: BlockingKernelClient) -> str:
    """Start a cluster in a notebook, check that ``%px`` talks to it, also after a restart; its name."""
    assert evaluate(client, "import mlx_nb; cluster = mlx_nb.Cluster.start(ranks=2)") == ""
    assert evaluate(client, "%px print(mpi_rank)").count("[stdout:") == 2
    assert evaluate(client, "cluster.restart(); print(cluster.remote.call_all('ping') != [])") == "True"
    assert evaluate(client, "%px print(mpi_rank)").count("[stdout:") == 2
    name = evaluate(client, "print(cluster.name)")
    assert len(cluster_processes(name)) == 8
    return name


def test_a_notebook_that_is_shut_down_leaves_nothing(
    notebook: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = notebook
    name = start_in(client)

    manager.shutdown_kernel()

    seconds_until_gone(name, LIMIT_S)


def test_a_notebook_whose_kernel_is_killed_leaves_nothing(
    notebook: tuple[KernelManager, BlockingKernelClient],
) -> None:
    manager, client = notebook
    name = evaluate(client, "import mlx_nb; print(mlx_nb.Cluster.start(ranks=1).name)")
    assert len(cluster_processes(name)) == 6

    manager.shutdown_kernel(now=True)

    seconds_until_gone(name, LIMIT_S)


def test_a_pid_that_was_given_away_again_is_not_killed(script: Callable[..., Script]) -> None:
    stranger = script("print('here', flush=True); import time; time.sleep(300)")
    stranger.line()
    born_s = psutil.Process(stranger.process.pid).create_time()
    kernel = script(KERNEL.format(stay_s=300))
    name = kernel.line()
    path = records.runtime_folder() / name / records.RECORD_FILE

    def add_stale(record: records.Record) -> records.Record:
        from dataclasses import replace

        from mlx_nb.client.processes import ProcessId

        stale = ProcessId(stranger.process.pid, born_s - 60, "engine")
        return replace(record, processes=(*record.processes, stale))

    assert records.update(path, add_stale)
    kernel.process.kill()
    kernel.wait()
    seconds_until_gone(name, LIMIT_S)

    assert stranger.process.poll() is None
    seconds_until(lambda: not path.exists(), 5)
