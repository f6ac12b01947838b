"""Bringing a model onto this machine, in a process of its own: conversion needs MLX, which the kernel never imports."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlx_nb.client.json_lines import follow
from mlx_nb.shared.errors import ModelError

Progress = Callable[[str, int, int], None]


def fetch_model(name: str, progress: Progress) -> Path:
    """Resolve a model to a folder, downloading and converting what is missing.

    Raises:
        ModelError: It cannot be had; the message says why and what to do.
    """
    found = None
    with closing(follow("mlx_nb.engine.fetch", name)) as events:
        for event in events:
            if event["kind"] == "progress":
                progress(event["stage"], event["done"], event["total"])
            elif event["kind"] == "done":
                found = Path(event["path"])
            elif event["kind"] == "error":
                raise ModelError(event["problem"], event["fix"])
    if found is None:
        raise ModelError(f"Fetching {name} ended without an answer.", "Try it again.")
    return found
