"""The statistics strip: a row for each layer, a column for each token, coloured by how large a statistic is there.

state, numbers = stats_state(trace.statistics())
view = StatsView(state, numbers=numbers)
"""

from typing import Any, ClassVar, cast

import traitlets

from mlx_nb.widgets.stats_state import StatsState
from mlx_nb.widgets.stats_static import stats_html
from mlx_nb.widgets.view import View


class StatsView(View):
    """Layers by tokens.

    Attributes:
        numbers: ``[STATISTICS, N, columns]`` float32, packed.
    """

    name = "stats"
    blank: ClassVar[dict[str, Any]] = {
        "title": "",
        "note": "",
        "rows": [],
        "statistics": [],
        "chosen": "rms",
        "start": 0,
        "stop": 0,
        "each": 1,
        "tokens": [],
        "text": "",
    }

    numbers = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return stats_html(cast(StatsState, self.state), self.numbers)

    def text(self) -> str:
        return str(self.state["text"])
