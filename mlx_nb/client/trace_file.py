"""A trace in one file: safetensors, a tensor for each pass at each site, and the rest as JSON in its header.

Opening one needs numpy, and neither a cluster nor mlx.
"""

import json
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from mlx_nb.client.capture import Wanted
from mlx_nb.client.trace import Trace, TraceInfo
from mlx_nb.shared.capture import (
    MAX_TRANSFER_BYTES,
    PassRecord,
    SiteRecord,
    from_bits,
    gone,
    itemsize_of,
    pick,
    summarize_numpy,
)
from mlx_nb.shared.errors import TraceError
from mlx_nb.shared.from_json import build
from mlx_nb.shared.position import Summary
from mlx_nb.shared.statistics import numpy_statistics
from mlx_nb.shared.tensor import Details, DetailsWish, Window, WindowWish
from mlx_nb.shared.tensor_reading import Grid, read
from mlx_nb.shared.trace_format import FORMAT, KEY, header_text, tensor_name

AT_ONCE_BYTES = 16 * 1024 * 1024
_FIX = "Type: mlx_nb.open_trace(path) with a file that trace.save(path) has written"

_TO_FILE = {
    "float32": "F32", "float16": "F16", "bfloat16": "BF16", "float64": "F64", "bool": "BOOL", "complex64": "C64",
    "int8": "I8", "int16": "I16", "int32": "I32", "int64": "I64",
    "uint8": "U8", "uint16": "U16", "uint32": "U32", "uint64": "U64",
}  # fmt: skip


