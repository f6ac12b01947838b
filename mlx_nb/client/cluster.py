"""A running cluster, as the notebook holds it: its life, its ranks, its state."""

import atexit
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

import ipyparallel as ipp

from mlx_nb.client import launch, logs, records
from mlx_nb.client.bringup import Progress, Running, bring_up, connect, new_name
from mlx_nb.client.ctrl_c import held_back
from mlx_nb.client.current import current
from mlx_nb.client.options import parse_split
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.planning import split_for
from mlx_nb.client.processes import identify
from mlx_nb.client.profiles import load_profile
from mlx_nb.client.reloading import code_for
from mlx_nb.client.remote import OnEvent, Remote
from mlx_nb.client.watch import ClusterWatch
from mlx_nb.shared.errors import ClusterError, DifferentClusterError, NoClusterError, OptionError
from mlx_nb.shared.fit import BY_MEMORY
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.spec import (
    ClusterStatus,
    ProcessInfo,
    RankInfo,
    format_keep,
    parse_duration,
)

ATTACH_TIMEOUT_S = 10.0


class Cluster:
    """Ranks of one MPI world, each an ipyparallel engine, and what belongs to them.

    Made by `start` or `attach`. It ends with this kernel unless it is kept.

    Attributes:
        name: Its name, such as ``local-7f3a``.
        spec: What was asked for.
        remote: Calls functions on its ranks.
        pipes: The models that are loaded; a pipe enters itself, and leaves when it is unloaded.
    """

    def __init__(self, running: Running) -> None:
        """For `start` and `attach`."""
        self.name = running.record.name
        self.spec = running.record.spec
        self.pipes: list[Pipe] = []
        self._take(running)

    def _take(self, running: Running) -> None:
        assert running.client
        self._running = running
        self._stopped_logs: logs.LogText | None = None
        self._pid = os.getpid()
        self._watch = ClusterWatch(running, self.holds)
        self.remote = Remote(running.client, running.table or {}, self._watch)
        atexit.register(self._at_exit)
        _activate(running.client)
        current.cluster = self

    # --- beginning -----------------------------------------------------------------------------------

    @classmethod
    def start(
        cls,
        ranks: int | None = None,
        hosts: Sequence[str] | None = None,
        profile: str | None = None,
        keep: str | float | bool = False,
        progress: Progress | None = None,
    ) -> "Cluster":
        """Start a cluster, or return the one that runs if it is the same.

        Args:
            ranks: How many; by default the hosts' slots, the profile's number, or 2.
            hosts: Where, each ``address`` or ``address:slots``; by default this machine.
            profile: The name of a profile, or its directory.
            keep: How long it outlives this kernel: ``"8h"``, ``"30m"``, or seconds.
            progress: Called with each stage, how many are there, and how many there will be.

        Raises:
            DifferentClusterError: Another cluster runs in this kernel.
            ClusterStartError: It did not come up; nothing is left of it.
            OptionError: A wish makes no sense.
            ProfileError: There is no such profile.
        """
        keep_s = parse_duration(keep)
        spec, config = launch.resolve(ranks, hosts, profile, keep_s)
        running: Cluster | None = current.cluster
        if running is not None and running.healthy:
            if running.spec != spec:
                raise DifferentClusterError(
                    f"Cluster {running.name} runs already, {running.spec.describe()};"
                    f" you asked for {spec.describe()}.",
                    f"Type: %mlx_cluster stop, then {spec.command}",
                )
            if keep_s:
                running.keep(keep_s)
            return running
        if running is not None:
            running.stop()  # a cluster that has lost a rank is not what was asked for
        return cls(bring_up(new_name(spec), spec, config, progress))

    @classmethod
    def attach(cls, name: str | None = None) -> "Cluster":
        """Connect to a cluster that was kept, or that another kernel runs.

        A kept one becomes this kernel's own: it now ends with this kernel, and its keep time later.

        Raises:
            NoClusterError: There is none, or none of this name.
            ClusterError: There are several, or it does not answer.
        """
        mine: Cluster | None = current.cluster
        if mine is not None and mine.healthy and name in (None, mine.name):
            return mine
        found = [record for record in records.list_records() if record.started_s]
        chosen = [record for record in found if record.name == name] if name else _ownerless(found)
        if not chosen:
            others = ", ".join(record.name for record in found)
            raise NoClusterError(
                f"No cluster {name or 'to attach to'} is running."
                + (f" There is: {others}." if others else ""),
                f"Type: %mlx_cluster attach {found[0].name}"
                if found
                else "Type: %mlx_cluster start --ranks 2",
            )
        if len(chosen) > 1:
            names = ", ".join(record.name for record in chosen)
            raise ClusterError(
                f"Several clusters run: {names}.", f"Type: %mlx_cluster attach {chosen[0].name}"
            )
        if mine is not None and mine.healthy:
            raise DifferentClusterError(
                f"Cluster {mine.name} runs in this kernel already.",
                f"Type: %mlx_cluster stop, then %mlx_cluster attach {chosen[0].name}",
            )
        cluster = cls(_reconnect(chosen[0]))
        Pipe.find_all(cluster)
        return cluster

    def restart(self, progress: Progress | None = None) -> Self:
        """Stop it and start the same again, under the same name; what the ranks held is gone."""
        config = load_profile(self.spec.profile)
        standing = current.dbg if current.cluster is self else None
        self.stop()
        self._take(bring_up(self.name, self.spec, config, progress))
        if standing is not None:
            current.lost_dbg = standing
            standing.tell()
        return self

    # --- end -----------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End every process of the cluster; does nothing the second time."""
        if self.remote.ended:
            return
        for pipe in self.pipes:
            pipe.stop_runs()
        with held_back():  # half a stop could not be done again
            self._stop()

    def _stop(self) -> None:
        self._stopped_logs = self.logs()
        self.remote.ended = f"Cluster {self.name} ended at {time.strftime('%H:%M')}."
        atexit.unregister(self._at_exit)
        self._running.take_down()
        self.pipes.clear()
        if current.cluster is self:
            standing, current.cluster, current.pipe = current.dbg, None, None
            if standing is not None:
                standing.close()  # so that its views no longer say that it stands somewhere

    def keep(self, keep_s: float) -> None:
        """Change how long the cluster outlives its kernel."""
        self.spec = replace(self.spec, keep_s=keep_s)
        spec = self.spec
        changed = records.update(self._running.record.path, lambda record: replace(record, spec=spec))
        self._running.record = changed or self._running.record

    def _at_exit(self) -> None:
        if os.getpid() != self._pid:
            return  # a fork of the kernel does not own the cluster
        if self.spec.keep_s or not self._mine:
            self.client.close(linger=0)
        else:
            self.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # --- models --------------------------------------------------------------------------------------

    def load(
        self,
        model: str,
        split: str | Sequence[int] = "even",
        dtype: str | None = None,
        adapter_path: str | None = None,
        ranks: int | None = None,
        trust_remote_code: bool = False,
        code: str | Path | None = None,
        on_event: OnEvent | None = None,
    ) -> Pipe:
        """Load a model over all ranks; each reads its own layers.

        Args:
            model: A name (``smollm2``), a folder, or a Hugging Face id.
            split: ``even``, ``memory`` (in proportion to each rank's), or the layers per rank, rank 0 first.
            dtype: What to compute in; None takes float32 on a CPU and the weights' own on Metal.
            adapter_path: The folder of an adapter in mlx-lm's format (LoRA, DoRA or full), on every host.
            ranks: Over the first so many ranks; None takes all.
            trust_remote_code: Whether code from the model's folder may run on the ranks.
            code: A file of yours that defines ``Model`` and ``ModelArgs`` as mlx-lm's do, to run the weights with;
                its text goes to every rank. `Pipe.reload` reads it again.
            on_event: Gets each rank's progress.

        Raises:
            ModelNotFoundError: There is no such model.
            WeightsError: A weight file is missing or damaged.
            AdapterError: The adapter is not there, is damaged, or was made for another model.
            RemoteCodeError: The model is built by code of its own or of yours, and `trust_remote_code` is off.
            CodeError: `code` does not run, or does not fit the weights; file, line and rank are named.
            PlanError: The split does not fit the model or the ranks.
        """
        if ranks is not None and not 1 <= ranks <= len(self):
            raise OptionError(
                f"A model cannot be loaded over {ranks} ranks; this cluster has {len(self)}.",
                f"Type: %mlx_load {model} --ranks {len(self)}",
            )
        if code is not None:
            code = code_for(str(model), code, trusted=trust_remote_code).path
            if split == "memory":
                raise OptionError(
                    "Sizes are known only of mlx-lm's own models, so --split memory goes without --code.",
                    f"Type: %mlx_load {model} --split even --code {code} --trust-remote-code, or layers per rank",
                )
        why_so = BY_MEMORY if split == "memory" else ""
        if split == "memory":
            split = split_for(str(model), self.remote.call_all("capacity")[:ranks])
        wishes = {
            "ranks": ranks,
            "split": parse_split(split),
            "dtype": dtype,
            "adapter_path": str(adapter_path) if adapter_path is not None else None,
            "trust_remote_code": trust_remote_code,
            "code": code,
        }
        return Pipe(self, str(model), wishes, why_so).load_there(on_event)

    # --- ranks ---------------------------------------------------------------------------------------

    @property
    def client(self) -> ipp.Client:
        """ipyparallel's client. Its engine ids are not ranks: see `__getitem__`."""
        return self.remote.client

    def __getitem__(self, rank: int) -> ipp.DirectView:
        """ipyparallel's view of one rank, whatever its engine id is."""
        if rank not in self.remote.table:
            raise IndexError(f"Cluster {self.name} has the ranks 0–{len(self) - 1}, not {rank}.")
        return self.client[self.remote.table[Rank(rank)].engine]

    def __len__(self) -> int:
        return len(self.remote.table)

    def interrupt(self) -> bool:
        """Interrupt what the ranks run, as Ctrl-C would; background runs end with it.

        Returns:
            Whether anything was running.
        """
        busy = any(self.remote.busy(rank) for rank in self.remote.table)
        runs = sum(pipe.stop_runs(wait=False) for pipe in self.pipes)
        # A paused run alone leaves the ranks as it ends, and a signal would only strike that.
        if busy or not runs:
            self.remote.interrupt()
        return bool(runs) or busy

    @property
    def ranks(self) -> tuple[RankInfo, ...]:
        """Every rank as it is now, rank 0 first; none when the cluster has stopped."""
        if self.remote.ended:
            return ()
        lost = self.remote.lost()
        return tuple(self._look_at(info, lost) for _, info in sorted(self.remote.table.items()))

    def _look_at(self, info: RankInfo, lost: set[Rank]) -> RankInfo:
        state = "lost" if info.rank in lost else "busy" if self.remote.busy(info.rank) else "idle"
        memory_bytes = self._watch.memory_bytes(info)
        return replace(info, state=state, memory_bytes=memory_bytes, holds=self.holds(info.rank))

    def holds(self, rank: Rank) -> str:
        """What a rank has loaded; the models are named once there are several."""
        parts = []
        for pipe in self.pipes:
            if rank < pipe.num_ranks:
                layers = pipe.plan.shards[rank].describe()
                parts.append(f"{pipe.name}: {layers}" if len(self.pipes) > 1 else layers)
        return "; ".join(parts)

    # Without asking a rank, so that a view may look while a cell runs

    def memory_of(self, info: RankInfo) -> int:
        """A rank's memory now if it is on this machine, else what it said last."""
        return self._watch.memory_bytes(info)

    def stopped_ranks(self) -> set[Rank]:
        """Ranks whose process stands still (SIGSTOP, or a debugger's), where that can be seen."""
        return set() if self.remote.ended else self._watch.stopped()

    def why_lost(self, rank: Rank) -> str:
        """Why a rank is lost, and how its log ends."""
        return self._watch.why(rank)

    def log_tail(self, rank: Rank) -> list[str]:
        """The last lines that a rank has written itself."""
        return logs.tail(self._running.record.folder, rank)

    # --- state ---------------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether it runs and has all its ranks."""
        return not self.remote.ended and self._running.record.alive() and not self.remote.lost()

    def status(self) -> ClusterStatus:
        """What runs: the ranks, and the processes around them."""
        around = [p for p in self._running.record.processes if p.role != "engine" and p.alive]
        return ClusterStatus(
            name=self.name,
            ending=self._ending(),
            ranks=self.ranks,
            others=tuple(ProcessInfo(role=p.role, pid=p.pid, memory_bytes=p.memory_bytes()) for p in around),
        )

    def logs(self, rank: int | None = None) -> logs.LogText:
        """What the ranks, mpirun and the controller have written; or one rank alone.

        Raises:
            OptionError: There is no such rank.
        """
        if self._stopped_logs is not None:
            return self._stopped_logs
        ranks = sorted(self.remote.table) if rank is None else [Rank(rank)]
        if rank is not None and rank not in self.remote.table:
            raise OptionError(
                f"Cluster {self.name} has no rank {rank}; it has 0–{len(self) - 1}.",
                "Type: %mlx_cluster logs, for all of them.",
            )
        return logs.collect(self._running.record.folder, ranks, all_processes=rank is None)

    def show(self) -> None:
        """Open the view of this cluster in the notebook: a card for each rank, and buttons."""
        from mlx_nb.client.cluster_view import show_cluster  # IPython's display, which a script does not need

        show_cluster(self)

    def __repr__(self) -> str:
        ranks = () if self.remote.ended else self.ranks
        return str(ClusterStatus(name=self.name, ending=self._ending(), ranks=ranks))

    @property
    def _mine(self) -> bool:
        return self._running.record.client.pid == self._pid

    def _ending(self) -> str:
        if not self._mine:
            return f"ends with kernel {self._running.record.client.pid}"
        if self.spec.keep_s:
            return f"ends {format_keep(self.spec.keep_s)} after this kernel"
        return "ends with this kernel"


def _reconnect(record: records.Record) -> Running:
    """Connect to a cluster by its record; if its kernel is gone, it becomes ours."""
    if not record.client.alive:
        record = records.adopt(record.path, identify(role="client")) or record
    try:
        client = connect(record.folder, record.name, ATTACH_TIMEOUT_S)
    except (OSError, ValueError, TimeoutError) as error:
        raise ClusterError(
            f"Cluster {record.name} does not answer: {error}.", "Type: %mlx_cluster start"
        ) from error
    return Running(record, client=client, table={info.rank: info for info in record.ranks})


def _ownerless(found: Sequence[records.Record]) -> list[records.Record]:
    return [record for record in found if not record.client.alive]


def _activate(client: ipp.Client) -> None:
    """Let ``%%px`` talk to this cluster, if there is an IPython shell."""
    from IPython.core.getipython import get_ipython

    if get_ipython() is not None:
        client.activate()
