"""Damaged weight files are named before anything is read."""

import json
import struct
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_nb.engine.loading import build_model
from mlx_nb.engine.weights import read_header, read_tensors, weight_files
from mlx_nb.shared.errors import ModelError, WeightsError
from tests.tiny import make_tiny

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


def test_a_missing_tensor_is_named(folder: Path) -> None:
    weights = folder / "model.safetensors"
    whole = weights.read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    del header["model.layers.3.mlp.up_proj.weight"]
    header_file(weights, header, whole[8 + length :])

    with pytest.raises(WeightsError, match=r"model\.layers\.3\.mlp\.up_proj\.weight"):
        build_model(folder, trust_remote_code=False)


def test_a_tensor_of_another_shape_is_named(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 95}))

    with pytest.raises(WeightsError, match=r"do not fit: .*shape"):
        build_model(folder, trust_remote_code=False)


def test_an_architecture_that_mlx_lm_does_not_know_is_said(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "no_such_type"}))

    with pytest.raises(ModelError, match="no_such_type"):
        build_model(folder, trust_remote_code=False)
