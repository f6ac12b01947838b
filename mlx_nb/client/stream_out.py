"""A run on the screen: pieces as they come, a progress line before them, one line of figures after."""

import sys
from typing import TYPE_CHECKING, Any

from IPython import get_ipython

from mlx_nb.client.current import current
from mlx_nb.client.generation import Generation
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.progress import ProgressLine
from mlx_nb.shared.text import Trimmer

if TYPE_CHECKING:
    from mlx_nb.client.breaking_run import BreakingRun
    from mlx_nb.client.streaming import FreeRun


def stream_to_screen(pipe: Pipe, prompt: Any, options: dict[str, Any]) -> Generation:
    """Generate and print.

    Ctrl-C is not raised on: a line says how far it came, and the text so far stays in `pipe.last`.

    Raises:
        MlxNbError: The prompt or an option is wrong, or the run failed.
    """
    return follow_on_screen(pipe.begin(prompt, **options))


def follow_on_screen(run: "FreeRun | BreakingRun") -> Generation:
    """Print what a run produces; as `stream_to_screen`."""
    generation = run.generation
    progress, trim = ProgressLine(), Trimmer()
    try:
        for piece in run.pieces():
            if piece is not None:
                progress.close()
                print(trim(piece.text), end="", flush=True)
            elif run.prefilled < len(generation.prompt_ids):
                progress.tell("prompt", run.prefilled, len(generation.prompt_ids))
    except KeyboardInterrupt:
        count = len(generation.token_ids)
        kept = " · the text so far: pipe.last.text" if get_ipython() is not None else ""
        print(f"\n[interrupted after {count} tokens{kept}]")
        return generation
    finally:
        progress.close()
        sys.stdout.flush()
    if generation.state == "stopped":
        print(
            f"\n[stopped after {len(generation.token_ids)} tokens · {current.dbg.position.about} %mlx_step run goes on]"
        )
        return generation
    line = generation.stats.line if generation.stats else ""
    print(f"\n[{line} · {generation.finish_reason or generation.state}]")
    for text in run.notes():
        print(text)
    return generation
