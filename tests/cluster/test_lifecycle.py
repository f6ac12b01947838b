"""A cluster from start to stop, on real ranks."""

import re
import stat
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from mlx_nb.client import records
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.remote import Remote
from mlx_nb.shared.errors import ClusterError, DifferentClusterError, NoClusterError, RunError
from mlx_nb.shared.ids import Rank
from tests.conftest import Script, cluster_processes, seconds_until_gone

pytestmark = [pytest.mark.cluster]

MPI_RANK = "from mpi4py import MPI; where = MPI.COMM_WORLD.rank, MPI.COMM_WORLD.size"


@pytest.mark.usefixtures("alone")
def test_a_cluster_starts_tells_its_stages_and_leaves_nothing_behind() -> None:
    stages: list[tuple[str, int, int]] = []

    cluster = Cluster.start(ranks=2, progress=lambda *stage: stages.append(stage))

    assert list(dict.fromkeys(name for name, _, _ in stages)) == ["controller", "engines", "ranks"]
    assert stages[-1] == ("ranks", 2, 2)
    assert current.cluster is cluster
    roles = sorted(p.role for p in cluster.status().others)
    assert roles == ["controller", "controller", "mpirun", "nanny", "nanny", "watchdog"]
    assert len(cluster_processes(cluster.name)) == len(roles) + 2  # the control: the check sees the ranks too

    folder = cluster._running.record.folder
    cluster.stop()

    assert cluster_processes(cluster.name) == []
    assert not folder.exists()
    assert current.cluster is None
    assert repr(cluster) == f"Cluster {cluster.name} · stopped"
    assert "IPController" in cluster.logs()
    cluster.stop()
    with pytest.raises(ClusterError, match=r"ended at \d\d:\d\d\. Type: %mlx_cluster start"):
        cluster.remote.call(0, "ping")


def test_a_cluster_prints_its_ranks(cluster2: Cluster) -> None:
    lines = repr(cluster2).splitlines()

    assert lines[0] == f"Cluster {cluster2.name} · 2 ranks · 1 host · ends with this kernel"
    assert lines[1].split() == ["rank", "engine", "host", "pid", "memory", "state"]
    for rank, line in enumerate(lines[2:]):
        assert re.fullmatch(rf" {rank} +\d+ +\S+ +\d+ +\d+ MiB +idle", line)
    assert re.search(r"mpirun \d+ \([\d.]+ MiB\)", repr(cluster2.status()))


def test_every_view_is_of_the_mpi_rank_it_is_asked_for(cluster2: Cluster) -> None:
    for rank in range(2):
        cluster2[rank].execute(MPI_RANK, block=True)
        assert cluster2[rank]["where"] == (rank, 2)
    with pytest.raises(IndexError):
        cluster2[2]


def test_calls_follow_the_table_and_not_the_engine_ids(cluster2: Cluster) -> None:
    table = cluster2.remote.table
    crossed = Remote(cluster2.client, {Rank(0): table[Rank(1)], Rank(1): table[Rank(0)]})

    assert [hello.rank for hello in crossed.call_all("hello")] == [1, 0]
    assert [hello.rank for hello in cluster2.remote.call_all("hello")] == [0, 1]


def test_a_second_start_returns_the_same_cluster_or_says_what_runs(
    cluster2: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(current, "cluster", cluster2)

    assert Cluster.start() is cluster2
    assert Cluster.start(ranks=2) is cluster2
    assert Cluster.attach() is cluster2
    with pytest.raises(DifferentClusterError) as error:
        Cluster.start(ranks=3)
    assert error.value.problem == (
        f"Cluster {cluster2.name} runs already, 2 ranks on this machine; you asked for 3 ranks on this machine."
    )
    assert error.value.fix == "Type: %mlx_cluster stop, then %mlx_cluster start --ranks 3"


@pytest.mark.usefixtures("alone")
def test_a_restart_gives_fresh_ranks_under_the_same_name() -> None:
    with Cluster.start(ranks=2, profile="local") as cluster:
        name, before = cluster.name, {info.pid for info in cluster.ranks}
        cluster[0].push({"kept": 1}, block=True)

        assert cluster.restart() is cluster

        assert cluster.name == name
        assert before.isdisjoint(info.pid for info in cluster.ranks)
        assert [hello.rank for hello in cluster.remote.call_all("hello")] == [0, 1]
        cluster[0].execute("fresh = 'kept' not in globals()", block=True)
        assert cluster[0]["fresh"]
        assert current.cluster is cluster
        assert len(cluster_processes(name)) == 8
    assert cluster_processes(name) == []


@pytest.mark.usefixtures("alone")
def test_three_ranks_over_tcp_with_the_users_own_thread_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLX_NB_MCA", "btl self,tcp")
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)

    with Cluster.start(ranks=3) as cluster:
        everywhere = cluster.client[:]
        everywhere.execute(
            "import os; from mpi4py import MPI; total = MPI.COMM_WORLD.allreduce(MPI.COMM_WORLD.rank);"
            "seen = [os.environ.get(n) for n in ('OMPI_MCA_btl', 'OMP_NUM_THREADS', 'OPENBLAS_NUM_THREADS')]",
            block=True,
        )

        assert everywhere["total"] == [3, 3, 3]
        assert everywhere["seen"] == [["self,tcp", "2", "1"]] * 3
        assert len(cluster) == 3


