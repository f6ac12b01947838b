"""Stepping a pipe as one would step a program: one run that stands still between calls.

The notebook keeps who has the turn. A pass goes through the ranks in order, so exactly one rank can go
on at a time; the others answer questions and use no CPU.
"""

import threading
import time
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

from mlx_nb.client.changing import Changing
from mlx_nb.client.ctrl_c import asks
from mlx_nb.client.current import current
from mlx_nb.client.generation import Generation
from mlx_nb.client.going_back import GoingBack
from mlx_nb.shared.breaks import Break
from mlx_nb.shared.errors import MlxNbError, OptionError, RunError, RunFinished
from mlx_nb.shared.ids import LayerIndex, Rank
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.position import Position, RankKV
from mlx_nb.shared.request import Prompt, RunRequest
from mlx_nb.shared.sites import resolve_site
from mlx_nb.shared.strides import Stride
from mlx_nb.shared.text import format_count
from mlx_nb.shared.tokens import PromptTokens

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

TELL_EVERY_S = 0.2
INTERRUPT_TIMEOUT_S = 60.0

OnChange = Callable[["Debugger"], None]


class Debugger(GoingBack, Changing):
    """A run that is stepped. Made by `Pipe.debug`; use it as a context manager to be sure it closes.

    Attributes:
        pipe: The pipe that it steps.
        gen: What the run has produced so far.
        position: Where it stands.
        done: Whether the run has come to its end.
        closed: Whether the run was given up or has ended, so that nothing is left on the ranks.
        note: What happened on the way here (an older stepper was closed), empty as a rule.
        running: Whether a stride is under way, as far as the listeners have been told.
        preview: A small picture of the value here, packed as `shared/preview.py` says.
    """

    def __init__(
        self,
        pipe: "Pipe",
        request: RunRequest,
        generation: Generation,
        prompt: Prompt,
        *,
        note: str = "",
        begin: bool = True,
    ) -> None:
        self.pipe = pipe
        self.gen = generation
        self.note = note
        self.prompt = prompt
        self.done = False
        self.closed = False
        self.running = False
        self.preview = b""
        self.wants_preview = False
        self.listeners: list[OnChange] = []
        self._request = request
        self._remote, self._reloads = pipe.cluster.remote, pipe.reloads
        self._lock = threading.RLock()
        self._active = Rank(0)
        self._stop_asked = False
        self._ranks: dict[Rank, Outcome] = {}
        self._hops: dict[Rank, Position] = {}
        self._tokens: PromptTokens | None = None
        self._pieces: list[str] = []
        self._trail: list[Position] = []
        if begin:
            self._begin()

    def open(self) -> None:
        """Make the run on every rank; nothing is computed yet.

        Raises:
            MlxNbError: A rank refuses it.
        """
        try:
            self.pipe.call_all("open_run", self._request)
        except MlxNbError:
            self.gen.state = "failed"
            self.close()  # some ranks may have opened it
            raise

    def _begin(self) -> None:
        self.open()
        current.lost_dbg = None
        self.gen.state = "stopped"
        self.position = self._go(Stride(name="token"), breaks=False)

    # Strides --------------------------------------------------------------------------------------

    def into(self) -> Position:
        """To the next entry, exit, send or recv."""
        return self._stride("into")

    def over(self) -> Position:
        """To this module's exit; from an exit, send or recv, to the next stop at the same depth or above."""
        return self._stride("over")

    def out(self) -> Position:
        """To the exit of the module around this one."""
        return self._stride("out")

    def layer(self, n: int = 1) -> Position:
        """To the output of the next layer, or of the n-th from here."""
        return self._stride("layer", count=n)

    def rank(self) -> Position:
        """To the recv on the next rank."""
        return self._stride("rank")

    def token(self, n: int = 1) -> Position:
        """To the start of the next pass, or of the n-th from here: before the embedding."""
        return self._stride("token", count=n)

    def until(
        self,
        site: str | None = None,
        *,
        layer: int | None = None,
        rank: int | None = None,
        token: int | None = None,
    ) -> Position:
        """To a site, to a whole layer, to a rank, or to the pass that feeds a token; or to all of them at once.

        Raises:
            SiteError: The model has no such site.
            OptionError: Nothing was asked for, or it is out of range.
        """
        if site is None and layer is None and rank is None and token is None:
            raise OptionError("until needs a target.", "Type: dbg.until('layers.3.self_attn.output')")
        first = self.pipe.shards[0]
        if layer is not None and not 0 <= layer < first.num_layers:
            raise OptionError(f"There is no layer {layer}.", f"The layers are 0–{first.num_layers - 1}.")
        if rank is not None and not 0 <= rank < self.pipe.num_ranks:
            raise OptionError(f"There is no rank {rank}.", f"The ranks are 0–{self.pipe.num_ranks - 1}.")
        if token is not None:
            self._check_ahead(token)
        pattern = resolve_site(site, first.places, first.layer_paths) if site else ""
        wanted = {"layer": layer, "rank": rank, "token": token}
        return self._stride("until", site=pattern, **{k: v for k, v in wanted.items() if v is not None})

    def _check_ahead(self, token: int) -> None:
        """Raise when no pass from here on feeds a token of this index."""
        here, last = self.position, len(self._request.tokens) + self._request.options.max_tokens - 2
        if not self.done and token < here.start:
            raise OptionError(
                f"Token {token} has been fed: the run stands in {here.phase} {here.start}:{here.stop}.",
                "Begin again: dbg.restart()",
            )
        if token > last:
            raise OptionError(f"This run feeds no token {token}.", f"Its tokens are 0–{last}.")

    def run(self) -> Position:
        """To the next breakpoint, or to the end of the run; an interrupt stands still on the way."""
        return self._stride("run")

    cont = run

    def restart(self) -> Position:
        """Begin the same run again, before the embedding."""
        with self._lock:
            self.close()
            self._remote = self.pipe.cluster.remote  # another one after a restart
            self._reloads = self.pipe.reloads
            request = self.pipe.request(list(self._request.tokens), self._request.options)
            self.gen = self.pipe.last = Generation(list(request.tokens))
            self._request, self.done, self.closed = request, False, False
            self._active, self._ranks, self._hops, self._pieces = Rank(0), {}, {}, []
            self._trail = []
            current.dbg = self
            self._begin()
            return self._arrive(self.position)

    def _stride(self, name: str, *, count: int = 1, **target: Any) -> Position:
        if count < 1:
            raise OptionError(f"A stride of {count} goes nowhere.", f"Type: dbg.{name}(1)")
        with self._lock:
            self._check_can_move()
            here = self.position
            stride = Stride(
                name=name,
                count=count,
                kind=here.kind,
                module=here.module,
                call=here.call,
                depth=here.depth,
                num_ranks=self.pipe.num_ranks,
                **target,
            )
            with asks(self.interrupt):
                found = self._go(stride)
                self._trail.append(here)
                return self._arrive(found)

    def _go(self, stride: Stride, *, breaks: bool = True) -> Position:
        """Let the ranks go on, one after another, until one stands still or the run ends."""
        walk = self.walk(stride, breaks=breaks)
        with asks(self.interrupt):
            while True:
                try:
                    next(walk)
                except StopIteration as end:
                    position: Position = end.value
                    return position

    def walk(self, stride: Stride, *, breaks: bool = True) -> Generator[Outcome, None, Position]:
        """`_go`, part by part: yields whenever a rank has ended its part of a pass, returns where it ends.

        Args:
            stride: How far.
            breaks: Whether breakpoints count.
        """
        rank = self._active
        told = time.monotonic()
        self._stop_asked = False
        while True:
            try:
                outcome = self._step(rank, stride, self.pipe.breakpoints.armed() if breaks else ())
            except MlxNbError as error:
                self.gen.state = "failed"
                self._give_up(error)
                raise
            self._ranks[rank] = outcome
            self.pipe.breakpoints.settle(outcome.breaks)
            self.gen.text = outcome.text or self.gen.text  # only the last rank writes it
            if len(outcome.token_ids) > len(self.gen.token_ids):
                self.gen.token_ids = list(outcome.token_ids)
            stride = outcome.stride or stride
            if outcome.kind == "stop":
                assert outcome.position is not None  # that is what a stop is
                self._active, self.preview = rank, outcome.preview
                position = replace(outcome.position, ranks=self._kv_lines(outcome.position))
                if position.hop:
                    self._hops[position.hop.source] = position
                return position
            if outcome.kind == "finished":
                self._finish_freely()
                return self._end_position()
            yield outcome
            if outcome.kind == "handover":
                # Its part of the pass is over; after the last rank the next pass begins at rank 0.
                rank = Rank((rank + 1) % self.pipe.num_ranks)
            if rank == 0:
                self._hops.clear()
            if self._stop_asked:
                stride = Stride(name="into")  # stand still at the very next place
            if rank == 0 and time.monotonic() - told > TELL_EVERY_S:
                told = time.monotonic()
                self._tell(running=True)

    def _step(self, rank: Rank, stride: Stride, breaks: tuple[Break, ...]) -> Outcome:
        """Let one rank go on; Ctrl-C asks it to stand still at the next place, and nothing is lost."""
        args = (self.pipe.pipe_id, self._request.run_id, stride, breaks)
        pending = [self._remote.submit(rank, "step", *args, preview=self.wants_preview)]
        try:
            found: Outcome = self._remote.wait(pending)[0]
        except KeyboardInterrupt:
            self._stop_asked = True
            found = self._remote.wait(pending, timeout_s=INTERRUPT_TIMEOUT_S)[0]
        return found

    def interrupt(self) -> None:
        """Stand still at the next place, from another thread: what a Stop button calls."""
        self._stop_asked = True
        self._remote.interrupt()

    def _finish_freely(self) -> None:
        """Let every rank that still has the run go to its end, all together."""
        self.pipe.last = self.gen
        run = self.pipe.free_run("finish", self._request.run_id)
        self.gen.token_ids, before = [], list(self.gen.token_ids)
        known = dict(self._ranks)
        try:
            run.wait_with(lambda rank, outcome: outcome if outcome is not None else known[Rank(rank)])
        except BaseException:
            self.gen.token_ids = self.gen.token_ids or before
            self.close()
            raise
        for rank, outcome in enumerate(run.outcomes):
            self._ranks[Rank(rank)] = outcome
        self.done = self.closed = True

    def _end_position(self) -> Position:
        """Past the last token: there is nothing to look at but the result."""
        end = len(self._request.tokens) + len(self.gen.token_ids)
        count = len(self.gen.token_ids)
        plural = "" if count == 1 else "s"
        return Position(
            phase="decode" if count > 1 else "prefill",
            index=count,
            start=end - 1,
            stop=end,
            rank=Rank(self.pipe.num_ranks - 1),
            site="end",
            kind="end",
            module="",
            layer=LayerIndex(-1),
            depth=0,
            ranks=tuple(
                RankKV(rank=rank, offset=min((kv.offset for kv in o.kv), default=0))
                for rank, o in sorted(self._ranks.items())
            ),
            about=f"The run has ended with {count} token{plural} ({self.gen.finish_reason or self.gen.state}).",
        )

    @property
    def asked_to_stop(self) -> bool:
        """Whether Ctrl-C or a Stop button ended the last stride."""
        return self._stop_asked

    @property
    def how_far(self) -> str:
        """What to say of a stride that was interrupted: ``interrupted after 12 tokens``."""
        return f"interrupted after {format_count(len(self.gen.token_ids), 'token')}"

    def stand(self, position: Position) -> Position:
        """Be where a free run has stopped, or where a value was changed."""
        return self._arrive(replace(position, ranks=position.ranks or self._kv_lines(position)))

    def _arrive(self, position: Position) -> Position:
        self.position = position
        if position.kind == "end":
            self.preview = b""  # that of the last stop
        self._tell(running=False)
        return position

    def _tell(self, *, running: bool) -> None:
        self.running = running
        for listener in list(self.listeners):
            listener(self)

    def _kv_lines(self, position: Position) -> tuple[RankKV, ...]:
        """What each rank has written, and what of this pass it has not: all of it where it has not begun."""
        lines = []
        length = position.stop - position.start
        for rank in range(self.pipe.num_ranks):
            outcome = self._ranks.get(Rank(rank))
            shard = self.pipe.plan.shards[rank]
            rows = outcome.kv if outcome else ()
            here = outcome is not None and outcome.pass_index == position.index
            written = sum(row.written for row in rows) if here else 0
            if outcome is not None and outcome.pass_index > position.index:
                written = len(
                    shard.layers
                )  # a free run's chunks overlap: this rank was ahead when another raised
            # Who has told nothing yet stands before its first pass: after a prompt cache, if there is one.
            offsets = [row.offset for row in rows if row.offset >= 0] if outcome else [self._request.reused]
            whole = written >= len(shard.layers)
            lines.append(
                RankKV(
                    rank=Rank(rank),
                    offset=(max if whole else min)(offsets, default=0),
                    pending=0 if whole else length,
                    layers_written=written,
                    layers=len(shard.layers),
                )
            )
        return tuple(lines)

    def lie_at(self, rank: Rank, outcomes: dict[Rank, Outcome]) -> None:
        """Be where a rank's pass has raised; what the other ranks say goes along."""
        self._active, self._ranks = rank, outcomes
        position = outcomes[rank].position
        assert position is not None  # that is where it raised
        self.stand(replace(position, ranks=self._kv_lines(position)))

    def _give_up(self, error: MlxNbError) -> None:
        """The pass has failed: close; but where it raised, let it lie on every rank for `pipe.pm`."""
        if isinstance(error, RunError) and not self._remote.ended and not self._remote.lost():
            self.pipe.call_all("lay_out", self._request.run_id)
            self.closed = True
            if current.dbg is self:
                current.dbg = None
            self._tell(running=False)
            return
        self.close()

    def _check_can_move(self) -> None:
        """Raise `RunFinished` when there is nowhere to go."""
        self._check_open()

    @property
    def lost(self) -> str:
        """A sentence that says how the ranks came to lose the run: restarted, or reloaded; empty as a rule."""
        if self.pipe.reloads != self._reloads:
            return "The model's code was read again, and this run ended with it."
        ended = self._remote.ended
        if ended and self.pipe.cluster.remote is not self._remote:
            return ended.replace(" ended at ", " was restarted at ").replace(
                ".", ", and this run ended with it."
            )
        return ended

    def tell(self) -> None:
        """Tell the listeners once more: something around the run has changed."""
        self._tell(running=False)

    def _check_open(self) -> None:
        if self.lost and not self.done:
            raise RunFinished(self.lost, "Begin again: dbg.restart()")
        if self.closed and not self.done:
            remote = self.pipe.cluster.remote
            if gone := remote.lost():  # a stride has found that out and said so; the next ones say it again
                raise remote.lost_error(gone)
            raise RunFinished("This stepper was closed.", "Begin again: dbg.restart()")
        if self.done:
            raise RunFinished(
                f"The run has finished with {len(self.gen.token_ids)} tokens ({self.gen.finish_reason}).",
                "Look at dbg.gen.text, or begin again: dbg.restart()",
            )

    def _ask(self, name: str, *args: Any, rank: int | None = None) -> Any:
        where = self._active if rank is None else Rank(rank)
        with self._lock:
            return self._remote.call(where, name, self.pipe.pipe_id, self._request.run_id, *args)

    # End ------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Give the run up and free what it holds; does nothing the second time."""
        if self.closed:
            return
        self.closed = True
        if self.gen.state in ("stopped", "running"):
            self.gen.state = "interrupted"
        if current.dbg is self:
            current.dbg = None
        if not self._remote.ended and not self._remote.out_of_reach():
            self.pipe.call_all("close_run", self._request.run_id)
        self._tell(running=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        note = f"{self.note}\n" if self.note else ""
        state = "" if not self.closed else " · finished\n" if self.done else " · closed\n"
        return f"{note}Debugger {self.pipe.name}{state or chr(10)}{self.position}"
