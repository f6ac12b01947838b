"""A free run while breakpoints are armed: one rank at a time, so that it can stand still anywhere."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from mlx_nb.client.ctrl_c import asks
from mlx_nb.client.current import current
from mlx_nb.client.debugger import Debugger
from mlx_nb.client.generation import Generation, Piece, rate
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.request import Prompt, RunRequest
from mlx_nb.shared.strides import Stride

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


class BreakingRun:
    """As `FreeRun`, but it may end with ``gen.state == "stopped"``: the stepper is then current.

    Attributes:
        generation: What it has produced so far.
        prefilled: Prompt tokens that have gone through all ranks.
    """

    def __init__(self, pipe: "Pipe", request: RunRequest, generation: Generation, prompt: Prompt) -> None:
        self.generation = generation
        self.prefilled = 0
        self._debugger = Debugger(pipe, request, generation, prompt, begin=False)
        self._total = len(request.tokens) - request.reused
        self._told = 0
        self._text = ""

    def pieces(self) -> Iterator[Piece | None]:
        """Pieces as they come; None when there is only progress to show. Raises as `FreeRun.pieces`."""
        debugger, generation = self._debugger, self.generation
        debugger.open()
        generation.state = "running"
        walk = debugger.walk(Stride(name="run"))
        try:
            while True:
                try:
                    with asks(debugger.interrupt):
                        outcome = next(walk)
                except StopIteration as end:
                    position = end.value
                    break
                if outcome.passes:
                    self.prefilled = sum(count for phase, count, _ in outcome.passes if phase == "prefill")
                yield from self._new(outcome)
                if not generation.token_ids:
                    yield None
            yield from self._new(None)
        except BaseException:
            # Ctrl-C outside a rank's turn, a failure, or a caller that leaves the loop.
            debugger.close()
            raise
        if debugger.asked_to_stop and not debugger.done:
            debugger.close()
            raise KeyboardInterrupt
        if not debugger.done:
            generation.state = "stopped"
            before = current.dbg
            if before is not None and not before.closed:
                debugger.note = f"The stepper that stood at {before.position.where} was closed."
                before.close()
            current.dbg = debugger
            debugger.stand(position)

    def notes(self) -> list[str]:
        """What to know besides, once it is over."""
        return self._debugger.pipe.breakpoints.deaf()

    def _new(self, outcome: Outcome | None) -> Iterator[Piece]:
        """The pieces that no one has seen: one a token, their text as far as it is complete."""
        generation = self.generation
        while self._told < len(generation.token_ids):
            token = generation.token_ids[self._told]
            self._told += 1
            text = ""
            if self._told == len(generation.token_ids):
                text, self._text = generation.text[len(self._text) :], generation.text
            ended = outcome is None and self._told == len(generation.token_ids)
            yield Piece(
                text=text,
                token=token,
                prompt_tokens=self._total,
                prompt_tps=rate(self._total, outcome.prompt_s if outcome else 0.0),
                generation_tokens=self._told,
                generation_tps=rate(self._told - 1, outcome.decode_s if outcome else 0.0),
                finish_reason=generation.finish_reason if ended else None,
            )
