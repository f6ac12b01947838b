"""``%mlx_patch``: changing values at sites."""

from typing import Any

from IPython.core.magic import Magics, line_magic, magics_class, no_var_expand

from mlx_nb.client.magics.parsing import Parser, one_line_errors, parse_words
from mlx_nb.client.magics.state import need_pipe
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.magic_words import in_magics
from mlx_nb.shared.patches import TokenWish

_HELP = """change the first array at a site in every run, until it is deleted; alone, list the changes

  %mlx_patch layers.3.mlp_out --ablate
  %mlx_patch layers.3.resid_post --scale 0.5 --tokens 3:7
  %mlx_patch layers.3.resid_post --add direction      a variable of the notebook
  %mlx_patch layers.3.attn_out --replace clean        an array, a capture, or a function of the array
  %mlx_patch --save 1 half                            half.json and half.safetensors; --load half"""


def patch_parser() -> Parser:
    """The options of ``%mlx_patch``."""
    parser = Parser("%mlx_patch", _HELP)
    parser.add_argument("site", nargs="?", help="a site, an alias or a glob")
    kinds = parser.add_mutually_exclusive_group()
    kinds.add_argument("--ablate", action="store_true", help="zeros")
    for name in ("scale", "add", "replace"):
        kinds.add_argument(
            f"--{name}", metavar="X", help=f"{name} by a number, or by a variable of that name"
        )
    parser.add_argument("--tokens", metavar="A:B", help="positions in the sequence: 5, 3:7, 1,2,9")
    parser.add_argument("--delete", metavar="N", help="delete patch N, or all")
    parser.add_argument("--save", nargs=2, metavar=("N", "PATH"), help="write patch N")
    parser.add_argument("--load", metavar="PATH", help="read one, and let it hold")
    return parser


@magics_class
class PatchMagics(Magics):
    """Patches."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_patch(self, line: str) -> None:
        """Make, list, save or delete patches: see ``%mlx_patch --help``."""
        found = parse_words(patch_parser(), line)
        pipe = need_pipe()
        if found.delete is not None:
            for number in (
                list(pipe.patches.active) if found.delete == "all" else [self._number(found.delete)]
            ):
                pipe.patches.remove(number)
            print(in_magics(str(pipe.patches)))
        elif found.save is not None:
            print(f"Saved: {pipe.patches.active[self._number(found.save[0])].save(found.save[1])}")
        elif found.load is not None:
            print(pipe.load_patch(found.load))
        elif found.site is None:
            print(in_magics(str(pipe.patches)))
        else:
            how, what = self._change(found)
            print(pipe.patch(found.site, what, tokens=_tokens(found.tokens), how=how))

    def _change(self, found: Any) -> tuple[str, Any]:
        if found.ablate:
            return "replace", 0.0
        for how in ("scale", "add", "replace"):
            if (text := getattr(found, how)) is not None:
                return how, self._value(text)
        raise OptionError(
            "%mlx_patch needs a change.", "Type: %mlx_patch SITE --ablate, --scale X, --add X or --replace X"
        )

    def _value(self, text: str) -> Any:
        try:
            return float(text)
        except ValueError:
            if text not in self.shell.user_ns:
                raise OptionError(
                    f"'{text}' is neither a number nor a variable.", f"Define it first: {text} = …"
                ) from None
            return self.shell.user_ns[text]

    def _number(self, text: str) -> int:
        active = need_pipe().patches.active
        if not text.isdecimal() or int(text) not in active:
            known = ", ".join(map(str, active)) or "none"
            raise OptionError(f"There is no patch {text}.", f"There are: {known}.")
        return int(text)


def _tokens(text: str | None) -> TokenWish:
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        if colon:
            return slice(int(start or 0), int(stop) if stop else None)
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        raise OptionError(
            f"'{text}' are no tokens.", "Type: --tokens 5, --tokens 3:7 or --tokens 1,2,9"
        ) from None
