"""What a trace has recorded, as plain data, and the arithmetic of its axes: joining passes, slicing, summing up."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from mlx_nb.shared.attention import at_site
from mlx_nb.shared.errors import OptionError, TraceError, TransferTooLargeError
from mlx_nb.shared.position import Summary
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.text import format_shape, format_size

MAX_TRANSFER_BYTES = 64 * 1024 * 1024
BUDGET_BYTES = 512 * 1024 * 1024

Index = tuple[int | slice, ...]
"""One entry for each axis: a place, or a slice with a start, a stop and a positive step."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceWish:
    """What a run records: part of its request.

    Attributes:
        trace_id: Names the trace on every rank.
        run: The run's number in the trace, from 0; going back in a run keeps it.
        patterns: Globs over sites as `Event.site` spells them.
        budget_bytes: The most that a rank holds of this trace; all traces of its model together may take the largest
            of their budgets. The least recently used goes first.
        given: The name of values that modules are given instead of their own, after these were recorded.
    """

    trace_id: str
    run: int
    patterns: tuple[str, ...]
    budget_bytes: int = BUDGET_BYTES
    given: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class PassRecord:
    """One pass's value at a site.

    Attributes:
        start, stop: The tokens of the pass.
        shape: The value's.
        held: Whether it is still there.
        error: Of what was computed again, as attention's pattern: how far what follows from it is from what the model
            made, over the latter's largest value.
    """

    start: int
    stop: int
    shape: tuple[int, ...]
    held: bool
    error: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRecord:
    """All passes of one run at one site.

    Attributes:
        run: The run's number in the trace.
        site: As `Event.site` spells it.
        call: Which call of a module that a pass calls several times, from 1; else 0.
        rank: Where the values are, or were.
        layer: The layer that the site lies in; -1 for none.
        dtype: As MLX names it without the package.
        axes: A letter for each leading axis where it is known.
        passes: In the order of their tokens.
    """

    run: int
    site: str
    call: int
    rank: int
    layer: int
    dtype: str
    axes: tuple[str, ...]
    passes: tuple[PassRecord, ...]

    @property
    def label(self) -> str:
        """The site as users read it: ``…rope#1.input``."""
        stem, _, kind = self.site.rpartition(".")
        return f"{stem}#{self.call}.{kind}" if self.call else self.site

    @property
    def key(self) -> tuple[int, str, int]:
        """Its name on its rank."""
        return self.run, self.site, self.call

    def only(self, token: int) -> "SiteRecord | None":
        """The pass that fed a token, alone."""
        found = tuple(one for one in self.passes if one.start <= token < one.stop)
        return _with_passes(self, found) if found else None


def _with_passes(record: SiteRecord, passes: tuple[PassRecord, ...]) -> SiteRecord:
    fields = {name: getattr(record, name) for name in SiteRecord.__dataclass_fields__}
    return SiteRecord(**{**fields, "passes": passes})


def matching(
    records: Sequence[SiteRecord], site: str, modules: Sequence[str], layer_paths: Sequence[str]
) -> list[SiteRecord]:
    """The records at a site, an alias or a glob; ``…#2`` names one call of several.

    Raises:
        SiteError: The model has nothing there.
    """
    call = re.search(r"#(\d+)", site)
    pattern = resolve_site(site, modules, layer_paths)
    return [r for r in records if at_site(r.site, pattern) and (call is None or r.call == int(call[1]))]


def is_glob(site: str) -> bool:
    """Whether a site stands for several."""
    return any(sign in site for sign in "*?[")


# Joining passes ---------------------------------------------------------------------------------------


def join_axis(record: SiteRecord) -> int:
    """The axis along which the passes of a site follow each other: L; 0 for what has no axis at all.

    Raises:
        OptionError: There is none: the shape grows from pass to pass, or has no tokens in it.
    """
    first = record.passes[0].shape
    if len(record.passes) == 1:
        letters = record.axes
        along = next((letter for letter in ("L", "S") if letter in letters), None)
        return letters.index(along) if along else min(1, max(0, len(first) - 1))
    fitting = [
        axis
        for axis in range(len(first))
        if all(
            len(one.shape) == len(first)
            and one.shape[axis] == one.stop - one.start
            and one.shape[:axis] == first[:axis]
            and one.shape[axis + 1 :] == first[axis + 1 :]
            for one in record.passes
        )
    ]
    if not fitting:
        shapes = ", ".join(dict.fromkeys(str(list(one.shape)) for one in record.passes[:3]))
        raise OptionError(
            f"The passes of {record.label} cannot be joined along their tokens: their shapes are {shapes}.",
            f'Ask for the pass of one token: trace["{record.label}", {record.passes[-1].start}]',
        )
    named = [axis for axis in fitting if axis < len(record.axes) and record.axes[axis] == "L"]
    return (named or [axis for axis in fitting if axis] or fitting)[0]


