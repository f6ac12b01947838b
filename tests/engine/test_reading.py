"""A rank reads its own bytes and no others, counted by the kernel around the load alone."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.engine import share as share_module  # before mlx: it loads OpenBLAS
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.engine.weights import read_header
from tests.adapters import make_adapter
from tests.costs import LAYERS, MOST_READ, disk_bytes, make_wide
from tests.tiny import make_tiny

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip
from mlx.utils import tree_flatten  # isort: skip

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="the count of bytes read is in Linux's /proc")
]

SPLIT = [2, 5, 1]
CASES: dict[str, tuple[str, dict[str, Any], str | None]] = {
    "float32": ("llama", {}, None),
    "bfloat16 as stored": ("llama_untied", {"dtype": "bfloat16"}, "native"),
    "bfloat16 to float32": ("llama", {"dtype": "bfloat16"}, None),
    "4 bits to float32": ("llama_untied", {"bits": 4}, None),
    "mixed bits as stored": ("llama", {"bits": "mixed"}, "native"),
    "one file": ("llama_untied", {"layout": "single"}, None),
}


@pytest.fixture(scope="module", autouse=True)
def _imported(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A first load imports code, which is read from files as well."""
    folder = make_tiny("llama", tmp_path_factory.mktemp("first") / "model", bits=4)
    adapter = make_adapter(folder, tmp_path_factory.mktemp("first") / "adapter")
    bytes_read(lambda: Stage("first", folder, LoopbackWorld(1).transports()[0], adapter_path=str(adapter)))


def bytes_read(load: Callable[[], object]) -> int:
    """What this process reads from files meanwhile, from the page cache or not."""

    def count() -> int:
        lines = Path("/proc/self/io").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("rchar")).split()[1])

    before = count()
    load()
    return count() - before


def ratios(folder: Path, dtype: str | None = None, **wishes: Any) -> list[float]:
    """Bytes read by each rank's load, as a multiple of its shard on disk, adapter included."""
    found, start = [], 0
    for transport, count in zip(LoopbackWorld(len(SPLIT)).transports(), SPLIT, strict=True):
        layers = range(start, start + count)
        start += count
        due = disk_bytes(folder, layers)
        if adapter := wishes.get("adapter_path"):
            tensors = read_header(Path(adapter) / "adapters.safetensors").items()
            # Fully tuned tensors stand in for the model's own, which are then not read.
            new = [t for name, t in tensors if int(name.split(".")[2]) in layers and "lora" in name]
            due += sum(tensor.size_bytes for tensor in new)
        load = lambda: Stage("wide", folder, transport, split=SPLIT, dtype=dtype, **wishes)  # noqa: B023, E731
        found.append(bytes_read(load) / due)
    return found


@pytest.mark.parametrize(
    "case",
    [
        case
        if "bits" in case or case == "bfloat16 to float32"
        else pytest.param(case, marks=pytest.mark.soak)
        for case in CASES
    ],
)
def test_each_rank_reads_its_own_bytes(case: str, tmp_path: Path) -> None:
    kind, wishes, dtype = CASES[case]
    folder = make_wide(kind, tmp_path / "wide", **wishes)

    found = ratios(folder, dtype)

    assert all(1.0 <= ratio <= MOST_READ for ratio in found), found


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_each_rank_reads_its_own_part_of_an_adapter(kind: str, tmp_path: Path) -> None:
    folder = make_wide("llama", tmp_path / "wide")
    adapter = make_adapter(folder, tmp_path / "adapter", kind, num_layers=7, rank=64)
    whole = (adapter / "adapters.safetensors").stat().st_size
    # The control: were the whole adapter read, the check would see it.
    assert whole > 2 * (MOST_READ - 1) * disk_bytes(folder, range(LAYERS))

    found = ratios(folder, adapter_path=str(adapter))

    assert all(1.0 <= ratio <= MOST_READ for ratio in found), found


def test_a_reader_that_reads_everything_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the classic mistake, to evaluate all parameters of a lazy model."""

    def all_of_them(model: nn.Module, results: list[mx.array]) -> dict[str, mx.array]:
        return dict(tree_flatten(model.parameters()))

    folder = make_wide("llama", tmp_path / "wide")
    monkeypatch.setattr(share_module, "owned_parameters", all_of_them)

    found = ratios(folder)

    assert all(ratio > 1.3 for ratio in found), found


def test_one_tensor_too_many_is_caught(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """How fine the check is: a single foreign matrix of 3 MiB beside 24 to 70."""
    right = share_module.owned_parameters

    def one_more(model: nn.Module, results: list[mx.array]) -> dict[str, mx.array]:
        owned = right(model, results)
        foreign = [
            (name, value)
            for name, value in tree_flatten(model.parameters())
            if "up_proj" in name and name not in owned
        ]
        return {**owned, foreign[0][0]: foreign[0][1]}

    folder = make_wide("llama", tmp_path / "wide")
    monkeypatch.setattr(share_module, "owned_parameters", one_more)

    found = ratios(folder)

    assert all(ratio > MOST_READ for ratio in found), found
