"""Backwards: by any stride, or to a place where a run has stood.

A rank remembers what a run was at the start of each pass; to be somewhere inside one, the pass is run again up to
there. The ranks forget what the old run had in flight, since the new one has another id.
"""

import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from mlx_nb.client.generation import Generation
from mlx_nb.client.looking import Looking
from mlx_nb.shared.errors import MlxNbError, OptionError, RunError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.outcome import Outcome, Past
from mlx_nb.shared.position import Position
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.strides import Stride
from mlx_nb.shared.text import format_count, format_size

if TYPE_CHECKING:
    import threading

BACKWARDS = ("into", "over", "out", "layer", "rank", "token", "run", "until", "restart")
_LAST = 2**31  # behind every stop of a pass

Place = tuple[int, int, int]


class GoingBack(Looking):
    """The part of a `Debugger` that goes back."""

    _trail: list[Position]
    _lock: "threading.RLock"

    def back(
        self, to: "Position | str | None" = None, n: int = 1, *, site: str | None = None, **target: Any
    ) -> Position:
        """Go back: to where you stood before, by a stride, or to a stored position.

        Args:
            to: Nothing: undo the last stride. A stride's name (``into``, ``over``, ``out``, ``layer``, ``rank``,
                ``token``, ``run``, ``until``, ``restart``): that stride, backwards. A `dbg.position` of before: there.
            n: How many times.
            site: For ``until``: a site or a glob.
            **target: For ``until``: ``layer=``, ``rank=``.

        Raises:
            OptionError: There is no such stride, or nothing before this place.
            RunError: A rank has forgotten the run.
        """
        if n < 1:
            raise OptionError(f"A stride of {n} goes nowhere.", "Type: dbg.back()")
        with self._lock:
            if isinstance(to, Position):
                return self._back_to(to)
            if to is None and self._trail:
                before = self._trail[-min(n, len(self._trail))]
                return self._back_to(before)
            name = {"cont": "run", "continue": "run", None: "into"}.get(to, to)
            if name not in BACKWARDS:
                raise OptionError(f"There is no stride '{to}'.", f"Type one of: {', '.join(BACKWARDS)}.")
            if name == "run":
                stops = [one for one in self._trail if one.about.startswith("Breakpoint ")]
                if stops:
                    return self._back_to(stops[-1])
            if name in ("run", "restart"):
                return self._back_by(Stride(name="token"), _LAST)
            if name == "until":
                first = self.pipe.shards[0]
                if site is None and not target:
                    raise OptionError(
                        "until needs a target.", "Type: dbg.back('until', site='layers.3.output')"
                    )
                target["site"] = resolve_site(site, first.places, first.layer_paths) if site else ""
            return self._back_by(Stride(name=str(name), **target), n)

    def fork(self) -> Self:
        """A second run from here on, in a debugger of its own; this one stays as it stands."""
        with self._lock:
            self._check_open()
            here = self.position
            other = self._twin()
            try:
                other._begin_before(self._request.run_id, _place(here), keep=True)
                other._run_on_to(_place(here), here.start)
            except BaseException:
                other.close()
                raise
            return other

    def trim(self, n: int) -> Position:
        """Cut the last `n` tokens that were fed off every KV cache, and stand before the pass that feeds on from there.

        What of the present pass has been done is given up with them.

        Raises:
            OptionError: There are not so many, or a KV cache's class cannot be cut.
        """
        if n < 0:
            raise OptionError(f"{n} tokens cannot be cut off.", "Type: dbg.trim(1)")
        with self._lock:
            self._check_open()
            new_id, old_id = secrets.randbelow(2**30 - 1) + 1, self._request.run_id
            try:
                here, ids = self.position, list(self.gen.token_ids)
                told: list[Outcome] = self.pipe.call_all(
                    "trim", old_id, new_id, here.index, here.start, ids, n
                )
            except MlxNbError:
                self.pipe.call_all("close_run", new_id)
                raise
            self.pipe.call_all("close_run", old_id)
            self._trail.clear()
            self._stand_as(new_id, told)
            return self._arrive(self._go(Stride(name="token"), breaks=False))

    def rewind(self, n: int = 1) -> Position:
        """Stand at the start of a pass again: of this one, or of those before it for a larger `n`.

        `back("token", n)`, whose cost `cost_of_rewind` tells before.

        Raises:
            OptionError: There are not so many passes.
        """
        return self.back("token", n)

    def cost_of_rewind(self, n: int = 1) -> str:
        """Where `rewind` would lead, and what has to be computed again for it, in words; nothing moves."""
        with self._lock:
            target, start = self._rewound(n)
            if target < 0:
                return f"no pass begins {n} before this place."
            held = [set(past.passes) for past in self._pasts(self._request.run_id)]
            begin = max((one for one in set.intersection(*held) if one <= target), default=0)
            where = f"to the start of pass {target}" + (f" (token {start})" if start >= 0 else "")
            again = target - begin
            if not again:
                return f"{where}; its start is remembered, so nothing is computed again."
            return f"{where}; {format_count(again, 'pass', 'passes')} from pass {begin} on to be run again."

    def cost_of_fork(self) -> str:
        """What `fork` would have to compute, in words; nothing moves."""
        with self._lock:
            held = [set(past.passes) for past in self._pasts(self._request.run_id)]
            begin = max((one for one in set.intersection(*held) if one <= self.position.index), default=0)
            again = format_count(self.position.index - begin + 1, "pass", "passes")
            return f"{again} run again up to here, in a run of its own"

    def _rewound(self, n: int) -> tuple[int, int]:
        """The pass at whose start `rewind` ends, and its first token where it is known; -1 for none."""
        here = self.position
        index, before = here.index, (int(here.rank), here.tick or _LAST)
        if here.kind == "end":
            index, before = max(one.pass_index for one in self._ranks.values()), (self.pipe.num_ranks, 0)
        while index >= 0:
            stops = self._stops(index, Stride(name="token"))
            found = [(0, 0, -1)] if stops is None else [one for one in stops if one[:2] < before]
            if len(found) >= n:
                return index, found[-n][2]
            n -= len(found)
            index, before = index - 1, (self.pipe.num_ranks, 0)
        return -1, -1

    @property
    def reach(self) -> str:
        """How far back one can go without running the prompt again, and what that costs on each rank."""
        lines = []
        for rank, past in enumerate(self._pasts(self._request.run_id)):
            first = f"from pass {past.passes[0]} on" if past.passes else "from the start only"
            if len(past.passes) > 1 and past.passes[1] != past.passes[0] + 1:
                first = f"pass {past.passes[0]}, and from pass {past.passes[1]} on"
            cost = f"{format_size(past.size_bytes)} of {format_size(past.budget_bytes)}"
            lines.append(f"rank {rank}: {first} · {cost}")
        return "\n".join(lines)

    # How ------------------------------------------------------------------------------------------

    def _back_to(self, position: Position) -> Position:
        if not position.tick:
            raise OptionError(
                f"No run stands at '{position.site}'.", "Store dbg.position at a stop: here = dbg.position"
            )
        return self._at(_place(position), position.start)

    def _back_by(self, stride: Stride, n: int) -> Position:
        here = self.position
        stride = replace(
            stride,
            kind=here.kind,
            module=here.module,
            call=here.call,
            depth=here.depth,
            num_ranks=self.pipe.num_ranks,
        )
        index, before = here.index, (int(here.rank), here.tick or _LAST)
        if here.kind == "end":
            index, before = max(one.pass_index for one in self._ranks.values()), (self.pipe.num_ranks, 0)
        first: tuple[Place, int] | None = None
        while index >= 0:
            found = self._stops(index, stride)
            if found is None:
                self._run_again(index)
                found = self._stops(index, stride) or []
            if before[1] == _LAST:
                before = self._behind_what_raised(here)
            found = [one for one in found if one[:2] < before]
            if found:
                first = (index, *found[0][:2]), found[0][2]
            if len(found) >= n:
                rank, tick, start = found[-n]
                return self._at((index, rank, tick), start)
            n -= len(found)
            index, before = index - 1, (self.pipe.num_ranks, 0)
        if n >= _LAST // 2 and first is not None:
            return self._at(*first)
        if here.tick:
            self._back_to(here)  # passes may have been run again to find out
        raise OptionError("There is nothing before this place.", "Go on: dbg.into()")

    def _behind_what_raised(self, here: Position) -> tuple[int, int]:
        """Rank and tick behind the entry that raised: once its cause is mended, the pass goes on past it."""
        entries = self._stops(here.index, Stride(name="until", site=here.site)) or []
        ticks = [tick for rank, tick, _ in entries if rank == here.rank]
        return int(here.rank), ticks[here.call - 1] + 1 if len(ticks) >= here.call else _LAST

    def _stops(self, index: int, stride: Stride) -> list[tuple[int, int, int]] | None:
        """Rank, tick and the pass's first token of the stops at which a stride backwards would end, as they come.

        None where the pass has to be run again to know.
        """
        by_rank = self.pipe.call_all("ticks", self._request.run_id, index, stride)
        if by_rank[0] is None:
            return None
        return [(rank, *one) for rank, found in enumerate(by_rank) for one in found or ()]

    def _run_again(self, index: int) -> None:
        """Run a pass once more, so that its stops are known."""
        self._begin_before(self._request.run_id, (index + 1, 0, 0))
        try:
            while True:
                position = self._go(Stride(name="token"), breaks=False)
                if position.index > index or position.kind == "end":
                    return
        except RunError:
            if self.gen.state != "failed":
                raise
            self.closed = False  # it raised where it had raised before; the stops up to there are known

    def _at(self, place: Place, start: int) -> Position:
        """Stand at a place that the run has been at."""
        self._begin_before(self._request.run_id, place)
        self._trail[:] = [one for one in self._trail if _place(one) < place]
        return self._run_on_to(place, start)

    def _run_on_to(self, place: Place, start: int) -> Position:
        stride = Stride(name="place", rank=place[1], tick=place[2], token=start)
        found = self._arrive(self._go(stride, breaks=False))
        if _place(found) != place:
            raise OptionError(
                "The run does not come to that place any more.", "What was changed before it leads elsewhere."
            )
        return found

    def _begin_before(self, run_id: int, place: Place, *, keep: bool = False) -> None:
        """Let every rank stand before the last pass that all can begin again, at `place` or before it."""
        held = [set(past.passes) for past in self._pasts(run_id)]
        index = max((one for one in set.intersection(*held) if one <= place[0]), default=0)
        new_id = secrets.randbelow(2**30 - 1) + 1
        told: list[Outcome] = self.pipe.call_all("rewind", run_id, new_id, index, place, keep)
        self._stand_as(new_id, told)

    def _stand_as(self, new_id: int, told: list[Outcome]) -> None:
        """Be the run of another id: the ranks tell of their KV caches, the last one of tokens and text."""
        self._request = replace(self._request, run_id=new_id)
        self._active, self._hops, self._pieces = Rank(0), {}, []
        self._ranks = {Rank(rank): outcome for rank, outcome in enumerate(told)}
        self.done = self.closed = False
        self.gen.token_ids, self.gen.text = list(told[-1].token_ids), told[-1].text
        self.gen.state, self.gen.finish_reason = "stopped", None

    def _pasts(self, run_id: int) -> list[Past]:
        pasts: list[Past] = self.pipe.call_all("past", run_id)
        if not all(past.known for past in pasts):
            raise RunError(
                "The ranks have forgotten this run: another has ended since.", "Type: dbg.restart()"
            )
        return pasts

    def _twin(self) -> Self:
        """Another debugger of the same run, with a generation of its own."""
        generation = Generation(list(self.gen.prompt_ids), reused=self.gen.reused)
        return type(self)(self.pipe, self._request, generation, self.prompt, begin=False)  # type: ignore[call-arg]

    # What the other half does -----------------------------------------------------------------------

    done: bool

    def _go(self, stride: Stride, *, breaks: bool = True) -> Position:
        raise NotImplementedError

    def _arrive(self, position: Position) -> Position:
        raise NotImplementedError

    def close(self) -> None:
        """Give the run up."""
        raise NotImplementedError


def _place(position: Position) -> Place:
    return position.index, int(position.rank), position.tick
