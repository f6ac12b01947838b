"""``pipe.diff(other, …)``: the same tokens through two models, and where they part."""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.capture import Capture
from mlx_nb.client.current import current
from mlx_nb.client.trace import Trace
from mlx_nb.shared.capture import MAX_TRANSFER_BYTES
from mlx_nb.shared.diff_report import SAME, TOLERANCE, DiffReport, DiffRow, Distance, distance
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.sites import short_spelling

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.client.tracing import Sites

Options = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reference:
    """A model as one process runs it: what `Pipe.diff` loads on rank 0 alone, and unloads again.

    Attributes:
        path: A name, a folder or a Hugging Face id; empty for the pipe's own.
        dtype: What it computes in; None takes the pipe's.
    """

    path: str = ""
    dtype: str | None = None


def reference(path: str = "", kind: str = "mlx", dtype: str | None = None) -> Reference:
    """A model in one process, to compare a pipe with: ``pipe.diff(mlx_nb.reference(), "…")``.

    Args:
        path: A name, a folder or a Hugging Face id; empty for the pipe's own model, fresh from its files.
        kind: What runs it: ``mlx``.
        dtype: As `Cluster.load`; None takes the pipe's.

    Raises:
        OptionError: There is no such kind.
    """
    if kind != "mlx":
        raise OptionError(f"A reference of kind '{kind}' cannot be run.", "Type: mlx_nb.reference(path)")
    return Reference(path, dtype)


def diff(
    pipe: "Pipe",
    other: Any,
    prompt: Prompt | None,
    sites: "Sites",
    forced: bool,
    tol: float | None,
    options: Options,
) -> DiffReport:
    """Compare. Arguments and errors as `Pipe.diff`."""
    if isinstance(other, Reference):
        with _alone(pipe, other) as alone:
            report = diff(pipe, alone, prompt, sites, forced, tol, options)
            name = f"{other.path or pipe.name} in one process"
            return DiffReport(**{**_fields(report), "other": name})
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, int | float) or tol < 0):
        raise OptionError(f"tol is a relative distance, not {tol!r}.", "Type: tol=1e-3")
    wanted = sites.split(",") if isinstance(sites, str) else list(sites)
    if isinstance(other, Trace):
        ids = list(other.info.prompts[-1]) if prompt is None and other.info.prompts else prompt
        theirs, name = other, f"a trace of {other.info.model}"
    elif hasattr(other, "trace") and hasattr(other, "shards"):
        ids, name = (
            (pipe.encode(prompt, raw=bool(options.get("raw"))) if prompt is not None else None),
            other.name,
        )
        theirs = None
    else:
        raise OptionError(
            f"A pipe cannot be compared with a {type(other).__name__}.",
            "Give another pipe, a trace, or mlx_nb.reference(): pipe.diff(mlx_nb.reference(), '…')",
        )
    if ids is None:
        raise OptionError(
            "A comparison needs a prompt.", "Type: pipe.diff(other, 'What is the capital of France?')"
        )
    comparison = _Comparison(pipe, ids, options, tol)
    if theirs is None:
        theirs = comparison.of(other, [*wanted, *comparison.inputs] if forced else wanted)
    elif forced and not any(record.site.endswith(".input") for record in theirs.records()):
        forced = False
        comparison.notes.append(
            "The trace has no layers' inputs, so nothing was forced: record sites='layers.*,layers.*.input'."
        )
    ours = comparison.of(pipe, wanted)
    rows = comparison.rows(ours, theirs)
    if forced:
        with comparison.forcing(theirs):
            again = comparison.of(pipe, wanted)
        forced_rows = comparison.rows(again, theirs)
        rows = [_with_forced(row, forced_rows) for row in rows]
        again.drop()
    inside: list[DiffRow] = []
    first = next((row for row in rows if row.verdict != SAME and row.layer >= 0), None)
    if first is not None and not isinstance(other, Trace):
        inside = comparison.inside(other, first.layer, theirs if forced else None)
    ours.drop()
    if theirs is not other:
        theirs.drop()
    if not rows:
        raise OptionError("The two have no site in common.", "Record the same ones: sites='layers.*'")
    return DiffReport(
        model=pipe.name,
        other=name,
        tokens=comparison.tokens,
        rows=tuple(rows),
        inside=tuple(inside),
        notes=tuple(comparison.notes),
    )


def _fields(report: DiffReport) -> dict[str, Any]:
    return {name: getattr(report, name) for name in DiffReport.__dataclass_fields__}


def _with_forced(row: DiffRow, rows: Sequence[DiffRow]) -> DiffRow:
    same = next((one for one in rows if one.site == row.site), None)
    fields = {name: getattr(row, name) for name in DiffRow.__dataclass_fields__}
    return DiffRow(**{**fields, "forced": same.free if same is not None else None})


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


