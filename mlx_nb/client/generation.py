"""What a run has produced: pieces while it goes on, and the whole of it afterwards."""

from dataclasses import dataclass, field, replace

from mlx_nb.shared.outcome import Outcome
from mlx_nb.shared.text import format_duration
from mlx_nb.shared.timeline import Timeline

MOST_IDS = 64
"""So many token ids are printed where there is no text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """One token's worth of text, with the fields of mlx-lm's ``GenerationResponse``.

    Attributes:
        text: The text it adds; may be empty while a character is incomplete.
        token: Its id.
        prompt_tokens: Tokens of the prompt.
        prompt_tps: Prompt tokens a second.
        generation_tokens: Tokens generated so far, this one included.
        generation_tps: Generated tokens a second.
        finish_reason: ``stop`` or ``length`` with the last piece, else None.
        peak_memory: MLX's peak memory on the last rank in GB; 0 until the run has ended.
        from_draft: Always False: there is no draft model.
        logprobs: None: they stay on the last rank; see `pipe.logits`.
    """

    text: str
    token: int
    prompt_tokens: int
    prompt_tps: float
    generation_tokens: int
    generation_tps: float
    finish_reason: str | None = None
    peak_memory: float = 0.0
    from_draft: bool = False
    logprobs: None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """How fast a run was, by the last rank's clock.

    Attributes:
        prompt_tokens, generation_tokens: How many were fed, and how many made.
        reused_tokens: The prompt's first tokens, which a KV cache held already.
        prompt_tps, generation_tps: Tokens a second.
        peak_memory_bytes: MLX's peak memory by rank.
        wall_s: Seconds from the call to its end, in the notebook.
        compute_s: Seconds each rank spent in its passes (waiting for its neighbour included), by rank.
    """

    prompt_tokens: int
    generation_tokens: int
    prompt_tps: float
    generation_tps: float
    peak_memory_bytes: tuple[int, ...] = ()
    wall_s: float = 0.0
    compute_s: tuple[float, ...] = ()
    reused_tokens: int = 0

    @property
    def line(self) -> str:
        """The progress line: tokens, tok/s, prompt tok/s."""
        reused = f" and {self.reused_tokens} reused" if self.reused_tokens else ""
        return (
            f"{self.generation_tokens} tokens · {self.generation_tps:.1f} tok/s"
            f" · prompt {self.prompt_tokens} tokens{reused} · {self.prompt_tps:.1f} tok/s"
        )

    def __repr__(self) -> str:
        return f"Stats {self.line} · {format_duration(self.wall_s)}"


@dataclass(slots=True)
class Generation:
    """One run's text and tokens; it fills while the run goes on, and keeps them when the run is interrupted.

    Attributes:
        prompt_ids: The prompt's token ids.
        reused: How many of them, from the first, a KV cache held already.
        token_ids: The generated ids, a stop token included, as mlx-lm yields them.
        text: Their text.
        state: ``waiting`` (for its turn), ``running``, ``paused``, ``finished``, ``interrupted``, ``stopped`` (stands in a stepper) or ``failed``.
        finish_reason: ``stop`` or ``length`` once it has finished.
        stats: Speed; None before the first token.
        timeline: When each rank computed, sent and waited; None until the run has ended, and of a stepped run.
    """

    prompt_ids: list[int]
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    state: str = "running"
    finish_reason: str | None = None
    stats: Stats | None = None
    timeline: Timeline | None = None
    reused: int = 0

    @property
    def fed(self) -> int:
        """Prompt tokens that this run had to feed."""
        return len(self.prompt_ids) - self.reused

    def add(self, piece: Piece) -> None:
        """Take a streamed piece in."""
        self.token_ids.append(piece.token)
        self.text += piece.text
        self.stats = Stats(
            prompt_tokens=piece.prompt_tokens,
            generation_tokens=piece.generation_tokens,
            prompt_tps=piece.prompt_tps,
            generation_tps=piece.generation_tps,
            reused_tokens=self.reused,
        )

    def follow(self, last: Outcome) -> None:
        """Take in how far the last rank has come."""
        self.token_ids, self.text = list(last.token_ids), last.text
        self.stats = Stats(
            prompt_tokens=self.fed,
            reused_tokens=self.reused,
            generation_tokens=len(self.token_ids),
            prompt_tps=rate(self.fed, last.prompt_s),
            generation_tps=rate(len(self.token_ids) - 1, last.decode_s),
        )

    def settle(self, outcomes: list[Outcome], state: str, wall_s: float) -> None:
        """Take the ranks' own account in, which is the authoritative one; rank 0 first."""
        last = outcomes[-1]
        self.follow(last)
        assert self.stats is not None  # `follow` has made them
        self.state, self.finish_reason = state, last.finish or None
        times = [outcome.times for outcome in outcomes]
        self.timeline = Timeline(times) if all(rank.spans for rank in times) else None
        self.stats = replace(
            self.stats,
            peak_memory_bytes=tuple(outcome.peak_memory_bytes for outcome in outcomes),
            wall_s=wall_s,
            compute_s=tuple(sum(seconds for _, _, seconds in outcome.passes) for outcome in outcomes),
        )

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        tail = f" · {self.finish_reason}" if self.finish_reason else f" · {self.state}"
        line = self.stats.line if self.stats else "no tokens yet"
        return f"{self.text or self._ids}\n[{line}{tail}]"

    @property
    def _ids(self) -> str:
        """The generated ids in place of a text: a model without a tokenizer makes none."""
        shown = " ".join(map(str, self.token_ids[:MOST_IDS]))
        return f"token ids: {shown}{' …' if len(self.token_ids) > MOST_IDS else ''}" if shown else ""


class Generations(list[Generation]):
    """Several prompts' generations, in the order of the prompts: a list."""

    @property
    def state(self) -> str:
        """The state of those that have not finished, else ``finished``."""
        return next((one.state for one in self if one.state != "finished"), "finished")

    @property
    def text(self) -> str:
        """All texts, an empty line between two."""
        return "\n\n".join(one.text for one in self)

    @property
    def token_ids(self) -> list[list[int]]:
        """Each prompt's generated ids."""
        return [one.token_ids for one in self]

    def __repr__(self) -> str:
        return "\n\n".join(map(repr, self))


def rate(count: int, seconds: float) -> float:
    """Tokens a second; 0 where nothing was measured."""
    return count / seconds if seconds > 0 and count > 0 else 0.0
