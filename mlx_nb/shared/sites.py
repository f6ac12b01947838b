"""Names of places in a model: what users type, made into the path that the model itself uses.

A site is a module's path as `named_modules()` prints it, with ``.input`` or ``.output``. Users may
leave leading parts away (``layers.3.mlp.output`` for ``model.layers.3.mlp.output``), use the short
names of the field (``layers.3.resid_post``), TransformerLens' spelling (``blocks.3.hook_resid_post``),
and globs. As there, ``q`` and ``k`` are what the projections return, ``rot_q`` and ``rot_k`` what attention is given.
"""

import difflib
import re
from collections.abc import Sequence

from mlx_nb.shared.attention import KINDS, PATTERN, SCORES, SDPA, K, Q, is_attention
from mlx_nb.shared.errors import SiteError
from mlx_nb.shared.globs import matches
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND

# What a short name means inside a layer: candidates by the submodule's own name, first found.
_ATTENTION = ("self_attn", "attn", "attention", "linear_attn", "mixer", "temporal_block")
_WITH_HEADS = ("self_attn", "attn", "attention")
_MLP = ("mlp", "feed_forward", "ffn", "block_sparse_moe", "moe")
_BEFORE_MLP = (
    "pre_feedforward_layernorm",
    "pre_mlp_layernorm",
    "post_attention_layernorm",
    "ffn_norm",
    "ln_2",
)
_AFTER_MLP = "post_feedforward_layernorm"
_PROJECTIONS = {"q": "q_proj", "k": "k_proj", "v": "v_proj"}
SHORT_NAMES = (
    "resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "q", "k", "v", "z", "rot_q", "rot_k", SCORES, PATTERN
)  # fmt: skip
_ATTENDS = {PATTERN: PATTERN, SCORES: SCORES, "rot_q": Q, "rot_k": K}

# TransformerLens' names that are none of a layer's.
_LENS = {"hook_embed": "embed_tokens.output", "ln_final.hook_normalized": "norm.output"}


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
    wanted = _LENS.get(wanted, wanted)
    wanted = re.sub(r"^blocks\.([^.]+)\.(?:attn\.|mlp\.)?hook_(?:attn_(?=scores))?", r"layers.\1.", wanted)
    if wanted in (SEND, RECV, "logits"):
        return wanted
    known = _sites(modules)
    prefix = layer_paths[0].rpartition(".")[0] if layer_paths else ""  # model.layers
    tail = wanted.rpartition(".")[2]
    around = wanted.rpartition(".")[0]
    if tail in _ATTENDS or (tail in KINDS and around.endswith(f".{SDPA}")):
        around = around.removesuffix(f".{SDPA}")
        return _inside_attention(site, around, _ATTENDS.get(tail, tail), modules, layer_paths)
    expanded = _expand(wanted, prefix, post_norm=_is_post_norm(modules))
    for candidate in expanded:
        if any(matches(name, candidate) for name in known):
            return candidate
    if tail in SHORT_NAMES:
        number = re.search(r"\.(\d+)\.[^.]+$", wanted)
        if number and int(number[1]) >= len(layer_paths):
            raise SiteError(f"No site '{site}'.", f"The layers are 0–{len(layer_paths) - 1}.")
        looked = ", ".join(dict.fromkeys(name.split(".")[-2] for name in expanded))
        raise SiteError(
            f"'{site}' is not observable in this model: its layers have none of {looked}.",
            "Type: pipe.sites() for what they have.",
        )
    raise SiteError(f"No site '{site}'.", _suggest(expanded[0], known, prefix))


def _inside_attention(
    site: str, around: str, kind: str, modules: Sequence[str], layer_paths: Sequence[str]
) -> str:
    """A place inside attention: `around` is the module that attends, or the layer that it lies in.

    Raises:
        SiteError: Nothing there calls the shared function.
    """
    calls = [path for path in modules if is_attention(path)]
    if not calls:
        why = "this model has no attention."
        if any(path.rpartition(".")[2] in _WITH_HEADS for path in modules):
            why = (
                "this model's attention does not call mlx-lm's shared scaled_dot_product_attention, "
                "and nobody sees what its own makes."
            )
        raise SiteError(f"'{site}' is not observable: {why}", "Type: pipe.sites() for what there is.")
    prefix = layer_paths[0].rpartition(".")[0] if layer_paths else ""
    # Where in a layer it is called: as a rule the same in all; in none but the second part of some.
    ways = [
        path.removeprefix(f"{layer}.")
        for path in calls
        for layer in layer_paths
        if path.startswith(f"{layer}.")
    ]
    for start in _starts(prefix):
        direct = f"{start}{around}.{SDPA}"
        if any(matches(path, direct) for path in calls):
            return f"{direct}.{kind}"
        found = [
            way for way in dict.fromkeys(ways) if any(matches(p, f"{start}{around}.{way}") for p in calls)
        ]
        if found:
            return f"{start}{around}.{found[0] if len(found) == 1 else f'**.{SDPA}'}.{kind}"
    number = re.search(r"\.(\d+)$", around)
    if number and int(number[1]) >= len(layer_paths):
        raise SiteError(f"No site '{site}'.", f"The layers are 0–{len(layer_paths) - 1}.")
    those = [
        place for place, layer in enumerate(layer_paths) if any(p.startswith(f"{layer}.") for p in calls)
    ]
    raise SiteError(
        f"'{site}' is not observable: nothing there calls mlx-lm's shared scaled_dot_product_attention.",
        f"These layers do: {', '.join(map(str, those))}.",
    )


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


