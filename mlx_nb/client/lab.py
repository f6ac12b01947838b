"""The lessons, in a folder of the user's own: what is edited there is never overwritten."""

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from mlx_nb.shared.errors import MlxNbError

_PACKAGE = Path(__file__).resolve().parent.parent


def lessons_folder() -> Path:
    """Where the lessons lie: inside an installed wheel, or beside the package in a source checkout."""
    inside = _PACKAGE / "notebooks"
    return inside if inside.is_dir() else _PACKAGE.parent / "notebooks"


def copy_lessons(target: str) -> Path:
    """Copy every lesson that is not there yet; the folder.

    Raises:
        MlxNbError: The folder cannot be made.
    """
    folder = Path(target).expanduser().resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MlxNbError(
            f"{folder} cannot be made ({error.strerror}).", "Name a folder of yours: mlx-nb lab ~/lessons"
        ) from error
    copied = 0
    for lesson in sorted(lessons_folder().glob("*.ipynb")):
        if not (folder / lesson.name).exists():
            shutil.copy2(lesson, folder / lesson.name)
            copied += 1
    kept = len(list(folder.glob("*.ipynb"))) - copied
    print(
        f"{copied} lesson{'s' * (copied != 1)} copied to {folder}"
        + (f", {kept} kept as they are" if kept else "")
    )
    return folder


def need_lab(options: Sequence[str] = ()) -> None:
    """See that JupyterLab is there and will start, before anything is copied for it.

    Raises:
        MlxNbError: It is not installed, or would refuse.
    """
    if importlib.util.find_spec("jupyterlab") is None:
        raise MlxNbError("JupyterLab is not installed.", "In this environment, type: pip install jupyterlab")
    if hasattr(os, "geteuid") and os.geteuid() == 0 and "--allow-root" not in options:
        raise MlxNbError(
            "JupyterLab does not run as root unless it is told to.", "Type: mlx-nb lab --allow-root"
        )


def open_lab(folder: Path, options: Sequence[str] = ()) -> int:
    """Open JupyterLab there, with options of its own; its exit status."""
    # ipyparallel's lab extension asks its server half, and shows an error dialog when it is off.
    extra = "--ServerApp.jpserver_extensions={'ipyparallel': True}"
    return subprocess.run(
        [sys.executable, "-m", "jupyterlab", extra, *options], cwd=folder, check=False
    ).returncode
