"""A long prompt recorded at every layer: what the ranks hold stays in their budget, and the kernel holds nothing."""

import numpy as np
import psutil
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.trace import Trace
from mlx_nb.shared.errors import TraceError, TransferTooLargeError
from tests.cluster.conftest import loaded

pytestmark = [pytest.mark.cluster, pytest.mark.soak]

MIB = 1024 * 1024
TOKENS, LAYERS, WIDTH = 4096, 30, 576
LAYER_BYTES = TOKENS * WIDTH * 4
IDS = [1000 + (place * 7919) % 30_000 for place in range(TOKENS)]


def active_bytes(cluster: Cluster) -> list[int]:
    """What MLX holds on each rank."""
    return [
        cluster[rank].apply_sync(eval, "__import__('mlx.core').core.get_active_memory()")
        for rank in range(len(cluster))
    ]


def held_bytes(trace: Trace, ranks: int) -> list[int]:
    """What a trace still has on each rank."""
    found = [0] * ranks
    for record in trace.records():
        found[record.rank] += sum(one.held * 4 * int(np.prod(one.shape)) for one in record.passes)
    return found


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("which", "split"), [("cluster2", [15, 15]), ("tcp3", [7, 12, 11])])
def test_4096_tokens_at_every_layer_stay_in_the_budget(
    which: str, split: list[int], request: pytest.FixtureRequest
) -> None:
    cluster: Cluster = request.getfixturevalue(which)
    with loaded(cluster, "smollm2", split=split) as pipe:
        pipe.generate(IDS, max_tokens=1)
        before, kernel = active_bytes(cluster), psutil.Process().memory_info().rss

        whole = pipe.trace(IDS, sites="layers.*.resid_post")

        held = held_bytes(whole, len(split))
        assert held == [layers * LAYER_BYTES for layers in split]  # within 512 MiB, nothing had to go
        grown = [after - start for after, start in zip(active_bytes(cluster), before, strict=True)]
        # What the last run's KV caches take besides is the same as before; rounding buffers are small.
        for size, count in zip(grown, held, strict=True):
            assert size <= count + 32 * MIB
        value = whole["layers.29.resid_post"][0, -3:]
        assert value.shape == (3, WIDTH)
        with pytest.raises(TransferTooLargeError, match=r"\["):
            whole["layers.*.resid_post"].numpy()
        assert psutil.Process().memory_info().rss - kernel < 64 * MIB
        whole.drop()

        budget = 16 * MIB
        small = pipe.trace(IDS, sites="layers.*.resid_post", budget_bytes=budget)

        assert all(0 < size <= budget for size in held_bytes(small, len(split)))
        grown = [after - start for after, start in zip(active_bytes(cluster), before, strict=True)]
        assert all(size <= budget + 32 * MIB for size in grown)
        # The control: without the budget each rank had more than that.
        assert min(held) > budget + 32 * MIB
        np.testing.assert_array_equal(small["layers.29.resid_post"][0, -3:], value)  # the latest are there
        with pytest.raises(TraceError, match=r"no longer on rank 0.*budget_bytes"):
            small["layers.0.resid_post"][0, :3]
        small.drop()
