"""Showing KV caches: the view, who answers when a layer is chosen, and what goes back from it: trim, rewind, fork.

It follows a stepper, a run in the background and the end of any run; while a cell waits for a run, the ranks cannot
be asked, and the view says so.
"""

import itertools
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
from IPython.core.getipython import get_ipython

from mlx_nb.client.current import current
from mlx_nb.client.live_view import LiveView
from mlx_nb.client.ticker import EVERY_S, Ticker
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.kv_report import KVEntryReport, KVReport
from mlx_nb.shared.text import format_count, format_share, format_size

if TYPE_CHECKING:
    from mlx_nb.client.debugger import Debugger
    from mlx_nb.client.kv import KVCaches
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.widgets.view import Answer

MOST_POSITIONS = 1024
"""The norms of so many positions are drawn: the last ones, where there are more."""

MOST_UNASKED_BYTES = 48 * 1024
"""Norms that nobody asked for just now, since a run went on, take so much at most."""

FOLLOW_S, LOOK_S = 0.5, 0.2
"""How often to look at the KV caches of a run in the background, and whether there is anything to look at."""


class LiveKV:
    """A KV cache's view on the page.

    Args:
        pipe: Whose KV caches.
        kv: Those of one moment: once the ranks have gone on, the view is a picture of them. If none are given, it
            follows the pipe.
    """

    def __init__(self, pipe: "Pipe", kv: "KVCaches | None" = None) -> None:
        from mlx_nb.widgets.kv import KVView

        self._pipe = pipe
        self._kv = pipe.kv_cache() if kv is None else kv
        self._layer, self._buffer = -1, "keys"
        self.forks: list[Debugger] = []
        self._seen, self._looking, self._acts = self._key(), False, 0
        self._is_value = kv is not None
        self.view = KVView(self._state())
        asks = {
            "choose": self._choose,
            "trim": self._trim,
            "rewind": self._rewind,
            "fork": self._fork,
            "cost": self._cost,
            "pause": self._pause,
            "resume": self._resume,
            "refresh": self._refresh,
        }
        self._ticker = Ticker(self._tick, "mlx_nb kv view")
        self.live = LiveView(self.view, asks, self._ticker.stop)

    # Following --------------------------------------------------------------------------------------

    @property
    def _dbg(self) -> "Debugger | None":
        """The stepper whose run is shown."""
        dbg = current.dbg
        return dbg if dbg is not None and dbg.pipe is self._pipe and not dbg.closed else None

    def _key(self) -> tuple[Any, ...]:
        """What the picture hangs on."""
        dbg, last = self._dbg, self._pipe.last
        runs = [(run.run_id, run.state, run.in_cell) for run in self._pipe.under_way]
        count = len(last.token_ids) if runs and last is not None else 0
        stands = (id(dbg.position), dbg.running) if dbg is not None else None
        return stands, runs, count, id(last), getattr(last, "state", "")

    def _tick(self) -> float:
        """Look again if something has happened; how long to wait before the next look."""
        key = self._key()
        if key == self._seen or self._looking or self._pipe.cluster.remote.ended:
            return LOOK_S
        if self._is_value:
            self.live.freeze()
            return LOOK_S
        self._seen = key
        if self._out_of_reach():
            self.view.show({**self.view.state, "sequence": 0, **self._run()})
            return EVERY_S
        self._looking = True
        acts = self._acts
        self.live.later(lambda: self._look(acts))
        return FOLLOW_S if key[1] else EVERY_S

    def _look(self, acts: int) -> None:
        try:
            if acts != self._acts:
                return  # what a button did meanwhile is shown, with its sentence
            self._kv = self._pipe.kv_cache()
            self._show(unasked=True)
        finally:
            self._looking = False

    def _out_of_reach(self) -> bool:
        """Whether the ranks are inside a call that lasts as long as a run."""
        free = any(run.in_cell and run.state == "running" for run in self._pipe.under_way)
        return free or (self._dbg is not None and self._dbg.running)

    def _check_reach(self) -> None:
        if self._out_of_reach():
            raise OptionError(
                "The ranks are at work and cannot be asked.", "Press Pause, or wait for the end."
            )

    def _run(self) -> dict[str, Any]:
        """What goes on: its state in a word, the sentence, and whether it can pause or go on."""
        runs = self._pipe.under_way
        states = [run.state for run in runs]
        found: dict[str, Any] = {"status": "", "pause": "running" in states, "resume": False}
        if self._dbg is not None:
            found["status"] = "running" if self._dbg.running else "stopped"
        if runs:
            found["status"] = states[0]
            found["resume"] = not found["pause"] and "paused" in states
        if self._out_of_reach():
            count = len(self._pipe.last.token_ids) if self._pipe.last is not None else 0
            pause = " Pause shows what they hold then." if found["pause"] else ""
            return {
                "run": found,
                "sentence": f"As of before this run, which has {format_count(count, 'token')} so far: the ranks are at work.{pause}",
            }
        return {"run": found}

    def _pause(self, _details: dict[str, Any]) -> None:
        self._pipe.pause()
        self._refresh({})

    def _resume(self, _details: dict[str, Any]) -> None:
        self._pipe.resume()

    # Drawing ----------------------------------------------------------------------------------------

    def _state(self, sentence: str = "") -> dict[str, Any]:
        report = self._kv.report
        rows = rows_of(report)
        used, held = (sum(getattr(e, k) for e in report) for k in ("used_bytes", "held_bytes"))
        head, *_ = str(report).split("\n")
        return {
            "model": self._pipe.name,
            "note": f"{head.removeprefix('KV cache · ')} · {format_size(used)} used of {format_size(held)}",
            "headline": report.headline,
            "rows": rows,
            "trim": self._trimmable(),
            "rewind": self._rewindable(),
            "text": str(report),
            "sentence": sentence
            or (
                "Choose a row to see the norms of its keys and values."
                if rows
                else "No pass has written anything yet."
            ),
            **self._run(),
        }

    def _trimmable(self) -> dict[str, Any]:
        """How many tokens can be cut off; or why none. Where a stepper stands, it is its run that loses them."""
        if self._dbg is not None and not self._dbg.running:
            return trim_of(replace(self._kv.report, standing=""))
        return trim_of(self._kv.report)

    def _rewindable(self) -> dict[str, Any]:
        dbg = self._dbg
        if dbg is None or dbg.running:
            return {"can": False, "why": "Rewind and Fork are for a run that is stepped: pipe.debug('…')"}
        return {"can": True, "why": ""}

    def _cost(self, details: dict[str, Any]) -> "Answer":
        """What trim, rewind and fork would cost, in words."""
        from mlx_nb.widgets.view import Answer

        if self._out_of_reach():
            return Answer({"trim": "", "rewind": "", "fork": ""})
        count, costs = int(details["count"]), {"trim": "", "rewind": "", "fork": ""}
        most, used = self._trimmable()["most"], sum(entry.used_bytes for entry in self._kv.report)
        if 1 <= count <= most:
            freed = format_size(used * count / max(1, most))
            costs["trim"] = f"Trim: {most} → {most - count} tokens, about {freed} freed, nothing is computed."
        if self._rewindable()["can"]:
            assert self._dbg is not None
            costs["rewind"] = f"Rewind: {self._dbg.cost_of_rewind(count)}"
            costs["fork"] = (
                f"Fork: {self._dbg.cost_of_fork()}; up to {format_size(used)} more as the two part."
            )
        return Answer(costs)

    def _stepper(self) -> "Debugger":
        if not self._rewindable()["can"] or self._dbg is None:
            raise OptionError("No run of this model stands in a stepper.", "Type: dbg = pipe.debug('…')")
        return self._dbg

    def _rewind(self, details: dict[str, Any]) -> None:
        dbg = self._stepper()
        dbg.rewind(int(details["count"]))
        self._refresh({}, f"The run stands at {dbg.position.where}. Every stride goes on from there.")

    def _fork(self, _details: dict[str, Any]) -> None:
        other = self._stepper().fork()
        shell = get_ipython()
        name = "fork"
        if shell is not None:
            name = next(f"fork{n or ''}" for n in itertools.count() if f"fork{n or ''}" not in shell.user_ns)
            shell.user_ns[name] = other
        else:
            self.forks.append(other)
        self._refresh({}, f"{name} stands at {other.position.where}, as dbg does. Type: {name}.token()")

    def _refresh(self, _details: dict[str, Any], sentence: str = "") -> None:
        self._check_reach()
        self._seen = self._key()
        self._acts += 1
        self._kv = self._pipe.kv_cache()
        self._show(sentence)

    def _choose(self, details: dict[str, Any]) -> None:
        self._check_reach()
        self._layer, self._buffer = int(details["layer"]), str(details.get("buffer") or "keys")
        self._show()

    def _trim(self, details: dict[str, Any]) -> None:
        self._check_reach()
        count, most = int(details["count"]), self._trimmable()["most"]
        if not 1 <= count <= most:
            raise OptionError(f"{count} tokens cannot be cut off.", f"Give a number from 1 to {most}.")
        before = sum(entry.used_bytes for entry in self._kv.report)
        if self._dbg is not None:
            self._dbg.trim(count)
            self._seen = self._key()
            self._kv = self._pipe.kv_cache()
        else:
            self._kv.trim(count)
        freed = before - sum(entry.used_bytes for entry in self._kv.report)
        self._show(
            f"{count} tokens were cut off every layer: {format_size(freed)} are free to be written over. "
            "Nothing was computed."
        )

    def _show(self, sentence: str = "", *, unasked: bool = False) -> None:
        state, norms = self._state(sentence), b""
        if self._layer >= 0:
            entry = self._kv[self._layer]
            handle = entry[self._buffer]
            found: np.ndarray = self._pipe.cluster.remote.call(
                entry.rank, "kv_norms", self._pipe.pipe_id, entry.report.place, handle.buffer.name
            )
            most = MOST_UNASKED_BYTES // (4 * max(1, len(found))) if unasked else MOST_POSITIONS
            found = found[:, -min(most, MOST_POSITIONS) :]
            positions = list(entry.positions)[-found.shape[1] :] if found.shape[1] else []
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
