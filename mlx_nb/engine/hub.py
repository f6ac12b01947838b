"""A model from Hugging Face: what is wanted of it, out of the download cache if it is there, else fetched."""

import json
import os
import threading
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import tqdm

from mlx_nb.engine.model_folder import disk_errors
from mlx_nb.shared.errors import ModelNotFoundError
from mlx_nb.shared.models import EMBEDDED, ModelDownloadError, Progress

WEIGHT_FILES = "model*.safetensors"

FILES = [
    "*.json",
    WEIGHT_FILES,
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
]
"""What mlx-lm downloads of a repository (its DEFAULT_ALLOW_PATTERNS; a test keeps the two equal)."""

SMALL_FILES = [pattern for pattern in FILES if pattern != WEIGHT_FILES]


Choose = Callable[[Path], Collection[str] | None]
"""From a folder with a repository's small files to the weight files that are wanted; None for all of them."""


def hub_model(repo: str, progress: Progress, choose: Choose | None = None) -> Path:
    """The folder of a Hugging Face repository's newest snapshot; without network, of the one that is there.

    What is wanted and here is taken as it is, without asking the hub for a newer one: a lesson that ran
    yesterday runs today, on a train too. Ranks on one host share the folder; a file is fetched once.

    Args:
        repo: ``org/name``.
        progress: Told how far the download is.
        choose: Which weight files are wanted; None wants all.

    Raises:
        ModelNotFoundError: The hub has no such repository, or it is private or gated.
        ModelDownloadError: The hub cannot be reached, and what is wanted is not here.
        ModelCacheError: The disk is full, or the download cache cannot be written.
    """
    here = local_snapshot(repo)
    if here is not None and not lacking(here, choose):
        return here
    if choose is None:
        path = _download(repo, FILES, progress)
        wanted = None
    else:
        # The small files first: they say which of the others are wanted.
        path = _download(repo, SMALL_FILES, progress)
        wanted = choose(path)
        weights = [WEIGHT_FILES] if wanted is None else sorted(wanted)
        if weights:
            path = _download(repo, weights, progress, commit=path.name)
    if missing := missing_files(path, wanted):
        raise ModelNotFoundError(
            f"{repo} on Hugging Face is no model that mlx-lm can load: it has no {missing}.",
            "Choose a repository with safetensors, such as one of mlx-community's.",
        )
    return path


def _download(repo: str, patterns: list[str], progress: Progress, *, commit: str | None = None) -> Path:
    """Fetch what is not here yet of some files of a snapshot; raises as `hub_model`."""
    # Here, since it takes half a second and most calls name a folder or the embedded model.
    import huggingface_hub
    from huggingface_hub import errors

    with disk_errors(Path(huggingface_hub.constants.HF_HUB_CACHE)):
        try:
            return Path(
                huggingface_hub.snapshot_download(
                    repo, revision=commit, allow_patterns=patterns, tqdm_class=_bar(progress)
                )
            )
        except errors.HFValidationError as error:
            raise ModelNotFoundError(
                f"'{repo}' is no Hugging Face id.",
                "Type: %mlx_load org/name, such as mlx-community/Qwen3-1.7B-8bit",
            ) from error
        except errors.GatedRepoError as error:
            raise ModelNotFoundError(
                f"{repo} on Hugging Face asks you to accept its terms first.",
                f"Open https://huggingface.co/{repo}, accept, run `hf auth login` in a terminal, and load again.",
            ) from error
        except errors.RepositoryNotFoundError as error:
            raise ModelNotFoundError(
                f"Hugging Face has no model '{repo}' that you may read.",
                "Check the spelling of org/name; for a private one run `hf auth login` in a terminal.",
            ) from error
        except errors.HfHubHTTPError as error:
            raise _refused(repo, patterns, error) from error
        except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
            if isinstance(error.__cause__, errors.HfHubHTTPError):
                raise _refused(repo, patterns, error.__cause__) from error
            raise _not_here(repo, patterns) from error
        except Exception as error:
            # The hub's HTTP library is its own affair (requests, httpx, …): its errors are told by their names.
            words = ("Connect", "Timeout", "Proxy", "Network", "Read", "Protocol")
            broken = isinstance(error, OSError) and "Consistency check" in str(error)
            if not broken and not any(word in type(error).__name__ for word in words):
                raise
            raise _not_here(repo, patterns) from error


