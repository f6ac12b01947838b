"""``%mlx_cluster``: the life of the cluster."""

import argparse

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand
from IPython.display import display

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.current import current
from mlx_nb.client.magics.parsing import Parser, one_line_errors, one_of, parse_words
from mlx_nb.client.magics.state import need_cluster, offer
from mlx_nb.client.new_profile import write_profile
from mlx_nb.client.options import add_cluster_options
from mlx_nb.client.profiles import CONFIG_FILE, list_profiles
from mlx_nb.client.progress import ProgressLine
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.text import format_table

SUBCOMMANDS = ("start", "attach", "status", "logs", "restart", "stop", "profiles", "interrupt")

TAKES_A_WORD = ("attach", "logs", "profiles")

_HELP = """start, look at and stop the cluster

  start      start one, or say what runs      --ranks N --profile NAME --hosts a,b --keep 8h
  attach     connect to a cluster that was kept        [NAME]
  status     every rank and every process
  logs       what the ranks have written               [RANK]
  restart    the same cluster again, with the same model
  stop       end every process of it
  profiles   the profiles that can be started; `profiles new NAME --hosts a,b` writes one
  interrupt  stop what the ranks run, as Ctrl-C would"""


def cluster_parser() -> Parser:
    parser = Parser("%mlx_cluster", _HELP)
    parser.add_argument("subcommand", nargs="?", default="status", help="one of the above (status)")
    parser.add_argument("argument", nargs="?", help="a cluster's name, a rank, or `new`")
    parser.add_argument("name", nargs="?", help="a new profile's name")
    add_cluster_options(parser)
    group = parser.add_argument_group("a new profile")
    group.add_argument("--network", help="the hosts' network or interface (the 256 addresses around theirs)")
    group.add_argument("--environment", help="the virtual environment on every host (this one)")
    return parser


@magics_class
class ClusterMagics(Magics):
    """The cluster's magic."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_cluster(self, line: str) -> object:
        """Start, look at and stop the cluster: see ``%mlx_cluster --help``."""
        found = parse_words(cluster_parser(), line)
        one_of(found.subcommand, SUBCOMMANDS, "%mlx_cluster")
        extra = found.name if found.subcommand in TAKES_A_WORD else found.argument
        if extra is not None and found.subcommand != "profiles":
            raise OptionError(f"'{extra}' is one word too many.", "Type: %mlx_cluster --help")
        match found.subcommand:
            case "start":
                with ProgressLine() as progress:
                    return Cluster.start(
                        found.ranks, found.hosts, found.profile, found.keep, progress=progress.tell
                    )
            case "attach":
                return self._attach(found.argument)
            case "status":
                return need_cluster().status()
            case "logs":
                return need_cluster().logs(_rank(found.argument))
            case "restart":
                return self._restart()
            case "stop":
                name = need_cluster().name
                need_cluster().stop()
                print(f"Cluster {name} has stopped.")
            case "interrupt":
                print("Interrupted." if need_cluster().interrupt() else "Nothing was running.")
            case "profiles":
                self._profiles(found)
        return None

    def _profiles(self, found: argparse.Namespace) -> None:
        if found.argument is None:
            rows = [[name, str(folder)] for name, folder in list_profiles().items()]
            print(format_table([["profile", "folder"], *rows]))
            return
        one_of(found.argument, ("new",), "%mlx_cluster profiles")
        folder = write_profile(found.name or "", found.hosts or (), found.network, found.environment)
        print(f"Written: {folder / CONFIG_FILE}")
        print(f"Look it through, then type: %mlx_doctor --profile {found.name}")
        print(f"and: %mlx_cluster start --profile {found.name}")

    def _attach(self, name: str | None) -> object:
        cluster = Cluster.attach(name)
        if current.pipe is None:
            return cluster
        offer(self.shell, "pipe", current.pipe)
        display(cluster)
        return current.pipe

    def _restart(self) -> object:
        cluster, pipe = need_cluster(), current.pipe
        with ProgressLine() as progress:
            cluster.restart(progress=progress.tell)
            if pipe is not None and pipe.cluster is cluster:
                pipe.load_there(progress.on_event)
        return current.pipe or cluster


def _rank(text: str | None) -> int | None:
    if text is not None and not text.isdecimal():
        raise OptionError(f"'{text}' is not a rank.", "Type: %mlx_cluster logs 0")
    return int(text) if text is not None else None