def joined_shape(record: SiteRecord, axis: int) -> tuple[int, ...]:
    """The shape of all passes of a site together."""
    first = record.passes[0].shape
    if len(record.passes) == 1:
        return first
    return (*first[:axis], sum(one.shape[axis] for one in record.passes), *first[axis + 1 :])


def passes_needed(record: SiteRecord, axis: int, index: Index) -> tuple[tuple[int, ...], Index]:
    """The first tokens of the passes that a slice touches, and the slice over those alone."""
    if len(record.passes) == 1:
        return (record.passes[0].start,), index
    wanted = index[axis]
    low, high = (wanted, wanted + 1) if isinstance(wanted, int) else (wanted.start, wanted.stop)
    starts: list[int] = []
    begin = offset = 0
    for one in record.passes:
        end = begin + one.shape[axis]
        if end <= low:
            offset = end
        elif begin < high or not starts:
            starts.append(one.start)
        begin = end
    if not starts:  # nothing is asked for: any pass has the other axes
        starts, offset = [record.passes[-1].start], low
    moved = (
        wanted - offset
        if isinstance(wanted, int)
        else slice(wanted.start - offset, wanted.stop - offset, wanted.step)
    )
    return tuple(starts), (*index[:axis], moved, *index[axis + 1 :])


def pick(
    arrays: Sequence[Any], axis: int, index: Index, concatenate: Callable[[Sequence[Any], int], Any]
) -> Any:
    """A slice of arrays that follow each other along an axis; numpy's or MLX's."""
    whole = arrays[0] if len(arrays) == 1 else concatenate(arrays, axis)
    return whole[index] if index else whole


# Slicing ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Slicing:
    """An index over all axes of an array, made plain.

    Attributes:
        index: For each axis a place or a forward slice.
        flips: The axes of the result that are to be turned round.
        shape: The result's.
    """

    index: Index
    flips: tuple[int, ...]
    shape: tuple[int, ...]


def plain_index(index: Any, shape: Sequence[int]) -> Slicing:
    """An index as users write it: places, slices and ``...``.

    Raises:
        OptionError: It is something else, or outside the array.
    """
    wanted = list(index) if isinstance(index, tuple) else [index]
    if sum(one is Ellipsis for one in wanted) > 1 or len([o for o in wanted if o is not Ellipsis]) > len(
        shape
    ):
        raise OptionError(f"A capture of shape {list(shape)} has {len(shape)} axes.", "Type: capture[..., 0]")
    if Ellipsis not in wanted:
        wanted.append(Ellipsis)
    place = next(i for i, one in enumerate(wanted) if one is Ellipsis)
    missing = len(shape) - len(wanted) + 1
    wanted[place : place + 1] = [slice(None)] * missing
    plain: list[int | slice] = []
    flips: list[int] = []
    result: list[int] = []
    for axis, (one, length) in enumerate(zip(wanted, shape, strict=True)):
        if isinstance(one, slice):
            places = range(length)[one]
            if places.step < 0:
                places = places[::-1]
                flips.append(len(result))
            stop = places[-1] + 1 if places else places.start
            plain.append(slice(places.start, stop, places.step))
            result.append(len(places))
        elif hasattr(one, "__index__") and not isinstance(one, bool):
            at = one.__index__()
            if not -length <= at < length:
                raise OptionError(
                    f"{at} is outside axis {axis} of {list(shape)}, which is {length} long.",
                    f"Type a place from 0 to {length - 1}.",
                )
            plain.append(at % length)
        else:
            raise OptionError(
                f"A capture is indexed with whole numbers and slices, not {type(one).__name__}.",
                "Fetch a slice first and index that: capture[:, :8][…]",
            )
    return Slicing(tuple(plain), tuple(flips), tuple(result))


