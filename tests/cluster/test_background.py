"""Runs in the background: paused, resumed, stopped and awaited, and nothing of them is lost."""

import asyncio
import threading
import time
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_nb.client import remote
from mlx_nb.client.background import BackgroundRun
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import ClusterError, MlxNbError, OptionError, RankSilentError, RunTimeoutError
from tests.cluster.conftest import loaded
from tests.cluster.reference import IDS, MAX_TOKENS, PROMPTS, TINY_TOKENS
from tests.conftest import seconds_until

pytestmark = [pytest.mark.cluster]

LONG = PROMPTS[2]
HUNDREDS = 400
SOON_S = 5.0  # a chunk or a token, on a machine that others use too


def begun(run: BackgroundRun, tokens: int = 3) -> BackgroundRun:
    """The run, once it has some tokens."""
    seconds_until(lambda: run.done or len(run.gen.token_ids) >= tokens, 30)
    assert not run.done
    return run


def test_it_gives_the_same_tokens_as_one_process(pipe2: Pipe, reference: dict[str, Any]) -> None:
    wanted = reference["answers"][0]

    run = pipe2.start(PROMPTS[0], max_tokens=MAX_TOKENS[0])
    gen = run.wait(60)

    assert (gen.token_ids, gen.text, gen.finish_reason) == tuple(
        wanted[k] for k in ("token_ids", "text", "finish")
    )
    assert run.done
    assert run.state == gen.state == "finished"
    assert run.text == gen.text
    assert pipe2.last is run.gen is gen
    assert gen.timeline is not None
    assert "Run smollm2 · finished · stop · 8 tokens" in repr(run)


def test_over_tcp_and_with_pauses_the_tokens_are_the_same(tcp_pipe3: Pipe, reference: dict[str, Any]) -> None:
    run = tcp_pipe3.start(PROMPTS[8], max_tokens=MAX_TOKENS[8], prefill_step_size=8)
    pauses = 0
    while not run.done:
        run.pause()
        pauses += run.state == "paused"
        time.sleep(0.05)
        run.resume()
        time.sleep(0.15)

    assert run.gen.token_ids == reference["answers"][8]["token_ids"]
    assert pauses >= 2  # the control


def test_another_architecture_on_three_ranks(
    cluster3: Cluster, tiny_folders: Path, reference: dict[str, Any]
) -> None:
    with loaded(cluster3, tiny_folders / "gemma3") as tiny:
        run = tiny.start(IDS, max_tokens=TINY_TOKENS, prefill_step_size=8)

        assert run.wait(30).token_ids == reference["tiny"]["gemma3"]


def test_a_pause_stands_still_and_the_ranks_answer(pipe2: Pipe, reference: dict[str, Any]) -> None:
    run = begun(pipe2.start(LONG, max_tokens=HUNDREDS))

    began_s = time.monotonic()
    run.pause()
    assert time.monotonic() - began_s < SOON_S
    assert run.state == "paused"
    count = len(run.gen.token_ids)
    kv = pipe2.kv_cache()
    assert {entry.offset for entry in kv} <= {
        count + len(run.gen.prompt_ids) - 1,
        count + len(run.gen.prompt_ids),
    }
    # Others use the ranks meanwhile, and the run knows nothing of it.
    assert pipe2.generate(PROMPTS[3], max_tokens=4).token_ids == reference["answers"][3]["token_ids"][:4]
    assert len(run.gen.token_ids) == count
    assert "paused" in repr(run)
    assert "run.resume()" in repr(run)
    tps = run.gen.stats.generation_tps if run.gen.stats else 0

    run.resume()
    seconds_until(lambda: len(run.gen.token_ids) > count + 3, 30)
    assert run.gen.stats is not None
    assert run.gen.stats.generation_tps > tps / 3  # the pause is no time of the run
    found = run.stop().token_ids[: MAX_TOKENS[2]]

    assert found == reference["answers"][2]["token_ids"][: len(found)]


def test_a_stop_keeps_the_text(pipe2: Pipe) -> None:
    run = begun(pipe2.start(LONG, max_tokens=HUNDREDS))

    began_s = time.monotonic()
    gen = run.stop()

    assert time.monotonic() - began_s < SOON_S
    assert run.done
    assert gen.state == "interrupted"
    assert len(gen.token_ids) < HUNDREDS
    assert gen.text
    assert run.wait() is gen
    assert pipe2.last is gen
    assert run.stop() is run.pause().resume().gen  # they do nothing any more
    assert pipe2.generate("hi", max_tokens=2).state == "finished"


def test_it_answers_while_it_runs(pipe2: Pipe, reference: dict[str, Any]) -> None:
    run = begun(pipe2.start(LONG, max_tokens=HUNDREDS))

    began_s = time.monotonic()
    kv = pipe2.kv_cache()
    status = pipe2.cluster.status()
    count = len(pipe2.tokens("hi").tokens)
    assert time.monotonic() - began_s < SOON_S
    assert count > 0
    assert len(kv) == 30
    assert len(status.ranks) == 2
    assert "running" in repr(pipe2)
    # A generate goes first, and the run goes on by itself.
    assert pipe2.generate(PROMPTS[0], max_tokens=4).token_ids == reference["answers"][0]["token_ids"][:4]
    assert not run.done
    with pytest.raises(RunTimeoutError, match="The run is running after 0 s, with"):
        run.wait(0)
    run.stop()


