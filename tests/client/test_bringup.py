"""What a start makes of the ranks' answers and of mpirun's words."""

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from mlx_nb.client import bringup, logs
from mlx_nb.client.bringup import check_world
from mlx_nb.client.processes import ProcessId, identify
from mlx_nb.shared.errors import ClusterStartError
from mlx_nb.shared.ids import EngineId, Rank
from mlx_nb.shared.spec import Hello


def hello(rank: int, size: int = 2, mlx: str = "0.32.4") -> Hello:
    return Hello(
        rank=Rank(rank),
        world_size=size,
        pid=100 + rank,
        created_s=1.0,
        host=f"mini{rank}",
        versions={"python": "3.11.7", "mlx-nb": "0.1.0", "mlx": mlx, "mlx-lm": "0.32.2"},
        memory_bytes=1,
    )


def test_a_whole_world_is_accepted_whatever_the_engine_ids() -> None:
    check_world({EngineId(7): hello(0), EngineId(2): hello(1)}, 2)


def test_ranks_that_each_are_a_world_of_their_own_are_refused() -> None:
    with pytest.raises(ClusterStartError) as error:
        check_world({EngineId(0): hello(0, size=1), EngineId(1): hello(0, size=1)}, 2)
    assert "rank 0 of 1 on mini0, rank 0 of 1 on mini0" in error.value.problem
    assert "pip install" in error.value.fix


def test_different_versions_are_shown_in_a_table() -> None:
    with pytest.raises(ClusterStartError) as error:
        check_world({EngineId(0): hello(0), EngineId(1): hello(1, mlx="0.33.0")}, 2)
    lines = error.value.problem.splitlines()
    assert lines[0] == "The ranks run different versions:"
    assert lines[1].split() == ["rank", "host", "python", "mlx-nb", "mlx", "mlx-lm"]
    assert lines[3].split() == ["1", "mini1", "3.11.7", "0.1.0", "0.33.0", "0.32.2"]


ROUTINE = """\
2026-01-01 00:00:00.000 [IPEngine.1.1] Handling apply_request: 1
2026-01-01 00:00:00.000 [KernelNanny.1] Pipe closed, parent 1 has status: running
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for rank, text in enumerate(
        [ROUTINE, f"the reason\n{ROUTINE}2026-01-01 [IPEngine.1.1] ERROR | a failure\n"]
    ):
        (tmp_path / "log" / "ranks" / "job@1" / f"rank.{rank}").mkdir(parents=True)
        (tmp_path / "log" / "ranks" / "job@1" / f"rank.{rank}" / "stdout").write_text(text)
    return tmp_path


def test_last_words_are_not_ipyparallels_routine(folder: Path) -> None:
    assert logs.last_words(folder, Rank(0)) == ""
    assert logs.last_words(folder, Rank(1)) == "the reason / 2026-01-01 [IPEngine.1.1] ERROR | a failure"
    assert logs.last_words(folder, Rank(9)) == ""


def test_a_failed_start_quotes_mpirun_and_the_rank_that_says_most(folder: Path) -> None:
    ranks = [Rank(0), Rank(1)]
    own = "\n  the reason\n  2026-01-01 [IPEngine.1.1] ERROR | a failure"
    assert logs.complaints(folder, ranks) == own
    (folder / "log" / "mpirun.log").write_text("-----\nmpirun was unhappy\n\n-----\n")
    assert logs.complaints(folder, ranks) == "\n  mpirun was unhappy" + own


def test_long_complaints_keep_their_beginning_and_their_end(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "mpirun.log").write_text("\n".join(map(str, range(100))))

    shown = logs.complaints(tmp_path, []).split()

    assert shown[0] == "0"
    assert shown[-1] == "99"
    assert len(shown) == 24


PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", "input()", "ipyparallel.engine"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
child.kill()
"""


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, psutil.Process]]:
    """What looks after the engines of a start, and the only engine, a process below one in mpirun's place."""
    monkeypatch.setattr(bringup, "STILL_S", 0.3)
    monkeypatch.setattr(bringup, "LOOK_EVERY_S", 0.0)
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        engine = psutil.Process(int(parent.stdout.readline()))
        known: dict[str, ProcessId] = {"mpirun": identify(parent.pid, "mpirun")}
        yield bringup._Engines(SimpleNamespace(process=known.get)), engine  # type: ignore[arg-type]
        parent.communicate("\n")


def look_until(engines: Any, seconds: float) -> None:
    end_s = time.monotonic() + seconds
    while time.monotonic() < end_s:
        engines.check()
        time.sleep(0.05)


def test_an_engine_that_stands_still_ends_the_start(engine: tuple[Any, psutil.Process]) -> None:
    engines, process = engine
    look_until(engines, 0.5)  # the control: one that runs is fine
    process.suspend()

    with pytest.raises(bringup._EndedError, match=f"process {process.pid} has been stopped"):
        look_until(engines, 10)

    process.resume()
    look_until(engines, 0.5)


def test_an_engine_that_ends_ends_the_start(engine: tuple[Any, psutil.Process]) -> None:
    engines, process = engine
    engines.check()
    process.kill()

    with pytest.raises(bringup._EndedError, match="ended before it had answered"):
        look_until(engines, 10)
