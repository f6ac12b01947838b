"""Patches and changed values on real ranks: in free runs and in steps, over shared memory and TCP."""

import numpy as np
import pytest

from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import ValueShapeError

pytestmark = [pytest.mark.cluster]

PROMPT = "What is the capital of France?"


@pytest.mark.parametrize("layer", [pytest.param(2, marks=pytest.mark.soak), 14, 29])
def test_a_patch_holds_in_free_runs_on_whichever_rank_owns_the_site(pipe: Pipe, layer: int) -> None:
    plain = pipe.generate(PROMPT, max_tokens=4).token_ids
    before = pipe.logits(PROMPT)
    factor = 0.5
    with pipe.patch(f"layers.{layer}.resid_post", lambda x: x):
        assert pipe.generate(PROMPT, max_tokens=4).token_ids == plain
        assert np.array_equal(pipe.logits(PROMPT), before)
    with pipe.patch(f"layers.{layer}.resid_post", lambda x: mx.flip(x, -1) * factor):  # type: ignore[name-defined]  # noqa: F821
        changed = pipe.generate(PROMPT, max_tokens=4).token_ids
        assert changed != plain
        assert pipe.start(PROMPT, max_tokens=4).wait(60).token_ids == changed  # in the background too
        with pipe.debug(PROMPT, max_tokens=2) as dbg:
            dbg.until(f"layers.{layer}.output")
            flipped = dbg.value
    assert pipe.generate(PROMPT, max_tokens=4).token_ids == plain
    assert pipe.last is not None
    assert pipe.last.timeline is not None  # no hook is left behind
    with pipe.debug(PROMPT, max_tokens=2) as dbg:
        dbg.until(f"layers.{layer}.output")
        assert np.array_equal(np.flip(dbg.value, -1) * np.float32(factor), flipped)


def test_a_patch_that_does_not_fit_is_one_error_and_the_next_run_is_right(pipe: Pipe) -> None:
    with pipe.patch("layers.20.output", np.zeros(3)), pytest.raises(ValueShapeError, match=r"your value is \[3\]"):  # fmt: skip
        pipe.generate(PROMPT, max_tokens=4)
    assert "Paris" in pipe.generate(PROMPT, max_tokens=8).text


def test_a_value_and_a_token_put_in_at_a_stop(pipe: Pipe) -> None:
    with pipe.debug(PROMPT, max_tokens=4) as dbg:
        dbg.until("layers.20.output")
        before = dbg.value
        dbg.value = before
        lyon = pipe.encode(" Lyon", raw=True)[0]
        dbg.next_token = lyon
        dbg.run()
        assert dbg.gen.token_ids[0] == lyon
        assert "Lyon" in dbg.gen.text
