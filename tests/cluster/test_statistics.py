"""Statistics of every layer and token on real ranks, against the values themselves; and their view."""

from pathlib import Path

import numpy as np
import pytest

import mlx_nb
from mlx_nb.client.live_view import live_views
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import OptionError

pytestmark = [pytest.mark.cluster]

PROMPT = "What is the capital of France?"


def test_they_are_those_of_the_values_on_the_ranks_and_in_a_file(pipe: Pipe, tmp_path: Path) -> None:
    trace = pipe.trace(PROMPT, max_tokens=3, prefill_step_size=16)
    found = trace.statistics()
    values = trace["layers.*.resid_post"].numpy()[:, 0].astype(np.float64)

    assert found.shape == values.shape[:2]
    assert found.ranks == tuple(shard.rank for shard in pipe.plan.shards for _ in shard.layers)
    np.testing.assert_allclose(found["rms"], np.sqrt((values**2).mean(-1)), rtol=1e-5)
    np.testing.assert_allclose(found["absmax"], np.abs(values).max(-1), rtol=1e-6)
    np.testing.assert_allclose(found["std"], values.std(-1), rtol=1e-4)
    assert not found["nonfinite"].any()
    opened = mlx_nb.open_trace(trace.save(tmp_path / "trace")).statistics()
    for name in ("rms", "absmax", "std"):
        np.testing.assert_allclose(opened[name], found[name], rtol=1e-5)
    assert repr(opened) == repr(found)
    with pytest.raises(OptionError, match="no statistic 'median'"):
        found["median"]


def test_a_value_that_is_not_finite_is_counted_where_it_is(pipe2: Pipe) -> None:
    with pipe2.patch("layers.20.mlp_out", float("nan"), tokens=5):
        found = pipe2.trace(PROMPT).statistics()

    assert np.argwhere(found["nonfinite"])[0].tolist() == [20, 5]
    assert "have NaN or Inf" in found.sentence("rms")


def test_the_view_shows_a_prompt_the_last_run_or_a_trace(pipe2: Pipe) -> None:
    before = len(live_views)
    gen = pipe2.generate(PROMPT, max_tokens=4)
    pipe2.show("stats")
    pipe2.show("stats", PROMPT, stat="absmax", sites="layers.*.mlp_out")
    pipe2.show("stats", pipe2.trace(PROMPT))

    last, prompt, trace = (one.view.state for one in live_views[before:])
    assert last["stop"] == len(gen.prompt_ids) + len(gen.token_ids) - 1
    assert last["tokens"][-3] == "The"
    assert prompt["chosen"] == "absmax"
    assert prompt["note"].startswith("layers.*.mlp_out · 30 × 37 tokens")
    assert trace["stop"] == 37
    for one in live_views[before:]:
        one.freeze()
    with pytest.raises(OptionError, match="no statistic"):
        pipe2.show("stats", PROMPT, stat="mode")
