"""A model folder becomes this rank's share of a model.

The whole model is built lazily and only what this rank's share reads is evaluated, so each rank
reads its own bytes and no more.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.kv import is_kv_entry, make_kv_cache, state_arrays
from mlx_nb.engine.mlx_lm_api import dequantize_model, load_model
from mlx_nb.engine.pytree import Tree, arrays_of
from mlx_nb.engine.reach import reachable
from mlx_nb.engine.rehearse import undisturbed
from mlx_nb.engine.weights import read_tensors
from mlx_nb.shared.errors import MlxNbError, ModelError, OptionError, WeightsError

DTYPES = ("float32", "bfloat16", "float16")


def read_config(folder: Path) -> dict[str, Any]:
    """The model's ``config.json``.

    Raises:
        ModelError: It is missing or not JSON.
    """
    path = folder / "config.json"
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise ModelError(
            f"{path} cannot be read ({error.strerror}).", "Name the folder of an mlx-lm model."
        ) from error
    except ValueError as error:
        raise ModelError(f"{path} is not JSON ({error}).", "Fetch the model again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's configuration.", "Fetch the model again.")
    return config


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    return {**config, **config.get("text_config", {})}


def build_model(folder: Path, *, trust_remote_code: bool) -> nn.Module:
    """The whole model, lazily: nothing of its weights is read.

    Raises:
        WeightsError: A file is missing or truncated, or a tensor is missing or has the wrong shape.
        ModelError: mlx-lm does not know the architecture, or refuses the configuration.
    """
    tensors = read_tensors(folder)
    try:
        model = load_model(folder, trust_remote_code=trust_remote_code)
    except ValueError as error:
        text = " ".join(str(error).split())
        if "Missing" in text or "Expected shape" in text or "parameters not in model" in text:
            files = ", ".join(sorted({tensor.file for tensor in tensors.values()}))
            raise WeightsError(
                f"The weights in {folder} ({files}) do not fit: {text[:400]}", "Fetch the model again."
            ) from error
        raise ModelError(
            f"mlx-lm cannot build {folder.name}: {text[:300]}", "Type: %mlx_load smollm2, or another model."
        ) from error
    except MlxNbError:
        raise
    except SystemExit as error:  # a model file that ends the process when its package is missing
        raise ModelError(
            f"mlx-lm's code for {folder.name} needs a package that is not installed.",
            "Its own message is in the log: %mlx_cluster logs. Or type: %mlx_load smollm2",
        ) from error
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        raise ModelError(
            f"mlx-lm cannot build {folder.name}: {text[:300]}", "Type: %mlx_load smollm2, or another model."
        ) from error
    return model


def set_compute_dtype(model: nn.Module, dtype: str | None) -> tuple[nn.Module, str]:
    """Choose what a rank computes in; the change is lazy, so only owned weights are ever converted.

    On the CPU packed and half-precision matmuls are 8 to 40 times slower than float32, so None
    dequantises and converts to float32 there. On Metal None keeps the weights as they are.

    Returns:
        The model, and the dtype's name.

    Raises:
        OptionError: No such dtype.
    """
    if dtype not in (None, "native", *DTYPES):
        raise OptionError(f"There is no dtype '{dtype}'.", f"Type one of: {', '.join(DTYPES)}, native.")
    if dtype is None and mx.default_device() == mx.Device(mx.gpu):
        dtype = "native"
    if dtype == "native":
        kinds = {
            str(v.dtype) for _, v in tree_flatten(model.parameters()) if mx.issubdtype(v.dtype, mx.floating)
        }
        return model, "/".join(sorted(kind.removeprefix("mlx.core.") for kind in kinds))
    name = dtype or "float32"
    if any(hasattr(module, "bits") and hasattr(module, "scales") for _, module in model.named_modules()):
        model = dequantize_model(model)
    model.set_dtype(getattr(mx, name))
    return model, name


@dataclass(slots=True)
class _Rehearsal:
    """Stands in for a run while a pass is only built, never evaluated."""

    crossing: Crossing
    kv: list[Any]
    through: Tree = None
    sent: Tree = None
    used: list[Any] = field(default_factory=list)

    probe = None

    def received(self, index: int, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        return self.crossing.before(index, args, kwargs) if self.sent is None else self.through

    def deliver(self, value: Tree, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tree:
        self.sent, self.through = self.crossing.pack(value, args, kwargs), value
        return value

    def saw_kv(self, index: int, arguments: list[Any]) -> None:
        self.used.extend(a for a in arguments if is_kv_entry(a))

    def layer_done(self, index: int, value: Tree) -> None:
        self.crossing.returned(index, value)


def owned_parameters(
    model: nn.Module,
    received: Tree,
    *,
    make_crossing: Callable[[list[Any]], Crossing] = Crossing.alone,
    is_last: bool,
) -> dict[str, mx.array]:
    """The parameters that this rank's share of a pass reads, by dotted name.

    Two tokens are fed, so that no mask is left out. The model must carry its stubs.

    Args:
        model: The whole model, with this rank's stubs installed.
        received: What the rank before would send; None on rank 0.
        make_crossing: What the pass takes over and owes, for a KV cache list.
        is_last: Whether the logits are made here.
    """
    parameters = dict(tree_flatten(model.parameters()))
    kv = make_kv_cache(model)
    rehearsal = _Rehearsal(make_crossing(kv), kv)
    if received is not None:
        rehearsal.crossing.take(received)
    token = ACTIVE.set(rehearsal)
    try:
        with undisturbed(model):
            output = model(mx.zeros((1, 2), dtype=mx.int32), cache=kv)
    finally:
        ACTIVE.reset(token)
    results = arrays_of(output) if is_last else arrays_of(rehearsal.sent)
    results += [array for entry in rehearsal.used for array in state_arrays(entry)]
    return {name: parameters[name] for name in sorted(reachable(results, parameters))}


def materialise(parameters: dict[str, mx.array], folder: Path) -> int:
    """Read the owned weights; their bytes in memory.

    Raises:
        WeightsError: A file could not be read to its end.
    """
    try:
        mx.eval(list(parameters.values()))
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"The weights in {folder} cannot be read: {error}", "Fetch the model again."
        ) from error
    return sum(value.nbytes for value in parameters.values())
