"""Where a forward pass raised: read from the frames that the exception holds, so that a free run needs no hooks.

As with `pdb.pm`: the frames, with the module's inputs and the operands of the very operation, stay as they were
until somebody has looked.
"""

import ast
import linecache
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

import mlx.core as mx
import mlx.nn as nn

from mlx_nb.engine.layers import named_modules
from mlx_nb.engine.source import is_own_frame, source_of_frame
from mlx_nb.engine.stop import Stop
from mlx_nb.shared.position import INPUT, Frame
from mlx_nb.shared.strides import Event
from mlx_nb.shared.text import format_shape

if TYPE_CHECKING:
    from mlx_nb.engine.run import Run

Operand = tuple[str, Any]

# What a projection takes, by the names that most models use; others are found by their value.
_TAKES = {
    **dict.fromkeys(("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "lm_head"), "hidden_size"),
    "o_proj": "num_attention_heads * head_dim",
    "down_proj": "intermediate_size",
}  # fmt: skip
_PRODUCTS = (("num_attention_heads", "head_dim"), ("num_key_value_heads", "head_dim"))


def stand_at_failure(run: "Run", error: Exception) -> Stop | None:
    """A stop at the innermost module whose call raised; None if no pass was under way."""
    now = run.current
    frames = _frames(error)
    if now is None or not frames:
        return None
    paths = {id(module): path for path, module in reversed(list(named_modules(run.stage.model)))}
    stack: list[tuple[Frame, FrameType, Any]] = []
    for frame in frames:
        module = frame.f_locals.get("self")
        path = paths.get(id(module))
        if path is not None and (not stack or stack[-1][0].path != path):
            stack.append((Frame(path=path, class_name=type(module).__name__), frame, module))
    if not stack:
        return None
    innermost, entered, module = stack[-1]
    event = Event(
        kind=INPUT,
        module=innermost.path,
        depth=len(stack) - 1,
        layer=run.stage.layer_at(innermost.path),
        rank=run.stage.rank,
        start=now.start,
        stop=now.stop,
    )
    args, kwargs = _arguments(entered)
    return Stop(
        event=event,
        args=args,
        kwargs=kwargs,
        call=_plain_call(module),
        module=module,
        frame=frames[-1],
        stack=tuple(frame for frame, _, _ in stack),
        about=_about(run, error, innermost.path, frames),
        extra=_weights(module),
    )


def one_line(run: "Run", error: Exception, stop: Stop) -> str:
    """Rank, site, both operands with their axes, and the configuration's field that governs them."""
    now, shard = run.current, run.stage.shard
    assert now is not None  # a failure has a pass
    text = " ".join(str(error).split())[:300]
    layers = f"layers {shard.layers.start}–{shard.layers.stop - 1}"
    where = f"{now.phase} {now.start}:{now.stop} · {stop.event.module or 'the model'}"
    told = _told_operands(run, stop)
    return f"Rank {run.stage.rank} ({layers}) raised {type(error).__name__} in {where}: {text}{told}"


def _frames(error: BaseException) -> list[FrameType]:
    """The model's frames from the outermost to the one that raised."""
    found, trace = [], error.__traceback__
    while trace is not None:
        if not is_own_frame(trace.tb_frame):
            found.append(trace.tb_frame)
        trace = trace.tb_next
    return found


def _about(run: "Run", error: Exception, path: str, frames: list[FrameType]) -> str:
    caller = next((f for f in reversed(frames[:-1]) if f.f_locals.get("self") is not frames[-1].f_locals.get("self")), None)  # fmt: skip
    source = source_of_frame(caller) if caller else None
    called = (
        f" Called from {source.function}, {source.file}:{source.line}: {source.current}" if source else ""
    )
    return f"Raised here: {type(error).__name__}: {' '.join(str(error).split())[:300]}{called}"


def _plain_call(module: Any) -> Any:
    """The model's own ``__call__``, below the hooks' and the stubs'."""
    return next(
        cls.__call__
        for cls in type(module).__mro__
        if "__call__" in vars(cls) and not str(cls.__call__.__module__).startswith("mlx_nb.")
    )


def _arguments(frame: FrameType) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What the module was called with, by its frame's parameters (some may have been bound again since)."""
    code: CodeType = frame.f_code
    names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
    return (), {name: frame.f_locals[name] for name in names if name in frame.f_locals}


def _weights(module: Any) -> tuple[tuple[str, mx.array], ...]:
    return tuple((f"self.{name}", value) for name, value in module.items() if isinstance(value, mx.array))


# The operation ------------------------------------------------------------------------------------


def operands_of(frame: FrameType, lasti: int) -> list[Operand]:
    """The arrays and numbers of the operation that raised, by their own words in the source."""
    text = _failing_text(frame, lasti)
    try:
        node: ast.expr = ast.parse(text, mode="eval").body
    except SyntaxError:
        return []
    parts: list[ast.expr] = []
    if isinstance(node, ast.BinOp):
        parts = [node.left, node.right]
    elif isinstance(node, ast.Call):
        inner = node.func
        parts = [inner.value] if isinstance(inner, ast.Attribute) else []
        parts += [*node.args, *(keyword.value for keyword in node.keywords)]
    found = []
    for part in parts:
        if any(isinstance(inside, ast.Call) for inside in ast.walk(part)):
            continue  # evaluating it again would call the model again
        words = ast.unparse(part)
        try:
            value = eval(words, frame.f_globals, dict(frame.f_locals))
        except Exception:  # noqa: BLE001 - only what can be read is told
            continue
        if isinstance(value, mx.array | int) and not isinstance(value, bool):
            found.append((words, value))
    return found


def _failing_text(frame: FrameType, lasti: int) -> str:
    positions = list(frame.f_code.co_positions())
    line, end, column, end_column = positions[lasti // 2] if lasti // 2 < len(positions) else (None,) * 4
    if line is None or end is None or column is None or end_column is None:
        return ""
    rows = linecache.getlines(frame.f_code.co_filename, frame.f_globals)[line - 1 : end]
    # Columns count bytes.
    raw = [row.encode() for row in rows]
    if not raw:
        return ""
    raw[-1] = raw[-1][:end_column]
    raw[0] = raw[0][column:]
    return b" ".join(part.strip() for part in raw).decode(errors="replace")


def _told_operands(run: "Run", stop: Stop) -> str:
    frame = stop.frame
    if frame is None:
        return ""
    found = operands_of(frame, frame.f_lasti)
    arrays = [(words, value) for words, value in found if isinstance(value, mx.array)]
    if not arrays:
        return ""
    now, sizes = run.current, run.stage.sizes
    assert now is not None  # a failure has a pass
    length = now.stop - now.start
    shown = []
    for words, value in arrays[:2]:
        shape = tuple(value.shape)
        shown.append(f"{words} is {format_shape(shape, sizes.axes(shape, length))}")
    fields = _fields(run, stop, found)
    return f" — {', '.join(shown)}" + (f"; config.json: {fields}" if fields else "") + "."


def _fields(run: "Run", stop: Stop, found: list[Operand]) -> str:
    """The fields that the sizes at odds come from."""
    config = {k: v for k, v in run.stage.config.items() if isinstance(v, int) and not isinstance(v, bool)}
    heads, hidden = config.get("num_attention_heads", 0), config.get("hidden_size", 0)
    if heads and hidden:
        config.setdefault("head_dim", hidden // heads)
    leaf = stop.event.module.rpartition(".")[2]
    if leaf in _TAKES and isinstance(stop.module, nn.Module) and "weight" in stop.module:
        names = _TAKES[leaf].split(" * ")
        if all(name in config for name in names):
            return ", ".join(f"{name} = {config[name]}" for name in names)
    sizes = {value for _, value in found if isinstance(value, int)}
    shapes = [tuple(value.shape) for _, value in found if isinstance(value, mx.array)]
    for place, shape in enumerate(shapes):
        for other in shapes[place + 1 :]:
            sizes |= set(shape) ^ set(other)
    named = [
        f"{name} = {config[name]}" for name in sorted(config) if config[name] in sizes and config[name] > 1
    ]
    for heads_of, width in _PRODUCTS:
        if heads_of in config and width in config and config[heads_of] * config[width] in sizes:
            named.append(f"{heads_of} * {width} = {config[heads_of] * config[width]}")
    return ", ".join(named[:4])
