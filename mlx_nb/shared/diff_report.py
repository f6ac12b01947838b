"""Two models side by side, site by site: how far apart they are, where that begins, and how it prints."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from html import escape
from pathlib import Path
from typing import Protocol

import numpy as np

from mlx_nb.shared.text import Table, format_number, format_table

# What one rounding at each of some thirty layers leaves, with room for another BLAS or other chunks.
TOLERANCE = {"float32": 1e-4, "float16": 2e-2, "bfloat16": 8e-2}

SAME, DIFFERS, SHAPE = "same", "differs", "shape"
HEAD = ["site", "rank", "against", "max", "mean", "relative", "cosine", "forced", ""]
ROWS_SHOWN = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Distance:
    """How far two arrays of one shape are apart.

    Attributes:
        max, mean: Of the absolute differences.
        relative: The norm of the difference over the norm of the second array.
        cosine: Of the angle between them; 1 is the same direction.
        holes: Elements that are NaN or infinite in one of them alone.
    """

    max: float
    mean: float
    relative: float
    cosine: float
    holes: int = 0

    def within(self, tolerance: float) -> bool:
        """Whether they are the same but for rounding."""
        return not self.holes and self.relative <= tolerance


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class DiffRow:
    """One site in both.

    Attributes:
        site: As users read it.
        rank, other_rank: Where the values are.
        layer: The layer that it lies in; -1 for none.
        dtype: The coarser of the two.
        tolerance: What is let pass.
        free: The distance of free runs, in which errors add up; None where the shapes differ.
        forced: The distance where each layer was given the other's input; None where nothing was forced.
        shapes: Of both, where they differ.
    """

    site: str
    rank: int
    other_rank: int
    layer: int
    dtype: str
    tolerance: float
    free: Distance | None
    forced: Distance | None = None
    shapes: tuple[tuple[int, ...], tuple[int, ...]] | None = None

    @property
    def verdict(self) -> str:
        """``same``, ``differs`` or ``shape``: by the forced distance where there is one."""
        if self.free is None:
            return SHAPE
        judged = self.forced or self.free
        return SAME if judged.within(self.tolerance) else DIFFERS

    def __repr__(self) -> str:
        where = (
            f"rank {self.rank} against {self.other_rank}"
            if self.rank != self.other_rank
            else f"rank {self.rank}"
        )
        if self.free is None:
            shapes = " and ".join(str(list(shape)) for shape in self.shapes or ())
            return f"{self.site} · {where} · {SHAPE}: {shapes}"
        pairs = [("max", self.free.max), ("mean", self.free.mean), ("relative", self.free.relative)]
        pairs += [("forced", self.forced.relative)] if self.forced else []
        numbers = " · ".join(f"{name} {format_number(value)}" for name, value in pairs)
        return f"{self.site} · {where} · {numbers} · cosine {self.free.cosine:.6f} · {self.verdict}"

    def cells(self) -> list[str]:
        """Its row in the table."""
        if self.free is None:
            shapes = " and ".join(str(list(shape)) for shape in self.shapes or ())
            return [self.site, str(self.rank), str(self.other_rank), shapes, "", "", "", "", SHAPE]
        free = self.free
        numbers = [format_number(value) for value in (free.max, free.mean, free.relative)]
        forced = format_number(self.forced.relative) if self.forced else ""
        told = "" if self.verdict == SAME else self.verdict
        holes = f" · {free.holes} NaN or Inf" if free.holes else ""
        return [
            self.site,
            str(self.rank),
            str(self.other_rank),
            *numbers,
            f"{free.cosine:.6f}",
            forced,
            told + holes,
        ]


class Closer(Protocol):
    """Who can look at a comparison more closely: what it compared runs again."""

    def inside(self, layer: int) -> "DiffReport":
        """The same comparison inside one layer, module by module."""

    def gap(self, site: str) -> np.ndarray:
        """What the first has more than the second at a site, as `DiffRow.site` spells it: its own shape, float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffReport:
    """What `Pipe.diff` returns: true where both are the same.

    Attributes:
        model, other: What was compared.
        tokens: Tokens that both were fed.
        rows: Every site in both, in the model's order.
        inside: The same inside the first layer that differs.
        clues: How the first value that differs is wrong.
        notes: What to know besides.
        closer: Who can look closer; None if nobody.
    """

    model: str
    other: str
    tokens: int
    rows: tuple[DiffRow, ...]
    inside: tuple[DiffRow, ...] = ()
    clues: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    closer: Closer | None = field(default=None, compare=False, repr=False)

    @property
    def ok(self) -> bool:
        """Whether every site is the same but for rounding."""
        return bool(self.rows) and all(row.verdict == SAME for row in self.rows)

    def __bool__(self) -> bool:
        return self.ok

    @property
    def exit_code(self) -> int:
        """0 if it is `ok`, else 1: for scripts."""
        return 0 if self.ok else 1

    @property
    def first(self) -> DiffRow | None:
        """The first site that differs, inside its layer where that was looked into; None if none does."""
        for rows in (self.inside, self.rows):
            for row in rows:
                if row.verdict != SAME:
                    return row
        return None

    @property
    def worst(self) -> DiffRow | None:
        """The site with the largest relative distance in free runs; None without any."""
        known = [row for row in self.rows if row.free is not None]
        return max(known, key=lambda row: (row.free.holes, row.free.relative), default=None)  # type: ignore[union-attr]

    def table(self) -> Table:
        """A row for each site, the head first."""
        return Table([HEAD, *(row.cells() for row in self.rows)], right=range(1, 8))

    @property
    def headline(self) -> str:
        """One line."""
        bad = sum(row.verdict != SAME for row in self.rows)
        said = "all the same" if self.ok else f"{bad} of {len(self.rows)} sites differ"
        return f"Diff {self.model} against {self.other} · {self.tokens} tokens · {said}"

    def lines(self) -> list[str]:
        """First and worst, in words."""
        told = []
        for name, row in (("first", self.first), ("worst", self.worst)):
            if row is None or self.ok:
                continue
            judged = row.forced or row.free if name == "first" else row.free
            how = " given the other's input" if judged is row.forced else " in free runs"
            number = f"relative {format_number(judged.relative)}{how}" if judged else "another shape"
            told.append(
                f"{name}: {row.site} on rank {row.rank} ({number}; {format_number(row.tolerance)} is let pass)"
            )
        told += self.clues
        if self.first is not None:
            if hint := hint_at(self.first.site):
                told.append(hint)
            told.append(
                f"Look there: pipe.check(), or dbg = pipe.debug(…); dbg.until('{self.first.site.replace('.output', '.input')}')"
                if "." in self.first.site
                else "Look there: pipe.check()"
            )
        return told

    def __str__(self) -> str:
        shown = self.rows
        if len(shown) > ROWS_SHOWN:
            odd = [row for row in shown if row.verdict != SAME]
            shown = tuple((odd or list(shown))[:ROWS_SHOWN])
        parts = [self.headline, *(f" {line}" for line in self.lines())]
        parts.append(format_table([HEAD, *(row.cells() for row in shown)], right=(1, 2, 3, 4, 5, 6, 7)))
        if len(shown) < len(self.rows):
            parts.append(f" … {len(self.rows) - len(shown)} more: diff.table()")
        if self.inside:
            inside = [HEAD, *(row.cells() for row in self.inside)]
            parts += [
                f" inside layer {self.inside[0].layer}:",
                format_table(inside, right=(1, 2, 3, 4, 5, 6, 7)),
            ]
        parts += [f" {note}" for note in self.notes]
        return "\n".join(parts)

    __repr__ = __str__

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row.cells())}</tr>"
            for row in (*self.rows, *self.inside)
        )
        head = "".join(f"<th>{escape(name)}</th>" for name in HEAD)
        told = "".join(f"<br>{escape(line)}" for line in (*self.lines(), *self.notes))
        mark = "✓" if self.ok else "✗"
        return (
            f"<div><b>{mark} {escape(self.headline)}</b>{told}"
            f"<details{'' if self.ok else ' open'}><summary>Sites</summary>"
            f"<table><tr>{head}</tr>{rows}</table></details></div>"
        )

    def to_json(self, path: str | Path | None = None) -> str:
        """All of it as JSON; written to a file as well if one is named."""
        rows = [{**asdict(row), "verdict": row.verdict} for row in self.rows]
        inside = [{**asdict(row), "verdict": row.verdict} for row in self.inside]
        told = {"model": self.model, "other": self.other, "tokens": self.tokens, "ok": self.ok}
        text = json.dumps(
            {**told, "rows": rows, "inside": inside, "clues": list(self.clues), "notes": list(self.notes)},
            indent=1,
        )
        return _written(text, path)

    def to_markdown(self, path: str | Path | None = None) -> str:
        """As a Markdown table; written to a file as well if one is named."""
        lines = [f"**{self.headline}**", "", *(f"- {line}" for line in (*self.lines(), *self.notes)), ""]
        lines += ["| " + " | ".join(HEAD) + " |", "|" + "---|" * len(HEAD)]
        lines += ["| " + " | ".join(row.cells()) + " |" for row in (*self.rows, *self.inside)]
        return _written("\n".join(lines) + "\n", path)


