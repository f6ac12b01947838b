"""Four Mac minis joined by Thunderbolt cables, one rank on each: the profile for two, with two more hosts.

    %mlx_cluster start --profile minis4                      in a notebook on the first mini
    ipcluster start --profile-dir profiles/profile_minis4    in a terminal there

What to do before the first start stands in `profiles/profile_minis`, and so do the network and the path of the virtual
environment. For addresses of your own: `%mlx_cluster profiles new NAME --hosts a,b,c,d`.
"""

from pathlib import Path

HOSTS = {f"192.168.5.{number}": 1 for number in range(1, 5)}  # address: ranks

c = get_config()  # noqa: F821 - ipyparallel provides it
load_subconfig("ipcluster_config.py", path=str(Path(__file__).parents[1] / "profile_minis"))  # noqa: F821 - and this

c.Cluster.n = sum(HOSTS.values())
flags = c.MPIEngineSetLauncher.mpi_args
flags[flags.index("--host") + 1] = ",".join(f"{address}:{ranks}" for address, ranks in HOSTS.items())
