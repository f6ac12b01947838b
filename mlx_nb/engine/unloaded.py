"""A model out of its configuration alone: shapes and bytes, with no weight file read, or even present."""

from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.loading import read_config
from mlx_nb.engine.mlx_lm_api import model_classes, settle_random_state
from mlx_nb.engine.own_code import check_code
from mlx_nb.engine.weights import read_header, read_index
from mlx_nb.shared.errors import MlxNbError, ModelError

_DTYPES = {"float32": mx.float32, "float16": mx.float16, "bfloat16": mx.bfloat16}


def build_unloaded(folder: Path) -> tuple[nn.Module, dict[str, Any]]:
    """The whole model with random, never evaluated weights, quantised as its configuration says.

    Raises:
        RemoteCodeError: The model is built by code of its own.
        ModelError: mlx-lm does not know the architecture, or refuses the configuration.
    """
    config = read_config(folder)
    check_code(
        folder,
        config,
        trusted=False,
        fix=f"Plans and shape tables run no such code. Load it: %mlx_load {folder} --trust-remote-code,"
        " with --split even or layers per rank; its plan is then pipe.plan.",
    )
    try:
        model_class, args_class = model_classes(config)
        model: nn.Module = model_class(args_class.from_dict(config))
        settle_random_state()
    except MlxNbError:
        raise
    except Exception as error:
        text = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        raise ModelError(
            f"mlx-lm cannot build {folder.name}: {text.rstrip('.')}.",
            "Is its config.json whole? Fetch the model again, or type: %mlx_load smollm2",
        ) from error
    model.set_dtype(_DTYPES[stored_dtype(folder, config)])
    if quantization := config.get("quantization") or config.get("quantization_config"):
        _quantize(model, quantization, _tensor_names(folder))
    return model, config


def stored_dtype(folder: Path, config: dict[str, Any]) -> str:
    """The dtype of the unquantised weights: by the configuration, else by a file's header."""
    text = {**config, **config.get("text_config", {})}
    name = str(text.get("torch_dtype") or text.get("dtype") or "").removeprefix("torch.")
    if name in _DTYPES:
        return name
    for path in sorted(folder.glob("model*.safetensors"))[:1]:
        kinds = {tensor.dtype for tensor in read_header(path).values()}
        for code, known in (("F32", "float32"), ("BF16", "bfloat16"), ("F16", "float16")):
            if code in kinds:
                return known
    return "bfloat16"


def _tensor_names(folder: Path) -> set[str]:
    if index := read_index(folder):
        return set(index)
    return {name for path in folder.glob("model*.safetensors") for name in read_header(path)}


def _quantize(model: nn.Module, quantization: dict[str, Any], names: set[str]) -> None:
    group, bits = quantization.get("group_size"), quantization.get("bits")
    if not isinstance(group, int) or not isinstance(bits, int):
        return  # another scheme: mlx-lm converts it at load, and the bytes are those of the plain weights
    listed = any(name.endswith(".scales") for name in names)

    def wanted(path: str, module: nn.Module) -> bool | dict[str, Any]:
        if path in quantization and quantization[path] is not None:
            own = quantization[path]
            return own if isinstance(own, dict) else bool(own)
        if not hasattr(module, "to_quantized"):
            return False
        if listed:
            return f"{path}.scales" in names
        weight = getattr(module, "weight", None)
        return isinstance(weight, mx.array) and weight.shape[-1] % group == 0

    mode = {"mode": quantization["mode"]} if "mode" in quantization else {}
    nn.quantize(model, group_size=group, bits=bits, class_predicate=wanted, **mode)
