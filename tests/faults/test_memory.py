"""Memory stays flat on every rank and in the kernel; the judge of it can say no."""

from pathlib import Path

import pytest

from mlx_nb.client.cluster import Cluster
from tests.faults import memory


def test_the_judge_sees_growth_after_the_warm_up_only() -> None:
    samples = [(500, [50, 90]), (1000, [100, 100]), (1500, [101, 103]), (2000, [100, 101])]

    assert memory.growth(samples, 1000) == pytest.approx([0.01, 0.03])


@pytest.mark.soak
@pytest.mark.cluster
def test_five_thousand_tokens_leave_memory_flat(cluster2: Cluster, tmp_path: Path) -> None:
    samples = list(memory.generation(cluster2, tmp_path / "model"))

    assert max(memory.growth(samples, memory.WARM_TOKENS)) <= memory.ALLOWED, samples


@pytest.mark.soak
@pytest.mark.cluster
def test_two_hundred_loads_leave_memory_flat(cluster2: Cluster, tmp_path: Path) -> None:
    samples = list(memory.cycles(cluster2, tmp_path / "model"))

    assert max(memory.growth(samples, memory.WARM_CYCLES)) <= memory.ALLOWED, samples
