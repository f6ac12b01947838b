"""What goes wrong in a cluster's life is said in words, soon, and leaves nothing behind."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlx_nb.client import records
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.launch import MPIEXEC_VARIABLE, find_mpiexec
from mlx_nb.shared.errors import (
    ClusterStartError,
    OptionError,
    PlanError,
    ProfileError,
    RankLostError,
    RankSilentError,
    TooFewEnginesError,
)
from tests.conftest import Script, cluster_processes, seconds_until_gone
from tests.ctrl_c import ctrl_c

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]

# Put into the ranks' table of calls: something that takes its time, and can be interrupted.
NAP = """
import time
from mlx_nb.engine import calls
def nap(seconds):
    end_s = time.time() + seconds
    while time.time() < end_s:
        time.sleep(0.02)
    return "slept"
def mistake():
    from mlx_nb.shared.errors import PlanError
    raise PlanError("No such plan.", "Make one.")
calls.CALLS.update(nap=nap, mistake=mistake, nothing=lambda: None)
"""


def names_and_processes() -> tuple[set[str], int]:
    """The clusters that have a directory, and how many processes carry the mark of one of them."""
    names = {folder.name for folder in records.runtime_folder().iterdir()}
    return names, sum(len(cluster_processes(name)) for name in names)


@pytest.mark.parametrize("ranks", [0, -1])
def test_a_cluster_needs_a_rank(ranks: int) -> None:
    with pytest.raises(
        OptionError, match=f"one rank or more, not {ranks}. Type: %mlx_cluster start --ranks 2"
    ):
        Cluster.start(ranks=ranks)


def test_a_missing_mpiexec_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    before = names_and_processes()
    monkeypatch.setenv("MLX_NB_MPIEXEC", "/nonexistent")

    with pytest.raises(ClusterStartError, match="MLX_NB_MPIEXEC is /nonexistent"):
        Cluster.start()
    assert names_and_processes() == before


def test_an_unknown_profile_lists_the_known_ones() -> None:
    with pytest.raises(ProfileError) as error:
        Cluster.start(profile="minnis")
    assert error.value.problem == "There is no profile 'minnis'."
    assert "--profile local, --profile minis, --profile minis4" in error.value.fix


def test_an_mpi_that_does_not_start_is_quoted_and_cleaned_up(monkeypatch: pytest.MonkeyPatch) -> None:
    before = names_and_processes()
    monkeypatch.setenv("MLX_NB_MCA", "btl nonsense")
    began_s = time.monotonic()

    with pytest.raises(ClusterStartError) as error:
        Cluster.start()

    assert time.monotonic() - began_s < 30
    assert "mpirun ended before the ranks were up" in error.value.problem
    # Measured: in a third of the runs mpirun aborts before it has passed on the text about "nonsense".
    assert re.search("nonsense|MPI_INIT|MPI_Init", error.value.problem)
    assert error.value.fix
    assert names_and_processes() == before
    assert current.cluster is None


HICCUP = """#!/bin/sh
if mkdir {folder} 2>/dev/null; then
  echo "The PMIx server's {said}. We cannot" >&2
  echo "continue." >&2
  exit 1
