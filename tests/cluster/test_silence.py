"""A rank that falls silent, and one whose forward pass raises: both are named, and the cluster goes on."""

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import RankSilentError, RunError

pytestmark = [pytest.mark.cluster]

QUESTION = "What is the capital of France?"
STORY = "Once upon a time there was a little robot, and"  # it goes on for thousands of tokens
ANSWER = "The capital of France is Paris."


@pytest.fixture
def pipe(cluster2: Cluster) -> Iterator[Pipe]:
    loaded = cluster2.load("smollm2")
    yield loaded
    loaded.unload()


@pytest.mark.parametrize("after_s", [0.3, 2.0])
def test_a_stopped_rank_is_named_and_answers_again_once_it_goes_on(pipe: Pipe, after_s: float) -> None:
    pid = pipe.cluster.ranks[1].pid
    timer = threading.Timer(after_s, os.kill, (pid, signal.SIGSTOP))
    timer.start()
    try:
        with pytest.raises(
            RankSilentError, match=r"Rank 1 \(layers 15–29\) has been silent for 10 s, at token \d+"
        ):
            pipe.generate(STORY, raw=True, max_tokens=4000)
    finally:
        timer.cancel()
        os.kill(pid, signal.SIGCONT)

    assert pipe.last is not None
    assert pipe.last.state == "failed"
    assert pipe.generate(QUESTION, max_tokens=10).text == ANSWER


@pytest.mark.parametrize(("rank", "layer"), [(0, 3), (1, 20)])
def test_a_forward_pass_that_raises_names_its_rank_and_not_an_echo(pipe: Pipe, rank: int, layer: int) -> None:
    attention = f"model.model.layers[{layer}].self_attn"
    pipe.cluster[rank].execute(f"heads, {attention}.n_heads = {attention}.n_heads, 7", block=True)
    try:
        with pytest.raises(RunError, match=rf"Rank {rank} \(layers .*\) raised ValueError in prefill"):
            pipe.generate(QUESTION)
        with pytest.raises(RunError, match=rf"Rank {rank} \(layers .*\) raised ValueError in prefill"):
            pipe.debug(QUESTION).run()
    finally:
        pipe.cluster[rank].execute(f"{attention}.n_heads = heads", block=True)

    assert pipe.generate(QUESTION, max_tokens=10).text == ANSWER
