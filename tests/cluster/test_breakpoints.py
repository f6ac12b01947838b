"""Breakpoints on real ranks: in steps and in free runs, over two and three ranks, TCP, and with Ctrl-C."""

import pytest

from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from tests.ctrl_c import ctrl_c

pytestmark = [pytest.mark.cluster]

PROMPT = "What is the capital of France?"
TOKENS = 5


def test_a_free_run_stands_still_and_the_stepper_finishes_it(pipe: Pipe) -> None:
    free = pipe.generate(PROMPT, max_tokens=TOKENS)
    one = pipe.break_at("layers.20.mlp.output", token=39)

    gen = pipe.generate(PROMPT, max_tokens=TOKENS)

    dbg = current.dbg
    assert gen.state == "stopped"
    assert gen.token_ids == free.token_ids[:3]
    last = pipe.num_ranks - 1
    assert dbg.position.where == f"decode 39:40 · rank {last} · model.layers.20.mlp.output"
    assert (dbg.gen is gen, pipe.last is gen, one.hits) == (True, True, 1)
    assert dbg.value.shape == (1, 1, 576)
    other = pipe.generate("Name three colours.", max_tokens=3)  # in between: it meets no such token
    assert other.state == "finished"
    assert dbg.position.where.startswith("decode 39:40")

    dbg.run()

    assert (gen.state, gen.token_ids, gen.text) == ("finished", free.token_ids, free.text)
    assert pipe.generate(PROMPT, max_tokens=TOKENS).state == "stopped"
    one.delete()
    assert pipe.generate(PROMPT, max_tokens=TOKENS).token_ids == free.token_ids


def test_chunks_do_not_overlap_while_a_breakpoint_is_armed(pipe: Pipe) -> None:
    pipe.break_at("layers.0.output", ignore=1)

    pipe.generate(PROMPT, max_tokens=2, prefill_step_size=10)

    dbg = current.dbg
    assert dbg.position.where == "prefill 10:20 · rank 0 · model.layers.0.output"
    assert {kv.text for kv in dbg.position.ranks[1:]} == {"10 written + 10 pending"}


def test_a_run_that_meets_none_ends_as_a_free_one(pipe: Pipe) -> None:
    free = pipe.generate(PROMPT, max_tokens=TOKENS)
    before = current.dbg
    one = pipe.break_at("*", when="nonfinite")

    pieces = list(pipe.stream(PROMPT, max_tokens=TOKENS))

    assert [piece.token for piece in pieces] == free.token_ids
    assert "".join(piece.text for piece in pieces) == free.text
    assert pieces[-1].finish_reason == "length"
    assert pipe.last is not None
    assert (pipe.last.state, one.hits, current.dbg) == ("finished", 0, before)


def test_a_threshold_is_met_on_the_rank_that_has_it(pipe: Pipe) -> None:
    pipe.break_at("*", when="absmax > 100", rank=1)

    with pipe.debug(PROMPT, max_tokens=2) as dbg:
        position = dbg.run()

        assert position.rank == 1
        assert abs(dbg.value).max() > 100
        assert "hit 1: absmax" in position.about


# Ctrl-C may fall into psutil's reading of a file, which Python then closes with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_ctrl_c_in_a_run_with_breakpoints_ends_it_as_an_interrupted_one(pipe: Pipe) -> None:
    pipe.break_at("*", when="nonfinite")
    with ctrl_c(1.5), pytest.raises(KeyboardInterrupt):
        pipe.generate("Tell me a long story.", max_tokens=2000)

    assert pipe.last is not None
    assert pipe.last.state == "interrupted"
    pipe.breakpoints.delete()
    assert "Paris" in pipe.generate(PROMPT, max_tokens=8).text
