"""Bringing a model onto this machine, in a process of its own: conversion needs MLX, which the kernel never imports."""

from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from mlx_nb.client.json_lines import follow
from mlx_nb.shared.errors import ModelError
from mlx_nb.shared.models import EMBEDDED, KNOWN_NAMES

Progress = Callable[[str, int, int], None]


def check_model(name: str) -> None:
    """Say at once that a name cannot be a model: a folder or an id may turn out to be none, later.

    Raises:
        ModelError: It is neither the embedded model, nor a known name, a folder or a Hugging Face id.
    """
    known = name == EMBEDDED or any(one.endswith(f"/{name}") for one in KNOWN_NAMES)
    if not known and "/" not in name and not Path(name).expanduser().exists():
        fetch_model(name, lambda *_: None)  # it cannot succeed, and says what is near


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
