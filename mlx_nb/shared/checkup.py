"""What the doctor found: per host a list of checks, each passed, doubtful or failed, with the command that mends it."""

from dataclasses import dataclass

from mlx_nb.shared.text import format_table

PASS, WARN, FAIL = "pass", "warn", "fail"
_MARKS = {PASS: "✓", WARN: "!", FAIL: "✗"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing that was looked at.

    Attributes:
        host: Where; ``link`` for what lies between the hosts.
        name: What was looked at.
        verdict: ``pass``, ``warn`` or ``fail``.
        found: What was seen.
        fix: What to type or do; nothing when it passed.
    """

    host: str
    name: str
    verdict: str
    found: str
    fix: str = ""


@dataclass(frozen=True, slots=True)
class Checkup:
    """All checks of one visit.

    Attributes:
        checks: In the order in which they were made.
    """

    checks: tuple[Check, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing failed; a warning is no failure."""
        return not any(check.verdict == FAIL for check in self.checks)

    def of(self, name: str) -> tuple[Check, ...]:
        """The checks by one name, one for each host."""
        return tuple(check for check in self.checks if check.name == name)

    def __repr__(self) -> str:
        rows = [["host", "", "check", "found"]]
        host = ""
        for check in self.checks:
            rows.append(
                [check.host if check.host != host else "", _MARKS[check.verdict], check.name, check.found]
            )
            host = check.host
        lines = [self.headline, format_table(rows)]
        if wrong := [check for check in self.checks if check.fix]:
            lines.append("to do:")
            lines += [f" {_MARKS[c.verdict]} {c.host}, {c.name}: {c.fix}" for c in wrong]
        return "\n".join(lines)

    @property
    def headline(self) -> str:
        """The sum in a line."""
        counts = {verdict: sum(c.verdict == verdict for c in self.checks) for verdict in (PASS, WARN, FAIL)}
        hosts = len({check.host for check in self.checks} - {"link"})
        parts = [f"{counts[PASS]} passed"]
        parts += [f"{counts[WARN]} doubtful"] if counts[WARN] else []
        parts += [f"{counts[FAIL]} failed"] if counts[FAIL] else []
        return f"Doctor · {hosts} host{'s' if hosts != 1 else ''} · {' · '.join(parts)}"
