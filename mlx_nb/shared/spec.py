"""The cluster asked for, and what can be said about the one that runs."""

import re
from dataclasses import dataclass, field

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.ids import EngineId, Rank
from mlx_nb.shared.text import format_size, format_table

_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}


def parse_duration(text: str | float | bool | None) -> float:
    """Seconds in a keep time as users type it; 0 for nothing.

    >>> parse_duration("8h"), parse_duration("1h30m"), parse_duration(90), parse_duration(False)
    (28800.0, 5400.0, 90.0, 0.0)

    Raises:
        OptionError: It is no duration, or negative.
    """
    fix = "Type a time such as 8h, 30m or 90s: %mlx_cluster start --keep 8h"
    if text is None or text is False:
        return 0.0
    if text is True:
        raise OptionError("A cluster cannot be kept without saying for how long.", fix)
    if isinstance(text, str):
        compact = text.replace(" ", "").lower()
        parts = re.findall(r"(\d+(?:\.\d+)?)(min|[smhd]?)", compact)
        if not parts or "".join(number + unit for number, unit in parts) != compact:
            raise OptionError(f"'{text}' is not a length of time.", fix)
        return sum(float(number) * _UNITS_S[unit or "s"] for number, unit in parts)
    if not 0 <= text < float("inf"):
        raise OptionError(f"{text} is not a length of time.", fix)
    return float(text)


def format_keep(seconds: float) -> str:
    """A keep time as it would be typed.

    >>> format_keep(28800), format_keep(5400), format_keep(90), format_keep(86400)
    ('8h', '1h30m', '1m30s', '24h')
    """
    hours, rest = divmod(round(seconds), 3600)
    minutes, left = divmod(rest, 60)
    return "".join(f"{n}{unit}" for n, unit in ((hours, "h"), (minutes, "m"), (left, "s")) if n) or "0s"


def slots_of(host: str) -> int:
    """How many ranks a host takes: the number after its colon, else 1.

    >>> slots_of("192.168.5.1:2"), slots_of("192.168.5.1")
    (2, 1)

    Raises:
        OptionError: What follows the colon is no positive number.
    """
    name, _, slots = host.partition(":")
    if not name or (slots and not (slots.isdecimal() and int(slots) > 0)) or host.endswith(":"):
        raise OptionError(
            f"'{host}' is not a host.", "Type an address, or an address and its ranks: 192.168.5.1:1"
        )
    return int(slots or 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterSpec:
    """The cluster asked for. Two specs are equal if the same cluster would satisfy both.

    Attributes:
        ranks: How many ranks.
        hosts: Where they run, each ``address`` or ``address:slots``; empty for this machine alone.
        profile: The profile that was named, if any.
        keep_s: How long the cluster outlives its kernel. No wish about the cluster itself, so not compared.
    """

    ranks: int = 2
    hosts: tuple[str, ...] = ()
    profile: str | None = None
    keep_s: float = field(default=0.0, compare=False)

    def __post_init__(self) -> None:
        if self.ranks < 1:
            raise OptionError(
                f"A cluster has one rank or more, not {self.ranks}.", "Type: %mlx_cluster start --ranks 2"
            )
        slots = sum(map(slots_of, self.hosts))
        if self.hosts and self.ranks > slots:
            shown = ",".join(f"{host.partition(':')[0]}:{slots_of(host)}" for host in self.hosts)
            raise OptionError(
                f"{self.ranks} ranks do not fit on {','.join(self.hosts)}, which offer {slots}.",
                f"Give the ranks per host, such as --hosts {shown}, or type --ranks {slots}.",
            )

    @property
    def command(self) -> str:
        """What to type to get this cluster."""
        words = ["%mlx_cluster start", f"--ranks {self.ranks}"]
        words += [f"--profile {self.profile}"] if self.profile else []
        words += [f"--hosts {','.join(self.hosts)}"] if self.hosts else []
        words += [f"--keep {format_keep(self.keep_s)}"] if self.keep_s else []
        return " ".join(words)

    def describe(self) -> str:
        """The wishes in words: ``2 ranks on this machine``."""
        where = f"on {', '.join(self.hosts)}" if self.hosts else "on this machine"
        with_profile = f" with profile {self.profile}" if self.profile else ""
        return f"{self.ranks} rank{'s' * (self.ranks != 1)} {where}{with_profile}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Hello:
    """What a rank says about itself when it is asked for the first time.

    Attributes:
        rank, world_size: Its place in the MPI communicator.
        pid, created_s: Its process.
        host: Its host name.
        versions: Of python, mlx_nb, mlx and mlx_lm; these must agree on all ranks.
        memory_bytes: Resident memory.
    """

    rank: Rank
    world_size: int
    pid: int
    created_s: float
    host: str
    versions: dict[str, str]
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RankInfo:
    """One rank, as the status table shows it.

    Attributes:
        rank: Its place in the pipeline.
        engine: ipyparallel's number for it, equal to the rank only by luck.
        host: The host it runs on.
        pid, created_s: Its process there.
        memory_bytes: Resident memory.
        state: ``idle``, ``busy`` or ``lost``.
        holds: What it has loaded, such as ``layers 0–14``; empty with no model.
    """

    rank: Rank
    engine: EngineId
    host: str
    pid: int
    created_s: float
    memory_bytes: int = 0
    state: str = "idle"
    holds: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessInfo:
    """One of the processes around the ranks: mpirun, controller, nanny or watchdog."""

    role: str
    pid: int
    memory_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterStatus:
    """What runs, in a table.

    Attributes:
        name: The cluster's name.
        ending: When it ends, as a phrase: ``ends with this kernel``.
        ranks: One record per rank, rank 0 first; none when the cluster has stopped.
        others: The processes around them.
    """

    name: str
    ending: str
    ranks: tuple[RankInfo, ...] = ()
    others: tuple[ProcessInfo, ...] = ()

    @property
    def title(self) -> str:
        """The first line."""
        if not self.ranks:
            return f"Cluster {self.name} · stopped"
        hosts = len({info.host for info in self.ranks})
        return (
            f"Cluster {self.name} · {len(self.ranks)} rank{'s' * (len(self.ranks) != 1)}"
            f" · {hosts} host{'s' * (hosts != 1)} · {self.ending}"
        )

    def rows(self) -> list[list[str]]:
        """The table, its head first."""
        # A cluster with no model has nothing to say in the last column.
        holding = any(r.holds for r in self.ranks)
        head = [["rank", "engine", "host", "pid", "memory", "state", *(["holds"] if holding else [])]]
        return head + [
            [str(r.rank), str(r.engine), r.host, str(r.pid), format_size(r.memory_bytes), r.state, r.holds]
            for r in self.ranks
        ]

    @property
    def others_text(self) -> str:
        """The processes around the ranks, by role, on one line."""
        total = sum(p.memory_bytes for p in self.others)
        roles: dict[str, list[str]] = {}
        for process in self.others:
            roles.setdefault(process.role, []).append(f"{process.pid} ({format_size(process.memory_bytes)})")
        listed = " · ".join(f"{role} {', '.join(pids)}" for role, pids in roles.items())
        return f"{listed} · these together {format_size(total)}" if listed else ""

    def __str__(self) -> str:
        """Title, ranks, and the processes around them."""
        if not self.ranks:
            return self.title
        lines = [self.title, format_table(self.rows())]
        return "\n".join([*lines, f" {self.others_text}"] if self.others else lines)

    __repr__ = __str__
