"""What a load costs a rank, on real ranks: bytes read, peak memory, and what unloading gives back."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.engine.resolve import resolve_model  # before mlx: it loads OpenBLAS
from mlx_nb.shared.errors import WeightsError
from tests.cluster.conftest import loaded
from tests.costs import (
    MLX_EXTRA_BYTES,
    MOST_HELD,
    MOST_READ,
    PROCESS_EXTRA_BYTES,
    disk_bytes,
    make_wide,
)
from tests.engine.loopback import PROMPT
from tests.tiny import make_tiny

pytestmark = [
    pytest.mark.cluster,
    pytest.mark.skipif(sys.platform != "linux", reason="the counts are in Linux's /proc"),
]

# Looks of a rank at itself: bytes read so far, resident memory now and at most, MLX's own count now and at most.
LOOK = """
def _look():
    import gc
    import mlx.core as mx
    from pathlib import Path
    gc.collect()
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    read = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    kib = lambda name: int(status[name].split()[0]) * 1024
    return dict(read=int(read["rchar"]), held=kib("VmRSS"), held_most=kib("VmHWM"),
                mlx=mx.get_active_memory(), mlx_most=mx.get_peak_memory())
_seen = _look()
"""
# Peaks are counted from here on.
RESET = """
def _reset():
    import mlx.core as mx
    from pathlib import Path
    mx.clear_cache()
    mx.reset_peak_memory()
    Path("/proc/self/clear_refs").write_text("5")
_reset()
"""
# The control: what a rank that reads the whole model does.
GREEDY = """
def _greedy(on):
    from mlx.utils import tree_flatten
    from mlx_nb.engine import loading, share
    everything = lambda model, results: dict(tree_flatten(model.parameters()))
    assert hasattr(share, "owned_parameters")  # else the control controls nothing
    share.owned_parameters = everything if on else loading.owned_parameters
_greedy({on})
"""


@dataclass
class Cost:
    """What a load cost one rank, and what it should have read and held."""

    read: int
    held_most: int
    mlx_most: int
    disk: int
    memory: int

    @property
    def faults(self) -> list[str]:
        """Which bounds it breaks."""
        most = MOST_HELD * self.memory
        broken = {
            "read": not 1.0 <= self.read / self.disk <= MOST_READ,
            "mlx": self.mlx_most > most + MLX_EXTRA_BYTES,
            "process": self.held_most > most + PROCESS_EXTRA_BYTES,
        }
        return [name for name, wrong in broken.items() if wrong]


def look(cluster: Cluster) -> list[dict[str, int]]:
    cluster.client[:].execute(LOOK, block=True)
    return [cluster[rank]["_seen"] for rank in range(len(cluster))]


@pytest.fixture(scope="module", autouse=True)
def _imported(cluster2: Cluster, tmp_path_factory: pytest.TempPathFactory) -> None:
    """A first load imports code, which is read and held as well; a tokenizer's too."""
    with loaded(cluster2, make_tiny("llama", tmp_path_factory.mktemp("first") / "model", bits=4)) as pipe:
        pipe.generate(list(PROMPT), max_tokens=2)
    with loaded(cluster2, "smollm2"):
        pass


@contextmanager
def costed(cluster: Cluster, model: str | Path, **wishes: Any) -> Iterator[tuple[Pipe, list[Cost]]]:
    """A loaded pipe, and what loading it cost each rank."""
    cluster.client[:].execute(RESET, block=True)
    before = look(cluster)
    with loaded(cluster, model, **wishes) as pipe:
        after = look(cluster)
        costs = []
        for rank, (then, now) in enumerate(zip(before, after, strict=True)):
            shard = pipe.shards[rank]
            costs.append(
                Cost(
                    read=now["read"] - then["read"],
                    held_most=now["held_most"] - then["held"],
                    mlx_most=now["mlx_most"] - then["mlx"],
                    disk=disk_bytes(Path(pipe.path), range(*shard.layers), shard.num_layers),
                    memory=shard.weight_bytes,
                )
            )
        yield pipe, costs


CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "bfloat16 as stored": ("llama_untied", {"dtype": "bfloat16", "num_hidden_layers": 8}, "native"),
    "bfloat16 to float32": ("llama", {"dtype": "bfloat16"}, None),
    "4 bits to float32": ("llama", {"bits": 4}, None),
    "mixed bits to float32, one file": ("llama_untied", {"bits": "mixed", "layout": "single"}, None),
}


