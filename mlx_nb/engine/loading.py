"""A model folder becomes this rank's share of a model.

The whole model is built lazily and only what this rank's share reads is evaluated, so each rank
reads its own bytes and no more.
"""

import json
import re
from collections.abc import Callable, Container, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from mlx_nb.engine.context import ACTIVE
from mlx_nb.engine.crossing import Crossing
from mlx_nb.engine.kv import is_kv_entry, make_kv_cache, state_arrays
from mlx_nb.engine.mlx_lm_api import dequantize_model, load_model, settle_random_state
from mlx_nb.engine.model_code import ModelCode
from mlx_nb.engine.own_code import check_code
from mlx_nb.engine.provenance import Provenance, and_more, watching
from mlx_nb.engine.pytree import Tree, arrays_of, map_arrays
from mlx_nb.engine.reach import reachable
from mlx_nb.engine.rehearse import undisturbed
from mlx_nb.engine.unpack import Packed, packed_weights
from mlx_nb.engine.weights import index_entry, read_tensors
from mlx_nb.shared.errors import MlxNbError, ModelError, OptionError, UnfitWeightsError, WeightsError

DTYPES = ("float32", "bfloat16", "float16")

MAX_COUNT = 65_536
_COUNTED = re.compile(r"layer|block|expert|depth")

_AT_ONCE_BYTES = 16 * 1024 * 1024


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
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{path} is not JSON ({error}).", "Fetch the model again.") from error
    if not isinstance(config, dict):
        raise ModelError(f"{path} is not a model's configuration.", "Fetch the model again.")
    _check_counts(path, config)
    return config


def _check_counts(path: Path, config: Any) -> None:
    """Refuse a number of layers or experts that no model has: Python makes an object for each of them.

    A damaged or hostile file would otherwise take all of this machine's memory before a weight is looked at.
    """
    if not isinstance(config, dict):
        return
    for key, value in config.items():
        if isinstance(value, int) and value > MAX_COUNT and _COUNTED.search(str(key)):
            raise ModelError(f"{path} says {key} is {value:,}, which no model has.", "Fetch the model again.")
        _check_counts(path, value)


def text_config(config: dict[str, Any]) -> dict[str, Any]:
    """The part of a configuration that describes the language model."""
    return {**config, **config.get("text_config", {})}


def build_model(
    folder: Path, *, trust_remote_code: bool, part: bool = False, code: ModelCode | None = None
) -> tuple[nn.Module, Provenance]:
    """The whole model, lazily: nothing of its weights is read.

    Args:
        folder: Its folder.
        trust_remote_code: Whether code of its own may run.
        part: Whether some of its weight files are elsewhere, since this rank does not need them.
        code: A file that defines the model, instead of mlx-lm's or the folder's own.

    Returns:
        The model, and which of its parameters no file gives: whoever reads one of them must refuse.

    Raises:
        WeightsError: A file is missing or damaged, or holds tensors that the model has no place for.
        RemoteCodeError: The model is built by code of its own, which may not run.
        CodeError: What `code` makes does not fit the weights.
        ModelError: mlx-lm does not know the architecture, or refuses the configuration.
    """
    if code is None:
        check_code(folder, read_config(folder), trusted=trust_remote_code)
    read_tensors(folder, part=part)
    provenance = Provenance()
    try:
        with watching() as provenance:
            classes = code.classes if code is not None else None
            model = load_model(folder, trust_remote_code=trust_remote_code, classes=classes)
            settle_random_state()
    except UnfitWeightsError as error:
        if code is None:
            raise
        raise code.explain(error, provenance.model) from error
    except MlxNbError:
        raise
    except SystemExit as error:  # a model file that ends the process when its package is missing
        raise ModelError(
            f"mlx-lm's code for {folder.name} needs a package that is not installed.",
            "Its own message is in the log: %mlx_cluster logs. Or type: %mlx_load smollm2",
        ) from error
    except Exception as error:
        text = " ".join(str(error).split())
        # Code that unpacks or stacks tensors looks them up by name.
        if isinstance(error, KeyError) and "." in (name := str(error.args[0])):
            raise explain_lacking([name], Provenance(), folder) from error
        if "[load_safetensors]" in text or "[Load::" in text:
            raise WeightsError(
                f"The weights in {folder} cannot be read: {text[:300]}", "Fetch the model again."
            ) from error
        kind = "" if isinstance(error, ValueError) else f"{type(error).__name__}: "
        raise ModelError(
            f"mlx-lm cannot build {folder.name}: {kind}{text[:300].rstrip('.')}.",
            "Is its config.json whole? Fetch the model again, or type: %mlx_load smollm2",
        ) from error
    return model, provenance


