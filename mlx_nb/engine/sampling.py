"""From logits to a token, through mlx-lm's own samplers, with a random state that belongs to the run."""

import secrets
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_nb.engine.mlx_lm_api import make_logits_processors, make_sampler
from mlx_nb.shared.request import GenerateOptions


class Sampler:
    """Picks one token after another for one run.

    mlx-lm's samplers draw from MLX's global random state. This one puts the run's own state in its
    place for the draw, so that a stopped stepper and a generate leave each other's tokens alone.
    """

    def __init__(self, options: GenerateOptions) -> None:
        self._sample: Callable[[mx.array], mx.array] = make_sampler(
            temp=options.temp, top_p=options.top_p, min_p=options.min_p, top_k=options.top_k
        )
        self._processors = make_logits_processors(repetition_penalty=options.repetition_penalty)
        self._draws = options.temp > 0
        self._seed = options.seed if options.seed is not None else secrets.randbits(32)

    def pick(self, logits: mx.array, history: list[int]) -> int:
        """The next token.

        Args:
            logits: ``[1, V]``, the last position's.
            history: Every token so far, prompt included; penalties look at it.
        """
        if self._processors:
            tokens = mx.array(history)
            for process in self._processors:
                logits = process(tokens, logits)
        logprobs = logits - mx.logsumexp(logits, keepdims=True)
        if not self._draws:
            return _as_int(self._sample(logprobs))
        others = _state_as_seed()
        mx.random.seed(self._seed)
        try:
            token = _as_int(self._sample(logprobs))
            self._seed = _state_as_seed()
        finally:
            mx.random.seed(others)
        return token


def _state_as_seed() -> int:
    """The seed that brings MLX's random state to where it is: its key is the seed's two 32-bit halves."""
    key: Any = mx.random.state[0]  # type: ignore[index]
    high, low = (int(half) for half in key.tolist())
    return (high << 32) | low


def _as_int(token: mx.array) -> int:
    value: Any = token.item()
    return int(value)
