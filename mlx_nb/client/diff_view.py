"""Showing a comparison: the view, and who answers when one looks closer."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.live_view import LiveView
from mlx_nb.shared.diff_report import DiffReport, DiffRow
from mlx_nb.shared.errors import OptionError

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.shared.diff_report import Closer


class LiveDiff:
    """A comparison's view on the page.

    Args:
        report: What is shown. Its `closer` runs both models again where somebody looks closer.
    """

    def __init__(self, report: DiffReport) -> None:
        from mlx_nb.widgets.diff import DiffView

        self._report = report
        self._inside: dict[int, tuple[DiffRow, ...]] = {}
        if report.inside:
            self._inside[report.inside[0].layer] = report.inside
        self._gap: tuple[str, np.ndarray] | None = None
        state, gap = self._state()
        self.view = DiffView(state, gap=gap)
        self.live = LiveView(self.view, {"inside": self._look_inside, "gap": self._look_at})

    def _state(self) -> tuple[dict[str, Any], bytes]:
        from mlx_nb.widgets.diff_state import diff_state

        state, gap = diff_state(self._report, self._inside, self._gap)
        return dict(state), gap

    def _look_inside(self, details: dict[str, Any]) -> None:
        layer = int(details["layer"])
        own = {row.site for row in self._report.rows}
        rows = self._closer.inside(layer).rows
        self._inside[layer] = tuple(row for row in rows if row.site not in own)
        self._show()

    def _look_at(self, details: dict[str, Any]) -> None:
        site = str(details["site"])
        self._gap = site, self._closer.gap(site)
        self._show()

    @property
    def _closer(self) -> "Closer":
        if self._report.closer is None:
            raise OptionError(
                "Nobody can look closer: this report was not made here.", "Compare again: pipe.diff(…)"
            )
        return self._report.closer

    def _show(self) -> None:
        state, gap = self._state()
        self.view.show(state, gap=gap)


def display_diff(report: DiffReport) -> LiveDiff:
    """Show a comparison that was made."""
    return LiveDiff(report)


def show_diff(pipe: "Pipe", thing: Any = "", prompt: Any = None, **options: Any) -> LiveDiff:
    """Show how far a pipe is from another model.

    Args:
        pipe: What is compared.
        thing: A report; or what `Pipe.diff` compares with, or a prompt to compare with the same model in one process.
        prompt, **options: As `Pipe.diff`.

    Raises:
        OptionError: There is no prompt.
        MlxNbError: As `Pipe.diff`.
    """
    from mlx_nb.client.reference import reference

    if isinstance(thing, DiffReport):
        return LiveDiff(thing)
    if isinstance(thing, str):
        if not thing:
            raise OptionError(
                "The view 'diff' needs a prompt, or a report.",
                "Type: %mlx_show diff What is the capital of France?",
            )
        return LiveDiff(pipe.diff(reference(), thing, **options))
    return LiveDiff(pipe.diff(thing, prompt, **options))
