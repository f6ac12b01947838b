"""A stepped run that is interrupted stands still, and what is asked there is about that run."""

import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import RunError
from tests.ctrl_c import ctrl_c

pytestmark = [pytest.mark.cluster]

QUESTION = "What is the capital of France?"
STORY = "Tell me a long story about a fox."


@pytest.fixture(scope="module")
def pipe(cluster2: Cluster) -> Iterator[Pipe]:
    loaded = cluster2.load("smollm2")
    yield loaded
    loaded.unload()


def test_ctrl_c_in_a_run_stands_still_and_goes_on_to_the_same_end(pipe: Pipe) -> None:
    free = pipe.generate(STORY, max_tokens=30)
    with pipe.debug(STORY, max_tokens=30) as dbg:
        with ctrl_c(2.0):
            stood = dbg.run()

        assert stood.kind != "end"
        assert not dbg.done
        assert dbg.layer().kind == "output"
        assert dbg.run().kind == "end"
        assert dbg.gen.token_ids == free.token_ids
        assert dbg.gen.text == free.text


def test_a_stop_button_stands_still_and_its_listeners_hear_of_the_run(pipe: Pipe) -> None:
    heard: list[tuple[bool, int]] = []
    with pipe.debug(STORY, max_tokens=200) as dbg:
        dbg.listeners.append(lambda d: heard.append((d.running, len(d.gen.token_ids))))
        threading.Timer(2.5, dbg.interrupt).start()

        dbg.run()

        assert not dbg.done
        assert any(running for running, _ in heard)
        assert heard[-1][0] is False
        assert [count for _, count in heard] == sorted(count for _, count in heard)


def test_the_kv_caches_shown_are_those_of_the_run_that_stands(pipe: Pipe) -> None:
    pipe.generate("Hi", max_tokens=2)
    with pipe.debug(QUESTION, max_tokens=4) as dbg:
        dbg.rank()

        kv = pipe.kv_cache()

        assert "stands at prefill 0:37" in str(kv)
        assert "OFFSETS DIFFER" not in str(kv)  # in the middle of a pass they do, and rightly
        assert kv[3].offset == 37
        assert kv[3].keys[0, 1].shape == (37, 64)
        with pytest.raises(RunError, match="Finish it first"):
            kv.trim(1)
    assert "last run" in str(pipe.kv_cache())


def test_while_a_pass_stands_every_rank_answers_at_once_and_uses_no_cpu(pipe: Pipe) -> None:
    processes = [psutil.Process(info.pid) for info in pipe.cluster.ranks]

    def used_s() -> list[float]:
        return [sum(one.cpu_times()[:2]) for one in processes]

    with pipe.debug(QUESTION, max_tokens=4) as dbg:
        dbg.until("layers.20.mlp.output", token=37)  # on rank 1: rank 0 waits for the token
        began = used_s()
        time.sleep(3.0)
        idle = [after - before for before, after in zip(began, used_s(), strict=True)]
        assert max(idle) < 0.3  # a wait that polls without sleeping would use 3 s
        for rank in (0, 1):
            asked = time.monotonic()
            assert dbg.p("1 + 1", rank=rank).text == "2"
            pipe.kv_cache()
            assert time.monotonic() - asked < 1.0
    # The control: a pass under way is seen in the same numbers.
    began, since = used_s(), time.monotonic()
    pipe.generate(STORY, max_tokens=40)
    share = [(after - b) / (time.monotonic() - since) for b, after in zip(began, used_s(), strict=True)]
    assert min(share) > 0.2


def test_an_expression_sees_what_the_stop_shows_and_the_frames_own_names_first(pipe: Pipe) -> None:
    with pipe.debug(QUESTION, max_tokens=2) as dbg:
        dbg.until("layers.2.input")
        assert dbg.p("x.shape").text == "(1, 37, 576)"
        dbg.until("layers.2.output")
        assert dbg.p("out.shape").text == "(1, 37, 576)"
        dbg.until("layers.3.self_attn.rope.input")
        assert dbg.p("x.shape").text == "(1, 37, 576)"  # the frame's own x, not the rotation's argument
        assert dbg.p("queries.shape").text == "(1, 9, 37, 64)"


def test_the_models_own_entry_shows_the_models_own_code(pipe: Pipe) -> None:
    with pipe.debug(QUESTION, max_tokens=3) as dbg:
        dbg.until("logits")

        position = dbg.into()  # the next pass enters the whole model first

        assert (position.site, position.rank, position.phase) == ("input", 0, "decode")
        assert position.source is not None
        assert position.source.file == "llama.py"