def alias_of(site: str, layer_paths: Sequence[str]) -> str:
    """The short name of a site; empty if it has none.

    >>> alias_of("model.layers.0.output", ["model.layers.0"])
    'resid_post'
    >>> alias_of("model.layers.0.mlp.output", ["model.layers.0"])
    'mlp_out'
    """
    module, _, kind = site.rpartition(".")
    if module in layer_paths:
        return {INPUT: "resid_pre", OUTPUT: "resid_post"}.get(kind, "")
    if is_attention(module):
        return {place: alias for alias, place in _ATTENDS.items()}.get(kind, "")
    layer, _, name = module.rpartition(".")
    if layer not in layer_paths or kind != OUTPUT:
        return ""
    return "attn_out" if name in _ATTENTION else "mlp_out" if name in _MLP else ""


def _sites(modules: Sequence[str]) -> list[str]:
    return [
        f"{path}.{kind}"
        for path in modules
        if path
        for kind in (KINDS if is_attention(path) else (INPUT, OUTPUT))
    ]


def _starts(prefix: str) -> list[str]:
    """What users leave away before a path, given that of the layers."""
    parent = prefix.rpartition(".")[0]
    return ["", *([f"{parent}."] if parent else []), "model."]


def _is_post_norm(modules: Sequence[str]) -> bool:
    """Whether layers normalise only behind their blocks, so that a block takes the residual stream itself."""
    names = {path.rpartition(".")[2] for path in modules}
    return _AFTER_MLP in names and not names & {"pre_feedforward_layernorm", "pre_mlp_layernorm"}


def _expand(wanted: str, prefix: str, *, post_norm: bool = False) -> list[str]:
    """Every full spelling that a short one may mean, the likeliest first."""
    head, _, tail = wanted.rpartition(".")
    middle = _MLP if post_norm else _BEFORE_MLP
    means = {
        "resid_mid": [f"{head}.{name}.{INPUT}" for name in middle],
        "z": [
            f"{head}.{name}.{leaf}.{INPUT}"
            for leaf in ("o_proj", "out_proj", "dense")
            for name in _WITH_HEADS
        ],
        **{
            short: [f"{head}.{name}.{leaf}.{OUTPUT}" for name in _ATTENTION]
            for short, leaf in _PROJECTIONS.items()
        },
        "resid_pre": [f"{head}.{INPUT}"],
        "resid_post": [f"{head}.{OUTPUT}"],
        "attn_out": [f"{head}.{name}.{OUTPUT}" for name in _ATTENTION],
        "mlp_out": [f"{head}.{name}.{OUTPUT}" for name in _MLP],
    }
    plain = means.get(tail, [wanted if tail in (INPUT, OUTPUT) else f"{wanted}.{OUTPUT}"])
    return [start + name for name in plain for start in _starts(prefix)]


def _beyond(stem: str, modules: Sequence[str]) -> str:
    """What to say of a layer that the model does not have."""
    number = re.search(r"\blayers\.(\d+)", stem)
    known = [int(found[1]) for name in modules if (found := re.search(r"\blayers\.(\d+)", name))]
    if not number or not known or int(number[1]) <= max(known):
        return ""
    return f"The layers are 0–{max(known)}."


def _suggest(wanted: str, known: Sequence[str], prefix: str) -> str:
    """The nearest module, with the kind that was asked for: kinds alone are alike everywhere."""
    parent = prefix.rpartition(".")[0]
    stem, _, kind = wanted.removeprefix(f"{parent}.").rpartition(".")
    modules = [name.rpartition(".")[0].removeprefix(f"{parent}." if parent else "") for name in known]
    if beyond := _beyond(stem, modules):
        return beyond
    near = difflib.get_close_matches(stem, modules, n=1, cutoff=0.5)
    if not near:
        return "Type: pipe.sites() to see them all."
    head, _, tail = near[0].rpartition(".")
    alias = f"{head}.attn_out" if tail in _ATTENTION else f"{head}.mlp_out" if tail in _MLP else ""
    also = f" (alias {alias})" if alias and kind == OUTPUT else ""
    return f"Did you mean {near[0]}.{kind}{also}?"
