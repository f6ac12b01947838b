"""What a rank answers when a run was moved on."""

from dataclasses import dataclass, field, replace

import numpy as np

from mlx_nb.shared.breaks import Break
from mlx_nb.shared.position import KVOffset, Position
from mlx_nb.shared.strides import Stride
from mlx_nb.shared.timeline import RankTimes


@dataclass(frozen=True, slots=True, kw_only=True)
class RowText:
    """How far one of several prompts came; fields as in `Outcome`."""

    token_ids: tuple[int, ...]
    text: str
    finish: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How far a run came on one rank.

    Attributes:
        kind: ``stop`` (stands at `position`), ``handover`` (this rank's part of the pass is over),
            ``waiting``, ``more`` (the time that it was given is over), ``finished`` or ``interrupted``.
        stride: What is left of the stride.
        breaks: The breakpoints, with their counts.
        position: Where it stands.
        preview: A small picture of the value there, packed as `shared/preview.py` says.
        shapes: With the preview: what the modules of this layer, and those outside all layers, have returned in this pass.
        pass_index: The pass that the rank is in or has just ended, from 0.
        kv: The KV caches of this rank's layers.
        token_ids: The tokens generated so far.
        text: Their text; the last rank's is the whole one, the others' is empty.
        prompt_s: Seconds from the run's start to its first token, on this rank.
        decode_s: Seconds from the first token to the last.
        peak_memory_bytes: MLX's peak memory on this rank.
        finish: Why generation ended: ``stop``, ``length``, or empty.
        passes: Phase, tokens and seconds of each pass on this rank.
        times: When this rank computed, waited and sent; at the end of a free run only.
        rows: How far each of several prompts came; `token_ids`, `text` and `finish` are then the first one's.
        logits: ``[L, V]`` float32, for a run that asked for them, from the last rank.
    """

    kind: str
    stride: Stride | None = None
    breaks: tuple[Break, ...] = ()
    position: Position | None = None
    preview: bytes = b""
    shapes: tuple[tuple[str, tuple[int, ...]], ...] = ()
    pass_index: int = -1
    kv: tuple[KVOffset, ...] = ()
    token_ids: tuple[int, ...] = ()
    text: str = ""
    finish: str = ""
    prompt_s: float = 0.0
    decode_s: float = 0.0
    peak_memory_bytes: int = 0
    passes: tuple[tuple[str, int, float], ...] = ()
    times: RankTimes = field(default_factory=RankTimes)
    logits: np.ndarray | None = None
    rows: tuple[RowText, ...] = ()

    def of_row(self, place: int) -> "Outcome":
        """The outcome as that of one prompt alone."""
        if not self.rows:
            return self
        row = self.rows[place]
        return replace(self, token_ids=row.token_ids, text=row.text, finish=row.finish, rows=())


@dataclass(frozen=True, slots=True, kw_only=True)
class Past:
    """How far back a run can go on one rank.

    Attributes:
        known: Whether the rank still knows the run.
        passes: The passes that it could begin again; from the first it always can.
        size_bytes: What remembering them costs.
        budget_bytes: What it may cost; the oldest are dropped.
    """

    known: bool = False
    passes: tuple[int, ...] = ()
    size_bytes: int = 0
    budget_bytes: int = 0
