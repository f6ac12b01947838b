"""Backwards on real ranks: over shared memory and TCP, after breakpoints and Ctrl-C."""

import numpy as np
import pytest

from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from tests.ctrl_c import ctrl_c

pytestmark = [pytest.mark.cluster]

PROMPT = "What is the capital of France?"
TOKENS = 5


def keys_of(pipe: Pipe) -> list[bytes]:
    """Some of the KV caches' keys of the run that ended last."""
    kv = pipe.kv_cache()
    return [kv[layer].keys[0, 0].tobytes() for layer in (0, 14, 15, 29)]


def test_what_follows_is_bit_equal_to_the_first_time(pipe: Pipe) -> None:
    with pipe.debug(PROMPT, max_tokens=TOKENS, temp=0.8, seed=3) as dbg:
        start, inside = dbg.position, dbg.until("layers.20.mlp.output")
        value = dbg.value
        dbg.token(2)
        later = dbg.until("layers.16.output")
        dbg.run()
        tokens, text, keys = dbg.gen.token_ids, dbg.gen.text, keys_of(pipe)
        for place in (later, inside, start):
            assert dbg.back(place).where == place.where
            if place is inside:
                assert np.array_equal(dbg.value, value)
            other = pipe.generate("Name three colours.", max_tokens=2)
            assert other.state == "finished"
            dbg.run()
            assert (dbg.gen.token_ids, dbg.gen.text) == (tokens, text)
            assert keys_of(pipe) == keys


def test_back_from_a_breakpoint_in_a_free_run(pipe: Pipe) -> None:
    free = pipe.generate(PROMPT, max_tokens=TOKENS).token_ids
    pipe.break_at("layers.20.mlp.output", token=39)
    gen = pipe.generate(PROMPT, max_tokens=TOKENS)
    dbg = current.dbg
    last = pipe.num_ranks - 1

    assert dbg.back("layer").where == f"decode 39:40 · rank {last} · model.layers.19.output"
    assert dbg.back("token", 2).where == "decode 38:39 · rank 0 · model.embed_tokens.input"
    assert dbg.run().where == f"decode 39:40 · rank {last} · model.layers.20.mlp.output"
    pipe.breakpoints.delete()
    dbg.run()
    assert gen.token_ids == free


# Ctrl-C may fall into psutil's reading of a file, which Python then closes with a warning.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_back_from_where_ctrl_c_stood_still(pipe: Pipe) -> None:
    with pipe.debug("Tell me a long story.", max_tokens=2000) as dbg:
        start = dbg.token(2)
        with ctrl_c(1.0):
            dbg.run()
        assert not dbg.done
        here, tokens = dbg.position, dbg.gen.token_ids
        assert dbg.back("token").index in (here.index, here.index - 1)
        assert dbg.back(start).where == start.where
        dbg.until(token=here.start)
        assert dbg.gen.token_ids == tokens
    assert "Paris" in pipe.generate(PROMPT, max_tokens=8).text


def test_a_fork_runs_beside_its_origin(pipe: Pipe) -> None:
    with pipe.debug(PROMPT, max_tokens=TOKENS) as dbg:
        here = dbg.until("layers.16.output")
        with dbg.fork() as other:
            assert other.position.where == here.where
            other.token(2)
            assert dbg.position is here
            dbg.run()
            other.run()
            assert other.gen.token_ids == dbg.gen.token_ids
