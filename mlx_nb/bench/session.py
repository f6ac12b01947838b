"""What the rows share: one cluster, loaded models, peers. Opened when a row first asks, closed together."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path

from mlx_nb.bench.worker import Worker, lm_pipeline, one_process
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe

RANKS = 2
SPLITTABLE, LARGE = "qwen2", "qwen2-large"


class Session:
    """The contenders of one benchmark, each there once.

    Args:
        model: A name, a folder or a Hugging Face id.
        quick: Fewer tokens: to try it out, not to quote.
    """

    def __init__(self, model: str, *, quick: bool = False) -> None:
        self.model = model
        self.quick = quick
        self._stack = ExitStack()
        self._cluster: Cluster | None = None
        self._pipes: dict[str, Pipe] = {}
        self._workers: dict[str, Worker] = {}
        self._folders: dict[str, str] = {}

    def cluster(self) -> Cluster:
        """Two ranks on this machine."""
        if self._cluster is None:
            self._cluster = self._stack.enter_context(Cluster.start(ranks=RANKS))
        return self._cluster

    def pipe(self, model: str = "") -> Pipe:
        """The model over our ranks."""
        name = model or self.model
        if name not in self._pipes:
            self._pipes[name] = self.cluster().load(self.folder(name))
        return self._pipes[name]

    def reload(self, model: str = "") -> float:
        """Load a model again, and say how long it took: seconds."""
        name = model or self.model
        self.pipe(name).unload()
        begin = time.perf_counter()
        self._pipes[name] = self.cluster().load(self.folder(name))
        return time.perf_counter() - begin

    def unload(self, model: str) -> None:
        """Let a model go, ours and the peers': the next row does not need it."""
        if pipe := self._pipes.pop(model, None):
            pipe.unload()
        folder = self._folders.get(model)
        for key in [key for key in self._workers if key.endswith(f" {folder}")]:
            self._workers.pop(key).close()

    def alone(self, threads: int, model: str = "") -> Worker:
        """The model in one process of mlx-lm's, loaded."""
        folder = self.folder(model or self.model)
        return self._worker(f"one {threads} {folder}", lambda: one_process(folder, threads))

    def lm_pipeline(self) -> Worker:
        """The splittable model over mlx-lm's own pipeline, loaded."""
        folder = self.folder(SPLITTABLE)
        return self._worker(f"pipeline {folder}", lambda: lm_pipeline(folder, RANKS, self._stack))

    def _worker(self, key: str, make: Callable[[], Worker]) -> Worker:
        if key not in self._workers:
            worker = self._workers[key] = self._stack.enter_context(closing(make()))
            worker.ask("load")
        return self._workers[key]

    def folder(self, model: str) -> str:
        """Where a model lies on this machine."""
        if model not in self._folders:
            self._folders[model] = self._make(model) if model in (SPLITTABLE, LARGE) else self._fetch(model)
        return self._folders[model]

    def _fetch(self, model: str) -> str:
        from mlx_nb.client.fetch import fetch_model

        return str(fetch_model(model, lambda *_: None))

    def _make(self, model: str) -> str:
        made = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="mlx_nb-bench-"))
        folder = Path(made) / model
        options = ["--large"] if model == LARGE else []
        command = [sys.executable, "-m", "mlx_nb.bench.peers.make_model", str(folder), *options]
        subprocess.run(command, check=True)
        return str(folder)

    def close(self) -> None:
        """End every process that was started, and remove what was made."""
        self._stack.close()
