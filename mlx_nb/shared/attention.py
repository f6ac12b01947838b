"""Places inside attention: what mlx-lm's shared attention function is given, and what it makes of it.

It is a function, not a module: its places stand behind the path of the module that calls it, as
``model.layers.3.self_attn.sdpa.pattern``.
"""

from mlx_nb.shared.globs import matches

SDPA = "sdpa"
Q, K, V, SCORES, PATTERN, Z = "q", "k", "v", "scores", "pattern", "z"
KINDS = (Q, K, V, SCORES, PATTERN, Z)
"""In the order in which they come: queries, keys and values as they are given (rotated, cached keys included), scores
and pattern as they follow from them, and what the function returns, head by head."""

MADE_AGAIN = (SCORES, PATTERN)
"""What the fused function never has as a value: computed again in float32."""

AXES = {
    Q: ("B", "H", "L", ""),
    K: ("B", "K", "S", ""),
    V: ("B", "K", "S", ""),
    SCORES: ("B", "H", "L", "S"),
    PATTERN: ("B", "H", "L", "S"),
    Z: ("B", "H", "L", ""),
}


def is_attention(path: str) -> bool:
    """Whether a module path stands for a call of the attention function.

    >>> is_attention("model.layers.3.self_attn.sdpa"), is_attention("model.layers.3.self_attn")
    (True, False)
    """
    return path.rpartition(".")[2] == SDPA


def at_site(site: str, pattern: str) -> bool:
    """Whether a glob over sites means one; places inside attention only where it names them.

    >>> at_site("model.layers.3.self_attn.sdpa.q", "model.layers.*"), at_site("model.layers.3.mlp.output", "model.layers.*")
    (False, True)
    """
    return matches(site, pattern) and (SDPA not in site.split(".") or names_attention(pattern))


def names_attention(pattern: str) -> bool:
    """Whether a glob over sites means places inside attention: it must say so, ``layers.*`` does not."""
    return SDPA in pattern.split(".")
