"""Plans and shape tables without a cluster: measured in a short-lived process, since this one never imports MLX."""

import inspect
import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mlx_nb.shared import errors
from mlx_nb.shared.console_words import in_python
from mlx_nb.shared.errors import ModelError, OptionError, PlanError
from mlx_nb.shared.fit import make_plan, split_by_memory
from mlx_nb.shared.mac_memory import working_set
from mlx_nb.shared.model_sizes import Common, ModelSizes, SiteRow, SiteTable
from mlx_nb.shared.models import EMBEDDED
from mlx_nb.shared.plan import Plan
from mlx_nb.shared.spec import slots_of

_GIB = 2**30
_METAL = (
    "of a Mac's memory a model may take what Metal recommends: two thirds, three quarters from 36 GB on "
    "(more with `sudo sysctl iogpu.wired_limit_mb=…`)"
)


def plan(
    model: str,
    ranks: int = 2,
    hosts: Sequence[str] | None = None,
    split: str | Sequence[int] = "even",
    context: int = 4096,
) -> Plan:
    """Which rank would hold which layers, what it would weigh, and whether it fits. No weights are read.

    Args:
        model: A name, a folder (``config.json`` is enough), or a Hugging Face id.
        ranks: How many; with `hosts`, one for each slot, so there is no need to say it.
        hosts: Where, each ``name``, ``name:slots`` or ``name:16GB`` (its memory). Hosts are taken to be
            Macs, which keep the weights as they are stored, and of whose memory Metal may use two thirds, or
            three quarters from 36 GB on; without hosts it is this machine.
        split: ``even``, ``memory``, or the layers per rank.
        context: Tokens that the KV caches are counted for.

    Raises:
        PlanError: The split does not fit the model, or the model does not fit the memory.
        OptionError: A context of no token, or other ranks than the hosts have slots.
        ModelNotFoundError: There is no such model.
    """
    if context < 1:
        raise OptionError(f"A context has one token or more, not {context}.", "Type: context=4096")
    native = hosts is not None or sys.platform == "darwin"
    sizes, here = measure(model, context=context, native=native)
    names, memories = _places(ranks, hosts, here)
    if ranks not in (len(names), inspect.signature(plan).parameters["ranks"].default):
        raise OptionError(
            f"These hosts have {len(names)} slots, but {ranks} ranks are asked for.",
            "Leave ranks= out, or give a host more slots: hosts=['mini1:2', 'mini2:1']",
        )
    if any(memories) and native:
        sizes = replace(sizes, notes=(*sizes.notes, _METAL))
    try:
        made = make_plan(sizes, names, memories, split)
    except PlanError as error:
        raise PlanError(error.problem, in_python(error.fix)) from None
    return replace(made, ranks_a_host=1 if hosts else ranks)


def sites(model: str) -> SiteTable:
    """Every site of a model with shapes, dtypes, parameters and bytes. No weights are read.

    Raises:
        ModelNotFoundError: There is no such model.
    """
    return SiteTable(model, [SiteRow(**row) for row in _describe("sites", model)["content"]])


def measure(model: str, *, context: int, native: bool) -> tuple[ModelSizes, int]:
    """What a model weighs, layer by layer, and the bytes that one may take here. Raises as `plan`."""
    answer = _describe("plan", model, "--context", str(context), *(["--native"] if native else []))
    found: dict[str, Any] = answer["content"]
    fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in found.items()}
    for name in ("common", "common_kv"):
        fields[name] = tuple(
            Common(size_bytes=p["size_bytes"], readers=tuple(p["readers"])) for p in found[name]
        )
    return ModelSizes(**fields), int(answer["memory_bytes"])


def split_for(model: str, capacities: Sequence[tuple[str, int, bool]], context: int = 4096) -> list[int]:
    """Layers per rank in proportion to the memory of a running cluster's hosts.

    Args:
        model: A name, a folder or a Hugging Face id.
        capacities: Host, bytes and whether it computes on Metal, for each rank; ranks on a host share it.
        context: Tokens that the KV caches are counted for.

    Raises:
        PlanError: There are more ranks than layers.
    """
    on_host = Counter(host for host, _, _ in capacities)
    memories = [size // on_host[host] for host, size, _ in capacities]
    sizes, _ = measure(model, context=context, native=all(metal for _, _, metal in capacities))
    return split_by_memory(sizes, memories)


def _places(ranks: int, hosts: Sequence[str] | None, here_bytes: int) -> tuple[list[str], list[int]]:
    """A host name and the bytes that it may give (0 if unknown) for each rank; ranks on one host share them."""
    if not hosts:
        import platform

        here = platform.node().split(".")[0]
        return [here] * ranks, [here_bytes // max(1, ranks)] * ranks
    names: list[str] = []
    memories: list[int] = []
    for host in hosts:
        name, _, more = host.rpartition(":") if ":" in host else (host, "", "")
        amount = more.upper().removesuffix("IB").removesuffix("B")
        if amount.endswith("G") and amount[:-1].replace(".", "", 1).isdecimal():
            if not name or ":" in name:
                raise _no_host(host)
            names.append(name)
            memories.append(working_set(int(float(amount[:-1]) * _GIB)))
        else:
            if not (more.isdecimal() or ":" not in host):
                raise _no_host(host)
            slots = slots_of(host)
            names += [name if more else host] * slots
            memories += [0] * slots
    return names, memories


def _no_host(host: str) -> OptionError:
    return OptionError(
        f"'{host}' is not a host.",
        "Type its name alone, or with its ranks or its memory: mini1, mini1:2 or mini1:16GB",
    )


def _describe(what: str, model: str, *options: str) -> Any:
    command = (sys.executable, "-m", "mlx_nb.engine.describe", what, str(model), *options)
    state = _state(str(model))
    # On a Mac how much Metal may take can be set meanwhile, and is part of the answer.
    answer = json.loads(
        _answer_again(command, state) if state and sys.platform != "darwin" else _answer(command)
    )
    if answer["kind"] == "error":
        raise getattr(errors, answer["class"], ModelError)(answer["problem"], answer["fix"])
    return answer


def _answer(command: Sequence[str]) -> str:
    """What the process says last.

    Raises:
        ModelError: It said nothing of use.
    """
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = (done.stdout.strip().splitlines() or [""])[-1]
    if not said.startswith("{"):
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        raise ModelError(f"{command[4]} could not be measured: {last}", "Check its config.json.")
    return said


@lru_cache(maxsize=64)
def _answer_again(command: Sequence[str], _state: object) -> str:
    """What was said before of a model that is as it was: the process takes seconds, since it imports mlx-lm."""
    return _answer(command)


def _state(model: str) -> object:
    """What changes when a model does; None where this process cannot know."""
    folder = Path(model).expanduser()
    if model == EMBEDDED:
        return EMBEDDED
    try:
        stats = [(file.name, (stat := file.stat()).st_size, stat.st_mtime_ns) for file in folder.iterdir()]
    except OSError:
        return None
    return (str(folder.absolute()), *sorted(stats))
