"""Prompt caches: KV caches that are kept in a file, or on the ranks for the runs to come."""

import os
import secrets
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_nb.shared.errors import MlxNbError, PromptCacheError
from mlx_nb.shared.kept import KeptState
from mlx_nb.shared.request import RunRequest

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

SUFFIX = ".safetensors"


class PromptCache:
    """KV caches on the ranks that runs go on with, one after another. Made by `Pipe.load_prompt_cache`.

    ``pipe.generate("…", prompt_cache=cache)`` feeds the prompt after what it holds, and leaves prompt and answer in it,
    as mlx-lm's ``prompt_cache`` does.
    """

    def __init__(self, pipe: "Pipe", name: str) -> None:
        self.pipe = pipe
        self._name = name

    @property
    def tokens(self) -> tuple[int, ...]:
        """The tokens that it holds; -1 where a file of mlx-lm's did not tell.

        Raises:
            PromptCacheError: It is no longer there.
        """
        return held(self.pipe, self._name)

    def __len__(self) -> int:
        return len(self.tokens)

    def close(self) -> None:
        """Free the ranks' memory."""
        drop(self.pipe, self._name)

    def __repr__(self) -> str:
        return f'Prompt cache of {self.pipe.name} · {len(self)} tokens\n next: pipe.generate("…", prompt_cache=cache)'

    def go_on(self, request: RunRequest, *, keeps: bool = True) -> RunRequest:
        """A run that feeds its prompt after what is held."""
        tokens = self.tokens
        return replace(
            request, tokens=(*tokens, *request.tokens), kept=self._name, reused=len(tokens), keeps=keeps
        )


def drop(pipe: "Pipe", name: str) -> None:
    """Free what the ranks keep under that name."""
    with suppress(MlxNbError):  # the pipe or its cluster may have ended, and with it the KV caches
        pipe.call_all("drop_kept", name)


def held(pipe: "Pipe", name: str) -> tuple[int, ...]:
    """The tokens that KV caches of that name hold on every rank, or those of the last run ("").

    Raises:
        PromptCacheError: There are none, or the ranks hold unequally many that cannot be cut back.
    """
    states: list[KeptState | None] = pipe.call_all("kept_state", name)
    there = [state for state in states if state is not None]
    if len(there) < len(states):
        raise PromptCacheError("There are no KV caches of a run here.", "Generate first: pipe.generate(…)")
    shortest = min((state.tokens for state in there), key=len)
    if not shortest or any(len(state.tokens) > len(shortest) and not state.trimmable for state in there):
        raise PromptCacheError(
            "The run was cut short, and its KV caches cannot be brought to the same length.",
            "Generate again: pipe.generate(…)",
        )
    return shortest


def save(pipe: "Pipe", path: str | os.PathLike[str]) -> Path:
    """See `Pipe.save_prompt_cache`."""
    file = _absolute(path)
    tokens = held(pipe, "")
    pipe.call_all("save_prompt_cache", _run_id(), "", len(tokens), str(file))
    return file


def load(pipe: "Pipe", path: str | os.PathLike[str]) -> PromptCache:
    """See `Pipe.load_prompt_cache`."""
    name = secrets.token_hex(4)
    pipe.call_all("load_prompt_cache", _run_id(), name, str(_absolute(path)))
    return PromptCache(pipe, name)


def after(pipe: "Pipe", request: RunRequest, source: "PromptCache | str | os.PathLike[str]") -> RunRequest:
    """A run that goes on with a prompt cache: with one on the ranks, or with a fresh copy of a file.

    Raises:
        PromptCacheError: It is neither, or belongs to another pipe.
    """
    if isinstance(source, PromptCache):
        if source.pipe is not pipe:
            raise PromptCacheError("This prompt cache belongs to another pipe.", "Save it, and load it here.")
        return source.go_on(request)
    if not isinstance(source, str | os.PathLike):
        raise PromptCacheError(
            f"A prompt cache cannot be a {type(source).__name__}.",
            "Type: pipe.load_prompt_cache(path), or name the file.",
        )
    return load(pipe, source).go_on(request, keeps=False)


def _absolute(path: str | os.PathLike[str]) -> Path:
    """The file's full name: the ranks stand in another folder."""
    file = Path(path).expanduser().absolute()
    return file if file.suffix == SUFFIX else file.with_name(file.name + SUFFIX)


def _run_id() -> int:
    return secrets.randbelow(2**30 - 1) + 1