def explain_lacking(lacking: list[str], provenance: Provenance, folder: Path) -> UnfitWeightsError:
    """The error for parameters that a rank reads and no file gives: tensor, file, shapes."""
    tensors = read_tensors(folder, part=True)
    first, again = lacking[0], "Fetch the model again, or copy the file again."
    if first in provenance.misfits:
        where = f" ({tensors[first].file})" if first in tensors else ""
        more = f"; {len(lacking) - 1} more do not fit" if len(lacking) > 1 else ""
        return UnfitWeightsError(
            f"tensor {first}{where} does not fit: {provenance.misfits[first]}{more}.",
            "Fetch the model again: config.json and the weights do not belong together.",
            first,
        )
    files = sorted({tensor.file for tensor in tensors.values()})
    where = index_entry(folder, first) or (files[0] if len(files) == 1 else f"all {len(files)} weight files")
    are = "is" if len(lacking) == 1 else "are"
    return UnfitWeightsError(
        f"{and_more('tensor', lacking)} {are} missing from {where} in {folder}.", again, first
    )


def set_compute_dtype(model: nn.Module, dtype: str | None) -> tuple[nn.Module, str, dict[str, Packed]]:
    """Choose what a rank computes in; the change is lazy, so only owned weights are ever converted.

    On the CPU packed and half-precision matmuls are 8 to 40 times slower than float32, so None
    dequantises and converts to float32 there. On Metal None keeps the weights as they are.

    Returns:
        The model, the dtype's name, and what has to be unpacked for it, by parameter.

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
        return model, "/".join(sorted(kind.removeprefix("mlx.core.") for kind in kinds)), {}
    name = dtype or "float32"
    packed = packed_weights(model)
    if packed:
        model = dequantize_model(model)
        plain = {path for path, _ in tree_flatten(model.parameters())}
        # Kinds of packed modules that mlx-lm leaves as they are stay packed.
        packed = {
            path: one for path, one in packed.items() if f"{path.removesuffix('weight')}scales" not in plain
        }
    model.set_dtype(getattr(mx, name))
    return model, name, packed


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
        # Handles of its own: gemma3n goes on to change the array in place, with weights of the last rank.
        self.sent = map_arrays(mx.stop_gradient, self.crossing.pack(value, args, kwargs))
        self.through = value
        return value

    def saw_kv(self, index: int, arguments: list[Any]) -> None:
        self.used.extend(a for a in arguments if is_kv_entry(a))

    def layer_done(self, index: int, value: Tree) -> None:
        self.crossing.returned(index, value)


def results_of(
    model: nn.Module,
    received: Tree,
    *,
    make_crossing: Callable[[list[Any]], Crossing] = Crossing.alone,
    is_last: bool,
) -> list[mx.array]:
    """What a rank's share of a pass makes, not evaluated: what it sends or says, and its KV caches.

    Two tokens are fed, so that no mask is left out. The model must carry its stubs.

    Args:
        model: The whole model, with this rank's stubs installed.
        received: What the rank before would send; None on rank 0.
        make_crossing: What the pass takes over and owes, for a KV cache list.
        is_last: Whether the logits are made here.
    """
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
    return results + [array for entry in rehearsal.used for array in state_arrays(entry)]


def owned_parameters(model: nn.Module, results: list[mx.array]) -> dict[str, mx.array]:
    """The parameters that a rank's share of a pass reads, by dotted name; `results` are those of `results_of`."""
    parameters = dict(tree_flatten(model.parameters()))
    return {name: parameters[name] for name in sorted(reachable(results, parameters))}


Keep = Callable[[str, mx.array], mx.array]
"""Gets each parameter as it has been read, and returns what the model shall hold."""


def materialise(
    model: nn.Module,
    parameters: dict[str, mx.array],
    packed: dict[str, Packed],
    folder: Path,
    keep: Keep | None = None,
) -> int:
    """Read the owned weights, a few at a time: what a conversion needs besides is free again soon.

    Args:
        model: Gets what was unpacked.
        parameters: The owned ones by name.
        packed: Those among all parameters that are to be unpacked.
        folder: Named in errors.
        keep: May put another array in a parameter's place, such as an equal one that is in memory already.

    Returns:
        Their bytes in memory.

    Raises:
        WeightsError: A file could not be read to its end.
    """
    for batch in _batches(parameters, packed):
        try:
            if batch[0] in packed:
                name = batch[0]
                parameters[name] = packed.pop(name).unpack(parameters[name])
                model.update(tree_unflatten([(name, parameters[name])]), strict=False)
            else:
                mx.eval([parameters[name] for name in batch])
        except (RuntimeError, ValueError) as error:
            raise WeightsError(
                f"{and_more('tensor', batch)} in {folder} cannot be read: {error}", "Fetch the model again."
            ) from error
        if keep is not None:
            for name in batch:
                parameters[name] = keep(name, parameters[name])
            model.update(tree_unflatten([(name, parameters[name]) for name in batch]), strict=False)
        mx.clear_cache()
    packed.clear()
    return sum(value.nbytes for value in parameters.values())


def _batches(parameters: dict[str, mx.array], packed: Container[str]) -> Iterator[list[str]]:
    """Names in groups that are read at once: a packed one alone, others up to so many bytes."""
    batch: list[str] = []
    for name in list(parameters):
        if name in packed:
            yield [name]
            continue
        batch.append(name)
        if sum(parameters[one].nbytes for one in batch) >= _AT_ONCE_BYTES:
            yield batch
            batch = []
    if batch:
        yield batch
