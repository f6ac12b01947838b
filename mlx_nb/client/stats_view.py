"""Showing statistics: of a prompt, of the last run's tokens, or of a trace."""

from typing import TYPE_CHECKING, Any

from mlx_nb.client.live_view import LiveView
from mlx_nb.client.trace import Trace
from mlx_nb.shared.errors import PromptError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.statistics import TokenStatistics, check_statistic

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

SITE = "layers.*.resid_post"


def show_stats(
    pipe: "Pipe", thing: Any = "", stat: str = "rms", sites: str = SITE, **options: Any
) -> LiveView:
    """Show a number for each site and token.

    Args:
        pipe: Whose ranks compute them.
        thing: A prompt, or a trace that has recorded `sites`; nothing for the tokens of the last run.
        stat: The statistic that is shown first.
        sites: A glob of sites whose values have one shape.
        **options: As `Pipe.trace`.

    Raises:
        PromptError: There is no prompt, and nothing has run.
        OptionError: There is no such statistic, or the sites' values cannot be stacked.
        MlxNbError: As `Pipe.trace`.
    """
    check_statistic(stat)
    if isinstance(thing, Trace):
        return display_statistics(thing.statistics(sites), sites, stat)
    if isinstance(thing, str) and not thing:
        if pipe.last is None:
            raise PromptError(
                "The view 'stats' needs a prompt.", "Type: %mlx_show stats What is the capital of France?"
            )
        thing = [*pipe.last.prompt_ids, *pipe.last.token_ids[:-1]]  # the last token was sampled, not fed
    trace = pipe.trace(thing, sites, **options)
    try:
        found = trace.statistics(sites)
        ids = [*trace.gen.prompt_ids, *trace.gen.token_ids][found.start : found.start + found.shape[1]]
    finally:
        trace.drop()
    texts = pipe.cluster.remote.call(Rank(0), "pieces", pipe.pipe_id, ids)
    return display_statistics(found, sites, stat, texts)


def display_statistics(
    found: TokenStatistics, site: str = "", stat: str = "rms", texts: "list[str] | tuple[()]" = ()
) -> LiveView:
    """Show statistics that are there already."""
    from mlx_nb.widgets.stats import StatsView
    from mlx_nb.widgets.stats_state import stats_state

    state, numbers = stats_state(found, site, stat, texts)
    return LiveView(StatsView(state, numbers=numbers))
