"""Standing where a forward pass raised, as `pdb.pm` does: everything can be looked at, nothing goes on."""

from typing import TYPE_CHECKING

from mlx_nb.client.current import current
from mlx_nb.client.debugger import Debugger
from mlx_nb.client.generation import Generation
from mlx_nb.shared.errors import RunError, RunFinished
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.request import RunRequest

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


class PostMortem(Debugger):
    """A `Debugger` over a pass that raised: it cannot go on, but back and from the start."""

    def _check_can_move(self) -> None:
        super()._check_can_move()
        if self.gen.state == "failed":
            raise RunFinished(
                f"The pass raised at {self.position.where}; it cannot go on.",
                "Go back, or begin again: dbg.back(), dbg.restart()",
            )


def post_mortem(pipe: "Pipe") -> PostMortem:
    """Stand where the last run of a pipe raised.

    Raises:
        RunError: No forward pass has raised, or what it left is gone.
    """
    found: list[tuple[RunRequest, Outcome] | None] = pipe.call_all("post_mortem")
    stands = [(rank, *one) for rank, one in enumerate(found) if one is not None and one[1].position]
    if not stands:
        raise RunError("No forward pass of this pipe has raised.", "Type: pipe.generate(…) or pipe.debug(…)")
    rank, request, outcome = stands[-1]
    open_one = current.dbg
    note = ""
    if open_one is not None and not open_one.closed:
        note = f"The stepper that stood at {open_one.position.where} was closed."
        open_one.close()
    generation = pipe.last
    if generation is None or generation.prompt_ids != list(request.tokens):
        generation = Generation(list(request.tokens), token_ids=list(outcome.token_ids))
    generation.state = "failed"
    debugger = PostMortem(pipe, request, generation, list(request.tokens), note=note, begin=False)
    others = {Rank(n): one[1] for n, one in enumerate(found) if one and one[0].run_id == request.run_id}
    debugger.lie_at(Rank(rank), others)
    current.dbg = debugger
    return debugger
