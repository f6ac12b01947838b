"""Tab in a magic's line: subcommands, models, profiles, views, options."""

from collections.abc import Callable, Sequence
from typing import Any

from mlx_nb.client.magics.cluster import SUBCOMMANDS as CLUSTER
from mlx_nb.client.magics.step import SUBCOMMANDS as STEP
from mlx_nb.client.profiles import list_profiles
from mlx_nb.client.show import VIEWS
from mlx_nb.shared.models import KNOWN_NAMES

_GENERATE = (
    "--max-tokens",
    "--temp",
    "--top-p",
    "--top-k",
    "--min-p",
    "--seed",
    "--repetition-penalty",
    "--raw",
    "-o",
)
_CLUSTER_OPTIONS = ("--ranks", "--profile", "--hosts", "--keep")
_LOAD_OPTIONS = ("--split", "--dtype", "--ranks", "--trust-remote-code")


def candidates(line: str) -> Sequence[str]:
    """What may stand where the cursor is, given the line up to it."""
    words = line.split()
    if not words:
        return ()
    before = words if line.endswith(" ") else words[:-1]
    magic = words[0].lstrip("%")
    if before and before[-1] == "--profile":
        return tuple(list_profiles())
    if before and before[-1] == "--split":
        return ("even", "memory")
    if before and before[-1] == "--dtype":
        return ("float32", "bfloat16", "float16", "native")
    first = len(before) == 1
    table: dict[str, Callable[[], Sequence[str]]] = {
        "mlx_cluster": lambda: CLUSTER if first else _CLUSTER_OPTIONS,
        "mlx_load": lambda: (*KNOWN_NAMES, *_LOAD_OPTIONS) if first else _LOAD_OPTIONS,
        "mlx_generate": lambda: _GENERATE,
        "mlx_step": lambda: STEP if first else (),
        "mlx_show": lambda: VIEWS if first else (),
    }
    return table.get(magic, tuple)()


def _complete(_shell: Any, event: Any) -> list[str]:
    return [word for word in candidates(event.line[: len(event.line)]) if word.startswith(event.symbol)]


def install_completion(ip: Any) -> None:
    """Hook the completer; IPython keeps a table by the line's first word."""
    ip.set_hook("complete_command", _complete, re_key=r"%?%?mlx_\w+")


def remove_completion(ip: Any) -> None:
    """Take our hook out of the completer's table."""
    table = ip.strdispatchers.get("complete_command")
    if table is not None:
        table.regexs = {key: chain for key, chain in table.regexs.items() if "mlx_" not in key.pattern}
