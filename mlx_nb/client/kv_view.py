"""Showing KV caches: the view, and who answers when a layer is chosen or tokens are cut off."""

from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.live_view import LiveView
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.kv_report import KVEntryReport, KVReport
from mlx_nb.shared.text import format_share, format_size

if TYPE_CHECKING:
    from mlx_nb.client.kv import KVCaches
    from mlx_nb.client.pipe import Pipe

MOST_POSITIONS = 1024
"""The norms of so many positions are drawn: the last ones, where there are more."""


class LiveKV:
    """A KV cache's view on the page.

    Args:
        pipe: Whose KV caches.
        kv: Those that are shown first; the pipe's as they are now, if none are given.
    """

    def __init__(self, pipe: "Pipe", kv: "KVCaches | None" = None) -> None:
        from mlx_nb.widgets.kv import KVView

        self._pipe = pipe
        self._kv = pipe.kv_cache() if kv is None else kv
        self._layer, self._buffer = -1, "keys"
        self.view = KVView(self._state())
        asks = {"choose": self._choose, "trim": self._trim, "refresh": self._refresh}
        self.live = LiveView(self.view, asks)

    def _state(self, sentence: str = "") -> dict[str, Any]:
        report = self._kv.report
        used, held = (sum(getattr(e, k) for e in report) for k in ("used_bytes", "held_bytes"))
        head, *_ = str(report).split("\n")
        return {
            "model": self._pipe.name,
            "note": f"{head.removeprefix('KV cache · ')} · {format_size(used)} used of {format_size(held)}",
            "headline": report.headline,
            "rows": rows_of(report),
            "trim": trim_of(report),
            "sentence": sentence or "Choose a row to see the norms of its keys and values.",
            "text": str(report),
        }

    def _refresh(self, _details: dict[str, Any]) -> None:
        self._kv = self._pipe.kv_cache()
        self._show()

    def _choose(self, details: dict[str, Any]) -> None:
        self._layer, self._buffer = int(details["layer"]), str(details.get("buffer") or "keys")
        self._show()

    def _trim(self, details: dict[str, Any]) -> None:
        count, most = int(details["count"]), trim_of(self._kv.report)["most"]
        if not 1 <= count <= most:
            raise OptionError(f"{count} tokens cannot be cut off.", f"Give a number from 1 to {most}.")
        before = sum(entry.used_bytes for entry in self._kv.report)
        self._kv.trim(count)
        freed = before - sum(entry.used_bytes for entry in self._kv.report)
        self._show(
            f"{count} tokens were cut off every layer: {format_size(freed)} are free to be written over. "
            "Nothing was computed."
        )

    def _show(self, sentence: str = "") -> None:
        state, norms = self._state(sentence), b""
        if self._layer >= 0:
            entry = self._kv[self._layer]
            handle = entry[self._buffer]
            found: np.ndarray = self._pipe.cluster.remote.call(
                entry.rank, "kv_norms", self._pipe.pipe_id, entry.report.place, handle.buffer.name
            )
            found = found[:, -MOST_POSITIONS:]
            positions = list(entry.positions)[-MOST_POSITIONS:]
            if len(positions) != found.shape[1]:
                positions = list(range(found.shape[1]))
            names = [name for name in ("keys", "values") if entry.report.buffer(name) is not None]
            state["chosen"] = {
                "layer": self._layer,
                "buffer": self._buffer,
                "heads": len(found),
                "positions": positions,
                "names": names,
                "ring": entry.report.ring_at >= 0,
            }
            norms = found.astype("<f4").tobytes()
            state["sentence"] = sentence or (
                f"How long the {self._buffer} of layer {self._layer} are, head by head and position by position."
            )
        self.view.show(state, norms=norms)


def rows_of(report: KVReport) -> list[dict[str, Any]]:
    """Consecutive layers of a rank that read the same, each with the parts of its bar."""

    def alike(entry: KVEntryReport) -> tuple[Any, ...]:
        return (entry.rank, entry.class_name, entry.offset, entry.capacity, entry.shapes, entry.detail)

    rows = []
    for _, group in groupby(report, key=alike):
        same = list(group)
        first, last = same[0], same[-1]
        span = str(first.layer) if len(same) == 1 else f"{first.layer}–{last.layer}"
        ring = first.ring_at >= 0
        filled = min(max(first.offset, 0), first.capacity) if first.capacity else 0
        rows.append(
            {
                "rank": int(first.rank),
                "layers": span,
                "layer": int(first.layer),
                "class": first.class_name,
                "offset": str(first.offset) if first.offset >= 0 else "–",
                "room": first.room or "–",
                "size": format_share(sum(e.used_bytes for e in same), sum(e.held_bytes for e in same)),
                "detail": " · ".join(
                    filter(None, [first.detail, f"{first.pending} pending" if first.pending else ""])
                ),
                "capacity": first.capacity,
                "filled": filled,
                "kept": first.kept,
                "stale": 0 if ring else max(0, min(report.trimmed, first.capacity - filled)),
                "ring_at": first.ring_at,
                "opens": first.buffer("keys") is not None,
            }
        )
    return rows


def trim_of(report: KVReport) -> dict[str, Any]:
    """How many tokens can be cut off every entry; or why none."""
    counted = [entry.offset for entry in report if entry.offset >= 0 and not entry.unused]
    stuck = next((entry for entry in report if not entry.trimmable and entry.offset != 0), None)
    if report.standing:
        return {"most": 0, "why": f"The run stands at {report.standing}: dbg.trim(n) cuts there."}
    if stuck is not None:
        return {"most": 0, "why": f"Layer {stuck.layer} ({stuck.class_name}) cannot be cut."}
    return {"most": min(counted, default=0), "why": "" if counted else "Nothing has been written yet."}
