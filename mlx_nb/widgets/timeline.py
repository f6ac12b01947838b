"""The timeline's view: what every rank computed, sent and waited for, on one axis of time.

view = TimelineView(timeline_state(timeline), spans=pack_spans(timeline)[0])
view.on_ask(answer)     # "window": {begin_s, end_s} -> Answer({begin_s, end_s, pooled}, [packed spans])
"""

from typing import Any, ClassVar, cast

import traitlets

from mlx_nb.widgets.timeline_state import TimelineState
from mlx_nb.widgets.timeline_static import timeline_html
from mlx_nb.widgets.view import View


class TimelineView(View):
    """A lane for each rank.

    Attributes:
        spans: All spans of the run, packed as `timeline_state.SPAN_DTYPE`; pooled if ``state["pooled"]``.
    """

    name = "timeline"
    blank: ClassVar[dict[str, Any]] = {
        "title": "",
        "note": "",
        "summary": "",
        "length_s": 0.0,
        "lanes": [],
        "phases": [],
        "rows": [],
        "sentence": "",
        "pooled": False,
        "text": "",
    }

    spans = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return timeline_html(cast(TimelineState, self.state), self.spans)

    def text(self) -> str:
        return str(self.state["text"])
