"""A run that is cut short: by Ctrl-C, by its caller, by the death of a rank. What it had produced is kept."""

import os
import signal
from collections.abc import Callable, Iterator

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.generation import Generation, Piece
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import ClusterError, RankLostError, RunFinished
from tests.conftest import cluster_processes
from tests.ctrl_c import ctrl_c

STORY = "Once upon a time there was a little robot, and"
FRANCE = "What is the capital of France?"
ANSWER = "The capital of France is Paris."
ENDLESS = {"max_tokens": 4000, "raw": True}

pytestmark = [pytest.mark.cluster]


def last_of(pipe: Pipe) -> Generation:
    assert pipe.last is not None
    return pipe.last


def press_ctrl_c() -> None:
    os.kill(os.getpid(), signal.SIGINT)


def read(pipe: Pipe, pieces: list[Piece], tokens: int, then: Callable[[], None]) -> None:
    """Read the story into `pieces`; do something once there are so many, and read on."""
    for piece in pipe.stream(STORY, **ENDLESS):
        pieces.append(piece)
        if len(pieces) == tokens:
            then()


def is_right(pipe: Pipe) -> bool:
    """Whether a pipe answers, and every rank is idle again."""
    text = pipe.generate(FRANCE, max_tokens=10).text
    return text == ANSWER and {info.state for info in pipe.cluster.ranks} == {"idle"}


@pytest.fixture(scope="module")
def story(pipe2: Pipe) -> str:
    """How the story goes on, undisturbed."""
    text: str = pipe2.generate(STORY, max_tokens=60, raw=True).text
    assert len(text) > 100
    return text


def agree(text: str, story: str) -> bool:
    """Whether a piece of text is the story's beginning, as far as both go."""
    return bool(text) and (story.startswith(text) or text.startswith(story))


@pytest.mark.parametrize("tokens", [pytest.param(1, marks=pytest.mark.soak), 7])
def test_ctrl_c_while_text_streams_keeps_the_text(pipe2: Pipe, story: str, tokens: int) -> None:
    pieces: list[Piece] = []
    with pytest.raises(KeyboardInterrupt):
        read(pipe2, pieces, tokens, press_ctrl_c)

    gen = last_of(pipe2)
    assert gen.state == "interrupted"
    assert gen.finish_reason is None
    assert tokens <= len(gen.token_ids) < 4000
    assert [piece.token for piece in pieces] == gen.token_ids[: len(pieces)]
    assert agree(gen.text, story)
    assert is_right(pipe2)
    assert last_of(pipe2).state == "finished"  # the control: it is the run that was interrupted, not the pipe


def test_ctrl_c_in_generate_keeps_the_text(pipe2: Pipe, story: str) -> None:
    with ctrl_c(2.0), pytest.raises(KeyboardInterrupt):
        pipe2.generate(STORY, **ENDLESS)

    assert last_of(pipe2).state == "interrupted"
    assert agree(last_of(pipe2).text, story)
    assert is_right(pipe2)


def test_ctrl_c_while_the_prompt_is_fed(pipe2: Pipe) -> None:
    with ctrl_c(0.7), pytest.raises(KeyboardInterrupt):
        pipe2.generate([504, 3426, 314] * 2000, max_tokens=1, prefill_step_size=32)

    assert last_of(pipe2).state == "interrupted"
    assert last_of(pipe2).token_ids == []
    assert is_right(pipe2)


def test_ctrl_c_while_logits_are_made(pipe2: Pipe) -> None:
    with ctrl_c(0.7), pytest.raises(KeyboardInterrupt):
        pipe2.logits([504, 3426, 314] * 2000, chunk=32)

    assert is_right(pipe2)


@pytest.mark.parametrize("again", range(2))
def test_leaving_the_loop_stops_the_run_on_all_ranks(pipe2: Pipe, story: str, again: int) -> None:
    for count, _piece in enumerate(pipe2.stream(STORY, **ENDLESS), 1):
        if count == 3 + again:
            break

    gen = last_of(pipe2)
    assert gen.state == "interrupted"
    assert agree(gen.text, story)
    assert is_right(pipe2)


def test_several_interrupts_in_a_row_leave_a_working_pipe(pipe2: Pipe) -> None:
    for _ in range(4):
        stream = pipe2.stream(STORY, **ENDLESS)
        next(stream)
        stream.close()
        assert last_of(pipe2).state == "interrupted"
    assert is_right(pipe2)


def test_ctrl_c_while_a_stepper_runs_stands_still_with_its_text(pipe2: Pipe, story: str) -> None:
    with pipe2.debug(STORY, **ENDLESS) as dbg:
        dbg.token(2)
        with ctrl_c(1.5):
            assert dbg.run().kind != "end"

        assert len(dbg.gen.token_ids) >= 2
        assert agree(dbg.gen.text, story)
        assert dbg.gen.state == "stopped"
    assert dbg.gen.state == "interrupted"
    with pytest.raises(RunFinished):
        dbg.into()
    assert is_right(pipe2)


def test_ctrl_c_in_a_stride_leaves_a_working_pipe(pipe2: Pipe) -> None:
    with pipe2.debug(STORY, **ENDLESS) as dbg:
        with ctrl_c(1.5):
            assert dbg.token(3000).kind != "end"
        assert not dbg.done
    assert is_right(pipe2)


def test_an_interrupt_does_not_touch_a_stepper_that_stands(pipe2: Pipe) -> None:
    with pipe2.debug(FRANCE, max_tokens=10) as dbg:
        dbg.until("layers.20.output", token=38)
        stream = pipe2.stream(STORY, **ENDLESS)
        next(stream)
        stream.close()
        assert dbg.position.site == "model.layers.20.output"
        dbg.run()
        assert dbg.gen.text == ANSWER


@pytest.fixture(params=[pytest.param(0, marks=pytest.mark.soak), 1], ids=["rank 0", "rank 1"])
def doomed(request: pytest.FixtureRequest, alone: None) -> Iterator[tuple[Pipe, int]]:
    """A pipe of its own, and the rank that will be killed."""
    cluster = Cluster.start(ranks=2)
    yield cluster.load("smollm2"), request.param
    cluster.stop()
    assert cluster_processes(cluster.name) == []


def test_a_rank_killed_in_a_run_is_named_and_a_restart_heals(doomed: tuple[Pipe, int], story: str) -> None:
    pipe, rank = doomed
    cluster = pipe.cluster
    victim = cluster.ranks[rank]
    pieces: list[Piece] = []

    with pytest.raises(RankLostError) as error:
        read(pipe, pieces, 4, lambda: os.kill(victim.pid, signal.SIGKILL))

    layers = ["layers 0–14", "layers 15–29"][rank]
    assert error.value.problem.startswith(f"Rank {rank} ({victim.host}, ")
    assert layers in error.value.problem
    assert f"its process {victim.pid} ended" in error.value.problem
    assert error.value.fix == "Type: %mlx_cluster restart"
    assert last_of(pipe).state == "failed"
    assert len(last_of(pipe).token_ids) >= 4
    assert last_of(pipe).text == "".join(piece.text for piece in pieces)
    assert agree(last_of(pipe).text, story)
    with pytest.raises(ClusterError):
        pipe.generate(FRANCE)

    cluster.restart()

    again = cluster.load("smollm2")
    assert current.pipe is again
    assert is_right(again)
