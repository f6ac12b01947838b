"""A peer in a process of its own, asked by JSON lines; quiet until it is asked."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from mlx_nb.client.launch import THREAD_VARIABLES, find_mpiexec
from mlx_nb.shared.errors import MlxNbError

END_TIMEOUT_S = 20


class BenchError(MlxNbError):
    """A peer failed, so its row cannot be measured."""


class Worker:
    """One peer: several processes that get the same commands, the first of which answers."""

    def __init__(
        self, module: str, arguments: Sequence[str], environments: Sequence[Mapping[str, str]]
    ) -> None:
        self.name = module
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the processes
        self._processes = [
            subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env={**os.environ, **environment},
                text=True,
            )
            for environment in environments
        ]

    @property
    def pid(self) -> int:
        """Of the first process."""
        return self._processes[0].pid

    def ask(self, do: str, **values: Any) -> float:
        """A number from the first process.

        Raises:
            BenchError: A process ended instead of answering.
        """
        line = json.dumps({"do": do, **values}) + "\n"
        answers = []
        try:
            for process in self._processes:
                assert process.stdin is not None
                process.stdin.write(line)
                process.stdin.flush()
        except BrokenPipeError as error:
            raise self._failed(do) from error
        for process in self._processes:
            assert process.stdout is not None
            answers.append(process.stdout.readline())
        if not all(answers):
            raise self._failed(do)
        return float(json.loads(answers[0]))

    def _failed(self, do: str) -> BenchError:
        self._errors.seek(0)
        last = self._errors.read().decode(errors="replace").strip().splitlines()[-1:] or ["no word"]
        return BenchError(f"{self.name} ended at '{do}': {last[0]}", "Leave its rows out with --rows.")

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    stream.close()
        for process in self._processes:
            try:
                process.wait(END_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._errors.close()


def one_process(folder: str, threads: int) -> Worker:
    """mlx-lm with the whole model, and so many BLAS threads."""
    environment = dict.fromkeys(THREAD_VARIABLES, str(threads))
    return Worker("mlx_nb.bench.peers.one_process", [folder], [environment])


def lm_pipeline(folder: str, ranks: int, keep: ExitStack) -> Worker:
    """mlx-lm's own pipeline over MLX's ring, one BLAS thread a process."""
    hostfile = Path(keep.enter_context(tempfile.TemporaryDirectory())) / "hosts.json"
    hostfile.write_text(json.dumps([[f"127.0.0.1:{port}"] for port in _free_ports(ranks)]))
    common = {**dict.fromkeys(THREAD_VARIABLES, "1"), "MLX_HOSTFILE": str(hostfile)}
    environments = [{**common, "MLX_RANK": str(rank)} for rank in range(ranks)]
    return Worker("mlx_nb.bench.peers.one_process", [folder, "--pipeline"], environments)


def run_json(command: Sequence[str]) -> Any:
    """What a program prints as JSON.

    Raises:
        BenchError: It failed.
    """
    done = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **_AS_ROOT}, check=False
    )
    if done.returncode:
        last = done.stderr.strip().splitlines()[-1:] or ["no word"]
        raise BenchError(f"{command[-3]} failed: {last[0]}", "Leave its rows out with --rows.")
    return json.loads(done.stdout.strip().splitlines()[-1])


def under_mpi(ranks: int, module: str, *arguments: str, btl: str) -> list[str]:
    """A command that runs a module on several ranks, over one of Open MPI's transports."""
    flags = ["--bind-to", "none", "--oversubscribe", "--mca", "mpi_yield_when_idle", "1", "--mca", "btl", btl]
    return [find_mpiexec(), "-n", str(ranks), *flags, sys.executable, "-m", module, *arguments]


_AS_ROOT = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"} if os.geteuid() == 0 else {}


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        listening = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in listening:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in listening]
