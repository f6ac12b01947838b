"""What the tensor's view can look at: a trace's value, a KV buffer, the value where a run stands."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mlx_nb.client.capture import Capture
from mlx_nb.client.kv import KVBufferHandle
from mlx_nb.shared.errors import RunError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.sites import short_spelling
from mlx_nb.shared.tensor import Details, DetailsWish, Face, Window, WindowWish
from mlx_nb.shared.text import format_size

if TYPE_CHECKING:
    from mlx_nb.client.debugger import Debugger

Wish = WindowWish | DetailsWish
Texts = Callable[[Sequence[int]], list[str]]

WORDS = {
    "B": "batch row", "L": "token", "S": "position", "D": "hidden channel", "H": "query head", "K": "KV head",
    "V": "vocabulary entry", "layer": "layer", "site": "site",
}  # fmt: skip


def no_texts(_numbers: Sequence[int]) -> list[str]:
    """Where nobody knows the tokens."""
    return []


@dataclass(frozen=True, slots=True, kw_only=True)
class Tensor:
    """An array somewhere, and how to look at it.

    Attributes:
        model: Whose.
        site, suffix: Its name; the suffix is printed fainter.
        note: Where it is.
        shape, dtype: Its own.
        letters: A letter or a name for each axis; "" where it has none.
        size_bytes: Where it is.
        look: Asks for a part of it, or for numbers.
        positions: Of the axes that run over tokens, which.
        texts: Texts of tokens by their position; none where they are not known.
        entries: Texts of entries of the vocabulary.
        place: What linked views may know of it.
        text: Itself in plain text.
        fixed: So many axes, of the first, can only be picked from.
        follows: Whether it changes with the stepper.
    """

    model: str = ""
    site: str
    suffix: str = ""
    note: str
    shape: tuple[int, ...]
    letters: tuple[str, ...]
    dtype: str
    size_bytes: int
    look: Callable[[Wish], Window | Details]
    positions: dict[int, Sequence[int]] = field(default_factory=dict)
    texts: Texts = no_texts
    entries: Texts = no_texts
    place: dict[str, Any] = field(default_factory=dict)
    text: str = ""
    fixed: int = 0
    follows: bool = False

    @property
    def size(self) -> str:
        return format_size(self.size_bytes)

    @property
    def names(self) -> list[str]:
        """The axes in words."""
        return [
            WORDS.get(letter, letter) or ("channel" if axis == len(self.shape) - 1 else f"axis {axis}")
            for axis, letter in enumerate(self.letters)
        ]


def of_capture(capture: Capture) -> Tensor:
    """A value of a trace, wherever it is."""
    first = capture.records[0]
    source, axis = capture.source, capture.axis
    letters = tuple("" if name.startswith("dim_") else name for name in capture.axes)

    def look(wish: Wish) -> Window | Details:
        if not capture.stacked:
            return source.look(first, axis, wish)
        record = capture.records[wish.face.index[0]]
        return source.look(record, axis, _without_first(wish))

    spans = [place for one in first.passes for place in range(one.start, one.stop)]
    along = axis + capture.stacked
    positions: dict[int, Sequence[int]] = {}
    if capture.shape and len(spans) == capture.shape[along]:
        positions[along] = spans
    if "S" in letters:
        positions.setdefault(letters.index("S"), range(capture.shape[letters.index("S")]))
    known = capture.fed

    def texts(tokens: Sequence[int]) -> list[str]:
        return source.texts([known[token] for token in tokens]) if max(tokens, default=0) < len(known) else []

    ranks = capture.rank if isinstance(capture.rank, tuple) else (capture.rank,)
    name = short_spelling(first.label, capture.layer_paths)
    if capture.stacked and len(capture.records) > 1:
        stem, suffix = f"{name} … {short_spelling(capture.records[-1].label, capture.layer_paths)}", ""
    else:
        stem, _, suffix = name.rpartition(".")
    return Tensor(
        model=capture.model,
        site=stem or name,
        suffix=f".{suffix}" if stem and suffix else "",
        note=f"rank{'s' if len(ranks) > 1 else ''} {', '.join(map(str, ranks))}",
        shape=capture.shape,
        letters=letters,
        dtype=capture.dtype,
        size_bytes=capture.nbytes,
        look=look,
        positions=positions,
        texts=texts,
        entries=source.texts,
        place={"rank": int(ranks[0]), "site": first.site, "layer": first.layer},
        text=repr(capture),
        fixed=int(capture.stacked),
    )


def _without_first(wish: Wish) -> Wish:
    """The same wish to one of the arrays that are stacked."""
    face = wish.face
    inner = Face(rows=max(face.rows - 1, -1), columns=max(face.columns - 1, -1), index=face.index[1:])
    if isinstance(wish, DetailsWish):
        return DetailsWish(face=inner)
    return WindowWish(face=inner, rows=wish.rows, columns=wish.columns, height=wish.height, width=wish.width)


def of_kv(handle: KVBufferHandle) -> Tensor:
    """A buffer of the KV caches that were reported last.

    Raises:
        RunError: There is no such buffer.
    """
    pipe, entry, buffer = handle.pipe, handle.entry, handle.buffer
    shape = buffer.shape
    letters = ("B", "K", "S", "") if len(shape) == 4 else ("",) * len(shape)
    positions: dict[int, Sequence[int]] = {}
    if len(shape) == 4 and len(entry.positions) == shape[2]:
        positions[2] = entry.positions
    last = pipe.last[0] if isinstance(pipe.last, list) else pipe.last
    fed = [*last.prompt_ids, *last.token_ids] if last is not None else []

    def look(wish: Wish) -> Window | Details:
        return pipe.cluster.remote.call(
            entry.rank, "look_at_kv", pipe.pipe_id, entry.place, buffer.name, wish
        )

    def pieces(ids: Sequence[int]) -> list[str]:
        return pipe.cluster.remote.call(Rank(0), "pieces", pipe.pipe_id, list(ids))

    def texts(tokens: Sequence[int]) -> list[str]:
        return pieces([fed[token] for token in tokens]) if max(tokens, default=0) < len(fed) else []

    return Tensor(
        model=pipe.name,
        site=f"kv[{entry.layer}]",
        suffix=f".{buffer.name}",
        note=f"rank {entry.rank} · {entry.class_name}",
        shape=shape,
        letters=letters,
        dtype=buffer.dtype,
        size_bytes=buffer.used_bytes,
        look=look,
        positions=positions,
        texts=texts,
        place={"rank": int(entry.rank), "layer": int(entry.layer)},
        text=repr(handle),
    )


def of_value(dbg: "Debugger") -> Tensor:
    """The first array where a run stands.

    Raises:
        RunError: It stands at none.
    """
    here, pipe, run_id = dbg.position, dbg.pipe, dbg.run_id
    summary = here.summary
    if summary is None or dbg.done or dbg.closed:
        raise RunError("There is no array where the run stands.", "Go on to one: dbg.into()")
    letters = (*summary.axes, *[""] * (len(summary.shape) - len(summary.axes)))
    positions: dict[int, Sequence[int]] = {}
    for axis, letter in enumerate(letters):
        if letter == "L" and summary.shape[axis] == here.stop - here.start:
            positions[axis] = range(here.start, here.stop)
        elif letter == "S":
            positions[axis] = range(summary.shape[axis])

    def look(wish: Wish) -> Window | Details:
        return pipe.cluster.remote.call(here.rank, "look_at_value", pipe.pipe_id, run_id, wish)

    def texts(tokens: Sequence[int]) -> list[str]:
        known = [token.text for token in dbg.tokens()] + dbg.pieces()
        return [known[token] for token in tokens] if max(tokens, default=0) < len(known) else []

    stem, _, suffix = short_spelling(here.site, dbg.layer_paths).rpartition(".")
    return Tensor(
        model=pipe.name,
        site=stem or here.site,
        suffix=f".{suffix}" if stem else "",
        note=f"rank {here.rank} · {here.phase} {here.start}:{here.stop}",
        shape=summary.shape,
        letters=tuple(letters),
        dtype=summary.dtype,
        size_bytes=summary.size_bytes,
        look=look,
        positions=positions,
        texts=texts,
        place={"rank": int(here.rank), "site": here.site, "layer": int(here.layer)},
        text=str(here),
        follows=True,
    )
