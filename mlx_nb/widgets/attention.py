"""The attention view: the heads of one layer side by side, one of them large, token by token.

state, small, values = attention_state(heads, …)
view = AttentionView(state, small=small, values=values)
view.on_ask(answer)     # "head" {head}, "layer" {layer}
"""

from typing import Any, ClassVar, cast

import traitlets

from mlx_nb.widgets.attention_state import AttentionState
from mlx_nb.widgets.attention_static import attention_html
from mlx_nb.widgets.view import View


class AttentionView(View):
    """Attention patterns.

    Attributes:
        small: All heads, ``[H, h, w]`` uint8, share x 255.
        values: The chosen one, ``[h, w]`` float32.
    """

    name = "attention"
    blank: ClassVar[dict[str, Any]] = {
        "title": "",
        "note": "",
        "layers": [],
        "layer": -1,
        "rank": -1,
        "heads": 0,
        "head": 0,
        "rows": {"first": 0, "count": 0, "cells": 0},
        "columns": {"first": 0, "count": 0, "cells": 0},
        "small": [0, 0],
        "tokens": [],
        "distance": "",
        "sentence": "",
        "text": "",
    }

    small = traitlets.Bytes(b"").tag(sync=True)
    values = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return attention_html(cast(AttentionState, self.state), self.small, self.values)

    def text(self) -> str:
        return str(self.state["text"])
