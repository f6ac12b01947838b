"""The KV caches of a pipe's last run: a report that prints, and handles that fetch slices."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.shared.errors import PlanError, RunError
from mlx_nb.shared.kv_report import KVBuffer, KVEntryReport, KVReport
from mlx_nb.shared.text import Table

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


class KVBufferHandle:
    """One buffer on its rank; indexing fetches a copy of the slice.

    Shapes:
        indexed: ``[B, K, S, …]`` over the valid positions, for keys and values; a quantised entry's come unpacked.
    """

    def __init__(self, pipe: "Pipe", entry: KVEntryReport, name: str) -> None:
        self.pipe, self.entry, self._name = pipe, entry, name
        self._buffer = entry.buffer(name)

    @property
    def buffer(self) -> KVBuffer:
        """What is known of it.

        Raises:
            RunError: The entry has no such buffer.
        """
        if self._buffer is None:
            raise _no_buffer(self.entry, self._name)
        return self._buffer

    @property
    def shape(self) -> tuple[int, ...]:
        return self._buffer.shape if self._buffer else ()

    @property
    def dtype(self) -> str:
        return self._buffer.dtype if self._buffer else ""

    def __getitem__(self, index: Any) -> np.ndarray:
        """A copy of a slice.

        Raises:
            RunError: The entry has no such buffer.
            TransferTooLargeError: The slice is over 64 MiB.
        """
        buffer = self.buffer
        wanted = index if isinstance(index, tuple) else (index,)
        found: np.ndarray = self.pipe.cluster.remote.call(
            self.entry.rank, "kv_slice", self.pipe.pipe_id, self.entry.place, buffer.name, wanted
        )
        found.setflags(write=False)
        return found

    def numpy(self) -> np.ndarray:
        """All of it."""
        return self[...]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        array = self.numpy()
        return array.astype(dtype) if dtype is not None else array

    def __repr__(self) -> str:
        held = self._buffer.held_shape if self._buffer else ()
        return f"{self._name} of layer {self.entry.layer} · rank {self.entry.rank} · {list(self.shape)} {self.dtype}, held {list(held)}"


def _no_buffer(entry: KVEntryReport, name: object) -> RunError:
    names = [buffer.name for buffer in entry.buffers]
    where = f"Layer {entry.layer} ({entry.class_name}, rank {entry.rank})"
    if not names and entry.reads:
        return RunError(
            f"{where} has no {name} of its own: it reads layer {entry.reads[0]}'s.",
            f"Type: kv[{entry.reads[0]}]",
        )
    if not names:
        return RunError(
            f"{where} has no {name}: nothing has been written yet.", "Let the run go on: dbg.run()"
        )
    asked = "Type: " + " or ".join(f'kv[{entry.layer}]["{known}"]' for known in names[:4])
    return RunError(f"{where} has no {name}. It has: {', '.join(names)}.", asked)


class KVEntry:
    """The KV cache of one layer: numbers here, arrays on their rank.

    ``kv[3].keys`` and ``kv[3].values``; SSM and conv states are ``kv[3].state(0)``. Every buffer goes by its name,
    too: ``kv[3]["state 0"]``, ``kv[3]["keys.packed"]``, ``kv[3]["1.keys"]`` in a tree.
    """

    def __init__(self, pipe: "Pipe", report: KVEntryReport) -> None:
        self._pipe = pipe
        self.report = report

    @property
    def keys(self) -> KVBufferHandle:
        return KVBufferHandle(self._pipe, self.report, "keys")

    @property
    def values(self) -> KVBufferHandle:
        return KVBufferHandle(self._pipe, self.report, "values")

    def state(self, number: int) -> KVBufferHandle:
        """An SSM or conv state of a layer that keeps no keys and values.

        Raises:
            RunError: There is no such state.
        """
        return self[f"state {number}"]

    def __getitem__(self, name: str) -> KVBufferHandle:
        """A buffer by its name.

        Raises:
            RunError: There is no such buffer.
        """
        if not isinstance(name, str) or self.report.buffer(name) is None:
            raise _no_buffer(self.report, name)
        return KVBufferHandle(self._pipe, self.report, name)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all its buffers."""
        return tuple(buffer.name for buffer in self.report.buffers)

    @property
    def offset(self) -> int:
        return self.report.offset

    @property
    def positions(self) -> tuple[int, ...]:
        return self.report.positions

    @property
    def pending(self) -> int:
        return self.report.pending

    @property
    def class_name(self) -> str:
        return self.report.class_name

    @property
    def capacity(self) -> int:
        return self.report.capacity

    @property
    def rank(self) -> int:
        return self.report.rank

    @property
    def layer(self) -> int:
        return self.report.layer

    def __repr__(self) -> str:
        r = self.report
        between = " of " if r.room.isdigit() else ", "
        offset = f"offset {r.offset}{between if r.room else ''}{r.room}" if r.offset >= 0 else ""
        parts = [f"{r.class_name} of layer {r.layer}", f"rank {r.rank}", offset, r.shapes, r.detail]
        return " · ".join(part for part in parts if part)


class KVCaches:
    """All KV caches of the last run, by layer: ``kv[17].keys[0, 1]``.

    Attributes:
        pipe: Whose.
        report: The numbers behind it, as they were when it was made.
    """

    def __init__(self, pipe: "Pipe", report: KVReport) -> None:
        self.pipe = self._pipe = pipe
        self.report = report

    def __iter__(self) -> Iterator[KVEntry]:
        return (KVEntry(self._pipe, entry) for entry in self.report)

    def __getitem__(self, layer: int) -> KVEntry:
        """One layer's entry.

        Raises:
            PlanError: The layer has none.
        """
        for entry in self.report:
            if entry.layer == layer:
                return KVEntry(self._pipe, entry)
        known = [entry.layer for entry in self.report]
        raise PlanError(
            f"Layer {layer} has no KV cache in the last run.",
            f"Layers with one: {known[0]}–{known[-1]}."
            if known
            else "Generate something first: pipe.generate('…')",
        )

    def __len__(self) -> int:
        return len(self.report.entries)

    @property
    def ok(self) -> bool:
        """Whether all offsets agree."""
        return not self.report.headline

    def trim(self, n: int) -> "KVCaches":
        """Cut the last `n` tokens off every entry, on every rank; the report afterwards.

        Raises:
            RunError: An entry cannot be trimmed; nothing has been then.
        """
        if self.report.standing:
            raise RunError(
                f"The run stands at {self.report.standing}; trimming would break the pass.",
                "Finish it first: dbg.run(), or dbg.close()",
            )
        stuck = [entry for entry in self.report if not entry.trimmable and entry.offset != 0]
        if stuck:
            raise RunError(
                f"Layer {stuck[0].layer} ({stuck[0].class_name}) cannot be trimmed, so none was.",
                "Run the prompt again instead.",
            )
        self._pipe.call_all("kv_trim", n)
        self.report = self._pipe.kv_cache().report
        return self

    def table(self) -> Table:
        """The rows of the printed table, its head first."""
        return Table(self.report.rows())

    def __repr__(self) -> str:
        return str(self.report)
