"""Sends values to itself over MPI and prints what arrived: run by `test_envelope.py` in a process of its own.

A process that has started MPI cannot start mpirun any more, so the tests' own process must not.
"""

import mlx_nb.engine  # isort: skip  (a fast BLAS before mlx)
import json
from typing import Any

import mlx.core as mx
from mpi4py import MPI

from mlx_nb.engine.envelope import Reader, Writer
from mlx_nb.engine.pytree import arrays_of, flatten

assert mlx_nb.engine


def values() -> list[Any]:
    ramp = mx.arange(24, dtype=mx.float32)
    same_size = ramp.reshape(2, 3, 4), (ramp + 1).reshape(4, 3, 2), (ramp + 2).reshape(2, 3, 4).view(mx.int32)
    small = [mx.arange(6).astype(dtype) for dtype in (mx.bfloat16, mx.float16, mx.uint8, mx.int64)]
    return [
        *same_size,
        (ramp + 3).reshape(2, 3, 4).view(mx.int32),
        [ramp[:3], (ramp[3:5], None, "x", 7)],
        small,
        mx.array([True, False, True]),
        [mx.zeros((0, 4)), mx.array(3.5)],
        [mx.zeros((0, 4)), mx.array(4.5)],
        mx.array([float("nan"), float("inf"), -0.0]),
        ramp.reshape(4, 6).T,
        (5, "stop"),
        (6, "stop"),
    ]


def main() -> None:
    writer, reader = Writer(), Reader()
    for value in values():
        parts = writer.pack(value)
        request = MPI.COMM_SELF.Isend(parts.buffer, 0, 1)
        status = MPI.Status()
        message = MPI.COMM_SELF.Mprobe(0, 1, status)
        size = status.Get_count(MPI.BYTE)
        coming = reader.prepare(size)
        message.Irecv(coming.parts.buffer).Wait()
        request.Wait()
        got, size_bytes = reader.unpack(coming)
        same = flatten(got)[0] == flatten(value)[0] and all(
            a.dtype == b.dtype
            and a.shape == b.shape
            and mx.array_equal(a.reshape(-1).view(mx.uint8), mx.contiguous(b).reshape(-1).view(mx.uint8))
            for a, b in zip(arrays_of(got), arrays_of(value), strict=True)
        )
        print(json.dumps({"same": same, "message_bytes": size, "array_bytes": size_bytes}))


if __name__ == "__main__":
    main()
