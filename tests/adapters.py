"""Adapters as mlx_lm.lora writes them, with random tensors instead of trained ones."""

import json
from pathlib import Path
from typing import Any

import mlx_nb.engine  # noqa: F401 - before mlx: it loads OpenBLAS

import mlx.core as mx  # isort: skip
from mlx.utils import tree_flatten  # isort: skip
from mlx_lm.tuner.utils import linear_to_lora_layers  # isort: skip
from mlx_lm.utils import load_model  # isort: skip

PARAMETERS = {"rank": 4, "scale": 8.0, "dropout": 0.1}


def make_adapter(
    model: Path, folder: Path, kind: str = "lora", *, num_layers: int = -1, seed: int = 11, **changes: Any
) -> Path:
    """Write an adapter for a model folder.

    Args:
        model: A model's folder.
        folder: Where; it is made.
        kind: ``lora``, ``dora`` or ``full``.
        num_layers: The last so many layers; -1 takes all.
        seed: Of the tensors.
        **changes: To ``lora_parameters``, such as ``keys``.
    """
    base, _ = load_model(model)
    mx.random.seed(seed)
    parameters = {**PARAMETERS, **changes}
    base.freeze()
    if kind == "full":
        for layer in base.layers[-max(num_layers, 0) :]:
            layer.unfreeze()
    else:
        linear_to_lora_layers(base, num_layers, parameters, use_dora=kind == "dora")
    tensors = {name: _trained(name, array) for name, array in tree_flatten(base.trainable_parameters())}
    folder.mkdir(parents=True)
    config = {
        "fine_tune_type": kind,
        "model": model.name,
        "num_layers": num_layers,
        "lora_parameters": parameters,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    mx.save_safetensors(str(folder / "adapters.safetensors"), tensors)
    return folder


def _trained(name: str, array: mx.array) -> mx.array:
    """As training might leave it: nothing at its beginning, least of all the zeros that hide an adapter."""
    noise = mx.random.normal(array.shape)
    if name.endswith((".lora_a", ".lora_b")):
        return 0.15 * noise
    return array * (1 + 0.3 * noise).astype(array.dtype)


def change(adapter: Path, **entries: Any) -> None:
    """Change an adapter's configuration; None takes an entry away."""
    path = adapter / "adapter_config.json"
    config = {**json.loads(path.read_text()), **entries}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def rewrite(adapter: Path, edit: Any) -> None:
    """Pass an adapter's tensors, a dictionary, through a function."""
    path = adapter / "adapters.safetensors"
    tensors = edit(mx.load(str(path)))
    mx.eval(tensors)
    mx.save_safetensors(str(adapter / "new.safetensors"), tensors)
    (adapter / "new.safetensors").replace(path)
