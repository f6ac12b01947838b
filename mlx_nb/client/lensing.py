"""The logit lens over ranks: each rank keeps what its layers return, the last rank's norm and head read it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.capture import Capture
from mlx_nb.client.trace import Trace
from mlx_nb.shared.errors import OptionError, SiteError
from mlx_nb.shared.ids import Rank
from mlx_nb.shared.lens import EMBEDDING, Lens
from mlx_nb.shared.readout import Readout
from mlx_nb.shared.request import Prompt

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe

LAST_POSITIONS = 12
"""So many positions are read unless others are asked for: a row of the view, and little work for a CPU."""

MOST_POSITIONS = 256
LAYERS, START = "layers.*.resid_post", "layers.0.resid_pre"

Tokens = int | list[int] | range | None


def look(
    pipe: "Pipe", prompt: "Prompt | Trace", tokens: Tokens, top: int, max_tokens: int, options: dict[str, Any]
) -> Lens:
    """As `Pipe.lens`."""
    if not isinstance(top, int) or isinstance(top, bool) or not 1 <= top <= 100:
        raise OptionError(f"top is a number of tokens from 1 to 100, not {top!r}.", "Type: top=10")
    trace = prompt if isinstance(prompt, Trace) else None
    if trace is not None and (options or max_tokens):
        raise OptionError("A trace has run already.", "Type: pipe.lens(trace, tokens=…)")
    recorded = trace or pipe.trace(prompt, f"{START},{LAYERS}", max_tokens, **options)  # type: ignore[arg-type]
    try:
        return _read(pipe, recorded, tokens, top)
    finally:
        if trace is None:
            recorded.drop()


def _read(pipe: "Pipe", trace: Trace, tokens: Tokens, top: int) -> Lens:
    layers = trace[LAYERS]
    count = len(trace.info.layer_paths)
    if len(layers.records) != count:
        raise SiteError(
            f"The lens needs what every layer returns; the trace has {len(layers.records)} of {count}.",
            f'Type: pipe.trace(…, sites="{LAYERS}")',
        )
    start = _embedding(trace, layers)
    positions = _positions(tokens, *layers.tokens)
    first, last = positions[0], positions[-1] + 1
    states = _at(layers, first, last)
    if start is not None:
        states = np.concatenate(
            [_at(start, first, last)[None] if not start.stacked else _at(start, first, last), states]
        )
    wanted = [np.ascontiguousarray(states[:, place - first]) for place in positions]
    head = Rank(pipe.num_ranks - 1)
    found: list[Readout] = pipe.cluster.remote.call(head, "read_states", pipe.pipe_id, wanted, top)
    sequence = [*trace.info.prompts[layers.records[0].run], *(trace.gen.token_ids if trace.gen else ())]
    fed = tuple(int(sequence[place]) if place < len(sequence) else -1 for place in positions)
    ids = sorted({int(i) for one in found for i in (*one.ids.ravel(), one.answer)} | set(fed))
    ids = [token for token in ids if token >= 0]
    texts = pipe.cluster.remote.call(Rank(0), "pieces", pipe.pipe_id, ids)
    sources = [*([start.records[0]] if start is not None else []), *layers.records]
    return Lens(
        model=trace.info.model,
        rows=(*([EMBEDDING] if start is not None else []), *(str(record.layer) for record in layers.records)),
        ranks=tuple(record.rank for record in sources),
        positions=tuple(positions),
        read=tuple(found),
        fed=fed,
        texts=dict(zip(ids, texts, strict=True)),
        head_rank=int(head),
    )


def _embedding(trace: Trace, layers: Capture) -> Capture | None:
    """What the first layer is given, where it has the shape of what the layers return."""
    if START not in trace:
        return None
    start = trace[START]
    return start if start.shape[-len(layers.shape) + 1 :] == layers.shape[1:] else None


def _at(capture: Capture, first: int, last: int) -> np.ndarray:
    """A capture's first batch row at some positions: ``[layers, P, …]``, or ``[P, …]`` of one site."""
    skip = capture.tokens[0]
    places = slice(first - skip, last - skip)
    found: np.ndarray = capture[:, 0, places] if capture.stacked else capture[0, places]
    return found


def _positions(tokens: Tokens, start: int, stop: int) -> list[int]:
    """The positions asked for, rising; negative ones count from the end.

    Raises:
        OptionError: They were not fed, or are too many.
    """
    if tokens is None:
        return list(range(max(start, stop - LAST_POSITIONS), stop))
    wanted = [tokens] if isinstance(tokens, int) else list(tokens)
    if not all(isinstance(place, int) for place in wanted):
        raise OptionError(
            f"tokens are positions in the sequence, not {tokens!r}.", "Type: tokens=[-1], or range(8, 16)"
        )
    places = sorted({stop + place if place < 0 else place for place in wanted})
    if not places or places[0] < start or places[-1] >= stop:
        raise OptionError(f"No pass fed token {tokens}.", f"Fed were the tokens {start}–{stop - 1}.")
    if len(places) > MOST_POSITIONS:
        raise OptionError(
            f"{len(places)} positions are too many to read.", f"Ask for at most {MOST_POSITIONS}."
        )
    return places
