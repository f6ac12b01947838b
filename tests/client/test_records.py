"""What lies on disk about a cluster, and what is believed of it."""

import stat
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from mlx_nb.client import records
from mlx_nb.client.processes import ProcessId, end, identify
from mlx_nb.shared.ids import EngineId, Rank
from mlx_nb.shared.spec import ClusterSpec, RankInfo


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> records.Record:
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(tmp_path))
    folder = records.runtime_folder() / "local-abcd"
    folder.mkdir()
    me = identify(role="client")
    info = RankInfo(rank=Rank(0), engine=EngineId(3), host="laptop", pid=1, created_s=2.5)
    return records.Record(
        name="local-abcd",
        spec=ClusterSpec(ranks=1, hosts=("a:1",), keep_s=60),
        folder=folder,
        version="0.1",
        client=me,
        processes=(replace(me, role="mpirun"), replace(me, role="controller")),
        ranks=(info,),
        started_s=1.0,
    )


def test_a_record_reads_as_it_was_written(record: records.Record) -> None:
    record.write()

    assert records.read(record.path) == record
    assert stat.S_IMODE(record.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(records.runtime_folder().stat().st_mode) == 0o700
    assert [path.name for path in record.folder.iterdir()] == [records.RECORD_FILE]


@pytest.mark.parametrize(
    "content",
    ["", "{", "[]", "{}", '{"name": "x", "spec": {}}', "null", "\ud800".encode("utf-8", "surrogatepass")],
)
def test_what_is_no_record_is_none(tmp_path: Path, content: str | bytes) -> None:
    file = tmp_path / "record.json"
    file.write_bytes(content if isinstance(content, bytes) else content.encode())

    assert records.read(file) is None
    assert records.read(tmp_path / "missing.json") is None


def test_a_living_cluster_is_listed(record: records.Record) -> None:
    record.write()

    assert records.list_records() == [record]


def test_a_pid_with_another_creation_time_is_a_stranger(record: records.Record) -> None:
    me = record.client
    stranger = replace(me, created_s=me.created_s - 60)
    assert me.alive
    assert not stranger.alive
    stale = replace(record, processes=(replace(stranger, role="mpirun"), replace(me, role="controller")))
    stale.write()

    assert end("no-such-cluster", [stranger]) < 5  # and this test goes on: nothing was killed
    assert records.list_records() == []
    assert not record.folder.exists()


def test_updates_do_not_lose_each_other(record: records.Record) -> None:
    record.write()

    def add(number: int) -> None:
        mine = ProcessId(number, 0.0, "engine")
        records.update(record.path, lambda r: replace(r, processes=(*r.processes, mine)))

    threads = [threading.Thread(target=add, args=(number,)) for number in range(100, 120)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    found = records.read(record.path)
    assert found
    assert {p.pid for p in found.processes} >= set(range(100, 120))


def test_whoever_attaches_owns_the_cluster(record: records.Record) -> None:
    replace(record, client=ProcessId(1, 0.0), kept_until_s=5.0).write()

    adopted = records.adopt(record.path, record.client)

    assert adopted == record
    assert records.read(record.path) == record
    record.remove()
    assert records.adopt(record.path, record.client) is None