def test_a_rank_that_stands_still_ends_it_and_frees_the_others(
    pipe2: Pipe, reference: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "SILENT_S", 0.5)  # before the other rank notices, who would name the token
    run = begun(pipe2.start(LONG, max_tokens=HUNDREDS))
    still = psutil.Process(pipe2.cluster.ranks[1].pid)
    still.suspend()
    try:
        with pytest.raises(RankSilentError, match=r"Rank 1 \(.*\) has been silent .*its process is stopped"):
            run.wait(SOON_S)
    finally:
        still.resume()

    assert run.text
    assert pipe2.generate(PROMPTS[0], max_tokens=4).token_ids == reference["answers"][0]["token_ids"][:4]


def test_runs_take_turns(pipe2: Pipe, reference: dict[str, Any]) -> None:
    first = begun(pipe2.start(LONG, max_tokens=HUNDREDS))
    second = pipe2.start(PROMPTS[0], max_tokens=4)
    time.sleep(0.3)
    assert second.state == "waiting"

    first.pause()
    assert second.wait(30).token_ids == reference["answers"][0]["token_ids"][:4]
    third = pipe2.start(PROMPTS[0], max_tokens=4)
    third.pause()
    first.resume()
    assert third.stop().state in ("interrupted", "finished")
    first.stop()


def in_a_loop(what: Coroutine[Any, Any, Any]) -> Any:
    """Run something in a loop of its own, in a thread: this one may have a loop that runs, the browser's tests'."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, what).result()


def test_it_can_be_awaited(pipe2: Pipe, reference: dict[str, Any]) -> None:
    async def both() -> list[Any]:
        runs = [pipe2.start(PROMPTS[place], max_tokens=4) for place in (0, 3)]
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.01)
                ticks += 1

        beside = asyncio.create_task(tick())
        found = [await run for run in runs] + [await runs[0]]
        beside.cancel()
        assert ticks > 3  # the loop was free
        return [gen.token_ids for gen in found]

    wanted = [reference["answers"][place]["token_ids"][:4] for place in (0, 3, 0)]
    assert in_a_loop(both()) == wanted


def test_cancelling_the_await_stops_it(pipe2: Pipe) -> None:
    run = pipe2.start(LONG, max_tokens=HUNDREDS)

    async def short() -> None:
        async def awaited() -> None:
            await run

        with pytest.raises(TimeoutError):
            await asyncio.wait_for(awaited(), 0.5)

    in_a_loop(short())
    seconds_until(lambda: run.done, SOON_S)
    assert run.state == "interrupted"


def test_a_cluster_interrupt_stops_it(pipe2: Pipe) -> None:
    run = begun(pipe2.start(LONG, max_tokens=HUNDREDS))

    pipe2.cluster.interrupt()

    seconds_until(lambda: run.done, SOON_S)
    assert run.state == "interrupted"


def test_what_fails_is_raised_where_it_is_awaited(pipe2: Pipe) -> None:
    def broken(tokens: Any, logits: Any) -> Any:
        raise ValueError("seven")

    run = pipe2.start("hi", logits_processors=[broken])
    with pytest.raises(OptionError, match="broken raised ValueError on the last rank: seven"):
        run.wait(30)
    assert run.state == "failed"
    assert "seven" in repr(run)
    with pytest.raises(OptionError, match="max_tokens is 1 or more"):
        pipe2.start("hi", max_tokens=0)
    assert pipe2.generate("hi", max_tokens=2).state == "finished"


def test_unloading_ends_it(cluster2: Cluster, tiny_folders: Path) -> None:
    with loaded(cluster2, tiny_folders / "qwen3") as tiny:
        run = begun(tiny.start(IDS, max_tokens=5000))
    assert run.state == "interrupted"
    assert len(run.gen.token_ids) >= 3


def test_stopping_the_cluster_ends_it(alone: None, tiny_folders: Path) -> None:
    before = threading.active_count()
    cluster = Cluster.start(ranks=2)
    pipe = cluster.load(str(tiny_folders / "qwen3"))
    run, paused = begun(pipe.start(IDS, max_tokens=5000)), pipe.start(IDS)
    paused.pause()

    cluster.stop()

    assert run.state == paused.state == "interrupted"
    assert run.wait(1).token_ids
    with pytest.raises(ClusterError):
        pipe.start(IDS)
    seconds_until(lambda: threading.active_count() <= before + 1, 10)


def test_a_lost_rank_ends_it_with_the_reason(alone: None, tiny_folders: Path) -> None:
    cluster = Cluster.start(ranks=2)
    pipe = cluster.load(str(tiny_folders / "qwen3"))
    run = begun(pipe.start(IDS, max_tokens=5000))

    psutil.Process(cluster.ranks[1].pid).kill()
    with pytest.raises(MlxNbError, match="Rank 1"):
        run.wait(30)
    assert run.state == "failed"
    assert run.gen.token_ids
