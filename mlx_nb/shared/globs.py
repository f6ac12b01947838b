"""Globs over dotted paths: inside a path ``*`` is one part, at its ends any number of them."""

import re
from functools import lru_cache


@lru_cache(maxsize=4096)
def matches(name: str, pattern: str) -> bool:
    """Whether a glob matches a dotted name.

    ``layers.*.output`` is what whole layers return, ``layers.*`` everything in them, ``*.q_proj.output`` every
    query projection; ``**`` is any number of parts anywhere.

    >>> matches("layers.3.output", "layers.*.output"), matches("layers.3.mlp.output", "layers.*.output")
    (True, False)
    >>> matches("layers.3.mlp.output", "layers.*"), matches("layers.3.mlp.output", "**.output")
    (True, True)
    """
    return _compiled(pattern).fullmatch(name) is not None


@lru_cache(maxsize=256)
def _compiled(pattern: str) -> re.Pattern[str]:
    parts = pattern.split(".")
    ends = (0, len(parts) - 1)
    rules = [
        ".+" if part == "**" or (part == "*" and place in ends) else _part(part)
        for place, part in enumerate(parts)
    ]
    return re.compile(r"\.".join(rules))


def _part(part: str) -> str:
    pieces = re.split(r"(\*|\?|\[[^\]]+\])", part)
    wild = {"*": "[^.]*", "?": "[^.]"}
    return "".join(p if p.startswith("[") and p.endswith("]") else wild.get(p, re.escape(p)) for p in pieces)
