"""Calls by name: what comes back, what is raised, and the events in between."""

import threading
import time

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.shared.errors import ClusterError, PlanError, RunError
from mlx_nb.shared.failure import RankTraceback
from mlx_nb.shared.ids import Rank

pytestmark = [pytest.mark.cluster]

CALLS = """
import time
from mlx_nb.engine import calls, events
from mlx_nb.shared.errors import PlanError

def echo(*args, **kwargs):
    return args, kwargs

def tick(count):
    numbers = []
    for i in range(count):
        numbers.append(events.publish({"i": i, "rank": calls.world()[0]}))
    return numbers

def ours():
    raise PlanError("There is no such plan.", "Make one.")

def theirs():
    class Private(Exception):
        pass
    raise Private("only known on the rank")

def rest(seconds):
    time.sleep(seconds)

calls.CALLS.update(echo=echo, tick=tick, ours=ours, theirs=theirs, rest=rest)
"""


@pytest.fixture
def cluster(cluster2: Cluster) -> Cluster:
    cluster2.client[:].execute(CALLS, block=True)
    return cluster2


def test_arguments_go_over_and_values_come_back(cluster: Cluster) -> None:
    assert cluster.remote.call(1, "echo", 1, "two", three=[3]) == ((1, "two"), {"three": [3]})
    assert [hello.rank for hello in cluster.remote.call_all("hello")] == [0, 1]
    assert all(size > 10_000_000 for size in cluster.remote.call_all("memory"))


def test_an_error_of_ours_arrives_as_it_is_with_the_ranks_traceback(cluster: Cluster) -> None:
    with pytest.raises(PlanError) as error:
        cluster.remote.call(1, "ours")

    assert (error.value.problem, error.value.fix) == ("There is no such plan.", "Make one.")
    assert isinstance(error.value.__cause__, RankTraceback)
    assert "in ours" in str(error.value.__cause__)


def test_a_foreign_error_becomes_a_run_error_with_its_last_line(cluster: Cluster) -> None:
    with pytest.raises(RunError) as error:
        cluster.remote.call_all("theirs")

    assert error.value.problem.startswith("Rank 0 failed in theirs: ")
    assert error.value.problem.endswith("Private: only known on the rank")
    assert error.value.fix == "To see where, type: %mlx_cluster logs"
    assert "in theirs" in cluster.logs(0)


def test_unknown_names_and_ranks_are_refused(cluster: Cluster) -> None:
    with pytest.raises(RunError, match="know no call 'nonsense'"):
        cluster.remote.call(0, "nonsense")
    with pytest.raises(ClusterError, match=r"There is no rank 2\. The ranks of this cluster are 0–1\."):
        cluster.remote.call(2, "ping")


def test_an_argument_that_cannot_be_unpacked_there_is_reported(cluster: Cluster) -> None:
    with pytest.raises(RunError, match="Rank 0 failed in echo: ModuleNotFoundError"):
        cluster.remote.call(0, "echo", Foreign())
    assert cluster.remote.call(0, "ping")


class Foreign:
    """Its module cannot be imported on a rank."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return __import__, ("no_such_module",)


def test_events_arrive_numbered_from_every_rank(cluster: Cluster) -> None:
    count, got = 300, []
    pending = cluster.remote.submit_all("tick", count, on_event=lambda rank, event: got.append((rank, event)))

    assert cluster.remote.wait(pending) == [list(range(count))] * 2

    end_s = time.monotonic() + 5
    while len(got) < 2 * count and time.monotonic() < end_s:
        time.sleep(0.01)
    for rank in (0, 1):
        assert [event["number"] for where, event in got if where == rank] == list(range(count))
        assert {event["rank"] for where, event in got if where == rank} == {rank}
    before = len(got)
    cluster.remote.call_all("tick", 3)  # nobody asked for these
    time.sleep(0.2)
    assert len(got) == before


def test_two_threads_may_call_at_once(cluster: Cluster) -> None:
    wrong: list[object] = []

    def ask(mine: int) -> None:
        for i in range(50):
            answer = cluster.remote.call(mine % 2, "echo", mine, i)
            if answer != ((mine, i), {}):
                wrong.append(answer)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not wrong


def test_a_rank_is_busy_while_it_has_not_answered(cluster: Cluster) -> None:
    pending = cluster.remote.submit(1, "rest", 0.5)

    assert [info.state for info in cluster.ranks] == ["idle", "busy"]
    cluster.remote.wait([pending])
    assert [info.state for info in cluster.ranks] == ["idle", "idle"]
    running = cluster[0].execute("import time; time.sleep(0.5)", block=False)
    assert [info.state for info in cluster.ranks] == ["busy", "idle"]
    running.get()


def test_calls_to_some_ranks_come_back_in_their_order(cluster: Cluster) -> None:
    pending = cluster.remote.submit_to([Rank(1), Rank(0)], "hello")

    assert [hello.rank for hello in cluster.remote.wait(pending)] == [1, 0]


def test_calls_are_quick(cluster: Cluster) -> None:
    cluster.remote.call(0, "ping")
    began_s = time.monotonic()
    for _ in range(50):
        cluster.remote.call(0, "ping")
    each_ms = (time.monotonic() - began_s) / 50 * 1000
    print(f"{each_ms:.1f} ms a call")
    assert each_ms < 250  # 4 ms on an idle machine; this one may be shared
