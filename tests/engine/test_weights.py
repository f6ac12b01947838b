"""Damaged weight files are named before anything is read."""

import json
import re
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.engine import share as share_module  # before mlx: it loads OpenBLAS
from mlx_nb.engine.loading import build_model, materialise
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.engine.weights import read_header, read_tensors, weight_files
from mlx_nb.shared.errors import ModelError, WeightsError
from tests.tiny import make_tiny, store

import mlx.core as mx  # isort: skip
import mlx.nn as nn  # isort: skip

Tiny = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A whole model folder, to break."""
    return make_tiny("llama", tmp_path / "model")


def header_file(path: Path, header: object, body: bytes = b"") -> Path:
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return path


def test_a_whole_folder_is_read(folder: Path) -> None:
    """The control of all that follows."""
    tensors = read_tensors(folder)

    assert tensors["model.norm.weight"].shape == (64,)
    assert tensors["model.norm.weight"].size_bytes == 64 * 4
    assert tensors["model.norm.weight"].file == "model.safetensors"
    assert sum(t.size_bytes for t in tensors.values()) < (folder / "model.safetensors").stat().st_size
    assert build_model(folder, trust_remote_code=False) is not None


def test_a_missing_file_of_an_index_is_named(folder: Path) -> None:
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))

    with pytest.raises(WeightsError, match=r"model-00002-of-00002\.safetensors is missing from"):
        read_tensors(folder)


@pytest.mark.parametrize("name", ["../model.safetensors", "/etc/passwd", "sub/model.safetensors"])
def test_an_index_stays_in_its_folder(folder: Path, name: str) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": name}}))

    with pytest.raises(WeightsError, match=f"names a file outside its folder: {name}"):
        weight_files(folder)


@pytest.mark.parametrize("text", ["{", "[]", '{"weight_map": []}'])
def test_an_index_that_is_none_is_named(folder: Path, text: str) -> None:
    (folder / "model.safetensors.index.json").write_text(text)

    with pytest.raises(WeightsError, match=r"model\.safetensors\.index\.json is not a weight index"):
        weight_files(folder)


def test_no_weights_at_all(folder: Path) -> None:
    (folder / "model.safetensors").unlink()

    with pytest.raises(WeightsError, match=r"has no weights \(model\*\.safetensors\)"):
        build_model(folder, trust_remote_code=False)


@pytest.mark.parametrize("cut", [1, 5000])
def test_a_truncated_file_and_its_tensor_are_named(folder: Path, cut: int) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-cut])

    with pytest.raises(WeightsError, match=r"model\.safetensors is truncated: tensor model\.\S+ ends at"):
        read_tensors(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"short", b"<html>not found</html>" * 50, struct.pack("<Q", 2**62) + b"{}", struct.pack("<Q", 99) + b"{}"],
    ids=["empty", "short", "a web page", "a huge header", "a header that ends early"],
)  # fmt: skip
def test_what_is_no_safetensors_file_is_named(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)

    with pytest.raises(WeightsError, match=r"model\.safetensors is not a safetensors file"):
        build_model(folder, trust_remote_code=False)


def test_a_git_lfs_pointer_is_called_one(folder: Path) -> None:
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:abc\nsize 12345\n"
    (folder / "model.safetensors").write_bytes(pointer)

    with pytest.raises(WeightsError, match="is a git-LFS pointer") as caught:
        build_model(folder, trust_remote_code=False)
    assert caught.value.fix == f"In a terminal: git -C {folder} lfs pull"


@pytest.mark.parametrize(
    "header",
    [[], {"a": 1}, {"a": {"dtype": "F32"}}, {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0]}}],
)
def test_a_garbage_header_is_named(tmp_path: Path, header: object) -> None:
    path = header_file(tmp_path / "model.safetensors", header, bytes(64))

    with pytest.raises(WeightsError, match=r"The header of .*model\.safetensors cannot be read"):
        read_header(path)


def test_a_header_of_no_json_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(struct.pack("<Q", 8) + b"\xff" * 8 + bytes(64))

    with pytest.raises(WeightsError, match="cannot be read"):
        read_header(path)


def without(folder: Path, tensor: str) -> None:
    """Take a tensor out of the header of a model's one file."""
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    del header[tensor]
    header_file(weights, header, whole[8 + length :])


def ranks_that_refuse(folder: Path, split: Sequence[int], **wishes: Any) -> dict[int, str]:
    """What each rank says that does not load, by its number."""
    said = {}
    for transport in LoopbackWorld(len(split)).transports():
        try:
            Stage(folder.name, folder, transport, split=split, **wishes)
        except WeightsError as error:
            said[transport.rank] = error.problem
    return said


