"""How sizes, shapes, ranges and numbers are printed, everywhere the same."""

from collections.abc import Iterable, Sequence
from html import escape

KIB = 1024
MIB = 1024 * 1024
GIB = 1024 * MIB


def format_size(size_bytes: float) -> str:
    """Bytes as the views print them: B, KiB, MiB or GiB.

    >>> format_size(84_672), format_size(326_000_000), format_size(12), format_size(64 * 2**30)
    ('83 KiB', '311 MiB', '12 B', '64.0 GiB')
    """
    if size_bytes < KIB:
        return f"{size_bytes:.0f} B"
    if size_bytes < MIB:
        return f"{size_bytes / KIB:.0f} KiB"
    if size_bytes < 10 * MIB:
        return f"{size_bytes / MIB:.1f} MiB"
    if size_bytes < GIB:
        return f"{size_bytes / MIB:.0f} MiB"
    return f"{size_bytes / GIB:.1f} GiB"


def format_share(used_bytes: float, held_bytes: float) -> str:
    """Used and held bytes, both in the unit that suits the held ones.

    >>> format_share(1_056_768, 5_898_240), format_share(6_272, 32_768), format_share(512, 2048), format_share(0, 64)
    ('1.0/5.6 MiB', '6.1/32.0 KiB', '0.5/2.0 KiB', '0/64 B')
    """
    if held_bytes < KIB:
        return f"{used_bytes:.0f}/{held_bytes:.0f} B"
    unit, name = (KIB, "KiB") if held_bytes < MIB else (MIB, "MiB") if held_bytes < GIB else (GIB, "GiB")
    return f"{used_bytes / unit:.1f}/{held_bytes / unit:.1f} {name}"


def format_layers(layers: range) -> str:
    """A half-open layer range as users read it: inclusive.

    >>> format_layers(range(0, 15)), format_layers(range(7, 8)), format_layers(range(0))
    ('layers 0–14', 'layer 7', 'no layers')
    """
    if len(layers) == 0:
        return "no layers"
    if len(layers) == 1:
        return f"layer {layers.start}"
    return f"layers {layers.start}–{layers.stop - 1}"


def format_numbers(rising: Sequence[int]) -> str:
    """Rising numbers, runs of them as ranges.

    >>> format_numbers((1, 2, 3, 5, 7, 8)), format_numbers((4,)), format_numbers(())
    ('1–3, 5, 7–8', '4', 'none')
    """
    runs: list[list[int]] = []
    for number in rising:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]}–{run[-1]}" for run in runs) or "none"


def format_shape(shape: Sequence[int], axes: Sequence[str] = ()) -> str:
    """A shape with its axis letters where they are known.

    >>> format_shape((1, 37, 576), ("B", "L", "D")), format_shape((1, 9, 37, 64), ("B", "H", "L"))
    ('[B 1, L 37, D 576]', '[B 1, H 9, L 37, 64]')
    """
    named = [f"{axes[i]} {n}" if i < len(axes) and axes[i] else str(n) for i, n in enumerate(shape)]
    return f"[{', '.join(named)}]"


def format_number(value: float) -> str:
    """A statistic in about four significant digits, without exponents where they can be avoided.

    >>> format_number(-3.1212), format_number(1204.4), format_number(0.0), format_number(1.5e-07)
    ('-3.12', '1204', '0', '1.5e-07')
    """
    if value != value or value in (float("inf"), float("-inf")):
        return str(value)
    size = abs(value)
    if size == 0:
        return "0"
    if size >= 1e6 or size < 1e-3:
        return f"{value:.2g}"
    if size >= 100:
        return f"{value:.0f}"
    if size >= 10:
        return f"{value:.1f}"
    return f"{value:.2f}" if size >= 0.01 else f"{value:.4f}"


def format_count(count: int, noun: str, plural: str = "") -> str:
    """A count with its noun.

    >>> format_count(1, "token"), format_count(1200, "token"), format_count(2, "pass", "passes")
    ('1 token', '1,200 tokens', '2 passes')
    """
    return f"{count:,} {noun if count == 1 else plural or f'{noun}s'}"


def format_duration(seconds: float) -> str:
    """Seconds in the unit a person would use.

    >>> format_duration(0.00021), format_duration(2.25), format_duration(8 * 3600)
    ('0.2 ms', '2.2 s', '8.0 h')
    >>> format_duration(0.000021)
    '21 µs'
    """
    if 0 < seconds < 1e-4:
        return f"{seconds * 1e6:.0f} µs"
    if seconds < 1:
        return f"{seconds * 1000:.1f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def format_table(rows: Iterable[Sequence[str]], *, indent: int = 1, right: Iterable[int] = ()) -> str:
    """Rows of text in aligned columns, two spaces apart; `right` names right-aligned columns.

    >>> print(format_table([["rank", "state"], ["0", "idle"]]))
     rank  state
     0     idle
    """
    table = [list(row) for row in rows]
    if not table:
        return ""
    width = [max(len(row[i]) for row in table if i < len(row)) for i in range(max(map(len, table)))]
    aligned = set(right)
    lines = []
    for row in table:
        cells = [c.rjust(width[i]) if i in aligned else c.ljust(width[i]) for i, c in enumerate(row)]
        lines.append((" " * indent + "  ".join(cells)).rstrip())
    return "\n".join(lines)


class Table(list[list[str]]):
    """Rows of text, the head first, that print as a table where a notebook or a prompt shows them.

    >>> Table([["rank", "state"], ["0", "idle"]])
     rank  state
     0     idle
    """

    def __init__(self, rows: Iterable[Sequence[str]], right: Iterable[int] = ()) -> None:
        super().__init__(list(row) for row in rows)
        self._right = tuple(right)

    def __repr__(self) -> str:
        return format_table(self, right=self._right)


class Trimmer:
    """Lets a stream of text through without the blanks at its end: they wait for what follows them.

    >>> trim = Trimmer()
    >>> [trim(piece) for piece in ("One", "\\n\\n", "two", " ", "\\n")]
    ['One', '', '\\n\\ntwo', '', '']
    """

    def __init__(self) -> None:
        self._held = ""

    def __call__(self, piece: str) -> str:
        text = self._held + piece
        shown = text.rstrip()
        self._held = text[len(shown) :]
        return shown


def as_html(text: str) -> str:
    """A text of columns for a notebook's page: its lines never wrap; a wide one is scrolled.

    >>> as_html("a  <b>")
    '<pre style="white-space: pre; overflow-x: auto">a  &lt;b&gt;</pre>'
    """
    return f'<pre style="white-space: pre; overflow-x: auto">{escape(text)}</pre>'


def as_token(text: str) -> str:
    """A token's text with its spaces, line ends and tabs made visible.

    >>> as_token(" Paris")
    '·Paris'
    """
    return text.replace(" ", "·").replace("\n", "↵").replace("\t", "⇥")


def first_words(text: str, length: int = 40) -> str:
    """The start of a prompt on one line.

    >>> first_words("What is\\nthe capital of France, and why is it not Lyon?", 24)
    'What is the capital of …'
    """
    line = " ".join(text.split())
    return line if len(line) <= length else line[: length - 1].rstrip() + " …"
