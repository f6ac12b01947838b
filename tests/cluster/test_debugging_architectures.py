"""Strides, backwards and changed values on real ranks, over every kind of KV cache and of hop."""

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import numpy as np  # isort: skip
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.shared.position import Position
from tests.cluster.conftest import loaded
from tests.tiny import CONFIGS, make_tiny

pytestmark = [pytest.mark.cluster]

KINDS = ["llama", "qwen3_moe", "gemma3", "gemma4_text", "mamba2", "rwkv7", "deepseek_v3"]
PROMPT = [(place * 7) % 101 for place in range(21)]
OPTIONS = {"max_tokens": 5, "prefill_step_size": 8}


def same(one: Position, other: Position) -> bool:
    """Whether two stops are one place with the same numbers."""
    return (one.where, one.tick, one.args, one.kv) == (other.where, other.tick, other.args, other.kv)


@pytest.fixture(params=["cluster2", pytest.param("tcp3", marks=pytest.mark.soak)])
def cluster(request: pytest.FixtureRequest) -> Cluster:
    found: Cluster = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_is_stepped_taken_back_and_changed(
    cluster: Cluster, kind: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = make_tiny(kind, tmp_path_factory.mktemp(kind) / kind)
    with loaded(cluster, folder) as pipe:
        free = pipe.generate(PROMPT, **OPTIONS).token_ids
        last = CONFIGS[kind]["num_hidden_layers"] - 1
        with pipe.debug(PROMPT, **OPTIONS) as dbg:
            # In the second chunk, where masks of several tokens over cached ones are at work.
            places = [dbg.until("layers.1.output", token=8)]
            for stride in (
                "into",
                "layer",
                "over",
                "out",
                "rank",
                "layer",
                "token",
                "token",
                "rank",
                "layer",
            ):
                places.append(getattr(dbg, stride)())
            assert [(one.start, one.rank) for one in places] == sorted(
                (one.start, one.rank) for one in places
            )
            assert {one.rank for one in places} == set(range(pipe.num_ranks)) or pipe.num_ranks == 3
            assert {one.phase for one in places} == {"prefill", "decode"}
            for place in (places[9], places[5], places[0]):
                assert same(dbg.back(place), place)
            before = dbg.value
            reached = dbg.until(f"layers.{last}.output", token=8)
            then = dbg.value
            dbg.back(places[0])
            dbg.value = before * 2
            assert np.array_equal(dbg.value, before * 2)
            dbg.until(f"layers.{last}.output", token=8)
            assert not np.array_equal(dbg.value, then)  # on the last rank, from a change on the first
            dbg.back(places[0])
            assert same(dbg.until(f"layers.{last}.output", token=8), reached)
            dbg.run()
            assert dbg.gen.token_ids == free
        assert pipe.generate(PROMPT, **OPTIONS).token_ids == free
