"""Real ranks for all tests: nothing here pretends to be MPI."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current

MARK = "MLX_NB_CLUSTER"
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

# A background job of a shell, or one under nohup, starts with these ignored, and every child inherits that.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# A shell with another environment activated: IPython would warn about it, and a warning is an error here.
if "VIRTUAL_ENV" in os.environ:
    os.environ["VIRTUAL_ENV"] = sys.prefix


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what needs torch where it is not installed: it is an extra, and a skip would count as a failure."""
    if find_spec("torch") is not None:
        return
    left_out = [item for item in items if item.get_closest_marker("torch")]
    items[:] = [item for item in items if item not in left_out]
    if left_out:
        config.hook.pytest_deselected(items=left_out)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
    """Where everything is required (the gate sets MLX_NB_REQUIRE=all), a skip is a failure."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("MLX_NB_REQUIRE") == "all":
        report.outcome = "failed"
        report.longrepr = f"Skipped where nothing may be: {call.excinfo}"
    return report


@pytest.fixture(scope="session", autouse=True)
def _own_runtime_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Clusters of other sessions on this machine are none of our business."""
    before = os.environ.get("JUPYTER_RUNTIME_DIR")
    os.environ["JUPYTER_RUNTIME_DIR"] = str(tmp_path_factory.mktemp("runtime"))
    yield
    if before is None:
        del os.environ["JUPYTER_RUNTIME_DIR"]
    else:
        os.environ["JUPYTER_RUNTIME_DIR"] = before


@pytest.fixture(scope="session")
def cluster2(_own_runtime_folder: None) -> Iterator[Cluster]:
    """A two-rank cluster that all tests share; leave it as you found it."""
    running = Cluster.start(ranks=2)
    yield running
    running.stop()


@pytest.fixture
def alone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start clusters of one's own beside the shared one; what is left of them is stopped."""
    for name in ("cluster", "pipe", "dbg"):
        monkeypatch.setattr(current, name, None)
    yield
    if current.cluster is not None:
        current.cluster.stop()


def cluster_processes(name: str) -> list[psutil.Process]:
    """The living processes of one cluster, by the mark in their environment: nobody else's."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) == name and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def seconds_until(condition: Callable[[], bool], limit_s: float) -> float:
    """Wait for a condition and return how long it took; fail after the limit."""
    began_s = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - began_s
        assert waited_s < limit_s, f"not within {limit_s} s"
        time.sleep(0.1)
    return time.monotonic() - began_s


def seconds_until_gone(name: str, limit_s: float) -> float:
    """Wait until no process of a cluster is left, and return how long it took."""
    began_s = time.monotonic()
    while left := cluster_processes(name):
        waited_s = time.monotonic() - began_s
        assert waited_s < limit_s, f"after {waited_s:.1f} s still there: {[p.cmdline() for p in left]}"
        time.sleep(0.1)
    return time.monotonic() - began_s


class Script:
    """A Python program in a process of its own, with a line-wise look at what it prints."""

    def __init__(self, source: str, folder: Path, **environment: str) -> None:
        file = folder / "script.py"
        file.write_text(source)
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", str(file)],
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            cwd=folder,
        )

    def line(self) -> str:
        """The next line that it prints; empty at its end."""
        assert self.process.stdout
        return self.process.stdout.readline().strip()

    def wait(self, timeout_s: float = 60) -> int:
        assert self.process.stdout
        code = self.process.wait(timeout_s)
        self.process.stdout.close()
        return code


@pytest.fixture
def script(tmp_path: Path) -> Iterator[Callable[..., Script]]:
    """Runs programs, and ends them with the test."""
    running: list[Script] = []

    def run(source: str, **environment: str) -> Script:
        running.append(Script(source, tmp_path, **environment))
        return running[-1]

    yield run
    for one in running:
        if one.process.poll() is None:
            one.process.kill()
            one.wait()


@pytest.fixture(scope="session")
def chromium() -> Iterator[Any]:
    """The browser; a missing one skips, unless everything is required."""
    problem = None if CHROMIUM else "Chromium is missing. Type: apt-get install -y chromium"
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        problem = "Playwright is missing. Type: pip install 'mlx-nb[test]'"
    if problem:
        if os.environ.get("MLX_NB_REQUIRE") == "all":
            pytest.fail(problem)
        pytest.skip(problem)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()
