"""A sharded model from a hub of our own: each rank fetches the files that hold its layers, and no others."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.shared.errors import MlxNbError
from tests.cluster.conftest import loaded
from tests.cluster.reference import IDS
from tests.hub import COMMIT, Hub, serving
from tests.tiny import make_tiny, store_by_layers

pytestmark = [pytest.mark.cluster]

FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five layers in three files: 0 and 1, 2 and 3, 4."""
    folder = make_tiny("llama_untied", tmp_path_factory.mktemp("hub") / "tiny")
    store_by_layers(folder)
    return folder


@pytest.fixture
def hub(model: Path) -> Iterator[Hub]:
    with serving(Hub()) as running:
        running.add(model)
        yield running


@pytest.fixture
def cluster(hub: Hub, tmp_path: Path, alone: None, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """Two ranks that know this hub only; they have not loaded anything, so the hub's library asks again."""
    for name, value in hub.environment(tmp_path / "shared").items():
        monkeypatch.setenv(name, value)
    started = Cluster.start(ranks=2)
    assert current.cluster is started
    return started


def give_own_caches(cluster: Cluster, folder: Path) -> list[Path]:
    """A download cache for each rank, as on two hosts; before its first load."""
    for rank in range(2):
        cluster[rank].execute(f"import os; os.environ['HF_HOME'] = {str(folder / f'host {rank}')!r}")
    snapshot = Path("hub", "models--org--tiny", "snapshots", COMMIT)
    return [folder / f"host {rank}" / snapshot for rank in range(2)]


def weights(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.safetensors"))


def test_each_host_fetches_the_files_of_its_layers(
    cluster: Cluster, hub: Hub, model: Path, tmp_path: Path
) -> None:
    folders = give_own_caches(cluster, tmp_path)
    with loaded(cluster, model, split=[2, 3]) as pipe:
        wanted = pipe.generate(IDS, max_tokens=8).token_ids

    with loaded(cluster, "org/tiny", split=[2, 3]) as pipe:
        assert [weights(folder) for folder in folders] == [[FIRST], [SECOND, THIRD]]
        assert hub.weights_sent == {name: len(hub.files[name]) for name in (FIRST, SECOND, THIRD)}
        assert pipe.path == str(folders[0])
        assert pipe.generate(IDS, max_tokens=8, prefill_step_size=8).token_ids == wanted

    # Another cut: rank 0 now needs one more file, and asks for that alone.
    hub.sent.clear()
    with loaded(cluster, "org/tiny", split=[3, 2]) as pipe:
        assert [weights(folder) for folder in folders] == [[FIRST, SECOND], [SECOND, THIRD]]
        assert hub.weights_sent == {SECOND: len(hub.files[SECOND])}
        assert pipe.generate(IDS, max_tokens=8).token_ids == wanted

    # What is here is taken as it is; what is not is named, and says whose it is.
    hub.asked.clear()
    with loaded(cluster, "org/tiny", split=[2, 3]):
        assert hub.asked == []
    hub.status = 418
    with pytest.raises(MlxNbError) as caught:
        cluster.load("org/tiny", split=[1, 4])
    assert re.fullmatch(
        rf"Rank 1 \(.*\): org/tiny is not whole here: {FIRST} is missing, "
        r"and Hugging Face answered with an error \(HTTP 418\)\.",
        caught.value.problem,
    )
    assert f"copy {FIRST} into {folders[1]}, or type:" in caught.value.fix
    (folders[1] / FIRST).write_bytes(hub.files[FIRST])  # as it says
    with loaded(cluster, "org/tiny", split=[1, 4]) as pipe:
        assert pipe.generate(IDS, max_tokens=8).token_ids == wanted


def test_ranks_on_one_host_share_what_was_fetched(cluster: Cluster, hub: Hub) -> None:
    with loaded(cluster, "org/tiny", split=[3, 2]):  # both need the second file
        assert hub.weights_sent == {name: len(hub.files[name]) for name in (FIRST, SECOND, THIRD)}
        assert {name: len(starts) for name, starts in hub.ranges.items()} == dict.fromkeys(hub.files, 1)
