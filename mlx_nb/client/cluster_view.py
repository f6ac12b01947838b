"""Showing a cluster: a card for each rank that stays true while a cell runs, and when a rank is lost.

What is drawn comes from what this kernel knows without asking: processes, answers that are outstanding, the last
run's figures, log files. A rank is asked only when all of them have nothing to do.
"""

import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import psutil

from mlx_nb.client.current import current
from mlx_nb.client.live_view import LiveView
from mlx_nb.client.ticker import EVERY_S, Ticker
from mlx_nb.client.watch import is_local
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.spec import RankInfo
from mlx_nb.shared.text import format_count, format_size
from mlx_nb.shared.vitals import Vitals

if TYPE_CHECKING:
    from mlx_nb.client.cluster import Cluster
    from mlx_nb.client.pipe import Pipe

IDLE_S = 0.3
"""How often to look while nothing runs."""

LOOK_AROUND_S = 1.0
REMOTE_EVERY_S = 5.0
"""How often to ask ranks on other hosts how much memory is free there."""

ASK_TIMEOUT_S = 2.0


class LiveCluster:
    """A cluster's view on the page.

    Args:
        cluster: Which.
    """

    def __init__(self, cluster: "Cluster") -> None:
        from mlx_nb.widgets.cluster import ClusterView

        self._cluster = cluster
        self._vitals: dict[Rank, Vitals] = {}
        self._asked: object = None
        self._asked_s = 0.0
        self._logs: dict[Rank, list[str]] = {}
        self._looked_s = 0.0
        self._title = self._text = ""
        self._pipes: list[Pipe] = []
        self._doing = self._said = self._error = ""
        self.view = ClusterView(self._state())
        asks = {
            "pause": self._pause,
            "resume": self._resume,
            "interrupt": self._interrupt,
            "restart": self._restart,
            "stop": self._stop,
        }
        self._ticker = Ticker(self._tick, "mlx_nb cluster view")
        self.live = LiveView(self.view, asks, self._ticker.stop)

    # What it shows ----------------------------------------------------------------------------------

    def _tick(self) -> float:
        """Look, and draw what is new; how long to wait before the next look."""
        with suppress(Exception):  # a cluster that is just going away; the next look sees what became of it
            self._ask_ranks()
            self._show()
        return EVERY_S if self._doing or self._busy() else IDLE_S

    def _show(self) -> None:
        state = self._state()
        if any(self.view.state.get(key) != value for key, value in state.items() if key != "text"):
            self.view.show(state)

    def _busy(self) -> bool:
        remote = self._cluster.remote
        return not remote.ended and any(remote.busy(rank) for rank in remote.table)

    def _ask_ranks(self) -> None:
        """Ask the ranks of their memory if they are free, and something has happened since."""
        remote, last = self._cluster.remote, getattr(current.pipe, "last", None)
        if remote.ended or self._doing or self._busy() or remote.out_of_reach():
            return
        if getattr(last, "state", "") == "running":  # it is about to be sent
            return
        stands = current.dbg.position if current.dbg is not None else None
        about = (remote, len(self._cluster.pipes), id(last), getattr(last, "state", ""), id(stands))
        elsewhere = any(not is_local(info) for info in remote.table.values())
        if about == self._asked and not (elsewhere and time.monotonic() - self._asked_s > REMOTE_EVERY_S):
            return
        self._asked, self._asked_s = about, time.monotonic()
        with suppress(MlxNbError):
            told = remote.call_all("vitals", timeout_s=ASK_TIMEOUT_S)
            self._vitals = {Rank(rank): vitals for rank, vitals in enumerate(told)}

    def _state(self) -> dict[str, Any]:
        cluster = self._cluster
        ended = bool(cluster.remote.ended)
        self._pipes = list(cluster.pipes) or (self._pipes if ended or self._doing else [])
        self._look_around()
        lost = cluster.remote.lost()
        stopped = cluster.stopped_ranks()
        infos = [info for _, info in sorted(cluster.remote.table.items())]
        free = {} if ended else {"": psutil.virtual_memory()}
        ranks = []
        for info in infos:
            state = "ended" if ended else self._state_of(info.rank, lost, stopped)
            ranks.append(self._card(info, state, free))
        return {
            "name": cluster.name,
            "note": "stopped" if ended else self._title,
            "status": _together([rank["state"] for rank in ranks]),
            "run": self._run_line(),
            "ranks": ranks,
            "actions": self._actions([rank["state"] for rank in ranks]),
            "warnings": self._warnings(),
            "doing": self._doing,
            "sentence": self._said,
            "error": self._error,
            "text": self._text,
        }

    def _card(self, info: RankInfo, state: str, here: dict[str, Any]) -> dict[str, Any]:
        rank, vitals, alive = info.rank, self._vitals.get(info.rank), state not in ("lost", "ended")
        local, speed = is_local(info), self._speed(rank) if alive else ""
        free, total = (vitals.free_bytes, vitals.total_bytes) if vitals else (0, 0)
        if local and here:
            free, total = here[""].available, here[""].total
        weights = sum(p.shards[rank].weight_bytes for p in self._pipes if rank < p.num_ranks) if alive else 0
        kv = vitals.kv_bytes if vitals and alive else 0
        other = max(0, total - free - weights - kv)
        process = self._cluster.memory_of(info) if alive else 0
        return {
            "rank": int(rank),
            "engine": int(info.engine),
            "host": info.host,
            "pid": info.pid,
            "device": vitals.device if vitals else "",
            "holds": self._cluster.holds(rank) if alive else "",
            "state": state,
            "why": self._why(rank, state),
            "weights": format_size(weights) if weights else "",
            "kv": format_size(kv) if kv else "",
            "process": format_size(process) if process else "",
            "other": format_size(other) if total else "",
            "free": format_size(free) if total else "",
            "parts": [round(1000 * part / total) for part in (weights, kv, other, free)] if total else [],
            "speed": speed,
            "fresh": state == "running",
            "log": self._logs.get(rank, []),
        }

    def _state_of(self, rank: Rank, lost: set[Rank], stopped: set[Rank]) -> str:
        if rank in lost:
            return "lost"
        if rank in stopped:
            return "stopped"
        runs = [run for pipe in self._cluster.pipes if rank < pipe.num_ranks for run in pipe.under_way]
        if any(run.state == "running" for run in runs) or self._cluster.remote.busy(rank):
            return "running"
        if any(run.state == "paused" for run in runs):
            return "paused"
        dbg = current.dbg
        if (
            dbg is not None
            and dbg.pipe in self._cluster.pipes
            and not (dbg.done or dbg.closed)
            and rank < dbg.pipe.num_ranks
        ):
            if dbg.running:
                return "running"
            return "stopped" if dbg.position.rank == rank else "waiting"
        return "idle"

    def _why(self, rank: Rank, state: str) -> str:
        if state == "lost":
            return f"Lost: {self._cluster.why_lost(rank)}."
        if state == "stopped" and rank in self._cluster.stopped_ranks():
            return "Its process was stopped (SIGSTOP, or a debugger)."
        return ""

    def _pipe(self) -> "Pipe | None":
        """The pipe whose run is shown: one that runs, else the current one."""
        pipes = self._pipes
        running = [pipe for pipe in pipes if pipe.under_way]
        mine = [current.pipe] if current.pipe in pipes else pipes[-1:]
        return next(iter([*running, *mine]), None)

    def _run_line(self) -> str:
        pipe = self._pipe()
        if pipe is None:
            return "no model is loaded"
        last = pipe.last
        if last is None:
            return f"{pipe.name} · nothing has run yet"
        runs = last if isinstance(last, list) else [last]
        count = format_count(sum(len(run.token_ids) for run in runs), "token")
        state = next((run.state for run in pipe.under_way), "") or f"last run {last.state}"
        return f"{pipe.name} · {state} · {count}"

    def _speed(self, rank: Rank) -> str:
        pipe = self._pipe()
        if pipe is None or pipe.last is None or rank >= pipe.num_ranks:
            return ""
        runs = pipe.last if isinstance(pipe.last, list) else [pipe.last]
        speed = sum(run.stats.generation_tps for run in runs if run.stats is not None)
        return f"{speed:.1f}" if speed else ""

    def _look_around(self) -> None:
        """Read what is dear to read: the logs' ends, and the processes around the ranks."""
        ended = bool(self._cluster.remote.ended)
        if time.monotonic() - self._looked_s < LOOK_AROUND_S and not ended:
            return
        self._looked_s = time.monotonic()
        status = self._cluster.status()
        self._title, self._text = status.title.split(" · ", 1)[1], str(status)
        if not ended:
            self._logs = {rank: self._cluster.log_tail(rank) for rank in self._cluster.remote.table}

    def _actions(self, states: list[str]) -> list[str]:
        if self._doing:
            return []
        if self._cluster.remote.ended:
            return ["start"]
        found = ["restart", "stop"]
        if "running" in states:
            found.append("interrupt")
        runs = [run for pipe in self._cluster.pipes for run in pipe.under_way]
        if any(run.state == "running" for run in runs):
            found.append("pause")
        elif any(run.state == "paused" for run in runs):
            found += ["resume", "interrupt"]
        return found

    def _warnings(self) -> dict[str, str]:
        names = " and ".join(dict.fromkeys(pipe.name for pipe in self._pipes))
        gone = (
            "KV caches, traces and runs that stand still are lost" if names else "What the ranks hold is lost"
        )
        again = f"; {names} is loaded again." if names else "."
        return {
            "restart": f"Restart {self._cluster.name}? {gone}{again}",
            "stop": f"Stop {self._cluster.name}? {gone}" + (f", and {names} is unloaded." if names else "."),
        }

    # What its buttons do ------------------------------------------------------------------------------

    def _pause(self, _details: dict[str, Any]) -> None:
        self._act(lambda: _each("pause", self._cluster), "The run stands still; Go on lets it go on.")

    def _resume(self, _details: dict[str, Any]) -> None:
        self._act(lambda: _each("resume", self._cluster), "")

    def _interrupt(self, _details: dict[str, Any]) -> None:
        self._act(self._cluster.interrupt, "Interrupted; the text so far: pipe.last.text")

    def _stop(self, _details: dict[str, Any]) -> None:
        self._doing = f"Stopping {self._cluster.name} …"
        self._act(self._cluster.stop, "The cluster has stopped.")

    def _restart(self, _details: dict[str, Any]) -> None:
        pipes, self._doing = list(self._pipes), f"Restarting {self._cluster.name} …"

        def tell(stage: str, done: int, total: int) -> None:
            self._doing = f"Restarting {self._cluster.name}: {stage} {f'{done} of {total}' if total else '…'}"

        def work() -> None:
            self._cluster.restart(progress=tell)
            for pipe in pipes:
                self._doing = f"Loading {pipe.name} …"
                pipe.load_there()

        loaded = f"; {pipes[-1].name} is loaded" if pipes else ""
        self._act(work, f"The cluster has been started again{loaded}.")

    def _act(self, work: Any, said: str) -> None:
        """Do something and say that it is done; an error stays in the pane until the next button."""
        self._error = self._said = ""
        self._show()
        try:
            if work() is not False:
                self._said = said
            else:
                self._said = "Nothing was running."
        except Exception as error:  # noqa: BLE001,RUF100 - whatever it is, it belongs in the pane
            from mlx_nb.widgets.view import describe_error

            self._error = describe_error(error)
        finally:
            self._doing = ""
        self._show()


def show_cluster(cluster: "Cluster") -> LiveCluster:
    """Show a cluster's view in the notebook."""
    return LiveCluster(cluster)


def _each(what: str, cluster: "Cluster") -> bool:
    return any([getattr(pipe, what)() for pipe in cluster.pipes])


def _together(states: list[str]) -> str:
    """What the ranks are together: the worst of them."""
    for state in ("lost", "ended", "running", "paused", "stopped"):
        if state in states:
            return state
    return "idle"
