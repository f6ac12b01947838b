"""The logit lens's view: what the model would say after each layer, at each position.

state, cells = lens_state(lens)
view = LensView(state, cells=cells)
"""

from typing import Any, ClassVar, cast

import traitlets

from mlx_nb.widgets.lens_state import LensState
from mlx_nb.widgets.lens_static import lens_html
from mlx_nb.widgets.view import View


class LensView(View):
    """A row for each layer, a column for each position.

    Attributes:
        cells: Packed as `lens_state.cell_dtype`, row by row.
    """

    name = "lens"
    blank: ClassVar[dict[str, Any]] = {
        "title": "",
        "note": "",
        "head_rank": 0,
        "rows": [],
        "columns": [],
        "texts": [],
        "top": 0,
        "text": "",
    }

    cells = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return lens_html(cast(LensState, self.state), self.cells)

    def text(self) -> str:
        return str(self.state["text"])
