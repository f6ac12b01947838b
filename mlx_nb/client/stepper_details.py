"""What is folded below the stepper's first screen: the module tree, the KV caches, the breakpoints."""

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING

from mlx_nb.shared.attention import is_attention
from mlx_nb.shared.breaks import EVERYWHERE, Break
from mlx_nb.shared.globs import matches
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND
from mlx_nb.shared.sites import short_spelling
from mlx_nb.shared.text import format_shape
from mlx_nb.shared.view_state import BreakRow, KVRow, LayerBreaks, ModuleRow

if TYPE_CHECKING:
    from mlx_nb.client.debugger import Debugger


# ---- the module tree


def module_rows(dbg: "Debugger") -> list[ModuleRow]:
    """The model in the order in which a pass calls it: one layer with all that is in it, the others in a row together."""
    if dbg.done:
        return []
    first = dbg.pipe.shards[0]
    layer_of = {path: layer for layer, path in enumerate(first.layer_paths)}
    order = [path for path in first.order if path and not is_attention(path)]
    around = {path for path in order if any(layer.startswith(f"{path}.") for layer in first.layer_paths)}
    shown = _shown_layer(dbg)
    rows: list[ModuleRow] = []
    for layer, group in groupby((p for p in order if p not in around), key=lambda p: _layer(p, layer_of)):
        paths = list(group)
        if layer < 0:
            rows += [_module_row(dbg, path, 0, order) for path in paths]
        elif layer == shown:
            root = first.layer_paths[layer]
            rows += [_module_row(dbg, path, path.count(".") - root.count("."), order) for path in paths]
        elif rows and 0 <= layer - 1 == rows[-1].get("last"):
            rows[-1] = _layers_row(dbg, rows[-1]["first"], layer, order)
        else:
            rows.append(_layers_row(dbg, layer, layer, order))
    return rows


def _layer(path: str, layer_of: dict[str, int]) -> int:
    """The layer that a path is or lies in; -1 for none."""
    parts = path.split(".")
    return next(
        (
            layer_of[at]
            for at in (".".join(parts[:end]) for end in range(len(parts), 0, -1))
            if at in layer_of
        ),
        -1,
    )


def _shown_layer(dbg: "Debugger") -> int:
    """The layer where the run stands; outside all layers the nearest one of the rank."""
    position, layers = dbg.position, dbg.pipe.plan.shards[dbg.position.rank].layers
    if position.layer >= 0 and position.kind not in (SEND, RECV):
        return position.layer
    return layers[-1] if position.kind == SEND or after_layers(dbg) else layers[0]


def after_layers(dbg: "Debugger") -> bool:
    """Outside every layer: past them (norm, head) or before them (embedding)?"""
    order = dbg.pipe.shards[0].order
    position = dbg.position
    if position.kind == "output" and any(path.startswith(f"{position.module}.") for path in dbg.layer_paths):
        return True  # a module around the layers is left after them
    if position.module not in order:
        return position.kind == "output"
    return order.index(position.module) > order.index(dbg.layer_paths[-1])


def _module_row(dbg: "Debugger", path: str, depth: int, order: list[str]) -> ModuleRow:
    first, position = dbg.pipe.shards[0], dbg.position
    outcome = dbg.ranks.get(position.rank)
    shapes = dict(outcome.shapes) if outcome else {}
    spelling = short_spelling(path, first.layer_paths)
    return ModuleRow(
        path=path.rpartition(".")[2] if depth else spelling,
        class_name=dict(first.modules).get(path, ""),
        depth=depth,
        state=_module_state(dbg, path, order),
        shape=format_shape(shapes[path]) if path in shapes else "",
        site=f"{spelling}.{INPUT}",
        breakpoint=_first(at_module(path, dbg.pipe.breakpoints.armed())),
    )


def _module_state(dbg: "Debugger", path: str, order: list[str]) -> str:
    position = dbg.position
    if path in {frame.path for frame in position.stack}:
        return "current"
    left = position.kind == OUTPUT and path.startswith(f"{position.module}.")
    here = order.index(position.module) if position.module in order else -1
    if position.kind in (SEND, RECV):  # between two layers
        layers = dbg.pipe.plan.shards[position.rank].layers
        after = layers.stop if position.kind == SEND else layers.start
        here = order.index(dbg.pipe.shards[0].layer_paths[after])
    return "done" if left or order.index(path) < here else "pending"


def _layers_row(dbg: "Debugger", first: int, last: int, order: list[str]) -> ModuleRow:
    paths = dbg.pipe.shards[0].layer_paths
    name = short_spelling(paths[first], paths)
    return ModuleRow(
        path=name if first == last else f"{name}–{last}",
        class_name=dict(dbg.pipe.shards[0].modules).get(paths[first], ""),
        depth=0,
        state=_module_state(dbg, paths[last], order),
        first=first,
        last=last,
    )


# ---- KV caches


def kv_rows(dbg: "Debugger") -> list[KVRow]:
    """Consecutive layers of a rank that read the same, in one row."""
    rows = []
    for rank, outcome in sorted(dbg.ranks.items()):
        here = outcome.pass_index == dbg.position.index or dbg.done

        def reads(kv: object, here: bool = here) -> tuple[str, int, str]:
            written = "written" if getattr(kv, "written", False) and here else "pending"
            return getattr(kv, "class_name", ""), getattr(kv, "offset", 0), written

        for (name, offset, state), group in groupby(outcome.kv, key=reads):
            layers = [kv.layer for kv in group]
            span = f"{layers[0]}–{layers[-1]}" if len(layers) > 1 else str(layers[0])
            count = str(offset) if offset >= 0 else "–"
            rows.append(KVRow(rank=rank, layers=span, class_name=name, offset=count, state=state))
    return rows


# ---- breakpoints


def break_rows(dbg: "Debugger") -> list[BreakRow]:
    """The pipe's breakpoints, as its own table says them."""
    return [
        BreakRow(number=one.id, site=one.site, condition=one.row()[2], hits=one.hits, enabled=one.enabled)
        for one in dbg.pipe.breakpoints
    ]


def breaks_of_layers(dbg: "Debugger") -> list[LayerBreaks]:
    """For each layer of the model the breakpoint at the layer itself, and whether there is one inside."""
    first, armed = dbg.pipe.shards[0], dbg.pipe.breakpoints.armed()
    if not armed:
        return [LayerBreaks() for _ in first.layer_paths]
    found = []
    for path in first.layer_paths:
        inside = [
            f"{name}.{kind}"
            for name in first.order
            if name.startswith(f"{path}.")
            for kind in (INPUT, OUTPUT)
        ]
        within = any(matches(site, one.pattern) for one in _placed(armed) for site in inside)
        found.append(LayerBreaks(breakpoint=_first(at_module(path, armed)), within=within))
    return found


def at_module(path: str, armed: Iterable[Break]) -> list[Break]:
    """Those that stand at a module's entry or exit; one for all modules marks none."""
    sites = (f"{path}.{INPUT}", f"{path}.{OUTPUT}")
    return [one for one in _placed(armed) if any(matches(site, one.pattern) for site in sites)]


def _placed(armed: Iterable[Break]) -> list[Break]:
    return [one for one in armed if one.pattern != EVERYWHERE]


def _first(found: list[Break]) -> int:
    return found[0].number if found else 0
