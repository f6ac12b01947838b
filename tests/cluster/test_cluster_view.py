"""The cluster's view over real ranks: it follows a run and a lost rank without asking, and its buttons act."""

import itertools
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.cluster_view import LiveCluster
from mlx_nb.client.current import current
from mlx_nb.client.live_view import close_views, live_views
from mlx_nb.client.pipe import Pipe
from tests.cluster.conftest import beside

pytestmark = pytest.mark.cluster

STORY = "Once upon a time there was a little robot, and"


@pytest.fixture(autouse=True)
def _frozen() -> Iterator[None]:
    yield
    close_views()
    assert live_views == []


def until(condition: Any, limit_s: float = 15) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends
        time.sleep(0.02)


def states(live: LiveCluster) -> list[str]:
    return [card["state"] for card in live.view.state["ranks"]]


def in_thread(work: Any) -> threading.Thread:
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def test_it_follows_a_run_at_most_ten_times_a_second_and_asks_no_rank_meanwhile(
    pipe2: Pipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    live = LiveCluster(pipe2.cluster)
    until(lambda: live.view.state["ranks"][1]["device"])
    card = live.view.state["ranks"][1]
    assert (card["state"], card["holds"], card["weights"]) == ("idle", "layers 15–29, norm, head", "311 MiB")
    asked: list[str] = []
    submit_to = type(pipe2.cluster.remote).submit_to

    def listening(self: Any, ranks: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        asked.append(name)
        return submit_to(self, ranks, name, *args, **kwargs)

    monkeypatch.setattr(type(pipe2.cluster.remote), "submit_to", listening)
    drawn: list[tuple[float, str, str]] = []
    live.view.observe(
        lambda change: drawn.append(
            (time.monotonic(), change["new"]["status"], change["new"]["ranks"][0]["speed"])
        ),
        "state",
    )

    pipe2.generate(STORY, raw=True, max_tokens=40)

    running = [one for one in drawn if one[1] == "running"]
    assert len(running) > 5
    assert len({speed for _, _, speed in running}) > 3
    assert min(b[0] - a[0] for a, b in itertools.pairwise(drawn)) > 0.09
    assert asked[:2] == ["encode", "generate"]
    began = time.perf_counter()
    for _ in range(10):
        live._state()
    assert time.perf_counter() - began < 0.2  # a look costs a fraction of a tick
    until(lambda: live.view.state["ranks"][0]["kv"] and states(live) == ["idle", "idle"])
    assert "vitals" in asked
    assert "40 tokens" in live.view.state["run"]
    assert "layers 0–14" in live.view.html()
    assert "KV caches" in live.view.html()


def test_pause_lets_a_free_run_stand_still_and_go_on_to_the_same_tokens(pipe2: Pipe) -> None:
    expected = pipe2.generate(STORY, raw=True, max_tokens=40).token_ids
    live = LiveCluster(pipe2.cluster)
    found: list[Any] = []
    thread = in_thread(lambda: found.append(pipe2.generate(STORY, raw=True, max_tokens=40)))
    until(lambda: pipe2.under_way)
    for _ in range(2):
        before = len(pipe2.last.token_ids)
        until(lambda: len(pipe2.last.token_ids) > before + 3)  # noqa: B023

        live._pause({})

        assert live.view.state["status"] == "paused"
        assert "resume" in live.view.state["actions"]
        stood = len(pipe2.last.token_ids)
        kv = pipe2.kv_cache()  # the ranks answer while it stands still
        assert kv.report.standing or kv[17].offset >= stood - 1
        time.sleep(0.3)
        assert len(pipe2.last.token_ids) == stood < 40
        live._resume({})
    thread.join(60)

    assert found[0].token_ids == expected
    assert found[0].state == "finished"
    assert found[0].stats.wall_s > found[0].stats.generation_tokens / found[0].stats.generation_tps


def test_a_paused_run_ends_by_interrupt_and_the_ranks_are_free(pipe2: Pipe) -> None:
    live = LiveCluster(pipe2.cluster)
    thread = in_thread(lambda: pipe2.generate(STORY, raw=True, max_tokens=300))
    until(lambda: pipe2.under_way and len(pipe2.last.token_ids) > 3)
    live._pause({})
    stood = len(pipe2.last.token_ids)

    live._interrupt({})
    thread.join(20)

    assert (pipe2.last.state, len(pipe2.last.token_ids)) == ("interrupted", stood)
    for rank in (0, 1):
        pipe2.cluster[rank].execute("open_runs = len(stage.runs)", block=True)
        assert pipe2.cluster[rank]["open_runs"] == 0
    until(lambda: states(live) == ["idle", "idle"])
    live._pause({})
    assert live.view.state["sentence"] == "Nothing was running."
    assert "Paris" in pipe2.generate("What is the capital of France?", max_tokens=12).text


def test_a_stepper_stands_on_one_rank_while_the_other_waits(pipe2: Pipe) -> None:
    live = LiveCluster(pipe2.cluster)
    with pipe2.debug("What is the capital of France?", max_tokens=2) as dbg:
        until(lambda: states(live) == ["stopped", "waiting"])
        dbg.rank()
        until(lambda: states(live) == ["waiting", "stopped"])
    until(lambda: states(live) == ["idle", "idle"])


def test_a_stopped_and_a_lost_rank_show_and_restart_brings_cluster_and_model_back() -> None:
    before = current.cluster, current.pipe, current.dbg
    with beside(2) as cluster:
        try:
            pipe = cluster.load("smollm2")
            live = LiveCluster(cluster)
            pid = cluster.remote.table[1].pid
            os.kill(pid, signal.SIGSTOP)
            until(lambda: states(live) == ["idle", "stopped"])
            assert "SIGSTOP" in live.view.state["ranks"][1]["why"]
            os.kill(pid, signal.SIGKILL)
            until(lambda: states(live)[1] == "lost")
            assert f"process {pid} ended" in live.view.state["ranks"][1]["why"]
            assert "smollm2" in live.view.state["warnings"]["restart"]

            live._restart({})

            assert live.view.state["error"] == ""
            until(lambda: states(live) == ["idle", "idle"])
            assert pipe.generate([1, 2, 3], max_tokens=2).state == "finished"
            live._stop({})
            assert states(live) == ["ended", "ended"]
            assert live.view.state["actions"] == ["start"]
        finally:
            current.cluster, current.pipe, current.dbg = before


def test_the_view_opens_from_the_cluster_and_by_name(cluster2: Cluster) -> None:
    from mlx_nb.client.show import show_view

    cluster2.show()
    show_view(None, "cluster", cluster=cluster2)
    assert [live.view.name for live in live_views] == ["cluster", "cluster"]  # type: ignore[attr-defined]
