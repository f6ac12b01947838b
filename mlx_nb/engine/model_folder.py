"""The model cache folder, and how one model in it is known to be whole.

A converted model is written into a temporary sibling, described by a manifest that is written last, and
moved into place in one step. Whoever finds a folder whose manifest holds may use it without a lock.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

import platformdirs

from mlx_nb.shared.models import ModelCacheError
from mlx_nb.shared.text import format_size

MANIFEST = "mlx_nb.json"
FORMAT = 1
"""Raise it when the conversion changes: folders of another format are converted again."""

_HASHED_WHOLE_BYTES = 16 * 2**20
_MAX_HEADER_BYTES = 100 * 2**20


def model_cache_folder() -> Path:
    """Where converted models and downloads are kept: MLX_NB_CACHE, else the user's cache folder."""
    own = os.environ.get("MLX_NB_CACHE")
    return Path(own).expanduser().absolute() if own else Path(platformdirs.user_cache_dir("mlx_nb"))


def write_manifest(folder: Path, source: str) -> None:
    """Describe every file in the folder, as the last step of making it.

    Args:
        folder: A model folder, complete but for its manifest.
        source: What it was made from; another source makes `fault` speak up.
    """
    files = {
        path.name: {"bytes": path.stat().st_size, "sha256": _digest(path), **_touched(path)}
        for path in sorted(folder.iterdir())
        if path.is_file() and path.name != MANIFEST
    }
    write_synced(
        folder / MANIFEST, json.dumps({"format": FORMAT, "source": source, "files": files}, indent=1).encode()
    )


def fault(folder: Path, source: str) -> str:
    """What is wrong with a converted model folder, as words; "" when it is whole.

    Small files are compared by sha256, weight files by their size and the sha256 of their header: that
    finds what is missing, cut short or emptied in milliseconds. A weight file that was written to since it
    was made is compared whole, in half a second; a disk that loses a bit by itself goes unnoticed.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
        if manifest["format"] != FORMAT or manifest["source"] != source:
            return "it was made by another version"
        for name, entry in manifest["files"].items():
            path = folder / name
            size_bytes = path.stat().st_size
            if size_bytes != entry["bytes"]:
                return f"{name} has {size_bytes} of {entry['bytes']} bytes"
            if _digest(path) != entry["sha256"]:
                return f"{name} is damaged"
            if (
                "whole" in entry
                and entry["mtime_ns"] != path.stat().st_mtime_ns
                and _whole(path) != entry["whole"]
            ):
                return f"{name} is damaged"
    except FileNotFoundError as error:
        return f"{Path(str(error.filename)).name} is missing" if folder.is_dir() else "it is not there"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"its manifest cannot be read ({error})"
    return ""


@contextlib.contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
    """A temporary sibling of `target` that takes its place when the block ends well.

    The caller holds the model's lock, so a sibling that an ended process left behind is swept first.
    """
    sweep(target)
    folder = Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent))
    try:
        yield folder
        folder.chmod(0o755)
        if target.exists():
            # A folder that is not empty cannot be replaced in one step: move it aside.
            target.rename(Path(tempfile.mkdtemp(prefix=_prefix(target), dir=target.parent)) / "old")
        folder.rename(target)
    finally:
        sweep(target)


def sweep(target: Path) -> None:
    """Remove the temporary siblings of `target`; only for the holder of its lock."""
    for left in target.parent.glob(_prefix(target) + "*"):
        shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn what a disk refuses into errors that say what to do.

    Raises:
        ModelCacheError: The disk is full, or the folder may not be written.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ModelCacheError(
                f"The disk is full while writing to {folder}.",
                "Free some space, or choose another disk with the environment variable MLX_NB_CACHE.",
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST):
            raise ModelCacheError(
                f"The model cache folder {folder} cannot be written ({error.strerror}).",
                "Set the environment variable MLX_NB_CACHE to a folder of your own, and restart.",
            ) from error
        raise


def need_space(folder: Path, size_bytes: int) -> None:
    """Refuse early what the disk cannot hold.

    Raises:
        ModelCacheError: Less than `size_bytes` are free.
    """
    free = shutil.disk_usage(folder).free
    if free < size_bytes:
        raise ModelCacheError(
            f"The model needs {format_size(size_bytes)} in {folder}; {format_size(free)} are free.",
            "Free some space, or choose another disk with the environment variable MLX_NB_CACHE.",
        )


def write_synced(path: Path, data: bytes) -> None:
    """Write a small file through to the disk."""
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _prefix(target: Path) -> str:
    return f".{target.name}-making-"


def _touched(path: Path) -> dict[str, int | str]:
    """What tells whether a file of which `_digest` reads a part was changed elsewhere."""
    if _is_small(path):
        return {}
    return {"mtime_ns": path.stat().st_mtime_ns, "whole": _whole(path)}


def _whole(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_small(path: Path) -> bool:
    return path.stat().st_size <= _HASHED_WHOLE_BYTES or path.suffix != ".safetensors"


def _digest(path: Path) -> str:
    """sha256 of a small file, or of the header of a large safetensors file."""
    if _is_small(path):
        return _whole(path)
    with path.open("rb") as file:
        start = file.read(8)
        (length,) = struct.unpack("<Q", start)
        return hashlib.sha256(start + file.read(min(length, _MAX_HEADER_BYTES))).hexdigest()
