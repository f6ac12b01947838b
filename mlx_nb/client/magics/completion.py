"""Tab in a magic's line: subcommands, models, profiles, views, sites, options.

IPython's older hook lets the other matchers answer too: Tab after ``--`` listed Python's builtins.
A matcher of its own says that a magic's line is no Python, and which characters it replaces.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

from IPython.core.completer import CompletionContext, SimpleCompletion, SimpleMatcherResult, context_matcher

from mlx_nb.client.current import current
from mlx_nb.client.going_back import BACKWARDS
from mlx_nb.client.magics.bench import bench_parser
from mlx_nb.client.magics.breaks import break_parser
from mlx_nb.client.magics.chat import chat_parser
from mlx_nb.client.magics.check import check_parser
from mlx_nb.client.magics.cluster import SUBCOMMANDS as CLUSTER
from mlx_nb.client.magics.cluster import cluster_parser
from mlx_nb.client.magics.diff import diff_parser
from mlx_nb.client.magics.doctor import doctor_parser
from mlx_nb.client.magics.model import generate_parser, load_parser, reload_parser
from mlx_nb.client.magics.parsing import Parser
from mlx_nb.client.magics.patches import patch_parser
from mlx_nb.client.magics.step import SUBCOMMANDS as STEP
from mlx_nb.client.magics.step import show_parser, step_parser
from mlx_nb.client.magics.traces import trace_parser
from mlx_nb.client.profiles import list_profiles
from mlx_nb.client.show import VIEWS
from mlx_nb.shared.breaks import STATISTICS
from mlx_nb.shared.models import KNOWN_NAMES
from mlx_nb.shared.sites import complete_site

_LINE = re.compile(r"\s*(?P<magic>%{0,2}mlx_\w+)(?P<rest>\s.*)?$", re.DOTALL)

_PARSERS: dict[str, Callable[[], Parser]] = {
    "mlx_cluster": cluster_parser,
    "mlx_load": load_parser,
    "mlx_reload": reload_parser,
    "mlx_generate": generate_parser,
    "mlx_chat": chat_parser,
    "mlx_step": step_parser,
    "mlx_show": show_parser,
    "mlx_bench": bench_parser,
    "mlx_break": break_parser,
    "mlx_trace": trace_parser,
    "mlx_check": check_parser,
    "mlx_diff": diff_parser,
    "mlx_patch": patch_parser,
    "mlx_doctor": doctor_parser,
}


def _breakpoints() -> Sequence[str]:
    return [str(one.id) for one in current.pipe.breakpoints] if current.pipe else ()


_VALUES: dict[str, Callable[[], Sequence[str]]] = {
    "--if": lambda: ("nonfinite", "shape", "dtype", *(f"{name} >" for name in STATISTICS)),
    "--delete": _breakpoints,
    "--enable": _breakpoints,
    "--disable": _breakpoints,
    "--profile": lambda: tuple(list_profiles()),
    "--split": lambda: ("even", "memory"),
    "--dtype": lambda: ("float32", "bfloat16", "float16", "native"),
}


def candidates(line: str) -> Sequence[str]:
    """What may stand where the cursor is, given the line up to it."""
    words = line.split()
    if not words:
        return ()
    before, typed = (words, "") if line[-1].isspace() else (words[:-1], words[-1])
    magic = words[0].lstrip("%")
    if before and before[-1] == "--sites":
        return _sites(typed)
    if before and before[-1] in _VALUES:
        return _VALUES[before[-1]]()
    if typed.startswith("-") and (magic != "mlx_step" or words[0].startswith("%%")):
        return _PARSERS[magic]().option_names() if magic in _PARSERS else ()
    first = len(before) == 1
    if magic == "mlx_step" and before[1:2] in (["until"], ["unt"]):
        return (*_sites(typed), "layer=", "rank=", "token=")
    if magic == "mlx_step" and before[1:] in (["back"], ["b"]):
        return BACKWARDS
    if before[1:] in (["tensor"], ["shapes"]) and magic == "mlx_show":
        return _sites(typed)
    if magic in ("mlx_break", "mlx_patch") and first:
        return _sites(typed)
    table: dict[str, Sequence[str]] = {"mlx_cluster": CLUSTER, "mlx_load": KNOWN_NAMES, "mlx_show": VIEWS}
    if not words[0].startswith("%%"):
        table["mlx_step"] = STEP
    return table.get(magic, ()) if first else ()


def _sites(typed: str) -> Sequence[str]:
    if current.pipe is None:
        return ()
    first = current.pipe.shards[0]
    return complete_site(typed, first.places, first.layer_paths)


@context_matcher()
def magic_matcher(context: CompletionContext) -> SimpleMatcherResult:
    """Answers for a magic's line alone, and then nobody else does."""
    line = context.line_with_cursor[: context.cursor_position]
    found = _LINE.match(line)
    if not found or found["rest"] is None:  # the magic's own name is IPython's to complete
        return {"completions": []}
    typed = "" if line[-1].isspace() else line.split()[-1]
    matches = [SimpleCompletion(word, type="magic") for word in candidates(line) if word.startswith(typed)]
    folder = not matches and found["magic"].endswith(
        ("mlx_load", "mlx_reload")
    )  # a path: IPython completes those well
    return {"completions": matches, "matched_fragment": typed, "suppress": not folder, "ordered": True}


def install_completion(ip: Any) -> None:
    """Add our matcher to the shell's completer."""
    ip.Completer.custom_matchers.append(magic_matcher)


def remove_completion(ip: Any) -> None:
    """Take our matcher away again."""
    if magic_matcher in ip.Completer.custom_matchers:
        ip.Completer.custom_matchers.remove(magic_matcher)
