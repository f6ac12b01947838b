"""From logits to a token, through mlx-lm's own samplers, with a random state that belongs to the run."""

import pickle
import secrets
from collections.abc import Callable
from typing import Any

import mlx.core as mx

from mlx_nb.engine.mlx_lm_api import make_logits_processors, make_sampler
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.request import GenerateOptions

Processor = Callable[[mx.array, mx.array], mx.array]


class Sampler:
    """Picks one token after another for one run.

    mlx-lm's samplers draw from MLX's global random state. This one puts the run's own state in its
    place for the draw, so that a stopped stepper and a generate leave each other's tokens alone.

    Attributes:
        seed: The run's random state, as the seed that brings it about.
    """

    def __init__(self, options: GenerateOptions) -> None:
        self._sample: Callable[[mx.array], mx.array] = make_sampler(
            temp=options.temp, top_p=options.top_p, min_p=options.min_p, top_k=options.top_k
        )
        built_in = make_logits_processors(
            logit_bias=dict(options.logit_bias),
            repetition_penalty=options.repetition_penalty,
            repetition_context_size=options.repetition_context_size,
            presence_penalty=options.presence_penalty,
            presence_context_size=options.presence_context_size,
            frequency_penalty=options.frequency_penalty,
            frequency_context_size=options.frequency_context_size,
        )
        self._processors: list[Processor] = [*built_in, *map(_guarded, options.logits_processors)]
        self._draws = options.temp > 0
        self.seed = options.seed if options.seed is not None else secrets.randbits(32)

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
        mx.random.seed(self.seed)
        try:
            token = _as_int(self._sample(logprobs))
            self.seed = _state_as_seed()
        finally:
            mx.random.seed(others)
        return token


def _guarded(pickled: bytes) -> Processor:
    """A user's own function, which answers for what it raises and returns.

    Raises:
        OptionError: It cannot be rebuilt here.
    """
    try:
        function = pickle.loads(pickled)
    except Exception as error:
        raise OptionError(
            f"A logits processor cannot be rebuilt on the last rank: {type(error).__name__}: {error}.",
            "Define it in the notebook, and import what it needs inside it.",
        ) from error
    name = getattr(function, "__name__", type(function).__name__)

    def process(tokens: mx.array, logits: mx.array) -> mx.array:
        shape = logits.shape
        try:
            changed = function(tokens, logits)
            mx.eval(changed)
        except Exception as error:
            raise OptionError(
                f"The logits processor {name} raised {type(error).__name__} on the last rank: {error}.",
                "It gets tokens [L] and logits [1, V] as mx.arrays; import what it needs inside it.",
            ) from error
        if not isinstance(changed, mx.array) or changed.shape != shape:
            found = list(changed.shape) if isinstance(changed, mx.array) else type(changed).__name__
            raise OptionError(
                f"The logits processor {name} returned {found}, not logits {list(shape)}.",
                "End it with: return logits",
            )
        return changed

    return process


def _state_as_seed() -> int:
    """The seed that brings MLX's random state to where it is: its key is the seed's two 32-bit halves."""
    key: Any = mx.random.state[0]  # type: ignore[index]
    high, low = (int(half) for half in key.tolist())
    return (high << 32) | low


def _as_int(token: mx.array) -> int:
    value: Any = token.item()
    return int(value)
