"""A preview as a PNG file of a few kilobytes, for the picture that stays in a saved notebook."""

import base64
import struct
import zlib

import numpy as np

from mlx_nb.shared.preview import NAN, NEGATIVE_INFINITY, POSITIVE_INFINITY, ZERO, unpack_preview

# As `colour` in static/stepper.js: blue over nothing to orange. The page's background shows through
# near zero, so that one file suits light and dark.
BLUE, ORANGE = (31, 95, 208), (217, 72, 15)
INK, YELLOW = 1, 2
"""Two palette entries of the darkest blues, given to the hatches (a step of 1/126 is not seen)."""

HATCH = 4
"""Pixels a cell is enlarged by when some cell needs a hatch."""


def preview_png(preview: bytes) -> bytes:
    """The picture, one pixel a cell, or `HATCH` by `HATCH` where NaN or Inf must be told apart.

    >>> preview_png(b"")
    b''
    """
    width, height, cells = unpack_preview(preview)
    if not width * height:
        return b""
    indices = np.frombuffer(cells, np.uint8).reshape(height, width)
    pixels = np.where((indices == INK) | (indices == YELLOW), 0, indices).astype(np.uint8)
    if indices.max() > 2 * ZERO:
        pixels = _hatched(pixels)
    return _encode(pixels)


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _hatched(pixels: np.ndarray) -> np.ndarray:
    large = pixels.repeat(HATCH, axis=0).repeat(HATCH, axis=1)
    y, x = np.indices(large.shape)
    lines = {
        NEGATIVE_INFINITY: (x - y) % HATCH == 0,
        POSITIVE_INFINITY: (x + y) % HATCH == 0,
        NAN: (x % HATCH == 0) | (y % HATCH == 0),
    }
    drawn = large.copy()
    for index, line in lines.items():
        drawn[large == index] = YELLOW
        drawn[(large == index) & line] = INK
    return drawn


def _encode(pixels: np.ndarray) -> bytes:
    """A palette PNG: colour type 3, eight bits, an alpha for every entry."""
    height, width = pixels.shape
    scale = np.arange(2 * ZERO + 1)
    colours = np.where(scale[:, None] < ZERO, BLUE, ORANGE).astype(np.uint8)
    alphas = np.rint(np.abs(scale - ZERO) * 255 / ZERO).astype(np.uint8)
    colours[INK], colours[YELLOW] = (0, 0, 0), (255, 225, 77)
    alphas[[INK, YELLOW]] = 255
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # each row: filter 0
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", colours.tobytes()),
            _chunk(b"tRNS", alphas.tobytes()),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
