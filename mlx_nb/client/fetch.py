"""Bringing a model onto this machine, in a process of its own: conversion needs MLX, which the kernel never imports."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from mlx_nb.shared.errors import ModelError

Progress = Callable[[str, int, int], None]


def fetch_model(name: str, progress: Progress) -> Path:
    """Resolve a model to a folder, downloading and converting what is missing.

    Raises:
        ModelError: It cannot be had; the message says why and what to do.
    """
    # By name, as every call to the engine: this process never imports it.
    command = [sys.executable, "-m", "mlx_nb.engine.fetch", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, encoding="utf-8") as process:
        assert process.stdout is not None  # it is a pipe
        try:
            for line in process.stdout:
                event = json.loads(line)
                if event["kind"] == "progress":
                    progress(event["stage"], event["done"], event["total"])
                elif event["kind"] == "done":
                    process.wait()
                    return Path(event["path"])
                elif event["kind"] == "error":
                    raise ModelError(event["problem"], event["fix"])
        except KeyboardInterrupt:
            process.terminate()
            raise
    raise ModelError(f"Fetching {name} ended without an answer (exit {process.returncode}).", "Try it again.")
