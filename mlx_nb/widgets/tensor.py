"""The tensor's view: one face of an array, as big as it may be; what lies between the pixels is asked for.

    view = TensorView(state, overview=window.cells, maxima=details.rows + details.columns)
    view.on_ask(answer)      # "window": a part of the face in finer cells; "face": other axes

`mlx_nb.shared.tensor` has what a window is. The view knows nothing of clusters and models.
"""

from typing import Any, ClassVar

import traitlets

from mlx_nb.widgets.tensor_static import tensor_html, tensor_text
from mlx_nb.widgets.view import View


class TensorView(View):
    """A face of an array.

    Attributes:
        state: See `blank`.
        overview: The whole face in few cells, as `shared.tensor.Window` has them.
        maxima: The largest magnitude of each row, and then of each column; float32, empty until they are known.
    """

    name = "tensor"
    blank: ClassVar[dict[str, Any]] = {
        "model": "",
        "site": "",
        "suffix": "",
        "note": "",
        "tokens": "",
        "shape": [],
        "letters": [],  # a letter or a name for each axis, "" where it has none
        "names": [],  # the same in words
        "fixed": 0,  # so many axes, of the first, can only be picked from
        "dtype": "",
        "size": "",
        "rows": -1,
        "columns": -1,
        "index": [],
        "height": 0,
        "width": 0,
        "row_first": -1,  # the token of the first row, where rows are tokens that follow each other
        "column_first": -1,
        "overview": {"height": 0, "width": 0, "exact": True},
        "maxima": {"rows": 0, "columns": 0},
        "version": 0,  # grows when the values are others
        "numbers": [],
        "octaves": [],
        "zeros": 0,
        "outliers": [],  # row, column, value as text, where: its index, its token
        "place": {},
        "sentence": "",
        "text": "",
    }

    overview = traitlets.Bytes(b"").tag(sync=True)
    maxima = traitlets.Bytes(b"").tag(sync=True)

    def html(self) -> str:
        return tensor_html(self.state, self.overview)

    def text(self) -> str:
        return tensor_text(self.state)
