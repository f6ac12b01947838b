"""The one door to mlx-lm: what is used of it, under names that stay the same between its minor versions.

Two minor versions are tested (`tests/cluster/test_older_mlx_lm.py`); any other is refused with
what to install. Everything is looked up when it is called, so that a rank with a wrong version still
answers, with one sentence.
"""

import functools
import importlib
import inspect
import json
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.shared.versions import REQUIREMENT, refuse_untried


def check_version() -> None:
    """Refuse a version of mlx-lm that nobody has tried.

    Raises:
        VersionError: It is missing, too old or too new.
    """
    fix = f"In a terminal, in this environment: pip install '{REQUIREMENT}'; then: %mlx_cluster restart"
    try:
        found = metadata.version("mlx-lm")
    except metadata.PackageNotFoundError:
        found = ""
    refuse_untried(found, fix)


def load_model(folder: Path, *, trust_remote_code: bool, classes: tuple[Any, Any] | None = None) -> nn.Module:
    """A model folder as mlx-lm builds it, lazily.

    Args:
        folder: Its folder.
        trust_remote_code: Whether code from there may run.
        classes: The model's class and that of its arguments, instead of mlx-lm's or the folder's own.

    Raises:
        ValueError: What mlx-lm says of weights or configuration that it cannot use.
    """
    load = _find("utils", "load_model")
    if classes is not None:
        model, _ = load(
            folder, lazy=True, get_model_classes=lambda config: classes, model_config={"model_file": None}
        )
        return model
    if "trust_remote_code" in inspect.signature(load).parameters:
        model, _ = load(folder, lazy=True, trust_remote_code=trust_remote_code)
        return model
    # 0.31 runs a folder's own code unasked.
    own = json.loads((folder / "config.json").read_bytes()).get("model_file")
    if own is not None and not trust_remote_code:
        raise ValueError(f"it brings code of its own ({own}). Pass trust_remote_code=True if you trust it.")
    model, _ = load(folder, lazy=True)
    return model


def settle_random_state() -> None:
    """Forget what drew a lazily built model's first weights.

    Every draw makes MLX's global key out of the one before, and nobody asks for it: the chain grew by 80 KiB with each load
    of a model of five layers, until the process ended.
    """
    mx.eval(mx.random.state)


def load_adapters(model: nn.Module, folder: Path) -> nn.Module:
    """The model with an adapter put into it, lazily; 0.31 does not look whether its tensors fit.

    Raises:
        ValueError: They do not.
    """
    return _find("tuner.utils", "load_adapters")(model, str(folder))


def model_classes(config: dict[str, Any]) -> tuple[Any, Any]:
    """The model's class and that of its arguments.

    Raises:
        ValueError: mlx-lm does not know the architecture.
    """
    return _find("utils", "_get_classes")(config=config)


def dequantize_model(model: nn.Module) -> nn.Module:
    """The model with plain weights instead of packed ones; lazy."""
    return _find("utils", "dequantize_model")(model)


def load_tokenizer(folder: Path, extra: dict[str, Any], *, eos_token_ids: list[int] | None) -> Any:
    """mlx-lm's wrapper around a folder's tokenizer."""
    return _find("utils", "load_tokenizer")(folder, extra, eos_token_ids=eos_token_ids)


def make_prompt_cache(model: nn.Module, max_kv_size: int | None) -> list[Any]:
    """A fresh KV cache for every layer."""
    return list(_find("models.cache", "make_prompt_cache")(model, max_kv_size))


def batch_kv_cache(padding: list[int]) -> Any:
    """An entry for several rows, each with so many padding tokens on its left."""
    return _find("models.cache", "BatchKVCache")(padding)


def batch_rotating_kv_cache(size: int, padding: list[int]) -> Any:
    """The same with a window."""
    return _find("models.cache", "BatchRotatingKVCache")(size, padding)


def kv_cache_class(name: str) -> Any:
    """One of the KV cache classes."""
    return _find("models.cache", name)


def save_prompt_cache(path: Path, entries: list[Any], metadata: dict[str, str]) -> None:
    """Write entries and metadata as one safetensors file."""
    _find("models.cache", "save_prompt_cache")(str(path), entries, metadata)


def load_prompt_cache(path: Path) -> tuple[list[Any], dict[str, str]]:
    """The entries of a file, lazily, and its metadata."""
    entries, metadata = _find("models.cache", "load_prompt_cache")(str(path), return_metadata=True)
    return list(entries), metadata if isinstance(metadata, dict) else {}


def quantize_kv_cache(entries: list[Any], *, start: int, group_size: int, bits: int | None) -> None:
    """Quantise the entries that are long enough, in place."""
    quantize = _find("generate", "maybe_quantize_kv_cache")
    quantize(entries, quantized_kv_start=start, kv_group_size=group_size, kv_bits=bits)


def make_sampler(*, temp: float, top_p: float, min_p: float, top_k: int) -> Callable[[mx.array], mx.array]:
    """From log-probabilities ``[1, V]`` to a token ``[1]``."""
    return _find("sample_utils", "make_sampler")(temp=temp, top_p=top_p, min_p=min_p, top_k=top_k)


def make_logits_processors(**options: Any) -> list[Callable[..., mx.array]]:
    """Functions from (tokens, logits) to logits: a bias, and three kinds of penalty with their context sizes."""
    return _find("sample_utils", "make_logits_processors")(**options)


def attention_function() -> Callable[..., mx.array]:
    """What most models call to attend: ``(queries, keys, values, cache, scale, mask, sinks)``."""
    return _find("models.base", "scaled_dot_product_attention")


def rotating_kv_cache(size: int, keep: int) -> Any:
    """An entry of `size` slots that keeps its first `keep` tokens."""
    return _find("models.cache", "RotatingKVCache")(max_size=size, keep=keep)


@functools.cache
def _check_once() -> None:
    """The version cannot change under a process; to read it takes 10 KB of a file each time."""
    check_version()


def _find(module: str, name: str) -> Any:
    """A function of mlx-lm.

    Raises:
        VersionError: This is not a version that is known to have it.
    """
    _check_once()
    return getattr(importlib.import_module(f"mlx_lm.{module}"), name)
