"""Names of places in a model: what users type, made into the path that the model itself uses.

A site is a module's path as `named_modules()` prints it, with ``.input`` or ``.output``. Users may
leave leading parts away (``layers.3.mlp.output`` for ``model.layers.3.mlp.output``), use the short
names of the field (``layers.3.resid_post``), TransformerLens' spelling (``blocks.3.hook_resid_post``),
and globs.
"""

import difflib
import re
from collections.abc import Sequence

from mlx_nb.shared.errors import SiteError
from mlx_nb.shared.globs import matches
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND

# What a short name means inside a layer: candidates by the submodule's own name, first found.
_ATTENTION = ("self_attn", "attn", "attention", "linear_attn", "mixer", "temporal_block")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
SHORT_NAMES = ("resid_pre", "resid_post", "attn_out", "mlp_out")


def resolve_site(site: str, modules: Sequence[str], layer_paths: Sequence[str]) -> str:
    """The site, or glob over sites, as `Event.site` spells it.

    Args:
        site: What the user typed.
        modules: Every module path of the model.
        layer_paths: The paths of the whole layers.

    Raises:
        SiteError: The model has nothing there; the nearest name is offered.
    """
    wanted = re.sub(r"#\d+", "", site.strip())
    wanted = re.sub(r"^blocks\.([^.]+)\.hook_", r"layers.\1.", wanted)
    if wanted in (SEND, RECV, "logits"):
        return wanted
    known = _sites(modules)
    prefix = layer_paths[0].rpartition(".")[0] if layer_paths else ""  # model.layers
    expanded = _expand(wanted, prefix)
    for candidate in expanded:
        if any(matches(name, candidate) for name in known):
            return candidate
    raise SiteError(f"No site '{site}'.", _suggest(expanded[0], known, prefix))


def complete_site(typed: str, modules: Sequence[str], layer_paths: Sequence[str]) -> list[str]:
    """What may follow: the next part of every site that begins so, as completion of file names does it.

    >>> complete_site("layers.0.m", ["model.layers.0", "model.layers.0.mlp"], ["model.layers.0"])
    ['layers.0.mlp', 'layers.0.mlp_out']
    """
    known = _sites(modules) + [f"{path}.{name}" for path in layer_paths for name in SHORT_NAMES]
    short = [short_spelling(name, layer_paths) for name in known] + [SEND, RECV, "logits"]
    full = known if not any(name.startswith(typed) for name in short) else []
    depth = typed.count(".") + 1
    parts = [".".join(name.split(".")[:depth]) for name in short + full if name.startswith(typed)]
    return list(dict.fromkeys(parts))


def short_spelling(path: str, layer_paths: Sequence[str]) -> str:
    """A module path with what stands before its layers left away: ``layers.3.mlp``."""
    prefix = layer_paths[0].rpartition(".")[0].rpartition(".")[0] if layer_paths else ""
    return path.removeprefix(f"{prefix}.") if prefix else path


def _sites(modules: Sequence[str]) -> list[str]:
    return [f"{path}.{kind}" for path in modules if path for kind in (INPUT, OUTPUT)]


def _expand(wanted: str, prefix: str) -> list[str]:
    """Every full spelling that a short one may mean, the likeliest first."""
    head, _, tail = wanted.rpartition(".")
    means = {
        "resid_pre": [f"{head}.{INPUT}"],
        "resid_post": [f"{head}.{OUTPUT}"],
        "attn_out": [f"{head}.{name}.{OUTPUT}" for name in _ATTENTION],
        "mlp_out": [f"{head}.{name}.{OUTPUT}" for name in _MLP],
    }
    plain = means.get(tail, [wanted if tail in (INPUT, OUTPUT) else f"{wanted}.{OUTPUT}"])
    parent = prefix.rpartition(".")[0]
    starts = [""] + ([f"{parent}."] if parent else []) + ["model."]
    return [start + name for name in plain for start in starts]


def _suggest(wanted: str, known: Sequence[str], prefix: str) -> str:
    """The nearest module, with the kind that was asked for: kinds alone are alike everywhere."""
    parent = prefix.rpartition(".")[0]
    stem, _, kind = wanted.removeprefix(f"{parent}.").rpartition(".")
    modules = [name.rpartition(".")[0].removeprefix(f"{parent}." if parent else "") for name in known]
    near = difflib.get_close_matches(stem, modules, n=1, cutoff=0.5)
    if not near:
        return "Type: dbg.where() to see the modules here."
    head, _, tail = near[0].rpartition(".")
    alias = f"{head}.attn_out" if tail in _ATTENTION else f"{head}.mlp_out" if tail in _MLP else ""
    also = f" (alias {alias})" if alias and kind == OUTPUT else ""
    return f"Did you mean {near[0]}.{kind}{also}?"
