"""An exception on a real rank in a free run: it lies there, every rank answers, and the next run is right."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.errors import RunError
from tests.cluster.conftest import loaded

pytestmark = [pytest.mark.cluster]

PROMPT = [7, 3, 44, 90, 12, 8, 61, 5, 23]


@pytest.fixture(params=["cluster2", "tcp3"])
def broken(request: pytest.FixtureRequest, tiny_folders: Path) -> Iterator[tuple[Pipe, list[int]]]:
    """A tiny pipe whose last rank's first query projection takes too little; and the tokens it gave before."""
    cluster: Cluster = request.getfixturevalue(request.param)
    with loaded(cluster, tiny_folders / "qwen3") as pipe:
        wanted = pipe.generate(PROMPT, max_tokens=4).token_ids
        there = cluster[pipe.num_ranks - 1]
        there.execute(
            "import mlx.core as mx\n"
            "layer = model.layers[stage.shard.layers.start].self_attn.q_proj\n"
            "good = layer.weight\n"
            "layer.weight = mx.zeros((64, 48))",
            block=True,
        )
        yield pipe, wanted
        if current.dbg is not None:
            current.dbg.close()


def test_a_free_runs_exception_can_be_stood_at(broken: tuple[Pipe, list[int]]) -> None:
    pipe, wanted = broken
    last = pipe.num_ranks - 1
    with pytest.raises(RunError) as error:
        pipe.generate(PROMPT, max_tokens=4)
    assert str(error.value).startswith(f"Rank {last} (layers ")
    assert "self['weight'].T is [48, 64]; config.json: hidden_size = 64" in str(error.value)

    dbg = pipe.pm()

    start = pipe.plan.shards[last].layers.start
    assert dbg.position.site == f"model.layers.{start}.self_attn.q_proj.input"
    assert dbg.value.shape == (1, 9, 64)
    assert [kv.text for kv in dbg.position.ranks] == ["9 written"] * last + ["9 pending"]
    assert dbg.p("len(cache)", rank=0).text == "5"
    assert next(entry.offset for entry in pipe.kv_cache()) == 9
    pipe.cluster[last].execute("layer.weight = good", block=True)
    assert pipe.generate(PROMPT, max_tokens=4).token_ids == wanted
    assert dbg.value.shape == (1, 9, 64)  # it lies there still


def test_a_stepped_runs_exception_can_be_stood_at_too(broken: tuple[Pipe, list[int]]) -> None:
    pipe, wanted = broken
    with pipe.debug(PROMPT, max_tokens=4) as dbg:
        for stride in (dbg.layer, dbg.rank):
            stride()
        with pytest.raises(RunError, match=r"pipe\.pm\(\)"):
            dbg.run()
    assert pipe.pm().position.rank == pipe.num_ranks - 1
    pipe.cluster[pipe.num_ranks - 1].execute("layer.weight = good", block=True)
    assert pipe.generate(PROMPT, max_tokens=4).token_ids == wanted