@pytest.mark.parametrize(
    ("tensor", "ranks"),
    [
        ("model.layers.3.mlp.up_proj.weight", {1}),
        ("model.layers.0.input_layernorm.weight", {0}),
        ("model.norm.weight", {2}),
        ("model.embed_tokens.weight", {0, 2}),  # tied: both ends read it
    ],
)
def test_a_missing_tensor_is_named_by_the_ranks_that_need_it(
    folder: Path, tensor: str, ranks: set[int]
) -> None:
    assert ranks_that_refuse(folder, [2, 2, 1]) == {}  # the control
    without(folder, tensor)

    said = ranks_that_refuse(folder, [2, 2, 1])

    assert said.keys() == ranks
    for rank, text in said.items():
        assert text.startswith(f"Rank {rank} (")
        assert f"tensor {tensor} is missing from model.safetensors in {folder}." in text


@pytest.mark.parametrize("dtype", [None, "native", "bfloat16"])
@pytest.mark.parametrize("part", ["weight", "scales", "biases"])
def test_a_missing_part_of_a_packed_tensor_is_named(tmp_path: Path, part: str, dtype: str | None) -> None:
    folder = make_tiny("llama", tmp_path / "model", bits=4)
    tensor = f"model.layers.3.mlp.up_proj.{part}"
    without(folder, tensor)

    said = ranks_that_refuse(folder, [2, 3], dtype=dtype)

    if part == "biases":
        assert set(said) == {1}
    else:  # mlx-lm may meet it before the layers are divided
        assert 1 in said
    if part == "scales":  # without scales a module counts as not packed
        assert "model.layers.3.mlp.up_proj.biases has no place in the model" in said[1]
    else:
        assert f"tensor {tensor} is missing from model.safetensors" in said[1]


def test_a_missing_file_that_no_index_names_leaves_its_tensors_missing(folder: Path) -> None:
    store(folder, "sharded")
    files = sorted(folder.glob("model*.safetensors"))
    assert len(files) == 3
    lost = sorted(read_header(files[1]))
    files[1].unlink()

    said = ranks_that_refuse(folder, [2, 3])

    assert said
    assert all(f"tensor {lost[0]}" in text or "tensor model." in text for text in said.values())
    assert all("missing from all 2 weight files" in text for text in said.values())


def test_an_index_says_where_a_missing_tensor_should_be(folder: Path) -> None:
    store(folder, "sharded, index")
    index = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    tensor = "model.layers.3.mlp.up_proj.weight"
    path = folder / index[tensor]
    tensors = mx.load(str(path))
    del tensors[tensor]
    mx.eval(tensors)
    mx.save_safetensors(str(path), tensors)

    said = ranks_that_refuse(folder, [2, 3])

    assert set(said) == {1}
    assert f"tensor {tensor} is missing from {index[tensor]} in" in said[1]


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 95}))

    said = ranks_that_refuse(folder, [2, 3])

    assert set(said) == {0, 1}
    assert re.search(
        r"tensor model\.layers\.2\.mlp\.down_proj\.weight \(model\.safetensors\) does not fit:"
        r" \[64, 96\] in the file, \[64, 95\] in the model; 8 more do not fit",
        said[1],
    )


def test_a_misshapen_tensor_is_the_business_of_its_rank(folder: Path) -> None:
    tensors = mx.load(str(folder / "model.safetensors"))
    tensors["model.layers.0.mlp.up_proj.weight"] = mx.zeros((96, 32))
    mx.eval(tensors)
    mx.save_safetensors(str(folder / "model.safetensors"), tensors)

    said = ranks_that_refuse(folder, [2, 3])

    assert set(said) == {0}
    assert "[96, 32] in the file, [96, 64] in the model" in said[0]


def test_tensors_without_a_place_are_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "num_hidden_layers": 4}))

    with pytest.raises(WeightsError, match=r"tensor model\.layers\.4\.\S+ and 8 more have no place"):
        build_model(folder, trust_remote_code=False)


def test_a_file_that_is_cut_after_its_header_was_read_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()

    def cut(*args: Any) -> int:
        weights.write_bytes(whole[:3000])
        return materialise(*args)

    monkeypatch.setattr(share_module, "materialise", cut)

    said = ranks_that_refuse(folder, [5])

    assert re.search(r"Rank 0 .*tensor model\..* and \d+ more in .* cannot be read", said[0])


def test_mlx_loads_weights_as_before_once_a_model_is_built(folder: Path) -> None:
    before = nn.Module.load_weights
    build_model(folder, trust_remote_code=False)
    assert nn.Module.load_weights is before
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))
    with pytest.raises(ModelError):
        build_model(folder, trust_remote_code=False)
    assert nn.Module.load_weights is before


def test_an_architecture_that_mlx_lm_does_not_know_is_said(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))

    with pytest.raises(ModelError, match="no_such_type"):
        build_model(folder, trust_remote_code=False)
