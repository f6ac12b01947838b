"""An adapter in mlx-lm's format on top of a model: LoRA, DoRA, or fully fine-tuned layers.

mlx-lm's own function puts it into the model, lazily, before the layers are divided: a rank reads the adapter
tensors of its own layers and no others. Everything that can be wrong is looked for in the headers first.
"""

import json
from pathlib import Path
from typing import Any

import mlx.nn as nn

from mlx_nb.engine.layers import named_modules, transformer_layers
from mlx_nb.engine.mlx_lm_api import load_adapters, settle_random_state
from mlx_nb.engine.provenance import Provenance, and_more, shapes_before
from mlx_nb.engine.weights import TensorInfo, read_header
from mlx_nb.shared.errors import AdapterError, MlxNbError, WeightsError

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"
KINDS = ("lora", "dora", "full")
_LEAVES = ("lora_a", "lora_b", "m")
_NAME_ONE = f"Name a folder with {CONFIG} and {WEIGHTS}, as mlx_lm.lora writes it."


def find_adapter(path: str) -> Path:
    """The folder of an adapter.

    Raises:
        AdapterError: It is no folder in mlx-lm's format; what it is instead is said, where that is known.
    """
    folder = Path(path).expanduser().absolute()
    if folder.is_file():
        raise AdapterError(f"{folder} is a file; an adapter is a folder.", f"Type: --adapter {folder.parent}")
    if not folder.is_dir():
        raise AdapterError(f"There is no adapter folder {folder}.", _NAME_ONE)
    if (folder / "adapter_model.safetensors").is_file():
        raise AdapterError(
            f"{folder} holds an adapter in PEFT's format, which mlx-lm does not read.",
            "Merge it into its model with PEFT, or train one with mlx_lm.lora.",
        )
    if not (folder / CONFIG).is_file():
        raise AdapterError(f"{folder} has no {CONFIG}, so it is no adapter.", _NAME_ONE)
    if not (folder / WEIGHTS).is_file():
        steps = sorted(path.name for path in folder.glob(f"*_{WEIGHTS}"))
        raise AdapterError(
            f"{folder} has no {WEIGHTS}.",
            f"It has checkpoints: copy the one you want, such as {steps[-1]}, to {WEIGHTS}."
            if steps
            else _NAME_ONE,
        )
    return folder


def read_adapter_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        AdapterError: It is not JSON, or lacks what mlx-lm needs.
    """
    path = folder / CONFIG
    again = "Train it again with mlx_lm.lora, or copy the file again."
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise AdapterError(f"{path} cannot be read ({error}).", again) from error
    if not isinstance(config, dict):
        raise AdapterError(f"{path} is not an adapter's configuration.", again)
    kind = config.get("fine_tune_type", "lora")
    if kind not in KINDS:
        raise AdapterError(
            f"{path} asks for fine_tune_type {kind!r}; mlx-lm knows {', '.join(KINDS)}.", again
        )
    if kind != "full":
        own = config.get("lora_parameters")
        lacking = [] if isinstance(config.get("num_layers"), int) else ["num_layers"]
        if isinstance(own, dict):
            lacking += [f"lora_parameters.{name}" for name in ("rank", "scale", "dropout") if name not in own]
        else:
            lacking.append("lora_parameters")
        if lacking:
            raise AdapterError(f"{path} lacks {', '.join(lacking)}.", again)
    return config


class Adapter:
    """An adapter that has been put into a model.

    Attributes:
        folder: Where it lies.
        provenance: Which of its parameters its file does not give.
    """

    def __init__(self, path: str, model: nn.Module, model_name: str) -> None:
        """Put it into a model; nothing of its tensors is read.

        Raises:
            AdapterError: It is not there, is damaged, or was made for another model.
        """
        self.folder = find_adapter(path)
        config = read_adapter_config(self.folder)
        try:
            tensors = read_header(self.folder / WEIGHTS)
        except WeightsError as error:
            raise AdapterError(
                error.problem, "Copy the adapter again, or train it again with mlx_lm.lora."
            ) from error
        if not tensors:
            raise AdapterError(f"{self.folder / WEIGHTS} holds no tensors.", _NAME_ONE)
        _check_layers(self.folder, model, model_name, config, tensors)
        try:
            with shapes_before() as shapes:
                load_adapters(model, self.folder)
                settle_random_state()
        except MlxNbError:
            raise
        except Exception as error:
            raise _misfit(self.folder, model_name, config, error) from error
        _check_tensors(self.folder, model_name, config, tensors, shapes)
        model.eval()
        self.provenance = Provenance()
        if config.get("fine_tune_type", "lora") != "full":
            for name, module in named_modules(model):
                for leaf in _LEAVES:
                    if "lora_a" in module and leaf in module and f"{name}.{leaf}" not in tensors:
                        self.provenance.unfilled[f"{name}.{leaf}"] = module[leaf]

    def explain(self, lacking: list[str]) -> AdapterError:
        """The error for parameters that a rank reads and the adapter's file does not give."""
        are = "is" if len(lacking) == 1 else "are"
        return AdapterError(
            f"{and_more('tensor', lacking)} {are} missing from {self.folder / WEIGHTS}.",
            "Copy the adapter again, or train it again with mlx_lm.lora.",
        )


