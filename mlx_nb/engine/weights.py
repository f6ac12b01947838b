"""What the weight files say of themselves: headers only, no tensor is read."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path

from mlx_nb.shared.errors import WeightsError

# A header is a few hundred bytes a tensor; past this it is not a model but an attack or garbage.
MAX_HEADER_BYTES = 256 * 1024 * 1024
LFS_POINTER = b"version https://git-lfs"


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorInfo:
    """One tensor as its file's header describes it."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    size_bytes: int


def read_index(folder: Path) -> dict[str, str]:
    """Which file the index says a tensor lies in; empty without an index.

    Raises:
        WeightsError: It is no index, or names a file outside the folder.
    """
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return {}
    try:
        found = {str(k): str(v) for k, v in json.loads(index.read_text()).get("weight_map", {}).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{index} is not a weight index ({error}).", "Fetch the model again.") from error
    for name in set(found.values()):
        if Path(name).name != name:
            raise WeightsError(f"{index} names a file outside its folder: {name}.", "Fetch the model again.")
    return found


def absent_files(folder: Path) -> set[str]:
    """The files that the index names and that are not in the folder."""
    return {name for name in set(read_index(folder).values()) if not (folder / name).is_file()}


def index_entry(folder: Path, tensor: str) -> str:
    """The file that the index names for a tensor; empty if there is none."""
    return read_index(folder).get(tensor, "")


def weight_files(folder: Path, *, part: bool = False) -> list[Path]:
    """The safetensors files of a model folder that mlx-lm would read.

    Args:
        folder: The folder.
        part: Whether some of those that the index names may be elsewhere.

    Raises:
        WeightsError: There are none, or the index names one that is missing.
    """
    files = sorted(folder.glob("model*.safetensors"))
    for name in sorted(set(read_index(folder).values())):
        if not part and not (folder / name).is_file():
            raise WeightsError(
                f"The weight file {name} is missing from {folder}.",
                "Fetch the model again, or copy the file there.",
            )
    if not files:
        raise WeightsError(
            f"{folder} has no weights (model*.safetensors).",
            "Name the folder of an mlx-lm model, or convert it: mlx_lm.convert --hf-path …",
        )
    return files


def read_tensors(folder: Path, *, part: bool = False) -> dict[str, TensorInfo]:
    """Every tensor of a model folder, by its name in the files; arguments as `weight_files`.

    Raises:
        WeightsError: A file is missing, truncated or not safetensors; it is named.
    """
    tensors: dict[str, TensorInfo] = {}
    for path in weight_files(folder, part=part):
        tensors.update(read_header(path))
    return tensors


def read_header(path: Path) -> dict[str, TensorInfo]:
    """The tensors of one safetensors file.

    Raises:
        WeightsError: The file is truncated, too long, or not safetensors.
    """
    size = path.stat().st_size
    again = "Fetch the model again, or copy the file again."
    with path.open("rb") as file:
        start = file.read(8)
        if start == LFS_POINTER[:8] and file.read(len(LFS_POINTER) - 8) == LFS_POINTER[8:]:
            raise WeightsError(
                f"{path} is a git-LFS pointer: the name of a weight file, not the file itself.",
                f"In a terminal: git -C {path.parent} lfs pull",
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else MAX_HEADER_BYTES
        if length >= min(MAX_HEADER_BYTES, size):
            raise WeightsError(f"{path} is not a safetensors file, or only the start of one.", again)
        try:
            header = json.loads(file.read(length))
            header.pop("__metadata__", None)
            tensors = {
                name: TensorInfo(
                    file=path.name,
                    dtype=str(entry["dtype"]),
                    shape=tuple(int(n) for n in entry["shape"]),
                    size_bytes=int(entry["data_offsets"][1]) - int(entry["data_offsets"][0]),
                )
                for name, entry in header.items()
            }
            ends = {name: int(entry["data_offsets"][1]) for name, entry in header.items()}
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            raise WeightsError(f"The header of {path} cannot be read ({error}).", again) from error
    for name, end in ends.items():
        if 8 + length + end > size:
            raise WeightsError(
                f"{path} is truncated: tensor {name} ends at byte {8 + length + end:,}, "
                f"and the file has {size:,}.",
                again,
            )
    return tensors
