"""Looking around where a run stands: what a debugger shows without moving."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.generation import Generation
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.position import OUTPUT, Argument, Position
from mlx_nb.shared.request import Prompt, RunRequest
from mlx_nb.shared.tokens import PromptTokens

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


class Looking:
    """The half of a `Debugger` that asks and shows; the other half moves.

    Nothing here changes where the run stands. What needs the rank asks the one that has the turn.
    """

    pipe: "Pipe"
    gen: Generation
    position: Position
    prompt: Prompt
    preview: bytes
    closed: bool
    _request: RunRequest
    _active: Rank
    _ranks: dict[Rank, Outcome]
    _hops: dict[Rank, Position]
    _tokens: PromptTokens | None
    _pieces: list[str]

    @property
    def run_id(self) -> int:
        """The run's number on the ranks."""
        return self._request.run_id

    @property
    def args(self) -> tuple[Argument, ...]:
        """The arguments of the call here; what was returned, at an exit."""
        return self.position.args

    def _value(self) -> np.ndarray:
        self._check_open()
        array: np.ndarray = self._ask("value")
        array.setflags(write=False)
        return array

    def p(self, expression: str, rank: int | None = None) -> Argument:
        """Evaluate an expression in the model's own frame, on the rank: arrays come as summaries.

        Args:
            expression: As the model's code could write it at this line.
            rank: Ask another rank: where its model's code waits for its turn.

        Raises:
            RunError: It raises there, or no code of the model waits there.
        """
        self._check_open()
        return self._ask("evaluate", expression, rank=rank)

    @property
    def locals(self) -> tuple[Argument, ...]:
        """The local names of the model's own frame."""
        self._check_open()
        return self._ask("frame_locals")

    def where(self) -> str:
        """The modules from the model down to here, the current one last, and where the code of `source` runs."""
        stack, source = self.position.stack, self.position.source
        runs = self._code_frame()
        path = []
        for i, frame in enumerate(stack):
            arrow = "→" if i == len(stack) - 1 else " "
            at = f"  {source.file}:{source.line}" if source and i == runs else ""
            path.append(f"{arrow} {frame.class_name:<24} {frame.path or '(model)'}{at}")
        if source and runs is None:
            path.append(f"  {source.function}  {source.file}:{source.line}")
        return "\n".join([self.position.where, *path])

    def source(self) -> str:
        """The model's own code around the line where the run stands."""
        position, source = self.position, self.position.source
        if source is None:
            return "No code is on this stop: it lies between the ranks."
        rows = [
            f"{number:>5} {'->' if source.line <= number <= source.last_line else '  '} {text}"
            for number, text in enumerate(source.lines, source.first)
        ]
        does = ""
        if position.stack and self._code_frame() != len(position.stack) - 1:
            last = position.stack[-1]
            does = f", which {'has called' if position.kind == OUTPUT else 'calls'} {last.class_name} {last.path}"
        return "\n".join([f"{source.function}{does}", f"{source.path}:{source.line}", *rows])

    def _code_frame(self) -> int | None:
        """Which module of the stack runs the code of `source`: as a rule the one around the current one."""
        stack, source = self.position.stack, self.position.source
        owner = source.function.partition(".")[0] if source else ""
        return next((i for i in reversed(range(len(stack))) if stack[i].class_name == owner), None)

    def tokens(self) -> PromptTokens:
        """The prompt's tokens with their text."""
        if self._tokens is None:
            ids = list(self._request.tokens)
            prompt = self.prompt if isinstance(self.prompt, str) else ids
            found = self.pipe.tokens(prompt, raw=self._request.options.raw)
            self._tokens = found if found.ids == ids else self.pipe.tokens(ids)
        return self._tokens

    def pieces(self) -> list[str]:
        """The text of each generated token."""
        ids = self.gen.token_ids
        if len(self._pieces) < len(ids):
            missing = ids[len(self._pieces) :]
            self._pieces += self.pipe.cluster.remote.call(Rank(0), "pieces", self.pipe.pipe_id, missing)
        return self._pieces[: len(ids)]

    @property
    def layer_paths(self) -> tuple[str, ...]:
        """The module path of every layer."""
        return self.pipe.shards[0].layer_paths

    def hops(self) -> dict[Rank, Position]:
        """The crossings of this pass so far, by the rank they left."""
        return dict(self._hops)

    @property
    def ranks(self) -> dict[Rank, Outcome]:
        """What each rank said last."""
        return dict(self._ranks)

    def refresh_preview(self) -> None:
        """Fetch the small picture of the value here, for a view that was opened in between."""
        if not self.closed:
            self.preview = self._ask("preview")

    def _ask(self, name: str, *args: Any, rank: int | None = None) -> Any:
        """Ask a rank about the run: as a rule the one that has the turn."""
        raise NotImplementedError

    def _check_open(self) -> None:
        """Raise `RunFinished` when there is nothing left to look at."""
        raise NotImplementedError
