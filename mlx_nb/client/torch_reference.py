"""A transformers model in torch as the other side of a comparison: a short-lived process, since this one has no torch."""

import json
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from typing import IO, TYPE_CHECKING, Any

from mlx_nb.client.generation import Generation
from mlx_nb.client.processors import read_options
from mlx_nb.client.trace import Trace
from mlx_nb.client.trace_file import open_trace
from mlx_nb.shared import errors
from mlx_nb.shared.errors import ModelError, OptionError
from mlx_nb.shared.globs import matches
from mlx_nb.shared.joining import join_modules
from mlx_nb.shared.position import INPUT, OUTPUT
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.sites import resolve_site

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

_GREEDY = ("raw", "prefill_step_size", "max_tokens", "temp")


class TorchReference:
    """A transformers model that is fed what a pipe is fed; its modules go by the pipe's names for them.

    Attributes:
        name: Its class, and what it was loaded from.
        joined: Its path for each module path of the pipe's that it has.
    """

    def __init__(self, pipe: "Pipe", path: str, dtype: str, folder: Path) -> None:
        """Start it, and wait until it has loaded. `folder` takes what it records.

        Raises:
            MlxNbError: It cannot be loaded; or torch is not installed.
        """
        self._pipe, self._folder, self._files = pipe, folder, 0
        command = [sys.executable, "-m", "mlx_nb.torch_side.model", path, "--dtype", dtype]
        command += ["--trust-remote-code"] if pipe.trusted else []
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self._said: deque[str] = deque(maxlen=20)
        assert self._process.stderr
        self._reader = Thread(target=self._listen, args=(self._process.stderr,), daemon=True)
        self._reader.start()
        try:
            told = self._answer()
        except BaseException:
            self.close()
            raise
        first = pipe.shards[0]
        self._ours = [name for name, _ in first.modules]
        self.joined = join_modules(self._ours, first.layer_paths, told["modules"], told["layers"])
        self.name = f"{told['name']} in torch ({told['dtype']})"

    def close(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                pipe.close()

    def trace(self, ids: Prompt, sites: Sequence[str], **options: Any) -> Trace:
        """Feed a prompt whole, and generate greedily after it. As `Pipe.trace`.

        Raises:
            OptionError: It is asked to do what only a pipe does.
        """
        if odd := sorted(options.keys() - set(_GREEDY)):
            raise OptionError(
                f"A reference in torch generates greedily, without {', '.join(odd)}.", "Leave that away."
            )
        checked = read_options({**options, "max_tokens": max(1, options.get("max_tokens", 0))})
        if checked.temp:
            raise OptionError("A reference in torch generates greedily.", "Leave temp away.")
        first = self._pipe.shards[0]
        patterns = [resolve_site(site, self._ours, first.layer_paths) for site in sites]
        known = {
            f"{ours}.{kind}": f"{theirs}.{kind}"
            for ours, theirs in self.joined.items()
            for kind in (INPUT, OUTPUT)
            if theirs
        }
        wanted = {
            theirs: ours
            for ours, theirs in known.items()
            if any(matches(ours, pattern) for pattern in patterns)
        }
        wanted |= {"logits": "logits"} if "logits" in patterns else {}
        self._files += 1
        file = self._folder / f"{self._files}.safetensors"
        info = {
            "model": self.name,
            "dtype": "",
            "modules": self._ours,
            "layer_paths": first.layer_paths,
            "sites": list(sites),
            "prompts": [list(ids)],
            "layers": [],
        }
        layers = {
            site: layer for site in wanted.values() if (layer := _layer_of(site, first.layer_paths)) >= 0
        }
        told = self._ask(
            ids=list(ids),
            sites=wanted,
            layers=layers,
            max_tokens=options.get("max_tokens", 0),
            stop_ids=list(first.stop_ids),
            info=info,
            file=str(file),
        )
        trace = open_trace(file)
        trace.gen = Generation(list(ids), token_ids=told["token_ids"], state="finished")  # type: ignore[arg-type]
        return trace

    def _ask(self, **request: Any) -> dict[str, Any]:
        assert self._process.stdin
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # it has ended: why stands in what it said
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        """The next line.

        Raises:
            MlxNbError: What the process says is wrong.
        """
        assert self._process.stdout
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._reader.join()
            last = next((text for text in reversed(self._said) if text.strip()), "it said nothing")
            raise ModelError(
                f"The process with the model in torch ended with {self._process.returncode}: {last.strip()[:300]}",
                "Compare with the model in one process instead: mlx_nb.reference()",
            )
        told: dict[str, Any] = json.loads(line)
        if told["kind"] == "error":
            raise getattr(errors, told["class"], ModelError)(told["problem"], told["fix"])
        return told

    def _listen(self, stream: IO[str]) -> None:
        self._said.extend(stream)


def _layer_of(site: str, layer_paths: Sequence[str]) -> int:
    return next(
        (number for number, path in enumerate(layer_paths) if site.startswith(f"{path}.")),
        -1,
    )


@contextmanager
def in_torch(pipe: "Pipe", path: str, dtype: str) -> Iterator[TorchReference]:
    """A transformers model for as long as it is needed. Raises as `TorchReference`."""
    with tempfile.TemporaryDirectory(prefix="mlx_nb-torch-") as folder:
        reference = TorchReference(pipe, path, dtype, Path(folder))
        try:
            yield reference
        finally:
            reference.close()
