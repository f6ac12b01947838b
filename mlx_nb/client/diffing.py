"""``pipe.diff(other, …)``: the same tokens through two models, and where they part."""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.around import around
from mlx_nb.client.capture import Capture
from mlx_nb.client.forcing import given
from mlx_nb.client.reference import Reference, Side, running, side_of
from mlx_nb.client.trace import Trace
from mlx_nb.client.tracing import LiveTrace
from mlx_nb.shared.capture import BUDGET_BYTES, MAX_TRANSFER_BYTES
from mlx_nb.shared.clues import clues
from mlx_nb.shared.diff_report import SAME, TOLERANCE, DiffReport, DiffRow, Distance, distance
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.globs import matches
from mlx_nb.shared.position import INPUT, OUTPUT
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.sites import resolve_site, short_spelling

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.client.tracing import Sites

Options = dict[str, Any]

CLUE_BYTES = 16 * 1024 * 1024
"""The most that is fetched to say how the first wrong value is wrong."""


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
    if tol is not None and (isinstance(tol, bool) or not isinstance(tol, int | float) or tol < 0):
        raise OptionError(f"tol is a relative distance, not {tol!r}.", "Type: tol=1e-3")
    if isinstance(other, Trace):
        ids = list(other.info.prompts[-1]) if prompt is None and other.info.prompts else prompt
    else:
        ids = pipe.encode(prompt, raw=bool(options.get("raw"))) if prompt is not None else None
    if ids is None:
        if not isinstance(other, Reference):
            side_of(other)  # what cannot be compared with at all is told first
        raise OptionError(
            "A comparison needs a prompt.", "Type: pipe.diff(other, 'What is the capital of France?')"
        )
    wanted = sites.split(",") if isinstance(sites, str) else list(sites)
    closer = _Closer(pipe, other, ids, options, tol, forced=forced)
    with closer.comparison() as comparison:
        return replace(comparison.report(wanted, forced=forced), closer=closer)


class _Closer:
    """A comparison that can be made again, closer."""

    def __init__(
        self, pipe: "Pipe", other: Any, ids: Prompt, options: Options, tol: float | None, *, forced: bool
    ) -> None:
        self._pipe, self._other, self._ids = pipe, other, ids
        self._options, self._tol, self._forced = options, tol, forced

    @contextmanager
    def comparison(self) -> "Iterator[_Comparison]":
        other = self._other
        with ExitStack() as stack:
            foreign = isinstance(other, Reference)
            side = stack.enter_context(running(self._pipe, other)) if foreign else side_of(other)
            yield _Comparison(self._pipe, side, self._ids, self._options, self._tol)

    @contextmanager
    def _again(self) -> "Iterator[_Comparison]":
        """The same, behind the scenes: `pipe.last` stays what it was."""
        before = self._pipe.last
        with self.comparison() as comparison:
            yield comparison
        self._pipe.last = before

    def inside(self, layer: int) -> DiffReport:
        """As `shared.diff_report.Closer`. Raises as `Pipe.diff`."""
        path = self._pipe.shards[0].layer_paths[layer]
        with self._again() as comparison:
            return comparison.report([f"{path}.**"], forced=self._forced)

    def gap(self, site: str) -> np.ndarray:
        """As `shared.diff_report.Closer`. Raises as `Pipe.diff`."""
        with self._again() as comparison:
            return comparison.gap(site)


