"""Traces: what runs were at some sites, recorded while they went on; the values stay where they are until asked for."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.capture import Capture, Source, Wanted
from mlx_nb.shared.capture import (
    Index,
    SiteRecord,
    is_glob,
    itemsize_of,
    join_axis,
    joined_shape,
    matching,
)
from mlx_nb.shared.errors import MlxNbError, OptionError, SiteError, TraceError
from mlx_nb.shared.sites import short_spelling
from mlx_nb.shared.statistics import STATISTICS, TokenStatistics
from mlx_nb.shared.text import Table, format_count, format_number, format_shape, format_size, format_table

if TYPE_CHECKING:
    import os

ROWS_SHOWN = 40
HEAD = ["site", "rank", "tokens", "passes", "shape", "dtype", "size", "min", "mean", "max", "NaN", "Inf"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceInfo:
    """What is known of a trace besides its values.

    Attributes:
        model: The model's name.
        dtype: What it computed in.
        modules: Every module path of the model.
        layer_paths: Those of its layers.
        sites: What was asked for, as it was written.
        prompts: The prompt's token ids of each run.
        layers: The layers of each rank, half-open.
    """

    model: str
    dtype: str
    modules: tuple[str, ...]
    layer_paths: tuple[str, ...]
    sites: tuple[str, ...]
    prompts: list[tuple[int, ...]] = field(default_factory=list)
    layers: tuple[tuple[int, int], ...] = ()


class Trace:
    """What runs were at some sites: ``trace["layers.3.resid_post"]`` is a `Capture`, a glob stacks.

    Attributes:
        info: The model, the sites asked for, the prompts.
        gen: The `Generation` of a trace that ran its own prompt; else None.
    """

    def __init__(self, source: Source, info: TraceInfo) -> None:
        self._source = source
        self.info = info
        self.gen: Any = None
        self._dropped = False

    def records(self) -> list[SiteRecord]:
        """What was recorded: every site of every run, as it is now."""
        return self._source.records()

    @property
    def sites(self) -> list[str]:
        """The sites that have a value, in the model's order."""
        return list(dict.fromkeys(record.label for record in self.records()))

    @property
    def runs(self) -> list[int]:
        """The numbers of the runs that were recorded."""
        return sorted({record.run for record in self.records()})

    def __getitem__(self, wanted: Any) -> Capture:
        """``trace[site]`` joins a run's passes along L; ``trace[site, 17]`` is the one that fed token 17. As `at`."""
        if isinstance(wanted, tuple):
            if len(wanted) != 2:
                raise OptionError(
                    "A trace is indexed by a site, or a site and a token.", "Type: trace[site, 17]"
                )
            return self.at(wanted[0], token=wanted[1])
        return self.at(wanted)

    def at(self, site: str, token: int | None = None, run: int | None = None) -> Capture:
        """The value at a site, an alias, or a glob: then with an axis of the sites before all others.

        Args:
            site: As `pipe.break_at` takes it; ``…rope#2.input`` is one call of several.
            token: The pass that fed this token; None joins all passes along L.
            run: A number in `runs`; None is the last.

        Raises:
            SiteError: The model has no such site, or it was not recorded.
            OptionError: No pass fed the token, or the passes' shapes cannot be joined.
        """
        if not isinstance(site, str):
            raise OptionError(
                f"A trace is indexed by a site, not {type(site).__name__}.", 'Type: trace["layers.0.output"]'
            )
        records = self.records()
        if not records and self._dropped:
            raise TraceError("This trace was dropped.", "Record it again: pipe.trace(…)")
        if not records:
            raise TraceError(
                "This trace has recorded nothing.", "Run something inside: with pipe.trace() as trace: …"
            )
        known = sorted({record.run for record in records})
        number = known[-1] if run is None else run
        if number not in known:
            raise OptionError(f"The trace has no run {run}.", f"It has: {', '.join(map(str, known))}.")
        mine = [record for record in records if record.run == number]
        found = matching(mine, site, self.info.modules, self.info.layer_paths)
        if not found:
            raise SiteError(
                f"{site} was not recorded (sites={', '.join(self.info.sites)}).",
                f'Recorded: {_few([short_spelling(r.label, self.info.layer_paths) for r in mine])}. Or: pipe.trace(…, sites="{site}")',
            )
        if token is not None:
            kept = [one for record in found if (one := record.only(_token(token))) is not None]
            if not kept:
                spans = found[0].passes
                raise OptionError(
                    f"No pass fed token {token}.",
                    f"Recorded are the tokens {spans[0].start}–{spans[-1].stop - 1}.",
                )
            found = kept
        return self._capture(found, stacked=is_glob(site) or len(found) > 1)

    def _capture(self, records: Sequence[SiteRecord], *, stacked: bool = False) -> Capture:
        run = records[0].run
        fed = list(self.info.prompts[run]) if run < len(self.info.prompts) else []
        if self.gen is not None:
            fed += self.gen.token_ids
        info = self.info
        return Capture(
            self._source, records, info.layer_paths, stacked=stacked, model=info.model, fed=tuple(fed)
        )

    def __iter__(self) -> Iterator[Capture]:
        """The captures of the last run, site by site."""
        runs = self.runs
        for record in self.records():
            if record.run == runs[-1]:
                yield self._capture([record])

    def joinable(self) -> Iterator[Capture]:
        """The same, without those whose passes cannot be joined along their tokens."""
        runs = self.runs
        for record in self.records():
            if record.run == runs[-1] and record.passes[0].shape:
                with suppress(OptionError):
                    yield self._capture([record])

    def __len__(self) -> int:
        """How many sites the last run has."""
        runs = self.runs
        return sum(record.run == runs[-1] for record in self.records())

    def __contains__(self, site: object) -> bool:
        try:
            return bool(self.at(str(site)).records)
        except MlxNbError:
            return False

    @property
    def nbytes(self) -> int:
        """Bytes of all that is still there."""
        return sum(
            int(np.prod(one.shape, dtype=np.int64)) * itemsize_of(record.dtype)
            for record in self.records()
            for one in record.passes
            if one.held
        )

    def table(self) -> Table:
        """A row for each site of the last run with its numbers, the head first."""
        runs = self.runs
        records = [record for record in self.records() if runs and record.run == runs[-1]]
        rows = [HEAD]
        for record, numbers in zip(records, self._numbers(records), strict=True):
            rows.append([*_row(record, self.info.layer_paths), *numbers])
        return Table(rows, right=(1, 3, *range(6, len(HEAD))))

    def _numbers(self, records: Sequence[SiteRecord]) -> list[list[str]]:
        """The last columns of the table: blank for what cannot be joined or is gone."""
        wanted: dict[int, Wanted] = {}
        for place, record in enumerate(records):
            try:
                axis = join_axis(record)
            except OptionError:
                continue
            if all(one.held for one in record.passes):
                wanted[place] = record, tuple(one.start for one in record.passes), axis, ()
        found = dict(zip(wanted, self._source.summaries(list(wanted.values())), strict=True))
        rows = []
        for place, record in enumerate(records):
            if (one := found.get(place)) is None:
                rows.append(["–" if all(p.held for p in record.passes) else "let go", *[""] * 4])
                continue
            rows.append(
                [*(format_number(v) for v in (one.min, one.mean, one.max)), str(one.nan), str(one.inf)]
            )
        return rows

    def statistics(self, site: str = "layers.*.resid_post") -> TokenStatistics:
        """Each token in a few numbers at every site that a glob stands for, computed where the values are.

        Args:
            site: As `at` takes it.

        Raises:
            SiteError, OptionError: As `at`.
            TraceError: A value is no longer there.
        """
        capture = self.at(site)
        starts = tuple(one.start for one in capture.records[0].passes)
        found = self._source.token_statistics(
            [(record, starts, capture.axis, ()) for record in capture.records]
        )
        alike = len({record.site.rpartition(".")[2] for record in capture.records}) == 1
        layers = tuple(record.layer for record in capture.records)
        by_layer = alike and len(set(layers)) == len(layers) and min(layers) >= 0
        sites = tuple(short_spelling(record.label, self.info.layer_paths) for record in capture.records)
        return TokenStatistics(
            model=self.info.model,
            rows=tuple(map(str, layers)) if by_layer else sites,
            sites=sites,
            ranks=tuple(record.rank for record in capture.records),
            layers=layers,
            start=capture.tokens[0],
            values={name: np.stack([one[at] for one in found]) for at, name in enumerate(STATISTICS)},
        )

    def save(self, path: "str | os.PathLike[str]") -> Path:
        """Write all that is still there into one safetensors file, which `mlx_nb.open_trace` opens anywhere.

        Args:
            path: On this machine; ``.safetensors`` is added if need be.

        Returns:
            The file.

        Raises:
            TraceError: Nothing is there, or the file cannot be written.
        """
        from mlx_nb.client.trace_file import write_trace  # it imports this module

        return write_trace(self, Path(path))

    def drop(self) -> None:
        """Free the values on their ranks."""
        self._source.drop()
        self._dropped = True

    def read(self, wanted: Sequence[tuple[SiteRecord, int, Index]]) -> list[np.ndarray]:
        """Slices of single passes' values, bfloat16 as their bits: what a file is written from."""
        return self._source.slices([(record, (start,), 0, index) for record, start, index in wanted])

    def __repr__(self) -> str:
        records = self.records()
        runs = sorted({record.run for record in records})
        last = [record for record in records if record.run == runs[-1]] if runs else []
        spans = [one for record in last for one in record.passes]
        tokens = f" · tokens {min(p.start for p in spans)}:{max(p.stop for p in spans)}" if spans else ""
        several = f" · {len(runs)} runs, the last" if len(runs) > 1 else ""
        size = format_size(self.nbytes)
        head = f"Trace {self.info.model} · {', '.join(self.info.sites)}{several}{tokens} · {format_count(len(last), 'site')} · {size}, {self._source.where}"
        if not last:
            return f"{head}\n {'dropped' if self._dropped else 'nothing recorded yet'}"
        rows = [[*HEAD[:7], ""]]
        for record in last[:ROWS_SHOWN]:
            lost = sum(not one.held for one in record.passes)
            rows.append([*_row(record, self.info.layer_paths), f"{lost} of them let go" if lost else ""])
        more = f"\n … {len(last) - ROWS_SHOWN} more: trace.table()" if len(last) > ROWS_SHOWN else ""
        return f"{head}\n{format_table(rows, right=(1, 3, 6))}{more}"


def _row(record: SiteRecord, layer_paths: Sequence[str]) -> list[str]:
    try:
        axis = join_axis(record)
        shape = format_shape(joined_shape(record, axis), record.axes)
    except OptionError:
        shape = f"{list(record.passes[0].shape)} …"
    size = sum(int(np.prod(one.shape, dtype=np.int64)) for one in record.passes) * itemsize_of(record.dtype)
    return [
        short_spelling(record.label, layer_paths),
        str(record.rank),
        f"{record.passes[0].start}:{record.passes[-1].stop}",
        str(len(record.passes)),
        shape,
        record.dtype,
        format_size(size),
    ]


def _token(token: Any) -> int:
    if not hasattr(token, "__index__") or isinstance(token, bool):
        raise OptionError(f"A token is named by its place, not {token!r}.", "Type: trace[site, 17]")
    return int(token.__index__())


def _few(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
