"""Showing a logit lens: of a prompt, of the last run, or one that was made already."""

from typing import TYPE_CHECKING, Any

from mlx_nb.client.live_view import LiveView
from mlx_nb.shared.errors import PromptError
from mlx_nb.shared.lens import Lens

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


def show_lens(lens: Lens) -> LiveView:
    """Show what the model would say after each layer."""
    from mlx_nb.widgets.lens import LensView
    from mlx_nb.widgets.lens_state import lens_state

    state, cells = lens_state(lens)
    return LiveView(LensView(state, cells=cells))


def lens_of(pipe: "Pipe", thing: Any, wishes: dict[str, Any]) -> Lens:
    """The lens that was meant: itself, or of a prompt or a trace; of the last run if nothing was named.

    Raises:
        PromptError: There is no prompt, and nothing has run.
        MlxNbError: As `Pipe.lens`.
    """
    if isinstance(thing, Lens):
        return thing
    if isinstance(thing, str) and not thing:
        if pipe.last is None:
            raise PromptError(
                "The view 'lens' needs a prompt.", "Type: %mlx_show lens What is the capital of France?"
            )
        # What the run has fed: the last token was sampled, not fed.
        thing = [*pipe.last.prompt_ids, *pipe.last.token_ids[:-1]]
    return pipe.lens(thing, **wishes)