class _Comparison:
    """One prompt through two models."""

    def __init__(self, pipe: "Pipe", ids: Prompt, options: Options, tol: float | None) -> None:
        self.pipe, self.ids, self.tol = pipe, ids, tol
        self.options = {"prefill_step_size": 16, **options}
        self.notes: list[str] = []
        self.tokens = 0
        self._limit = 0
        self.inputs = [f"{path}.input" for path in pipe.shards[0].layer_paths]

    def of(self, pipe: "Pipe", sites: Sequence[str]) -> Trace:
        """What a pipe makes of the prompt."""
        return pipe.trace(self.ids, sites=list(sites), **self.options)

    def rows(self, ours: Trace, theirs: Trace) -> list[DiffRow]:
        """Every site that both have, as far as both were fed the same tokens."""
        self._limit = self._fed_the_same(ours, theirs)
        other = {capture.sites[0]: capture for capture in theirs}
        found = []
        for capture in ours:
            site = capture.sites[0]
            if site in other:
                found.append(self._row(capture, other[site], ours))
        return found

    def _row(self, own: Capture, other: Capture, trace: Trace) -> DiffRow:
        dtype = max((own.dtype, other.dtype), key=lambda name: TOLERANCE.get(name, 0.0))
        tolerance = self.tol if self.tol is not None else TOLERANCE.get(dtype, 0.0)
        stop = min(own.tokens[1], other.tokens[1], self._limit)
        self.tokens = max(self.tokens, stop)
        lengths = [
            capture.shape[: capture.axis] + capture.shape[capture.axis + 1 :] for capture in (own, other)
        ]
        alike = lengths[0] == lengths[1] and own.axis == other.axis and own.ndim > 0
        common: dict[str, Any] = {
            "site": short_spelling(own.sites[0], trace.info.layer_paths),
            "rank": _rank(own),
            "other_rank": _rank(other),
            "layer": own.records[0].layer,
            "dtype": dtype,
            "tolerance": tolerance,
        }
        if not alike:
            return DiffRow(**common, free=None, shapes=(own.shape, other.shape))
        return DiffRow(**common, free=_distance(own, other, stop))

    def _fed_the_same(self, ours: Trace, theirs: Trace) -> int:
        """How many tokens are the same in both runs: the prompt, and what both have generated alike."""
        prompt, other = (list(trace.info.prompts[-1]) for trace in (ours, theirs))
        if prompt != other:
            raise OptionError(
                "The two were fed other prompts.", "Leave the prompt away: a trace's own one is taken."
            )
        if ours.gen is None or theirs.gen is None:
            return len(prompt)
        own, else_where = ours.gen.token_ids, theirs.gen.token_ids
        alike = 0
        while alike < min(len(own), len(else_where)) and own[alike] == else_where[alike]:
            alike += 1
        if own != else_where:
            note = f"The generated tokens part at number {alike}: what follows is left aside."
            if note not in self.notes:
                self.notes.append(note)
        return len(prompt) + alike

    @contextmanager
    def forcing(self, theirs: Trace) -> Iterator[None]:
        """Every layer is given what the other's was given."""
        known = {record.site for record in theirs.records()}
        with ExitStack() as stack:
            for site in self.inputs:
                if site in known:
                    stack.enter_context(self.pipe.patch(site, theirs[site].numpy()))
            yield

    def inside(self, other: "Pipe", layer: int, theirs: Trace | None) -> list[DiffRow]:
        """The modules of one layer, given the same input as the other's where that is known."""
        path = self.pipe.shards[0].layer_paths[layer]
        sites = [f"{name}.output" for name, _ in self.pipe.shards[0].modules if name.startswith(f"{path}.")]
        both = {name for name, _ in other.shards[0].modules}
        sites = [site for site in sites if site.removesuffix(".output") in both]
        if not sites:
            return []
        reference = self.of(other, sites)
        with ExitStack() as stack:
            if theirs is not None:
                stack.enter_context(self.forcing(theirs))
            own = self.of(self.pipe, sites)
        rows = self.rows(own, reference)
        own.drop()
        reference.drop()
        return rows


def _rank(capture: Capture) -> int:
    return capture.rank if isinstance(capture.rank, int) else capture.rank[0]


def _distance(own: Capture, other: Capture, stop: int) -> Distance:
    """Of the tokens before `stop`, fetched in slices that may travel."""
    axis = own.axis
    length = min(own.shape[axis], other.shape[axis])
    if own.tokens[0] + own.shape[axis] == own.tokens[1]:  # one place for each token
        length = min(length, stop - own.tokens[0])
    most = max(own.nbytes, other.nbytes) // max(1, min(own.shape[axis], other.shape[axis]))
    step = max(1, MAX_TRANSFER_BYTES // 2 // max(1, most))

    def parts() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, length, step):
            index = (*[slice(None)] * axis, slice(start, min(start + step, length)))
            yield own[index], other[index]

    return distance(list(parts()))
