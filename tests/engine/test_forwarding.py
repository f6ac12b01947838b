"""What crosses besides a layer's return value, from weight files and under the stepper."""

import json
from pathlib import Path

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
import pytest
from mlx.utils import tree_flatten

from mlx_nb.engine import share as share_module
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.shared.errors import PlanError
from tests.engine.architectures import CONFIGS, build
from tests.engine.loopback import Stepper, generate, make_stages


def write(folder: Path, name: str) -> Path:
    """A model folder of one of the tiny architectures."""
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model_type": name, **CONFIGS[name]}))
    mx.save_safetensors(str(folder / "model.safetensors"), dict(tree_flatten(build(name).parameters())))
    return folder


@pytest.mark.parametrize(
    ("name", "split"),
    [
        ("gemma3n", [3, 3, 2]),
        ("gemma4_text", [6, 2]),
        ("afm7", [5, 2]),
        ("deepseek_v41", [6, 2]),
        ("kimi_k3", [3, 3]),
    ],
)
def test_ranks_that_read_their_own_weights_give_the_same_tokens(
    name: str, split: list[int], tmp_path: Path
) -> None:
    folder = write(tmp_path / name, name)
    alone = make_stages(folder, [sum(split)], "native")
    stages = make_stages(folder, split, "native")

    assert generate(stages)[0] == generate(alone)[0]
    for stage in stages:
        layers = {stage.layer_inside(parameter) for parameter in stage.owned}
        assert layers - {-1} == set(stage.shard.layers)


def test_a_stepped_run_forwards_too(tmp_path: Path) -> None:
    folder = write(tmp_path / "gemma3n", "gemma3n")
    stages = make_stages(folder, [6, 2], "native")
    wanted, _ = generate(stages, max_tokens=3)
    stepper = Stepper(stages, max_tokens=3)
    sizes = {}

    while (position := stepper.go("into" if stepper.position is None else "over")) is not None:
        if position.hop is not None:
            sizes[position.start, position.kind] = position.hop.size_bytes

    assert stepper.tokens == wanted
    hidden = 3 * 8 * 32 * 4  # three streams of a chunk of 8, 32 wide, in float32
    shared = 2 * 2 * (2 * 8 * 8) * 4  # keys and values of two layers, each with 2 heads of width 8
    assert sizes[0, "send"] == sizes[0, "recv"] == hidden + shared


def test_a_model_that_cannot_be_cut_is_refused_before_its_weights_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write(tmp_path / "nanbeige", "nanbeige")

    def read(*_: object) -> int:
        raise AssertionError("the weights are read")

    monkeypatch.setattr(share_module, "materialise", read)

    with pytest.raises(PlanError, match="goes through its layers 2 times"):
        Stage("nanbeige", folder, LoopbackWorld(2).transports()[0])
    with pytest.raises(AssertionError, match="the weights are read"):  # where it is not refused
        Stage("nanbeige", folder, LoopbackWorld(1).transports()[0])
