"""A model from Hugging Face: an already downloaded snapshot if it is whole, else a download."""

import json
import os
import threading
from pathlib import Path
from typing import Any

import tqdm

from mlx_nb.engine.model_folder import disk_errors
from mlx_nb.shared.errors import ModelNotFoundError
from mlx_nb.shared.models import EMBEDDED, ModelDownloadError, Progress

FILES = [
    "*.json",
    "model*.safetensors",
    "*.py",
    "tokenizer.model",
    "*.tiktoken",
    "tiktoken.model",
    "*.txt",
    "*.jsonl",
    "*.jinja",
]
"""What mlx-lm downloads of a repository (its DEFAULT_ALLOW_PATTERNS; a test keeps the two equal)."""


def hub_model(repo: str, progress: Progress) -> Path:
    """The folder of a Hugging Face repository's newest snapshot; without network, of the one that is there.

    A whole snapshot is taken as it is, without asking the hub for a newer one: a lesson that ran yesterday
    runs today, on a train too.

    Raises:
        ModelNotFoundError: The hub has no such repository, or it is private or gated.
        ModelDownloadError: The hub cannot be reached, and no whole snapshot is here.
        ModelCacheError: The disk is full, or the download cache cannot be written.
    """
    # Here, since it takes half a second and most calls name a folder or the embedded model.
    import huggingface_hub
    from huggingface_hub import errors

    here = local_snapshot(repo)
    if here is not None:
        return here
    by_hand = f"copy the model's folder here and load it by its path, or type: %mlx_load {EMBEDDED}"
    try:
        with disk_errors(Path(huggingface_hub.constants.HF_HUB_CACHE)):
            path = Path(
                huggingface_hub.snapshot_download(repo, allow_patterns=FILES, tqdm_class=_bar(progress))
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
        raise _refused(repo, error, by_hand) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        if huggingface_hub.constants.HF_HUB_OFFLINE:
            raise ModelDownloadError(
                f"{repo} is not downloaded, and HF_HUB_OFFLINE forbids to download it.",
                f"Unset HF_HUB_OFFLINE and restart, or {by_hand}",
            ) from error
        if isinstance(error.__cause__, errors.HfHubHTTPError):
            raise _refused(repo, error.__cause__, by_hand) from error
        raise _unreachable(repo, by_hand) from error
    except Exception as error:
        # The hub's HTTP library is its own affair (requests, httpx, …): its errors are told by their names.
        if not any(
            word in type(error).__name__ for word in ("Connect", "Timeout", "Proxy", "Network", "Read")
        ):
            raise
        raise _unreachable(repo, by_hand) from error
    missing = missing_files(path)
    if missing:
        raise ModelNotFoundError(
            f"{repo} on Hugging Face is no model that mlx-lm can load: it has no {missing}.",
            "Choose a repository with safetensors, such as one of mlx-community's.",
        )
    return path


def local_snapshot(repo: str) -> Path | None:
    """A whole snapshot that was downloaded before, without touching the network; None if there is none."""
    import huggingface_hub
    from huggingface_hub import errors

    try:
        path = Path(huggingface_hub.snapshot_download(repo, allow_patterns=FILES, local_files_only=True))
    except (errors.LocalEntryNotFoundError, errors.HFValidationError, OSError, ValueError):
        return None
    # An interrupted download leaves a folder too, and not every version of the hub's library notices.
    return None if missing_files(path) else path


def missing_files(folder: Path) -> str:
    """The first file that a model folder lacks, ``config.json`` or a weight file; "" if it is whole."""
    if not (folder / "config.json").is_file():
        return "config.json"
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


def _unreachable(repo: str, by_hand: str) -> ModelDownloadError:
    return ModelDownloadError(
        f"{repo} is not downloaded, and Hugging Face ({os.environ.get('HF_ENDPOINT', 'huggingface.co')}) "
        "cannot be reached.",
        f"Connect and load again, or {by_hand}",
    )


def _refused(repo: str, error: Any, by_hand: str) -> ModelDownloadError:
    status = f"HTTP {error.response.status_code}" if error.response is not None else type(error).__name__
    return ModelDownloadError(
        f"Hugging Face answered with an error for {repo} ({status}).", f"Try again later, or {by_hand}"
    )