fi
exec {mpiexec} "$@"
"""


@pytest.mark.parametrize("said", ["listener thread failed to start", "other thread failed"])
def test_an_mpi_that_fails_by_its_own_chance_is_started_again(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, said: str
) -> None:
    """As real ones did; the control: what else it says is told."""
    before = names_and_processes()
    script = tmp_path / "mpiexec"
    script.write_text(HICCUP.format(folder=tmp_path / "seen", said=said, mpiexec=find_mpiexec()))
    script.chmod(0o755)
    monkeypatch.setenv(MPIEXEC_VARIABLE, str(script))

    if "listener" not in said:
        with pytest.raises(ClusterStartError, match=said):
            Cluster.start()
    else:
        with Cluster.start() as cluster:
            assert [info.state for info in cluster.ranks] == ["idle", "idle"]
    assert (tmp_path / "seen").exists()
    assert names_and_processes() == before


def test_a_start_has_a_time_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    before = names_and_processes()
    monkeypatch.setenv("MLX_NB_START_TIMEOUT", "1.5")

    with pytest.raises(TooFewEnginesError, match="2 ranks on this machine did not answer in time"):
        Cluster.start()
    assert names_and_processes() == before


# Ctrl-C may come while psutil has a file open: Python closes it, and says so.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(("stage", "done"), [("controller", 0), ("controller", 1), ("ranks", 0)])
def test_ctrl_c_during_a_start_stops_what_was_started(stage: str, done: int) -> None:
    before = names_and_processes()
    with ctrl_c(0.1 if stage == "controller" else 0.0, start=False) as timer:

        def press(now: str, found: int, _of: int) -> None:
            if (now, found) == (stage, done):
                timer.start()
                timer.join(0.05)  # ranks may answer within a tenth of a second

        with pytest.raises(KeyboardInterrupt):
            Cluster.start(ranks=2, progress=press)
    assert names_and_processes() == before
    assert current.cluster is None


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_during_a_stop_comes_after_it() -> None:
    before = names_and_processes()
    cluster = Cluster.start(ranks=2)

    with ctrl_c(0.1), pytest.raises(KeyboardInterrupt):
        cluster.stop()

    assert names_and_processes() == before
    assert current.cluster is None
    assert not list((records.runtime_folder() / cluster.name).glob("*"))


def test_a_killed_rank_is_noticed_named_and_replaced() -> None:
    cluster = Cluster.start(ranks=2)
    cluster.client[:].execute(NAP, block=True)
    cluster.load("smollm2")
    pending = cluster.remote.submit_all("nap", 60)
    victim = cluster.ranks[1]
    time.sleep(0.3)
    began_s = time.monotonic()
    os.kill(victim.pid, signal.SIGKILL)

    with pytest.raises(RankLostError) as error:
        cluster.remote.wait(pending)

    noticed_s = time.monotonic() - began_s
    print(f"noticed after {noticed_s:.1f} s")
    assert noticed_s < 5
    assert error.value.problem == (
        f"Rank 1 ({victim.host}, layers 15–29, norm, head) is lost: its process {victim.pid} ended."
    )
    assert error.value.fix == "Type: %mlx_cluster restart"
    assert [info.state for info in cluster.ranks] == ["busy", "lost"]
    with pytest.raises(RankLostError):
        cluster.remote.submit_all("ping")
    cluster.interrupt()
    # What the other rank holds can still be looked at, and its errors are its own.
    assert cluster.remote.call(0, "ping")
    assert cluster.remote.call(0, "nothing") is None
    with pytest.raises(PlanError):
        cluster.remote.call(0, "mistake")

    again = Cluster.start(ranks=2)

    assert again is not cluster
    assert cluster_processes(cluster.name) == []
    assert again.remote.call_all("ping")


def test_the_words_of_a_rank_that_dies_by_itself_are_in_the_error() -> None:
    cluster = Cluster.start(ranks=2)
    cluster.client[:].execute(NAP, block=True)
    cluster[1].execute(
        "import os, threading\n"
        "def die():\n"
        "    from mlx_nb.engine import calls\n"
        "    calls.log('out of memory, it seems')\n"
        "    os._exit(3)\n"
        "threading.Timer(0.5, die).start()",
        block=True,
    )

    pending = cluster.remote.submit_all("nap", 60)
    with pytest.raises(RankLostError, match=r"its log ends: .*out of memory, it seems"):
        cluster.remote.wait(pending)


def test_the_end_of_mpirun_is_the_end_of_all_ranks() -> None:
    cluster = Cluster.start(ranks=2)
    cluster.client[:].execute(NAP, block=True)
    pending = cluster.remote.submit_all("nap", 60)
    mpirun = next(p for p in cluster.status().others if p.role == "mpirun")
    began_s = time.monotonic()
    os.kill(mpirun.pid, signal.SIGKILL)

    with pytest.raises(RankLostError, match=r"Rank 0 .* Rank 1 "):
        cluster.remote.wait(pending)
    assert time.monotonic() - began_s < 5
    cluster.stop()
    assert cluster_processes(cluster.name) == []


def test_a_silent_rank_has_a_deadline_and_can_be_stopped() -> None:
    cluster = Cluster.start(ranks=2)
    victim = psutil.Process(cluster.ranks[1].pid)
    victim.suspend()

    with pytest.raises(RankSilentError, match=r"Rank 1 \(.*\) has been silent for 1 s, in ping"):
        cluster.remote.call_all("ping", timeout_s=1)
    began_s = time.monotonic()
    cluster.stop()

    assert time.monotonic() - began_s < 8
    assert cluster_processes(cluster.name) == []


def test_ctrl_c_while_waiting_interrupts_the_ranks() -> None:
    with Cluster.start(ranks=2) as cluster:
        cluster.client[:].execute(NAP, block=True)
        pending = cluster.remote.submit_all("nap", 60)
        began_s = time.monotonic()

        with ctrl_c(0.3), pytest.raises(KeyboardInterrupt):
            cluster.remote.wait(pending)

        assert time.monotonic() - began_s < 2
        with pytest.raises(Exception, match="Rank 0 was interrupted in nap"):
            cluster.remote.wait(pending)
        assert cluster.remote.call_all("ping")
        assert [info.state for info in cluster.ranks] == ["idle", "idle"]
        cluster.interrupt()  # nothing runs: nothing happens
        assert cluster.remote.call_all("ping")


def test_a_record_that_lies_about_a_dead_kernel_is_cleared(script: Callable[..., Script]) -> None:
    kernel = script(
        "from mlx_nb.client.cluster import Cluster\n"
        "c = Cluster.start(ranks=1, keep='1h')\n"
        "print(c.name, flush=True)"
    )
    name = kernel.line()
    kernel.wait()
    for process in cluster_processes(name):  # as a power cut would, the watchdog first
        process.kill()
    seconds_until_gone(name, 5)
    assert (records.runtime_folder() / name).exists()

    assert name not in {record.name for record in records.list_records()}

    assert not (records.runtime_folder() / name).exists()
