"""Breakpoints as plain data, and what their conditions mean.

They travel with a stride: the rank that has the turn counts, and hands the counts on.
"""

import ast
import re
from dataclasses import dataclass, replace

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.position import OUTPUT
from mlx_nb.shared.strides import Event

STATISTICS = ("min", "max", "mean", "rms", "absmax", "nan", "inf")
PROPERTIES = ("shape", "dtype", "layer", "rank", "token", "site")
EVERYWHERE = "*"

NONFINITE, CHANGES, EXPRESSION, ALWAYS = "nonfinite", "changes", "expression", ""

_CHANGES = re.compile(r"(shape|dtype)(?:\s+changes?)?")
_NONFINITE = re.compile(r"non-?finite|nan/inf|nan or inf", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Condition:
    """What must hold at a site besides being there.

    Attributes:
        kind: ``""`` (nothing), ``nonfinite``, ``changes`` or ``expression``.
        text: The property that changes (``shape`` or ``dtype``), or the expression.
        statistics: Those of `STATISTICS` that the expression reads.
    """

    kind: str = ALWAYS
    text: str = ""
    statistics: tuple[str, ...] = ()


def parse_condition(when: str | None) -> Condition:
    """A condition as the user writes it.

    >>> parse_condition("max > 100").statistics
    ('max',)
    >>> parse_condition("shape changes")
    Condition(kind='changes', text='shape', statistics=())

    Raises:
        OptionError: It is no expression.
    """
    text = (when or "").strip()
    if not text:
        return Condition()
    if _NONFINITE.fullmatch(text):
        return Condition(kind=NONFINITE)
    if found := _CHANGES.fullmatch(text):
        return Condition(kind=CHANGES, text=found[1])
    try:
        tree = ast.parse(text, mode="eval")
    except (SyntaxError, ValueError) as error:
        if option := re.search(r"\s(--[a-z]\w*)", text):
            raise OptionError(
                f"--if takes the rest of the line, {option[1]} too.",
                f"Put --if last: {option[0].strip()} … --if {text[: option.start()]}",
            ) from error
        raise OptionError(
            f"'{text}' is no condition.",
            "Type nonfinite, shape, dtype, or an expression such as: max > 100",
        ) from error
    # `max(a, b)` stays Python's; `max > 100` is the statistic.
    called = {id(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}
    names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and id(node) not in called}
    return Condition(
        kind=EXPRESSION, text=text, statistics=tuple(name for name in STATISTICS if name in names)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """A breakpoint.

    Attributes:
        number: Its id, counted from 1.
        site: As the user wrote it.
        pattern: A glob over sites as `Event.site` spells them; ``*`` is every module's exit.
        when: The condition as it was written; empty for none.
        rank, token: Only there; -1 for anywhere.
        once: Whether it is deleted when it has stopped a run.
        ignore: How many hits it still lets pass.
        enabled: Whether it is looked at.
        hits: How many times its site was reached with its condition true.
        unknown: A name in its condition that none of the places it came to has; empty for none, or before the first.
        looked: Whether its condition, an expression, could be read anywhere.
    """

    number: int
    site: str
    pattern: str
    when: str = ""
    rank: int = -1
    token: int = -1
    once: bool = False
    ignore: int = 0
    enabled: bool = True
    hits: int = 0
    unknown: str = ""
    looked: bool = False

    @property
    def deaf(self) -> str:
        """Why it can never stop a run, by what was seen so far; empty if it can."""
        return f"nothing there is called {self.unknown}" if self.unknown and not self.looked else ""

    @property
    def label(self) -> str:
        """How messages name it."""
        return f"breakpoint {self.number}" + (f" ({self.when})" if self.when else "")

    def covers(self, event: Event) -> bool:
        """Whether an event is at its site, its rank and its token."""
        if not self.enabled or (self.rank >= 0 and event.rank != self.rank):
            return False
        if self.token >= 0 and not event.start <= self.token < event.stop:
            return False
        if self.pattern == EVERYWHERE:
            return event.kind == OUTPUT
        return event.at(self.pattern)

    def hit(self) -> tuple[bool, "Break"]:
        """Its condition was true once more: whether to stand still, and what it is now."""
        counted = replace(self, hits=self.hits + 1)
        if self.ignore > 0:
            return False, replace(counted, ignore=self.ignore - 1)
        return True, replace(counted, enabled=False) if self.once else counted