def test_keys_and_ports_are_closed_to_others(cluster2: Cluster) -> None:
    folder = cluster2._running.record.folder

    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    secret = [*folder.glob("security/*.json"), folder / records.RECORD_FILE]
    assert len(secret) == 3
    assert {stat.S_IMODE(file.stat().st_mode) for file in secret} == {0o600}
    controllers = [p for p in cluster2.status().others if p.role == "controller"]
    open_at = {
        connection.laddr.ip
        for controller in controllers
        for connection in psutil.Process(controller.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert open_at == {"127.0.0.1"}


def test_logs_are_kept_apart_by_rank(cluster2: Cluster) -> None:
    with pytest.raises(RunError):
        cluster2.remote.call(1, "no such call")

    assert "'no such call'" in cluster2.logs(1)
    assert "'no such call'" not in cluster2.logs(0)
    everything = cluster2.logs()
    assert [line.split("·")[0].strip("─ ") for line in everything.splitlines() if line.startswith("──")] == [
        "rank 0",
        "rank 1",
        "mpirun",
        "controller",
    ]
    assert repr(everything) == str(everything)


KEPT = """
from mlx_nb.client.cluster import Cluster
cluster = Cluster.start(ranks=2, keep="{keep}" or False)
cluster[1].push({{"state": "still there"}}, block=True)
print(cluster.name, flush=True)
print(cluster, flush=True)
"""


@pytest.mark.usefixtures("alone")
def test_a_kept_cluster_outlives_its_kernel_and_can_be_attached(script: Callable[..., Script]) -> None:
    kernel = script(KEPT.format(keep="8h"))
    name = kernel.line()
    assert kernel.line().endswith("ends 8h after this kernel")
    assert kernel.wait() == 0
    assert len(cluster_processes(name)) == 8

    cluster = Cluster.attach()

    assert cluster.name == name
    assert cluster[1]["state"] == "still there"
    assert [hello.rank for hello in cluster.remote.call_all("hello")] == [0, 1]
    assert repr(cluster).splitlines()[0].endswith("ends 8h after this kernel")
    assert cluster._running.record.client.pid == psutil.Process().pid
    cluster.restart()
    assert cluster.remote.call_all("ping")
    cluster.stop()
    assert cluster_processes(name) == []


@pytest.mark.usefixtures("alone")
def test_a_kept_cluster_ends_with_its_time(script: Callable[..., Script]) -> None:
    kernel = script(KEPT.format(keep="4s"))
    name = kernel.line()
    kernel.wait()

    assert cluster_processes(name)
    assert seconds_until_gone(name, 15) > 2
    with pytest.raises(NoClusterError, match=f"No cluster {name} is running"):
        Cluster.attach(name)


@pytest.mark.usefixtures("alone")
def test_the_cluster_of_a_living_kernel_stays_its_own(script: Callable[..., Script]) -> None:
    kernel = script(KEPT.format(keep="") + "import time; time.sleep(300)")
    name = kernel.line()

    with pytest.raises(NoClusterError, match=f"There is: .*{name}.* Type: %mlx_cluster attach"):
        Cluster.attach()
    cluster = Cluster.attach(name)

    assert cluster[1]["state"] == "still there"
    assert repr(cluster).splitlines()[0].endswith(f"ends with kernel {kernel.process.pid}")
    cluster._at_exit()
    assert len(cluster_processes(name)) == 8
    current.cluster = None
    kernel.process.kill()
    kernel.wait()
    seconds_until_gone(name, 15)


@pytest.mark.usefixtures("alone")
def test_nothing_to_attach_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))

    with pytest.raises(NoClusterError) as error:
        Cluster.attach()
    assert str(error.value) == "No cluster to attach to is running. Type: %mlx_cluster start --ranks 2"
