"""Samples, medians, ratios and targets; and how they print."""

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from mlx_nb.shared.text import format_number, format_size, format_table

HIGHER, LOWER = "higher", "lower"
OURS = "mlx_nb"


@dataclass(frozen=True, slots=True)
class Target:
    """What a row should reach: ours divided by a peer's, against a bound.

    Attributes:
        peer: Whose figure ours is divided by.
        bound: The ratio that is wanted: at least, where more is better, and at most where less is.
    """

    peer: str
    bound: float


@dataclass(slots=True)
class Row:
    """One thing measured, for ours and every peer in turn, round by round.

    Attributes:
        key: Its name on the command line.
        title: Its name in the table.
        unit: ``tok/s``, ``s``, ``us``, ``B`` or ``×``.
        better: ``higher`` or ``lower``.
        samples: By contender, one number a round.
        targets: What ours should reach.
        note: What to know about it.
    """

    key: str
    title: str
    unit: str
    better: str
    samples: dict[str, list[float]] = field(default_factory=dict)
    targets: tuple[Target, ...] = ()
    note: str = ""

    def median(self, contender: str) -> float:
        return statistics.median(self.samples[contender])

    def spread(self, contender: str) -> tuple[float, float]:
        """The least and the greatest sample."""
        return min(self.samples[contender]), max(self.samples[contender])

    def ratio(self, peer: str) -> float:
        """Ours divided by a peer's: the median over the rounds, since a round's samples share its noise."""
        pairs = zip(self.samples[OURS], self.samples[peer], strict=True)
        return statistics.median(ours / theirs for ours, theirs in pairs)

    def met(self, target: Target) -> bool:
        """Whether ours reaches a target."""
        ratio = self.ratio(target.peer)
        return ratio >= target.bound if self.better == HIGHER else ratio <= target.bound

    def lines(self) -> list[list[str]]:
        """Its rows of the table, ours first."""
        wanted = {target.peer: target for target in self.targets}
        found = []
        for number, contender in enumerate(self.samples):
            low, high = self.spread(contender)
            ratio, verdict = "", ""
            if contender != OURS and OURS in self.samples:
                ratio = f"{self.ratio(contender):.2f}"
                if target := wanted.get(contender):
                    sign = "≥" if self.better == HIGHER else "≤"
                    verdict = f"{sign} {target.bound:g} {'met' if self.met(target) else 'MISSED'}"
            spread = f"{self._text(low)} – {self._text(high)}"
            title = self.title if number == 0 else ""
            found.append([title, contender, self._text(self.median(contender)), spread, ratio, verdict])
        return found

    def _text(self, value: float) -> str:
        return format_size(value) if self.unit == "B" else f"{format_number(value)} {self.unit}"


HEAD = ["row", "who", "median", "least – greatest", "mlx_nb / peer", "target"]


@dataclass(slots=True)
class Report:
    """What one session measured.

    Attributes:
        rows: In the order they were run.
        machine: What it ran on, and with which versions.
        rounds: How often each contender was run.
        missed: Rows that could not be measured, and why.
    """

    machine: Mapping[str, str]
    rounds: int
    rows: list[Row] = field(default_factory=list)
    missed: dict[str, str] = field(default_factory=dict)

    @property
    def ok(self) -> bool:
        """Whether every target was met, and every row measured."""
        return not self.missed and all(row.met(target) for row in self.rows for target in row.targets)

    def __repr__(self) -> str:
        return "\n".join([self._headline(), format_table([HEAD, *self._lines()]), *self._notes()])

    def _repr_markdown_(self) -> str:
        return self.to_markdown()

    def to_markdown(self) -> str:
        """The table as Markdown, with the machine's description."""
        rows = ["| " + " | ".join(cells) + " |" for cells in [HEAD, ["---"] * len(HEAD), *self._lines()]]
        machine = [f"- {name}: {value}" for name, value in self.machine.items()]
        notes = [f"- {note}" for note in self._notes()]
        return "\n".join([self._headline(), "", *machine, "", *rows, "", *notes]).rstrip() + "\n"

    def to_json(self) -> str:
        """Every sample, for other programs."""
        rows = []
        for row in self.rows:
            one: dict[str, Any] = asdict(row)
            one["medians"] = {name: row.median(name) for name in row.samples}
            one["ratios"] = {
                name: row.ratio(name) for name in row.samples if name != OURS and OURS in row.samples
            }
            rows.append(one)
        found = {"machine": dict(self.machine), "rounds": self.rounds, "rows": rows, "missed": self.missed}
        return json.dumps(found, indent=1, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> "Report":
        """What `to_json` wrote."""
        found = json.loads(text)
        rows = []
        for one in found["rows"]:
            one = {name: value for name, value in one.items() if name not in ("medians", "ratios")}
            rows.append(Row(**{**one, "targets": tuple(Target(**target) for target in one["targets"])}))
        return cls(found["machine"], found["rounds"], rows, found["missed"])

    def _headline(self) -> str:
        rounds = f"{self.rounds} round{'s' if self.rounds != 1 else ''}"
        return f"Medians over {rounds}, contenders in turn; a ratio is ours by the peer's, the median over the rounds."

    def _lines(self) -> list[list[str]]:
        return [line for row in self.rows for line in row.lines()]

    def _notes(self) -> Sequence[str]:
        notes = [f"{row.title}: {row.note}" for row in self.rows if row.note]
        return [*notes, *(f"{key} was not measured: {why}" for key, why in self.missed.items())]
