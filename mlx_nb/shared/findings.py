"""What a check-up of a pipe has found, and what it looked at: plain data that travels, and how it prints."""

from dataclasses import dataclass, field
from html import escape
from itertools import groupby

from mlx_nb.shared.text import format_layers, format_number

Place = tuple[int, int]
"""When in the check's run: the pass, and the event in it. They sort as they come."""

NEVER: Place = (-1, -1)
"""Before the run: what needs no pass to be seen."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class Finding:
    """One thing that is wrong.

    Attributes:
        kind: ``weights``, ``module``, ``between``, ``calls``, ``kv``, ``crossing``, ``tokens``, ``nan``, ``flat``,
            ``layers`` or ``raised``.
        rank: Where; -1 for what no single rank has done.
        site: The module, or ``KV cache, layer 17``.
        what: What is wrong there, as the rest of a sentence.
        layer: The layer that the site lies in; -1 for none.
        hint: What may have caused it; empty for no idea.
        look: What to type to look there.
        at: When it was seen first.
        error: The largest difference over the largest value; 0 where nothing was compared.
    """

    kind: str
    rank: int
    site: str
    what: str
    layer: int = -1
    hint: str = ""
    look: str = ""
    at: Place = NEVER
    error: float = 0.0

    def __repr__(self) -> str:
        return f"{_where(self)}{self.site}: {self.what}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Crossed:
    """One value on its way from a rank to the next, in one pass: what both ends can be asked about it.

    Attributes:
        shapes, dtypes: Of its arrays, in order.
        digest: Of all their bytes.
    """

    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]
    digest: int

    def __str__(self) -> str:
        return ", ".join(f"{list(s)} {d}" for s, d in zip(self.shapes, self.dtypes, strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class RankFindings:
    """What one rank tells of a check-up.

    Attributes:
        rank: Which.
        layers: The layers that it holds, half-open.
        state: How the check's run ended here: ``finished`` or ``interrupted``.
        findings: What is wrong here.
        tokens: The prompt's and the generated token ids, as this rank knows them.
        spans: The tokens of each pass, half-open.
        offsets: Layer and KV offset after the last pass; -1 for a class that counts none.
        received, sent: What crossed, pass by pass.
        parameters, parameter_bytes: How many were compared with their files.
        modules: How many module calls were made again.
        worst: The largest relative difference that was let pass.
    """

    rank: int
    layers: tuple[int, int]
    state: str
    findings: tuple[Finding, ...] = ()
    tokens: tuple[int, ...] = ()
    spans: tuple[tuple[int, int], ...] = ()
    offsets: tuple[tuple[int, int], ...] = ()
    received: tuple[Crossed, ...] = ()
    sent: tuple[Crossed, ...] = ()
    parameters: int = 0
    parameter_bytes: int = 0
    modules: int = 0
    worst: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `Pipe.check` returns: true where nothing was found.

    Attributes:
        model: The model's name.
        ranks: How many were checked.
        findings: What is wrong, the first cause first.
        looked: What was looked at, a sentence each; where something is wrong, too.
    """

    model: str
    ranks: int
    findings: tuple[Finding, ...]
    looked: tuple[str, ...] = field(default=())

    @property
    def ok(self) -> bool:
        """Whether nothing was found."""
        return not self.findings

    def __bool__(self) -> bool:
        return self.ok

    @property
    def first(self) -> Finding | None:
        """What went wrong first; None if nothing did."""
        return self.findings[0] if self.findings else None

    @property
    def headline(self) -> str:
        """One line."""
        ranks = f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        count = len(self.findings)
        found = "nothing wrong" if self.ok else f"{count} finding{'s' if count > 1 else ''}"
        return f"Check {self.model} · {ranks} · {found}"

    def lines(self) -> list[tuple[Finding, str]]:
        """Findings with the layers that they hold for: neighbours that say the same are told once."""
        told = []
        ordered = sorted(enumerate(self.findings), key=lambda item: (_says(item[1]), item[0]))
        for _, group in groupby(ordered, key=lambda item: _says(item[1])):
            same = list(group)
            layers = [one.layer for _, one in same]
            whole = range(min(layers), max(layers) + 1)
            joined = len(same) > 1 and sorted(layers) == list(whole)
            if joined:
                first = same[0][1]
                site = first.site.replace(f"layer {first.layer}", format_layers(whole))
                site = site.replace(f".{first.layer}.", f".{whole.start}–{whole.stop - 1}.")
                told.append((same[0][0], first, site))
            else:
                told += [(place, one, one.site) for place, one in same]
        return [(one, site) for _, one, site in sorted(told, key=lambda item: item[0])]

    def __str__(self) -> str:
        lines = [self.headline]
        for one, site in self.lines():
            lines.append(f" ✗ {_where(one)}{site}: {one.what}")
            lines += [f"   {text}" for text in (one.hint, f"Type: {one.look}" if one.look else "") if text]
        lines += [f" {'✓' if self.ok else '·'} {text}" for text in self.looked]
        return "\n".join(lines)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = []
        for one, site in self.lines():
            more = [one.hint, f"Type: {one.look}" if one.look else ""]
            under = "".join(f"<br><small>{escape(text)}</small>" for text in more if text)
            rank = str(one.rank) if one.rank >= 0 else ""
            rows.append(
                f'<tr><td>{rank}</td><td style="text-align:left"><code>{escape(site)}</code></td>'
                f'<td style="text-align:left">{escape(one.what)}{under}</td></tr>'
            )
        head = "<tr><th>rank</th><th>where</th><th>what</th></tr>"
        table = f"<table>{head}{''.join(rows)}</table>" if rows else ""
        looked = "".join(f"<li>{escape(text)}</li>" for text in self.looked)
        title = f"{'✓' if self.ok else '✗'} {self.headline}"
        return (
            f"<div><b>{escape(title)}</b>{table}"
            f"<details{' open' if self.ok else ''}><summary>What was looked at</summary><ul>{looked}</ul></details></div>"
        )


def _where(one: Finding) -> str:
    return f"rank {one.rank} · " if one.rank >= 0 else ""


def _says(one: Finding) -> tuple[object, ...]:
    """What makes two findings one line, but for their layer."""
    site = one.site.replace(f"layer {one.layer}", "layer ?").replace(f".{one.layer}.", ".?.")
    if one.kind in ("module", "between"):
        return one.kind, one.rank, site, one.hint  # the numbers differ from layer to layer
    return one.kind, one.rank, site, one.what, one.hint


def relative(error: float) -> str:
    """A relative error as it is read: per cent where it is large.

    >>> relative(0.25), relative(3.1e-6)
    ('25 %', '3.1e-06')
    """
    return f"{100 * error:.0f} %" if 0.01 <= error < 10 else format_number(error)
