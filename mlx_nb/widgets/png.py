"""Small PNG files, for the picture that stays in a saved notebook: the preview, and a lane's layers."""

import base64
import struct
import zlib
from collections.abc import Sequence

import numpy as np

from mlx_nb.shared.preview import NAN, NEGATIVE_INFINITY, POSITIVE_INFINITY, ZERO, unpack_preview

# As `colour` in static/stepper.js: blue over nothing to orange. The page's background shows through
# near zero, so that one file suits light and dark.
BLUE, ORANGE = (31, 95, 208), (217, 72, 15)
INK, YELLOW = 1, 2
"""Two palette entries of the darkest blues, given to the hatches (a step of 1/126 is not seen)."""

PERIOD = 4
"""Pixels from one line of a hatch to the next."""

SHOWN_WIDTH = 400
"""About how wide the picture is on the page. A hatch must be drawn in pixels that stay pixels."""


def preview_height(rows: int) -> int:
    """As in static/stepper.js: a row is 2 to 16 pixels high, the picture no lower than a line of text."""
    return max(16, min(rows * 16, 64), min(rows * 2, 128))


def preview_png(preview: bytes) -> bytes:
    """The picture, one pixel a cell, or in the size of the page where NaN or Inf must be told apart.

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
    return palette_png(pixels, _diverging())


def data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def _hatched(pixels: np.ndarray) -> np.ndarray:
    rows, columns = pixels.shape
    y, x = np.indices((max(rows, preview_height(rows)), max(columns, SHOWN_WIDTH)))
    large = pixels[y * rows // len(y), x * columns // x.shape[1]]
    lines = {
        NEGATIVE_INFINITY: (x - y) % PERIOD == 0,
        POSITIVE_INFINITY: (x + y) % PERIOD == 0,
        NAN: (x % PERIOD == 0) | (y % PERIOD == 0),
    }
    drawn = large.copy()
    for index, line in lines.items():
        drawn[large == index] = YELLOW
        drawn[(large == index) & line] = INK
    return drawn


def _diverging() -> np.ndarray:
    """The palette of a preview: ``[253, 4]``, with an alpha for every entry."""
    scale = np.arange(2 * ZERO + 1)
    colours = np.where(scale[:, None] < ZERO, BLUE, ORANGE)
    alphas = np.rint(np.abs(scale - ZERO) * 255 / ZERO)
    palette = np.concatenate([colours, alphas[:, None]], axis=1).astype(np.uint8)
    palette[INK], palette[YELLOW] = (0, 0, 0, 255), (255, 225, 77, 255)
    return palette


STRIP_COLOURS = {
    "nothing": (0, 0, 0, 0),
    "done": (*BLUE, 255),
    "current": (*ORANGE, 255),
    "pending": (128, 138, 148, 255),
    "written": (43, 138, 62, 255),
    "waiting": (178, 123, 0, 255),
}


def strip_png(cells: Sequence[tuple[str, str]]) -> bytes:
    """A lane's layers, state and KV each, for where the style sheet is dropped.

    Without a style sheet a row of empty elements shows nothing; an image survives.
    """
    width, gap, height, bar = 12, 2, 14, 3
    ink = {name: index for index, name in enumerate(STRIP_COLOURS)}
    pixels = np.zeros((height + gap + bar, len(cells) * (width + gap)), np.uint8)
    for i, (state, kv) in enumerate(cells):
        left = i * (width + gap)
        cell = pixels[:height, left : left + width]
        cell[:] = ink[state] if state in ink else ink["done"]
        if state != "done":  # hollow; a group that is partly done is half filled
            cell[1:-1, 1 + (width // 2 if state == "part" else 0) : -1] = 0
        below = pixels[height + gap :, left : left + width]
        if kv != "none":
            below[:] = ink["written" if kv == "written" else "waiting"]
        if kv in ("pending", "part"):
            below[1:-1, 1:-1] = 0
    return palette_png(pixels, np.array(list(STRIP_COLOURS.values()), np.uint8))


def palette_png(pixels: np.ndarray, palette: np.ndarray) -> bytes:
    """A palette PNG: colour type 3, eight bits, an alpha for every entry."""
    height, width = pixels.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), pixels], axis=1)  # each row: filter 0
    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            _chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)),
            _chunk(b"PLTE", palette[:, :3].tobytes()),
            _chunk(b"tRNS", palette[:, 3].tobytes()),
            _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)),
            _chunk(b"IEND", b""),
        ]
    )


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
