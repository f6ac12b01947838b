"""One value of a trace: its shape, its numbers, and slices of it, fetched from wherever it lies."""

from collections.abc import Sequence
from importlib import import_module
from typing import Any, Protocol

import numpy as np

from mlx_nb.shared.capture import (
    Index,
    SiteRecord,
    check_transfer,
    from_bits,
    itemsize_of,
    join_axis,
    joined_shape,
    merge_summaries,
    passes_needed,
    plain_index,
)
from mlx_nb.shared.errors import MlxNbError, OptionError
from mlx_nb.shared.position import Summary
from mlx_nb.shared.sites import alias_of
from mlx_nb.shared.tensor import Details, DetailsWish, Window, WindowWish
from mlx_nb.shared.text import format_number, format_shape, format_size

Wanted = tuple[SiteRecord, tuple[int, ...], int, Index]
"""A site, the first tokens of the passes asked for, the axis that joins them, and a slice over them."""


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

    def look(self, record: SiteRecord, axis: int, wish: WindowWish | DetailsWish) -> Window | Details:
        """Look at all passes of a site, joined along an axis, without fetching them."""

    def texts(self, ids: Sequence[int]) -> list[str]:
        """The text of single tokens; empty where nobody knows."""

    def token_statistics(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        """Each token's numbers, ``[STATISTICS, L]``, in the order asked for; the slices are left out of account."""

    def drop(self) -> None:
        """Free the values."""


class Capture:
    """The value at one site over the passes of a run, or at several sites, stacked.

    Nothing is fetched before it is asked for: indexing slices where the values are, and fetches a copy of that.

    Attributes:
        source: Where its values are.
        records: What it is made of.
        layer_paths: The model's layers.
        axis: Where the passes are joined.
        stacked: Whether there is one more axis, of the sites, before all others.
        model: The model's name.
        fed: The token ids that its run was fed, as far as they are known.

    Shapes:
        one site: its own, such as ``[B, L, D]``, with the passes joined along L.
        a glob: ``[layers, B, L, D]``.
    """

    def __init__(
        self,
        source: Source,
        records: Sequence[SiteRecord],
        layer_paths: Sequence[str],
        *,
        stacked: bool,
        model: str = "",
        fed: Sequence[int] = (),
    ) -> None:
        self.source = source
        self.layer_paths = layer_paths
        self.records = tuple(records)
        self.stacked = stacked
        self.model, self.fed = model, fed
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
    def reconstruction_error(self) -> float | None:
        """Of attention's scores and pattern, which are computed again in float32: the largest distance of what follows
        from them to what the model made, over the latter's largest value. None for what is a value of the model's.
        """
        errors = [one.error for record in self.records for one in record.passes if one.error is not None]
        return max(errors, default=None)

    @property
    def summary(self) -> Summary:
        """Its numbers, computed where the values are.

        Raises:
            TraceError: A value is no longer there.
        """
        if self._summary is None:
            everything = tuple(slice(0, length, 1) for length in self._one)
            parts = self.source.summaries([self._wanted(record, everything) for record in self.records])
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
        parts = self.source.slices([self._wanted(record, rest) for record in records])
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
        alias = alias_of(first.site, self.layer_paths)
        name = first.label if len(self.records) == 1 else f"{first.label} … {last.label}"
        name += f" ({alias})" if alias and alias_of(last.site, self.layer_paths) == alias else ""
        ranks = self.rank if isinstance(self.rank, tuple) else (self.rank,)
        where = f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}"
        letters = tuple("" if axis.startswith("dim_") else axis for axis in self.axes)
        start, stop = self.tokens
        where_kept = (
            self.source.where if len(ranks) > 1 else self.source.where.replace("their ranks", "the rank")
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
        if (distance := self.reconstruction_error) is not None:
            lines.append(
                f" computed again in float32; attention's own result differs by {distance:.1e} of its largest value at most"
            )
        return "\n".join(lines)