def check_transfer(label: str, shape: Sequence[int], itemsize: int, axis: int) -> None:
    """Refuse what is too large to be meant.

    Raises:
        TransferTooLargeError: It is over 64 MiB; the message has a slice that is not.
    """
    size = int(np.prod(shape, dtype=np.int64)) * itemsize
    if size <= MAX_TRANSFER_BYTES:
        return
    fitting = [":"] * len(shape)
    for place in (axis, *range(len(shape))):
        if place >= len(shape) or fitting[place] != ":":
            continue
        most = MAX_TRANSFER_BYTES * shape[place] // size
        fitting[place] = f":{max(1, most)}"
        if most >= 1:
            break
        size //= shape[place]
    raise TransferTooLargeError(
        f"{label} is {format_shape(shape)}, {format_size(size)}; at most 64 MiB travel at once.",
        f"Ask for a slice: capture[{', '.join(fitting)}]",
    )


# Bits and numbers -----------------------------------------------------------------------------------------


def from_bits(array: np.ndarray, dtype: str) -> np.ndarray:
    """A value as it travelled, in a dtype that numpy has: bfloat16 as the equal float32."""
    if dtype == "bfloat16" and array.dtype == np.uint16:
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array


def itemsize_of(dtype: str) -> int:
    """Bytes of an element, by MLX's name for its dtype."""
    return 2 if dtype == "bfloat16" else 1 if dtype == "bool" else np.dtype(dtype).itemsize


def summarize_numpy(array: np.ndarray, dtype: str, axes: tuple[str, ...] = ()) -> Summary:
    """As the ranks' own summary, of an array that is in a file."""
    values = np.abs(array) if np.iscomplexobj(array) else array
    values = values.astype(np.float32)
    finite = np.isfinite(values)
    common: dict[str, Any] = {
        "shape": tuple(array.shape),
        "axes": axes,
        "dtype": dtype,
        "size_bytes": array.size * itemsize_of(dtype),
        "nan": int(np.isnan(values).sum()),
        "inf": int(np.isinf(values).sum()),
    }
    if not finite.any():
        none: dict[str, Any] = dict.fromkeys(("min", "mean", "rms", "max"), float("nan"))
        return Summary(**common, **none, min_at=(0,) * array.ndim, max_at=(0,) * array.ndim)
    low, high = np.where(finite, values, np.inf), np.where(finite, values, -np.inf)
    kept = values[finite].astype(np.float64)
    return Summary(
        **common,
        min=float(low.min()),
        min_at=tuple(int(i) for i in np.unravel_index(low.argmin(), array.shape)),
        mean=float(kept.mean()),
        rms=float(np.sqrt((kept * kept).mean())),
        max=float(high.max()),
        max_at=tuple(int(i) for i in np.unravel_index(high.argmax(), array.shape)),
    )


def merge_summaries(
    parts: Sequence[Summary], axis: int | None, shape: tuple[int, ...], axes: tuple[str, ...]
) -> Summary:
    """The summary of arrays that follow each other along an axis, or are stacked (`axis` None), from their own."""

    def place(number: int, at: tuple[int, ...]) -> tuple[int, ...]:
        if axis is None:
            return (number, *at)
        before = sum(part.shape[axis] for part in parts[:number])
        return (*at[:axis], at[axis] + before, *at[axis + 1 :]) if at else at

    counts = [int(np.prod(part.shape, dtype=np.int64)) - part.nan - part.inf for part in parts]
    total = sum(counts)
    some = [number for number, count in enumerate(counts) if count] or [0]
    least = min(some, key=lambda number: parts[number].min)
    most = max(some, key=lambda number: parts[number].max)
    mean = sum(parts[n].mean * counts[n] for n in some) / total if total else float("nan")
    square = sum(parts[n].rms ** 2 * counts[n] for n in some) / total if total else float("nan")
    return Summary(
        shape=shape,
        axes=axes,
        dtype=parts[0].dtype,
        size_bytes=sum(part.size_bytes for part in parts),
        min=parts[least].min,
        min_at=place(least, parts[least].min_at),
        mean=mean,
        rms=square**0.5,
        max=parts[most].max,
        max_at=place(most, parts[most].max_at),
        nan=sum(part.nan for part in parts),
        inf=sum(part.inf for part in parts),
    )


def gone(label: str, rank: int, start: int, stop: int) -> TraceError:
    """What to say of a value that has given way to others."""
    return TraceError(
        f"{label} of tokens {start}:{stop} is no longer on rank {rank}: its budget was full, and the least recently used go first.",
        "Record fewer sites or tokens, or with a larger budget: pipe.trace(…, budget_bytes=2 * 2**30)",
    )
