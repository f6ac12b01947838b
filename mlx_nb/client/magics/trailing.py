"""Prompts end in question marks, and IPython takes a line that ends in one for a request for help.

``%mlx_generate What is the capital of France?`` would become ``pinfo France``. Such a line is rewritten
into the call that it means before IPython looks at it. ``%mlx_generate?`` stays help.
"""

import re

_PROMPT = re.compile(
    r"^(?P<indent>\s*)%(?P<magic>mlx_generate|mlx_step|mlx_trace|mlx_show|mlx_chat|mlx_diff|mlx_check)[ \t]+(?P<line>\S.*\?)\s*$"
)


def rescue_question_marks(lines: list[str]) -> list[str]:
    """An input transformer: lines of a cell in, lines out.

    >>> rescue_question_marks(["%mlx_generate Why?\\n"])
    ["get_ipython().run_line_magic('mlx_generate', 'Why?')\\n"]
    >>> rescue_question_marks(["%mlx_generate?\\n"])
    ['%mlx_generate?\\n']
    """
    if lines and lines[0].lstrip().startswith("%%"):
        return lines  # the body of a cell magic is its own business
    return [_rescue(line) for line in lines]


def _rescue(line: str) -> str:
    match = _PROMPT.match(line)
    if not match:
        return line
    return f"{match['indent']}get_ipython().run_line_magic({match['magic']!r}, {match['line']!r})\n"