def _check_layers(
    folder: Path,
    model: nn.Module,
    model_name: str,
    config: dict[str, Any],
    tensors: dict[str, TensorInfo],
) -> None:
    """Refuse tensors of layers that the model does not have.

    Raises:
        AdapterError: There are some.
    """
    count = len(transformer_layers(model))
    for name in tensors:
        _, found, tail = name.partition(".layers.")
        number = tail.partition(".")[0]
        if found and number.isdigit() and int(number) >= count:
            raise AdapterError(
                f"The adapter in {folder} does not fit {model_name}: tensor {name} ({WEIGHTS}) belongs to layer "
                f"{number}, and the model has layers 0–{count - 1}.",
                _other_model(config),
            )


def _check_tensors(
    folder: Path,
    model_name: str,
    config: dict[str, Any],
    tensors: dict[str, TensorInfo],
    shapes: dict[str, tuple[int, ...]],
) -> None:
    """Refuse tensors that have no place, or another shape than their place: mlx-lm 0.31 takes them without a word.

    Raises:
        AdapterError: There are some.
    """
    full = config.get("fine_tune_type", "lora") == "full"
    wrong = []
    for name, tensor in tensors.items():
        if name not in shapes or not (full or name.rpartition(".")[2] in _LEAVES):
            wrong.append(f"{name}: not an adapter parameter in the model")
        elif tensor.shape != shapes[name]:
            wrong.append(
                f"{name}: adapter shape {tensor.shape} does not match model parameter shape {shapes[name]}"
            )
    if wrong:
        raise _misfit(folder, model_name, config, ValueError("\n".join(["", *wrong])))


def _misfit(folder: Path, model_name: str, config: dict[str, Any], error: Exception) -> AdapterError:
    """mlx-lm's refusal as one sentence: its first tensor, and how many more there are."""
    lines = [line.strip() for line in str(error).splitlines()]
    if isinstance(error, ValueError) and len(lines) > 1:
        text = f"tensor {lines[1]}" + (f" (and {len(lines) - 2} more)" if len(lines) > 2 else "")
    else:
        text = f"{type(error).__name__}: {' '.join(lines)}"[:300]
    return AdapterError(
        f"The adapter in {folder} does not fit {model_name}: {text} ({WEIGHTS}).", _other_model(config)
    )


def _other_model(config: dict[str, Any]) -> str:
    made_for = config.get("model")
    told = f" {CONFIG} says it was made for {made_for}." if isinstance(made_for, str) and made_for else ""
    return f"Load the model that it was made for, or load this one without the adapter.{told}"
