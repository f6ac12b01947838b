"""A pipe's breakpoints, as the notebook holds them: a list with a table, and a handle for each."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from mlx_nb.shared.breaks import EVERYWHERE, Break, parse_condition
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.text import format_table

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

HEAD = ["id", "site", "condition", "hits", "ignore", "enabled"]


class Breakpoint:
    """One breakpoint; it stays true to what the list knows of it."""

    def __init__(self, owner: "Breakpoints", number: int) -> None:
        self._owner = owner
        self.id = number

    @property
    def _now(self) -> Break:
        return self._owner.find(self.id)

    @property
    def site(self) -> str:
        return self._now.site

    @property
    def when(self) -> str:
        """The condition; empty for none."""
        return self._now.when

    condition = when

    @property
    def hits(self) -> int:
        """How many times its site was reached with its condition true."""
        return self._now.hits

    @property
    def ignore(self) -> int:
        """How many hits it still lets pass."""
        return self._now.ignore

    @ignore.setter
    def ignore(self, count: int) -> None:
        self._owner.change(self.id, ignore=_count(count))

    @property
    def once(self) -> bool:
        return self._now.once

    @property
    def enabled(self) -> bool:
        return self._now.enabled

    def enable(self) -> "Breakpoint":
        """Look at it again."""
        self._owner.change(self.id, enabled=True)
        return self

    def disable(self) -> "Breakpoint":
        """Pass it over until `enable`."""
        self._owner.change(self.id, enabled=False)
        return self

    def delete(self) -> None:
        """Take it out of the list; does nothing the second time."""
        self._owner.delete(self.id, missing_ok=True)

    def row(self) -> list[str]:
        """Its row in the table."""
        one = self._now
        where = [f"rank {one.rank}"] if one.rank >= 0 else []
        where += [f"token {one.token}"] if one.token >= 0 else []
        where += ["once"] if one.once else []
        condition = " · ".join([one.when, *where] if one.when else where) or "–"
        enabled = "yes" if one.enabled else "no"
        row = [str(one.number), one.site, condition, str(one.hits), str(one.ignore), enabled]
        return [*row, one.deaf] if one.deaf else row

    def __repr__(self) -> str:
        if self.id not in self._owner.numbers:
            return f"Breakpoint {self.id} · deleted"
        return format_table([HEAD, self.row()], right=(0, 3, 4))


class Breakpoints(Sequence[Breakpoint]):
    """All breakpoints of a pipe, by their ids: ``pipe.breakpoints[0]``, ``.delete()`` all."""

    def __init__(self, pipe: "Pipe") -> None:
        self._pipe = pipe
        self._all: dict[int, Break] = {}
        self._last = 0
        self.listeners: list[Callable[[], None]] = []
        """Called when the user has added, changed or deleted one, not for every hit."""

    def add(
        self,
        site: str | None,
        when: str | None,
        rank: int | None,
        token: int | None,
        *,
        once: bool,
        ignore: int,
    ) -> Breakpoint:
        """A new one. Arguments and errors as `Pipe.break_at`."""
        parse_condition(when)
        first = self._pipe.shards[0]
        if rank is not None and not 0 <= rank < self._pipe.num_ranks:
            raise OptionError(f"There is no rank {rank}.", f"The ranks are 0–{self._pipe.num_ranks - 1}.")
        if token is not None and token < 0:
            raise OptionError(f"There is no token {token}.", "Tokens are counted from 0, prompt included.")
        wanted = (site or EVERYWHERE).strip()
        pattern = wanted
        if wanted != EVERYWHERE:
            pattern = resolve_site(wanted, first.places, first.layer_paths)
        made = Break(
            number=self._last + 1,
            site=wanted,
            pattern=pattern,
            when=(when or "").strip(),
            rank=-1 if rank is None else rank,
            token=-1 if token is None else token,
            once=once,
            ignore=_count(ignore),
        )
        self._last += 1
        self._all[made.number] = made
        self._tell()
        return Breakpoint(self, made.number)

    def armed(self) -> tuple[Break, ...]:
        """Those that are looked at, as they travel."""
        return tuple(one for one in self._all.values() if one.enabled)

    def deaf(self) -> list[str]:
        """What to know of those that no run can ever meet, a sentence each."""
        return [
            f"Breakpoint {one.number} ({one.when}) never stops: {one.deaf}."
            for one in self.armed()
            if one.deaf
        ]

    def settle(self, counted: Sequence[Break]) -> None:
        """Take the ranks' counts over; what stopped once and for all is gone."""
        for one in counted:
            if one.number not in self._all:
                continue
            if one.once and not one.enabled:
                del self._all[one.number]
            else:
                # Somebody may have disabled it meanwhile, from another thread.
                enabled = self._all[one.number].enabled
                self._all[one.number] = replace(one, enabled=enabled)

    def find(self, number: int) -> Break:
        """A breakpoint by its id.

        Raises:
            OptionError: It was deleted, or never was.
        """
        if number not in self._all:
            known = ", ".join(map(str, self._all)) or "none"
            raise OptionError(f"There is no breakpoint {number}.", f"There are: {known}.")
        return self._all[number]

    def change(self, number: int, *, ignore: int | None = None, enabled: bool | None = None) -> None:
        """Set what a handle sets."""
        one = self.find(number)
        self._all[number] = replace(
            one,
            ignore=one.ignore if ignore is None else ignore,
            enabled=one.enabled if enabled is None else enabled,
        )
        self._tell()

    def delete(self, number: int | None = None, *, missing_ok: bool = False) -> None:
        """Take one away, or all.

        Raises:
            OptionError: There is no such breakpoint.
        """
        if number is None:
            self._all.clear()
        elif not missing_ok or number in self._all:
            self.find(number)
            del self._all[number]
        self._tell()

    def _tell(self) -> None:
        for listener in list(self.listeners):
            listener()

    clear = delete

    @property
    def numbers(self) -> list[int]:
        """The ids."""
        return list(self._all)

    def __len__(self) -> int:
        return len(self._all)

    def __getitem__(self, place: int) -> Breakpoint:  # type: ignore[override]  # no slices
        return Breakpoint(self, self.numbers[place])

    def __iter__(self) -> Iterator[Breakpoint]:
        return iter([Breakpoint(self, number) for number in self._all])

    def __repr__(self) -> str:
        if not self._all:
            return "No breakpoints. Set one: pipe.break_at('*', when='nonfinite')"
        return format_table([HEAD, *(one.row() for one in self)], right=(0, 3, 4))


def _count(ignore: int) -> int:
    if not isinstance(ignore, int) or ignore < 0:
        raise OptionError(f"ignore is 0 or more, not {ignore}.", "Type: ignore=2 to let two hits pass")
    return ignore
