"""A real JupyterLab or Notebook 7 with one folder, and a page in it: what several tests do there."""

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nbformat
import pytest

APPS = {"jupyterlab": "LabApp", "notebook": "JupyterNotebookApp"}


@dataclass
class Lab:
    """A JupyterLab that serves one folder."""

    url: str
    token: str
    folder: Path
    program: str = "jupyterlab"

    def notebook(self, name: str) -> str:
        where = "lab/tree" if self.program == "jupyterlab" else "notebooks"
        return f"{self.url}/{where}/{name}?token={self.token}&reset"


@contextmanager
def serving(tmp_path_factory: pytest.TempPathFactory, program: str = "jupyterlab") -> Iterator[Lab]:
    """Such a server, and its end."""
    folder = tmp_path_factory.mktemp("lab")
    homes = {
        f"JUPYTER_{kind}_DIR": str(tmp_path_factory.mktemp(kind.lower()))
        for kind in ("CONFIG", "DATA", "RUNTIME")
    }
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    token = secrets.token_hex(16)
    settings = Path(homes["JUPYTER_CONFIG_DIR"]) / "lab" / "user-settings" / "@jupyterlab"
    for extension, file, wishes in (
        ("apputils-extension", "notification", {"fetchNews": "false", "checkForUpdates": False}),
        ("notebook-extension", "tracker", {"windowingMode": "none"}),  # every cell stays in the page
    ):
        (settings / extension).mkdir(parents=True)
        (settings / extension / f"{file}.jupyterlab-settings").write_text(json.dumps(wishes))
    command = [
        sys.executable, "-m", program, "--no-browser", "--allow-root", f"--port={port}", "--ip=127.0.0.1",
        f"--IdentityProvider.token={token}", f"--ServerApp.root_dir={folder}", f"--{APPS[program]}.expose_app_in_browser=True",
        "--ServerApp.jpserver_extensions={'ipyparallel': True}",
    ]  # fmt: skip
    with (folder / "server.log").open("w") as log:
        server = subprocess.Popen(command, env=os.environ | homes, stdout=log, stderr=log)
    url = f"http://127.0.0.1:{port}"
    try:
        for _ in range(300):
            try:
                with urllib.request.urlopen(f"{url}/api?token={token}", timeout=5):
                    break
            except (urllib.error.URLError, OSError):
                time.sleep(0.1)
        yield Lab(url, token, folder, program)
    finally:
        server.terminate()
        try:
            server.wait(timeout=60)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


@contextmanager
def page_of(chromium: Any, lab: Lab) -> Iterator[Any]:
    """A page that notes every address outside this server."""
    context = chromium.new_context(viewport={"width": 1280, "height": 1400})
    page = context.new_page()
    page.set_default_timeout(60_000)
    page.strangers = []
    page.on("request", lambda r: None if _is_ours(r.url, lab) else page.strangers.append(r.url))
    yield page
    context.close()


def _is_ours(url: str, lab: Lab) -> bool:
    return url.startswith((lab.url, lab.url.replace("http", "ws", 1), "blob:", "data:"))


def open_notebook(page: Any, lab: Lab, name: str, cells: Sequence[str]) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(notebook, lab.folder / name)
    page.goto(lab.notebook(name))
    until_ready(page, lab)


def until_ready(page: Any, lab: Lab) -> None:
    """Wait until a notebook is drawn and its kernel is idle."""
    page.wait_for_function(
        "() => window.jupyterapp && document.querySelectorAll('.jp-Notebook .jp-Cell').length > 3"
    )
    if lab.program == "jupyterlab":
        page.get_by_text("| Idle").first.wait_for()
    else:  # it has no status bar
        page.locator(".jp-Notebook-ExecutionIndicator[data-status='idle']").first.wait_for(state="attached")
        page.wait_for_function(
            "() => window.jupyterapp.shell.currentWidget?.sessionContext?.session?.kernel?.status === 'idle'"
        )


def start_cell(page: Any, index: int) -> Any:
    """Begin to run a cell, whose place in the page is returned."""
    cell = page.locator(".jp-Notebook .jp-CodeCell").nth(index)
    cell.locator(".jp-InputPrompt").first.click()
    page.evaluate("() => void window.jupyterapp.commands.execute('notebook:run-cell')")
    return cell


def run_cell(page: Any, index: int) -> str:
    """Run one cell, wait until it has a number, and return what it printed."""
    cell = start_cell(page, index)
    return wait_for_cell(page, index, cell)


def wait_for_cell(page: Any, index: int, cell: Any) -> str:
    """Wait until a cell that was started has a number; what it printed."""
    page.wait_for_function(
        "i => /\\[\\d+\\]/.test(document.querySelectorAll('.jp-Notebook .jp-CodeCell')[i]"
        ".querySelector('.jp-InputPrompt').textContent)",
        arg=index,
    )
    return (
        cell.locator(".jp-OutputArea").inner_text() if cell.locator(".jp-OutputArea-output").count() else ""
    )
