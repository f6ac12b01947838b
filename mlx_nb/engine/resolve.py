"""From a model's name, as the user typed it, to a folder that mlx-lm can load."""

import difflib
import re
from pathlib import Path

from mlx_nb.engine.embedded import embedded_model
from mlx_nb.engine.hub import Choose, hub_model
from mlx_nb.shared.errors import ModelNotFoundError
from mlx_nb.shared.models import COMMUNITY, EMBEDDED, KNOWN_NAMES, ModelDownloadError, Progress

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_QUANTISED = re.compile(r"[\w.-]+-\d?bit|[\w.-]+-bf16", re.IGNORECASE)
_MOST_FOLDERS = 200


def known_names() -> tuple[str, ...]:
    """Names to offer in completion; any folder or Hugging Face id loads as well."""
    return KNOWN_NAMES


def resolve_model(name: str, progress: Progress | None = None, choose: Choose | None = None) -> Path:
    """The folder of a model: ``smollm2``, a folder, a Hugging Face id ``org/name``, or the name of a known one.

    ``smollm2`` is always the embedded model; a folder of that name is ``./smollm2``. An existing folder
    goes before a Hugging Face id that reads the same. ``Qwen3-1.7B-8bit`` is mlx-community's.

    Args:
        name: As the user typed it.
        progress: Told how far a download or conversion is; see `Progress`.
        choose: Which weight files of a Hugging Face repository are wanted; None wants all.

    Raises:
        ModelNotFoundError: There is no such model; the fix names the closest one.
        ModelDownloadError: It is not here, and cannot be fetched.
        ModelCacheError: It cannot be stored.
    """
    name = name.strip()
    if name == EMBEDDED:
        return embedded_model(progress)
    folder = Path(name).expanduser() if name else Path()
    if name and folder.exists():
        return _local_model(name, folder.absolute())
    if _looks_like_path(name):
        raise ModelNotFoundError(f"There is no folder {folder.absolute()}.", _suggest(name))
    repo = next((known for known in KNOWN_NAMES if known.endswith(f"/{name}")), name)
    if _HUB_ID.fullmatch(repo):
        try:
            return hub_model(repo, progress or _silent, choose)
        except ModelDownloadError as error:
            if repo != name or not folder.parent.is_dir():
                raise
            # It may have been meant as a folder: one that stands beside others.
            near = _suggest(name)
            fix = near if near.startswith("Did you mean") else error.fix
            raise type(error)(
                f"There is no folder {folder.absolute()}, and as a Hugging Face id, {error.problem}", fix
            ) from error
    raise ModelNotFoundError(f"No model '{name}'.", _suggest(name))


def _local_model(name: str, folder: Path) -> Path:
    if (folder / "config.json").is_file():
        return folder
    if folder.is_file():
        raise ModelNotFoundError(
            f"{folder} is a file; a model is a folder.",
            f"Type: %mlx_load {folder.parent}"
            if (folder.parent / "config.json").is_file()
            else "Name the folder that holds config.json and model*.safetensors.",
        )
    inside = _models_in(folder)
    raise ModelNotFoundError(
        f"The folder {folder} has no config.json, so it is no model.",
        f"Type: %mlx_load {Path(name) / inside[0]}"
        if len(inside) == 1
        else "Name the folder that holds config.json and model*.safetensors.",
    )


def _looks_like_path(name: str) -> bool:
    return name.startswith(("/", "./", "../", "~")) or name in (".", "..") or name.count("/") > 1


def _suggest(name: str) -> str:
    """The fix for a name that is not known: the closest of the known names and of the folders nearby."""
    near = Path(name).expanduser().parent if "/" in name else Path()
    prefix = name.rpartition("/")[0]
    folders = [f"{prefix}/{found}" if prefix else found for found in _models_in(near)]
    # Compared without case, and also by the last part: people type "qwen3-1.7b-8bit" for an id.
    spellings = {}
    for known in (*folders, *reversed(KNOWN_NAMES)):
        spellings[known.rpartition("/")[2].lower()] = known
        spellings[known.lower()] = known
    close = difflib.get_close_matches(name.lower(), spellings, n=3, cutoff=0.7)
    if close and close[0] == name.lower():
        close = close[:1]
    matches = list(dict.fromkeys(spellings[spelling] for spelling in close))
    if matches:
        return f"Did you mean {' or '.join(matches)}? Type: %mlx_load {matches[0]}"
    if _QUANTISED.fullmatch(name):
        return f"If mlx-community has it, type: %mlx_load {COMMUNITY}/{name}. Or type: %mlx_load {EMBEDDED}"
    return f"Give a folder with config.json, a Hugging Face id org/name, or type: %mlx_load {EMBEDDED}"


def _models_in(folder: Path) -> list[str]:
    """Names of the model folders directly inside a folder; a huge folder is not searched to its end."""
    try:
        inside = [path for path, _ in zip(folder.iterdir(), range(_MOST_FOLDERS), strict=False)]
    except OSError:
        return []
    return sorted(path.name for path in inside if (path / "config.json").is_file())


def _silent(stage: str, done: int, total: int) -> None:
    """No progress is wanted."""
