"""Everything stands still, as when a laptop sleeps over lunch; then everything goes on as if nothing had been."""

import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import psutil
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from tests.conftest import Script, cluster_processes

pytestmark = [pytest.mark.cluster]

PAST_PATIENCE_S = 13.0
"""Longer than a rank waits for another (10 s), and than the notebook waits for a stopped one (11 s)."""

LUNCH_S = 130.0

STORY = "Once upon a time there was a little robot, and"
SESSION = """
import json, time, mlx_nb
say = lambda **what: print(json.dumps(what), flush=True)
with mlx_nb.Cluster.start(ranks=2) as cluster:
    pipe = cluster.load("smollm2")
    pids = [info.pid for info in cluster.ranks]
    say(name=cluster.name)
    for number, piece in enumerate(pipe.stream({story!r}, raw=True, max_tokens=60)):
        if {running} and number == 5:
            say(ready=True)
    if not {running}:
        say(ready=True)
        time.sleep(1)  # it is frozen here
        gen = pipe.generate({story!r}, raw=True, max_tokens=60)
    gen = pipe.last
    with pipe.debug("What is the capital of France?", max_tokens=2) as dbg:
        dbg.until("layers.20.attn_out")
        rank = dbg.position.rank
    again = pipe.generate("What is the capital of France?", max_tokens=10).text
    same = pids == [info.pid for info in cluster.ranks]
    say(token_ids=gen.token_ids, state=gen.state, again=again, same=same, rank=rank, healthy=cluster.healthy)
"""

Sleep = Callable[[list[psutil.Process], float], None]


@pytest.fixture
def sleep() -> Iterator[Sleep]:
    """Stops processes for a while; none stays stopped."""
    stopped: list[psutil.Process] = []

    def sleep(processes: list[psutil.Process], seconds: float) -> None:
        stopped.extend(processes)
        for process in processes:
            process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        assert {process.status() for process in processes} == {psutil.STATUS_STOPPED}
        wake()

    def wake() -> None:
        while stopped:
            stopped.pop(0).send_signal(signal.SIGCONT)

    yield sleep
    wake()


def session_asleep(
    script: Callable[..., Script], sleep: Sleep, seconds: float, *, running: bool, awake: str = ""
) -> dict[str, Any]:
    """What a session says whose processes all slept, but those with a word in their command line."""
    kernel = script(SESSION.format(story=STORY, running=running))
    name = json.loads(kernel.line())["name"]
    assert json.loads(kernel.line()) == {"ready": True}
    # The kernel and its watchdog, mpirun, two controllers, two ranks and their nannies.
    family = [psutil.Process(kernel.process.pid), *cluster_processes(name)]
    assert len(family) == 9
    sleep([one for one in family if not awake or awake not in " ".join(one.cmdline())], seconds)
    said: dict[str, Any] = json.loads(kernel.line())
    assert kernel.wait() == 0
    return said


def assert_as_before(said: dict[str, Any], pipe: Pipe) -> None:
    assert said == {
        "token_ids": pipe.generate(STORY, raw=True, max_tokens=60).token_ids,
        "state": "finished",
        "again": "The capital of France is Paris.",
        "same": True,
        "rank": 1,
        "healthy": True,
    }


def test_a_run_that_was_frozen_goes_on_where_it_was(
    script: Callable[..., Script], sleep: Sleep, pipe2: Pipe
) -> None:
    assert_as_before(session_asleep(script, sleep, PAST_PATIENCE_S, running=True), pipe2)


def test_engines_wait_an_hour_for_a_controller_that_sleeps(cluster2: Cluster) -> None:
    there = "from ipyparallel.engine.app import IPEngine; engine = IPEngine.instance()"
    for rank in range(2):
        cluster2[rank].execute(there, block=True)
        misses, period_ms = (
            cluster2[rank]["engine.max_heartbeat_misses"],
            cluster2[rank]["engine.hb_check_period"],
        )
        assert misses * period_ms / 1000 >= 3600


@pytest.mark.soak
@pytest.mark.timeout(400)
@pytest.mark.parametrize("running", [True, False], ids=["running", "idle"])
@pytest.mark.parametrize("awake", ["", "ipyparallel.engine"], ids=["all", "all but the ranks"])
def test_two_minutes_asleep(
    script: Callable[..., Script], sleep: Sleep, pipe2: Pipe, awake: str, running: bool
) -> None:
    assert_as_before(session_asleep(script, sleep, LUNCH_S, running=running, awake=awake), pipe2)