class FileSource:
    """Values in a file; only what is asked for is read."""

    where = "in a file"

    def __init__(self, path: Path, records: list[SiteRecord], begin: int, places: dict[str, int]) -> None:
        self.path, self._records, self._begin, self._places = path, records, begin, places

    def records(self) -> list[SiteRecord]:
        return self._records

    def slices(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        return [np.array(self._joined(one)) for one in wanted]

    def summaries(self, wanted: Sequence[Wanted]) -> list[Summary]:
        found = []
        for record, starts, axis, _index in wanted:
            array = from_bits(np.asarray(self._joined((record, starts, axis, ()))), record.dtype)
            found.append(summarize_numpy(array, record.dtype))
        return found

    def look(self, record: SiteRecord, axis: int, wish: WindowWish | DetailsWish) -> Window | Details:
        pieces = [self._map(record, one.start) for one in record.passes]
        return read(Grid(pieces, axis, wish.face, lambda part: _as_float32(part, record.dtype)), wish)

    def texts(self, ids: Sequence[int]) -> list[str]:
        return []  # a file has no tokenizer

    def token_statistics(self, wanted: Sequence[Wanted]) -> list[np.ndarray]:
        return [
            numpy_statistics(
                [from_bits(np.asarray(self._map(record, start)), record.dtype) for start in starts], axis
            )
            for record, starts, axis, _index in wanted
        ]

    def drop(self) -> None:
        """A file stays until somebody deletes it."""

    def _joined(self, wanted: Wanted) -> Any:
        record, starts, axis, index = wanted
        arrays = [self._map(record, start) for start in starts]
        return pick(arrays, axis, index, lambda parts, at: np.concatenate(list(parts), axis=at))

    def _map(self, record: SiteRecord, start: int) -> Any:
        one = next(one for one in record.passes if one.start == start)
        if not one.held:
            raise gone(record.label, record.rank, one.start, one.stop)
        dtype = _numpy_dtype(record.dtype)
        if 0 in one.shape:
            return np.zeros(one.shape, dtype)
        offset = self._begin + self._places[tensor_name(record, one)]
        return np.memmap(self.path, dtype, "r", offset, one.shape or (1,)).reshape(one.shape)


def write_trace(trace: Trace, path: Path) -> Path:
    """Write a trace; raises as `Trace.save`. The file appears whole, or not at all."""
    records = trace.records()
    held = [(record, one) for record in records for one in record.passes if one.held]
    if not held:
        raise TraceError("This trace holds nothing that could be saved.", "Record it again: pipe.trace(…)")
    path = path.expanduser()
    path = path if path.suffix == ".safetensors" else path.with_name(path.name + ".safetensors")
    info = {name: getattr(trace.info, name) for name in TraceInfo.__dataclass_fields__}
    header: dict[str, Any] = {"__metadata__": {"format": "mlx", KEY: header_text(info, records)}}
    end = 0
    # The format wants every tensor at a place that its dtype divides: wide ones come first.
    held.sort(key=lambda found: -itemsize_of(found[0].dtype))
    for record, one in held:
        begin, end = end, end + _size(record, one)
        header[tensor_name(record, one)] = {
            "dtype": _TO_FILE[record.dtype],
            "shape": list(one.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            for together in _batches(held):
                for array in trace.read(together):
                    file.write(np.ascontiguousarray(array).tobytes())
        part.replace(path)
    except OSError as error:
        raise TraceError(
            f"{path} cannot be written: {error.strerror}.", "Type: trace.save(path) with another path"
        ) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)
    return path


def open_trace(path: "str | os.PathLike[str]") -> Trace:
    """A trace out of a file that `Trace.save` has written; values are read when they are asked for.

    Raises:
        TraceError: There is no such file, it is damaged, or it is no trace.
    """
    file = Path(path).expanduser()
    if not file.exists() and file.suffix != ".safetensors":
        file = file.with_name(file.name + ".safetensors")
    try:
        with file.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(8), "little")
            if not 0 < length <= size - 8:
                raise TraceError(f"{file} is no safetensors file, or was cut short.", _FIX)
            header = json.loads(opened.read(length))
    except OSError as error:
        raise TraceError(f"{file} cannot be read: {error.strerror}.", _FIX) from error
    except ValueError as error:
        raise TraceError(f"{file} is no safetensors file, or is damaged.", _FIX) from error
    told = header.get("__metadata__", {}).get(KEY) if isinstance(header, dict) else None
    if told is None:
        raise TraceError(f"{file} is a safetensors file, but no trace.", _FIX)
    try:
        found = json.loads(told)
        if found["format"] != FORMAT:
            raise TraceError(
                f"{file} was written by another version ({found['format']}).",
                "Upgrade: %pip install -U mlx-nb",
            )
        info = build(TraceInfo, found["info"])
        records = [build(SiteRecord, row) for row in found["records"]]
        places = {name: int(row["data_offsets"][0]) for name, row in header.items() if name != "__metadata__"}
        ends = [int(row["data_offsets"][1]) for name, row in header.items() if name != "__metadata__"]
        missing = [
            tensor_name(record, one)
            for record in records
            for one in record.passes
            if one.held and tensor_name(record, one) not in places
        ]
        if not missing:
            _check(records, header)
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise TraceError(f"{file} is damaged: its header does not say what is in it.", _FIX) from error
    if missing or size < 8 + length + max(ends, default=0):
        raise TraceError(f"{file} was cut short.", "Copy it again, or save the trace again: trace.save(path)")
    return Trace(FileSource(file, records, 8 + length, places), info)


def _check(records: Sequence[SiteRecord], header: dict[str, Any]) -> None:
    """Raise a ValueError unless the records make sense, and are those of the file's tensors."""
    for record in records:
        if not record.passes or min(record.run, record.call, record.rank, record.layer + 1) < 0:
            raise ValueError(record.label)
        for one in record.passes:
            if not 0 <= one.start <= one.stop or len(record.axes) > max(1, len(one.shape)):
                raise ValueError(record.label)
            if record.dtype not in _TO_FILE or min(one.shape, default=0) < 0:
                raise ValueError(record.label)
            if one.held:
                row = header[tensor_name(record, one)]
                begin, end = row["data_offsets"]
                said = row["dtype"], row["shape"], end - begin
                if said != (_TO_FILE[record.dtype], list(one.shape), _size(record, one)) or begin < 0:
                    raise ValueError(record.label)


def _as_float32(array: Any, dtype: str) -> np.ndarray:
    values = from_bits(np.asarray(array), dtype)
    return (np.abs(values) if np.iscomplexobj(values) else values).astype(np.float32)


def _numpy_dtype(dtype: str) -> np.dtype[Any]:
    return np.dtype("uint16" if dtype == "bfloat16" else dtype).newbyteorder("<")


def _size(record: SiteRecord, one: PassRecord) -> int:
    return math.prod(one.shape) * itemsize_of(record.dtype)


def _batches(
    held: Sequence[tuple[SiteRecord, PassRecord]],
) -> Iterator[list[tuple[SiteRecord, int, Any]]]:
    """What is fetched in one call: small values together, a large one in pieces."""
    together: list[tuple[SiteRecord, int, Any]] = []
    size = 0
    for record, one in held:
        for index in _pieces(record, one):
            piece = min(_size(record, one), MAX_TRANSFER_BYTES)
            if together and size + piece > AT_ONCE_BYTES:
                yield together
                together, size = [], 0
            together.append((record, one.start, index))
            size += piece
    if together:
        yield together


def _pieces(record: SiteRecord, one: PassRecord) -> list[Any]:
    """Slices of a value that follow each other in memory, each small enough to travel."""
    size = _size(record, one)
    if size <= MAX_TRANSFER_BYTES:
        return [tuple(slice(0, length, 1) for length in one.shape)]
    # Along the first axis that is longer than one, so that the pieces' bytes follow each other.
    axis = next(axis for axis, length in enumerate(one.shape) if length > 1)
    rows = max(1, one.shape[axis] * MAX_TRANSFER_BYTES // size)
    whole: list[Any] = [slice(0, length, 1) for length in one.shape]
    pieces = []
    for begin in range(0, one.shape[axis], rows):
        whole[axis] = slice(begin, min(begin + rows, one.shape[axis]), 1)
        pieces.append(tuple(whole))
    return pieces
