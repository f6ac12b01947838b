"""Errors and advice speak Python, as the API is called; typed in a magic, they must say what to type there."""

import re

_STEPS = "into|over|out|layer|rank|token|run|cont|back|restart|where|close"
_OPTIONS = (
    "max_tokens|top_p|top_k|min_p|repetition_penalty|repetition_context_size|presence_penalty|frequency_penalty"
    "|prefill_step_size|max_kv_size|kv_bits|kv_group_size|quantized_kv_start"
)


def in_magics(text: str) -> str:
    """An error as it is typed in a magic.

    >>> in_magics("The run stands between modules. Type: dbg.into()")
    'The run stands between modules. Type: %mlx_step into'
    >>> in_magics("kv_group_size is 32, 64 or 128. Type: kv_group_size=32")
    '--kv-group-size is 32, 64 or 128. Type: --kv-group-size 32'
    >>> in_magics("No breakpoints. Set one: pipe.break_at('*', when='nonfinite')")
    'No breakpoints. Set one: %mlx_break * --if nonfinite'
    """
    text = re.sub(rf"\bdbg\.({_STEPS})\(\)", r"%mlx_step \1", text)
    text = re.sub(r"\bpipe\.break_at\('([^']*)', when='([^']*)'\)", r"%mlx_break \1 --if \2", text)
    text = re.sub(r"\bpipe\.patch\('([^']*)', 0\)", r"%mlx_patch \1 --ablate", text)
    text = text.replace("pipe.generate(…) or pipe.debug(…)", "%mlx_generate, or a cell with %%mlx_step")
    text = text.replace("Type: pipe.sites()", "Type: %mlx_show shapes")
    return in_flags(text)


def in_flags(text: str) -> str:
    """Options of generation, spelled as a magic or a terminal takes them.

    >>> in_flags("temp is 0 or more, not -1. Type: temp=0.7")
    'temp is 0 or more, not -1. Type: --temp 0.7'
    """
    text = re.sub(rf"(?<=Type: )({_OPTIONS}|temp)=(\S+)", lambda m: f"{_flag(m[1])} {m[2]}", text)
    return re.sub(rf"(?<![-\w])({_OPTIONS})\b(?!=)", lambda m: _flag(m[1]), text)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")
