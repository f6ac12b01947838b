"""Traces: what runs were at some sites, recorded while they went on; the values stay where they are until asked for."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from mlx_nb.shared.capture import (
    Index,
    SiteRecord,
    check_transfer,
    from_bits,
    is_glob,
    itemsize_of,
    join_axis,
    joined_shape,
    matching,
    merge_summaries,
    passes_needed,
    plain_index,
)
from mlx_nb.shared.errors import MlxNbError, OptionError, SiteError, TraceError
from mlx_nb.shared.position import Summary
from mlx_nb.shared.sites import alias_of, short_spelling
from mlx_nb.shared.text import format_number, format_shape, format_size, format_table

if TYPE_CHECKING:
    import os

ROWS_SHOWN = 40
HEAD = ["site", "rank", "tokens", "passes", "shape", "dtype", "size", "min", "mean", "max", "NaN", "Inf"]

Wanted = tuple[SiteRecord, tuple[int, ...], int, Index]
"""A site, the first tokens of the passes asked for, the axis that joins them, and a slice over them."""


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


class Source(Protocol):
    """Where a trace's values are: on the ranks, or in a file."""

    @property
    def where(self) -> str:
        """How printed lines say it."""

    def records(self) -> list[SiteRecord]:
        """What there is, in the model's order."""

    def slices(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        """Copies of slices, in the order asked for; bfloat16 as its bits."""

    def summaries(self, wanted: Sequence[Wanted]) -> list[Summary]:
        """Numbers, in the order asked for; the slices are left out of account."""

    def drop(self) -> None:
        """Free the values."""


class Capture:
    """The value at one site over the passes of a run, or at several sites, stacked.

    Nothing is fetched before it is asked for: indexing slices where the values are, and fetches a copy of that.

    Attributes:
        records: What it is made of.
        axis: Where the passes are joined.
        stacked: Whether there is one more axis, of the sites, before all others.

    Shapes:
        one site: its own, such as ``[B, L, D]``, with the passes joined along L.
        a glob: ``[layers, B, L, D]``.
    """

    def __init__(
        self, source: Source, records: Sequence[SiteRecord], layer_paths: Sequence[str], *, stacked: bool
    ) -> None:
        self._source = source
        self._layer_paths = layer_paths
        self.records = tuple(records)
        self.stacked = stacked
        first = self.records[0]
        self.axis = join_axis(first)
        self._one = joined_shape(first, self.axis)
        for other in self.records[1:]:
            spans = [(p.start, p.stop) for p in other.passes] == [(p.start, p.stop) for p in first.passes]
            shape = joined_shape(other, join_axis(other))
            if (shape, other.dtype) != (self._one, first.dtype) or not spans:
                raise OptionError(
                    f"{other.label} is {list(shape)} {other.dtype} and {first.label} {list(self._one)} {first.dtype}: "
                    "they cannot be stacked.",
                    f'Ask for one of them: trace["{first.label}"]',
                )
        self._summary: Summary | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.records), *self._one) if self.stacked else self._one

    @property
    def dtype(self) -> str:
        """As MLX names it: ``bfloat16`` comes to numpy as the equal float32."""
        return self.records[0].dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes where the values are."""
        return int(np.prod(self.shape, dtype=np.int64)) * itemsize_of(self.dtype)

    @property
    def rank(self) -> int | tuple[int, ...]:
        """The rank that has it; of several sites, those that have them."""
        ranks = tuple(dict.fromkeys(record.rank for record in self.records))
        return ranks[0] if len(ranks) == 1 else ranks

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites, as the first axis of a stack has them."""
        return tuple(record.label for record in self.records)

    @property
    def axes(self) -> tuple[str, ...]:
        """A name for each axis: ``layer``, letters where they are known, ``dim_3`` where not."""
        letters = list(self.records[0].axes) + [""] * (len(self._one) - len(self.records[0].axes))
        if self._one:
            letters[self.axis] = letters[self.axis] or "L"
        if self.stacked:
            layers = [record.layer for record in self.records]
            alone = len(set(layers)) == len(layers) and min(layers) >= 0
            letters.insert(0, "layer" if alone else "site")
        return tuple(
            letter if letter and letter not in letters[:place] else f"dim_{place}"
            for place, letter in enumerate(letters)
        )

    @property
    def tokens(self) -> tuple[int, int]:
        """The tokens of its passes, half-open."""
        return self.records[0].passes[0].start, self.records[0].passes[-1].stop

    @property
    def held(self) -> bool:
        """Whether every value was still there when the trace was last asked."""
        return all(one.held for record in self.records for one in record.passes)

    @property
    def summary(self) -> Summary:
        """Its numbers, computed where the values are.

        Raises:
            TraceError: A value is no longer there.
        """
        if self._summary is None:
            everything = tuple(slice(0, length, 1) for length in self._one)
            parts = self._source.summaries([self._wanted(record, everything) for record in self.records])
            axes = tuple("" if name.startswith("dim_") else name for name in self.axes)
            self._summary = merge_summaries(parts, None if self.stacked else self.axis, self.shape, axes)
        return self._summary

    def __getitem__(self, index: Any) -> np.ndarray:
        """A read-only copy of a slice; sliced before it is sent.

        Raises:
            OptionError: The index does not fit the shape.
            TransferTooLargeError: The slice is over 64 MiB; the message has one that is not.
            TraceError: A value is no longer there.
        """
        found = plain_index(index, self.shape)
        label = self.sites[0] if len(self.sites) == 1 else f"{self.sites[0]} … {self.sites[-1]}"
        # The axes of the result are those that are sliced; L's place among them, for the advice.
        kept = [axis for axis, one in enumerate(found.index) if isinstance(one, slice)]
        tokens = self.axis + self.stacked
        place = kept.index(tokens) if tokens in kept else 0
        check_transfer(label, found.shape, itemsize_of(self.dtype), place)
        records, rest = self.records, found.index
        if self.stacked:
            first, *others = found.index
            rest = tuple(others)
            records = (records[first],) if isinstance(first, int) else records[first]
        parts = self._source.slices([self._wanted(record, rest) for record in records])
        many = self.stacked and isinstance(found.index[0], slice)
        if many:
            array = np.stack(parts) if parts else np.zeros(found.shape, self._empty_dtype)
        else:
            array = parts[0]
        array = from_bits(array, self.dtype)
        if found.flips:
            array = np.flip(array, found.flips).copy()
        array.setflags(write=False)
        return array

    def numpy(self) -> np.ndarray:
        """All of it, read-only. Raises as indexing does."""
        return self[...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        if dtype is not None and array.dtype != dtype:
            return array.astype(dtype)
        return array.copy() if copy else array

    def __len__(self) -> int:
        if not self.shape:
            raise TypeError("len() of a capture without axes")
        return self.shape[0]

    def mx(self) -> Any:
        """All of it as an ``mlx.core.array`` of its own dtype; the one thing here that imports mlx.

        Raises:
            OptionError: mlx is not installed.
        """
        try:
            core = import_module("mlx.core")
        except ImportError as error:
            raise OptionError(
                "mlx is not installed here.", "Type: %pip install mlx (or take .numpy())"
            ) from error
        array = core.array(self.numpy())
        return array.astype(core.bfloat16) if self.dtype == "bfloat16" else array

    def xarray(self) -> Any:
        """All of it as an ``xarray.DataArray``: axes by name, tokens and layers as coordinates.

        Raises:
            OptionError: xarray is not installed.
        """
        try:
            made = import_module("xarray").DataArray
        except ImportError as error:
            raise OptionError(
                "xarray is not installed.", "Type: %pip install xarray (or 'mlx-nb[xarray]')"
            ) from error
        coordinates: dict[str, Any] = {}
        if self._one:
            places = [place for one in self.records[0].passes for place in range(one.start, one.stop)]
            name = self.axes[self.axis + self.stacked]
            if len(places) == self._one[self.axis]:
                coordinates[name] = places
        if self.stacked:
            layers = [record.layer for record in self.records]
            coordinates[self.axes[0]] = layers if self.axes[0] == "layer" else list(self.sites)
        label = self.sites[0] if not self.stacked else ""
        return made(
            self.numpy(), dims=self.axes, coords=coordinates, name=label or None, attrs={"dtype": self.dtype}
        )

    @property
    def _empty_dtype(self) -> Any:
        return np.float32 if self.dtype == "bfloat16" else np.dtype(self.dtype)

    def _wanted(self, record: SiteRecord, index: Index) -> Wanted:
        starts, moved = passes_needed(record, self.axis, index)
        return record, starts, self.axis, moved

    def __repr__(self) -> str:
        first, last = self.records[0], self.records[-1]
        alias = alias_of(first.site, self._layer_paths)
        name = first.label if len(self.records) == 1 else f"{first.label} … {last.label}"
        name += f" ({alias})" if alias and alias_of(last.site, self._layer_paths) == alias else ""
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        where = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        letters = tuple("" if axis.startswith("dim_") else axis for axis in self.axes)
        start, stop = self.tokens
        where_kept = (
            self._source.where if len(ranks) > 1 else self._source.where.replace("their ranks", "the rank")
        )
        lines = [
            f"Capture {name} · {where} · tokens {start}:{stop}",
            f" {format_shape(self.shape, letters)} {self.dtype} · {format_size(self.nbytes)}, {where_kept}",
        ]
        try:
            found = self.summary
        except MlxNbError as error:
            return "\n".join([*lines, f" {error}"])
        at = f" at [{','.join(map(str, found.min_at))}]" if found.min_at else ""
        lines.append(
            f" min {format_number(found.min)}{at} · mean {format_number(found.mean)} · max {format_number(found.max)}"
            f" · NaN {found.nan} Inf {found.inf}"
        )
        return "\n".join(lines)


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
        return Capture(self._source, found, self.info.layer_paths, stacked=is_glob(site) or len(found) > 1)

    def __iter__(self) -> Iterator[Capture]:
        """The captures of the last run, site by site."""
        runs = self.runs
        for record in self.records():
            if record.run == runs[-1]:
                yield Capture(self._source, [record], self.info.layer_paths, stacked=False)

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

    def table(self) -> list[list[str]]:
        """A row for each site of the last run with its numbers, the head first."""
        runs = self.runs
        records = [record for record in self.records() if runs and record.run == runs[-1]]
        rows = [HEAD]
        for record, numbers in zip(records, self._numbers(records), strict=True):
            rows.append([*_row(record, self.info.layer_paths), *numbers])
        return rows

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
        head = f"Trace {self.info.model} · {', '.join(self.info.sites)}{several}{tokens} · {len(last)} sites · {size}, {self._source.where}"
        if not last:
            return f"{head}\n nothing recorded yet"
        rows = [[*HEAD[:7], ""]]
        for record in last[:ROWS_SHOWN]:
            lost = sum(not one.held for one in record.passes)
            rows.append([*_row(record, self.info.layer_paths), f"{lost} passes let go" if lost else ""])
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
