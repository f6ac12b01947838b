"""A file per running cluster: who started it, which processes it has, and until when it is kept.

It lets a watchdog and other kernels find a cluster, and end it without ever killing a stranger.
"""

import json
import shutil
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from mlx_nb.client.processes import ProcessId, marked
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.spec import ClusterSpec, RankInfo

RECORD_FILE = "record.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """A running cluster, as it lies on disk.

    Attributes:
        name: The cluster's name.
        spec: What was asked for.
        folder: Its own directory: keys, logs, this record.
        version: The mlx_nb that started it.
        client: The kernel that owns it. It ends with that kernel, or its keep time later.
        processes: Every local process of it, mpirun and controller first.
        ranks: Its ranks, their engines and processes, once they have answered.
        started_s: When it was ready; 0 while it starts.
        kept_until_s: Once its kernel is gone and it is kept: when it ends.
    """

    name: str
    spec: ClusterSpec
    folder: Path
    version: str
    client: ProcessId
    processes: tuple[ProcessId, ...] = ()
    ranks: tuple[RankInfo, ...] = ()
    started_s: float = 0.0
    kept_until_s: float = 0.0

    @property
    def path(self) -> Path:
        return self.folder / RECORD_FILE

    def alive(self) -> bool:
        """Whether its controller and its mpirun still run; while it starts, whether its client does."""
        if not self.started_s:
            return self.client.alive
        return all(p.alive for p in self.processes if p.role in ("mpirun", "controller"))

    def write(self) -> None:
        """Put it on disk in one step, readable by its owner only."""
        content = asdict(self) | {"folder": str(self.folder)}
        with tempfile.NamedTemporaryFile(
            "w", dir=self.folder, delete=False
        ) as file:  # created with mode 0600
            json.dump(content, file, indent=1)
        Path(file.name).replace(self.path)

    def remove(self) -> None:
        """Delete the cluster's directory. Nothing may run in it any more."""
        shutil.rmtree(self.folder, ignore_errors=True)


def runtime_folder() -> Path:
    """Where clusters have their directories: below Jupyter's runtime directory, closed to others."""
    from jupyter_core.paths import jupyter_runtime_dir

    folder = Path(jupyter_runtime_dir()) / "mlx_nb"
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder


def read(path: Path) -> Record | None:
    """The record in a file; None if it is gone, or not one of ours."""
    try:
        content: dict[str, Any] = json.loads(path.read_text())
        spec = content.pop("spec")
        return Record(
            **content
            | {
                "folder": Path(content["folder"]),
                "spec": ClusterSpec(**spec | {"hosts": tuple(spec["hosts"])}),
                "client": ProcessId(**content["client"]),
                "processes": tuple(ProcessId(**process) for process in content["processes"]),
                "ranks": tuple(RankInfo(**info) for info in content["ranks"]),
            }
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError, MlxNbError):
        return None


def update(path: Path, change: Callable[[Record], Record]) -> Record | None:
    """Read, change and write a record while nobody else does; None if it is gone."""
    if not path.parent.is_dir():
        return None
    with FileLock(path.with_suffix(".lock"), mode=0o600):
        record = read(path)
        if record is None:
            return None
        changed = change(record)
        changed.write()
        return changed


def adopt(path: Path, client: ProcessId) -> Record | None:
    """Make a process the owner of a cluster that was kept."""
    return update(path, lambda record: replace(record, client=client, kept_until_s=0.0))


def list_records() -> list[Record]:
    """All clusters that run on this machine for this user, the latest first; stale records are deleted."""
    found = []
    for path in runtime_folder().glob(f"*/{RECORD_FILE}"):
        record = read(path)
        if record is None:
            continue
        if record.alive():
            found.append(record)
        elif not marked(record.name):  # its watchdog is not at work on it either
            record.remove()
    return sorted(found, key=lambda record: record.started_s or time.time(), reverse=True)