def hint_at(site: str) -> str:
    """What usually is wrong where a module is the first to differ; empty for no idea.

    >>> hint_at("layers.3.self_attn.rope#1.output")
    'Usual causes: the base, scale or offset of RoPE, or which dimensions it pairs.'
    >>> hint_at("layers.3.mlp.down_proj.input")
    'What goes in is wrong, and what came out of the modules before it is right: look at the code between them.'
    """
    stem, _, kind = re.sub(r"#\d+", "", site).rpartition(".")
    name = stem.rpartition(".")[2]
    if kind == "input" and not re.fullmatch(_BEHIND_ATTENTION, name):
        return "What goes in is wrong, and what came out of the modules before it is right: look at the code between them."
    for pattern, causes in _CAUSES:
        if re.fullmatch(pattern, name):
            return f"Usual causes: {causes}."
    return ""


_BEHIND_ATTENTION = r"o_proj|out_proj|dense"
_CAUSES = (
    (r"rope|rotary.*", "the base, scale or offset of RoPE, or which dimensions it pairs"),
    (r".*norm.*|ln_\w+", "the norm's epsilon, or a weight that counts from 1 (Gemma) or from 0"),
    (
        r"[qk]_proj|qkv_proj|query_key_value",
        "the order of the rows (halves or pairs), a transposed weight, a lost bias",
    ),
    (r"v_proj|gate_proj|up_proj|down_proj|w[123]", "a transposed or exchanged weight, a lost bias"),
    (
        _BEHIND_ATTENTION,
        "the mask, the scale or soft cap of the scores, the order of the KV heads, the KV cache",
    ),
    (r"embed\w*|wte", "the scale of the embeddings, or other token ids"),
    (r"lm_head|logits|", "the head (tied or not), or the soft cap of the logits"),
)


def _written(text: str, path: str | Path | None) -> str:
    if path is not None:
        Path(path).write_text(text, encoding="utf-8")
    return text


def distance(parts: Sequence[tuple[np.ndarray, np.ndarray]]) -> Distance:
    """How far two arrays are apart, given as pairs of slices."""
    count = holes = 0
    most = total = square = own = other = dot = 0.0
    for left, right in parts:
        a, b = left.astype(np.float64).ravel(), right.astype(np.float64).ravel()
        good = np.isfinite(a) & np.isfinite(b)
        holes += int((np.isfinite(a) != np.isfinite(b)).sum())
        a, b = a[good], b[good]
        gap = np.abs(a - b)
        count += gap.size
        most = max(most, float(gap.max(initial=0.0)))
        total, square = total + float(gap.sum()), square + float(gap @ gap)
        own, other, dot = own + float(a @ a), other + float(b @ b), dot + float(a @ b)
    size = float(np.sqrt(own * other))
    return Distance(
        max=most,
        mean=total / count if count else 0.0,
        relative=float(np.sqrt(square / other)) if other else float(square > 0),
        cosine=dot / size if size else float(own == other),
        holes=holes,
    )
