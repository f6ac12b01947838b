"""What the processes of a cluster have written: a file per rank, mpirun's own words, the controller's log."""

import re
from collections.abc import Sequence
from pathlib import Path

from mlx_nb.client.launch import rank_log_folder
from mlx_nb.shared.ids import Rank

TAIL_LINES = 100
MPIRUN_FILE, CONTROLLER_FILE = "mpirun.log", "controller.log"

# What ipyparallel logs in any life, and what its nanny says about any death.
_ROUTINE = re.compile(
    r"\[KernelNanny[^]]*\]|\[IPEngine[^]]*\] (?!ERROR|CRITICAL)|^from mpi4py|^mpi_(rank|size) ="
)


class LogText(str):
    """A text that shows its lines in a notebook, not its escapes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def rank_log(folder: Path, rank: Rank) -> str:
    """What a rank has written, stdout and stderr in one; empty if there is nothing."""
    return "".join(_read(file) for file in _files(folder, rank))


def mpirun_log(folder: Path) -> str:
    """What mpirun itself has written: why a start failed, which rank a signal ended."""
    text = _read(folder / "log" / MPIRUN_FILE)
    return "\n".join(line for line in text.splitlines() if line.strip("-= \t"))


def controller_log(folder: Path) -> str:
    """What the controller has written."""
    return _read(folder / "log" / CONTROLLER_FILE)


def keep(written: Path, folder: Path, name: str) -> None:
    """Give a log a second name: ipyparallel deletes it when the process ends, which is when it is read."""
    (folder / "log" / name).hardlink_to(written)


def last_words(folder: Path, rank: Rank, lines: int = 3) -> str:
    """The end of what a rank itself has written, on one line; empty if it has written nothing."""
    lines_of_log = (line.strip() for line in rank_log(folder, rank).splitlines())
    written = [line for line in lines_of_log if line and not _ROUTINE.search(line)]
    return " / ".join(written[-lines:])


def tail(folder: Path, rank: Rank, lines: int = 4, size_bytes: int = 8192) -> list[str]:
    """The last lines that a rank itself has written, from the end of its file alone: cheap enough to look often."""
    found: list[str] = []
    for file in _files(folder, rank):
        try:
            with file.open("rb") as log:
                log.seek(max(0, file.stat().st_size - size_bytes))
                found += log.read().decode(errors="replace").splitlines()
        except OSError:
            continue
    written = [line.rstrip() for line in found if line.strip() and not _ROUTINE.search(line)]
    return written[-lines:]


def complaints(folder: Path, ranks: Sequence[Rank], lines: int = 24) -> str:
    """Why a start failed, in mpirun's words and those of the rank that says most; indented, maybe empty."""
    by_rank = [
        [
            line
            for line in rank_log(folder, rank).splitlines()
            if line.strip("-= \t") and not _ROUTINE.search(line)
        ]
        for rank in ranks
    ]
    # The ranks fail alike, and mpirun ends some in the middle of a word.
    said = mpirun_log(folder).splitlines() + max(by_rank, key=len, default=[])
    if len(said) > lines:  # mpirun begins with the reason, a traceback ends with it
        said = [*said[: lines // 2], "…", *said[-(lines // 2 - 1) :]]
    return "".join(f"\n  {line}" for line in said)


def collect(folder: Path, ranks: list[Rank], *, all_processes: bool = True) -> LogText:
    """The end of each log under a heading, ranks first."""
    parts = {f"rank {rank}": rank_log(folder, rank) for rank in ranks}
    if all_processes:
        parts |= {"mpirun": mpirun_log(folder), "controller": controller_log(folder)}
    shown = []
    for title, text in parts.items():
        lines = text.splitlines()
        left_out = f" · last {TAIL_LINES} of {len(lines)} lines" if len(lines) > TAIL_LINES else ""
        body = lines[-TAIL_LINES:] or ["(nothing)"]
        shown.append("\n".join([f"── {title}{left_out} ──", *body]))
    return LogText("\n\n".join(shown))


def _files(folder: Path, rank: Rank) -> list[Path]:
    # mpirun puts a directory per job in between, and pads the rank with zeros when there are many.
    files = [f for f in rank_log_folder(folder).glob("*/rank.*/stdout") if _rank_of(f) == rank]
    return sorted(files, key=lambda f: f.stat().st_mtime)


def _rank_of(file: Path) -> int:
    return int(re.sub(r"\D", "", file.parent.name) or -1)


def _read(file: Path) -> str:
    try:
        return file.read_text(errors="replace")
    except OSError:
        return ""
