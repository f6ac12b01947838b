"""What a pipe is compared with: another pipe, a saved trace, a model in one process, or one in torch."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from mlx_nb.client.current import current
from mlx_nb.client.torch_reference import in_torch
from mlx_nb.client.trace import Trace
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.request import Prompt

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

KINDS = ("mlx", "transformers")


@dataclass(frozen=True, slots=True)
class Reference:
    """A model that `Pipe.diff` loads for as long as it compares.

    Attributes:
        path: A name, a folder or a Hugging Face id; empty for the pipe's own.
        kind: ``mlx``: mlx-lm in one process, on rank 0; ``transformers``: in torch, beside this kernel.
        dtype: What it computes in; None takes the pipe's.
    """

    path: str = ""
    kind: str = "mlx"
    dtype: str | None = None


def reference(path: str = "", kind: str = "mlx", dtype: str | None = None) -> Reference:
    """A model in one process, to compare a pipe with: ``pipe.diff(mlx_nb.reference(), "…")``.

    Args:
        path: A name, a folder or a Hugging Face id; empty for the pipe's own model, fresh from its files and as
            mlx-lm itself builds it.
        kind: What runs it: ``mlx``, or ``transformers``: Hugging Face's, in torch, in a process of its own beside this
            one (``pip install 'mlx-nb[torch]'``).
        dtype: As `Cluster.load`; None takes the pipe's.

    Raises:
        OptionError: There is no such kind.
    """
    if kind not in KINDS:
        raise OptionError(
            f"A reference of kind '{kind}' cannot be run.",
            "Type: mlx_nb.reference(path), or mlx_nb.reference(path, kind='transformers')",
        )
    return Reference(str(path), kind, dtype)


@dataclass(frozen=True, slots=True)
class Side:
    """The other side of a comparison.

    Attributes:
        name: How the report calls it.
        modules: The module paths of the pipe's that it has.
        run: Feeds ids and records sites; None if it is a trace, that has what it has.
        saved: That trace.
        foreign: Whether it is another program, whose modules may hand on what they hand on in another layout.
    """

    name: str
    modules: frozenset[str]
    run: Callable[[Prompt, Sequence[str], dict[str, Any]], Trace] | None = None
    saved: Trace | None = None
    foreign: bool = False


def side_of(other: Any) -> Side:
    """What is running already, or lies in a file, as the other side.

    Raises:
        OptionError: It is nothing that can be compared with.
    """
    if isinstance(other, Trace):
        return Side(f"a trace of {other.info.model}", frozenset(other.info.modules), saved=other)
    if hasattr(other, "trace") and hasattr(other, "shards"):
        modules = frozenset(name for name, _ in other.shards[0].modules)
        return Side(
            _told_apart(other),
            modules,
            lambda ids, sites, options: other.trace(ids, sites=list(sites), **options),
        )
    raise OptionError(
        f"A pipe cannot be compared with {other!r:.60}.",
        "Give another pipe, a trace, or mlx_nb.reference(): pipe.diff(mlx_nb.reference(), '…')",
    )


def _told_apart(pipe: "Pipe") -> str:
    """A pipe's name, with what makes it another one than a pipe of the same model."""
    return (
        f"{pipe.name} ({pipe.dtype}, layers {'+'.join(str(len(shard.layers)) for shard in pipe.plan.shards)})"
    )


@contextmanager
def running(pipe: "Pipe", wish: Reference) -> Iterator[Side]:
    """A reference for as long as it is needed.

    Raises:
        MlxNbError: It cannot be loaded.
    """
    if wish.kind == "transformers":
        # The ranks know names that transformers does not: smollm2, and those of mlx-community.
        path = pipe.path if wish.path in ("", pipe.name) else wish.path
        with in_torch(pipe, path, wish.dtype or _one_dtype(pipe)) as model:
            yield Side(
                model.name,
                frozenset(model.joined),
                lambda ids, sites, options: model.trace(ids, sites, **options),
                foreign=True,
            )
        return
    with _alone(pipe, wish) as alone:
        side = side_of(alone)
        whose = ", mlx-lm's code" if pipe.code_path else ""
        yield Side(f"{wish.path or pipe.name} in one process{whose}", side.modules, side.run)


def _one_dtype(pipe: "Pipe") -> str:
    return pipe.dtype if pipe.dtype in ("float32", "bfloat16", "float16") else "float32"


@contextmanager
def _alone(pipe: "Pipe", wish: Reference) -> Iterator["Pipe"]:
    """A model on rank 0 alone, for as long as it is needed; what is current stays so."""
    before = current.pipe
    dtype = wish.dtype if wish.dtype is not None or wish.path else pipe.dtype_wish
    adapter = pipe.adapter_path if not wish.path else None
    alone = pipe.cluster.load(
        wish.path or pipe.path, ranks=1, dtype=dtype, adapter_path=adapter, trust_remote_code=pipe.trusted
    )
    current.pipe = before
    try:
        yield alone
    finally:
        alone.unload()
        current.pipe = before