class _Comparison:
    """One prompt through two models."""

    def __init__(self, pipe: "Pipe", side: Side, ids: Prompt, options: Options, tol: float | None) -> None:
        self.pipe, self.side, self.ids, self.tol = pipe, side, ids, tol
        self.options = {"prefill_step_size": 16, **options}
        self.notes: list[str] = []
        self.tokens = 0
        self._limit = 0
        self._spans: list[tuple[int, int]] = []
        self._aside: set[str] = set()
        first = pipe.shards[0]
        self._layer_paths = first.layer_paths
        self._modules = [name for name, _ in first.modules]

    def report(self, wanted: Sequence[str], *, forced: bool) -> DiffReport:
        """Compare at sites; `forced` once more with each of their modules given the other's input."""
        asked = self._resolved(wanted)
        beside, left_aside = around(self.pipe.shards[0], asked, len(self.ids))
        if left_aside:
            self._note(left_aside)
        patterns = list(dict.fromkeys([*asked, *beside]))
        theirs = self._theirs([*patterns, *_both_kinds(patterns)] if forced else patterns)
        if self.side.saved is not None:
            self._tell_what_lacks(beside)
        self._tell_what_is_never_called(theirs)
        if self.side.foreign:
            lacking = [name for name in self._modules if name and name not in self.side.modules]
            names = ", ".join(sorted({name.rpartition(".")[2] for name in lacking})[:6])
            joined = f"{len(self._modules) - 1 - len(lacking)} of {len(self._modules) - 1} modules are joined by path"
            self.notes.append(f"{joined}; the other has no {names}." if lacking else f"{joined}.")
        if forced and not any(record.site.endswith(f".{INPUT}") for record in theirs.records()):
            forced = False
            self.notes.append(
                "The trace has no layers' inputs, so nothing was forced: record sites='layers.*,layers.*.input'."
            )
        ours = self._ours(patterns)
        pairs = self._pairs(ours, theirs)
        rows = [self._row(*pair) for pair in pairs]
        if self.side.foreign and (aside := self._scaled_elsewhere(pairs, rows)):
            self._aside = {aside}
            pairs = [pair for pair in pairs if pair[0].sites[0] != aside]
            rows = [self._row(*pair) for pair in pairs]
        final, again = pairs, None
        if forced:
            again = self._ours(patterns, theirs, self._fed_to(theirs, patterns))
            final = self._pairs(again, theirs)
            rows = _with_forced(rows, [self._row(*pair) for pair in final])
        # What goes into a module beside the layers is what came out of another: told where the code between is wrong.
        quiet = {
            short_spelling(site, self._layer_paths)
            for site in beside
            if site.endswith(f".{INPUT}") and not any(matches(site, pattern) for pattern in asked)
        }
        rows = [row for row in rows if row.site not in quiet or row.verdict != SAME]
        first = next((row for row in rows if row.verdict != SAME), None)
        inside: list[DiffRow] = []
        told: list[str] = []
        if first is not None and first.layer >= 0:
            inside, told = self._inside(first.layer, theirs if forced else None)
        if not told:
            told = self._clues(rows, final)
        for trace in (ours, again, theirs if theirs is not self.side.saved else None):
            if trace is not None:
                trace.drop()
        if not rows:
            raise OptionError("The two have no site in common.", "Record the same ones: sites='layers.*'")
        return DiffReport(
            model=self.pipe.name,
            other=self.side.name,
            tokens=self.tokens,
            rows=tuple(rows),
            inside=tuple(inside),
            clues=tuple(told),
            notes=tuple(self.notes),
        )

    def gap(self, site: str) -> np.ndarray:
        """The difference at one site in free runs, as far as both were fed the same tokens.

        Raises:
            OptionError: They have not both a value of one shape there, or it is too large to travel.
        """
        wanted = self._resolved([re.sub(r"#\d+", "", site)])
        theirs = self._theirs(wanted)
        ours = self._ours(wanted)
        pairs = [
            p for p in self._pairs(ours, theirs) if short_spelling(p[0].sites[0], self._layer_paths) == site
        ]
        try:
            if not pairs or not _alike(*pairs[0]):
                raise OptionError(f"The two have no value of one shape at {site}.", "Choose another site.")
            own, other = pairs[0]
            if max(own.nbytes, other.nbytes) > CLUE_BYTES:
                raise OptionError(f"{site} is too large for a picture.", "Compare a shorter prompt.")
            index = (*[slice(None)] * own.axis, slice(0, max(1, self._limit - own.tokens[0])))
            return own[index].astype(np.float32) - other[index].astype(np.float32)
        finally:
            ours.drop()
            if theirs is not self.side.saved:
                theirs.drop()

    # The runs ---------------------------------------------------------------------------------------

    def _resolved(self, wanted: Sequence[str]) -> list[str]:
        found = [part.strip() for part in wanted if part.strip()]
        return [resolve_site(site, self._modules, self._layer_paths) for site in found]

    def _tell_what_lacks(self, beside: Sequence[str]) -> None:
        """Say which places beside the layers a trace has not."""
        assert self.side.saved is not None
        known = {record.site for record in self.side.saved.records()}
        lacking = [site for site in beside if site not in known and not site.endswith(f".{INPUT}")]
        if names := ",".join(short_spelling(site, self._layer_paths) for site in lacking):
            self._note(
                f"The trace has no {names}, so that was not compared: record sites='layers.*,layers.*.input,{names}'."
            )

    def _tell_what_is_never_called(self, theirs: Trace) -> None:
        """Say which modules the other calls, and this model has and leaves alone: somebody forgot to call them."""
        here = set(self.pipe.shards[0].order)
        called = {record.site.rpartition(".")[0] for record in theirs.records()} & set(self._modules)
        names = sorted({name.rpartition(".")[2] for name in called - here})
        if names:
            self._note(f"This model has {', '.join(names)}, as the other has, but never calls it.")

    def _ours(self, sites: Sequence[str], theirs: Trace | None = None, fed: Collection[str] = ()) -> Trace:
        """What the pipe makes of the prompt; the sites in `fed` are given the other's values, after they were recorded."""
        options = dict(self.options)
        max_tokens = options.pop("max_tokens", 0)
        with ExitStack() as stack:
            name = ""
            if theirs is not None and fed:
                name = stack.enter_context(given(self.pipe, theirs, fed, self._spans))
            trace = LiveTrace(self.pipe, list(sites), BUDGET_BYTES, given=name)
            trace.run(self.ids, max_tokens, options)
        self._spans = [(one.start, one.stop) for one in trace.records()[0].passes] if trace.records() else []
        return trace

    def _theirs(self, sites: Sequence[str]) -> Trace:
        """What the other makes of it."""
        if self.side.run is None:
            assert self.side.saved is not None  # it has the one or the other
            return self.side.saved
        return self.side.run(self.ids, list(dict.fromkeys(sites)), self.options)

    def _fed_to(self, theirs: Trace, patterns: Sequence[str]) -> set[str]:
        """The sites at which the pipe is given what the other has: what goes into the modules that are compared,
        and what comes out of them where no layer follows that is given its own."""
        compared = [
            *patterns,
            *_both_kinds(patterns),
        ]  # a trace may hold more: it would mend what is to be judged
        known = {
            site
            for site in (record.site for record in theirs.records())
            if any(matches(site, pattern) for pattern in compared)
        }
        layers = {f"{path}.{OUTPUT}" for path in self._layer_paths[:-1] if f"{path}.{INPUT}" in known}
        return known - layers - self._aside

    # The comparison -----------------------------------------------------------------------------------

    def _pairs(self, ours: Trace, theirs: Trace) -> list[tuple[Capture, Capture]]:
        """Every site that both have, as far as both were fed the same tokens."""
        self._limit = self._fed_the_same(ours, theirs)
        other = {capture.sites[0]: capture for capture in theirs.joinable()}
        pairs = [(own, other[own.sites[0]]) for own in ours.joinable() if own.sites[0] in other]
        if not self.side.foreign:
            return pairs
        # Another program hands on what it likes: only whole layers and logits are the same by definition.
        whole = {f"{path}.{kind}" for path in self._layer_paths for kind in (INPUT, OUTPUT)} | {"logits"}
        odd = [own.sites[0] for own, there in pairs if own.sites[0] not in whole and not _alike(own, there)]
        if odd:
            names = ", ".join(sorted({site.rpartition(".")[0].rpartition(".")[2] for site in odd}))
            self._note(f"Not compared, since the other hands on another layout there: {names}.")
        return [pair for pair in pairs if pair[0].sites[0] not in {*odd, *self._aside}]

    def _scaled_elsewhere(self, pairs: Sequence[tuple[Capture, Capture]], rows: Sequence[DiffRow]) -> str:
        """The embedding's output, where another program scales inside it what mlx-lm scales behind it; else empty."""
        verdicts = {own.sites[0]: row.verdict for (own, _), row in zip(pairs, rows, strict=True)}
        if verdicts.get(f"{self._layer_paths[0]}.{INPUT}") != SAME:
            return ""
        order = self.pipe.shards[0].order
        before = order[: order.index(self._layer_paths[0])] if self._layer_paths[0] in order else ()
        found = next((name for path in before if verdicts.get(name := f"{path}.{OUTPUT}", SAME) != SAME), "")
        if found:
            self._note(f"{found} is scaled elsewhere in the other: what goes into layer 0 is the same.")
        return found

    def _row(self, own: Capture, other: Capture) -> DiffRow:
        dtype = max((own.dtype, other.dtype), key=lambda name: TOLERANCE.get(name, 0.0))
        tolerance = self.tol if self.tol is not None else TOLERANCE.get(dtype, 0.0)
        stop = min(own.tokens[1], other.tokens[1], self._limit)
        self.tokens = max(self.tokens, stop)
        common: dict[str, Any] = {
            "site": short_spelling(own.sites[0], self._layer_paths),
            "rank": _rank(own),
            "other_rank": _rank(other),
            "layer": own.records[0].layer,
            "dtype": dtype,
            "tolerance": tolerance,
        }
        if not _alike(own, other):
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
            self._note(f"The generated tokens part at number {alike}: what follows is left aside.")
        return len(prompt) + alike

    def _inside(self, layer: int, theirs: Trace | None) -> tuple[list[DiffRow], list[str]]:
        """The modules of one layer, each given the other's input; where no inputs are known, in a free run."""
        path = self._layer_paths[layer]
        names = [name for name in self._modules if name.startswith(f"{path}.") and name in self.side.modules]
        if not names:
            return [], []
        sites = [f"{name}.{kind}" for name in names for kind in (INPUT, OUTPUT)]
        if self.side.saved is not None and not any(one.site in sites for one in self.side.saved.records()):
            return [], []  # a trace has what was recorded
        entry = f"{path}.{INPUT}"
        reference = self._theirs([entry, *sites])
        self._tell_what_is_never_called(reference)
        fed = {entry} if theirs is not None else set()
        free = self._ours(sites, reference, fed)
        rows = [self._row(*pair) for pair in self._pairs(free, reference)]
        pairs = self._pairs(free, reference)
        local: Trace | None = None
        if theirs is not None:
            local = self._ours(sites, reference, {entry, *sites})
            pairs = self._pairs(local, reference)
            rows = _with_forced(rows, [self._row(*pair) for pair in pairs])
        # What goes into a module is what came out of another: it is told where the code between them is wrong.
        kept = [row for row in rows if not row.site.endswith(f".{INPUT}") or row.verdict != SAME]
        told = self._clues(kept, pairs)
        for trace in (free, local, reference):
            if trace is not None and trace is not self.side.saved:
                trace.drop()
        return kept, told

    def _clues(self, rows: Sequence[DiffRow], pairs: Sequence[tuple[Capture, Capture]]) -> list[str]:
        """How the first wrong value is wrong."""
        first = next((row for row in rows if row.verdict != SAME), None)
        if first is None or first.free is None:
            return []
        for own, other in pairs:
            if short_spelling(own.sites[0], self._layer_paths) != first.site:
                continue
            if max(own.nbytes, other.nbytes) > CLUE_BYTES or not own.held or not other.held:
                return []
            index = (*[slice(None)] * own.axis, slice(0, max(1, self._limit - own.tokens[0])))
            width = self.pipe.shards[0].hidden_size
            return clues(own[index], other[index], own.axis, width, first.tolerance)
        return []

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _both_kinds(patterns: Sequence[str]) -> Iterator[str]:
    """What goes into the modules that are compared, and what comes out."""
    for pattern in patterns:
        stem, _, kind = pattern.rpartition(".")
        if kind in (INPUT, OUTPUT):
            yield f"{stem}.{INPUT}"
            yield f"{stem}.{OUTPUT}"


def _with_forced(rows: Sequence[DiffRow], forced: Sequence[DiffRow]) -> list[DiffRow]:
    known = {row.site: row.free for row in forced}
    return [replace(row, forced=known.get(row.site)) for row in rows]


def _alike(own: Capture, other: Capture) -> bool:
    """Whether two values have one shape, but for how many tokens they are of."""
    lengths = [one.shape[: one.axis] + one.shape[one.axis + 1 :] for one in (own, other)]
    return lengths[0] == lengths[1] and own.axis == other.axis and own.ndim > 0


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
