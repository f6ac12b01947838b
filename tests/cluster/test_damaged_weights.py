"""Damaged files on real ranks: file, tensor and rank are named, nobody hangs, and the cluster lives on.

Each rank has a home folder of its own here, as on several hosts, so that one rank's copy can be damaged alone.
"""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.engine.weights import read_tensors  # before mlx: it loads OpenBLAS
from mlx_nb.shared.errors import ModelNotFoundError, WeightsError
from tests.cluster.conftest import loaded
from tests.engine.loopback import CHUNK, PROMPT
from tests.one_process import OneProcess
from tests.tiny import make_tiny, store

import mlx.core as mx  # isort: skip

pytestmark = [pytest.mark.cluster]

SPLIT = [2, 3]
HOME = """
import os as _os
_before = globals().get("_before") or _os.environ.get("HOME", "")
_os.environ["HOME"] = {home!r} or _before
"""
TENSOR = "model.layers.3.mlp.up_proj.weight"


@pytest.fixture
def homes(cluster2: Cluster, tmp_path: Path) -> Iterator[list[Path]]:
    """A home folder for each rank, with a copy of the same model in three files with an index."""
    model = store(make_tiny("llama_untied", tmp_path / "model"), "sharded, index")
    folders = []
    for rank in range(2):
        shutil.copytree(model, tmp_path / f"home{rank}" / "model")
        cluster2.client[cluster2.remote.table[rank].engine].execute(
            HOME.format(home=str(tmp_path / f"home{rank}")), block=True
        )
        folders.append(tmp_path / f"home{rank}" / "model")
    yield folders
    cluster2.client[:].execute(HOME.format(home=""), block=True)


def file_of(folder: Path, tensor: str) -> Path:
    return folder / read_tensors(folder)[tensor].file


def edit(folder: Path, change: Callable[[str, mx.array], mx.array | None]) -> None:
    """Pass every tensor of a folder through a function; None takes it away."""
    for path in sorted(folder.glob("model*.safetensors")):
        tensors = mx.load(str(path))
        new = {name: change(name, value) for name, value in tensors.items()}
        kept = {name: value for name, value in new.items() if value is not None}
        mx.eval(kept)
        mx.save_safetensors(str(path.parent / "new.safetensors"), kept)
        (path.parent / "new.safetensors").replace(path)


def lose_file(folder: Path) -> str:
    path = file_of(folder, TENSOR)
    path.unlink()
    return rf"weight file {path.name} is missing"


def cut_file(folder: Path) -> str:
    path = file_of(folder, TENSOR)
    path.write_bytes(path.read_bytes()[:-5000])
    return rf"{path.name} is truncated: tensor model\.\S+ ends at"


def empty_file(folder: Path) -> str:
    path = file_of(folder, TENSOR)
    path.write_bytes(b"")
    return rf"{path.name} is not a safetensors file"


def spoil_header(folder: Path) -> str:
    path = file_of(folder, TENSOR)
    path.write_bytes(path.read_bytes().replace(b'"shape"', b'"shqpe"'))
    return rf"The header of .*{path.name} cannot be read"


def lose_tensor(folder: Path) -> str:
    name = file_of(folder, TENSOR).name
    edit(folder, lambda tensor, value: None if tensor == TENSOR else value)
    return rf"tensor {TENSOR} is missing from {name}"


def misshape_tensor(folder: Path) -> str:
    name = file_of(folder, TENSOR).name
    edit(folder, lambda tensor, value: value[:, :32] if tensor == TENSOR else value)
    return rf"tensor {TENSOR} \({name}\) does not fit: \[96, 32\] in the file, \[96, 64\] in the model"


def add_tensor(folder: Path) -> str:
    path = folder / "model-00004-of-00004.safetensors"
    mx.save_safetensors(str(path), {"model.layers.9.mlp.up_proj.weight": mx.zeros((2, 2))})
    return r"tensor model\.layers\.9\.mlp\.up_proj\.weight has no place in the model"


FAULTS = [lose_file, cut_file, empty_file, spoil_header, lose_tensor, misshape_tensor, add_tensor]


def refused(cluster: Cluster, told: str) -> None:
    """The load fails with these words, soon; both ranks are free again and hold nothing."""
    before = cluster.remote.call_all("loaded")
    began_s = time.monotonic()

    with pytest.raises(WeightsError, match=told) as error:
        cluster.load("~/model", split=SPLIT)

    assert time.monotonic() - began_s < 10
    assert error.value.fix
    assert [rank.state for rank in cluster.ranks] == ["idle", "idle"]
    assert cluster.remote.call_all("loaded", timeout_s=5) == before


@pytest.mark.parametrize(
    ("fault", "rank"),
    [
        *((fault, 1) for fault in FAULTS),
        (cut_file, 0),
        *(pytest.param(fault, 0, marks=pytest.mark.soak) for fault in FAULTS if fault is not cut_file),
    ],
)
def test_one_ranks_damaged_copy_is_named(
    cluster2: Cluster, homes: list[Path], fault: Callable[[Path], str], rank: int
) -> None:
    told = fault(homes[rank])
    if rank == 0 and fault in (lose_tensor, misshape_tensor):
        with loaded(cluster2, "~/model", split=SPLIT) as pipe:  # it is rank 1 that needs the tensor
            assert len(pipe.generate(list(PROMPT), max_tokens=2).token_ids) == 2
        return

    refused(cluster2, rf"^Rank {rank} \(\S+\): .*{told}")

    shutil.copytree(homes[1 - rank], homes[rank], dirs_exist_ok=True)
    (homes[rank] / "model-00004-of-00004.safetensors").unlink(missing_ok=True)
    with loaded(cluster2, "~/model", split=SPLIT) as pipe:  # the same cluster, once the copy is whole
        assert len(pipe.generate(list(PROMPT), max_tokens=2).token_ids) == 2


def test_both_damaged_alike_is_one_error(cluster2: Cluster, homes: list[Path]) -> None:
    told = {lose_tensor(home) for home in homes}.pop()

    refused(cluster2, rf"^Rank 1 \(\S+\): {told}")


def test_foreign_weights_full_of_nan_change_nothing(cluster2: Cluster, homes: list[Path]) -> None:
    """Each rank's copy holds NaN wherever the other rank's layers are."""
    wanted = OneProcess(homes[0], None, None).logits()

    def mine(tensor: str, rank: int) -> bool:
        layer = int(tensor.split(".")[2]) if ".layers." in tensor else 0 if "embed" in tensor else 4
        return (layer >= SPLIT[0]) == bool(rank)

    for rank, home in enumerate(homes):
        edit(home, lambda name, value, rank=rank: value if mine(name, rank) else value * mx.nan)
    with loaded(cluster2, "~/model", split=SPLIT) as pipe:
        assert np.array_equal(pipe.logits(list(PROMPT), chunk=CHUNK), wanted)

    with loaded(cluster2, "~/model", split=[1, 4]) as pipe:  # the control: layer 1 is now rank 1's
        assert np.isnan(pipe.logits(list(PROMPT), chunk=CHUNK)).all()


def test_a_folder_that_only_one_rank_has(cluster2: Cluster, homes: list[Path]) -> None:
    shutil.rmtree(homes[1])

    with pytest.raises(ModelNotFoundError, match=r"^Rank 1 \(\S+\): There is no folder .*home1/model"):
        cluster2.load("~/model")
    shutil.rmtree(homes[0])
    with pytest.raises(ModelNotFoundError, match=r"^There is no folder .*home0/model"):
        cluster2.load("~/model")
    assert [rank.state for rank in cluster2.ranks] == ["idle", "idle"]
