"""Two Mac minis joined by a Thunderbolt cable: one rank on each.

    %mlx_cluster start --profile minis                      in a notebook on the first mini
    ipcluster start --profile-dir profiles/profile_minis    in a terminal there

Before the first start, on both minis:

- System Settings > Network > Thunderbolt Bridge > Configure IPv4: Manually, with the addresses below.
- Python, mlx_nb and the model's files at the same paths.
- From the first: `ssh-copy-id USER@192.168.5.2`, so that mpirun can log in without a password.

What the ranks send each other is not encrypted, nor is the key that lets them register: keep it on the cable.
"""

# ---- Everything that is about your machines stands here ---------------------------------------------
# Address on the cable: ranks. The notebook runs on the first.
HOSTS = {"192.168.5.1": 1, "192.168.5.2": 1}
NETWORK = "192.168.5.0/24"  # the cable's network; an interface name such as "bridge0" works as well
ENVIRONMENT = "/opt/mlx"  # the virtual environment, at the same path on every mini
# -----------------------------------------------------------------------------------------------------

c = get_config()  # noqa: F821 - ipyparallel provides it

here = next(iter(HOSTS))

c.Cluster.n = sum(HOSTS.values())
c.Cluster.engine_launcher_class = "mpi"
c.MPIEngineSetLauncher.mpi_cmd = [f"{ENVIRONMENT}/bin/mpiexec"]
c.MPIEngineSetLauncher.engine_cmd = [f"{ENVIRONMENT}/bin/python", "-m", "ipyparallel.engine"]

c.MPIEngineSetLauncher.mpi_args = [
    # Which hosts, and how many ranks on each. Addresses, not names: `.local` names may lead to the Wi-Fi.
    "--host",
    ",".join(f"{address}:{ranks}" for address, ranks in HOSTS.items()),
    # Where the other mini finds Open MPI.
    "--prefix",
    ENVIRONMENT,
    # The engines learn from these where the controller is; without them the remote one waits and dies.
    "-x",
    "IPP_CONNECTION_INFO",
    "-x",
    "IPP_CLUSTER_ID",
    # macOS asks before a program may use the local network, and refuses those without a session.
    "--leave-session-attached",
    # Send over the cable. Left alone, Open MPI may choose the Wi-Fi, and be 3 to 10 times slower.
    "--mca",
    "btl_tcp_if_include",
    NETWORK,
    "--prtemca",
    "prte_if_include",
    NETWORK,
    # A rank that dies leaves the others alive, and what they hold can still be looked at.
    "--with-ft",
    "ulfm",
    # Bound, the ranks of both minis would sit on "core 0", and a hop would take 4 ms instead of 0.02.
    "--bind-to",
    "none",
    "--mca",
    "mpi_yield_when_idle",
    "1",
]

# The controller listens on the cable, where the other mini's engine can reach it.
c.Cluster.controller_ip = here
c.Cluster.controller_location = here
c.LocalControllerLauncher.controller_args = [
    # What you type and what comes back travels encrypted; between the ranks nothing is.
    "--IPController.enable_curve=True",
    # Fixed ports, so that a firewall can be told.
    "--IPController.ports=10101-10140",
    "--HeartMonitor.period=250",
    # A mini that slept for 30 s may come back; one that was dropped never registers again.
    "--HeartMonitor.max_heartmonitor_misses=120",
    "--IPController.use_threads=True",
]
c.MPIEngineSetLauncher.engine_args = [
    "--IPEngine.timeout=30",
    # Let the controller sleep for an hour, as a laptop does at lunch: by default the engines leave after 37 s.
    "--IPEngine.max_heartbeat_misses=4800",
]

c.Cluster.delay = 0
c.Cluster.engine_timeout = 60
