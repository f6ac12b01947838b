"""What a model weighs, layer by layer, and which sites it has: measured without reading a weight."""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from fnmatch import fnmatchcase

from mlx_nb.shared.legal import LegalCuts
from mlx_nb.shared.text import Table, as_html, format_size, format_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Common:
    """What several layers read, or the model's ends: every rank that holds one of them has it once.

    Attributes:
        size_bytes: Its bytes.
        readers: The layers, rising; as many as there are layers stands for what comes after them (norm, head).
    """

    size_bytes: int
    readers: tuple[int, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSizes:
    """Bytes of a model's parts, in the dtype that it would be computed in.

    Attributes:
        model: The model as it was asked for.
        layers: Weight bytes of each layer, as far as it reads them.
        common: Weights outside the layers (embedding, norm, head), or of several of them.
        kv: KV cache bytes of each layer at `context` tokens, where it is the only one that uses the entry.
        common_kv: KV cache entries that several layers use.
        along: For each layer, what the hop carries besides the hidden state when a rank begins with it; "" if nothing.
        context: The tokens that `kv` is for.
        hidden_size: D.
        dtype: What it is computed in.
        notes: What a reader should know, such as a conversion at load.
        refused: For each layer, why no rank may begin with it; "" where one may. Empty if not known.
    """

    model: str
    layers: tuple[int, ...]
    common: tuple[Common, ...]
    kv: tuple[int, ...]
    context: int
    hidden_size: int
    dtype: str
    notes: tuple[str, ...] = ()
    refused: tuple[str, ...] = ()
    common_kv: tuple[Common, ...] = ()
    along: tuple[str, ...] = ()

    @property
    def cuts(self) -> LegalCuts:
        """Where the model may be cut."""
        whys = {layer: why for layer, why in enumerate(self.refused) if why}
        legal = tuple(layer for layer in range(1, len(self.layers)) if layer not in whys)
        along = {layer: words for layer, words in enumerate(self.along) if words}
        return LegalCuts(num_layers=len(self.layers), legal=legal, refused=whys, along=along)

    def weight_bytes(self, start: int, stop: int) -> int:
        """Weight bytes of a rank with the layers from start to stop."""
        return sum(self.layers[start:stop]) + self._held(self.common, start, stop)

    def kv_bytes(self, start: int, stop: int) -> int:
        """KV cache bytes of a rank with the layers from start to stop."""
        return sum(self.kv[start:stop]) + self._held(self.common_kv, start, stop)

    def _held(self, parts: tuple[Common, ...], start: int, stop: int) -> int:
        """Bytes of the parts that one of these layers reads; the last rank has what comes after the layers too."""
        end = stop + 1 if stop == len(self.layers) else stop
        return sum(part.size_bytes for part in parts if _has_between(part.readers, start, end))


def _has_between(rising: tuple[int, ...], start: int, stop: int) -> bool:
    """Whether one of some rising numbers is at least `start` and less than `stop`."""
    place = bisect_left(rising, start)
    return place < len(rising) and rising[place] < stop


@dataclass(frozen=True, slots=True, kw_only=True)
class SiteRow:
    """One module of a model, at its output.

    Attributes:
        site: The module's path with ``.output``.
        class_name: Its class.
        shape: What it returns, with axis letters: ``[B, L, D 576]``; other parts of a tuple follow.
        dtype: The dtype of what it returns.
        calls: How often one pass calls it.
        parameters: Parameters of the module with all inside it.
        size_bytes: Their bytes as they are stored.
    """

    site: str
    class_name: str
    shape: str
    dtype: str
    calls: int
    parameters: int
    size_bytes: int


class SiteTable:
    """Every site of a model, in the order in which a pass reaches it. Iterate, index, or filter by a glob."""

    def __init__(self, model: str, rows: Sequence[SiteRow], hint: str = "") -> None:
        self.model = model
        self.rows = tuple(rows)
        self._hint = hint  # what a glob that matches nothing could have been

    def __iter__(self) -> Iterator[SiteRow]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, pattern: "str | int") -> "SiteTable | SiteRow":
        """A row by its number, or the rows whose site matches a glob: ``sites["*.mlp.*"]``."""
        if isinstance(pattern, int):
            return self.rows[pattern]
        wanted = (pattern, f"*.{pattern}", f"{pattern}.output", f"*.{pattern}.output")
        rows = [row for row in self.rows if any(fnmatchcase(row.site, p) for p in wanted)]
        return SiteTable(self.model, rows, "" if rows else self._instead(pattern))

    def _instead(self, pattern: str) -> str:
        """What to type instead of a glob that matches nothing."""
        parts = [row.site.removesuffix(".output").rpartition(".")[2] for row in self.rows]
        if not parts:
            return f"No site matches {pattern!r}."
        plain = pattern.removesuffix(".output").strip("*.")
        near = [*get_close_matches(plain, dict.fromkeys(parts), n=1), parts[-1]]
        shown = " or ".join(repr(f"*.{part}") for part in dict.fromkeys(near))
        return f"No site matches {pattern!r}. Type a glob such as {shown}"

    def table(self) -> Table:
        """The rows as text, the head first."""
        head = ["site", "class", "returns", "dtype", "parameters", "bytes"]
        body = []
        for row in self.rows:
            site = f"{row.site} (×{row.calls})" if row.calls > 1 else row.site
            count = f"{row.parameters:,}" if row.parameters else ""
            size = format_size(row.size_bytes) if row.parameters else ""
            body.append([site, row.class_name, row.shape, row.dtype, count, size])
        return Table([head, *body], right=(4, 5))

    def __repr__(self) -> str:
        table = self.table()
        shown = (
            table
            if len(table) <= 60
            else [*table[:45], ["…", f"{len(table) - 56} more", "", "", "", ""], *table[-10:]]
        )
        if self._hint:
            return f"0 sites of {self.model}\n {self._hint}"
        plural = "" if len(self) == 1 else "s"
        return f"{len(self)} site{plural} of {self.model}\n{format_table(shown, right=(4, 5))}"

    def _repr_html_(self) -> str:
        return as_html(repr(self))
