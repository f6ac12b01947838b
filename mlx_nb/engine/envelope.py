"""One value, one MPI message: a header that says what follows, and arrays straight from MLX's memory.

In steady state every hop of a run looks like the one before it, so the header is left away: eight bytes
and the arrays. Nothing is pickled and nothing is copied: an MPI datatype lists the places in memory
(MPI 4.1, section 5.1.5, ``MPI_Type_create_hindexed``), and the message is gathered from and scattered to them.
"""

import json
from copy import copy
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mpi4py import MPI

from mlx_nb.engine.pytree import Tree, flatten, unflatten

PREFIX_BYTES = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """What a message holds besides its numbers: the same for every hop of a phase.

    Attributes:
        text: The header as it is sent.
        tree: The tree's structure, as `pytree.flatten` writes it.
        arrays: Dtype and shape of each array.
        size_bytes: Bytes of all the arrays.
    """

    text: str
    tree: str
    arrays: tuple[tuple[mx.Dtype, tuple[int, ...]], ...]
    size_bytes: int

    @classmethod
    def parse(cls, text: str) -> "Layout":
        tree, described = json.loads(text)
        arrays = tuple((_dtype(dtype), tuple(shape)) for dtype, shape in described)
        return cls(text, tree, arrays, sum(_size(dtype, shape) for dtype, shape in arrays))


@dataclass(slots=True)
class Parts:
    """Pieces of memory that one message is gathered from, or scattered to.

    Attributes:
        datatype: Where they are; free it when the message is under way.
        keep: The pieces, to be held until MPI is done with them.
    """

    datatype: MPI.Datatype
    keep: list[Any]

    @classmethod
    def of(cls, pieces: list[Any], sizes: list[int]) -> "Parts":
        addresses = [MPI.Get_address(piece) for piece in pieces]
        return cls(MPI.BYTE.Create_hindexed(sizes, addresses).Commit(), pieces)

    @property
    def buffer(self) -> Any:
        return [MPI.BOTTOM, 1, self.datatype]


@dataclass(slots=True)
class Writer:
    """Makes the messages of one run to one rank; knows what the other side has seen.

    Attributes:
        layout: What the last message looked like: structure, dtypes and shapes.
    """

    layout: tuple[Any, ...] = ()

    def pack(self, value: Tree) -> Parts:
        """A value as one message; its arrays are evaluated here."""
        tree, arrays = flatten(value)
        mx.eval(arrays)
        sent = [_own_handle(array) for array in arrays]
        layout = (tree, *((array.dtype, array.shape) for array in sent))
        head = b"" if layout == self.layout else _header(tree, sent)
        self.layout = layout
        start = np.frombuffer(len(head).to_bytes(PREFIX_BYTES, "little") + head, dtype=np.uint8)
        filled = [array for array in sent if array.size]
        return Parts.of([start, *filled], [start.nbytes, *(array.nbytes for array in filled)])


@dataclass(slots=True)
class Coming:
    """A message that is on its way into memory."""

    parts: Parts
    prefix: np.ndarray
    arrays: list[mx.array] | None
    layout: Layout | None


@dataclass(slots=True)
class Reader:
    """Takes the messages of one run from one rank apart.

    Attributes:
        layout: What the last message looked like; the next one is received into place if it has its size.
    """

    layout: Layout | None = None

    def prepare(self, size_bytes: int) -> Coming:
        """Memory for a message of this size."""
        layout = self.layout
        if layout is None or size_bytes != PREFIX_BYTES + layout.size_bytes:
            whole = np.empty(size_bytes, dtype=np.uint8)
            return Coming(Parts.of([whole], [size_bytes]), whole, None, None)
        prefix = np.empty(PREFIX_BYTES, dtype=np.uint8)
        # MLX hands out what was freed before: its cache is the pool of receive buffers, and what a
        # capture or a view still holds is never written over.
        arrays = [_memory(dtype, shape) for dtype, shape in layout.arrays]
        filled = [array for array in arrays if array.size]
        parts = Parts.of([prefix, *filled], [PREFIX_BYTES, *(array.nbytes for array in filled)])
        return Coming(parts, prefix, arrays, layout)

    def unpack(self, coming: Coming) -> tuple[Tree, int]:
        """The value of a message that is here whole, and the bytes of its arrays."""
        head = int.from_bytes(coming.prefix[:PREFIX_BYTES].tobytes(), "little")
        if coming.arrays is not None and coming.layout is not None and head == 0:
            typed = zip(coming.arrays, coming.layout.arrays, strict=True)
            # Of the same width, so a view has the same shape; where the dtype is MLX's alone it is one.
            arrays = [array if array.dtype == dtype else array.view(dtype) for array, (dtype, _) in typed]
            return unflatten(coming.layout.tree, arrays), coming.layout.size_bytes
        whole = coming.prefix
        if coming.arrays is not None:  # a new layout of the old one's very size: put it together again
            rest = [np.array(array.reshape(-1).view(mx.uint8)) for array in coming.arrays if array.size]
            whole = np.concatenate([coming.prefix, *rest])
        text = whole[PREFIX_BYTES : PREFIX_BYTES + head].tobytes().decode()
        self.layout = layout = Layout.parse(text) if head else self.layout
        assert layout is not None  # a run's first message always brings its layout
        arrays = []
        place = PREFIX_BYTES + head
        for dtype, shape in layout.arrays:
            size = _size(dtype, shape)
            flat = mx.array(whole[place : place + size])
            arrays.append(flat.view(dtype).reshape(shape) if size else mx.zeros(shape, dtype=dtype))
            place += size
        mx.eval(arrays)
        return unflatten(layout.tree, arrays), layout.size_bytes


def _own_handle(array: mx.array) -> mx.array:
    """An evaluated array, contiguous, in a handle of our own: models change theirs in place after the layer loop.

    Asking for the strides and copying the handle take 0.4 µs together, `mx.contiguous` and its evaluation 13.
    """
    if not array.size or memoryview(array).c_contiguous:  # type: ignore[arg-type]  # its stub lacks the buffer
        return copy(array)
    found = mx.contiguous(array)
    mx.eval(found)
    return found


def _header(tree: str, arrays: list[mx.array]) -> bytes:
    described = [[str(array.dtype).removeprefix("mlx.core."), list(array.shape)] for array in arrays]
    return json.dumps([tree, described]).encode()


_PLAIN = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def _memory(dtype: mx.Dtype, shape: tuple[int, ...]) -> mx.array:
    """Memory to receive into. Taken from numpy's, it is there at once (1 µs); `mx.empty` has to be evaluated (14)."""
    name = str(dtype).removeprefix("mlx.core.")
    return mx.array(np.empty(shape, dtype=_PLAIN[dtype.size] if name == "bfloat16" else np.dtype(name)))


def _dtype(name: str) -> mx.Dtype:
    """A dtype by the name that it prints; ``bool`` is the one whose attribute has another."""
    found: mx.Dtype = getattr(mx, "bool_" if name == "bool" else name)
    return found


def _size(dtype: mx.Dtype, shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64)) * dtype.size
