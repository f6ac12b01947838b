"""Clusters that several modules share, and what one process alone says to the same prompts."""

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.pipe import Pipe
from tests import tiny
from tests.cluster import reference as one_process


@contextmanager
def beside(ranks: int) -> Iterator[Cluster]:
    """A cluster beside whatever is current, which is current again afterwards."""
    before = current.cluster, current.pipe, current.dbg
    current.cluster = current.pipe = current.dbg = None
    running = Cluster.start(ranks=ranks)
    current.cluster, current.pipe, current.dbg = before
    yield running
    running.stop()


@pytest.fixture(scope="session")
def cluster3(_own_runtime_folder: None) -> Iterator[Cluster]:
    """Three ranks that tests share; leave them as you found them."""
    with beside(3) as running:
        yield running


@pytest.fixture(scope="session")
def tcp3(_own_runtime_folder: None) -> Iterator[Cluster]:
    """Three ranks that talk over TCP, as on several hosts: large sends wait for their sender there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLX_NB_MCA", "btl self,tcp")
        with beside(3) as running:
            yield running


@pytest.fixture(scope="session")
def tiny_folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny models, a folder for each kind."""
    folder = tmp_path_factory.mktemp("tiny")
    for kind in one_process.TINY:
        tiny.make_tiny(kind, folder / kind)
    return folder


class Reference:
    """What mlx-lm makes in one process of its own, which begins with the session: the browser's tests come first.

    It is kept in pytest's cache for as long as nothing that it hangs on changes.
    """

    def __init__(self, config: pytest.Config) -> None:
        key = hashlib.sha256()
        for module in (one_process, tiny):
            key.update(Path(module.__file__).read_bytes())
        for package in ("mlx", "mlx-lm", "numpy", "cmeel-openblas"):
            with suppress(metadata.PackageNotFoundError):
                key.update(metadata.version(package).encode())
        assert config.cache
        self.folder = config.cache.mkdir(f"mlx_nb_reference_{key.hexdigest()[:16]}")
        self.process: subprocess.Popen[bytes] | None = None
        if not (self.folder / "reference.json").is_file():
            program = ["nice", sys.executable, one_process.__file__, str(self.folder)]
            one_thread = {
                "OPENBLAS_NUM_THREADS": "1",
                "OMP_NUM_THREADS": "1",
            }  # faster beside other processes
            self.process = subprocess.Popen(program, env={**os.environ, **one_thread})

    def found(self) -> dict[str, Any]:
        """Tokens, texts and logits, once they are there."""
        assert self.process is None or self.process.wait(timeout=280) == 0
        found: dict[str, Any] = json.loads((self.folder / "reference.json").read_text())
        return {**found, "logits": np.load(self.folder / "logits.npy")}

    def end(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


BEGUN = pytest.StashKey[Reference]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin with what mlx-lm makes, if a test will ask for it."""
    if session.config.option.collectonly:
        return
    if any("reference" in getattr(item, "fixturenames", ()) for item in session.items):
        session.config.stash[BEGUN] = Reference(session.config)


def pytest_unconfigure(config: pytest.Config) -> None:
    if BEGUN in config.stash:
        config.stash[BEGUN].end()


@pytest.fixture(scope="session")
def reference(pytestconfig: pytest.Config) -> dict[str, Any]:
    """The tokens, texts and logits that mlx-lm makes in one process of its own."""
    return pytestconfig.stash[BEGUN].found()


@contextmanager
def loaded(cluster: Cluster, model: str | Path, **wishes: Any) -> Iterator[Pipe]:
    """A pipe for as long as it is needed."""
    pipe = cluster.load(str(model), **wishes)
    try:
        yield pipe
    finally:
        pipe.unload()


@pytest.fixture(scope="module")
def pipe2(cluster2: Cluster) -> Iterator[Pipe]:
    """smollm2 over two ranks, cut in the middle."""
    with loaded(cluster2, "smollm2") as pipe:
        yield pipe


@pytest.fixture(scope="module")
def pipe3(cluster3: Cluster) -> Iterator[Pipe]:
    """smollm2 over three ranks, unevenly."""
    with loaded(cluster3, "smollm2", split=[7, 12, 11]) as pipe:
        yield pipe


@pytest.fixture(scope="module")
def tcp_pipe3(tcp3: Cluster) -> Iterator[Pipe]:
    """smollm2 over three ranks and TCP, unevenly."""
    with loaded(tcp3, "smollm2", split=[7, 12, 11]) as pipe:
        yield pipe


@pytest.fixture(params=[pytest.param("pipe2", marks=pytest.mark.soak), "tcp_pipe3"])
def pipe(request: pytest.FixtureRequest) -> Iterator[Pipe]:
    """Three ranks over TCP and unevenly, two over shared memory (soak); what a test put into it is taken out again."""
    found: Pipe = request.getfixturevalue(request.param)
    yield found
    found.breakpoints.delete()
    for one in found.patches:
        one.remove()
    if current.dbg is not None:
        current.dbg.close()
