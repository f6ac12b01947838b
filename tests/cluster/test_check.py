"""The check-up on real ranks."""

from pathlib import Path

import pytest

from mlx_nb.client.pipe import Pipe
from tests.cluster.conftest import loaded

pytestmark = [pytest.mark.cluster]


@pytest.mark.parametrize("which", [pytest.param("pipe2", marks=pytest.mark.soak), "tcp_pipe3"])
def test_nothing_is_found_on_smollm2(which: str, request: pytest.FixtureRequest) -> None:
    pipe: Pipe = request.getfixturevalue(which)
    pipe.generate("Hello", max_tokens=2)
    last = pipe.last

    report = pipe.check()

    assert report.ok, report
    assert report.ranks == pipe.num_ranks
    assert pipe.last is last
    assert "hops came as they were sent" in str(report)


@pytest.mark.parametrize("kind", ["gemma3", "rwkv7"])
def test_nothing_is_found_on_models_of_other_kinds(kind: str, cluster3: object, tiny_folders: Path) -> None:
    with loaded(cluster3, tiny_folders / kind) as pipe:  # type: ignore[arg-type]
        assert pipe.check().ok
        assert pipe.check(list(range(30)), max_tokens=4, prefill_step_size=11).ok  # rings have turned