def local_snapshot(repo: str) -> Path | None:
    """The snapshot that was downloaded last, whole or not, without touching the network; None if there is none."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        path = Path(
            huggingface_hub.snapshot_download(repo, allow_patterns="config.json", local_files_only=True)
        )
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError, ValueError):
        return None
    return path if (path / "config.json").is_file() else None


def lacking(folder: Path, choose: Choose | None) -> str:
    """The first file that is wanted and not in a snapshot; "" if all are there."""
    if not (folder / "config.json").is_file():
        return "config.json"
    # The tokenizer comes with the small files; which of them a repository has, its list tells.
    import huggingface_hub
    from huggingface_hub import errors

    try:
        huggingface_hub.snapshot_download(
            _repo_of(folder), revision=folder.name, allow_patterns=SMALL_FILES, local_files_only=True
        )
    except (errors.LocalEntryNotFoundError, OSError, ValueError):
        return "a file beside the weights"
    return missing_files(folder, choose(folder) if choose else None)


def _repo_of(folder: Path) -> str:
    """The repository of a snapshot's folder, ``…/models--org--name/snapshots/commit``."""
    return folder.parent.parent.name.removeprefix("models--").replace("--", "/")


def missing_files(folder: Path, wanted: Collection[str] | None = None) -> str:
    """The first file that a model folder lacks, ``config.json`` or a weight file; "" if it is whole.

    Args:
        folder: The folder.
        wanted: The weight files that are wanted; None for all.
    """
    if not (folder / "config.json").is_file():
        return "config.json"
    if wanted is not None:
        return next((name for name in sorted(wanted) if not (folder / name).is_file()), "")
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = sorted(set(json.loads(index.read_bytes())["weight_map"].values()))
        except (OSError, ValueError, KeyError, AttributeError):
            return f"readable {index.name}"
        return next((name for name in named if not (folder / name).is_file()), "")
    return "" if any(folder.glob("model*.safetensors")) else "model*.safetensors"


def _bar(progress: Progress) -> type[Any]:
    """A silent tqdm class that reports the bytes of a whole snapshot to `progress`.

    The hub makes several bars, from several threads; the one that counts written bytes is told by its name
    where it has one, else by its unit. `progress` is called from one thread at a time.
    """
    lock = threading.Lock()

    class Bar(tqdm.tqdm):
        monitor_interval = 0  # no watching thread for bars that nobody sees

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            name = str(kwargs.pop("name", ""))
            self.tells = kwargs.get("unit") == "B" and not name.endswith(".transfer")
            kwargs["disable"] = False
            kwargs["file"] = _Nowhere()
            super().__init__(*args, **kwargs)

        def update(self, n: float | None = 1) -> bool | None:
            shown = super().update(n)
            if self.tells:
                with lock:
                    progress("download", int(self.n), int(self.total or 0))
            return shown

    return Bar


class _Nowhere:
    """A file for tqdm that keeps nothing."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        pass


def _not_here(repo: str, patterns: list[str]) -> ModelDownloadError:
    """The error for what is neither here nor to be had."""
    from huggingface_hub import constants

    what, by_hand = _lack(repo, patterns)
    if constants.HF_HUB_OFFLINE:
        return ModelDownloadError(
            f"{what}, and HF_HUB_OFFLINE forbids to download it.",
            f"Unset HF_HUB_OFFLINE and restart, or {by_hand}",
        )
    where = os.environ.get("HF_ENDPOINT", "huggingface.co")
    return ModelDownloadError(
        f"{what}, and Hugging Face ({where}) cannot be reached.",
        f"Connect and load again (files that are whole are kept), or {by_hand}",
    )


def _refused(repo: str, patterns: list[str], error: Any) -> ModelDownloadError:
    """The error for a hub that answers, and with no file."""
    what, by_hand = _lack(repo, patterns)
    status = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
    return ModelDownloadError(
        f"{what}, and Hugging Face answered with an error ({status}).", f"Try again later, or {by_hand}"
    )


def _lack(repo: str, patterns: list[str]) -> tuple[str, str]:
    """What is not here, as the beginning of a sentence, and how to do without the hub."""
    folder = local_snapshot(repo)
    missing = (
        missing_files(
            folder, [name for name in patterns if name.endswith(".safetensors") and "*" not in name] or None
        )
        if folder
        else ""
    )
    if missing:
        return (
            f"{repo} is not whole here: {missing} is missing",
            f"copy {missing} into {folder}, or type: %mlx_load {EMBEDDED}",
        )
    return (
        f"{repo} is not downloaded",
        f"copy the model's folder here and load it by its path, or type: %mlx_load {EMBEDDED}",
    )