@pytest.mark.parametrize("case", CASES)
def test_a_rank_reads_and_holds_its_shard_and_little_more(
    cluster2: Cluster, case: str, tmp_path: Path
) -> None:
    kind, wishes, dtype = CASES[case]
    folder = make_wide(kind, tmp_path / "wide", **wishes)

    with costed(cluster2, folder, split=[3, 5], dtype=dtype) as (_, costs):
        assert [cost.faults for cost in costs] == [[], []], costs


def test_smollm2_with_its_tokenizer(cluster2: Cluster) -> None:
    """540 MB over two ranks; its embedding is tied, so both ends read it."""
    with costed(cluster2, "smollm2") as (_, costs):
        assert [cost.faults for cost in costs] == [[], []], costs
        whole = disk_bytes(Path(resolve_model("smollm2")), range(30), 30)
        assert all(cost.disk < 0.65 * whole for cost in costs)


def test_ranks_that_read_everything_are_caught(cluster2: Cluster, tmp_path: Path) -> None:
    """The control: every bound is broken by the rank with fewer layers, and the other's count of bytes."""
    folder = make_wide("llama", tmp_path / "wide", num_hidden_layers=24)
    cluster2.client[:].execute(GREEDY.format(on=True), block=True)
    try:
        with costed(cluster2, folder, split=[4, 20]) as (_, costs):
            # What it is due to hold is what the plan says, not what it took.
            costs[0].memory = costs[0].disk
            assert costs[0].faults == ["read", "mlx", "process"]
            assert "read" in costs[1].faults
    finally:
        cluster2.client[:].execute(GREEDY.format(on=False), block=True)
    with costed(cluster2, folder, split=[4, 20]) as (_, costs):
        assert [cost.faults for cost in costs] == [[], []], costs


def test_unloading_gives_the_memory_back(cluster2: Cluster, tmp_path: Path) -> None:
    folder = make_wide("llama", tmp_path / "wide")
    before = look(cluster2)
    for _ in range(2):
        pipe = cluster2.load(str(folder))
        pipe.generate(list(PROMPT), max_tokens=4)
        with pipe.debug(list(PROMPT), max_tokens=4) as dbg:
            dbg.layer(2)
        held = look(cluster2)
        pipe.unload()
        after = look(cluster2)

        for rank, (first, then, now) in enumerate(zip(before, held, after, strict=True)):
            size = pipe.shards[rank].weight_bytes
            assert then["mlx"] - first["mlx"] >= size  # the control: it was there
            assert now["mlx"] - first["mlx"] < 2**20
            assert then["held"] - now["held"] > 0.9 * size


def test_a_load_that_fails_holds_nothing(cluster2: Cluster, tmp_path: Path) -> None:
    """Rank 0 had loaded its share when rank 1 refused; both forget it."""
    folder = make_wide("llama", tmp_path / "wide", "single")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes().replace(b".layers.7.mlp.up_proj", b".layers.7.mlp.up_prox", 1))
    before = look(cluster2)

    with pytest.raises(WeightsError, match=r"tensor model\.layers\.7\.mlp\.up_prox\.weight has no place"):
        cluster2.load(str(folder))

    after = look(cluster2)
    assert all(now["mlx"] - then["mlx"] < 2**20 for then, now in zip(before, after, strict=True))


def test_two_pipes_hold_what_each_of_them_holds(cluster2: Cluster, tmp_path: Path) -> None:
    """Side by side they answer in turn, and the one that stays is not hurt when the other goes."""
    one, two = make_wide("llama", tmp_path / "one"), make_wide("llama", tmp_path / "two", seed=4)
    with loaded(cluster2, one) as first:
        alone = first.generate(list(PROMPT), max_tokens=6).token_ids
        before = look(cluster2)
        with loaded(cluster2, two) as second:
            other = second.generate(list(PROMPT), max_tokens=6).token_ids
            assert other != alone
            assert first.generate(list(PROMPT), max_tokens=6).token_ids == alone
            assert second.generate(list(PROMPT), max_tokens=6).token_ids == other
        assert first.generate(list(PROMPT), max_tokens=6).token_ids == alone
        after = look(cluster2)
        assert all(now["mlx"] - then["mlx"] < 2**20 for then, now in zip(before, after, strict=True))
        cluster2.client[:].execute("_offered = stage is not None and stage.name", block=True)
        assert cluster2[0]["_offered"] == str(one)  # what %%px sees is the pipe that is left
